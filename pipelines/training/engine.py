"""A worker's surroundings: its place among the workers, its rows, the score table, where reports go.

`LocalEngine` is the only worker there is, in one plain process: the baseline that Ray's cost is held
against. `pipelines.training.ray_engine` is one of several.
"""

import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from pipelines.data.dataset import Split
from pipelines.data.inputs import choose_device
from pipelines.data.layout import Layout, Rows, naming_rows, read_rows, select
from pipelines.scoring.scorer import Scoring, parts_of, score_layout, score_table
from pipelines.training import checkpoint
from pipelines.training.feed import Feed, MemoryFeed, ShardFeed, StreamedRows, epoch_order, shard_order
from pipelines.training.phases import HeldOut, RunSpec
from pipelines.training.score_table import Drawn, ScoreTable, everything
from snn.models import SpikingNetwork

Shared = TypeVar("Shared")


class Engine(ABC):
    """One worker's surroundings. All workers make the same calls in the same order."""

    def __init__(
        self, spec: RunSpec, table: ScoreTable, device: torch.device, rank: int = 0, world_size: int = 1
    ) -> None:
        self.spec, self.table, self.device = spec, table, device
        self.rank, self.world_size = rank, world_size
        self._held_out: dict[HeldOut, Rows | StreamedRows] = {}
        self._also: Rows | None = None

    def fetch(self, ids: np.ndarray) -> Rows:
        """The training rows with these ids (ascending, unique)."""
        if not self.spec.shards:
            return Rows(self.select(ids))
        return Rows(self.read(self.spec.train.layout.holding(ids), ids)())

    def held_out(self, split: HeldOut) -> Rows | StreamedRows:
        """This worker's share of the validation or test split."""
        if split not in self._held_out:
            of, place = self.spec.held_out[split], (self.rank, self.world_size)
            if self.spec.shards:
                self._held_out[split] = StreamedRows(of, *place, self.read)
            else:
                rows = self.load(split)
                self._held_out[split] = rows.share(*place) if self.world_size > 1 else rows
        return self._held_out[split]

    def feed(self, drawn: Drawn, *, seed: int, global_batch: int, also: np.ndarray) -> tuple[Feed, Rows]:
        """This worker's batches of an epoch; and the rows with the ids ``also``, perhaps among others."""
        layout = self.spec.train.layout
        key: dict[str, Any] = {"seed": seed, "epoch": drawn.epoch}
        place: dict[str, Any] = {"rank": self.rank, "world_size": self.world_size}
        place["global_batch"] = global_batch
        if not self.spec.shards:
            ids, weights = self.table.chosen(everything(self.spec.ids))
            order = epoch_order(ids, weights, **key, **place)
            rows = self.fetch(np.union1d(order.ids, also))
            return MemoryFeed(order, rows, layout), rows
        counts = self.table.counts(layout.ranges)
        windows = shard_order(counts, **key, **place, window_rows=self.spec.window_rows)
        if self._also is None or not np.array_equal(self._also.ids, also):  # kept until others are wanted
            self._also = self.fetch(also)
        return ShardFeed(windows, layout, self.table.chosen, self.read, **key), self._also

    @abstractmethod
    def select(self, ids: np.ndarray) -> pa.Table:
        """The training rows with these ids, where all are in memory."""

    @abstractmethod
    def load(self, split: HeldOut) -> Rows:
        """All rows of a split that is evaluated on."""

    @abstractmethod
    def read(self, layout: Layout, ids: np.ndarray) -> Callable[[], pa.Table]:
        """Begin to read the rows with these ids from row groups; the result waits for them."""

    @abstractmethod
    def start_scoring(
        self, model: SpikingNetwork, scoring: Scoring, *, epoch: int, stamp: int
    ) -> Callable[[], int]:
        """Score, by the current weights, what the policy wants scored before ``epoch``; on rank 0 only.

        The pass runs beside whatever follows, as far as the engine can. The result waits for it and
        says how many it scored; by then they are in the score table, stamped with the epoch ``stamp``.
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

    def publish(self, phase: str, values: dict[str, float]) -> None:  # noqa: B027
        """Show numbers where the surroundings have a place for them."""

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
        super().__init__(spec, ScoreTable(spec.ids), device)
        self._checkpoints, self._watch, self._on_record = checkpoints, watch, on_record
        if not spec.shards:
            self._train = load_rows(spec.train)

    @cached_property
    def _ahead(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(1, thread_name_prefix="read")

    def select(self, ids: np.ndarray) -> pa.Table:
        """By mask."""
        return select(self._train, ids)

    def load(self, split: HeldOut) -> Rows:
        """From the files."""
        return Rows(load_rows(self.spec.held_out[split]))

    def read(self, layout: Layout, ids: np.ndarray) -> Callable[[], pa.Table]:
        """By a thread."""
        return self._ahead.submit(read_rows, layout, ids).result

    def start_scoring(
        self, model: SpikingNetwork, scoring: Scoring, *, epoch: int, stamp: int
    ) -> Callable[[], int]:
        """At once: there is nobody else to do it."""
        ids = self.table.rescore(epoch)
        if ids is None:
            return lambda: 0
        if self.spec.shards:
            for part in parts_of(self.spec.train.layout):
                wanted = ids[slice(*np.searchsorted(ids, [part.low[0], part.high[-1]]))]
                if len(wanted):
                    self._deliver(score_layout(part, wanted, model, scoring, self.device), scoring, stamp)
            return lambda: len(ids)
        with naming_rows(self.spec.train.layout):
            scores = score_table(self.select(ids), model, scoring, self.device)

        def deliver() -> int:
            self._deliver(scores, scoring, stamp)
            return scores.num_rows

        return deliver

    def _deliver(self, scores: pa.Table, scoring: Scoring, stamp: int) -> None:
        found = scores.column(scoring.scores[0]).to_numpy()
        self.table.observe(scores.column("id").to_numpy(), found, stamp, "pass")

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
