"""Budget, sparsity and SynOps targets as prefixes of the common order of all layers.

Budgets that hold at every timestep, where the distortion is ``D_t = sum_l D_lt``, put Lagrange weights ``w``
on the steps, by mirror ascent on the dual (docs/methods-slamp.md, section 4).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import floor
from typing import Literal

import numpy as np

from pruning.weights.criteria import LayerRule, Objective
from pruning.weights.order import Array, LayerRanking, Order, Prefix

BudgetOver = Literal["sum", "max_t"]

ROUNDS = 60
CLOSE = 1e-4
"""Relative gap at which the ascent stops."""
_SLACK = 1 + 1e-12
"""Room for the rounding of sums in a budget."""

Judged = tuple[Prefix, Array, float, float]
"""A prefix, the distortions ``[T]`` that the ascent follows, the prefix's value and the dual bound."""


@dataclass(frozen=True)
class Steps:
    """How a budget over timesteps was met."""

    weights: tuple[float, ...]
    """Lagrange weights of the timesteps, adding up to 1."""
    gap: float
    """Relative duality gap."""


class Target:
    """Turns each kind of target into a prefix of the common order of ``layers``.

    By layer, in forward order: weights of the dense layer (``numel``), SynOps per weight (``price``, with a
    calibration), and whether it may be pruned at all (``included``). ``max_t`` needs rules with curves.
    """

    def __init__(
        self,
        layers: Sequence[LayerRanking],
        rules: Sequence[LayerRule],
        numel: Array,
        price: Array | None,
        included: Sequence[bool],
        budget_over: BudgetOver,
    ) -> None:
        self.layers, self.numel, self.price, self.budget_over = layers, numel, price, budget_over
        # Budgets are over the sum of coefficients; curves are in units of the logits' variance as they are.
        self.coefficients = [rule.coefficient for rule in rules]
        c = [value for value, own in zip(self.coefficients, included, strict=True) if own]
        curves = [rule.curve for rule in rules if rule.curve is not None]
        self.total = 1.0 if curves else float(sum(c))
        self.T = len(curves[0].distortion[0]) if curves else 1
        self.survivors = np.array([layer.survivors for layer in layers])
        self.candidates = np.array([layer.candidates for layer in layers])

    def budget(self, budget: float, objective: Objective) -> tuple[Prefix, Steps | None]:
        """The longest prefix whose distortion is within the budget."""
        epsilon = budget * self.total * _SLACK
        steps = None
        if self.budget_over == "sum":
            prefix = Order(self.layers).within(epsilon)
        else:
            worth = np.ones(len(self.layers))
            if objective == "synops" and self.price is not None:
                worth = self.price
            prefix, steps = within_steps(self.layers, self.T, worth=worth, each=epsilon / self.T)
        if not prefix.counts.any():
            raise ValueError(
                f"budget: {budget:g} does not pay for a single weight; {self._smallest_budget()}"
            )
        largest = self.spent(prefix)
        if (prefix.counts == self.candidates).all() and budget > largest * _SLACK:
            raise ValueError(
                f"budget: {budget:g} is more than pruning everything that may be pruned costs;"
                f" the largest possible is {largest * (1 - 6e-6):.6g}"
            )
        return prefix, steps

    def spent(self, prefix: Prefix) -> float:
        """Distortion over the sum of coefficients: all of it, or ``T`` times the worst timestep's."""
        if not self.total:
            return 0.0
        by_step = prefix.spent.sum(0)
        return float((by_step.sum() if self.budget_over == "sum" else by_step.max() * self.T) / self.total)

    def synops_left(self, prefix: Prefix) -> float | None:
        """SynOps of the kept weights over those of all; None without prices."""
        if self.price is None or not self.price @ self.numel > 0:
            return None
        return float(self.price @ (self.survivors - prefix.counts) / (self.price @ self.numel))

    def _smallest_budget(self) -> str:
        one = Order(self.layers).first(1)
        if not one.counts.any():
            return "the protected layers leave nothing to prune"
        return f"the nearest possible is {self.spent(one) * (1 + 6e-6):.6g}"

    def sparsity(self, sparsity: float) -> tuple[Prefix, Steps | None]:
        """The prefix with exactly the wanted number of weights."""
        N = int(self.numel.sum())
        before = N - int(self.survivors.sum())
        wanted = round(sparsity * N) - before
        if wanted < 0:
            raise ValueError(f"sparsity: {sparsity:g} is below the {before / N:.6g} of the previous masks")
        reachable = int(self.candidates.sum())
        if wanted > reachable:
            raise ValueError(
                f"sparsity: {sparsity:g} cannot be reached with the protected weights and layers;"
                f" the largest possible is {floor((before + reachable) / N * 1e6) / 1e6:.6f}"
            )
        return self._reach(lambda order: wanted)

    def synops(self, fraction: float) -> tuple[Prefix, Steps | None]:
        """The shortest prefix that leaves at most the wanted SynOps."""
        price = self.price
        assert price is not None
        dense = price @ self.numel
        needed = price @ self.survivors - fraction * dense
        if needed <= dense * 1e-12:
            return Order(self.layers).first(0), None
        least = price @ (self.survivors - self.candidates)
        if least > fraction * dense * _SLACK:
            raise ValueError(
                f"synops_fraction: {fraction:g} cannot be reached with the protected weights and layers;"
                f" the smallest possible is {np.ceil(least / dense * 1e6) / 1e6:.6f}"
            )

        def length(order: Order) -> int:
            """The longest prefix that still removes too little, and one weight more."""
            removed = np.cumsum(price[order.owner])
            return int(np.searchsorted(removed, needed * (1 - 1e-12))) + 1

        return self._reach(length)

    def _reach(self, length: Callable[[Order], int]) -> tuple[Prefix, Steps | None]:
        def choose(weights: Array | None) -> Prefix:
            order = Order(self.layers, weights)
            return order.first(length(order))

        if self.budget_over == "sum":
            return choose(None), None
        return least_maximum(choose, self.T)


def least_maximum(choose: Callable[[Array], Prefix], T: int) -> tuple[Prefix, Steps]:
    """Of the prefixes that ``choose`` makes for weights on the timesteps, one of least ``max_t D_t``.

    The dual bound is ``max_w min_masks sum_t w_t D_t`` (up to one weight where SynOps are the target).
    """

    def judge(w: Array) -> Judged:
        prefix = choose(w)
        D = prefix.spent.sum(0)
        return prefix, D, float(D.max()), float(w @ D)

    return _ascend(judge, T)


def within_steps(
    layers: Sequence[LayerRanking], T: int, *, worth: Array, each: float
) -> tuple[Prefix, Steps]:
    """Of the prefixes with every ``D_t <= each``, one that removes the most, weighted by ``worth`` ``[L]``.

    The dual bound: for any weights, masks within every step's limit are within the weighted sum of the
    limits, for which the prefix is the optimum (up to one weight where SynOps are the worth).
    """

    def judge(w: Array) -> Judged:
        order = Order(layers, w)
        feasible, relaxed = order.within_each(each), order.within(each, w)
        # Minus what is removed, so that both problems minimise; the ascent follows the relaxed one's steps.
        return feasible, relaxed.spent.sum(0), -float(feasible.counts @ worth), -float(relaxed.counts @ worth)

    return _ascend(judge, T)


def _ascend(judge: Callable[[Array], Judged], T: int) -> tuple[Prefix, Steps]:
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
