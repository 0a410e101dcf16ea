"""Budgets that hold at every timestep: Lagrange weights on the steps, by mirror ascent on the dual.

A mask serves all timesteps, and the distortion at step ``t`` is ``D_t = sum_l D_lt``. For weights ``w``
on the simplex ``sum_t w_t D_t`` is a common order, whose prefixes are exact optima; no masks can do better
than the best of these allows, which is the dual bound.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from pruning.weights.order import Array, LayerRanking, Limit, Prefix, select

ROUNDS = 60
CLOSE = 1e-4
"""Relative gap at which the ascent stops."""


@dataclass(frozen=True)
class Steps:
    """How a budget over timesteps was met."""

    weights: tuple[float, ...]
    """Lagrange weights of the timesteps, adding up to 1."""
    gap: float
    """Relative duality gap."""


def least_maximum(choose: Callable[[Array], Prefix], T: int) -> tuple[Prefix, Steps]:
    """Of the prefixes that ``choose`` makes for weights on the timesteps, one of least ``max_t D_t``.

    The dual bound is ``max_w min_masks sum_t w_t D_t`` (up to one weight where SynOps are the target).
    """

    def judge(w: Array) -> tuple[Prefix, Array, float, float]:
        prefix = choose(w)
        D = prefix.spent.sum(0)
        return prefix, D, float(D.max()), float(w @ D)

    return _ascend(judge, T)


def within_steps(
    layers: Sequence[LayerRanking], T: int, *, worth: Array, each: float
) -> tuple[Prefix, Steps]:
    """Of the prefixes with every ``D_t <= each``, one that removes the most.

    Args:
        layers: the layers.
        T: timesteps.
        worth: value of a removed weight by layer, ``[L]``.
        each: what every timestep may spend.

    The dual bound: for any weights, masks within every step's limit are within the weighted sum of the
    limits, for which the prefix is the optimum (up to one weight where SynOps are the worth).
    """
    everywhere = Limit("distortion", np.eye(T), np.full(T, each))

    def judge(w: Array) -> tuple[Prefix, Array, float, float]:
        feasible = select(layers, [everywhere], w)
        relaxed = select(layers, [Limit("distortion", w[:, None], np.array([each]))], w)
        # Minus what is removed, so that both problems minimise; the ascent follows the relaxed one's steps.
        removed = float(feasible.counts @ worth), float(relaxed.counts @ worth)
        return feasible, relaxed.spent.sum(0), -removed[0], -removed[1]

    return _ascend(judge, T)


def _ascend(judge: Callable[[Array], tuple[Prefix, Array, float, float]], T: int) -> tuple[Prefix, Steps]:
    w = np.full(T, 1 / T)
    best, D, value, bound = judge(w)
    best_w = w
    for round_ in range(ROUNDS):
        if value - bound <= CLOSE * abs(value) or D.max() == 0:
            break
        w = w * np.exp((D - D.max()) / D.max() * 4 / np.sqrt(1 + round_))
        w /= w.sum()
        prefix, D, this_value, this_bound = judge(w)
        bound = max(bound, this_bound)
        if this_value < value:
            best, value, best_w = prefix, this_value, w
    gap = max(0.0, value - bound) / abs(value) if value else 0.0
    return best, Steps(tuple(best_w.tolist()), gap)
