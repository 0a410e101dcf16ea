"""What the training loop asks of whoever launches it: its place among the workers, rows, and a score table.

Two launchers answer: `pipelines.training.distributed` (Ray) and `pipelines.training.local`.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from pipelines.data.layout import Rows
from pipelines.scoring.scorer import Scoring
from pipelines.training.feed import Feed
from pipelines.training.score_table import Drawn, ScoreTable
from snn.models import SpikingNetwork

Shared = TypeVar("Shared")
HeldOut = Literal["val", "test"]
"""A split that is evaluated on."""


class HeldOutRows(Protocol):
    """A worker's share of a split that is evaluated on."""

    def batches(self, batch_size: int) -> Iterator[tuple[np.ndarray, Any, np.ndarray]]:
        """Ids, decoded examples and labels in ascending order of the ids."""
        ...

    def head(self, rows: int) -> Rows:
        """The first ``rows`` rows (perhaps more), or all there are."""
        ...


class Engine(Protocol):
    """One worker's surroundings. All workers make the same calls in the same order."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def table(self) -> ScoreTable:
        """The run's score table."""
        ...

    def warm_up(self) -> None:
        """Start whatever starts on first use, so that the first epoch is timed like all others."""
        ...

    def fetch(self, ids: np.ndarray) -> Rows:
        """The training rows with these ids (ascending, unique)."""
        ...

    def held_out(self, split: HeldOut) -> HeldOutRows:
        """This worker's share of the validation or test split."""
        ...

    def feed(self, drawn: Drawn, *, seed: int, global_batch: int, also: np.ndarray) -> tuple[Feed, Rows]:
        """This worker's batches of an epoch; and the rows with the ids ``also``, perhaps among others."""
        ...

    def start_scoring(
        self, model: SpikingNetwork, scoring: Scoring, *, epoch: int, stamp: int
    ) -> Callable[[], int]:
        """Score, by the current weights, what the policy wants scored before ``epoch``; on rank 0 only.

        The pass runs beside whatever follows, as far as the engine can. The result waits for it and
        says how many it scored; by then they are in the score table, stamped with the epoch ``stamp``.
        """
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
