"""Accuracy of the demo's job over seeds: full data, random sampling and SADP, then SLAMP at 90 %.

    python -m benchmarks.demo_accuracy [--seeds 3] [--output FILE.json]

One process and one worker without Ray; the scoring pass of the demo runs in it.
"""

import argparse
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.about import about
from pipelines.config.load import load_config
from pipelines.data.ingest import ingest
from pipelines.report.summary import summarise
from pipelines.runs.run import run
from pipelines.storage.atomic import write_json

CONFIG = Path(__file__).resolve().parents[1] / "examples" / "demo.yaml"


def measure(seeds: int) -> list[dict[str, Any]]:
    """One row per seed and policy."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        ingest("mnist-sample", data)
        for seed in range(seeds):
            for policy in ("random", "sadp"):
                config = load_config(
                    CONFIG,
                    {
                        "name": f"{policy}-{seed}",
                        "storage": folder,
                        "seed": str(seed),
                        "data.path": str(data),
                        "data_pruning.policy": policy,
                        "baseline": "full" if policy == "sadp" else "none",
                        "cluster.engine": "local",
                        "cluster.workers": "1",
                    },
                )
                summary = summarise(run(config, console=Console(quiet=True)))
                rows += [
                    {
                        "seed": seed,
                        "method": "full" if p.phase == "baseline" else f"{policy} {p.phase}",
                        "accuracy": p.test_accuracy,
                        "examples": p.examples,
                        "seconds": p.seconds,
                        "density": p.density,
                        "synops": p.synops,
                    }
                    for p in summary.phases
                ]
    return rows


def tables(result: dict[str, Any]) -> str:
    """Mean and spread over seeds per method."""
    rows = result["rows"]
    full = statistics.mean(r["accuracy"] for r in rows if r["method"] == "full")
    lines = [
        f"{'method':<16} {'accuracy':>9} {'sd':>6} {'- full':>7} {'examples':>9} {'seconds':>8} "
        f"{'density':>8} {'SynOps':>8}"
    ]
    for method in sorted({r["method"] for r in rows}):
        of = [r for r in rows if r["method"] == method]
        accuracy = [r["accuracy"] for r in of]
        sd = statistics.stdev(accuracy) if len(accuracy) > 1 else 0.0
        mean = statistics.mean(accuracy)
        lines.append(
            f"{method:<16} {mean:>9.2%} {sd:>6.2%} {100 * (mean - full):>+7.2f} {of[0]['examples']:>9,} "
            f"{statistics.mean(r['seconds'] for r in of):>8.1f} {of[0]['density']:>8.1%} "
            f"{statistics.mean(r['synops'] for r in of):>8,.0f}"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    result = {"about": about("benchmarks.demo_accuracy", sys.argv[1:]), "rows": measure(options.seeds)}
    print(tables(result))
    if options.output:
        write_json(options.output, result)


if __name__ == "__main__":
    main()
