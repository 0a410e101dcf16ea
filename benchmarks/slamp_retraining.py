"""Retraining after SLAMP: on which examples, and in how many rounds.

    python -m benchmarks.slamp_retraining [--tasks digits cifar16] [--seeds 3] [--output FILE.json]

Per task and seed one dense network (convolutional, T = 4, all data) is trained by the product itself, with
the local engine, and pruned from there by `pipelines.runs.run.prune`:

- ``examples``: 90 % of the weights away, then EPOCHS epochs on all data, on half of it drawn uniformly, on
  half of it by SADP with scores from the training steps (stale) or a pass before every epoch (fresh); for
  equal compute also all data in half the epochs, and uniformly as many examples as fresh SADP costs. The
  last epoch is on all data, as the product has it. ``compute``: trained and scored examples (a scored one
  counts 0.31) over those of all data in EPOCHS epochs.
- ``rounds``: 95 % of the weights, and nine tenths of the SynOps, away in one shot or in three rounds (cubic;
  equal parts of the one shot's distortion budget), EPOCHS epochs of retraining in all.

``digits``: 1,437 real handwritten digits, tested on 360. ``cifar16``: the first 2,000 CIFAR-10 images (JPEG
re-encode) at 16x16, tested on 2,000. One thread.
"""

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks import cifar16
from benchmarks.about import about
from pipelines.config.load import load_config
from pipelines.data.ingest import ingest
from pipelines.report.summary import summarise
from pipelines.runs.run import prune, run
from pipelines.runs.run_folder import read_metrics
from pipelines.storage.atomic import write_json
from pruning.examples.policies.settings import FORWARD_COST

EPOCHS = 6
ROUNDS = 3
QUIET = Console(quiet=True)
TASKS = {
    "digits": {"model.channels": "[16, 32]", "model.hidden": "[64]", "train.epochs": "12"},
    "cifar16": {"model.channels": "[24, 48]", "model.hidden": "[128]", "train.epochs": "10"},
}
Overrides = dict[str, str]
Row = dict[str, Any]


def write_data(task: str, output: Path) -> None:
    """The task's dataset folder."""
    if task == "digits":
        ingest("digits", output)
    else:
        cifar16.write(output, train_rows=2000, test_rows=2000)


def dense(task: str, data: Path, storage: Path, seed: int) -> Path:
    """Train on all data; the run's folder."""
    config = load_config(
        None,
        {
            "name": f"{task}-{seed}",
            "storage": str(storage),
            "seed": str(seed),
            "data.path": str(data),
            "model.name": "convnet",
            "data_pruning.policy": "full",
            "cluster.engine": "local",
            "cluster.workers": "1",
            **TASKS[task],
        },
    )
    return run(config, "train", console=QUIET)


def outcome(source: Path, name: str, overrides: Overrides) -> Row:
    """Prune and retrain; how it ended and what its retraining processed."""
    run_name = f"{source.name}-{name.replace(' ', '-').replace(',', '')}"
    folder = prune(source, {"name": run_name, **overrides}, console=QUIET)
    summary = summarise(folder)
    retrained = [p for p in summary.phases if p.phase.startswith("retrain")]
    records = read_metrics(folder)
    return {
        "method": name,
        "accuracy": retrained[-1].test_accuracy,
        "masked": next(r["test_accuracy"] for r in reversed(records) if r["phase"] == "prune"),
        "examples": sum(p.examples for p in retrained),
        "scored": sum(p.scored for p in retrained),
        "density": retrained[-1].density,
        "synops": retrained[-1].synops,
        "dense_synops": next(r["dense_activity"]["synops"] for r in records if "dense_activity" in r),
        "budget": json.loads((folder / "pruning.json").read_text())["allocation"]["budget"],
        "seconds": sum(p.seconds for p in retrained),
    }


