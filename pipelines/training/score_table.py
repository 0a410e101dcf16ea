"""The score table: what a run knows of its examples, and which of them are in each epoch.

One table per run holds the policy of the current phase: scores, their ages, and whatever else the policy
needs. It is plain Python; under Ray it is an actor, asked through `RemoteTable`. All it answers is a pure
function of its state, so asking twice, or after a restart with the same state, gives the same subset. Who
reads by row groups asks for draws by id range, so that no worker holds the ids of all examples.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from cluster.errors import UserError
from pipelines.config.plugins import OwnCode, activate
from pipelines.data.layout import MOST_IDS, Ids
from pruning.examples.policies import Policy, make_policy
from pruning.examples.policies.base import Source
from pruning.examples.sampling import hash64
from pruning.examples.summary import summarise


@dataclass(frozen=True)
class Drawn:
    """An epoch's draw in short; who was drawn is asked by id range."""

    epoch: int
    size: int
    """Examples drawn."""
    full: bool
    """Whether they are all that exist."""
    fingerprint: str
    """Tells whether two runs drew the same examples with the same weights."""
    summary: dict[str, float | None]
    """`pruning.examples.summary.PlanSummary` for the metrics."""
    weight_power: float = 1.0
    """Power of the weights in the loss."""
    mean_power: float = 1.0
    """Mean of the weights to their power."""


