"""What a policy decides for an epoch, and what the epoch costs."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pruning.examples.sampling import POWER_UNIT, Doubles, Ints, power_sum, tempered


@dataclass(frozen=True, eq=False)
class Plan:
    """The examples of one epoch, in ascending order of id."""

    epoch: int
    """The epoch that it is for."""
    ids: Ints
    """``[m]``."""
    weights: NDArray[np.float32]
    """How often an example counts: in batch statistics and, to a power, in the loss; ``[m]``.
    Horvitz-Thompson where the design is random, unless the policy has weights of its own."""
    probabilities: Doubles | None
    """Inclusion probabilities ``[m]``; ``None`` where nothing is drawn."""
    full: bool
    """Whether it holds every present example."""
    mean_score_age: float | None
    """Epochs between the weights that made the scores and this epoch, on average; ``None`` without scores."""
    replaced_scores: int = 0
    """Present examples whose score was missing or not finite."""
    weight_power: float = 1.0
    """Power of the weights in the loss."""

    @property
    def mean_power(self) -> float:
        """Mean over the subset of the weights to their power."""
        if self.weight_power == 1 or not len(self.weights):
            return 1.0
        return power_sum(self.weights, self.weight_power) / POWER_UNIT / len(self.weights)

    @property
    def loss_weights(self) -> NDArray[np.float32]:
        """``weights`` to their power, rescaled to mean 1 over the subset, ``[m]``; as they are at power 1."""
        return tempered(self.weights, self.weight_power, self.mean_power)


@dataclass(frozen=True)
class Cost:
    """What an epoch costs, in units of a full training epoch."""

    examples: float
    """Share of the examples that are trained on."""
    scoring: float
    """Scoring pass before the epoch."""

    @property
    def total(self) -> float:
        """Both together."""
        return self.examples + self.scoring
