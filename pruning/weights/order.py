"""All weights in one order: what each layer gives up first, and how the layers' orders become one."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from pruning.weights.criteria import LayerRule

Array = np.ndarray[Any, Any]


class LayerRanking:
    """The weights that a layer may give up, in its order.

    ``alive`` is the flat mask of the weights not pruned yet; ``kept`` of the survivors (the largest) are
    protected; scores are divided by ``price``, where zero means that pruning saves nothing.

    Raises:
        ValueError: weights that are not finite.
    """

    def __init__(
        self, name: str, rule: LayerRule, alive: Array | None, kept: int, price: float = 1.0
    ) -> None:
        self.rule, self.price, self._alive = rule, price, alive
        key = self._survivors(rule.key)
        if not np.isfinite(key.sum(dtype=np.float64)):
            raise ValueError(f"{name}: weights are not finite (NaN or infinity)")
        self.survivors = key.size
        self.candidates = max(0, key.size - kept)
        if rule.curve is not None:
            self._slopes = rule.curve.slopes(self.survivors)
        else:
            self._phi, self._score = self._by_energy(key)

    def scores(self, weights: Array | None = None) -> Array:
        """``[candidates]``, not decreasing; the common order is ascending in it.

        A measured curve is weighted by ``weights`` on the timesteps, or summed over them.
        """
        if self.rule.curve is None:
            score = self._score
            if self.rule.score == "share":
                return score
        else:
            slope = self._slopes.slope
            score = self._by_weight(slope.sum(1) if weights is None else slope @ weights)
        return score / self.price if self.price else np.where(score > 0, np.inf, 0.0)

    def costs(self) -> Array:
        """Predicted distortion of each weight, ``[candidates, T]`` with a measured curve, else ``[., 1]``."""
        if self.rule.curve is not None:
            return self._by_weight(self._slopes.slope)
        return (self._phi * self.rule.coefficient)[:, None]

    def spent(self, count: int) -> Array:
        """Predicted distortion of the first ``count`` weights, ``[T or 1]``."""
        if self.rule.curve is not None:
            return self._slopes.spent(np.array([count]))[0]
        return np.array([self._phi[:count].sum() * self.rule.coefficient])

    def pruned(self, count: int) -> Array:
        """Flat indices of the first ``count`` weights of the order; equal keys by index."""
        positions = np.argsort(self._survivors(self.rule.key), kind="stable")[:count]
        return positions if self._alive is None else np.flatnonzero(self._alive)[positions]

    def _by_energy(self, key: Array) -> tuple[Array, Array]:
        """What each weight costs in -log kept energy share, and scores before the price, ``[candidates]``."""
        n, m, rule = self.survivors, self.candidates, self.rule
        square = np.square(np.sort(key).astype(np.float64))
        energy = square
        if rule.energy is not None:
            energy = self._survivors(rule.energy)[np.argsort(key, kind="stable")]
        phi = suffix_costs(energy)[:m]
        if rule.score == "energy":
            return phi, square[:m]
        if rule.score == "share":
            # Of the dense size: after earlier rounds too densities are in proportion to the shares.
            dense = n if self._alive is None else self._alive.size
            return phi, dense * rule.share / np.arange(n, n - m, -1, dtype=np.float64)
        # Rounding may leave neighbours out of order by a unit in the last place.
        return phi, np.maximum.accumulate(phi) * rule.coefficient

    def _by_weight(self, by_piece: Array) -> Array:
        return np.repeat(by_piece, np.diff(np.minimum(self._slopes.count, self.candidates)), axis=0)

    def _survivors(self, values: Callable[[], Tensor]) -> Array:
        array: Array = values().cpu().numpy()
        return array if self._alive is None else array[self._alive]


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
class Prefix:
    """Weights that each layer gives up, and what that costs."""

    counts: Array
    """``[L]``, int64."""
    spent: Array
    """Predicted distortion by layer and timestep, ``[L, T]``, or by layer alone, ``[L, 1]``."""


class Order:
    """The weights of all layers, ascending in score, ties by layer and position.

    ``weights`` stand on the timesteps; ``None`` is their plain sum.
    """

    def __init__(self, layers: Sequence[LayerRanking], weights: Array | None = None) -> None:
        self._layers = layers
        order = np.argsort(np.concatenate([layer.scores(weights) for layer in layers]), kind="stable")
        owner = np.repeat(np.arange(len(layers), dtype=np.int32), [layer.candidates for layer in layers])
        self.owner: Array = owner[order]
        """Layer of each weight, ``[N]``."""
        self.cost: Array = np.concatenate([layer.costs() for layer in layers])[order]
        """Predicted distortion of each weight, ``[N, T or 1]``."""

    def first(self, length: int) -> Prefix:
        """The first ``length`` weights."""
        counts = np.bincount(self.owner[:length], minlength=len(self._layers))
        spent = [layer.spent(int(k)) for layer, k in zip(self._layers, counts, strict=True)]
        return Prefix(counts, np.array(spent))

    def within(self, bound: float, weights: Array | None = None) -> Prefix:
        """The longest prefix whose distortion, over all timesteps or weighted, is at most ``bound``."""
        used = np.cumsum(self.cost.sum(1) if weights is None else self.cost @ weights)
        return self.first(int(np.searchsorted(used, bound, side="right")))

    def within_each(self, bound: float) -> Prefix:
        """The longest prefix whose distortion at every timestep is at most ``bound``."""
        used = np.cumsum(self.cost, axis=0).max(axis=1, initial=0.0)
        return self.first(int(np.searchsorted(used, bound, side="right")))
