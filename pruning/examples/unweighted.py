"""Policies whose subset is chosen, not drawn with known probabilities: all weights are 1."""

import numpy as np
from numpy.typing import NDArray

from pruning.examples.inclusion import Bools
from pruning.examples.plan import Plan
from pruning.examples.policy import Policy
from pruning.examples.sampling import STREAM_SUBSET, STREAM_TIES, Doubles, Ints, hash64


class Unweighted(Policy):
    """A subset with weights 1: what biased policies share. `chosen` is theirs to define."""

    def chosen(self, epoch: int) -> Ints:
        """Positions of the examples of a pruned epoch, ascending."""
        raise NotImplementedError

    def random_part(self, at: Ints, size: int, epoch: int) -> Ints:
        """A uniform subset of ``size`` of the positions (of all, if there are fewer), ascending.

        Hashes of the ids decide, whatever their order.
        """
        if size >= len(at):
            return np.sort(at)
        keys = hash64(self.settings.seed, epoch, at + self.settings.first_id, STREAM_SUBSET)
        return np.sort(at[np.argpartition(keys, size)[:size]])

    def select(self, epoch: int) -> Plan:
        """The chosen, with weights 1."""
        at = self.chosen(epoch)
        return Plan(
            epoch,
            at + self.settings.first_id,
            np.ones(len(at), np.float32),
            None,
            False,
            self.mean_score_age(epoch),
            self.num_missing(),
        )

    def importance(self, epoch: int) -> tuple[Doubles, int]:
        """1 for the chosen, 0 for the rest."""
        at = self.chosen(epoch)
        pi = np.zeros(self.settings.num_examples)
        pi[at] = 1.0
        return pi, len(at)


def highest(
    scores: NDArray[np.floating], size: int, seed: int, present: Bools | None = None, epoch: int = 0
) -> Ints:
    """Positions of the ``size`` highest scores, ascending; a hash breaks ties, NaN counts as highest."""
    at = np.arange(len(scores)) if present is None else np.flatnonzero(present)
    values = np.nan_to_num(scores[at].astype(np.float64), nan=np.inf, posinf=np.inf)
    threshold = np.partition(values, len(values) - size)[len(values) - size]
    sure, tied = at[values > threshold], at[values == threshold]
    order = np.argsort(hash64(seed, epoch, tied, STREAM_TIES))
    return np.sort(np.concatenate([sure, tied[order[: size - len(sure)]]]))
