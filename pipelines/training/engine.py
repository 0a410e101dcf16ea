"""A worker's surroundings: its place among the workers, its rows, the score table, where reports go.

`LocalEngine` is the only worker there is, in one plain process: the baseline that Ray's cost is held
against. `pipelines.training.ray_engine` is one of several.
"""

import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from pipelines.data.inputs import choose_device
from pipelines.data.layout import Layout, Rows, read_rows, select
from pipelines.data.scan import Split
from pipelines.scoring.scorer import Scoring, parts_of, score_layout
from pipelines.training import checkpoint
from pipelines.training.feed import Feed, StreamedRows, shard_order
from pipelines.training.phases import HeldOut, RunSpec
from pipelines.training.score_table import Drawn, ScoreTable
from snn.models import SpikingNetwork

Shared = TypeVar("Shared")


class Engine(ABC):
    """One worker's surroundings. All workers make the same calls in the same order."""

    def __init__(
        self,
        spec: RunSpec,
        table: ScoreTable,
        device: torch.device,
        train: pa.Table | None,
        *,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.spec, self.table, self.device = spec, table, device
        self.rank, self.world_size = rank, world_size
        self._train = train  # all training rows, encoded; None where they are read by row groups
        self._held_out: dict[HeldOut, Rows | StreamedRows] = {}
        self._also: Rows | None = None

    def fetch(self, ids: np.ndarray) -> Rows:
        """The training rows with these ids (ascending, unique)."""
        return Rows(self._read_train(self.spec.train.layout.holding(ids), ids)())

    def _read_train(self, layout: Layout, ids: np.ndarray) -> Callable[[], pa.Table]:
        return self.read(layout, ids) if self._train is None else partial(select, self._train, ids)

    def held_out(self, split: HeldOut) -> Rows | StreamedRows:
        """This worker's share of the validation or test split."""
        if split not in self._held_out:
            rows = StreamedRows(self.spec.held_out[split], self.rank, self.world_size, self.read)
            self._held_out[split] = rows if self.spec.shards else rows.head(len(rows))
        return self._held_out[split]

    def feed(self, drawn: Drawn, *, seed: int, global_batch: int, also: np.ndarray) -> tuple[Feed, Rows]:
        """This worker's batches of an epoch; and the rows with the ids ``also``."""
        layout, key = self.spec.train.layout, {"seed": seed, "epoch": drawn.epoch}
        order = shard_order(
            self.table.counts(layout.ranges),
            **key,
            window_rows=self.spec.window_rows if self.spec.shards else len(self.spec.ids),
            global_batch=global_batch,
            rank=self.rank,
            world_size=self.world_size,
        )
        if self._also is None or not np.array_equal(self._also.ids, also):  # kept until others are wanted
            self._also = self.fetch(also)
        return Feed(order, layout, self.table.chosen, self._read_train, **key), self._also

    @abstractmethod
    def read(self, layout: Layout, ids: np.ndarray) -> Callable[[], pa.Table]:
        """Begin to read the rows with these ids from row groups; the result waits for them."""

    @abstractmethod
    def rescore(self, model: SpikingNetwork, scoring: Scoring, epoch: int) -> int:
        """Bring what the policy wants scored before ``epoch`` into the score table; how many those are.

        By the current weights; on rank 0 only.
        """

    @abstractmethod
    def progress(self, event: dict[str, object]) -> None:
        """Tell whoever watches where the worker is; may be dropped."""

    @abstractmethod
    def report(self, metrics: dict[str, object], name: str, write: Callable[[Path], None]) -> None:
        """Register a checkpoint that ``write`` fills (on rank 0) under ``name``, with its metrics."""

    # What a worker alone has nothing to do for.

    def warm_up(self) -> None:  # noqa: B027
        """Start whatever starts on first use, so that the first epoch is timed like all others."""

    def distribute(self, model: nn.Module) -> nn.Module:
        """The module whose backward averages gradients over the workers."""
        return model

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum over the workers, on each."""
        return tensor

    def share(self, value: Shared) -> Shared:
        """Rank 0's value, on each."""
        return value

    def barrier(self) -> None:
        """Wait for all workers."""
        self.share(None)


class LocalEngine(Engine):
    """The only worker there is; it reads its rows itself.

    Args:
        spec: of the run.
        checkpoints: folder for them.
        watch: is shown progress events.
        on_record: gets each record once its checkpoint is whole.
    """

    def __init__(
        self,
        spec: RunSpec,
        *,
        checkpoints: Path,
        watch: Callable[[dict[str, object]], None],
        on_record: Callable[[dict[str, object]], None] | None = None,
    ) -> None:
        device = choose_device(spec.config.cluster.device, torch.cuda.device_count())
        if device.type == "cuda":
            torch.cuda.set_device(device)  # Triton's kernels run on the current one
        train = None if spec.shards else load_rows(spec.train)
        super().__init__(spec, ScoreTable(spec.ids), device, train)
        self._checkpoints, self._watch, self._on_record = checkpoints, watch, on_record
        self._ahead = ThreadPoolExecutor(1, thread_name_prefix="read")

    def read(self, layout: Layout, ids: np.ndarray) -> Callable[[], pa.Table]:
        """By a thread."""
        return self._ahead.submit(read_rows, layout, ids).result

    def rescore(self, model: SpikingNetwork, scoring: Scoring, epoch: int) -> int:
        """Part by part."""
        ids = self.table.rescore(epoch)
        if ids is None:
            return 0
        for part in parts_of(self.spec.train.layout.holding(ids)):
            scores = score_layout(part, ids, model, scoring, self.device)
            found = scores.column(scoring.scores[0]).to_numpy()
            self.table.observe(scores.column("id").to_numpy(), found, epoch, "pass")
        return len(ids)

    def progress(self, event: dict[str, object]) -> None:
        """Straight to the watcher."""
        self._watch(event)

    def report(self, metrics: dict[str, object], name: str, write: Callable[[Path], None]) -> None:
        """A folder of that name; the one before is removed once it is whole."""
        folder = self._checkpoints / name
        shutil.rmtree(folder, ignore_errors=True)
        self._checkpoints.mkdir(exist_ok=True)  # never the run's folder, which may have vanished
        folder.mkdir()
        write(folder)
        for old in sorted(self._checkpoints.glob(f"*/{checkpoint.PROGRESS}"))[:-2]:
            shutil.rmtree(old.parent)
        if self._on_record is not None:
            self._on_record(metrics)


def load_rows(split: Split) -> pa.Table:
    """All rows of a split, encoded, in one piece."""
    return read_rows(split.layout, split.ids).combine_chunks()