class ScoreTable:
    """Scores and draws of one run."""

    def __init__(self, ids: Ids) -> None:
        self._ids = ids
        self._policy: Policy | None = None
        self._drawn: Drawn | None = None
        self._chosen: tuple[np.ndarray, np.ndarray] | None = None
        self._drawn_by: tuple[int, np.ndarray | None] | None = None

    def begin(self, settings: Mapping[str, Any]) -> tuple[str, bool] | None:
        """Start a phase with a fresh policy, made of the arguments of `make_policy`.

        Returns:
            the score that it needs, if any (one of `pruning.examples.scores.SCORES`), and whether those that
            are met while training are worth their cost: passes do not replace all of them, or the policy
            counts what was trained on.
        """
        ids = self._ids
        self._policy = policy = make_policy(num_examples=ids.end, present=ids.present(), **settings)
        self._drawn = self._chosen = self._drawn_by = None
        if policy.score is None:
            return None
        s = policy.settings
        replaced = s.rescore_every == 1 and s.rescore_who == "all"
        return policy.score, policy.counts_training or not replaced

    # Scores.

    def rescore(self, epoch: int) -> np.ndarray | None:
        """Ids whose scores the policy wants fresh before ``epoch``; ``None`` for none."""
        return self._current().rescore(epoch)

    def observe(
        self,
        ids: np.ndarray,
        scores: np.ndarray,
        epoch: int,
        source: Source,
        steps: np.ndarray | None = None,
    ) -> None:
        """Scores by the weights of ``epoch``, from a scoring ``pass`` or, with steps, as they ``train``."""
        self._current().observe(ids, scores, epoch, source, steps)
        self._drawn_by = None

    def scores(self, ids: np.ndarray) -> np.ndarray:
        """What is known of these examples, NaN where nothing is."""
        return self._current().scores[ids]

    # Draws.

    def design(self, epoch: int) -> tuple[float, float]:
        """Pruning ratio and alpha that ``epoch`` is drawn with."""
        policy = self._current()
        return policy.settings.ratio_at(epoch), policy.mixture(epoch)

    def draw(self, epoch: int) -> Drawn:
        """Decide on the epoch's examples and weights; asked again, the same ones."""
        if self._drawn is None or self._drawn.epoch != epoch:
            self._drawn_by = None
            plan = self._current().plan(epoch)
            self._chosen = None if plan.full else (plan.ids, plan.weights)
            found = fingerprint(plan.ids, plan.weights)
            powers = plan.weight_power, plan.mean_power
            self._drawn = Drawn(epoch, len(plan.ids), plan.full, found, asdict(summarise(plan)), *powers)
        return self._drawn

    def counts(self, ranges: np.ndarray) -> np.ndarray:
        """How many examples of each id range ``[low, high)`` are in the last draw, int64 ``[P]``."""
        self._current()
        if self._chosen is None:
            return self._ids.counts(ranges)
        low, high = np.searchsorted(self._chosen[0], ranges.T)
        return high - low

    def chosen(self, ranges: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Ids int64 and weights float32 of the last draw's examples in these ranges, range by range."""
        self._current()
        if self._chosen is None:
            found = [self._ids.array(low, high) for low, high in ranges.tolist()]
            ids = np.concatenate([np.zeros(0, np.int64), *found])
            return ids, np.ones(len(ids), np.float32)
        ids, weights = self._chosen
        at = [slice(a, b) for a, b in np.searchsorted(ids, ranges).tolist()]
        return np.concatenate([ids[i] for i in at]), np.concatenate([weights[i] for i in at])

    # What is written down.

    def costs(self) -> dict[str, float]:
        """What this phase costs in theory, scoring passes included: its speed-up over full epochs, and
        the pruning ratio at which uniform sampling without scores costs the same."""
        policy = self._current()
        return {
            "theoretical_speedup": policy.theoretical_speedup(),
            "equal_compute_ratio": policy.equal_compute_ratio(),
        }

    def state(self) -> dict[str, np.ndarray]:
        """The arrays that a checkpoint must hold, one entry per id each."""
        return self._current().arrays()

    def load(self, state: dict[str, np.ndarray]) -> None:
        """Restore what `state` gave.

        Raises:
            ValueError: arrays of another policy or dataset.
        """
        self._current().load(state)

    def rows(self, epoch: int, low: int, high: int) -> dict[str, np.ndarray] | None:
        """What ``epoch`` is drawn by: columns of the examples with ids in ``[low, high)``.

        Columns: id, score, epoch of the weights that made it (-1: none) and inclusion probability; ``None``
        where the policy has no scores. Asked part by part, so that the whole is in no other process.
        """
        policy = self._current()
        if policy.score is None:
            return None
        if self._drawn_by is None or self._drawn_by[0] != epoch:  # eight bytes per id, until scores come in
            self._drawn_by = epoch, None if policy.is_full(epoch) else policy.inclusion(epoch)[0]
        probabilities = self._drawn_by[1]
        ids = self._ids.array(low, high)
        return {
            "id": ids,
            "score": policy.scores[ids],
            "scored_at": np.where(policy.stamps[ids] < 0, -1, policy.stamps[ids] // 2).astype(np.int32),
            "probability": np.ones(len(ids)) if probabilities is None else probabilities[ids],
        }

    def _current(self) -> Policy:
        if self._policy is None:
            raise RuntimeError(
                "the score table has lost its state; the run restarts from its last checkpoint"
            )
        return self._policy


class RemoteTable:
    """A `ScoreTable` in an actor; its methods wait for their results."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def __getattr__(self, method: str) -> Any:
        if method.startswith("_"):  # Python's own, asked for while this is unpickled
            raise AttributeError(method)
        import ray

        return lambda *given: ray.get(getattr(self._actor, method).remote(*given))


def check_size(examples: int) -> None:
    """Refuse a dataset of more examples than a score table holds."""
    if examples > MOST_IDS:
        raise UserError(
            "data.path",
            f"{examples:,} examples are more than a run draws from ({MOST_IDS:,}); `spikeprune score` and"
            " `spikeprune data select --design poisson --filtered` work at any size: train on what they"
            " select, or set data.train_rows",
        )


class TableActor(ScoreTable):
    """The score table as an actor of Ray, which also keeps each epoch's latest event. It loads no torch."""

    def __init__(self, ids: Ids, code: OwnCode | None) -> None:
        activate(code)
        super().__init__(ids)
        self._events: dict[tuple[object, object], dict[str, object]] = {}
        self._mistake: tuple[str, str] | None = None

    def refuse(self, where: str, what: str) -> None:
        """Remember a user's mistake, which no restart would mend."""
        self._mistake = (where, what)

    def mistake(self) -> tuple[str, str] | None:
        """The user's mistake that a worker met, if any."""
        return self._mistake

    def note(self, event: dict[str, object]) -> None:
        """Remember where an epoch is."""
        self._events[event["phase"], event["epoch"]] = event

    def events(self) -> list[dict[str, object]]:
        """Where each epoch was last seen, in order."""
        return list(self._events.values())


def fingerprint(ids: np.ndarray, weights: np.ndarray) -> str:
    """A number that changes with any example or weight, as text."""
    bits = np.ascontiguousarray(weights, np.float32).view(np.uint32).astype(np.uint64)
    return f"{(hash64(0, 0, ids) * (2 * bits + 1)).sum(dtype=np.uint64):016x}"
