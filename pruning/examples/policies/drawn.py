"""Policies that draw by a score, uniformly, or not at all: SADP and its plain rivals."""

from pruning.examples.policies.base import Policy


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
