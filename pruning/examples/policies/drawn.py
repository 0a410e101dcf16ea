"""Policies that draw by a score, uniformly, or not at all: SADP, InfoBatch and their plain rivals."""

import numpy as np

from pruning.examples.inclusion import Bools
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


class Thinned(Policy):
    """Examples whose loss is low are left out with probability ``r``, the rest stays; `low` says which."""

    score = "loss"

    def low(self, epoch: int) -> Bools:
        """Mask ``[N]`` of the present examples to thin."""
        raise NotImplementedError

    def importance(self, epoch: int) -> tuple[Doubles, int]:
        """``1 - r`` for the low, rounded so that the sum is an integer, 1 for the rest."""
        s, low = self.settings, self.low(epoch)
        n_low = int(low.sum())
        kept = max(1, round((1 - s.ratio_at(epoch)) * n_low)) if n_low else 0
        pi = np.where(low, kept / max(n_low, 1), 1.0)
        if s.present is not None:
            pi[~s.present] = 0.0
        return pi, s.num_present - n_low + kept


class Matched(Thinned):
    """The two probabilities scaled down together to ``m = (1 - r) N`` examples, for comparison at one budget.

    Where rounding makes ``m`` more than they give, the rest is certain and the low share what is left.
    """

    def importance(self, epoch: int) -> tuple[Doubles, int]:
        """In the ratio ``1 - r`` to 1."""
        s, low = self.settings, self.low(epoch)
        size, pi = s.size_at(epoch), np.where(low, 1 - s.ratio_at(epoch), 1.0)
        if s.present is not None:
            pi[~s.present] = 0.0
        if size <= pi.sum():
            return pi * (size / pi.sum()), size
        certain = pi.sum(where=~low)
        return np.where(low, (size - certain) / max(low.sum(), 1), pi), size

    def examples(self, epoch: int) -> float:
        """As of any policy with a fixed budget."""
        return Policy.examples(self, epoch)


class Infobatch(Thinned):
    """InfoBatch (Qin et al. 2024, arXiv 2303.04947): losses below the mean are thinned, the rest stays.

    An example below the mean loss is left out with probability ``r``; weights are inversely proportional to
    the inclusion probabilities, as InfoBatch's rescaling makes them, in this package's scale (1 on average
    over the subset; InfoBatch's own are ``N / m`` times that, which acts as a higher learning rate). Its
    annealing (the last eighth of the epochs) is the shared ``anneal_epochs``.
    """

    name = "infobatch"

    def examples(self, epoch: int) -> float:
        """By the present share of low losses; by a half of all before any is known."""
        share = self.low(epoch).sum() / self.settings.num_present if np.isfinite(self.scores).any() else 0.5
        return float(1 - self.settings.ratio_at(epoch) * share)

    def low(self, epoch: int) -> Bools:
        """Losses below the mean of the known ones; an unknown loss is not low."""
        known = self.settings.among_present(np.isfinite(self.scores))
        if not known.any():
            return known
        return known & (self.scores < self.scores.mean(where=known, dtype=np.float64))


class InfobatchMatched(Matched, Infobatch):
    """InfoBatch at a fixed budget, our adaptation: InfoBatch itself keeps more of the data.

    At high ratios its weights spread far more than InfoBatch's, so they are tempered
    (docs/results/sadp-training.md).
    """

    name = "infobatch_matched"
    weight_power = 0.5
