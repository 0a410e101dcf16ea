"""Weight criteria on trained networks, deep ones first: accuracy at equal SynOps and at equal sparsity.

    python -m benchmarks.slamp_quality [--tasks sew18 vgg9 ms18] [--seeds 0 1 2] [--parts synops weights]
        [--criteria lamp slamp ...] [--levels ...] [--retrain-epochs N] [--output FILE.json]

Each dense network is trained once per task and seed (`benchmarks.slamp_tasks`) and kept as a checkpoint below
``--checkpoints``. Finished rows are kept in FILE.jsonl; the same command goes on where it was stopped, and
from the rows of FILE.json where there is no journal. Parts:

- ``dense``: the network itself, always;
- ``synops``: 20, 10 and 5 % of the dense SynOps (calibrated), scores priced by SynOps unless the criterion is
  named with ``:weights``; ``weights``: 90, 95 and 98 % sparsity. One-shot accuracy after batch norm
  re-estimation, then the same short retraining for all (2 epochs; deep tasks 8,000 rows each) and
  re-estimation again;
- ``distortion``: every layer pruned alone, measured change of the scores beside every prediction;
- ``cost``: seconds of calibration over those of a training step of 64 examples.

Criteria are the product's, candidates of `benchmarks.slamp_candidates`, or ``curve_rounds``: ``slamp_curve``
measured again around its own masks twice. Real data is read from ``../shared/data``. One thread.
"""

import argparse
import copy
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import slamp_candidates
from benchmarks.about import about
from benchmarks.journal import Journal
from benchmarks.slamp_membrane import membrane_statistics
from benchmarks.slamp_tables import tables
from benchmarks.slamp_tasks import BATCH, DEEP, TASKS, Task, accuracy, scores, train
from pruning.weights.allocation import Allocation, allocate
from pruning.weights.calibration import Calibration, calibrate
from pruning.weights.criteria import CRITERIA, Objective
from pruning.weights.curves import Curve, distortion_from, layer_curve
from pruning.weights.masks import Masks
from snn.activity import measure
from snn.batchnorm import own_statistics, reestimate
from snn.interchange import load_checkpoint, save_checkpoint
from snn.losses import rate_cross_entropy
from snn.models import SpikingNetwork
from snn.observing import evaluating

Row = dict[str, Any]

CALIBRATION = 400
FORWARD = 128
"""Examples of curves and responses."""
NORM = 400
ACTIVITY = 500
TESTED = 1000
"""Test examples of single-layer distortions."""
LEVELS: dict[str, tuple[float, ...]] = {"synops": (0.2, 0.1, 0.05), "weights": (0.9, 0.95, 0.98)}
PARTS = ("synops", "weights", "distortion", "cost")
DENSITIES = (0.7, 0.5, 0.3, 0.15, 0.05)
KEY = ("task", "seed", "part", "level", "criterion", "objective", "retrain_epochs")
DEFAULT = ("lamp", "slamp", "slamp_curve", "response", "membrane", "root", "uniform", "lamp:weights")


@dataclass
class Bench:
    """One dense network with everything that is measured on it once."""

    name: str
    task: Task
    seed: int
    dense: SpikingNetwork
    trained_seconds: float

    @cached_property
    def order(self) -> Tensor:
        """Training rows in the order in which samples are taken of them."""
        generator = torch.Generator().manual_seed(self.seed + 1000)
        return torch.randperm(len(self.task.x_train), generator=generator)

    def sample(self, examples: int) -> list[Tensor]:
        """Inputs of the first examples, in batches."""
        return list(self.task.batches(self.task.x_train[self.order[:examples]]))

    @cached_property
    def reference(self) -> Tensor:
        """Scores of the dense network on the test examples."""
        return scores(self.task, self.dense)

    @cached_property
    def synops(self) -> float:
        """Of the dense network per inference."""
        return self.activity(self.dense)["synops"]

    @cached_property
    def calibration(self) -> Calibration:
        """With everything that the product's criteria need."""
        return calibrate(
            self.dense,
            self.sample(CALIBRATION),
            measure=("gradients", "fisher", "curves"),
        )

    @cached_property
    def candidates(self) -> dict[str, list[float]]:
        """Coefficients by candidate, registered as criteria."""
        tau, sigma = membrane_statistics(self.dense, self.sample(CALIBRATION))
        with evaluating(self.dense):
            rho = slamp_candidates.measure_response(self.dense, self.dense.synapses(), self.sample(FORWARD))
        found = slamp_candidates.coefficients(self.calibration, tau, sigma, rho)
        slamp_candidates.register(found, self.task.T)
        return found

    def activity(self, model: SpikingNetwork) -> dict[str, float]:
        """Figures of a network in the field's units, per inference."""
        found = measure(model, self.task.batches(self.task.x_test[:ACTIVITY]))
        return {
            "density": found.density,
            "synops": found.synops,
            "macs": found.macs,
            "energy_nj": found.energy_pj / 1000,
        }

    def allocate(self, criterion: str, part: str, level: float, objective: Objective) -> Allocation:
        """Masks of any criterion at a level of a part."""
        calibration, rounds = self.calibration, 0
        if criterion == "curve_rounds":
            criterion, rounds = "slamp_curve", 2
        elif criterion not in CRITERIA:
            if criterion not in self.candidates:
                raise ValueError(f"criterion: {criterion!r} is neither the product's nor a candidate")
            criterion = f"benchmarks:{criterion}"
        target = {"synops_fraction" if part == "synops" else "sparsity": level}
        found = allocate(
            self.dense,
            calibration,
            criterion=criterion,
            objective=objective,
            **target,  # type: ignore[arg-type]
        )
        for _ in range(rounds):
            calibration = around(self.dense, calibration, torch.cat(self.sample(FORWARD), 1), found.masks)
            found = allocate(
                self.dense,
                calibration,
                criterion=criterion,
                objective=objective,
                **target,  # type: ignore[arg-type]
            )
        return found


