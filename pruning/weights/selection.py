"""The longest prefix of the common order within linear limits: exact, one layer in memory at a time.

Scores are bisected many ways at once on their bit patterns (a radix selection): each pass over the layers
counts, for thousands of thresholds, how many weights of each layer lie at or below; the interval in
which a limit is crossed is refined until its weights can be listed, sorted and added one by one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from pruning.weights.ranking import Array, LayerRanking

THRESHOLDS = 1 << 14
LISTED = 1 << 20
_INFINITY = int(np.array(np.inf).view(np.int64))


@dataclass(frozen=True)
class Limit:
    """``x @ rate <= bound`` for ``x = `` counts ``[L]`` or phi ``[L]``; several columns hold at once."""

    of: Literal["count", "phi"]
    rate: Array
    """``[L, J]``."""
    bound: Array
    """``[J]``."""
    strict: bool = False
    """Below the bound instead of at most."""

    def holds(self, used: Array) -> Array:
        """For each row of ``used`` ``[n, J]``."""
        inside = used < self.bound if self.strict else used <= self.bound
        return np.asarray(inside.all(axis=-1))


@dataclass(frozen=True)
class Prefix:
    """Weights that each layer gives up, and what that costs."""

    counts: Array
    """``[L]``, int64."""
    phi: Array
    """``[L]``."""
    next_layer: int | None
    """Layer of the first weight after the prefix; None if it holds every candidate."""


def select(layers: Sequence[LayerRanking], coefficients: Sequence[float], limits: Sequence[Limit]) -> Prefix:
    """The longest prefix, ascending in score with ties by layer and position, within all ``limits``."""
    low, high = -1, _INFINITY
    counts, phi = np.zeros(len(layers), dtype=np.int64), np.zeros(len(layers))
    upper = np.array([layer.candidates for layer in layers], dtype=np.int64)
    while upper.sum() - counts.sum() > LISTED and high - low > 1:
        step = max(1, (high - low) // THRESHOLDS)
        edges = np.arange(low + step, high, step, dtype=np.int64)
        edges = np.append(edges, high)
        counts_at, phi_at = _at(layers, coefficients, edges)
        inside = _hold(limits, counts_at, phi_at)
        if inside.all():
            return Prefix(counts_at[-1], phi_at[-1], None)
        first_outside = int(np.argmin(inside))
        upper, high = counts_at[first_outside], int(edges[first_outside])
        if first_outside:
            low = int(edges[first_outside - 1])
            counts, phi = counts_at[first_outside - 1], phi_at[first_outside - 1]
    return _one_by_one(layers, coefficients, limits, counts, phi, upper)


def _at(layers: Sequence[LayerRanking], coefficients: Sequence[float], edges: Array) -> tuple[Array, Array]:
    """Counts and phi ``[edges, L]`` of the weights with a score at or below each edge."""
    counts = np.zeros((len(edges), len(layers)), dtype=np.int64)
    phi = np.zeros((len(edges), len(layers)))
    for i, (layer, coefficient) in enumerate(zip(layers, coefficients, strict=True)):
        if layer.candidates:
            ranked = layer.ranked(coefficient)
            counts[:, i] = np.searchsorted(ranked.score.view(np.int64), edges, side="right")
            phi[:, i] = np.where(counts[:, i] > 0, ranked.phi[counts[:, i] - 1], 0.0)
            del ranked  # before the next layer's arrays are made
    return counts, phi


def _hold(limits: Sequence[Limit], counts: Array, phi: Array) -> Array:
    return np.logical_and.reduce(
        [limit.holds((counts if limit.of == "count" else phi) @ limit.rate) for limit in limits]
    )


def _one_by_one(
    layers: Sequence[LayerRanking],
    coefficients: Sequence[float],
    limits: Sequence[Limit],
    counts: Array,
    phi: Array,
    upper: Array,
) -> Prefix:
    scores, costs, owners = [np.zeros(0)], [np.zeros(0)], [np.zeros(0, dtype=np.int64)]
    reached = [np.array([value]) for value in phi]
    for i, (layer, coefficient) in enumerate(zip(layers, coefficients, strict=True)):
        if upper[i] > counts[i]:
            ranked = layer.ranked(coefficient)
            scores.append(ranked.score[counts[i] : upper[i]].copy())
            reached[i] = np.append(phi[i], ranked.phi[counts[i] : upper[i]])
            costs.append(np.diff(reached[i]))
            owners.append(np.full(upper[i] - counts[i], i, dtype=np.int64))
            del ranked
    order = np.argsort(np.concatenate(scores), kind="stable")
    cost, owner = np.concatenate(costs)[order], np.concatenate(owners)[order]
    inside = np.ones(len(order), dtype=bool)
    for limit in limits:
        start, step = (counts, 1.0) if limit.of == "count" else (phi, cost[:, None])
        inside &= limit.holds(start @ limit.rate + np.cumsum(limit.rate[owner] * step, axis=0))
    length = len(order) if inside.all() else int(np.argmin(inside))
    added = np.bincount(owner[:length], minlength=len(layers))
    return Prefix(
        counts + added,
        np.array([values[k] for values, k in zip(reached, added, strict=True)]),
        int(owner[length]) if length < len(order) else None,
    )
