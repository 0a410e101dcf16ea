"""Accuracy, loss and activity on held-out examples, summed over the workers."""

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipelines.config import TrainConfig
from pipelines.data.inputs import Inputs, to_device
from pipelines.data.layout import Rows
from pipelines.training.engine import Engine, HeldOut
from snn import activity
from snn.batchnorm import reestimate
from snn.losses import LOSSES
from snn.models import SpikingNetwork

BATCH = 256
ACTIVITY_EXAMPLES = 1024


def evaluate(
    model: SpikingNetwork, inputs: Inputs, train: TrainConfig, engine: Engine, *splits: HeldOut
) -> dict[str, float]:
    """``SPLIT_accuracy`` in [0, 1] and ``SPLIT_loss`` per example, without label smoothing, of each split."""
    loss = LOSSES[train.loss]
    found: dict[str, float] = {}
    model.eval()
    for split in splits:
        sums = torch.zeros(3, dtype=torch.float64, device=engine.device)
        with torch.no_grad():
            for _, x, y in engine.held_out(split).batches(BATCH):
                labels = to_device(y, engine.device)
                logits_TBK = model(inputs(x, engine.device))
                correct = (logits_TBK.mean(0).argmax(1) == labels).sum()
                losses = loss(logits_TBK, labels).double().sum()
                sums += torch.stack([correct, losses, labels.new_tensor(len(y))])
        correct, total_loss, count = engine.sum(sums).tolist()
        found |= {f"{split}_accuracy": correct / count, f"{split}_loss": total_loss / count}
    model.train()
    return found


def measure_activity(model: SpikingNetwork, inputs: Inputs, engine: Engine, split: HeldOut) -> dict[str, Any]:
    """SynOps, density, energy and firing rates on up to 1,024 examples of a split, for JSON."""
    share = -(-ACTIVITY_EXAMPLES // engine.world_size)
    rows = engine.held_out(split).head(share)
    sums = activity.collect(model, _inputs(rows, rows.ids[:share], inputs, engine))
    merged = activity.from_sums(model, engine.sum(sums))
    return {
        "synops": merged.synops,
        "dense_synops": merged.dense_synops,
        "acs": merged.acs,
        "macs": merged.macs,
        "density": merged.density,
        "energy_pj": merged.energy_pj,
        "examples": merged.examples,
        "layers": [{**asdict(layer), "density": layer.density} for layer in merged.layers],
    }


def reestimate_norm(
    model: SpikingNetwork, rows: Rows, ids: np.ndarray, inputs: Inputs, engine: Engine
) -> None:
    """Batch norm statistics from this worker's share of a uniform sample, summed over the workers."""
    reestimate(
        model,
        _inputs(rows, ids, inputs, engine),
        average=engine.sum,
    )


def _inputs(rows: Rows, ids: np.ndarray, inputs: Inputs, engine: Engine) -> Iterator[Tensor]:
    for start in range(0, len(ids), BATCH):
        yield inputs(rows.get(ids[start : start + BATCH])[0], engine.device)