def around(model: SpikingNetwork, calibration: Calibration, x_TB: Tensor, masks: Masks) -> Calibration:
    """The calibration with curves measured around what ``masks`` leave.

    Every layer loses its smallest weights while all others are masked; curves begin at what these masks cost.
    """
    weights = {s.name: s.layer.weight for s in model.synapses()}
    whole = {name: weight.detach().clone() for name, weight in weights.items()}
    curves = []
    with evaluating(model), own_statistics(model, 0.0), torch.no_grad():
        distortion = distortion_from(model, x_TB)
        masks.apply_(model)
        for name, weight in weights.items():
            weight.copy_(whole[name])
            curves.append(layer_curve(weight, distortion) - distortion())
            weight.masked_fill_(~masks[name], 0)
        for name, weight in weights.items():
            weight.copy_(whole[name])
    layers = [
        {**vars(layer), "curve": Curve(tuple(map(tuple, curve.tolist())))}
        for layer, curve in zip(calibration.layers, curves, strict=True)
    ]
    return Calibration(
        tuple(type(calibration.layers[0])(**layer) for layer in layers), calibration.T, calibration.examples
    )


def prepared(name: str, seed: int, folder: Path) -> Bench:
    """The dense network, trained or read back."""
    task, path, seconds = TASKS[name](), folder / f"{name}-{seed}.safetensors", 0.0
    if path.exists():
        dense, _ = load_checkpoint(path)
    else:
        start = time.process_time()
        dense = task.network(seed)
        train(task, dense, task.epochs, 5e-3, seed)
        bench = Bench(name, task, seed, dense, 0.0)
        reestimate(dense, bench.sample(NORM))
        seconds = time.process_time() - start
        folder.mkdir(parents=True, exist_ok=True)
        save_checkpoint(path, dense, task.architecture)
    return Bench(name, task, seed, dense, seconds)


def pruned_row(
    bench: Bench, part: str, level: float, criterion: str, objective: Objective, epochs: int
) -> Row:
    """Prune, re-estimate, evaluate, retrain, re-estimate, evaluate."""
    task, start = bench.task, time.process_time()
    allocation = bench.allocate(criterion, part, level, objective)
    allocated, model = time.process_time() - start, copy.deepcopy(bench.dense)
    allocation.masks.apply_(model)
    reestimate(model, bench.sample(NORM))
    outputs = scores(task, model)
    row = {
        "one_shot": accuracy(task, outputs),
        "relative_distortion": float(
            (outputs - bench.reference).square().mean() / bench.reference.var(0, correction=0).mean()
        ),
        "one_shot_synops": bench.activity(model)["synops"] / bench.synops,
    }
    train(task, model, epochs, 2e-3, bench.seed, allocation.masks)
    reestimate(model, bench.sample(NORM))
    figures = bench.activity(model)
    retrained = accuracy(task, scores(task, model))
    return {
        **row,
        "accuracy": retrained,
        "drop": accuracy(task, bench.reference) - retrained,
        **figures,
        "synops_of_dense": figures["synops"] / bench.synops,
        "layers": [round(layer.density, 5) for layer in allocation.layers],
        "allocate_seconds": round(allocated, 2),
        "seconds": round(time.process_time() - start, 1),
    }


def dense_row(bench: Bench) -> Row:
    """The network that all rows of a task and seed start from."""
    layers = [
        {"name": c.name, "sensitivity": c.sensitivity, "price": c.price, "rate": c.firing_rate}
        for c in bench.calibration.layers
    ]
    return {
        "accuracy": accuracy(bench.task, bench.reference),
        **bench.activity(bench.dense),
        "train_seconds": round(bench.trained_seconds, 1),
        "layers": layers,
        "candidates": bench.candidates,
    }


