"""Accuracy, SynOps and density of every weight criterion on one trained network per dataset and seed.

    python -m benchmarks.slamp_quality [--tasks digits nmnist cifar10] [--seeds 3] [--first-seed 0]
        [--distortion-only] [--output FILE.json]

For each dataset (`benchmarks.slamp_tasks`; ``dvs128`` and ``cifar-dvs`` are the longer ones) and seed one
dense network is trained, and from it:

- ``distortion``: each layer pruned alone by magnitude; E|change of the scores|^2 on held-out examples
  against what each coefficient predicts; the spread of log(measured / predicted) tells them apart; and
  violations of the certificate, which must be 0;
- ``one-shot``: every criterion at 80, 90, 95 and 98 % weight sparsity, after batch norm re-estimation;
- ``synops``: criteria with and without SynOps prices at 20 and 10 % of the dense SynOps, before and
  after equal short retraining (prune, re-estimate, retrain, re-estimate), and the gain over SynOps-priced
  LAMP, seed by seed; and what cutting dead channels then gives: their share, and the time of a forward
  pass over the masked network's (median of 7 each).

Real data is read from ``../shared/data``; ``digits`` (scikit-learn) runs anywhere. One thread.
"""

import argparse
import copy
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.about import about
from benchmarks.slamp_distortion import distortion_rows, spread_of_logs
from benchmarks.slamp_tasks import BATCH, STEPS, TASKS, Task, accuracy, scores, train
from pruning.weights.allocation import Allocation, allocate
from pruning.weights.calibration import calibrate, relative_spread
from pruning.weights.compaction import compact
from pruning.weights.criteria import CRITERIA, Objective
from pruning.weights.masks import Masks
from snn.activity import measure
from snn.batchnorm import reestimate
from snn.models import SpikingNetwork

CALIBRATION = 400
RESPONSE = 128
NORM = 400

SYNOPS_METHODS: list[tuple[str, Objective]] = [
    ("uniform", "weights"),
    ("magnitude", "weights"),
    ("lamp", "weights"),
    ("magnitude", "synops"),
    ("lamp", "synops"),
    ("slamp_time", "synops"),
    ("slamp_root", "synops"),
    ("slamp_membrane", "synops"),
    ("slamp_local", "synops"),
    ("slamp_response", "synops"),
]


def pruned(task: Task, dense: SpikingNetwork, masks: Masks, norm_x: Tensor) -> SpikingNetwork:
    model = copy.deepcopy(dense)
    masks.apply_(model)
    reestimate(model, task.batches(norm_x))
    return model


def describe(
    task: Task, model: SpikingNetwork, allocation: Allocation, reference: Tensor, dense_synops: float
) -> dict[str, Any]:
    outputs = scores(task, model)
    activity = measure(model, task.batches(task.x_test[:500]))
    return {
        "criterion": allocation.criterion,
        "objective": allocation.objective,
        "accuracy": accuracy(task, outputs),
        "relative_distortion": float((outputs - reference).square().mean() / reference.var()),
        "density": activity.density,
        "synops": activity.synops / dense_synops,
        "layers": [layer.density for layer in allocation.layers],
    }


def compacted(task: Task, model: SpikingNetwork) -> dict[str, float]:
    """Share of channels left by compaction, and forward time over that of the masked network."""
    small = compact(model.eval())
    x = task.inputs(task.x_test[:BATCH])
    seconds: dict[str, list[float]] = {"masked": [], "small": []}
    with torch.no_grad():
        for _ in range(7):
            for name, network in (("masked", model), ("small", small.model)):
                start = time.process_time()
                network(x)
                seconds[name].append(time.process_time() - start)
    channels = sum(s.layer.weight.shape[0] for s in model.synapses()[:-1])
    return {
        "channels_left": sum(small.widths.values()) / channels,
        "time_after_compaction": statistics.median(seconds["small"]) / statistics.median(seconds["masked"]),
    }


