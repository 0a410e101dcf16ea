"""The score book of another process, as a worker asks it."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import ray

from pipelines.training.book_shards import ShardedBook
from pipelines.training.score_book import Drawn, PolicySettings, Wanted
from pruning.examples.policy import Source


class AskActors:
    """Calls a method of every actor at once (`pipelines.training.book_shards.Ask`)."""

    def __init__(self, actors: list[Any]) -> None:
        self._actors = actors

    def __call__(self, method: str, arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        """All results, in order."""
        return ray.get(
            [getattr(a, method).remote(*given) for a, given in zip(self._actors, arguments, strict=True)]
        )


class RemoteBook:
    """A score book in one actor (see `pipelines.training.score_book.ScoreBook`), asked synchronously."""

    def __init__(self, actor: Any) -> None:
        self.actor = actor

    def begin(self, settings: PolicySettings) -> Wanted | None:
        """Start a phase."""
        return ray.get(self.actor.begin.remote(settings))

    def rescore(self, epoch: int) -> np.ndarray | None:
        """Ids to score."""
        return ray.get(self.actor.rescore.remote(epoch))

    def open_pass(self, epoch: int) -> int:
        """Fix whom a pass scores."""
        return ray.get(self.actor.open_pass.remote(epoch))

    def wanted(self, ranges: np.ndarray) -> np.ndarray:
        """Ids that the pass scores."""
        return ray.get(self.actor.wanted.remote(ranges))

    def observe(
        self,
        ids: np.ndarray,
        scores: np.ndarray,
        epoch: int,
        source: Source,
        steps: np.ndarray | None = None,
    ) -> None:
        """Deliver scores."""
        ray.get(self.actor.observe.remote(ids, scores, epoch, source, steps))

    def scores(self, ids: np.ndarray) -> np.ndarray:
        """What is known of these examples."""
        return ray.get(self.actor.scores.remote(ids))

    def draw(self, epoch: int) -> Drawn:
        """Decide on the epoch's examples."""
        return ray.get(self.actor.draw.remote(epoch))

    def counts(self, ranges: np.ndarray) -> np.ndarray:
        """How many were drawn."""
        return ray.get(self.actor.counts.remote(ranges))

    def chosen(self, ranges: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Who was drawn."""
        return ray.get(self.actor.chosen.remote(ranges))

    def costs(self) -> dict[str, float]:
        """Of the phase."""
        return ray.get(self.actor.costs.remote())

    def state_arrays(self) -> dict[str, tuple[str, int]]:
        """For a checkpoint."""
        return ray.get(self.actor.state_arrays.remote())

    def state_part(self, name: str, low: int, high: int) -> np.ndarray:
        """For a checkpoint."""
        return ray.get(self.actor.state_part.remote(name, low, high))

    def load_part(self, name: str, low: int, values: np.ndarray) -> None:
        """From a checkpoint."""
        ray.get(self.actor.load_part.remote(name, low, values))

    def open_table(self, epoch: int) -> bool:
        """For scores.parquet."""
        return ray.get(self.actor.open_table.remote(epoch))

    def table(self, low: int, high: int) -> dict[str, np.ndarray]:
        """For scores.parquet."""
        return ray.get(self.actor.table.remote(low, high))

    def close_table(self) -> None:
        """It is written."""
        ray.get(self.actor.close_table.remote())


def book_of(actors: list[Any], bounds: list[int], population: int) -> RemoteBook | ShardedBook:
    """The book in one actor, or in several by id range."""
    if len(actors) == 1:
        return RemoteBook(actors[0])
    return ShardedBook(AskActors(actors), bounds, population)
