"""SLAMP as a phase of a run: calibrate, allocate, mask, re-estimate batch norm, measure."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from pipelines.data.files import write_json
from pipelines.errors import UserError
from pipelines.training.evaluation import BATCH, evaluate, measure_activity, reestimate_norm
from pipelines.training.order import uniform_sample
from pruning.weights.allocation import Allocation, allocate
from pruning.weights.calibration import Calibration, CalibrationSums
from pruning.weights.masks import Masks

if TYPE_CHECKING:
    from pipelines.training.rows import Rows
    from pipelines.training.worker import Worker

CALIBRATION_STREAM = 102
NORM_STREAM = 103


def prune(worker: "Worker") -> None:
    """Mask the worker's network under the config's budget and report what that did.

    Calibration statistics are summed over the workers, so every worker allocates the same masks.

    Raises:
        UserError: the budget cannot be met with this network.
    """
    config, engine, model = worker.spec.config, worker.engine, worker.model
    engine.progress({"phase": "prune", "epoch": 0, "doing": "pruning weights"})
    place = {"rank": engine.rank, "world_size": engine.world_size, "seed": config.seed, "epoch": 0}
    calibration_ids = uniform_sample(
        worker.spec.ids, config.weights.calibration_examples, stream=CALIBRATION_STREAM, **place
    )
    norm_ids = uniform_sample(worker.spec.ids, config.train.norm_examples, stream=NORM_STREAM, **place)
    rows = engine.fetch(np.union1d(calibration_ids, norm_ids))
    calibration = _calibrate(worker, rows, calibration_ids)
    dense = {
        **evaluate(model, worker.inputs, config.train, engine),
        "activity": measure_activity(model, worker.inputs, engine),
    }
    allocation = _allocate(worker, calibration)
    _check_equal(worker, allocation.masks)
    allocation.masks.apply_(model)
    masked = evaluate(model, worker.inputs, config.train, engine)
    reestimate_norm(model, rows, norm_ids, worker.inputs, engine)
    recalibrated = evaluate(model, worker.inputs, config.train, engine)
    pruned = measure_activity(model, worker.inputs, engine)
    worker.masks = allocation.masks
    if engine.rank == 0:
        folder = Path(worker.spec.folder)
        write_json(
            folder / "pruning.json",
            {
                "allocation": allocation.to_dict(),
                "calibration": calibration.to_dict(),
                "activity": {"dense": dense["activity"], "pruned": pruned},
            },
        )
        allocation.masks.save(folder / "masks.safetensors")
    worker.report(
        {
            "phase": "prune",
            "epoch": 0,
            "dense_accuracy": dense["test_accuracy"],
            "masked_accuracy": masked["test_accuracy"],
            **recalibrated,
            "budget": allocation.budget,
            "density": allocation.masks.density,
            "activity": pruned,
        },
        next_phase=worker.progress.phase + 1,
        next_epoch=0,
    )


def _calibrate(worker: "Worker", rows: "Rows", ids: np.ndarray) -> Calibration:
    sums = CalibrationSums.collect(worker.model, _batches(worker, rows, ids))
    vector = worker.engine.sum(sums.to_vector())
    T = worker.spec.config.model.T
    return Calibration.from_sums(worker.model, CalibrationSums.from_vector(worker.model, vector, T))


def _allocate(worker: "Worker", calibration: Calibration) -> Allocation:
    weights = worker.spec.config.weights
    try:
        return allocate(
            worker.model,
            calibration,
            criterion=weights.criterion,
            objective=weights.objective,
            budget=weights.budget,
            sparsity=weights.sparsity,
            synops_fraction=weights.synops,
            min_keep=weights.min_keep,
            exclude=weights.exclude,
            budget_over=weights.budget_over,
        )
    except ValueError as error:
        raise UserError("weights", str(error)) from None


def _check_equal(worker: "Worker", masks: Masks) -> None:
    if worker.engine.share(masks.fingerprint()) != masks.fingerprint():
        raise RuntimeError(
            f"worker {worker.engine.rank} allocated other masks than worker 0: "
            "the workers' processors or libraries differ; use one kind of machine"
        )


def _batches(worker: "Worker", rows: "Rows", ids: np.ndarray) -> Iterator[Tensor]:
    for start in range(0, len(ids), BATCH):
        yield worker.inputs(rows.get(ids[start : start + BATCH])[0], worker.engine.device)