def measure_seed(
    name: str, task: Task, seed: int, quick: bool = False, distortion_only: bool = False
) -> dict[str, Any]:
    start = time.perf_counter()
    dense = task.network(seed)
    train(task, dense, 2 if quick else task.epochs, 5e-3, seed)
    order = torch.randperm(len(task.x_train), generator=torch.Generator().manual_seed(seed + 1000))
    norm_x = task.x_train[order[:NORM]]
    reestimate(dense, task.batches(norm_x))
    reference = scores(task, dense)
    draws = [
        calibrate(dense, task.batches(task.x_train[part]), response_examples=RESPONSE)
        for part in order.split(CALIBRATION)[:3]
        if len(part)
    ]
    calibration = draws[0]
    dense_synops = measure(dense, task.batches(task.x_test[:500])).synops
    rows: list[dict[str, Any]] = []
    levels: tuple[tuple[float, ...], tuple[float, ...]] = ((0.8, 0.9, 0.95, 0.98), (0.2, 0.1))
    if quick:
        levels = ((0.9,), (0.1,))
    if distortion_only:
        levels = ((), ())
    for sparsity in levels[0]:
        for criterion in CRITERIA:
            allocation = allocate(dense, calibration, criterion=criterion, sparsity=sparsity)
            model = pruned(task, dense, allocation.masks, norm_x)
            row = describe(task, model, allocation, reference, dense_synops)
            rows.append({"part": "one-shot", "level": sparsity, **row})
    for fraction in levels[1]:
        for criterion, objective in SYNOPS_METHODS:
            allocation = allocate(
                dense,
                calibration,
                criterion=criterion,
                objective=objective,
                synops_fraction=fraction,
            )
            model = pruned(task, dense, allocation.masks, norm_x)
            before = accuracy(task, scores(task, model))
            train(task, model, task.retrain_epochs, 2e-3, seed, allocation.masks)
            reestimate(model, task.batches(norm_x))
            row = describe(task, model, allocation, reference, dense_synops)
            row |= {"accuracy_before": before, **compacted(task, model)}
            rows.append({"part": "synops", "level": fraction, **row})
    layers = distortion_rows(task, dense, calibration)
    return {
        "task": name,
        "seed": seed,
        "dense_accuracy": accuracy(task, reference),
        "dense_synops": dense_synops,
        "coefficients": [
            {
                "name": c.name,
                "tau": c.tau,
                "sigma": c.sigma,
                "rho": c.rho,
                "price": c.price,
                "rate": c.firing_rate,
            }
            for c in calibration.layers
        ],
        "spread_over_draws": {kind: relative_spread(draws, kind) for kind in ("membrane", "response")},
        "distortion": layers,
        "sd_log_measured_over_predicted": spread_of_logs(layers, STEPS[name]),
        "certificate_violations": sum(r["violations"] for r in layers),
        "rows": rows,
        "seconds": time.perf_counter() - start,
    }


def tables(result: dict[str, Any]) -> str:
    """What is printed of a stored result: means and standard deviations over its seeds."""
    lines = []
    for task in dict.fromkeys(run["task"] for run in result["runs"]):
        of = [run for run in result["runs"] if run["task"] == task]
        mean = statistics.mean(run["dense_accuracy"] for run in of)
        lines.append(f"{task}: {len(of)} seeds, dense accuracy {mean:.3f}")
        lines.append(f"  certificate violations {sum(run['certificate_violations'] for run in of)}")
        spreads = [spread_of_logs(run["distortion"], STEPS[task]) for run in of]
        for name, forms in spreads[0].items():
            values = (f"{form} {statistics.mean(s[name][form] for s in spreads):.2f}" for form in forms)
            lines.append(f"  sd log(measured / predicted) {name:<15} {', '.join(values)}")
        kinds = dict.fromkeys((r["part"], r["level"], r["criterion"], r["objective"]) for r in of[0]["rows"])
        lines += [table_line(kind, of) for kind in kinds]
    return "\n".join(lines)


def rows_of(kind: tuple[Any, ...], runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row per seed."""
    return [
        r
        for run in runs
        for r in run["rows"]
        if (r["part"], r["level"], r["criterion"], r["objective"]) == kind
    ]


def table_line(kind: tuple[Any, ...], runs: list[dict[str, Any]]) -> str:
    """One criterion at one level."""
    rows = rows_of(kind, runs)
    accuracies = [r["accuracy"] for r in rows]
    line = (
        f"  {kind[0]:<9}{kind[1]:<5} {kind[2]:<15}{kind[3]:<8} accuracy {_mean_sd(accuracies)}"
        f" density {statistics.mean(r['density'] for r in rows):.3f}"
        f" SynOps {statistics.mean(r['synops'] for r in rows):.3f}"
    )
    if kind[0] == "synops":
        rival = rows_of((*kind[:2], "lamp", "synops"), runs)
        gains = [r["accuracy"] - other["accuracy"] for r, other in zip(rows, rival, strict=True)]
        line += (
            f" before retraining {statistics.mean(r['accuracy_before'] for r in rows):.3f}"
            f" channels left {statistics.mean(r['channels_left'] for r in rows):.2f}"
            f" time {statistics.mean(r['time_after_compaction'] for r in rows):.2f}"
            f" over priced lamp {_mean_sd(gains, '+.3f')}"
        )
    return line


def _mean_sd(values: list[float], form: str = ".3f") -> str:
    sd = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):{form}} +- {sd:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tasks", nargs="+", choices=sorted(TASKS), default=["digits", "nmnist", "cifar10"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="two epochs and one level, to see it run")
    parser.add_argument("--distortion-only", action="store_true", help="leave out one-shot and synops")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    runs = []
    for name in options.tasks:
        task = TASKS[name]()
        for seed in range(options.first_seed, options.first_seed + options.seeds):
            runs.append(measure_seed(name, task, seed, options.quick, options.distortion_only))
            print(f"{name} seed {seed}: {runs[-1]['seconds']:.0f} s", flush=True)
            if options.output:
                told = about("benchmarks.slamp_quality", sys.argv[1:])
                options.output.write_text(json.dumps({"about": told, "runs": runs}, indent=1) + "\n")
    print(tables({"runs": runs}))


if __name__ == "__main__":
    main()
