"""Policies that draw by a score, uniformly, or not at all: SADP, InfoBatch and their plain rivals."""

import numpy as np
from numpy.typing import NDArray

from pruning.examples.inclusion import thinned, thinned_to
from pruning.examples.policies.base import Policy
from pruning.examples.sampling import Doubles


class Full(Policy):
    """Every example in every epoch."""

    name = "full"

    def is_full(self, epoch: int) -> bool:
        """Always."""
        super().is_full(epoch)
        return True


class Random(Policy):
    """A uniform subset, a new draw for every epoch."""

    name = "random"

    def is_uniform(self, epoch: int) -> bool:
        """Always: ``m / N`` for every present example."""
        return True


class Sadp(Policy):
    """Drawn by the spike-aware importance score: a bound of the example's gradient norm."""

    name = "sadp"
    score = "sadp"
    weight_power = 0.5


class El2n(Policy):
    """Drawn by the norm of the error vector (the score of Paul et al. 2021, arXiv 2107.07075)."""

    name = "el2n"
    score = "el2n"
    weight_power = 0.5


class Loss(Policy):
    """Drawn by the loss."""

    name = "loss"
    score = "loss"
    weight_power = 0.5


class Infobatch(Policy):
    """InfoBatch (Qin et al. 2024, arXiv 2303.04947): losses below the mean are thinned, the rest stays.

    An example below the mean loss is left out with probability ``r``; weights are inversely proportional to
    the inclusion probabilities, as InfoBatch's rescaling makes them, in this package's scale (1 on average
    over the subset; InfoBatch's own are ``N / m`` times that, which acts as a higher learning rate). Its
    annealing (the last eighth of the epochs) is the shared ``anneal_epochs``.
    """

    name = "infobatch"
    score = "loss"

    def importance(self, epoch: int) -> tuple[Doubles, int]:
        """Two probabilities: one below the mean loss, one above."""
        return thinned(self._low(), self.settings.ratio_at(epoch), self.settings.present)

    def examples(self, epoch: int) -> float:
        """By the present share of low losses; by a half of all before any is known."""
        share = self._low().sum() / self.settings.num_present if np.isfinite(self.scores).any() else 0.5
        return float(1 - self.settings.ratio_at(epoch) * share)

    def _low(self) -> NDArray[np.bool_]:
        """Losses below the mean of the known ones; an unknown loss is not low."""
        known = np.isfinite(self.scores)
        if self.settings.present is not None:
            known &= self.settings.present
        if not known.any():
            return np.zeros(self.settings.num_examples, bool)
        return known & (self.scores < self.scores.mean(where=known, dtype=np.float64))


class InfobatchMatched(Infobatch):
    """InfoBatch's two probabilities, scaled down together until ``m = (1 - r) N`` examples are left.

    Our adaptation, for comparisons at one budget: InfoBatch itself keeps more of the data. At high ratios its
    weights spread far more than InfoBatch's, so they are tempered (docs/results/sadp-training.md).
    """

    name = "infobatch_matched"
    weight_power = 0.5

    def importance(self, epoch: int) -> tuple[Doubles, int]:
        """In the ratio ``1 - r`` to 1, below and above the mean loss.

        Where rounding makes ``m`` more than that ratio gives, the high ones are certain and the low ones
        share what is left.
        """
        return thinned_to(
            self.settings.size_at(epoch), self._low(), self.settings.ratio_at(epoch), self.settings.present
        )

    def examples(self, epoch: int) -> float:
        """As of any policy with a fixed budget."""
        return Policy.examples(self, epoch)
