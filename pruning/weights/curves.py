"""Measured distortion curves: what each layer alone does to the outputs at a dozen densities.

For layer ``l`` with a share ``d`` of its weights left (the largest) and timestep ``t``::

    D_lt(d) = E ||y[t] - y_dense[t]||^2 / (T Var y)      so that sum_t D_lt = 1 is the logits' own variance

with ``y[t]`` the logits at step ``t`` and ``Var y`` their variance over examples, summed over classes, mean
over timesteps. Every forward pass normalises by the statistics of its own batch. Allocation uses the lower
convex hull of each curve (docs/methods-slamp.md, section 3).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from snn.batchnorm import own_statistics
from snn.layers import Synapses

DENSITIES = (0.8, 0.6, 0.45, 0.32, 0.22, 0.15, 0.1, 0.065, 0.04, 0.025, 0.015, 0.008)
"""Shares of a layer's surviving weights at which it is measured."""

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Slopes:
    """A convex, piecewise linear distortion over the number of pruned weights."""

    count: Array
    """Where pieces begin and end, ``[S + 1]``, from 0."""
    slope: Array
    """Distortion per weight by piece and timestep, ``[S, T]``, not decreasing in S."""

    def spent(self, counts: Array) -> Array:
        """Distortion by timestep of ``counts`` ``[n]`` pruned weights, ``[n, T]``."""
        pieces = np.diff(self.count)
        inside = np.clip(np.asarray(counts)[:, None] - self.count[None, :-1], 0, pieces[None])
        return np.asarray(inside @ self.slope)


@dataclass(frozen=True)
class Curve:
    """One layer's measured distortion over its density."""

    distortion: tuple[tuple[float, ...], ...]
    """By density and timestep, ``[P][T]``."""
    densities: tuple[float, ...] = DENSITIES
    """Descending, ``[P]``."""

    def slopes(self, n: int) -> Slopes:
        """The lower convex hull for a layer of ``n`` surviving weights."""
        return _slopes(self, n)


@lru_cache(maxsize=1024)
def _slopes(curve: Curve, n: int) -> Slopes:
    counts = [0]
    values = [np.zeros(len(curve.distortion[0]))]
    for density, row in zip(curve.densities, curve.distortion, strict=True):
        count = n - kept_of(density, n)
        if count > counts[-1]:
            counts.append(count)
            values.append(np.array(row))
    x, y_PT = np.array(counts), np.array(values)
    if len(x) == 1:
        return Slopes(x, np.zeros((0, y_PT.shape[1])))
    slope = np.stack([_hull_slopes(x, y) for y in y_PT.T], axis=1)
    # Beyond what was measured: every halving of the rest costs as much as it would by the last slope.
    rest = first = int(n - x[-1])
    while rest > 1:
        slope = np.vstack([slope, slope[len(counts) - 2] * (first / rest)])
        rest = rest // 2
        x = np.append(x, n - rest)
    return Slopes(x, slope)


def kept_of(density: float, n: int) -> int:
    """Weights left of ``n`` at a density, at least one."""
    return max(1, round(density * n))


def _hull_slopes(x: Array, y: Array) -> Array:
    """Slopes between ``x`` of the largest convex function below ``(x, y)``, at least 0."""
    hull = [0]
    for i in range(1, len(x)):
        while len(hull) > 1:
            a, b = hull[-2:]
            if (y[b] - y[a]) * (x[i] - x[b]) >= (y[i] - y[b]) * (x[b] - x[a]):
                hull.pop()
            else:
                break
        hull.append(i)
    found = np.interp(x, x[hull], y[hull])
    return np.maximum(np.maximum.accumulate(np.diff(found) / np.diff(x)), 0.0)


def measure_curves(model: Any, synapses: Sequence[Synapses], x_TB: Tensor) -> list[Tensor]:
    """Curves of all layers on one batch, by ``len(DENSITIES)`` forward passes per layer and one more.

    Args:
        model: network in eval mode; weights and statistics are put back as they were, also after an error.
        synapses: of ``model``.
        x_TB: inputs ``[T, B, ...]``, at least two examples: batch statistics are theirs.

    Returns:
        by layer ``D_lt``, float64 ``[P, T]``.

    Raises:
        ValueError: logits that are the same for all examples.
    """
    with own_statistics(model, 0.0):
        distortion = distortion_from(model, x_TB)
        return [layer_curve(s.layer.weight, distortion) for s in synapses]


@torch.no_grad()
def distortion_from(model: Any, x_TB: Tensor) -> Callable[[], Tensor]:
    """Gives the distortion of the network as it will be from as it is now, by timestep, float64 ``[T]``."""
    T, B = x_TB.shape[:2]
    dense_TBK = model(x_TB).double()
    variance = float(dense_TBK.var(1, correction=0).sum(1).mean())
    if not variance > 0:
        raise ValueError("batches: the logits are the same for all examples; nothing to measure")

    def distortion() -> Tensor:
        change = (model(x_TB).double() - dense_TBK).square().sum((1, 2))
        return change.cpu() / (B * T * variance)

    return distortion


@torch.no_grad()
def layer_curve(weight: Tensor, distortion: Callable[[], Tensor]) -> Tensor:
    """``distortion`` with the largest of these weights alone, at each of ``DENSITIES``, ``[P, T]``."""
    whole = weight.detach().clone()
    order = whole.abs().flatten().argsort(stable=True)
    alive = int(whole.count_nonzero())
    rows = []
    try:
        for density in DENSITIES:
            kept = kept_of(density, max(alive, 1))
            mask = torch.ones(weight.numel(), dtype=torch.bool, device=weight.device)
            mask[order[: weight.numel() - kept]] = False
            weight.copy_(whole * mask.view_as(weight))
            rows.append(distortion())
    finally:
        weight.copy_(whole)
    return torch.stack(rows)
