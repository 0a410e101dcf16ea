"""Diagnostics of a running training: how good its draws are."""

from dataclasses import asdict
from typing import Any

import numpy as np

from pipelines.config import DataPruningConfig, TrainConfig
from pipelines.data.inputs import to_device
from pipelines.data.layout import uniform_sample
from pipelines.training.worker import Worker
from pruning.examples.diagnostics import TrainingStep, diagnose, example_gradients, training_bias
from pruning.examples.inclusion import inclusion_probabilities, subset_size
from pruning.examples.policies import POLICIES

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
        weight_power=POLICIES[examples.policy].weight_power if power is None else power,
        **loss,
    )
    for key, design in (("training_bias", pi), ("training_bias_uniform", np.full(n, m / n))):
        found[key] = training_bias(worker.model, x_TB, labels, design, step, seed=worker.spec.config.seed)
    return found
