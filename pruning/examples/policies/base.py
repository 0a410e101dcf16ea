"""What all example-pruning policies share: schedule, scores, rescoring, mixture, cost.

A plan is a pure function of settings and state (scores and when they were made): it can be asked for twice,
or again after a restart. A scoring pass of epoch ``e`` uses the weights at its start; scores of its training
steps are half an epoch younger on average.
"""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from pruning.examples.inclusion import inclusion_probabilities
from pruning.examples.policies.settings import Settings
from pruning.examples.sampling import STREAM_RESCORE, Doubles, Ints, draw, mean_power, tempered, uniform

Source = Literal["pass", "train"]
_NEVER = -1


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
    probabilities: Doubles | None = None
    """Inclusion probabilities ``[m]``; ``None`` where nothing is drawn."""
    full: bool = False
    """Whether it holds every present example."""
    mean_score_age: float | None = None
    """Epochs between the weights that made the scores and this epoch, on average; ``None`` without scores."""
    replaced_scores: int = 0
    """Present examples whose score was missing or not finite."""
    weight_power: float = 1.0
    """Power of the weights in the loss."""

    @property
    def mean_power(self) -> float:
        """Mean over the subset of the weights to their power."""
        return mean_power(self.weights, self.weight_power)

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


class Policy:
    """A policy that draws by importance of its score; what differs is overridden.

    A new policy sets ``name`` and ``score`` and overrides `importance` (a random design) or `select` (any
    other), and enters ``pruning.examples.policies.POLICIES``.
    """

    name: ClassVar[str]
    score: str | None = None
    """The registered score that it wants (`pruning.examples.scores.SCORES`); ``None`` for none."""
    rescore_every: ClassVar[int] = 0
    """Default interval of the scoring passes; 0 for scores from the training steps alone."""
    weight_power: ClassVar[float] = 1.0
    """Default power of the weights."""
    counts_training: ClassVar[bool] = False
    """Whether it must hear of every training step, even where scoring passes replace what they score."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        n = settings.num_examples if self.score else 0
        self.scores: NDArray[np.float32] = np.full(n, np.nan, np.float32)
        # 2 e for a pass with the weights at the start of epoch e, 2 e + 1 for training in it.
        self.stamps: NDArray[np.int32] = np.full(n, _NEVER, np.int32)

    # What an epoch trains on.

    def is_full(self, epoch: int) -> bool:
        """Whether ``epoch`` trains on every present example."""
        s = self.settings
        if not 0 <= epoch < s.epochs:
            raise ValueError(f"epoch: {epoch!r} must be from 0 to {s.epochs - 1}")
        return (
            epoch < s.warmup_epochs
            or epoch >= s.epochs - s.anneal_epochs
            or (s.ratio == 0 and not s.ratio_from)
        )

    def is_uniform(self, epoch: int) -> bool:
        """Whether a pruned ``epoch`` draws uniformly, because it is too early for scores."""
        return self.score is not None and epoch < self.settings.score_from

    def plan(self, epoch: int) -> Plan:
        """The examples and weights of an epoch: a pure function of settings and state.

        Raises:
            ValueError: an epoch that the run does not have.
        """
        if not self.is_full(epoch):
            return self._drawn(epoch) if self.is_uniform(epoch) else self.select(epoch)
        ids = self.settings.positions
        weights = np.ones(len(ids), np.float32)
        return Plan(epoch, ids, weights, full=True, mean_score_age=self.mean_score_age(epoch))

    def select(self, epoch: int) -> Plan:
        """The plan of a pruned epoch that is not uniform: a draw by `inclusion`."""
        return self._drawn(epoch)

    def _drawn(self, epoch: int) -> Plan:
        s = self.settings
        pi, size = self.inclusion(epoch)
        subset = draw(pi, size=size, seed=s.seed, epoch=epoch, design=s.design, population=s.num_present)
        plan = Plan(epoch, subset.ids, subset.weights, subset.probabilities, weight_power=s.weight_power)
        return plan if self.is_uniform(epoch) else self._with_scores(plan)

    def _with_scores(self, plan: Plan) -> Plan:
        age, missing = self.mean_score_age(plan.epoch), self.num_missing()
        return replace(plan, mean_score_age=age, replaced_scores=missing)

    def inclusion(self, epoch: int) -> tuple[Doubles, int]:
        """Inclusion probabilities ``[N]`` of a pruned epoch, and their sum."""
        if not self.is_uniform(epoch):
            return self.importance(epoch)
        s = self.settings
        size = s.size_at(epoch)
        pi = np.full(s.num_examples, size / s.num_present)
        if s.present is not None:
            pi[~s.present] = 0.0
        return pi, size

    def importance(self, epoch: int) -> tuple[Doubles, int]:
        """`inclusion` by the scores."""
        s, size, alpha = self.settings, self.settings.size_at(epoch), self.mixture(epoch)
        return inclusion_probabilities(self.scores, size, alpha=alpha, present=s.present), size

    def mixture(self, epoch: int) -> float:
        """``alpha`` of an epoch: share of the uniform part, larger where scores are old."""
        s, age = self.settings, self.mean_score_age(epoch)
        return s.alpha if age is None or age <= 1 else max(s.alpha, s.stale_alpha)

    # Scores.

    def rescore(self, epoch: int) -> Ints | None:
        """Ids that should be scored by the current weights before ``epoch`` is planned; ``None`` for none.

        Examples already scored by them are left out, so an interrupted pass goes on where it stopped.
        """
        s = self.settings
        if not self.pass_due(epoch):
            return None
        wanted = self.stamps < 2 * epoch
        if s.rescore_who == "unselected":
            wanted &= (self.stamps != 2 * epoch - 1) | (self.stamps == _NEVER)
        elif s.rescore_who == "sample":
            wanted &= uniform(s.seed, epoch, np.arange(s.num_examples), STREAM_RESCORE) < s.rescore_share
        ids = np.flatnonzero(s.among_present(wanted))
        return ids if len(ids) else None

    def pass_due(self, epoch: int) -> bool:
        """Whether a scoring pass comes before ``epoch``."""
        s = self.settings
        if not self.score or not s.rescore_every or self.is_full(epoch) or self.is_uniform(epoch):
            return False
        return epoch >= s.first_scored and (epoch - s.first_scored) % s.rescore_every == 0

    def observe(
        self,
        ids: Ints,
        scores: NDArray[np.floating],
        epoch: int,
        source: Source,
        steps: NDArray[np.integer] | None = None,
    ) -> None:
        """Take scores; delivered twice, or after fresher ones, they change nothing.

        Args:
            ids: ``[n]``, of present examples.
            scores: ``[n]``; the policy's ``score``.
            epoch: of the weights that made them (see the module).
            source: ``pass`` (a scoring pass) or ``train`` (the training step).
            steps: ``[n]``: the optimiser step of the epoch, from 0, in which each example was trained on.

        Raises:
            ValueError: lengths that differ, an unknown or absent id, an unknown source, a negative step.
        """
        ids, scores = np.asarray(ids), np.asarray(scores)
        if ids.ndim != 1 or scores.shape != ids.shape:
            raise ValueError(f"scores: shape {scores.shape} must be that of ids, {ids.shape}, and [n]")
        if source not in ("pass", "train"):
            raise ValueError(f"source: {source!r} is unknown; choose pass or train")
        if epoch < 0:
            raise ValueError(f"epoch: {epoch!r} must not be negative")
        if steps is not None and (np.shape(steps) != ids.shape or np.min(steps, initial=0) < 0):
            raise ValueError(f"steps: must be {ids.shape} numbers that are not negative")
        at = ids.astype(np.int64)
        self._check_ids(at)
        if not self.score:
            return
        stamp = 2 * epoch + (source == "train")
        at, first = np.unique(at, return_index=True)
        fresher = self.stamps[at] < stamp
        at, first = at[fresher], first[fresher]
        with np.errstate(over="ignore"):
            self.accept(at, scores[first].astype(np.float32), stamp)
        self.accept_steps(at, None if steps is None else np.asarray(steps)[first])

    def accept(self, at: Ints, scores: NDArray[np.float32], stamp: int) -> None:
        """Write fresh scores at positions ``at`` (unique)."""
        self.scores[at] = scores
        self.stamps[at] = stamp

    def accept_steps(self, at: Ints, steps: NDArray[np.integer] | None) -> None:
        """Take the optimiser steps of the scores just accepted, if known; most policies need none."""

    def mean_score_age(self, epoch: int) -> float | None:
        """Mean age in epochs of the present examples' scores, as ``epoch`` starts; ``None`` without any."""
        if not self.score:
            return None
        scored = self.settings.among_present(self.stamps != _NEVER)
        count = int(scored.sum())
        return epoch - int(self.stamps.sum(where=scored, dtype=np.int64)) / count / 2 if count else None

    def num_missing(self) -> int:
        """Present examples whose score is missing or not finite."""
        return int(self.settings.among_present(~np.isfinite(self.scores)).sum()) if self.score else 0

    # What it costs.

    def examples(self, epoch: int) -> float:
        """Expected share of the examples that a pruned epoch trains on, unless it is uniform."""
        return self.settings.size_at(epoch) / self.settings.num_present

    def cost(self, epoch: int) -> Cost:
        """Expected cost of an epoch; where the unselected are rescored, the rest is scored in training."""
        s, trained = self.settings, self._trained(epoch)
        if not self.pass_due(epoch):
            return Cost(trained, 0.0)
        unselected = 1 - self._trained(epoch - 1) if epoch else 1.0
        share = {"all": 1.0, "unselected": unselected, "sample": s.rescore_share}[s.rescore_who]
        return Cost(trained, s.scoring_cost * share)

    def _trained(self, epoch: int) -> float:
        """Expected share of the examples that an epoch trains on."""
        if self.is_full(epoch):
            return 1.0
        return Policy.examples(self, epoch) if self.is_uniform(epoch) else self.examples(epoch)

    def theoretical_speedup(self) -> float:
        """Cost of as many full epochs over the cost of the run, scoring passes included."""
        epochs = self.settings.epochs
        return epochs / sum(self.cost(e).total for e in range(epochs))

    def equal_compute_ratio(self) -> float:
        """Pruning ratio at which unscored uniform sampling costs what this policy costs (0 at least)."""
        pruned = [self.cost(e).total for e in range(self.settings.epochs) if not self.is_full(e)]
        return max(0.0, 1 - sum(pruned) / len(pruned)) if pruned else 0.0

    # State.

    def state(self) -> dict[str, NDArray[np.generic]]:
        """Copies of the arrays that `load` takes; empty for policies without scores."""
        return {name: array.copy() for name, array in self.arrays().items()}

    def load(self, state: dict[str, NDArray[np.generic]]) -> None:
        """Restore what `state` gave.

        Raises:
            ValueError: other names or shapes than this policy's.
        """
        arrays = self.arrays()
        if set(state) != set(arrays):
            raise ValueError(f"state: holds {sorted(state)}, {type(self).__name__} needs {sorted(arrays)}")
        for name, array in arrays.items():
            if np.shape(state[name]) != array.shape:
                raise ValueError(f"state {name}: shape {np.shape(state[name])} must be {array.shape}")
        for name, array in arrays.items():
            array[...] = state[name]

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """The arrays of the state themselves, one entry per id each."""
        return {"scores": self.scores, "stamps": self.stamps} if self.score else {}

    def _check_ids(self, ids: Ints) -> None:
        s = self.settings
        bad = (ids < 0) | (ids >= s.num_examples)
        if not bad.any() and s.present is not None:
            bad = ~s.present[ids]
        if bad.any():
            raise ValueError(f"ids: {ids[bad][0]} is not a present example of this data set")
