"""Accuracy, SynOps and density of every weight criterion on one trained network per dataset and seed.

    python -m benchmarks.slamp_quality [--tasks digits nmnist cifar10] [--seeds 3] [--output FILE.json]

For each dataset and seed one dense network is trained, and from it:

- ``distortion``: each layer pruned alone by magnitude; E|change of the scores|^2 on held-out examples
  against what each coefficient predicts; the spread of log(measured / predicted) tells them apart; and
  violations of the certificate, which must be 0;
- ``one-shot``: every criterion at 80, 90, 95 and 98 % weight sparsity, after batch norm re-estimation;
- ``synops``: criteria with and without SynOps prices at 20 and 10 % of the dense SynOps, before and
  after equal short retraining (prune, re-estimate, retrain, re-estimate); and what cutting dead channels
  then gives: their share, and the time of a forward pass over the masked network's (median of 7 each).

Real data is read from ``../shared/data``; ``digits`` (scikit-learn) runs anywhere. One thread.
"""

import argparse
import copy
import io
import json
import platform
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from math import log
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pruning.weights.allocation import Allocation, allocate
from pruning.weights.calibration import Calibration, calibrate, relative_spread
from pruning.weights.certificate import certify
from pruning.weights.compaction import compact
from pruning.weights.criteria import CRITERIA
from pruning.weights.masks import Masks
from snn.activity import measure
from snn.batchnorm import reestimate
from snn.coding import direct
from snn.losses import rate_cross_entropy
from snn.models import SpikingNetwork, build
from snn.neurons import NeuronParameters

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
BATCH = 64
CALIBRATION = 400
NORM = 400


@dataclass
class Task:
    """A dataset in memory and how to train on it."""

    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor
    T: int
    events: bool
    channels: tuple[int, ...]
    hidden: tuple[int, ...]
    epochs: int
    retrain_epochs: int
    neuron: NeuronParameters

    def inputs(self, x: Tensor) -> Tensor:
        """``x_TB`` of examples: frames ``[B, T, ...]``, or images coded as a constant current."""
        return x.float().transpose(0, 1) if self.events else direct(x, self.T)


