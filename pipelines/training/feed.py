"""An epoch's batches, from row groups that are read window by window; rows in memory are one window.

Which row stands where is a pure function of (chosen ids, seed, epoch, worker count); who reads the rows,
and reading ahead, change nothing but time. A feed holds two windows at most.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import pyarrow as pa

from pipelines.data.decode import Examples
from pipelines.data.layout import Layout, Rows, chunked, first_rows, naming_rows, read_rows
from pipelines.data.scan import Split
from pruning.examples.sampling import hash64, shuffled

STREAM_PIECES = 105
Result = TypeVar("Result")
AHEAD = 2  # batches that are decoded before they are trained on
TEST_ROWS = 8192  # of the test split that are read together


@dataclass(frozen=True)
class Window:
    """Row groups whose chosen rows are shuffled together, and which of these a worker trains on."""

    pieces: np.ndarray
    """Positions of the row groups in their layout, int64."""
    skip: int
    """Rows of the shuffled window that belong to the worker before."""
    take: int
    """Rows that are this worker's."""


@dataclass(frozen=True)
class ShardOrder:
    """The rows of one worker for one epoch, window by window.

    All workers take ``steps``; those that run out of rows repeat their last ones with weight 0.
    """

    windows: tuple[Window, ...]
    rows: int
    """Chosen rows of this worker; with none, the one row of its only window is padding."""
    steps: int
    batch_size: int
    """Rows per step of this worker."""
    real: int
    """How many of these are not padding, as long as there are rows."""
    nominal_batch: float
    """The global batch by the number of workers: what a worker's sum of losses is divided by."""


