"""One layer's weights in the order in which it gives them up, and what each costs.

Arrays are made anew at every call, so that an allocation holds one large layer at a time.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from pruning.weights.criteria import LayerRule

Array = np.ndarray


@dataclass(frozen=True)
class Ranked:
    """The weights that a layer may give up, in its order; all arrays ``[candidates]``, float64."""

    score: Array
    """Not decreasing; the common order is ascending in it."""
    phi: Array
    """``-log`` of the share of energy kept after giving up this weight too; 0 for a layer of zeros."""


class LayerRanking:
    """A layer in the common order of all layers.

    Args:
        name: of the layer, for errors.
        rule: its order and score.
        alive: flat mask of the weights not pruned yet, or None for all.
        kept: number of surviving weights that are protected (its largest).
        price: what the score is divided by; zero means that pruning here saves nothing.

    Raises:
        ValueError: weights that are not finite.
    """

    def __init__(
        self, name: str, rule: LayerRule, alive: Array | None, kept: int, price: float, *, cached: bool
    ) -> None:
        self.name, self.rule, self.price = name, rule, price
        self._alive = alive
        key = self._key()
        if not np.isfinite(key.sum(dtype=np.float64)):
            raise ValueError(f"{name}: weights are not finite (NaN or infinity)")
        self.survivors = key.size
        self.candidates = max(0, key.size - kept)
        self._cached = cached
        self._base: Ranked | None = None

    def ranked(self, coefficient: float) -> Ranked:
        """Scores and accumulated costs, with ``coefficient`` as the rule's ``c``."""
        base = self._base or self._rank()
        if self._cached:
            self._base = base
        score = base.score
        if self.rule.score == "share":
            return base
        if self.rule.score == "distortion" and coefficient != 1:
            score = np.multiply(score, coefficient, out=None if self._cached else score)
        if self.price == 0:
            score = np.where(score > 0, np.inf, 0.0)
        elif self.price != 1:
            score = score / self.price
        return Ranked(score, base.phi)

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

    def _key(self) -> Array:
        return self._survivors(self.rule.key)

    def _survivors(self, values: Callable[[], Tensor]) -> Array:
        array = values().cpu().numpy()
        return array if self._alive is None else array[self._alive]

    def _rank(self) -> Ranked:
        n, m = self.survivors, self.candidates
        if self.rule.energy is None:
            energy = np.sort(self._key()).astype(np.float64)
            np.square(energy, out=energy)
        else:
            energy = self._survivors(self.rule.energy)[np.argsort(self._key(), kind="stable")]
        phi = suffix_costs(energy)[:m]
        if self.rule.score == "share":
            # Of the dense size: after earlier rounds too densities are in proportion to the shares.
            dense = n if self._alive is None else self._alive.size
            score = dense * self.rule.share / np.arange(n, n - m, -1, dtype=np.float64)
        else:
            # Rounding may leave neighbours out of order by a unit in the last place.
            score = np.maximum.accumulate(phi if self.rule.score == "distortion" else energy[:m])
            del energy
        return Ranked(score, np.cumsum(phi, out=phi))


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
