"""What is measured of a network: accuracy, loss and activity, summed over the workers; how good draws are."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipelines.config import DataPruningConfig, TrainConfig
from pipelines.data.inputs import to_device
from pipelines.data.layout import Rows, uniform_sample
from pipelines.training.phases import HeldOut
from pipelines.training.worker import Worker
from pruning.examples.diagnostics import TrainingStep, diagnose, example_gradients, training_bias
from pruning.examples.inclusion import inclusion_probabilities, subset_size
from pruning.examples.policies import POLICIES
from snn import activity
from snn.batchnorm import reestimate
from snn.losses import LOSSES

BATCH = 256
ACTIVITY_EXAMPLES = 1024
PROBE_STREAM = 104
_FIGURES = {
    "connectivity": "{connectivity:.2%}",
    "SynOps of dense": "{synops_of_dense:.1%}",
    "SynOps": "{synops:,.0f}",
    "MACs": "{macs:,.0f}",
    "energy, nJ": "{energy_nj:,.1f}",
    "accuracy": "{accuracy:.2%}",
    "drop, points": "{points:+.2f}",
}
FIGURE_HEADINGS = tuple(_FIGURES)
"""Of `figure_cells`."""


def evaluate(worker: Worker, *splits: HeldOut) -> dict[str, float]:
    """``SPLIT_accuracy`` in [0, 1] and ``SPLIT_loss`` per example, without label smoothing, of each split."""
    model, engine, loss = worker.model, worker.engine, LOSSES[worker.spec.config.train.loss]
    found: dict[str, float] = {}
    model.eval()
    for split in splits:
        sums = torch.zeros(3, dtype=torch.float64, device=engine.device)
        with torch.no_grad():
            for _, x, y in engine.held_out(split).batches(BATCH):
                labels = to_device(y, engine.device)
                logits_TBK = model(worker.inputs(x, engine.device))
                correct = (logits_TBK.mean(0).argmax(1) == labels).sum()
                losses = loss(logits_TBK, labels).double().sum()
                sums += torch.stack([correct, losses, labels.new_tensor(len(y))])
        correct, total_loss, count = engine.sum(sums).tolist()
        found |= {f"{split}_accuracy": correct / count, f"{split}_loss": total_loss / count}
    model.train()
    return found


def measure_activity(worker: Worker, split: HeldOut) -> dict[str, Any]:
    """SynOps, density, energy and firing rates on up to 1,024 examples of a split, for JSON."""
    share = -(-ACTIVITY_EXAMPLES // worker.engine.world_size)
    rows = worker.engine.held_out(split).head(share)
    sums = activity.collect(worker.model, inputs_of(worker, rows, rows.ids[:share]))
    merged = activity.from_sums(worker.model, worker.engine.sum(sums))
    names = ("synops", "dense_synops", "acs", "macs", "density", "energy_pj", "examples")
    return {
        **{name: getattr(merged, name) for name in names},
        "layers": [{**asdict(layer), "density": layer.density} for layer in merged.layers],
    }


def reestimate_norm(worker: Worker, rows: Rows, ids: np.ndarray) -> None:
    """Batch norm statistics from this worker's share of a uniform sample, summed over the workers."""
    reestimate(worker.model, inputs_of(worker, rows, ids), average=worker.engine.sum)


def inputs_of(worker: Worker, rows: Rows, ids: np.ndarray) -> Iterator[Tensor]:
    """Some rows as the network takes them, in batches."""
    for start in range(0, len(ids), BATCH):
        yield worker.inputs(rows.get(ids[start : start + BATCH])[0], worker.engine.device)


def pruned_figures(
    accuracy: float,
    activity: Mapping[str, Any],
    *,
    dense_accuracy: float,
    dense_activity: Mapping[str, Any],
) -> dict[str, float]:
    """Figures for JSON, of measured activities (`pipelines.training.evaluation.measure_activity`).

    Returns:
        ``connectivity`` (weights left), ``synops_of_dense`` and ``energy_of_dense`` as shares; ``synops`` per
        inference, of which ``macs`` are multiply-accumulates; ``energy_nj`` by the constants of
        `snn.activity`; ``accuracy`` and ``accuracy_drop`` from the dense network, in [0, 1].
    """
    return {
        "connectivity": activity["density"],
        "synops": activity["synops"],
        "synops_of_dense": activity["synops"] / max(dense_activity["synops"], 1e-300),
        "macs": activity["macs"],
        "energy_nj": activity["energy_pj"] / 1000,
        "energy_of_dense": activity["energy_pj"] / max(dense_activity["energy_pj"], 1e-300),
        "accuracy": accuracy,
        "accuracy_drop": dense_accuracy - accuracy,
    }


def figure_cells(figures: Mapping[str, float]) -> tuple[str, ...]:
    """As text, in the order of `FIGURE_HEADINGS`."""
    points = 100 * figures["accuracy_drop"]
    return tuple(text.format(**figures, points=points) for text in _FIGURES.values())


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
