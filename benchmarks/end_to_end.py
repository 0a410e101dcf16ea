"""From data to an exported, pruned network, as a user would: the configs of examples/laptop, on real data.

    python -m benchmarks.end_to_end [--tasks cifar10-sew18 cifar10-dvs] [--seeds 0 1 2] [--output FILE.json]

Each is `spikeprune data ingest`, `run` and `export`. Beside it: by `prune`, the network before weight
pruning is trained for as many epochs more without being pruned; by `train`, full data in fewer epochs, at
least as many examples as SADP processes. The runs stay below ``--folder``; the same command goes on where
it was stopped. Data are read from ``../shared/data``: CIFAR-10 (a JPEG re-encode), and events that were
simulated of 2,500 of its images.
"""

import argparse
import math
import statistics
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.about import about
from benchmarks.real_data import folder
from benchmarks.sadp_tables import paired
from pipelines import cli
from pipelines.config.load import load_config
from pipelines.report.summary import summarise
from pipelines.storage.atomic import write_json

LAPTOP = Path(__file__).resolve().parents[1] / "examples" / "laptop"
TASKS = {
    "cifar10-sew18": ("cifar10", ["--size", "16"], "CIFAR-10"),
    "cifar10-dvs": ("cifar10-dvs", [], "CIFAR10-DVS, simulated"),
}
"""Folder of the data, options of the ingestion, and what to call the result."""
CONTROL = "unpruned, retrained as long"
"""The network before weight pruning."""
FEWER = "full data, fewer epochs"
"""At least as many examples as SADP's."""


def measure(task: str, seed: int, storage: Path) -> list[dict[str, Any]]:
    """A row per phase of the task's run under a seed, and of the two trainings beside it."""
    source, options, _ = TASKS[task]
    config, data, run = LAPTOP / f"{task}.yaml", storage / f"{task}-data", storage / f"{task}-{seed}"
    if not (data / "manifest.json").exists():
        spikeprune("data", "ingest", "parquet", "--input", folder(source), "--output", data, *options)
    on_data = ("--data.path", data, "--seed", seed, "--storage", storage, "--resume")
    spikeprune("run", config, *on_data, "--name", run.name)
    if not (exported := storage / f"{run.name}-exported").exists():
        spikeprune("export", run, "--output", exported)
    full, sadp, *pruned = _rows(task, run)

    control = storage / f"{run.name}-unpruned"
    spikeprune("prune", run, "--sparsity", "1e-7", "--name", control.name, "--storage", storage, "--resume")
    unpruned = {**_rows(task, control)[-1], "title": CONTROL, "density": 1.0}

    epochs = math.ceil(load_config(config).train.epochs * sadp["examples"] / full["examples"])
    short = ("--baseline", "none", "--data-pruning.policy", "full", "--train.epochs", epochs)
    spikeprune("train", config, *on_data, "--name", f"{run.name}-fewer", *short)
    fewer = {**_rows(task, storage / f"{run.name}-fewer")[0], "title": FEWER}
    return [{"seed": seed, **row} for row in (full, fewer, sadp, *pruned, unpruned)]


def _rows(task: str, run: Path) -> list[dict[str, Any]]:
    summary = summarise(run)
    return [
        {
            "task": task,
            "title": p.title,
            "accuracy": p.test_accuracy,
            "examples": p.examples,
            "seconds": round(p.seconds, 1),
            "total_seconds": round(
                sum(r.get("seconds", {}).get("total", 0) for r in summary.records if r["phase"] == p.phase), 1
            ),
            "density": p.density,
            "synops": p.synops,
        }
        for p in summary.phases
    ]


def spikeprune(*words: object) -> None:
    """Run a command; ends with its exit code where that is not 0."""
    code = cli.main(list(map(str, words)))
    if code:
        sys.exit(code)


def tables(result: dict[str, Any]) -> str:
    """A Markdown table per task, beside full data: means over the seeds, of times the median."""
    parts = []
    for task in dict.fromkeys(row["task"] for row in result["rows"]):
        rows = [row for row in result["rows"] if row["task"] == task]
        titles = dict.fromkeys(row["title"] for row in rows)
        lines = [
            f"| {TASKS[task][2]} | test accuracy | - full data | examples | training s | of full data "
            "| density | SynOps | of dense |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        for title in titles:
            lines.append(f"| {' | '.join(_cells(rows, title))} |")
        full, *pruned = (title for title in titles if title not in (CONTROL, FEWER))
        lines.append(
            f"\nWith evaluation: full data {_minutes(rows, full):.1f} minutes; pruned data, pruned "
            f"weights and retraining {_minutes(rows, *pruned):.1f} minutes in all."
        )
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _minutes(rows: list[dict[str, Any]], *titles: str) -> float:
    """Of the phases together."""
    seconds: Counter[int] = Counter()
    for row in rows:
        seconds[row["seed"]] += row["total_seconds"] * (row["title"] in titles)
    return statistics.median(seconds.values()) / 60


def _cells(rows: list[dict[str, Any]], title: str) -> list[str]:
    """Of a phase: accuracy (standard deviation), paired difference from full data (95 %), and costs."""
    full, phase = ([row for row in rows if row["title"] == t] for t in (rows[0]["title"], title))

    def mean(field: str, of: list[dict[str, Any]] = phase) -> float:
        return statistics.fmean(row[field] for row in of)

    accuracies = [100 * row["accuracy"] for row in phase]
    difference, half, n = paired({r["seed"]: r for r in phase}, {r["seed"]: r for r in full})
    share = [p["seconds"] / f["seconds"] for p, f in zip(phase, full, strict=True)]
    trained = phase[0]["examples"] > 0
    return [
        title,
        f"{mean('accuracy'):.1%}" + (f" ({statistics.stdev(accuracies):.1f})" if n > 1 else ""),
        "" if title == full[0]["title"] else f"{difference:+.1f}" + (f" ± {half:.1f}" if n > 1 else ""),
        f"{mean('examples'):,.0f}" if trained else "",
        f"{statistics.median(p['seconds'] for p in phase):,.0f}" if trained else "",
        f"{statistics.median(share):.0%}" if trained else "",
        f"{mean('density'):.1%}",
        f"{mean('synops'):,.0f}",
        f"{mean('synops') / mean('synops', full):.0%}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--folder", type=Path, default=Path("runs/end-to-end"))
    parser.add_argument("--output", type=Path, default=Path("runs/end_to_end.json"))
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    result = {"about": about("benchmarks.end_to_end", sys.argv[1:]), "rows": rows}
    for task in options.tasks:
        for seed in options.seeds:
            rows += measure(task, seed, options.folder)
            write_json(options.output, result)
    print(tables(result))


if __name__ == "__main__":
    main()
