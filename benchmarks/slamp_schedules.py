"""Retraining after SLAMP: learning rate and rounds at equal retraining, on the networks of `slamp_quality`.

    python -m benchmarks.slamp_schedules [--tasks sew18 vgg9] [--seeds 0 1 2] [--level 0.1] [--output F.json]

Each dense network (the checkpoints of `benchmarks.slamp_quality`) is pruned to a share of its SynOps and
retrained for EPOCHS epochs of 8,000 rows in all:

- ``restarted``: one shot, one cycle of the learning rate, as in `slamp_quality`;
- ``rewound``: one shot, the learning rate of the dense training's last steps (Renda et al. 2020, arXiv
  2003.02389);
- ``constant``: one shot, a twenty-fifth of the dense training's peak throughout;
- ``rounds``: a cubic schedule in ROUNDS rounds, each calibrated on what the one before left and retrained
  with a cycle of its own.

Finished rows are kept in FILE.jsonl; the same command goes on where it was stopped. One thread.
"""

import argparse
import copy
import statistics
import sys
import time
from math import cos, pi
from pathlib import Path
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from benchmarks.about import about
from benchmarks.journal import Journal
from benchmarks.slamp_quality import NORM, Bench, prepared
from benchmarks.slamp_tables import difference
from benchmarks.slamp_tasks import BATCH, accuracy, one_cycle, scores, train
from pruning.weights.allocation import allocate
from pruning.weights.calibration import calibrate
from pruning.weights.masks import Masks
from snn.batchnorm import reestimate

Row = dict[str, Any]

EPOCHS = 6
ROUNDS = 3
CALIBRATION = 400
PEAK, RETRAINING = 5e-3, 2e-3
"""Learning rates of the dense training and of a cycle after it."""
FALLING = 0.7
"""The part of a cycle in which the learning rate falls."""
METHODS = ("restarted", "rewound", "constant", "rounds")


def pruned_row(bench: Bench, level: float, method: str) -> Row:
    """Prune and retrain by one method, re-estimating batch norm after every mask and at the end."""
    task, model, start = bench.task, copy.deepcopy(bench.dense), time.process_time()

    def rewound(optimizer: torch.optim.Optimizer, steps: int) -> LRScheduler:
        dense = task.epochs * (len(task.x_train) // BATCH)
        left = min(steps / dense / FALLING, 1.0)
        return LambdaLR(optimizer, lambda step: (1 + cos(pi * (1 - left * (1 - step / steps)))) / 2)

    def constant(optimizer: torch.optim.Optimizer, steps: int) -> LRScheduler:
        return LambdaLR(optimizer, lambda step: 1.0)

    rounds = ROUNDS if method == "rounds" else 1
    lr, schedule = {
        "rewound": (PEAK, rewound),
        "constant": (PEAK / 25, constant),
    }.get(method, (RETRAINING, one_cycle))
    masks: Masks | None = None
    for round_ in range(rounds):
        fraction = level + (1 - level) * (1 - (round_ + 1) / rounds) ** 3
        calibration = calibrate(model, bench.sample(CALIBRATION))
        masks = allocate(model, calibration, synops_fraction=fraction, previous=masks).masks
        masks.apply_(model)
        reestimate(model, bench.sample(NORM))
        masked = accuracy(task, scores(task, model))
        train(task, model, EPOCHS // rounds, lr, bench.seed, masks, schedule)
        reestimate(model, bench.sample(NORM))
    figures = bench.activity(model)
    return {
        "dense": accuracy(task, bench.reference),
        "last_masked": masked,
        "accuracy": accuracy(task, scores(task, model)),
        **figures,
        "synops_of_dense": figures["synops"] / bench.synops,
        "seconds": round(time.process_time() - start, 1),
    }


def tables(result: Row) -> str:
    """Markdown: a line per network and method, differences from ``restarted`` seed by seed."""
    lines = [
        "| network, SynOps aimed at | retraining | seeds | dense | accuracy | - restarted | weights left"
        " | SynOps left |",
        "|---" * 8 + "|",
    ]
    rows = result["rows"]
    for task, level in dict.fromkeys((row["task"], row["level"]) for row in rows):
        own = [row for row in rows if (row["task"], row["level"]) == (task, level)]
        first = {row["seed"]: row["accuracy"] for row in own if row["method"] == METHODS[0]}
        for method in dict.fromkeys(row["method"] for row in own):
            of = [row for row in own if row["method"] == method]
            values = [100 * row["accuracy"] for row in of]
            less = [100 * (row["accuracy"] - first[row["seed"]]) for row in of if row["seed"] in first]
            spread = f" ({statistics.stdev(values):.1f})" if len(values) > 1 else ""
            means = {k: statistics.mean(r[k] for r in of) for k in ("dense", "density", "synops_of_dense")}
            lines.append(
                f"| {task}, {level:.0%} | {method} | {len(of)} | {100 * means['dense']:.1f}"
                f" | {statistics.mean(values):.1f}{spread}"
                f" | {'' if method == METHODS[0] else difference(less)}"
                f" | {means['density']:.1%} | {means['synops_of_dense']:.1%} |"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tasks", nargs="+", default=["vgg9", "sew18"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--level", type=float, default=0.1)
    parser.add_argument("--output", type=Path, default=Path("runs/slamp_schedules.json"))
    parser.add_argument("--checkpoints", type=Path, default=Path("runs/slamp_quality"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    journal = Journal(
        options.output.with_suffix(".jsonl"), ("task", "seed", "level", "method"), options.output
    )
    told = about("benchmarks.slamp_schedules", sys.argv[1:])
    for task in options.tasks:
        for seed in options.seeds:
            keys = [{"task": task, "seed": seed, "level": options.level, "method": m} for m in METHODS]
            keys = [key for key in keys if key not in journal]
            if not keys:
                continue
            bench = prepared(task, seed, options.checkpoints)
            for key in keys:
                row = pruned_row(bench, key["level"], key["method"])
                journal.add({**key, **row, "date": told["date"], "commit": told["commit"]})
                print(*key.values(), row["accuracy"], flush=True)
    journal.store(options.output, told)
    print(tables({"rows": journal.rows}))


if __name__ == "__main__":
    main()
