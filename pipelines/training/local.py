"""The launcher without Ray: one plain process. The baseline that Ray's cost is held against."""

import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from pipelines.config.plugins import own_failures_named
from pipelines.data.dataset import Split
from pipelines.data.inputs import choose_device
from pipelines.data.layout import Layout, Rows, naming_rows, read_rows, select
from pipelines.scoring.scorer import Scoring, parts_of, score_layout, score_table
from pipelines.storage.sync import storage_explained
from pipelines.training import checkpoint
from pipelines.training.engine import HeldOut, HeldOutRows, Shared
from pipelines.training.feed import Feed
from pipelines.training.loop import run_phases
from pipelines.training.score_table import Drawn, ScoreTable
from pipelines.training.shards import ShardSource, StreamedRows
from pipelines.training.worker import RunSpec, memory_feed, start
from snn.kernels.allocator import tune_allocator
from snn.models import SpikingNetwork


class LocalEngine:
    """The only worker there is; it reads its rows itself."""

    rank = 0
    world_size = 1

    def __init__(
        self,
        spec: RunSpec,
        *,
        checkpoints: Path,
        watch: Callable[[dict[str, object]], None],
        on_record: Callable[[dict[str, object]], None] | None = None,
    ) -> None:
        self.device = choose_device(spec.config.cluster.device, torch.cuda.device_count())
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)  # Triton's kernels run on the current one
        self.table = ScoreTable(spec.ids)
        self._spec = spec
        self._source: ShardSource | None = None
        self._train: pa.Table | None = None
        self._held_out: dict[HeldOut, HeldOutRows] = {}
        if spec.shards:
            self._ahead = ThreadPoolExecutor(1, thread_name_prefix="read")
            self._source = ShardSource(spec.train, spec.window_rows, 0, 1, self._read)
        else:
            self._train = load_rows(spec.train)
        self._checkpoints = checkpoints
        self._watch = watch
        self._on_record = on_record

    def warm_up(self) -> None:
        """See `pipelines.training.engine.Engine`, as all that follow: nothing to start."""

    def fetch(self, ids: np.ndarray) -> Rows:
        """By mask, from memory; or from the row groups that hold them."""
        if self._source is not None:
            return self._source.fetch(ids)
        assert self._train is not None
        return Rows(select(self._train, ids))

    def feed(self, drawn: Drawn, *, seed: int, global_batch: int, also: np.ndarray) -> tuple[Feed, Rows]:
        """From memory, or from row groups."""
        if self._source is not None:
            return self._source.feed(self.table, drawn, seed=seed, global_batch=global_batch, also=also)
        return memory_feed(self, self._spec, drawn, seed=seed, global_batch=global_batch, also=also)

    def held_out(self, split: HeldOut) -> HeldOutRows:
        """All of its rows."""
        if split not in self._held_out:
            of = self._spec.held_out[split]
            streamed = self._spec.shards
            self._held_out[split] = StreamedRows(of, 0, 1, self._read) if streamed else Rows(load_rows(of))
        return self._held_out[split]

    def start_scoring(
        self, model: SpikingNetwork, scoring: Scoring, *, epoch: int, stamp: int
    ) -> Callable[[], int]:
        """At once: there is nobody else to do it."""
        ids = self.table.rescore(epoch)
        if ids is None:
            return lambda: 0
        if self._spec.shards:
            for part in parts_of(self._spec.train.layout):
                wanted = ids[slice(*np.searchsorted(ids, [part.low[0], part.high[-1]]))]
                if len(wanted):
                    self._deliver(score_layout(part, wanted, model, scoring, self.device), scoring, stamp)
            return lambda: len(ids)
        assert self._train is not None
        with naming_rows(self._spec.train.layout):
            scores = score_table(select(self._train, ids), model, scoring, self.device)

        def deliver() -> int:
            self._deliver(scores, scoring, stamp)
            return scores.num_rows

        return deliver

    def _deliver(self, scores: pa.Table, scoring: Scoring, stamp: int) -> None:
        found = scores.column(scoring.scores[0]).to_numpy()
        self.table.observe(scores.column("id").to_numpy(), found, stamp, "pass")

    def _read(self, layout: Layout, ids: np.ndarray) -> Callable[[], pa.Table]:
        return self._ahead.submit(read_rows, layout, ids).result

    def distribute(self, model: nn.Module) -> nn.Module:
        """The model itself."""
        return model

    def progress(self, event: dict[str, object]) -> None:
        """Straight to the watcher."""
        self._watch(event)

    def publish(self, phase: str, values: dict[str, float]) -> None:
        """There is no dashboard."""

    def sum(self, tensor: Tensor) -> Tensor:
        """The tensor itself."""
        return tensor

    def share(self, value: Shared) -> Shared:
        """The value itself."""
        return value

    def barrier(self) -> None:
        """Nobody to wait for."""

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
    """All rows of a split, encoded, in one piece.

    Raises:
        UserError: a row group that cannot be read.
    """
    return read_rows(split.layout, split.ids).combine_chunks()


@own_failures_named()
def train_locally(
    spec: RunSpec,
    *,
    watch: Callable[[dict[str, object]], None],
    on_record: Callable[[dict[str, object]], None] | None = None,
) -> None:
    """Run a spec's phases in this process, from its newest checkpoint if there is one.

    Args:
        spec: of the run.
        watch: is shown progress events.
        on_record: gets each record once its checkpoint is whole.
    """
    tune_allocator()
    checkpoints = Path(spec.folder) / "checkpoints"
    engine = LocalEngine(spec, checkpoints=checkpoints, watch=watch, on_record=on_record)
    resume = checkpoint.latest_checkpoint(checkpoints)
    with _threads(spec.config.cluster.threads), storage_explained(Path(spec.folder), spec.remote):
        run_phases(start(spec, engine, resume), resume)


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """Torch computes with so many threads within it; as before afterwards, for whoever calls this."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
