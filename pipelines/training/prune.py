"""SLAMP as a phase of a run: calibrate, allocate, mask, re-estimate batch norm, measure."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from math import fsum
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cluster.errors import UserError
from pipelines.config import WeightPruningConfig
from pipelines.data.layout import Rows, uniform_sample
from pipelines.storage.atomic import read_json, write_json
from pipelines.training.engine import Engine
from pipelines.training.evaluation import (
    evaluate,
    inputs_of,
    measure_activity,
    pruned_figures,
    reestimate_norm,
)
from pipelines.training.worker import Worker
from pruning.weights.allocation import Allocation, allocate
from pruning.weights.calibration import Calibration, relative_spread
from pruning.weights.calibration_sums import CalibrationSums, Measure
from pruning.weights.criteria import needs
from pruning.weights.masks import Masks
from snn.models import SpikingNetwork

CALIBRATION_STREAM = 102
NORM_STREAM = 103


def prune(worker: Worker) -> None:
    """Mask the worker's network under its round's target and report what that did.

    Calibration statistics are summed over the workers, so every worker allocates the same masks. A
    weight that an earlier round pruned stays pruned.
    """
    config, engine, model = worker.spec.config, worker.engine, worker.model
    phase = worker.spec.phases[worker.progress.phase]
    engine.progress({"phase": phase.name, "epoch": 0, "doing": "pruning weights"})
    sample = draw_sample(worker, phase.round)
    calibrated = calibrate(worker, sample, needs(config.weight_pruning.criterion))
    watched, all_splits = worker.spec.watched, tuple(worker.spec.held_out)
    before = evaluate(worker, *all_splits)
    dense = _dense(worker) or {
        "dense_accuracy": before["test_accuracy"],
        "dense_activity": measure_activity(worker, watched),
    }
    target = target_of(config.weight_pruning, phase.round)
    try:
        allocation = allocate_weights(worker, calibrated.calibration, target)
    except ValueError as error:
        raise UserError("weight_pruning", str(error)) from None
    _check_equal(worker, allocation.masks)
    allocation.masks.apply_(model)
    masked = evaluate(worker, watched)
    reestimate_norm(worker, sample.rows, sample.norm_ids)
    recalibrated = evaluate(worker, *all_splits)
    pruned = measure_activity(worker, watched)
    figures = pruned_figures(recalibrated["test_accuracy"], pruned, **dense)
    worker.masks = allocation.masks
    worker.save_final(phase.name)
    if engine.rank == 0:
        folder = Path(worker.spec.folder)
        write_json(
            folder / "pruning.json",
            {
                "round": phase.round + 1,
                "rounds": config.weight_pruning.rounds,
                "allocation": allocation.to_dict(),
                "calibration": calibrated.calibration.to_dict(),
                "calibration_spread": calibrated.spread,
                "activity": {"dense": dense["dense_activity"], "pruned": pruned},
                "figures": {"pruned": figures, "retrained": None},
            },
        )
        allocation.masks.save(folder / "masks.safetensors")
    worker.report(
        {
            "phase": phase.name,
            "epoch": 0,
            **dense,
            "before_accuracy": before[f"{watched}_accuracy"],
            "masked_accuracy": masked[f"{watched}_accuracy"],
            **recalibrated,
            "budget": allocation.budget,
            "density": allocation.masks.density,
            "activity": pruned,
            "figures": figures,
        },
        next_phase=worker.progress.phase + 1,
        next_epoch=0,
    )


def retrained(worker: Worker, record: dict[str, Any]) -> dict[str, float]:
    """Figures of the retrained network after its last epoch; ``pruning.json`` gets them too."""
    dense = _dense(worker)
    assert dense is not None
    figures = pruned_figures(record["test_accuracy"], record["activity"], **dense)
    path = Path(worker.spec.folder) / "pruning.json"
    if worker.engine.rank == 0 and path.exists():
        stored = read_json(path)
        stored["figures"] = {**stored.get("figures", {}), "retrained": figures}
        write_json(path, stored)
    return figures


def target_of(weights: WeightPruningConfig, round_: int) -> dict[str, float]:
    """What a round of a schedule is to reach, as an argument of `allocate`.

    Sparsities are of the dense network, SynOps shares of all its weights at the round's own calibrated
    activity, both cubic in the rounds: early ones prune much, late ones little (Zhu and Gupta 2017, arXiv
    1710.01878). Budgets are the round's own part: equal shares, so equal factors of kept energy.
    """
    if weights.budget is not None:
        return {"budget": weights.budget / weights.rounds}
    left = (1 - (round_ + 1) / weights.rounds) ** 3
    if weights.synops is not None:
        return {"synops_fraction": weights.synops + (1 - weights.synops) * left}
    assert weights.sparsity is not None
    return {"sparsity": weights.sparsity * (1 - left)}


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Uniformly drawn training rows: some to calibrate with, some for batch norm."""

    rows: Rows
    calibration_ids: np.ndarray
    norm_ids: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Calibrated:
    """A calibration, and how far it depends on the draw."""

    calibration: Calibration
    spread: dict[str, float] | None
    """By layer, half the relative difference between the coefficients of two halves of the examples,
    which has the standard deviation of the whole's coefficient; None where a half has no spikes."""


