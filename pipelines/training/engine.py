"""What the training loop asks of whoever launches it: its place among the workers, rows, and a book.

Two launchers answer: `pipelines.training.distributed` (Ray) and `pipelines.training.local`.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from pipelines.scoring import Scoring
from pipelines.training.rows import Rows
from pipelines.training.score_book import PolicySettings, Wanted
from pruning.examples.policies import Plan
from pruning.examples.policy import Source
from snn.models import SpikingNetwork

Shared = TypeVar("Shared")


class Book(Protocol):
    """The score book as a worker sees it (see `pipelines.training.score_book.ScoreBook`)."""

    def begin(  # noqa: D102
        self, settings: PolicySettings, state: dict[str, np.ndarray] | None = None
    ) -> Wanted | None: ...
    def rescore(self, epoch: int) -> np.ndarray | None: ...  # noqa: D102
    def observe(self, ids: np.ndarray, scores: np.ndarray, epoch: int, source: Source) -> None: ...  # noqa: D102
    def draw(self, epoch: int) -> Plan: ...  # noqa: D102
    def state(self) -> dict[str, np.ndarray]: ...  # noqa: D102
    def scores(self, ids: np.ndarray) -> np.ndarray: ...  # noqa: D102
    def costs(self) -> dict[str, float]: ...  # noqa: D102
    def table(self, epoch: int) -> dict[str, np.ndarray]: ...  # noqa: D102


class Engine(Protocol):
    """One worker's surroundings. All workers make the same calls in the same order."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def book(self) -> Book:
        """The run's score book."""
        ...

    def warm_up(self) -> None:
        """Start whatever starts on first use, so that the first epoch is timed like all others."""
        ...

    def fetch(self, ids: np.ndarray) -> Rows:
        """The training rows with these ids (ascending, unique)."""
        ...

    def test_rows(self) -> Rows:
        """This worker's share of the test split."""
        ...

    def score(self, model: SpikingNetwork, ids: np.ndarray, scoring: Scoring) -> np.ndarray:
        """Fresh scores of these training examples, float32 in the order of ``ids``; on rank 0 alone."""
        ...

    def start_scoring(
        self, model: SpikingNetwork, ids: np.ndarray, scoring: Scoring
    ) -> Callable[[], np.ndarray]:
        """As `score`, by the weights of now, beside whatever follows; the result waits for the scores."""
        ...

    def distribute(self, model: nn.Module) -> nn.Module:
        """The module whose backward averages gradients over the workers."""
        ...

    def progress(self, event: dict[str, object]) -> None:
        """Tell whoever watches where the worker is; may be dropped."""
        ...

    def publish(self, phase: str, values: dict[str, float]) -> None:
        """Show numbers where the surroundings have a place for them."""
        ...

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum over the workers, on each."""
        ...

    def share(self, value: Shared) -> Shared:
        """Rank 0's value, on each."""
        ...

    def barrier(self) -> None:
        """Wait for all workers."""
        ...

    def report(self, metrics: dict[str, object], name: str, write: Callable[[Path], None]) -> None:
        """Register a checkpoint that ``write`` fills (on rank 0) under ``name``, with its metrics."""
        ...
