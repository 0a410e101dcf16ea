"""SeTa: a window that slides over groups of examples of like difficulty."""

from math import ceil

import numpy as np

from pruning.examples.policies.base import Policy
from pruning.examples.policies.chosen import Unweighted
from pruning.examples.policies.settings import Settings
from pruning.examples.sampling import STREAM_TIES, Doubles, Ints, hash64

_SAMPLE = 1 << 16
_MAX_ROUNDS = 300


class Seta(Unweighted):
    """SeTa (Zhou et al., CVPR 2025, arXiv 2503.13385): a sliding window over groups of like difficulty.

    A uniform share ``1 - r`` of the examples is clustered by loss into k groups (k-means). An epoch trains
    on ``ceil(window k)`` consecutive ones; each epoch the window moves up by one group, until it starts again
    at the easiest. The annealing epochs train on a uniform share ``1 - r``. Weights are 1, so the policy is
    biased. Defaults are those of the authors' code, whose scripts have others (5 groups, windows of 0.6 and
    0.9); which ones the paper's tables used we could not verify. K-means starts from quantiles here, and an
    example whose loss is unknown is in every window.

    Args:
        settings: shared settings; ``ratio`` is what the random step leaves out, the window leaves out more.
        groups: ``k``, at least 1.
        window: share of the groups that an epoch trains on, in (0, 1].
    """

    name = "seta"
    score = "loss"
    partial_annealing = True

    def __init__(self, settings: Settings, *, groups: int = 10, window: float = 0.5) -> None:
        if not isinstance(groups, int) or groups < 1:
            raise ValueError(f"groups: {groups!r} must be a whole number of at least 1")
        if not 0 < window <= 1:
            raise ValueError(f"window: {window!r} must be in (0, 1]")
        self.groups = groups
        self.window = window
        super().__init__(settings)

    def is_full(self, epoch: int) -> bool:
        """As of any policy, except that annealing is partial."""
        s, full = self.settings, super().is_full(epoch)
        return full and (
            not self.partial_annealing or epoch < s.warmup_epochs or not (s.ratio or s.ratio_from)
        )

    def is_uniform(self, epoch: int) -> bool:
        """Before ``score_from``, and in the partial annealing."""
        s = self.settings
        return super().is_uniform(epoch) or (self.partial_annealing and epoch >= s.epochs - s.anneal_epochs)

    def chosen(self, epoch: int) -> Ints:
        """The window's part of a random subset."""
        return self._windowed(
            self.random_part(self.settings.positions, self.settings.size_at(epoch), epoch), epoch
        )

    def examples(self, epoch: int) -> float:
        """By the losses as they are (at most 65,536 of them); before any is known, groups count as equal."""
        s, size = self.settings, self.settings.size_at(epoch)
        share = size / s.num_present
        if not np.isfinite(self.scores).any():
            return share * _width(self.window, self.groups) / self.groups
        at = self.random_part(s.positions, min(size, _SAMPLE), epoch)
        return share * len(self._windowed(at, epoch)) / len(at)

    def _windowed(self, at: Ints, epoch: int) -> Ints:
        unknown, ordered = self._ordered(at, epoch)
        low, high = self._bounds(ordered, epoch, at_least=0 if len(unknown) else 1)
        return np.sort(np.concatenate([unknown, ordered[low:high]]))

    def _ordered(self, at: Ints, epoch: int) -> tuple[Ints, Ints]:
        """Positions whose loss is unknown, and the rest in ascending order of loss, ties by hash."""
        s, known = self.settings, np.isfinite(self.scores[at])
        rest = at[known]
        rest = rest[np.argsort(hash64(s.seed, epoch, rest, STREAM_TIES))]
        return at[~known], rest[np.argsort(self.scores[rest], kind="stable")]

    def _bounds(self, ordered: Ints, epoch: int, at_least: int) -> tuple[int, int]:
        """Where the window begins and ends in ``ordered``; widened if it holds too few."""
        groups, low, high = min(self.groups, len(ordered)), 0, 0
        if groups:
            bounds = group_bounds(self.scores[ordered].astype(np.float64), groups)
            width = _width(self.window, groups)
            start = epoch % (groups - width + 1)
            low, high = int(bounds[start]), int(bounds[start + width])
        missing = at_least - (high - low)
        if missing > 0:
            low = min(max(low - missing // 2, 0), len(ordered) - at_least)
            high = low + at_least
        return low, high


class SetaMatched(Seta):
    """SeTa's window over the losses of all examples, and exactly ``m = (1 - r) N`` at random from it.

    Our adaptation, for comparisons at one budget: the window is widened on both sides where it holds fewer,
    and the annealing epochs are full, as with the other policies.
    """

    name = "seta_matched"
    partial_annealing = False

    def chosen(self, epoch: int) -> Ints:
        """A random part of the window."""
        size = self.settings.size_at(epoch)
        unknown, ordered = self._ordered(self.settings.positions, epoch)
        low, high = self._bounds(ordered, epoch, at_least=max(0, size - len(unknown)))
        return self.random_part(np.concatenate([unknown, ordered[low:high]]), size, epoch)

    def examples(self, epoch: int) -> float:
        """As of any policy with a fixed budget."""
        return Policy.examples(self, epoch)


def _width(window: float, groups: int) -> int:
    """Groups in a window; a share that is a whole number of groups, up to rounding, is that number."""
    return max(1, ceil(window * groups - 1e-9))


def group_bounds(losses: Doubles, groups: int) -> Ints:
    """Bounds ``[k + 1]`` of ``k`` groups of ascending losses ``[n]`` by k-means in one dimension.

    Lloyd's algorithm from quantiles of the distinct losses; equal parts where these are fewer than groups.
    """
    n, indices = len(losses), np.arange(groups)
    distinct = losses[np.diff(losses, prepend=-np.inf) > 0]
    if len(distinct) < groups:
        return np.arange(groups + 1) * n // groups
    centres = distinct[(2 * indices + 1) * len(distinct) // (2 * groups)]
    sums = np.concatenate([[0.0], np.cumsum(losses)])
    bounds = np.zeros(groups + 1, np.int64)
    for _ in range(_MAX_ROUNDS):
        inner = np.searchsorted(losses, (centres[:-1] + centres[1:]) / 2)
        before, bounds = bounds, np.concatenate([[0], inner, [n]])
        if np.array_equal(before, bounds):
            break
        counts = np.diff(bounds)
        centres = np.where(counts > 0, np.diff(sums[bounds]) / np.maximum(counts, 1), centres)
    return bounds