def examples_rows(source: Path) -> Iterator[Row]:
    """Retraining on different examples, of the same masks."""
    base = {"weight_pruning.sparsity": "0.9", "weight_pruning.retrain_epochs": str(EPOCHS)}
    half = {**base, "data_pruning.ratio": "0.5"}
    full = outcome(source, "full", {**base, "data_pruning.policy": "full"})
    N = full["examples"] / EPOCHS
    fresh = outcome(
        source, "sadp fresh", {**half, "data_pruning.policy": "sadp", "data_pruning.rescore_every": "1"}
    )
    spent = (fresh["examples"] + FORWARD_COST * fresh["scored"]) / N
    equal = max(0.0, 1 - (spent - 1) / (EPOCHS - 1))  # the last epoch is on all data
    rows = [
        full,
        outcome(
            source,
            "full, half the epochs",
            {**base, "data_pruning.policy": "full", "weight_pruning.retrain_epochs": str(EPOCHS // 2)},
        ),
        outcome(source, "random", {**half, "data_pruning.policy": "random"}),
        outcome(
            source, "sadp stale", {**half, "data_pruning.policy": "sadp", "data_pruning.rescore_every": "0"}
        ),
        fresh,
        outcome(
            source,
            "random, as sadp fresh costs",
            {**base, "data_pruning.policy": "random", "data_pruning.ratio": str(equal)},
        ),
    ]
    for row in rows:
        row["compute"] = (row["examples"] + FORWARD_COST * row["scored"]) / (N * EPOCHS)
        yield {"part": "examples", "level": "weights 0.9", **row}


def rounds_rows(source: Path) -> Iterator[Row]:
    """One shot against rounds, at the same target and number of epochs."""
    targets: dict[str, Overrides] = {
        "weights 0.95": {"weight_pruning.sparsity": "0.95"},
        "synops 0.1": {"weight_pruning.synops": "0.1", "weight_pruning.objective": "synops"},
    }
    for level, target in targets.items():
        base = {
            "data_pruning.policy": "full",
            "weight_pruning.objective": target.get("weight_pruning.objective", "weights"),
        }
        name = level.replace(".", "")
        one = outcome(
            source, f"{name} one shot", {**base, **target, "weight_pruning.retrain_epochs": str(EPOCHS)}
        )
        parts = {
            **base,
            "weight_pruning.rounds": str(ROUNDS),
            "weight_pruning.retrain_epochs": str(EPOCHS // ROUNDS),
        }
        cubic = outcome(source, f"{name} cubic", {**parts, **target})
        equal = outcome(
            source,
            f"{name} equal distortion",
            {**parts, "weight_pruning.budget": str(one["budget"])},
        )
        for row in (one, cubic, equal):
            yield {"part": "rounds", "level": level, **row, "method": row["method"].removeprefix(f"{name} ")}


def tables(result: dict[str, Any]) -> str:
    """What is printed of a stored result: a line per task, part, level and method."""
    rows, lines = result["rows"], []
    for key in dict.fromkeys((r["task"], r["part"], r["level"], r["method"]) for r in rows):
        of = [r for r in rows if (r["task"], r["part"], r["level"], r["method"]) == key]
        accuracies = [r["accuracy"] for r in of]
        sd = statistics.stdev(accuracies) if len(of) > 1 else 0.0
        synops = statistics.mean(r["synops"] / r["dense_synops"] for r in of)
        line = (
            f"{key[0]:<8} {key[1]:<9} {key[2]:<13} {key[3]:<28} accuracy {statistics.mean(accuracies):.3f}"
            f" +- {sd:.3f} before {statistics.mean(r['masked'] for r in of):.3f}"
            f" density {statistics.mean(r['density'] for r in of):.3f} SynOps {synops:.3f}"
        )
        compute = [r["compute"] for r in of if "compute" in r]
        lines.append(line + (f" compute {statistics.mean(compute):.2f}" if compute else ""))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tasks", nargs="+", choices=sorted(TASKS), default=["digits", "cifar16"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    told = about("benchmarks.slamp_retraining", sys.argv[1:])
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as name:
        for task in options.tasks:
            data = Path(name) / f"data-{task}"
            write_data(task, data)
            for seed in range(options.seeds):
                source = dense(task, data, Path(name), seed)
                accuracy = read_metrics(source)[-1]["test_accuracy"]
                for row in (*examples_rows(source), *rounds_rows(source)):
                    rows.append({"task": task, "seed": seed, "dense_accuracy": accuracy, **row})
                print(f"{task} seed {seed}: dense {accuracy:.3f}", flush=True)
                if options.output:
                    write_json(options.output, {"about": told, "rows": rows})
    print(tables({"rows": rows}))


if __name__ == "__main__":
    main()
