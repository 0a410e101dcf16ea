"""Policies whose subset is chosen, not drawn with known probabilities: all weights are 1."""

from math import sqrt

import numpy as np
from numpy.typing import NDArray

from pruning.examples.inclusion import Bools
from pruning.examples.policies.base import Plan, Policy
from pruning.examples.policies.settings import Settings
from pruning.examples.sampling import STREAM_SUBSET, STREAM_TIES, Doubles, Ints, hash64


class Unweighted(Policy):
    """A subset with weights 1: what biased policies share. `chosen` is theirs to define."""

    def chosen(self, epoch: int) -> Ints:
        """Positions of the examples of a pruned epoch, ascending."""
        raise NotImplementedError

    def random_part(self, at: Ints, size: int, epoch: int) -> Ints:
        """A uniform subset of ``size`` of the positions (of all, if there are fewer), ascending.

        Hashes decide, whatever their order.
        """
        if size >= len(at):
            return np.sort(at)
        keys = hash64(self.settings.seed, epoch, at, STREAM_SUBSET)
        return np.sort(at[np.argpartition(keys, size)[:size]])

    def select(self, epoch: int) -> Plan:
        """The chosen, with weights 1."""
        at = self.chosen(epoch)
        return self._with_scores(Plan(epoch, at, np.ones(len(at), np.float32)))

    def importance(self, epoch: int) -> tuple[Doubles, int]:
        """1 for the chosen, 0 for the rest."""
        at = self.chosen(epoch)
        pi = np.zeros(self.settings.num_examples)
        pi[at] = 1.0
        return pi, len(at)


class Highest(Unweighted):
    """The ``m`` highest values, unweighted. `values` is the policy's to define."""

    def chosen(self, epoch: int) -> Ints:
        """The ``m`` highest."""
        s = self.settings
        return highest(self.values(epoch), s.size_at(epoch), s.seed, s.present)

    def values(self, epoch: int) -> NDArray[np.floating]:
        """What decides, ``[N]``; NaN counts as highest."""
        return self.scores


class Static(Highest):
    """One subset for all scored epochs: the highest scores as the first of them starts, unweighted.

    A biased design, the classic coreset; a rival, not a recommendation.

    Args:
        settings: shared settings.
        score: a registered score, or ``None`` for a random subset.
    """

    name = "static"
    rescore_every = 1

    def __init__(self, settings: Settings, *, score: str | None = "el2n") -> None:
        self.score = score
        super().__init__(settings)

    def values(self, epoch: int) -> NDArray[np.floating]:
        """The scores; all alike without a score, so that hashes decide."""
        return self.scores if self.score else np.zeros(self.settings.num_examples)

    def pass_due(self, epoch: int) -> bool:
        """Only before the first scored epoch."""
        return epoch == self.settings.first_scored and super().pass_due(epoch)

    def accept(self, at: Ints, scores: NDArray[np.float32], stamp: int) -> None:
        """Scores made after the first scored epoch has started are not looked at."""
        if stamp <= 2 * self.settings.first_scored:
            super().accept(at, scores, stamp)


class Ucb(Highest):
    """Upper confidence bound: the highest smoothed losses plus a bonus for rarely seen examples, unweighted.

    After Raju et al. 2021 (arXiv 2111.12621), in our formula: ``mean + c sd sqrt(2 log(E) / visits)`` with
    the moving average of an example's losses, the standard deviation over examples, and ``E`` epochs so far.
    A biased design; a rival, not a recommendation.

    Args:
        settings: shared settings.
        exploration: ``c``, not negative.
        smoothing: weight of the past in the moving average, in [0, 1).
    """

    name = "ucb"
    score = "loss"

    def __init__(self, settings: Settings, *, exploration: float = 0.1, smoothing: float = 0.8) -> None:
        if exploration < 0:
            raise ValueError(f"exploration: {exploration!r} must not be negative")
        if not 0 <= smoothing < 1:
            raise ValueError(f"smoothing: {smoothing!r} must be in [0, 1)")
        self.exploration = exploration
        self.smoothing = smoothing
        self.visits = np.zeros(settings.num_examples, np.int32)
        super().__init__(settings)

    def values(self, epoch: int) -> NDArray[np.floating]:
        """The bounds; examples never seen come first."""
        known = np.isfinite(self.scores)
        spread = float(self.scores.std(where=known, dtype=np.float64)) if known.any() else 0.0
        with np.errstate(divide="ignore", invalid="ignore"):
            bonus = np.sqrt(2 * np.log(max(epoch, 1) + 1) / self.visits)
            return self.scores + self.exploration * spread * bonus

    def accept(self, at: Ints, scores: NDArray[np.float32], stamp: int) -> None:
        """Move the average towards the new loss."""
        past = np.where(np.isfinite(self.scores[at]), self.smoothing, 0).astype(np.float32)
        old = np.nan_to_num(self.scores[at])
        finite = np.isfinite(scores)
        super().accept(at[finite], (past * old + (1 - past) * scores)[finite], stamp)
        self.visits[at[finite]] += 1

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """With the number of visits."""
        return {**super().arrays(), "visits": self.visits}


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


class Orderdp(Unweighted):
    """OrderDP (Jin et al., ICLR 2026, arXiv 2606.08574): the ``m`` highest losses of a random subset.

    Each epoch draws s of the N examples uniformly and trains on the m of them whose last known losses are the
    highest, with weights 1: biased for the mean loss, unbiased for the paper's surrogate, in which a loss
    weighs by the chance that its rank is selected. The paper needs no annealing (set ``anneal_epochs`` to 0).
    Its default is s = 0.5 N and m = 0.6 s, that is r = 0.7; its code has other pairs for other ratios, and
    ``s = sqrt(m N)`` comes close to them. We know the rule from that code and a detailed summary, and could
    not verify the pairs behind the paper's tables.

    Args:
        settings: shared settings.
        candidates: ``s / N``, from ``m / N`` to 1; ``sqrt(m / N)`` when not given.
    """

    name = "orderdp"
    score = "loss"

    def __init__(self, settings: Settings, *, candidates: float | None = None) -> None:
        super().__init__(settings)
        keep = 1 - min(settings.ratio, settings.ratio if settings.ratio_from is None else settings.ratio_from)
        if candidates is not None and not 0 < candidates <= 1:
            raise ValueError(f"candidates: {candidates!r} must be in (0, 1]")
        if candidates is not None and candidates < keep:
            raise ValueError(f"candidates: {candidates!r} must be at least 1 - ratio, {keep:.3g}")
        self.candidates = candidates

    def chosen(self, epoch: int) -> Ints:
        """The highest losses among the candidates."""
        s, size = self.settings, self.settings.size_at(epoch)
        share = sqrt(size / s.num_present) if self.candidates is None else self.candidates
        candidates = np.zeros(s.num_examples, bool)
        drawn = max(size, round(share * s.num_present))
        candidates[self.random_part(s.positions, drawn, epoch)] = True
        return highest(self.scores, size, s.seed, candidates, epoch)
