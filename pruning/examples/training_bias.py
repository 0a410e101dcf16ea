"""The bias of the mean gradient in the mode that training uses: batch norm on the batch's own statistics.

With frozen norm statistics the weighted gradient of a random design is unbiased. Training normalises every
batch by its own statistics, so its mean gradient differs from the full gradient under any sampling, uniform
sampling included. How far it differs is estimated here by drawing subsets and running their batches.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pruning.examples.sampling import POWER_UNIT, draw, power_sum, shuffled, tempered
from pruning.examples.scores import LossName
from snn.losses import LOSSES
from snn.weighted_norm import weighted_statistics

STREAM_DRAWS = 1 << 20
"""Epoch number of the first draw: apart from those of a run."""


@dataclass(frozen=True, kw_only=True)
class TrainingStep:
    """How a training step turns a batch into a gradient."""

    batch_size: int
    loss: LossName = "rate_ce"
    label_smoothing: float = 0.0
    weight_power: float = 1.0
    """Power of the weights in the loss."""
    weighted_norm: bool = True
    """Whether batch statistics take the weights."""


def training_bias(
    model: nn.Module,
    x_TB: Tensor,
    labels_B: Tensor,
    probabilities: NDArray[np.float64],
    step: TrainingStep,
    *,
    draws: int = 32,
    seed: int = 0,
) -> float:
    """Norm of the mean gradient's bias over the norm of the full gradient, without the noise of the draws.

    The full gradient is that of the mean loss of all examples in one batch, in training mode. Running
    statistics and modes of the model are restored.

    Args:
        model: gives ``logits_TBK``.
        x_TB: input of all examples of a probe, ``[T, N, ...]``.
        labels_B: int64 ``[N]``.
        probabilities: inclusion probabilities ``[N]`` that sum to the size of a subset.
        step: how a batch becomes a gradient.
        draws: subsets to draw; each costs a training step on its examples.
        seed: of the draws.

    Raises:
        ValueError: fewer than two draws, or lengths that differ.
    """
    if draws < 2:
        raise ValueError(f"draws: {draws!r} must be at least 2")
    if len(probabilities) != len(labels_B):
        raise ValueError(
            f"probabilities: {len(probabilities)} of them must be as many as labels, {len(labels_B)}"
        )
    with _training(model):
        every = np.arange(len(labels_B))
        ones = np.ones(len(every), np.float32)
        full = _gradient(model, x_TB, labels_B, every, ones, ones, len(every), step)
        total, squares = torch.zeros_like(full), 0.0
        for k in range(draws):
            estimate = _of_draw(model, x_TB, labels_B, probabilities, step, seed, k)
            total += estimate
            squares += float(estimate.square().sum())
    mean = total / draws
    noise = (squares / draws - float(mean.square().sum())) / (draws - 1)  # of the mean over the draws
    bias = float((mean - full).square().sum()) - noise
    return float(max(bias, 0.0) ** 0.5 / full.norm())


def _of_draw(
    model: nn.Module,
    x_TB: Tensor,
    labels_B: Tensor,
    probabilities: NDArray[np.float64],
    step: TrainingStep,
    seed: int,
    k: int,
) -> Tensor:
    """One subset's gradient: the sum over its batches."""
    size, epoch = round(float(probabilities.sum())), STREAM_DRAWS + k
    subset = draw(probabilities, size=size, seed=seed, epoch=epoch)
    order = np.searchsorted(subset.ids, shuffled(subset.ids, seed=seed, epoch=epoch))
    ids, weights = subset.ids[order], subset.weights[order]
    mean = power_sum(weights, step.weight_power) / POWER_UNIT / len(weights)
    in_loss = tempered(weights, step.weight_power, mean)
    estimate = None
    for part in np.array_split(np.arange(size), max(1, round(size / step.batch_size))):
        g = _gradient(model, x_TB, labels_B, ids[part], weights[part], in_loss[part], size, step)
        estimate = g if estimate is None else estimate + g
    assert estimate is not None
    return estimate


def _gradient(
    model: nn.Module,
    x_TB: Tensor,
    labels_B: Tensor,
    ids: NDArray[np.int64],
    weights: NDArray[np.float32],
    in_loss: NDArray[np.float32],
    size: int,
    step: TrainingStep,
) -> Tensor:
    """Gradient of the weighted losses of one batch over ``size``, all parameters in one float64 vector."""
    at = torch.from_numpy(ids).to(labels_B.device)
    with torch.enable_grad(), weighted_statistics(torch.from_numpy(weights) if step.weighted_norm else None):
        losses = LOSSES[step.loss](model(x_TB[:, at]), labels_B[at], step.label_smoothing)
    total = (torch.from_numpy(in_loss).to(losses) * losses).sum() / size
    parameters = [p for p in model.parameters() if p.requires_grad]
    grads = torch.autograd.grad(total, parameters, allow_unused=True, materialize_grads=True)
    return torch.cat([g.flatten().double() for g in grads])


@contextmanager
def _training(model: nn.Module) -> Iterator[None]:
    """The model in training mode; its modes and buffers are restored."""
    modes = [(module, module.training) for module in model.modules()]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    model.train()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)
