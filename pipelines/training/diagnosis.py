"""How good the scores of a running training are: exact gradient norms on a probe of examples."""

import numpy as np

from pipelines.config import ExamplesConfig, TrainConfig
from pipelines.data.transfer import to_device
from pipelines.training.order import uniform_sample
from pipelines.training.worker import Worker
from pruning.examples.diagnostics import diagnose, example_gradients

PROBE_STREAM = 104


def diagnose_scores(
    worker: Worker, train: TrainConfig, examples: ExamplesConfig, epoch: int
) -> dict[str, float] | None:
    """Variance of the gradient under the book's scores against the oracle's and uniform sampling's.

    The norms are those of the weights as they are now, before the epoch trains: the scores are as
    stale as its draw found them. One backward pass per example, on one worker.

    Returns:
        `pruning.examples.diagnostics.Diagnosis` as a dict; ``None`` while scores are missing.
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
    scores = worker.engine.book.scores(ids)
    if not np.isfinite(scores).all():
        return None
    x, labels = worker.engine.fetch(ids).get(ids)
    norms, norm_of_mean = example_gradients(
        worker.model,
        worker.inputs(x, worker.engine.device),
        to_device(labels, worker.engine.device),
        loss=train.loss,
        label_smoothing=train.label_smoothing,
    )
    return diagnose(scores, norms, norm_of_mean, ratio=examples.ratio, alpha=examples.alpha).to_dict()
