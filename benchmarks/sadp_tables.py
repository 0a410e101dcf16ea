"""Tables of `benchmarks.sadp_training`: accuracy, paired differences with intervals, speed."""

import statistics
from collections.abc import Sequence
from typing import Any

Row = dict[str, Any]

T95 = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57, 7: 2.45, 8: 2.36}
"""Student's t at 97.5 % by the number of seeds."""
HEAD = ("method", "r", "seeds", "accuracy %", "- random (95 %)", "- sadp (95 %)", "- full (95 %)")


def tables(result: dict[str, Any]) -> str:
    """One Markdown table per task."""
    text = []
    for task in dict.fromkeys(r["task"] for r in result["rows"]):
        rows = [r for r in result["rows"] if r["task"] == task]
        text += [f"\n### {task}\n", _line(HEAD), _line(["---"] * len(HEAD))]
        full, speeds = _by_seed(rows, "full", 0.0), []
        if full:
            text.append(_line(_cells("full", 0.0, full, {})))
        for ratio in sorted({r["ratio"] for r in rows} - {0.0}):
            rivals = {name: _by_seed(rows, name, ratio) for name in ("random", "sadp")} | {"full": full}
            if (speed := achieved(rivals["sadp"], full)) is not None:
                speeds.append(f"{ratio:g}: {speed:.2f}")
            for method in dict.fromkeys(r["method"] for r in rows if r["ratio"] == ratio):
                found = _by_seed(rows, method, ratio)
                text.append(_line(_cells(method, ratio, found, rivals)))
        if speeds:
            text.append(f"\nsadp, achieved over theoretical speed-up of the steps by r: {', '.join(speeds)}")
    return "\n".join(text)


def paired(found: dict[int, Row], rival: dict[int, Row]) -> tuple[float, float, int]:
    """Mean difference of accuracy over common seeds in points, half its 95 % interval, number of seeds."""
    seeds = sorted(found.keys() & rival.keys())
    differences = [100 * (found[s]["accuracy"] - rival[s]["accuracy"]) for s in seeds]
    if not differences:
        return float("nan"), float("nan"), 0
    return statistics.mean(differences), half_interval(differences), len(differences)


def half_interval(values: Sequence[float]) -> float:
    """Half the 95 % interval of a mean (Student's t); 0 for a single value."""
    n = len(values)
    return T95[n] * statistics.stdev(values) / n**0.5 if n > 1 else 0.0


def achieved(found: dict[int, Row], full: dict[int, Row]) -> float | None:
    """Speed-up in CPU seconds of the steps over the one that the number of examples promises."""
    seeds = found.keys() & full.keys()
    ratios = [
        (full[s]["cpu_parts_s"]["train"] / full[s]["examples"])
        / ((found[s]["cpu_parts_s"]["train"] + found[s]["cpu_parts_s"]["score"]) / found[s]["examples"])
        for s in seeds
    ]
    return statistics.median(ratios) if ratios else None


def _by_seed(rows: Sequence[Row], method: str, ratio: float) -> dict[int, Row]:
    return {r["seed"]: r for r in rows if (r["method"], r["ratio"]) == (method, ratio)}


def _cells(method: str, ratio: float, found: dict[int, Row], rivals: dict[str, dict[int, Row]]) -> list[str]:
    accuracy = [100 * r["accuracy"] for r in found.values()]
    spread = f" ({statistics.stdev(accuracy):.2f})" if len(accuracy) > 1 else ""
    differences = ["" if name == method else _difference(found, rival) for name, rival in rivals.items()]
    return [
        method,
        f"{ratio:g}",
        str(len(accuracy)),
        f"{statistics.mean(accuracy):.2f}{spread}",
        *(differences or [""] * 3),
    ]


def _difference(found: dict[int, Row], rival: dict[int, Row]) -> str:
    mean, half, n = paired(found, rival)
    if not n:
        return ""
    return f"{mean:+.2f} ± {half:.2f}" if n > 1 else f"{mean:+.2f}"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
