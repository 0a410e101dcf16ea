"""Diagnostics of a running training: how good its draws are, and what pruning each layer does."""

from dataclasses import asdict
from math import log
from statistics import stdev
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipelines.config import DataPruningConfig, TrainConfig
from pipelines.data.ids import uniform_sample
from pipelines.data.inputs import to_device
from pipelines.training.evaluation import inputs_of
from pipelines.training.worker import Worker
from pruning.examples.diagnostics import TrainingStep, diagnose, example_gradients, training_bias
from pruning.examples.inclusion import inclusion_probabilities, subset_size
from pruning.examples.policies import class_of
from pruning.weights.allocation import Allocation

PROBE_STREAM = 104


def diagnose_scores(
    worker: Worker, train: TrainConfig, examples: DataPruningConfig, epoch: int
) -> dict[str, float] | None:
    """Variance of the gradient under the table's scores, and its bias under training's batch norm.

    The network is as it is before the epoch trains, the scores as old as the draw found them. The variance
    takes norm statistics as fixed (one backward pass per example); the bias is measured in training mode, for
    a draw by the scores, with the epoch's ratio and alpha, and for a uniform one. Runs on one worker.

    Returns:
        `pruning.examples.diagnostics.Diagnosis` as a dict, with ``training_bias`` and
        ``training_bias_uniform`` (over the full gradient's norm); ``None`` while scores are missing.
    """
    ids = uniform_sample(
        worker.spec.ids,
        examples.diagnose_examples,
        seed=worker.spec.config.seed,
        epoch=0,  # the same probe all along
        stream=PROBE_STREAM,
        rank=0,
        world_size=1,
    )
    scores = worker.engine.table.scores(ids)
    if not np.isfinite(scores).all():
        return None
    x, y = worker.engine.fetch(ids).get(ids)
    x_TB, labels = worker.inputs(x, worker.engine.device), to_device(y, worker.engine.device)
    loss: dict[str, Any] = {"loss": train.loss, "label_smoothing": train.label_smoothing}
    norms, norm_of_mean = example_gradients(worker.model, x_TB, labels, **loss)
    ratio, alpha = worker.engine.table.design(epoch)
    found: dict[str, float] = asdict(diagnose(scores, norms, norm_of_mean, ratio=ratio, alpha=alpha))
    m, n = subset_size(len(ids), ratio), len(ids)
    pi = inclusion_probabilities(scores, m, alpha=alpha)
    power = examples.weight_power
    step = TrainingStep(
        batch_size=train.batch_size,
        weight_power=class_of(examples.policy).weight_power if power is None else power,
        **loss,
    )
    for key, design in (("training_bias", pi), ("training_bias_uniform", np.full(n, m / n))):
        found[key] = training_bias(worker.model, x_TB, labels, design, step, seed=worker.spec.config.seed)
    return found


@torch.no_grad()
def measure_distortion(worker: Worker, allocation: Allocation, examples: int) -> dict[str, Any]:
    """Distortion of every layer that is masked alone, on held-out examples, for JSON.

    Args:
        worker: its network is not masked yet; it is left as it was.
        allocation: masks and predictions.
        examples: held-out examples over all workers, at most.

    Returns:
        ``examples``; by layer ``predicted`` (the criterion's estimate, in its own units) and ``measured``
        (squared change of the time-mean logits, summed over classes, mean over examples); ``log_spread``,
        the standard deviation of log(measured / predicted) over layers, None below two such layers.
    """
    model, engine = worker.model, worker.engine
    share = -(-examples // engine.world_size)
    rows = engine.held_out(worker.spec.watched).head(share)

    def scores() -> Tensor:
        batches = inputs_of(worker, rows, rows.ids[:share])
        return torch.cat([model(x_TB).mean(0) for x_TB in batches]).double()

    model.eval()
    reference = scores()
    sums = []
    for s in model.synapses():
        weight = s.layer.weight
        whole = weight.clone()
        weight.masked_fill_(~allocation.masks[s.name].to(weight.device), 0)
        sums.append((scores() - reference).square().sum())
        weight.copy_(whole)
    model.train()
    count = torch.tensor([len(reference)], dtype=torch.float64)
    *totals, n = engine.sum(torch.cat([torch.stack(sums).cpu(), count])).tolist()
    layers = [
        {"name": layer.name, "predicted": layer.distortion, "measured": total / n}
        for layer, total in zip(allocation.layers, totals, strict=True)
    ]
    ratios = [log(r["measured"] / r["predicted"]) for r in layers if r["measured"] > 0 and r["predicted"] > 0]
    return {
        "examples": round(n),
        "layers": layers,
        "log_spread": stdev(ratios) if len(ratios) > 1 else None,
    }