def draw_sample(worker: Worker, round_: int = 0) -> Sample:
    """This worker's share of a round's examples."""
    config = worker.spec.config
    ids, place = worker.spec.ids, {"rank": worker.engine.rank, "world_size": worker.engine.world_size}
    place |= {"seed": config.seed, "epoch": round_}
    calibration_ids = uniform_sample(
        ids, config.weight_pruning.calibration_examples, stream=CALIBRATION_STREAM, **place
    )
    norm_ids = uniform_sample(ids, config.train.bn_examples, stream=NORM_STREAM, **place)
    rows = worker.engine.fetch(np.union1d(calibration_ids, norm_ids))
    return Sample(rows=rows, calibration_ids=calibration_ids, norm_ids=norm_ids)


def calibrate(worker: Worker, sample: Sample, measure: Collection[Measure]) -> Calibrated:
    """Statistics of all workers' examples in one pass, and what else the criteria need."""
    model, T = worker.model, worker.spec.config.model.T
    # Of each half, and of each worker's share.
    examples = max(
        2, -(-worker.spec.config.weight_pruning.measure_examples // (2 * worker.engine.world_size))
    )
    halves = []
    try:
        for half in (sample.calibration_ids[::2], sample.calibration_ids[1::2]):
            batches = inputs_of(worker, sample.rows, half)
            sums = CalibrationSums.collect(model, batches, T=T, measure=measure, measure_examples=examples)
            halves.append(exact_sum(worker.engine, sums.to_vector()))
        whole = _calibration(model, halves[0] + halves[1], T, measure)
    except ValueError as error:
        raise UserError("weight_pruning", str(error)) from None
    try:
        spread = relative_spread([_calibration(model, v, T, measure) for v in halves])
    except ValueError:  # a half without examples or spikes
        spread = None
    return Calibrated(calibration=whole, spread=spread)


def _calibration(model: SpikingNetwork, vector: Tensor, T: int, measure: Collection[Measure]) -> Calibration:
    return Calibration.from_sums(model, CalibrationSums.from_vector(model, vector, T, measure))


def exact_sum(engine: Engine, vector: Tensor) -> Tensor:
    """Sum of every worker's float64 ``vector``, correctly rounded: the order of adding does not matter.

    An all-reduce adds in an order of its own; here it only collects, each worker's row beside zeros.
    """
    rows = torch.zeros(engine.world_size, len(vector), dtype=torch.float64)
    rows[engine.rank] = vector
    parts = engine.sum(rows)
    return torch.tensor([fsum(column) for column in parts.T.tolist()], dtype=torch.float64)


def _dense(worker: Worker) -> dict[str, Any] | None:
    """Accuracy and activity of the network before its first round; None in that round."""
    for record in worker.progress.history:
        if "dense_activity" in record:
            return {key: record[key] for key in ("dense_accuracy", "dense_activity")}
    return None


def allocate_weights(
    worker: Worker, calibration: Calibration, target: Mapping[str, float], **other: Any
) -> Allocation:
    """Masks of the worker's network under a target, by its config or, in place of that, ``other`` arguments.

    Raises:
        ValueError: the target cannot be met.
    """
    weights = worker.spec.config.weight_pruning
    given = {
        "criterion": weights.criterion,
        "objective": weights.saves,
        "min_keep": weights.min_keep,
        "exclude": weights.exclude,
        "previous": worker.masks,
        "budget_over": weights.budget_over,
    }
    return allocate(worker.model, calibration, **{**given, **target, **other})


def _check_equal(worker: Worker, masks: Masks) -> None:
    if worker.engine.share(masks.fingerprint()) != masks.fingerprint():
        raise RuntimeError(
            f"worker {worker.engine.rank} allocated other masks than worker 0: "
            "the workers' processors or libraries differ; use one kind of machine"
        )
