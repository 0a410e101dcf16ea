"""Budget, sparsity and SynOps targets as limits on the common order of all layers."""

from collections.abc import Sequence
from math import floor
from typing import Literal

import numpy as np

from pruning.weights.calibration import Calibration
from pruning.weights.criteria import LayerRule, Objective
from pruning.weights.ranking import LayerRanking
from pruning.weights.selection import Limit, Prefix, select
from pruning.weights.timesteps import Steps, least_maximum, within_steps

BudgetOver = Literal["sum", "max_t"]

_SLACK = 1 + 1e-12
"""Room for the rounding of sums in a budget."""


class Target:
    """Turns each kind of target into limits on the common order of ``layers``."""

    def __init__(
        self,
        layers: Sequence[LayerRanking],
        rules: Sequence[LayerRule],
        numel: np.ndarray,
        price: np.ndarray | None,
        names: Sequence[str],
        exclude: Sequence[str],
        budget_over: BudgetOver,
        calibration: Calibration | None,
    ) -> None:
        self.layers, self.numel, self.price, self.budget_over = layers, numel, price, budget_over
        self.c = np.array([rule.coefficient for rule in rules])
        T = 1 if calibration is None else calibration.T
        profiles = np.array([rule.profile or (1 / T,) * T for rule in rules])
        self.c_LT = self.c[:, None] * profiles
        self.total = float(sum(c for c, name in zip(self.c, names, strict=True) if name not in exclude))
        self.survivors = np.array([layer.survivors for layer in layers])
        self.candidates = np.array([layer.candidates for layer in layers])
        self.adaptive = all(rule.score == "distortion" for rule in rules)

    def budget(self, budget: float, objective: Objective) -> tuple[Prefix, Steps | None]:
        """The longest prefix whose distortion is within the budget."""
        epsilon = budget * self.total * _SLACK
        whole = Limit("phi", self.c[:, None], np.array([epsilon]))
        steps = None
        if self.budget_over == "sum":
            prefix = select(self.layers, list(self.c), [whole])
        else:
            worth = self.price if objective == "synops" and self.price is not None else np.ones(len(self.c))
            prefix, steps = within_steps(
                self.layers, self.c_LT, worth=worth, each=epsilon / self.c_LT.shape[1], adaptive=self.adaptive
            )
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
        if self.budget_over == "sum":
            return float(self.c @ prefix.phi / self.total)
        return float((prefix.phi @ self.c_LT).max() * self.c_LT.shape[1] / self.total)

    def _smallest_budget(self) -> str:
        one = select(self.layers, list(self.c), [Limit("count", np.ones((len(self.c), 1)), np.array([1.0]))])
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
        return self._reach(Limit("count", np.ones((len(self.c), 1)), np.array([float(wanted)])))

    def synops(self, fraction: float) -> tuple[Prefix, Steps | None]:
        """The shortest prefix that leaves at most the wanted SynOps."""
        assert self.price is not None
        dense = self.price @ self.numel
        needed = self.price @ self.survivors - fraction * dense
        if needed <= dense * 1e-12:
            nothing = np.zeros(len(self.c), dtype=np.int64)
            return Prefix(nothing, nothing.astype(float), None), None
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
        def choose(coefficients: Sequence[float]) -> Prefix:
            prefix = select(self.layers, coefficients, [limit])
            if not one_more or prefix.next_layer is None:
                return prefix
            counts, i = prefix.counts.copy(), prefix.next_layer
            counts[i] += 1
            phi = prefix.phi.copy()
            phi[i] = self.layers[i].ranked(coefficients[i]).phi[counts[i] - 1]
            return Prefix(counts, phi, None)

        if self.budget_over == "sum":
            return choose(list(self.c)), None
        return least_maximum(choose, self.c_LT, adaptive=self.adaptive)
