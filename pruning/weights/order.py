"""All weights in one order: what each layer gives up first, and the longest prefix within limits, exactly.

An allocation of a large network holds one layer's arrays at a time. Scores are bisected many ways at once on
their bit patterns (a radix selection): each pass over the layers counts, for thousands of thresholds, how
many weights of each layer lie at or below; the interval in which the limit is crossed is refined until its
weights can be listed, sorted and added one by one.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from torch import Tensor

from pruning.weights.criteria import LayerRule

Array = np.ndarray[Any, Any]

THRESHOLDS = 1 << 14
LISTED = 1 << 20
_INFINITY = int(np.array(np.inf).view(np.int64))


@dataclass(frozen=True)
class Ranked:
    """The weights that a layer may give up, in its order."""

    score: Array
    """``[candidates]``, not decreasing; the common order is ascending in it."""
    spent: Callable[[Array], Array]
    """From numbers of pruned weights ``[n]`` to the predicted distortion, ``[n, T]`` by timestep with a
    measured curve, else ``[n, 1]``."""


class LayerRanking:
    """A layer in the common order of all layers.

    ``alive`` is the flat mask of the weights not pruned yet; ``kept`` of the survivors (the largest) are
    protected; scores are divided by ``price``, where zero means that pruning saves nothing; ``cached`` keeps
    sorted arrays in memory between calls.

    Raises:
        ValueError: weights that are not finite.
    """

    def __init__(
        self,
        name: str,
        rule: LayerRule,
        alive: Array | None,
        kept: int,
        price: float = 1.0,
        *,
        cached: bool = True,
    ) -> None:
        self.rule, self.price = rule, price
        self._alive = alive
        key = self._key()
        if not np.isfinite(key.sum(dtype=np.float64)):
            raise ValueError(f"{name}: weights are not finite (NaN or infinity)")
        self.survivors = key.size
        self.candidates = max(0, key.size - kept)
        self._cached = cached
        self._base: tuple[Array, Array] | None = None

    def ranked(self, weights: Array | None = None) -> Ranked:
        """Scores, with ``weights`` on the timesteps instead of their sum, and what pruning costs."""
        rule = self.rule
        if rule.curve is not None:
            slopes = rule.curve.slopes(self.survivors)
            spent: Callable[[Array], Array] = slopes.spent
            each = slopes.slope.sum(1) if weights is None else slopes.slope @ weights
            score = np.repeat(each, np.diff(np.minimum(slopes.count, self.candidates)))
        else:
            score, phi = self._base or self._sorted()
            if self._cached:
                self._base = score, phi
            spent = self._by_energy(phi)
            if rule.score == "share":
                return Ranked(score, spent)
            if rule.score == "distortion" and rule.coefficient != 1:
                score = np.multiply(score, rule.coefficient, out=None if self._cached else score)
        if self.price == 0:
            score = np.where(score > 0, np.inf, 0.0)
        elif self.price != 1:
            score = score / self.price
        return Ranked(score, spent)

    def pruned(self, count: int) -> Array:
        """Flat indices of the first ``count`` weights of the order; equal keys by index."""
        key = self._key()
        if count == 0:
            return np.zeros(0, dtype=np.int64)
        last = np.partition(key, count - 1)[count - 1]
        chosen = key < last
        equal = np.flatnonzero(key == last)[: count - int(chosen.sum())]
        chosen[equal] = True
        positions = np.flatnonzero(chosen)
        return positions if self._alive is None else np.flatnonzero(self._alive)[positions]

    def _by_energy(self, phi: Array) -> Callable[[Array], Array]:
        def spent(counts: Array) -> Array:
            reached = np.where(counts > 0, phi[counts - 1], 0.0) if len(phi) else np.zeros(len(counts))
            return np.asarray(reached[:, None] * self.rule.coefficient)

        return spent

    def _key(self) -> Array:
        return self._survivors(self.rule.key)

    def _survivors(self, values: Callable[[], Tensor]) -> Array:
        array: Array = values().cpu().numpy()
        return array if self._alive is None else array[self._alive]

    def _sorted(self) -> tuple[Array, Array]:
        """Scores before coefficient and price, and -log kept energy share after each weight."""
        n, m, rule = self.survivors, self.candidates, self.rule
        if rule.energy is None:
            energy = np.sort(self._key()).astype(np.float64)
            np.square(energy, out=energy)
        else:
            energy = self._survivors(rule.energy)[np.argsort(self._key(), kind="stable")]
        phi = suffix_costs(energy)[:m]
        if rule.score == "share":
            # Of the dense size: after earlier rounds too densities are in proportion to the shares.
            dense = n if self._alive is None else self._alive.size
            score = dense * rule.share / np.arange(n, n - m, -1, dtype=np.float64)
        elif rule.score == "energy":
            score = np.sort(self._key())[:m].astype(np.float64)
            np.square(score, out=score)
        else:
            # Rounding may leave neighbours out of order by a unit in the last place.
            score = np.maximum.accumulate(phi)
            del energy
        return score, np.cumsum(phi, out=phi)


def suffix_costs(energy: Array) -> Array:
    """``log(E_k / E_{k+1})`` with ``E_k = sum_{j >= k} energy_j``, float64, overwriting nothing.

    Suffix sums start at the last (largest) entry, so that its own share is exactly 1 and its cost
    infinite; an all-zero layer costs nothing.
    """
    share = np.cumsum(energy[::-1])[::-1]
    np.divide(energy, share, out=share, where=share > 0)
    np.negative(share, out=share)
    with np.errstate(divide="ignore"):
        np.log1p(share, out=share)
    np.negative(share, out=share)
    return share


@dataclass(frozen=True)
class Limit:
    """``x @ rate <= bound`` for numbers of pruned weights ``[L]`` or distortions by timestep ``[T]``.

    Several columns hold at once.
    """

    of: Literal["count", "distortion"]
    rate: Array
    """``[L, J]`` or ``[T, J]``."""
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
    spent: Array
    """Predicted distortion by layer and timestep, ``[L, T]``, or by layer alone, ``[L, 1]``."""
    next_layer: int | None
    """Layer of the first weight after the prefix; None if it holds every candidate."""


def select(layers: Sequence[LayerRanking], limit: Limit, weights: Array | None = None) -> Prefix:
    """The longest prefix, ascending in score with ties by layer and position, within ``limit``.

    ``weights`` stand on the timesteps; None is their plain sum.
    """
    low, high = -1, _INFINITY
    counts = np.zeros(len(layers), dtype=np.int64)
    upper = np.array([layer.candidates for layer in layers], dtype=np.int64)
    while upper.sum() - counts.sum() > LISTED and high - low > 1:
        step = max(1, (high - low) // THRESHOLDS)
        edges = np.append(np.arange(low + step, high, step, dtype=np.int64), high)
        counts_at, inside = _at(layers, limit, weights, edges)
        if inside.all():
            counts = upper = counts_at[-1]
            break
        first_outside = int(np.argmin(inside))
        upper, high = counts_at[first_outside], int(edges[first_outside])
        if first_outside:
            low, counts = int(edges[first_outside - 1]), counts_at[first_outside - 1]
    return _one_by_one(layers, limit, weights, counts, upper)


def _at(
    layers: Sequence[LayerRanking], limit: Limit, weights: Array | None, edges: Array
) -> tuple[Array, Array]:
    """Counts ``[edges, L]`` of the weights with a score at or below each edge; whether the limit holds."""
    counts = np.zeros((len(edges), len(layers)), dtype=np.int64)
    used: Array = np.zeros((len(edges), len(limit.bound)))
    for i, layer in enumerate(layers):
        if layer.candidates:
            ranked = layer.ranked(weights)
            counts[:, i] = np.searchsorted(ranked.score.view(np.int64), edges, side="right")
            if limit.of == "distortion":
                used += ranked.spent(counts[:, i]) @ limit.rate
            del ranked  # before the next layer's arrays are made
    if limit.of == "count":
        used = counts @ limit.rate
    return counts, limit.holds(used)


def _one_by_one(
    layers: Sequence[LayerRanking], limit: Limit, weights: Array | None, counts: Array, upper: Array
) -> Prefix:
    """The prefix between ``counts`` and ``upper``, ``[L]``, whose weights are listed, sorted and added."""
    scores, owners, costs, reached = [], [], [], []
    for i, layer in enumerate(layers):
        ranked = layer.ranked(weights)
        reached.append(ranked.spent(np.arange(counts[i], upper[i] + 1)))
        scores.append(ranked.score[counts[i] : upper[i]].copy())
        costs.append(np.diff(reached[i], axis=0))
        owners.append(np.full(upper[i] - counts[i], i, dtype=np.int64))
        del ranked
    order = np.argsort(np.concatenate(scores), kind="stable")
    cost, owner = np.concatenate(costs)[order], np.concatenate(owners)[order]
    if limit.of == "count":
        used = counts @ limit.rate + np.cumsum(limit.rate[owner], axis=0)
    else:
        start = np.sum([values[0] for values in reached], axis=0)
        used = start @ limit.rate + np.cumsum(cost @ limit.rate, axis=0)
    inside = limit.holds(used)
    length = len(order) if inside.all() else int(np.argmin(inside))
    added = np.bincount(owner[:length], minlength=len(layers))
    return Prefix(
        counts + added,
        np.array([values[k] for values, k in zip(reached, added, strict=True)]),
        int(owner[length]) if length < len(order) else None,
    )
