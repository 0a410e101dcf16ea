"""The key ratios in one go: every case a benchmark's own command, ours beside the alternative or the limit.

    python -m benchmarks.suite [--cases NAME ...] [--repeats 3] [--output FILE.json]      (``make bench``)

Each repetition of a case is a process of its own and gives its ratios; the suite keeps their median and
range, with machine, versions, commit, wall and CPU seconds, as JSON and as Markdown beside it.
`benchmarks.compare` holds two such files against one another (``make bench-check``: this machine now against
docs/results/suite.json). Ratios below are "ours over the alternative": of time, so less is better.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.about import about
from pipelines.storage.atomic import write_beside, write_json

ROOT = Path(__file__).resolve().parents[1]
Result = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """A benchmark's command and the ratios in its JSON."""

    command: tuple[str, ...]
    ratios: Callable[[Result], dict[str, float]]
    output: str = "--output"


def _networks(result: Result) -> dict[str, float]:
    """Forward+backward of each network over the same network without neurons, and over the peer."""
    found: dict[str, float] = {}
    seconds = {
        (r["network"], r["batch"], r["variant"]): r["seconds"]["forward+backward"]["median"]
        for r in result["rows"]
        if r["case"] == "B1"
    }
    for (network, batch, variant), value in seconds.items():
        if variant.startswith("ours"):
            for other in ("limit", "spikingjelly"):
                if (network, batch, other) in seconds:
                    key = f"{network} batch {batch}, {variant} / {other}"
                    found[key] = value / seconds[network, batch, other]
    return found


def _scores(result: Result) -> dict[str, float]:
    """Scores in a step, and a scoring pass, over a plain training step."""
    found: dict[str, float] = {}
    for network, seconds in result["steps"].items():
        found[f"{network}, step with SADP scores / step"] = seconds["step + sadp"] / seconds["step"]
        found[f"{network}, scoring pass / step"] = seconds["pass"] / seconds["step"]
    return found


def _engines(result: Result) -> dict[str, float]:
    """Worker's CPU time of an epoch under Ray over one plain process."""
    cpu = {
        row["mode"]: statistics.median(e["cpu_seconds"]["train"] for e in row["epochs"][1:])
        for row in result["rows"]
    }
    return {"vgg6, steps of an epoch under Ray / plain process (CPU)": cpu["ray"] / cpu["local"]}


def _sparse(result: Result) -> dict[str, float]:
    """Inference over surviving weights over the faster of the dense memory formats."""
    found: dict[str, float] = {}
    for row in result["networks"]:
        dense = min(s for name, s in row["seconds"].items() if name.startswith("dense"))
        key = f"{row['network']} batch {row['batch']}, {1 - row['sparsity']:.0%} of the weights / dense"
        found[key] = row["seconds"]["ours"] / dense
    return found


CASES = {
    "networks": Case(("benchmarks.snn_speed", "--cases", "B1", "--rounds", "3"), _networks),
    "scores": Case(
        ("benchmarks.sadp_cost", "--models", "vgg6", "c32-wide", "--draw", "0"), _scores, output="--out"
    ),
    "engines": Case(("benchmarks.pipeline_overhead", "--cases", "engines", "--rows", "256"), _engines),
    "sparse inference": Case(
        ("benchmarks.sparse_inference", "--cases", "networks", "--networks", "vgg6:16", "--rounds", "3"),
        _sparse,
    ),
}


def measure(case: Case, repeats: int) -> dict[str, Any]:
    """Ratios of a case: median and range over its repetitions; wall and CPU seconds of all of them."""
    runs: list[dict[str, float]] = []
    wall, cpu = time.perf_counter(), _children_cpu()
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as folder:
            output = Path(folder) / "result.json"
            command = [sys.executable, "-m", *case.command, case.output, str(output)]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
            if done.returncode:
                sys.exit(f"{' '.join(case.command)} failed:\n{done.stderr}")
            runs.append(case.ratios(json.loads(output.read_text())))
    return {
        "command": " ".join(("python -m", *case.command)),
        "wall_seconds": round(time.perf_counter() - wall, 1),
        "cpu_seconds": round(_children_cpu() - cpu, 1),
        "ratios": {
            name: {
                "median": statistics.median(r[name] for r in runs),
                "low": min(r[name] for r in runs),
                "high": max(r[name] for r in runs),
            }
            for name in runs[0]
        },
    }


def _children_cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def markdown(result: Result) -> str:
    """A page of a suite's result."""
    told = result["about"]
    lines = [
        f"`{told['command']}`, {told['date']}, commit {told['commit']}, {told['machine']}, "
        + ", ".join(f"{name} {v}" for name, v in told["versions"].items() if v),
        "",
        "| case | ratio (less is better) | median | range |",
        "|---|---|---|---|",
    ]
    for name, case in result["cases"].items():
        for what, r in case["ratios"].items():
            lines.append(f"| {name} | {what} | {r['median']:.3f} | {r['low']:.3f} to {r['high']:.3f} |")
    lines += ["", "| case | command of a repetition | wall s | CPU s |", "|---|---|---|---|"]
    for name, case in result["cases"].items():
        lines.append(f"| {name} | `{case['command']}` | {case['wall_seconds']} | {case['cpu_seconds']} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path("runs/suite.json"))
    options = parser.parse_args()
    found: dict[str, Any] = {}
    for name in options.cases:
        print(f"{name} ...", flush=True)
        found[name] = measure(CASES[name], options.repeats)
    result = {"about": about("benchmarks.suite", sys.argv[1:]), "cases": found}
    write_json(options.output, result)
    page = markdown(result)
    write_beside(options.output.with_suffix(".md"), lambda p: p.write_text(page))
    print(page)


if __name__ == "__main__":
    main()
