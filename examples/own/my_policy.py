"""A data-pruning policy of one's own: SADP's importance, flattened."""

import numpy as np

from pruning.examples.inclusion import inclusion_probabilities
from pruning.examples.policies import Policy


class Flattened(Policy):
    """Draws by the square root of the SADP score: milder weights, less variance where scores are rough."""

    score = "sadp"

    def importance(self, epoch: int) -> tuple[np.ndarray, int]:
        """Inclusion probabilities ``[N]`` and their sum."""
        s = self.settings
        size = s.size_at(epoch)
        return inclusion_probabilities(np.sqrt(self.scores), size, alpha=s.alpha, present=s.present), size
