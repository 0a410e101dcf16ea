"""From data to an exported, pruned network, as a user would: the configs of examples/laptop, on real data.

    python -m benchmarks.end_to_end [--tasks cifar10-sew18 cifar10-dvs] [--output FILE.json] [--folder ...]

Each is `spikeprune data ingest`, `run` and `export`; beside it, by `prune`, the network before weight pruning
is trained for as many epochs more without being pruned. The runs stay below ``--folder``; the same command
goes on where it was stopped. Data are read from ``../shared/data``: CIFAR-10 (a JPEG re-encode), and events
that were simulated of 2,500 of its images.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from benchmarks.about import about
from benchmarks.real_data import folder
from pipelines import cli
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


def measure(task: str, storage: Path) -> list[dict[str, Any]]:
    """A row per phase of the task's run."""
    source, options, _ = TASKS[task]
    data, run = storage / f"{task}-data", storage / f"{task}-laptop"
    if not (data / "manifest.json").exists():
        spikeprune("data", "ingest", "parquet", "--input", folder(source), "--output", data, *options)
    config = LAPTOP / f"{task}.yaml"
    spikeprune("run", config, "--data.path", data, "--storage", storage, "--resume")
    if not (exported := storage / f"{task}-exported").exists():
        spikeprune("export", run, "--output", exported)
    control = storage / f"{task}-unpruned"
    keep_all = ("--sparsity", "1e-7", "--name", control.name, "--storage", storage, "--resume")
    spikeprune("prune", run, *keep_all)
    return [*_rows(task, run), {**_rows(task, control)[-1], "title": CONTROL, "density": 1.0}]


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
    """A Markdown table per task, beside full data."""
    parts = []
    for task in dict.fromkeys(row["task"] for row in result["rows"]):
        rows = [row for row in result["rows"] if row["task"] == task]
        full = rows[0]
        lines = [
            f"| {TASKS[task][2]} | test accuracy | examples | training s | of full data "
            "| density | SynOps | of dense |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for row in rows:
            trained = row["examples"] > 0
            dense = full["synops"]
            cells = [
                row["title"],
                f"{row['accuracy']:.1%}",
                f"{row['examples']:,}" if trained else "",
                f"{row['seconds']:,.0f}" if trained else "",
                f"{row['seconds'] / full['seconds']:.0%}" if trained else "",
                f"{row['density']:.1%}",
                f"{row['synops']:,.0f}",
                f"{row['synops'] / dense:.0%}",
            ]
            lines.append(f"| {' | '.join(cells)} |")
        total = sum(row["total_seconds"] for row in rows[1:] if row["title"] != CONTROL)
        lines.append(
            f"\nWith evaluation: full data {full['total_seconds'] / 60:.1f} minutes; pruned data, pruned "
            f"weights and retraining {total / 60:.1f} minutes in all."
        )
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--folder", type=Path, default=Path("runs/end-to-end"))
    parser.add_argument("--output", type=Path, default=Path("runs/end_to_end.json"))
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    rows = [row for task in options.tasks for row in measure(task, options.folder)]
    result = {"about": about("benchmarks.end_to_end", sys.argv[1:]), "rows": rows}
    write_json(options.output, result)
    print(tables(result))


if __name__ == "__main__":
    main()
