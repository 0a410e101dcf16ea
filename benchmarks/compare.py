"""Two results of the suite against one another: which ratios moved by more than their spread.

    python -m benchmarks.compare BEFORE.json AFTER.json

A ratio moved when the ranges over its repetitions do not touch and the medians differ by more than 2 %.
The exit code is 1 if one moved for the worse (ratios are of time: upwards).
"""

import json
import sys
from pathlib import Path
from typing import Any

LEAST = 0.02  # smaller changes are not worth a line, whatever the spread


def moved(before: dict[str, float], after: dict[str, float]) -> str:
    """ "better", "worse" or "" for two ratios with median, low and high."""
    if abs(after["median"] / before["median"] - 1) <= LEAST:
        return ""
    if after["low"] > before["high"]:
        return "worse"
    return "better" if after["high"] < before["low"] else ""


def compare(before: dict[str, Any], after: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """(ratio, before, after, verdict) for every ratio of either result."""
    rows = []
    a, b = _ratios(before), _ratios(after)
    for name in dict.fromkeys([*a, *b]):
        verdict = moved(a[name], b[name]) if name in a and name in b else "only in one"
        rows.append((name, _shown(a.get(name)), _shown(b.get(name)), verdict))
    return rows


def _ratios(result: dict[str, Any]) -> dict[str, dict[str, float]]:
    return {
        f"{case}: {name}": r for case, found in result["cases"].items() for name, r in found["ratios"].items()
    }


def _shown(r: dict[str, float] | None) -> str:
    return "" if r is None else f"{r['median']:.3f} ({r['low']:.3f} to {r['high']:.3f})"


def main() -> int:
    if len(sys.argv) != 3:
        print(__doc__)
        return 2
    results = []
    for name in sys.argv[1:]:
        if not Path(name).exists():
            print(f"{name}: no such file; `make bench` writes one", file=sys.stderr)
            return 2
        results.append(json.loads(Path(name).read_text()))
    before, after = results
    if before["about"]["machine"] != after["about"]["machine"]:
        print(f"other machine: {before['about']['machine']} before, {after['about']['machine']} now")
    rows = compare(before, after)
    print("| ratio | before | after | moved |\n|---|---|---|---|")
    for row in rows:
        print(f"| {' | '.join(row)} |")
    worse = [row[0] for row in rows if row[3] == "worse"]
    print(f"\n{len(worse)} worse" + "".join(f"\n  {name}" for name in worse))
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main())
