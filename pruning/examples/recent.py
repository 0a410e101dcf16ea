"""Data-pruning policies of 2025 and 2026 that need only the losses met in training: SeTa, RePB, OrderDP."""

from dataclasses import replace
from math import ceil, sqrt

import numpy as np
from numpy.typing import NDArray

from pruning.examples.inclusion import Bools, thinned, thinned_to
from pruning.examples.plan import Plan
from pruning.examples.policy import Policy
from pruning.examples.sampling import STREAM_TIES, Doubles, Ints, hash64
from pruning.examples.settings import Settings
from pruning.examples.unweighted import Unweighted, highest

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
    rescore_every = 0
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
        rest = rest[np.argsort(hash64(s.seed, epoch, rest + s.first_id, STREAM_TIES))]
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


class Repb(Policy):
    """RePB (Zhou et al., ICLR 2026): losses are compared only within a window of consecutive batches.

    Losses of different batches come from different states of the model ("score context drift"). Of the last
    epoch's examples, those below the mean loss of their window are left out with probability ``r``; examples
    that it did not train on come back with probability ``1 - r``. Weights are ``E / N_i``, epochs over those
    that trained on the example (this one counts in both), here 1 on average over the subset: unbiased only in
    the limit of many epochs. The window is one batch, as in the paper. We know the rule from a detailed
    summary and the reviews, and could not verify it, or the paper's ``r``, in the paper or its code.

    A batch is that of all workers together. A scoring pass is one window, as are losses without steps.

    Args:
        settings: shared settings; ``ratio`` is the probability that an example is left out.
        window: batches that are compared with each other, at least 1.
    """

    name = "repb"
    score = "loss"
    rescore_every = 0

    def __init__(self, settings: Settings, *, window: int = 1) -> None:
        if not isinstance(window, int) or window < 1:
            raise ValueError(f"window: {window!r} must be a whole number of at least 1")
        self.window = window
        self.steps = np.full(settings.num_examples, -1, np.int32)
        self.visits = np.zeros(settings.num_examples, np.int32)
        super().__init__(settings)

    def importance(self, epoch: int) -> tuple[Doubles, int]:
        """1 from the mean of the window on, ``1 - r`` below it and for those not trained on."""
        return thinned(self._low(epoch), self.settings.ratio_at(epoch), self.settings.present)

    def select(self, epoch: int) -> Plan:
        """A draw, with weights by the number of epochs that the examples were trained in."""
        plan = self._drawn(epoch)
        weights = 1 / (self.visits[plan.ids - self.settings.first_id] + 1.0)
        weights /= weights.mean() if len(weights) else 1
        return replace(plan, weights=weights.astype(np.float32))

    def accept(self, at: Ints, scores: NDArray[np.float32], stamp: int) -> None:
        """Count the epochs that an example is trained in."""
        super().accept(at, scores, stamp)
        self.visits[at] += stamp % 2

    def accept_steps(self, at: Ints, steps: NDArray[np.integer] | None) -> None:
        """Keep them, to tell windows apart."""
        self.steps[at] = -1 if steps is None else steps

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """With steps and number of visits."""
        return {**super().arrays(), "steps": self.steps, "visits": self.visits}

    def examples(self, epoch: int) -> float:
        """In the long run: ``(1 - r) / (1 - r h)`` for a share ``h`` from the mean on (a half at first)."""
        newest, ratio, high = int(self.stamps.max()), self.settings.ratio_at(epoch), 0.5
        if newest >= 0:
            last = (newest + 1) // 2
            high = float(1 - self._low(last)[self._fresh(last)].mean())
        return (1 - ratio) / (1 - ratio * high)

    def _fresh(self, epoch: int) -> Bools:
        """Examples whose loss is of the training epoch before ``epoch``, or of a pass just before it."""
        return (self.stamps >= max(2 * epoch - 1, 0)) & (self.stamps <= 2 * epoch)

    def _low(self, epoch: int) -> Bools:
        """Examples to thin; one whose loss is not finite is not low."""
        at = np.flatnonzero(self._fresh(epoch))
        losses, low = self.scores[at].astype(np.float64), np.ones(self.settings.num_examples, bool)
        # 0 for a pass, 1 for training whose steps are not known, then the windows.
        window = np.where(self.stamps[at] % 2, self.steps[at] // self.window + 2, 0)
        known = np.isfinite(losses)
        count = np.bincount(window, known)
        mean = np.bincount(window, np.where(known, losses, 0)) / np.maximum(count, 1)
        low[at] = known & (losses < mean[window])
        return low


class RepbMatched(Repb):
    """RePB's two probabilities, scaled down together until ``m = (1 - r) N`` examples are left.

    Our adaptation, for comparisons at one budget: RePB itself keeps more of the data.
    """

    name = "repb_matched"

    def importance(self, epoch: int) -> tuple[Doubles, int]:
        """In the ratio 1 to ``1 - r``."""
        s = self.settings
        return thinned_to(s.size_at(epoch), self._low(epoch), s.ratio_at(epoch), s.present)

    def examples(self, epoch: int) -> float:
        """As of any policy with a fixed budget."""
        return Policy.examples(self, epoch)


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
    rescore_every = 0

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
