"""Budget, sparsity and SynOps targets as limits on the common order of all layers."""

from collections.abc import Sequence
from math import floor
from typing import Literal

import numpy as np

from pruning.weights.criteria import LayerRule, Objective
from pruning.weights.order import Array, LayerRanking, Limit, Prefix, select
from pruning.weights.timesteps import Steps, least_maximum, within_steps

BudgetOver = Literal["sum", "max_t"]

_SLACK = 1 + 1e-12
"""Room for the rounding of sums in a budget."""


class Target:
    """Turns each kind of target into limits on the common order of ``layers``.

    Args:
        layers: in forward order.
        rules: of the layers.
        numel: weights of each dense layer, ``[L]``.
        price: SynOps per weight by layer, ``[L]``; None without a calibration.
        included: by layer, whether it may be pruned at all.
        budget_over: ``sum``, or ``max_t`` where all rules have curves.
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
        c = [rule.coefficient for rule, own in zip(rules, included, strict=True) if own]
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
            prefix = select(self.layers, [Limit("distortion", np.ones((self.T, 1)), np.array([epsilon]))])
        else:
            priced = objective == "synops" and self.price is not None
            worth = self.price if priced and self.price is not None else np.ones(len(self.layers))
            prefix, steps = within_steps(self.layers, self.T, worth=worth, each=epsilon / self.T)
        if prefix.counts.any() and (prefix.counts == self.candidates).all():
            largest = self.spent(prefix)
            if budget > largest * _SLACK:
                raise ValueError(
                    f"budget: {budget:g} is more than pruning everything that may be pruned costs;"
                    f" the largest possible is {largest * (1 - 6e-6):.6g}"
                )
        if not prefix.counts.any():
            raise ValueError(
                f"budget: {budget:g} does not pay for a single weight; {self._smallest_budget()}"
            )
        return prefix, steps

    def spent(self, prefix: Prefix) -> float:
        """Distortion over the sum of coefficients: all of it, or ``T`` times the worst timestep's."""
        if not self.total:
            return 0.0
        by_step = prefix.spent.sum(0)
        return float((by_step.sum() if self.budget_over == "sum" else by_step.max() * self.T) / self.total)

    def _count(self, most: float) -> Limit:
        return Limit("count", np.ones((len(self.layers), 1)), np.array([most]))

    def _smallest_budget(self) -> str:
        one = select(self.layers, [self._count(1.0)])
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
        return self._reach(self._count(float(wanted)))

    def synops(self, fraction: float) -> tuple[Prefix, Steps | None]:
        """The shortest prefix that leaves at most the wanted SynOps."""
        assert self.price is not None
        dense = self.price @ self.numel
        needed = self.price @ self.survivors - fraction * dense
        if needed <= dense * 1e-12:
            L = len(self.layers)
            return Prefix(np.zeros(L, dtype=np.int64), np.zeros((L, self.T)), None), None
        least = self.price @ (self.survivors - self.candidates)
        if least > fraction * dense * _SLACK:
            raise ValueError(
                f"synops_fraction: {fraction:g} cannot be reached with the protected weights and layers;"
                f" the smallest possible is {np.ceil(least / dense * 1e6) / 1e6:.6f}"
            )
        # The longest prefix that still removes too little, and one weight more.
        below = Limit("count", self.price[:, None], np.array([needed * (1 - 1e-12)]), strict=True)
        return self._reach(below, one_more=True)

    def _reach(self, limit: Limit, *, one_more: bool = False) -> tuple[Prefix, Steps | None]:
        def choose(weights: Array | None) -> Prefix:
            prefix = select(self.layers, [limit], weights)
            if not one_more or prefix.next_layer is None:
                return prefix
            counts, spent, i = prefix.counts.copy(), prefix.spent.copy(), prefix.next_layer
            counts[i] += 1
            spent[i] = self.layers[i].ranked(weights).spent(counts[i : i + 1])[0]
            return Prefix(counts, spent, None)

        if self.budget_over == "sum":
            return choose(None), None
        return least_maximum(choose, self.T)
