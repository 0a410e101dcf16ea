"""What `DataPruner` costs in a plain loop: beside its steps, and at the start of an epoch.

    python -m benchmarks.data_pruner_overhead [--rounds 40] [--output FILE.json]

Steps: VGG-6 at 32x32 and T = 4 on one subset of a weighted epoch, in three loops on one thread: DataPruner
with SADP's scores; the same batches with plain batch norm; the same batches with weighted losses and weighted
batch statistics, without scores. A step is everything from the loader to the optimiser. Each round runs one
step of every loop in turn, and its CPU seconds make a pair; given are the median of the ratios, its
bootstrapped 95 % interval, and the ratio of the fastest steps, which other load disturbs least.

Start: from the end of an epoch to the first batch, beside that of a ``DataLoader`` that shuffles, on a
dataset that costs nothing.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset, TensorDataset

from benchmarks.about import about
from snn.models import build
from snn.weighted_norm import weighted_statistics
from spikeprune import DataPruner, direct

T, BATCH, ROWS = 4, 16, 4_096
SIZES = (50_000, 1_281_167)
LOOPS = ("plain", "weighted", "DataPruner")


def pruner_of(data: TensorDataset, net: nn.Module) -> DataPruner:
    """Before a weighted epoch, as if scores of the epoch before it were there."""
    pruner = DataPruner(data, net, ratio=0.5, epochs=10, batch_size=BATCH, warmup_epochs=1)
    scores = np.random.default_rng(0).lognormal(size=len(data)).astype(np.float32)
    pruner.policy.observe(np.arange(len(data)), scores, 0, "train")
    pruner.sampler.set_epoch(2)
    assert pruner.sampler.weights.std() > 0.1
    return pruner


def loops() -> dict[str, Callable[[], object]]:
    """One more step of each loop."""
    torch.manual_seed(0)
    data = TensorDataset(torch.randn(ROWS, 3, 32, 32), torch.arange(ROWS) % 10)
    nets = {name: build("vgg6", input_shape=(3, 32, 32), num_classes=10) for name in LOOPS}
    optimizers = {name: torch.optim.SGD(net.parameters(), 0.01, momentum=0.9) for name, net in nets.items()}
    pruner = pruner_of(data, nets["DataPruner"])
    sampler = pruner.sampler
    subset = Subset(data, sampler.ids.tolist())
    weights = (torch.from_numpy(w).split(BATCH) for w in (sampler.weights, sampler.loss_weights))
    batches: dict[str, Iterator[Any]] = {
        "plain": iter(DataLoader(subset, BATCH)),
        "weighted": zip(DataLoader(subset, BATCH), *weights, strict=True),
        "DataPruner": iter(DataLoader(pruner, BATCH, sampler=sampler)),
    }

    def losses_of(name: str, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(nets[name](direct(x, T)).mean(0), y, reduction="none")

    def plain() -> Tensor:
        x, y = next(batches["plain"])
        return losses_of("plain", x, y).mean()

    def weighted() -> Tensor:
        (x, y), w, in_loss = next(batches["weighted"])
        with weighted_statistics(w):
            return (in_loss * losses_of("weighted", x, y)).sum() / BATCH

    def pruned() -> Tensor:
        x, y, index = next(batches["DataPruner"])
        return pruner.loss(losses_of("DataPruner", x, y), index)

    def step(name: str, loss: Callable[[], Tensor]) -> None:
        value = loss()
        optimizers[name].zero_grad()
        value.backward()
        optimizers[name].step()

    found = {"plain": plain, "weighted": weighted, "DataPruner": pruned}
    return {name: partial(step, name, loss) for name, loss in found.items()}


def interleaved(steps: dict[str, Callable[[], object]], rounds: int) -> list[dict[str, float]]:
    """CPU seconds of every round; who begins changes."""
    for _ in range(3):
        for step in steps.values():
            step()
    rows = []
    names = list(steps)
    for i in range(rounds):
        row = {}
        for name in names[i % 3 :] + names[: i % 3]:
            start = time.process_time()
            steps[name]()
            row[name] = time.process_time() - start
        rows.append(row)
    return rows


def starts(size: int, repeats: int = 5) -> dict[str, float]:
    """CPU seconds from the end of an epoch to the first batch of the next."""
    data = TensorDataset(torch.arange(size))
    net = build("mlp", input_shape=(4,), num_classes=2)
    pruner = pruner_of(data, net)
    sampler = pruner.sampler
    loaders = {
        "plain": DataLoader(data, BATCH, shuffle=True),
        "DataPruner": DataLoader(pruner, BATCH, sampler=sampler),
    }
    found: dict[str, list[float]] = {name: [] for name in loaders}
    for epoch in range(3, 3 + repeats):
        for at in range(0, len(sampler), 64):  # an epoch of steps, whose scores wait to be shared
            places = slice(at, min(at + 64, len(sampler)))
            sampler.done, sampler.step = places.stop, sampler.step + 1
            sampler.met(places, torch.rand(places.stop - places.start) + 0.1)
        for name, loader in loaders.items():
            start = time.process_time()
            if name == "DataPruner":
                sampler.set_epoch(epoch)
            next(iter(loader))
            found[name].append(time.process_time() - start)
    return {"size": size, **{name: statistics.median(seconds) for name, seconds in found.items()}}


def ratios(rows: list[dict[str, float]], against: str) -> tuple[float, float, float]:
    """Median of DataPruner over another loop, and its bootstrapped 95 % interval."""
    pairs = np.array([row["DataPruner"] / row[against] for row in rows])
    draws = np.random.default_rng(0).choice(pairs, (2_000, len(pairs)))
    low, high = np.quantile(np.median(draws, axis=1), [0.025, 0.975])
    return float(np.median(pairs)), float(low), float(high)


def tables(result: dict[str, Any]) -> str:
    """Of a stored result."""
    rows = result["steps"]
    lines = [
        "| a step of DataPruner (VGG-6), in CPU time of | fastest | median | 95 % interval | pairs |",
        "|---|---|---|---|---|",
    ]
    for against, name in (
        ("plain", "the plain loop on the same batches"),
        ("weighted", "weighted losses and batch statistics"),
    ):
        median, low, high = ratios(rows, against)
        fastest = min(row["DataPruner"] for row in rows) / min(row[against] for row in rows)
        lines.append(f"| {name} | {fastest:.3f} | {median:.3f} | {low:.3f} to {high:.3f} | {len(rows)} |")
    lines += ["", "| start of an epoch, CPU s | DataLoader | with DataPruner |", "|---|---|---|"]
    lines += [
        f"| {s['size']:,} examples | {s['plain']:.3f} | {s['DataPruner']:.3f} |" for s in result["starts"]
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--output", type=Path, help="JSON file")
    args = parser.parse_args()
    torch.set_num_threads(1)
    result: dict[str, Any] = {"starts": [starts(size) for size in SIZES]}
    result["steps"] = interleaved(loops(), args.rounds)
    print(tables(result))
    if args.output:
        told = about("benchmarks.data_pruner_overhead", sys.argv[1:])
        args.output.write_text(json.dumps({"about": told, **result}, indent=1))


if __name__ == "__main__":
    main()
