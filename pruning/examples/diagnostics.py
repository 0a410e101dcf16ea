"""How far a design is from the best one: exact gradient norms on a probe, variances, rank correlation, bias.

The oracle draws by the exact norms themselves; uniform sampling is the rival at equal size. Formulas, and
when the gradient is unbiased: docs/methods-sadp.md.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial, reduce
from operator import add

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pruning.examples.inclusion import inclusion_probabilities, subset_size
from pruning.examples.sampling import Doubles, Ints, draw, mean_power, shuffled, tempered
from pruning.examples.scores import LossName
from snn.losses import LOSSES
from snn.observing import evaluating
from snn.weighted_norm import weighted_statistics

_FIRST_DRAW = 1 << 20
"""Epoch number of the first draw of `training_bias`: apart from those of a run."""
Floats = NDArray[np.float32]


def example_gradients(
    model: nn.Module,
    x_TB: Tensor,
    labels_B: Tensor,
    *,
    loss: LossName = "rate_ce",
    label_smoothing: float = 0.0,
) -> tuple[Doubles, float]:
    """Norm of every example's gradient (all parameters, eval mode), and the norm of their mean (GraNd).

    Exact, by one backward pass per example: for probes of a few hundred examples. (`torch.func`, vectorised
    over examples, took 1.4 to 2.5 times as long on a CPU.)

    Args:
        model: gives ``logits_TBK``.
        x_TB: its input, ``[T, B, ...]``.
        labels_B: int64.
        loss: the training loss.
        label_smoothing: of the training loss.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    mean = [torch.zeros_like(p, dtype=torch.float64) for p in parameters]
    norms = []
    with evaluating(model), torch.enable_grad():
        for i in range(len(labels_B)):
            logits_TBK = model(x_TB[:, i : i + 1])
            value = LOSSES[loss](logits_TBK, labels_B[i : i + 1], label_smoothing).sum()
            grads = torch.autograd.grad(value, parameters, allow_unused=True)
            square = torch.zeros((), dtype=torch.float64, device=value.device)
            for total, grad in zip(mean, grads, strict=True):
                if grad is not None:
                    square += grad.double().square().sum()
                    total += grad
            norms.append(square.sqrt())
    norm_of_mean = torch.stack([m.square().sum() for m in mean]).sum().sqrt() / max(1, len(norms))
    return torch.stack(norms).cpu().numpy(), float(norm_of_mean)


def variance(norms: Doubles, probabilities: Doubles) -> float:
    """Variance of the estimated mean gradient under a design: ``sum (1 - pi) / pi ||g||^2 / N^2``.

    Exact for independent draws; systematic sampling in random order comes close.

    Args:
        norms: exact gradient norms, ``[N]``.
        probabilities: inclusion probabilities, ``[N]``; 0 only where the norm is 0 (else infinite).
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(norms > 0, (1 - probabilities) / probabilities * norms**2, 0.0)
    return float(terms.sum() / len(norms) ** 2)


def single_draw_variance(norms: Doubles, norm_of_mean: float, scores: Doubles) -> float:
    """Variance of one draw with probability proportional to the score, ``E ||g / (N p) - mean g||^2``."""
    p = scores / scores.sum()
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(norms > 0, norms**2 / p, 0.0)
    return float(terms.sum() / len(norms) ** 2 - norm_of_mean**2)


def rank_correlation(a: Doubles, b: Doubles) -> float:
    """Spearman's rank correlation, ties at their mean rank; NaN where one side is constant."""
    x, y = (_ranks(np.asarray(v, dtype=np.float64)) for v in (a, b))
    x, y = x - x.mean(), y - y.mean()
    scale = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / scale if scale > 0 else float("nan")


@dataclass(frozen=True)
class Diagnosis:
    """A design judged on a probe of examples with exact gradient norms."""

    variance_to_uniform: float
    """Variance over that of uniform sampling of the same size; below 1 is a gain."""
    variance_to_oracle: float
    """Variance over that of the best design of the same size; 1 is optimal. NaN where the oracle's is 0."""
    single_draw_to_uniform: float
    """The same for one draw by the scores alone, without mixture and cap."""
    single_draw_to_oracle: float
    rank_correlation: float
    """Spearman's, of scores and exact norms."""
    score_variation: float
    """Standard deviation of the scores over their mean: at 0, the draw is uniform."""
    norm_variation: float
    """The same of the exact norms."""
    probe_size: int