def distortion_row(bench: Bench) -> Row:
    """Every layer alone at several densities: measured, and predicted by curves and coefficients."""
    keep = Masks.of(bench.dense)
    curves = [layer.curve for layer in bench.calibration.layers]
    found = []
    for density in DENSITIES:
        uniform = allocate(bench.dense, criterion="uniform", sparsity=1 - density)
        for layer, curve in zip(uniform.layers, curves, strict=True):
            model = copy.deepcopy(bench.dense)
            Masks({n: uniform.masks[n] if n == layer.name else keep[n] for n in keep}).apply_(model)
            reestimate(model, bench.sample(NORM))
            change = (scores(bench.task, model, TESTED) - bench.reference[:TESTED]).square().sum(1).mean()
            by_curve = None
            if curve is not None:
                spent = curve.slopes(layer.numel).spent(torch.tensor([layer.numel - layer.kept]).numpy())
                by_curve = float(spent.sum())
            found.append(
                {
                    "layer": layer.name,
                    "density": layer.density,
                    "removed_energy": layer.removed_energy,
                    "measured": float(change),
                    "curve": by_curve,
                }
            )
    return {"measured": found, "candidates": bench.candidates}


def cost_row(bench: Bench) -> Row:
    """Medians of five: a training step, and calibrations in its unit."""
    task, model = bench.task, copy.deepcopy(bench.dense).train()
    optimizer = torch.optim.AdamW(model.parameters())
    x, y = task.inputs(task.x_train[:BATCH]), task.y_train[:BATCH]

    def step() -> None:
        optimizer.zero_grad()
        rate_cross_entropy(model(x), y).mean().backward()
        optimizer.step()

    def seconds(run: Any, times: int) -> float:
        taken = []
        for _ in range(times):
            start = time.process_time()
            run()
            taken.append(time.process_time() - start)
        return statistics.median(taken)

    sample = bench.sample(CALIBRATION)
    step()
    one = seconds(step, 9)
    forward = seconds(lambda: calibrate(bench.dense, sample, measure=()), 3)
    gradients = seconds(lambda: calibrate(bench.dense, sample), 3)
    curves = seconds(lambda: calibrate(bench.dense, sample, measure=["curves"]), 1)
    return {
        "step_seconds": one,
        "forward_steps": forward / one,
        "slamp_steps": gradients / one,
        "slamp_curve_steps": curves / one,
    }


def wanted(options: argparse.Namespace, task: str) -> Iterator[Row]:
    """Keys of the rows of one dense network, in the order in which they are made."""
    epochs = options.retrain_epochs
    for part in options.parts:
        if part in LEVELS:
            for level in options.levels or LEVELS[part]:
                for name in options.criteria:
                    criterion, _, objective = name.partition(":")
                    yield {
                        "part": part,
                        "level": level,
                        "criterion": criterion,
                        "objective": objective or part,
                        "retrain_epochs": epochs,
                    }
        else:
            yield {"part": part}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tasks", nargs="+", choices=sorted(TASKS), default=list(DEEP))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--criteria", nargs="+", default=list(DEFAULT))
    parser.add_argument("--levels", nargs="+", type=float, help="instead of every part's own")
    parser.add_argument("--retrain-epochs", type=int, default=2)
    parser.add_argument("--output", type=Path, default=Path("runs/slamp_quality.json"))
    parser.add_argument("--checkpoints", type=Path, default=Path("runs/slamp_quality"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    journal = Journal(options.output.with_suffix(".jsonl"), KEY, options.output)
    told = about("benchmarks.slamp_quality", sys.argv[1:])
    for seed in options.seeds:
        for name in options.tasks:
            own = {"task": name, "seed": seed}
            keys = [{**own, **key} for key in ({"part": "dense"}, *wanted(options, name))]
            keys = [key for key in keys if key not in journal]
            if not keys:
                continue
            bench = prepared(name, seed, options.checkpoints)
            for key in keys:
                if key["part"] in LEVELS:
                    row = pruned_row(
                        bench,
                        key["part"],
                        key["level"],
                        key["criterion"],
                        key["objective"],
                        key["retrain_epochs"],
                    )
                else:
                    row = {"dense": dense_row, "distortion": distortion_row, "cost": cost_row}[key["part"]](
                        bench
                    )
                journal.add({**key, **row, "date": told["date"], "commit": told["commit"]})
                print(*(str(v) for v in key.values()), row.get("accuracy"), flush=True)
    journal.store(options.output, told)
    print(tables(journal.rows))


if __name__ == "__main__":
    main()
