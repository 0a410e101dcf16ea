"""The score book: what a run knows of its examples, and who is in each epoch.

One book per run holds the policy of the current phase: scores, their ages, and whatever else the
policy needs. It is plain Python; under Ray one named actor wraps it (`distributed`). All it answers
is a pure function of its state, so asking twice, or after a restart with the same state, gives the
same subset.
"""

from dataclasses import asdict, dataclass

import numpy as np

from pruning.examples.policies import Plan, Policy, make_policy
from pruning.examples.policy import Source


@dataclass(frozen=True, kw_only=True)
class PolicySettings:
    """Everything a phase's policy is made from."""

    name: str
    num_examples: int
    first_id: int
    ratio: float
    seed: int
    epochs: int
    warmup_epochs: int
    anneal_epochs: int
    alpha: float
    stale_alpha: float
    score_from: int
    scoring_cost: float
    rescore_every: int | None
    rescore_who: str
    design: str


@dataclass(frozen=True)
class Wanted:
    """Which scores a policy lives on."""

    score: str
    """A name of `pruning.examples.scores.SCORES`."""
    in_training: bool
    """Whether scores met while training are worth their cost: passes do not replace all of them."""


class ScoreBook:
    """Scores and draws of one run.

    Args:
        present: which ids of the range ``[first_id, first_id + len(present))`` exist.
    """

    def __init__(self, present: np.ndarray) -> None:
        self._present = present
        self._policy: Policy | None = None

    def begin(self, settings: PolicySettings, state: dict[str, np.ndarray] | None = None) -> Wanted | None:
        """Start a phase with a fresh policy, or with one restored from ``state``.

        Returns:
            the scores that the policy lives on, if it needs any.
        """
        given = {name: value for name, value in asdict(settings).items() if value is not None}
        self._policy = policy = make_policy(present=self._present, **given)
        if state:
            policy.load(state)
        if policy.score is None:
            return None
        s = policy.settings
        return Wanted(policy.score, in_training=s.rescore_every != 1 or s.rescore_who != "all")

    def rescore(self, epoch: int) -> np.ndarray | None:
        """Ids whose scores the policy wants fresh before ``epoch``; ``None`` for none."""
        return self._current().rescore(epoch)

    def observe(self, ids: np.ndarray, scores: np.ndarray, epoch: int, source: Source) -> None:
        """Scores made by the weights of ``epoch``, in a scoring ``pass`` or while they ``train``."""
        self._current().observe(ids, scores, epoch, source)

    def draw(self, epoch: int) -> Plan:
        """The epoch's examples and weights."""
        return self._current().plan(epoch)

    def state(self) -> dict[str, np.ndarray]:
        """What a checkpoint must hold of the policy."""
        return self._current().state()

    def scores(self, ids: np.ndarray) -> np.ndarray:
        """What is known of these examples, NaN where nothing is."""
        policy = self._current()
        return policy.scores[ids - policy.settings.first_id]

    def costs(self) -> dict[str, float]:
        """What this phase costs in theory, scoring passes included: its speed-up over full epochs, and
        the pruning ratio at which uniform sampling without scores costs the same."""
        policy = self._current()
        return {
            "theoretical_speedup": policy.theoretical_speedup(),
            "equal_compute_ratio": policy.equal_compute_ratio(),
        }

    def table(self, epoch: int) -> dict[str, np.ndarray]:
        """What is known of every example: id, score, epoch of the weights that made it (-1: none), and
        inclusion probability in ``epoch``; empty when the policy has no scores."""
        policy = self._current()
        if policy.score is None:
            return {}
        probability = np.ones(len(policy.scores)) if policy.is_full(epoch) else policy.inclusion(epoch)[0]
        at = np.flatnonzero(self._present)
        return {
            "id": at + policy.settings.first_id,
            "score": policy.scores[at],
            "scored_at": np.where(policy.stamps < 0, -1, policy.stamps // 2)[at].astype(np.int32),
            "probability": probability[at],
        }

    def _current(self) -> Policy:
        if self._policy is None:
            raise RuntimeError("the score book has lost its state; the run restarts from its last checkpoint")
        return self._policy