def split(x: Tensor, y: Tensor, train: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    x, y = x[order], y[order]
    return x[:train], y[:train], x[train:], y[train:]


def digits() -> Task:
    from sklearn.datasets import load_digits

    found = load_digits()
    x = torch.tensor(found.images, dtype=torch.float32)[:, None] / 8 - 1
    data = split(x, torch.tensor(found.target), 1200)
    return Task(*data, 4, False, (16, 32), (64,), 20, 2, NeuronParameters())


def images(train: int = 4000, test: int = 2000) -> Task:
    import pyarrow.parquet as pq
    from PIL import Image

    def read(kind: str, rows: int) -> tuple[Tensor, Tensor]:
        table = pq.read_table(sorted((DATA / "cifar10" / "full").glob(f"{kind}-*"))[0]).slice(0, rows)
        pixels = [np.asarray(Image.open(io.BytesIO(r["bytes"]))) for r in table["image"].to_pylist()]
        x = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float() / 255
        return (x - 0.47) / 0.25, torch.tensor(table["label"].to_pylist())

    return Task(
        *read("train", train),
        *read("test", test),
        4,
        False,
        (32, 64, 96, 128),
        (128,),
        16,
        1,
        NeuronParameters(),
    )


def frames_of(folder: str, size: int, T: int, pool: int) -> tuple[Tensor, Tensor]:
    """Event counts by polarity in ``T`` equal windows of each recording."""
    import pyarrow.parquet as pq

    x, y = [], []
    for path in sorted((DATA / folder).glob("*.parquet")):
        table = pq.read_table(path, columns=["t", "x", "y", "p", "label"])
        for row in table.to_pylist():
            t = np.asarray(row["t"], dtype=np.int64)
            frame = np.zeros((T, 2, size // pool, size // pool), dtype=np.float32)
            window = np.minimum(t * T // (t[-1] + 1 if len(t) else 1), T - 1)
            cell = [np.minimum(np.asarray(row[k], dtype=np.int64) // pool, size // pool - 1) for k in "yx"]
            np.add.at(frame, (window, np.asarray(row["p"], dtype=np.int64), *cell), 1.0)
            x.append(frame)
            y.append(row["label"])
    return torch.from_numpy(np.stack(x)), torch.tensor(y)


def nmnist() -> Task:
    data = split(*frames_of("nmnist-small", 34, 6, 1), 700)
    return Task(*data, 6, True, (16, 32, 48, 64), (128,), 25, 1, NeuronParameters())


def dvs128() -> Task:
    data = split(*frames_of("dvs128-objects", 128, 6, 2), 1600)
    return Task(*data, 6, True, (16, 32, 48, 64), (128,), 15, 1, NeuronParameters())


def cifar_dvs() -> Task:
    data = split(*frames_of("cifar10-dvs-sim", 48, 6, 1), 2000)
    return Task(*data, 6, True, (16, 32, 48, 64), (128,), 25, 1, NeuronParameters())


TASKS = {"digits": digits, "nmnist": nmnist, "cifar10": images, "dvs128": dvs128, "cifar-dvs": cifar_dvs}

SYNOPS_METHODS = [
    ("uniform", "weights"),
    ("magnitude", "weights"),
    ("lamp", "weights"),
    ("magnitude", "synops"),
    ("lamp", "synops"),
    ("slamp_time", "synops"),
    ("slamp_root", "synops"),
    ("slamp_membrane", "synops"),
    ("slamp_local", "synops"),
]


def batches(task: Task, x: Tensor) -> Iterator[Tensor]:
    for part in x.split(BATCH):
        yield task.inputs(part)


def train(task: Task, model: SpikingNetwork, epochs: int, lr: float, seed: int, masks: Masks | None) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=1e-3)
    steps = epochs * (len(task.x_train) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, max(steps, 1))
    hold = None if masks is None else masks.keep(model, optimizer)
    generator = torch.Generator().manual_seed(seed)
    model.train()
    for _ in range(epochs):
        order = torch.randperm(len(task.x_train), generator=generator)
        for ids in order.split(BATCH)[: len(order) // BATCH]:
            optimizer.zero_grad()
            logits_TBK = model(task.inputs(task.x_train[ids]))
            rate_cross_entropy(logits_TBK, task.y_train[ids]).mean().backward()
            optimizer.step()
            schedule.step()
    if hold is not None:
        hold.remove()


@torch.no_grad()
def scores(task: Task, model: SpikingNetwork) -> Tensor:
    model.eval()
    return torch.cat([model(x).mean(0) for x in batches(task, task.x_test)])


def accuracy(task: Task, outputs: Tensor) -> float:
    return float((outputs.argmax(1) == task.y_test).float().mean())


def pruned(task: Task, dense: SpikingNetwork, masks: Masks, norm_x: Tensor) -> SpikingNetwork:
    model = copy.deepcopy(dense)
    masks.apply_(model)
    reestimate(model, batches(task, norm_x))
    return model


def distortion_rows(task: Task, dense: SpikingNetwork, calibration: Calibration) -> list[dict[str, Any]]:
    """Every layer alone, at several levels: measured against predicted, and the certificate."""
    reference = scores(task, dense)
    sample = task.inputs(task.x_test[:20])
    keep = Masks.of(dense)
    rows = []
    for density in (0.7, 0.5, 0.3, 0.15, 0.05):
        uniform = allocate(dense, criterion="uniform", sparsity=1 - density)
        for layer in uniform.layers:
            masks = Masks({n: uniform.masks[n] if n == layer.name else keep[n] for n in keep})
            model = copy.deepcopy(dense)
            masks.apply_(model)
            measured = float((scores(task, model) - reference).square().sum(1).mean())
            with torch.no_grad():
                changed = (model.double()(sample.double()).mean(0) - copy.deepcopy(dense).double()(
                    sample.double()).mean(0)).abs()  # fmt: skip
            certificate = certify(dense, masks, sample)
            known = calibration[layer.name]
            rows.append(
                {
                    "layer": layer.name,
                    "density": layer.density,
                    "removed_energy": layer.removed_energy,
                    "measured": measured,
                    "tau": known.tau,
                    "sigma": known.sigma,
                    "violations": int((changed > certificate.bound).sum()),
                    "bound_over_change": float(
                        (certificate.bound.mean() / changed.mean().clamp(min=1e-12)).clamp(max=1e12)
                    ),
                }
            )
    return rows


def spread_of_logs(rows: list[dict[str, Any]], T: int) -> dict[str, float]:
    """Standard deviation of log(measured / (c z)) for each coefficient."""
    coefficients = {
        "lamp": lambda r: 1.0,
        "slamp_time": lambda r: r["tau"],
        "slamp_membrane": lambda r: r["tau"] * r["sigma"] ** (1 - 1 / T),
        "slamp_local": lambda r: r["tau"] * r["sigma"],
    }
    usable = [r for r in rows if r["measured"] > 0 and r["removed_energy"] > 0]
    return {
        name: statistics.stdev(log(r["measured"] / (c(r) * r["removed_energy"])) for r in usable)
        for name, c in coefficients.items()
    }


def describe(
    task: Task, model: SpikingNetwork, allocation: Allocation, reference: Tensor, dense_synops: float
) -> dict[str, Any]:
    outputs = scores(task, model)
    activity = measure(model, batches(task, task.x_test[:500]))
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


def measure_seed(name: str, task: Task, seed: int, quick: bool) -> dict[str, Any]:
    start = time.perf_counter()
    torch.manual_seed(seed)
    dense = build(
        "convnet",
        input_shape=task.x_train.shape[2 if task.events else 1 :],
        num_classes=int(task.y_train.max()) + 1,
        neuron=task.neuron,
        channels=task.channels,
        hidden=task.hidden,
    )
    train(task, dense, 2 if quick else task.epochs, 5e-3, seed, None)
    order = torch.randperm(len(task.x_train), generator=torch.Generator().manual_seed(seed + 1000))
    norm_x = task.x_train[order[:NORM]]
    reestimate(dense, batches(task, norm_x))
    reference = scores(task, dense)
    draws = [
        calibrate(dense, batches(task, task.x_train[part]))
        for part in order.split(CALIBRATION)[:3]
        if len(part)
    ]
    calibration = draws[0]
    dense_synops = measure(dense, batches(task, task.x_test[:500])).synops
    rows: list[dict[str, Any]] = []
    for sparsity in (0.9,) if quick else (0.8, 0.9, 0.95, 0.98):
        for criterion in CRITERIA:
            allocation = allocate(dense, calibration, criterion=criterion, sparsity=sparsity)
            model = pruned(task, dense, allocation.masks, norm_x)
            row = describe(task, model, allocation, reference, dense_synops)
            rows.append({"part": "one-shot", "level": sparsity, **row})
    for fraction in (0.1,) if quick else (0.2, 0.1):
        for criterion, objective in SYNOPS_METHODS:
            allocation = allocate(
                dense,
                calibration,
                criterion=criterion,
                objective=objective,
                synops_fraction=fraction,  # type: ignore[arg-type]
            )
            model = pruned(task, dense, allocation.masks, norm_x)
            before = accuracy(task, scores(task, model))
            train(task, model, task.retrain_epochs, 2e-3, seed, allocation.masks)
            reestimate(model, batches(task, norm_x))
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
            {"name": c.name, "tau": c.tau, "sigma": c.sigma, "price": c.price, "rate": c.firing_rate}
            for c in calibration.layers
        ],
        "spread_over_draws": relative_spread(draws) if len(draws) > 1 else None,
        "distortion": layers,
        "sd_log_measured_over_predicted": spread_of_logs(layers, task.T),
        "certificate_violations": sum(r["violations"] for r in layers),
        "rows": rows,
        "seconds": time.perf_counter() - start,
    }


def print_summary(runs: list[dict[str, Any]]) -> None:
    for task in dict.fromkeys(run["task"] for run in runs):
        of = [run for run in runs if run["task"] == task]
        mean = statistics.mean(run["dense_accuracy"] for run in of)
        print(f"\n{task}: {len(of)} seeds, dense accuracy {mean:.3f}")
        print("  certificate violations", sum(run["certificate_violations"] for run in of))
        for name in of[0]["sd_log_measured_over_predicted"]:
            sd = statistics.mean(run["sd_log_measured_over_predicted"][name] for run in of)
            print(f"  sd log(measured / predicted) {name:<15} {sd:.2f}")
        kinds = dict.fromkeys((r["part"], r["level"], r["criterion"], r["objective"]) for r in of[0]["rows"])
        for kind in kinds:
            rows = [
                r
                for run in of
                for r in run["rows"]
                if (r["part"], r["level"], r["criterion"], r["objective"]) == kind
            ]
            values = [statistics.mean(r[k] for r in rows) for k in ("accuracy", "density", "synops")]
            sd = statistics.stdev(r["accuracy"] for r in rows) if len(rows) > 1 else 0.0
            before = (
                f" before retraining {statistics.mean(r['accuracy_before'] for r in rows):.3f}"
                f" channels left {statistics.mean(r['channels_left'] for r in rows):.2f}"
                f" time {statistics.mean(r['time_after_compaction'] for r in rows):.2f}"
                if kind[0] == "synops"
                else ""
            )
            print(
                f"  {kind[0]:<9}{kind[1]:<5} {kind[2]:<15}{kind[3]:<8} accuracy {values[0]:.3f} +- {sd:.3f}"
                f" density {values[1]:.3f} SynOps {values[2]:.3f}{before}"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", nargs="+", choices=sorted(TASKS), default=["digits", "nmnist", "cifar10"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="two epochs and one level, to see it run")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    runs = []
    for name in options.tasks:
        task = TASKS[name]()
        for seed in range(options.seeds):
            runs.append(measure_seed(name, task, seed, options.quick))
            print(f"{name} seed {seed}: {runs[-1]['seconds']:.0f} s", flush=True)
            if options.output:
                about = {
                    "command": f"python -m benchmarks.slamp_quality --tasks {' '.join(options.tasks)}"
                    f" --seeds {options.seeds}{' --quick' if options.quick else ''}",
                    "date": time.strftime("%Y-%m-%d"),
                    "python": platform.python_version(),
                    "torch": torch.__version__,
                }
                options.output.write_text(json.dumps({"about": about, "runs": runs}, indent=1) + "\n")
    print_summary(runs)


if __name__ == "__main__":
    main()