def diagnose(
    scores: NDArray[np.floating], norms: Doubles, norm_of_mean: float, *, ratio: float, alpha: float
) -> Diagnosis:
    """Judge scores by exact gradient norms of the same examples.

    Args:
        scores: of the probe, ``[n]``.
        norms: exact gradient norms, ``[n]``, and the norm of their mean from `example_gradients`.
        norm_of_mean: see ``norms``.
        ratio: pruning ratio ``r``.
        alpha: share of the uniform mixture in the design that is judged (the oracle has none).

    Raises:
        ValueError: lengths that differ, or an empty probe.
    """
    if len(scores) != len(norms) or not len(norms):
        raise ValueError(f"scores: {len(scores)} of them must be as many as norms, {len(norms)}, at least 1")
    n = len(norms)
    m = subset_size(n, ratio)
    s = np.asarray(scores, dtype=np.float64)
    flat = np.full(n, m / n)
    best = inclusion_probabilities(norms, m, alpha=0.0)
    design = variance(norms, inclusion_probabilities(s, m, alpha=alpha))
    single_draw = partial(single_draw_variance, norms, norm_of_mean)
    return Diagnosis(
        variance_to_uniform=_ratio(design, variance(norms, flat)),
        variance_to_oracle=_ratio(design, variance(norms, best)),
        single_draw_to_uniform=_ratio(single_draw(s), single_draw(flat)),
        single_draw_to_oracle=_ratio(single_draw(s), single_draw(norms)),
        rank_correlation=rank_correlation(s, norms),
        score_variation=_ratio(float(s.std()), float(s.mean())),
        norm_variation=_ratio(float(norms.std()), float(norms.mean())),
        probe_size=n,
    )


def _ranks(values: Doubles) -> Doubles:
    _, where, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[where]


def _ratio(a: float, b: float) -> float:
    return a / b if b > 0 else float("nan")


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
    probabilities: Doubles,
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
    parameters = [p for p in model.parameters() if p.requires_grad]

    def gradient(ids: Ints, weights: Floats, in_loss: Floats, size: int) -> Tensor:
        """Of the weighted losses of one batch over ``size``, in one float64 vector."""
        at = torch.from_numpy(ids).to(labels_B.device)
        counted = torch.from_numpy(weights) if step.weighted_norm else None
        with torch.enable_grad(), weighted_statistics(counted):
            losses = LOSSES[step.loss](model(x_TB[:, at]), labels_B[at], step.label_smoothing)
        total = (torch.from_numpy(in_loss).to(losses) * losses).sum() / size
        grads = torch.autograd.grad(total, parameters, allow_unused=True, materialize_grads=True)
        return torch.cat([g.flatten().double() for g in grads])

    size = round(float(probabilities.sum()))
    with _training(model):
        ones = np.ones(len(labels_B), np.float32)
        full = gradient(np.arange(len(ones)), ones, ones, len(ones))
        total, squares = torch.zeros_like(full), 0.0
        for k in range(draws):
            parts = _batches(probabilities, size, step, seed, _FIRST_DRAW + k)
            estimate = reduce(add, (gradient(*part, size) for part in parts))
            total += estimate
            squares += float(estimate.square().sum())
    mean = total / draws
    noise = (squares / draws - float(mean.square().sum())) / (draws - 1)  # of the mean over the draws
    bias = float((mean - full).square().sum()) - noise
    return float(max(bias, 0.0) ** 0.5 / full.norm())


def _batches(
    probabilities: Doubles, size: int, step: TrainingStep, seed: int, epoch: int
) -> Iterator[tuple[Ints, Floats, Floats]]:
    """Ids, weights and weights in the loss of one subset's batches."""
    subset = draw(probabilities, size=size, seed=seed, epoch=epoch)
    order = np.searchsorted(subset.ids, shuffled(subset.ids, seed=seed, epoch=epoch))
    ids, weights = subset.ids[order], subset.weights[order]
    in_loss = tempered(weights, step.weight_power, mean_power(weights, step.weight_power))
    for part in np.array_split(np.arange(size), max(1, round(size / step.batch_size))):
        yield ids[part], weights[part], in_loss[part]


@contextmanager
def _training(model: nn.Module) -> Iterator[None]:
    """The model in training mode; its modes and buffers are restored."""
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    with evaluating(model):
        model.train()
        try:
            yield
        finally:
            with torch.no_grad():
                for buffer, value in buffers:
                    buffer.copy_(value)