def shard_order(
    counts: np.ndarray,
    *,
    seed: int,
    epoch: int,
    window_rows: int,
    global_batch: int,
    rank: int,
    world_size: int,
) -> ShardOrder:
    """This worker's part of an epoch.

    The row groups that hold chosen rows are permuted by a hash of (seed, epoch, row group) and cut into
    windows of at least ``window_rows`` chosen rows, the rows of each window are shuffled by a hash of (seed,
    epoch, id): that sequence does not depend on the workers. Each worker trains on an equal range of
    it, so that every row group is read once an epoch, except where two workers' ranges meet.

    Args:
        counts: chosen rows of each row group, int64 ``[P]``.
        seed: of the run.
        epoch: of the run.
        window_rows: rows that are shuffled together.
        global_batch: rows per step over all workers. Where workers do not divide it, each takes the next
            whole number of rows and the rows too many have weight 0.
        rank: this worker.
        world_size: number of workers.
    """
    used = np.flatnonzero(counts)
    used = used[np.argsort(hash64(seed, epoch, used, STREAM_PIECES))]
    total = int(counts.sum())
    share = -(-global_batch // world_size)
    before, after = min(rank * share, global_batch), min((rank + 1) * share, global_batch)
    low, high = total * before // global_batch, total * after // global_batch
    windows: list[Window] = []
    at = 0
    for part in chunked(counts[used], window_rows):
        size = int(counts[used[part]].sum())
        first = min(low, total - 1)  # one row at least, to pad with
        skip, stop = max(first - at, 0), min(max(high, first + 1) - at, size)
        if skip < stop:
            windows.append(Window(used[part], skip, stop - skip))
        at += size
    return ShardOrder(
        windows=tuple(windows),
        rows=high - low,
        steps=-(-total // global_batch),
        batch_size=share,
        real=after - before,
        nominal_batch=global_batch / world_size,
    )


Chosen = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
"""Ids and weights drawn from id ranges: `pipelines.training.score_table.ScoreTable.chosen`."""
Reader = Callable[[Layout, np.ndarray], Callable[[], pa.Table]]
"""Begins to read the rows with these ids from row groups; the result waits for them."""


def ahead(begun: Iterable[Callable[[], Result]], count: int = 1) -> Iterator[Result]:
    """Results in order, each waited for once ``count`` more of them are begun."""
    waiting: deque[Callable[[], Result]] = deque()
    for result in begun:
        waiting.append(result)
        if len(waiting) > count:
            yield waiting.popleft()()
    while waiting:
        yield waiting.popleft()()


@dataclass(frozen=True)
class Part:
    """Some of a batch's examples, decoded."""

    ids: np.ndarray
    weights: np.ndarray
    x: Examples
    labels: np.ndarray


@dataclass(frozen=True)
class Batch:
    """One step's examples on one worker, decoded when asked for."""

    ids: np.ndarray
    """int64 ``[B]``."""
    weights: np.ndarray
    """float32 ``[B]``; 0 marks padding."""
    rows: Rows
    """Those of the batch, among others."""
    layout: Layout
    """Where rows lie, to name those that cannot be decoded."""

    def decoded(self, count: int) -> list[Part]:
        """Its examples in at most ``count`` parts of nearly equal size.

        Raises:
            UserError: an example that cannot be decoded, with its file and row.
        """
        count = min(count, len(self.ids))
        ids, weights = np.array_split(self.ids, count), np.array_split(self.weights, count)
        with naming_rows(self.layout):
            return [Part(i, w, *self.rows.get(i)) for i, w in zip(ids, weights, strict=True)]


def decoded(feed: "Feed", count: int) -> Iterator[list[Part]]:
    """The batches of an epoch in at most ``count`` parts, the next ones decoded by a thread meanwhile.

    Raises:
        UserError: an example that cannot be decoded, once its batch is due.
    """
    with ThreadPoolExecutor(1, "decode") as thread:
        yield from ahead((thread.submit(batch.decoded, count).result for batch in feed), AHEAD)


class Feed:
    """The batches of one epoch on one worker, the next window being read while one is trained on."""

    def __init__(
        self, order: ShardOrder, layout: Layout, chosen: Chosen, read: Reader, *, seed: int, epoch: int
    ) -> None:
        self._order, self._layout, self._chosen, self._read = order, layout, chosen, read
        self._key = {"seed": seed, "epoch": epoch}
        self.steps, self.nominal_batch = order.steps, order.nominal_batch

    def __iter__(self) -> Iterator[Batch]:
        real, given = self._order.real, 0
        ids, weights = np.zeros(0, np.int64), np.zeros(0, np.float32)
        left: pa.Table | None = None
        for next_ids, next_weights, table in ahead(map(self._begin, self._order.windows)):
            rows = Rows(table if left is None else pa.concat_tables([left.select(table.column_names), table]))
            ids, weights = np.concatenate([ids, next_ids]), np.concatenate([weights, next_weights])
            while real and len(ids) >= real and given < self.steps:
                yield self._batch(rows, ids[:real], weights[:real], ids)
                ids, weights, given = ids[real:], weights[real:], given + 1
            # What did not fill a batch goes on with the next window; the rest of this one is let go.
            pad = np.sort(ids) if len(ids) else rows.ids[: self._order.batch_size]
            left = rows.table(pad)
            del rows, table
        while given < self.steps:  # the last rows again, with weight 0
            assert left is not None
            yield self._batch(Rows(left), ids, weights, pad)
            ids, weights, given = ids[:0], weights[:0], given + 1

    def _batch(self, rows: Rows, ids: np.ndarray, weights: np.ndarray, pad: np.ndarray) -> Batch:
        missing = self._order.batch_size - len(ids)
        if missing:
            ids = np.concatenate([ids, np.resize(pad, missing)])
            weights = np.concatenate([weights, np.zeros(missing, np.float32)])
        return Batch(ids, weights, rows, self._layout)

    def _begin(self, window: Window) -> Callable[[], tuple[np.ndarray, np.ndarray, pa.Table]]:
        pieces = self._layout.take(window.pieces)
        ids, weights = self._chosen(pieces.ranges)
        by_id = np.argsort(ids)
        order = by_id[np.searchsorted(ids[by_id], shuffled(ids, **self._key))]
        order = order[window.skip : window.skip + window.take]
        ids, weights = ids[order], weights[order]
        if not self._order.rows:
            weights = np.zeros_like(weights)
        wanted = np.sort(ids)
        table = self._read(pieces.holding(wanted), wanted)
        return lambda: (ids, weights, table())


class StreamedRows:
    """A worker's equal share of a split, read again on each pass."""

    def __init__(self, split: Split, rank: int, world_size: int, read: Reader) -> None:
        self._layout, self._ids, self._read = split.layout, split.ids, read
        n = len(split.ids)
        low, high = n * rank // world_size, n * (rank + 1) // world_size
        self._rows = high - low
        self._range = split.ids.first(low).end, split.ids.first(high).end

    def __len__(self) -> int:
        return self._rows

    def batches(self, batch_size: int) -> Iterator[tuple[np.ndarray, Examples, np.ndarray]]:
        """Ids, decoded examples and labels in ascending order of the ids."""
        for table in self._tables():
            with naming_rows(self._layout):
                yield from Rows(table).batches(batch_size)

    def head(self, rows: int) -> Rows:
        """The first ``rows`` rows, or all there are."""
        if not len(self):  # fewer rows than workers
            return Rows(read_rows(self._layout, self._ids.array(0, 0)))
        return Rows(first_rows(self._tables(), rows))

    def _tables(self) -> Iterator[pa.Table]:
        ranges = self._layout.ranges
        mine = np.flatnonzero(self._ids.counts(ranges.clip(*self._range)))
        parts = chunked(self._ids.counts(ranges[mine]), TEST_ROWS)
        return ahead(self._begin(self._layout.take(mine[part])) for part in parts)

    def _begin(self, pieces: Layout) -> Callable[[], pa.Table]:
        own = pieces.ranges.clip(*self._range).tolist()
        return self._read(pieces, np.concatenate([self._ids.array(low, high) for low, high in own]))
