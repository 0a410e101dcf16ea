"""An epoch's batches: from rows in memory, or from row groups that are read as the epoch goes on.

Both are pure functions of (chosen ids, seed, epoch, worker count); reading ahead changes nothing but
time. A feed from row groups holds two windows of `pipelines.training.order.ShardOrder` at most.
"""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pyarrow as pa

from pipelines.data.decode import Examples
from pipelines.data.layout import Layout, Rows, naming_rows
from pipelines.training.order import EpochOrder, ShardOrder, Window
from pipelines.training.trace import part
from pruning.examples.sampling import shuffled

AHEAD = 2  # batches that are decoded before they are trained on
Chosen = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
"""Ids and weights drawn from id ranges: `pipelines.training.score_table.ScoreTable.chosen`."""
Reader = Callable[[Layout, np.ndarray], Callable[[], pa.Table]]
"""Begins to read the rows with these ids from row groups; the result waits for them."""


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

    def parts(self, count: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """Ids and weights in at most ``count`` parts of nearly equal size."""
        count = min(count, len(self.ids))
        ids, weights = np.array_split(self.ids, count), np.array_split(self.weights, count)
        return list(zip(ids, weights, strict=True))

    def get(self, ids: np.ndarray) -> tuple[Examples, np.ndarray]:
        """Some of its examples, decoded, and their labels.

        Raises:
            UserError: an example that cannot be decoded, with its file and row.
        """
        with naming_rows(self.layout):
            return self.rows.get(ids)


@dataclass(frozen=True)
class Part:
    """Some of a batch's examples, decoded."""

    ids: np.ndarray
    weights: np.ndarray
    x: Examples
    labels: np.ndarray


def decoded(feed: "Feed", count: int) -> Iterator[list[Part]]:
    """The batches of an epoch in at most ``count`` parts, the next ones decoded by a thread meanwhile.

    Raises:
        UserError: an example that cannot be decoded, once its batch is due.
    """

    def decode(batch: Batch) -> list[Part]:
        return [Part(ids, weights, *batch.get(ids)) for ids, weights in batch.parts(count)]

    with ThreadPoolExecutor(1, "decode") as thread:
        waiting: deque[Future[list[Part]]] = deque()
        for batch in feed:
            waiting.append(thread.submit(decode, batch))
            if len(waiting) > AHEAD:
                with part("data"):
                    found = waiting.popleft().result()
                yield found
        while waiting:
            yield waiting.popleft().result()


class Feed(Protocol):
    """The batches of one epoch on one worker."""

    @property
    def steps(self) -> int:
        """How many there are; the same on all workers."""
        ...

    @property
    def batch_size(self) -> int:
        """Examples per batch."""
        ...

    @property
    def nominal_batch(self) -> float:
        """The global batch by the number of workers: what a worker's sum of losses is divided by."""
        ...

    def __iter__(self) -> Iterator[Batch]:
        """In training order."""
        ...


class MemoryFeed:
    """Batches from rows that are all there."""

    def __init__(self, order: EpochOrder, rows: Rows, layout: Layout) -> None:
        self._order, self._rows, self._layout = order, rows, layout
        self.steps, self.batch_size = order.steps, order.batch_size
        self.nominal_batch = order.nominal_batch

    def __iter__(self) -> Iterator[Batch]:
        """See `Feed`."""
        for step in range(self.steps):
            yield Batch(*self._order.batch(step), self._rows, self._layout)


class ShardFeed:
    """Batches from row groups, the next window being read while one is trained on."""

    def __init__(
        self, order: ShardOrder, layout: Layout, chosen: Chosen, read: Reader, *, seed: int, epoch: int
    ) -> None:
        self._order, self._layout, self._chosen, self._read = order, layout, chosen, read
        self._key = {"seed": seed, "epoch": epoch}
        self.steps, self.batch_size = order.steps, order.batch_size
        self.nominal_batch = order.nominal_batch

    def __iter__(self) -> Iterator[Batch]:
        """See `Feed`."""
        real, given = self._order.real, 0
        ids, weights = np.zeros(0, np.int64), np.zeros(0, np.float32)
        left: pa.Table | None = None
        for next_ids, next_weights, table in self._windows():
            rows = Rows(table if left is None else pa.concat_tables([left.select(table.column_names), table]))
            ids, weights = np.concatenate([ids, next_ids]), np.concatenate([weights, next_weights])
            while real and len(ids) >= real and given < self.steps:
                yield self._batch(rows, ids[:real], weights[:real], ids)
                ids, weights, given = ids[real:], weights[real:], given + 1
            # What did not fill a batch goes on with the next window; the rest of this one is let go.
            pad = np.sort(ids) if len(ids) else rows.ids[: self.batch_size]
            left = rows.table(pad)
            del rows, table
        while given < self.steps:  # the last rows again, with weight 0
            assert left is not None
            yield self._batch(Rows(left), ids, weights, pad)
            ids, weights, given = ids[:0], weights[:0], given + 1

    def _batch(self, rows: Rows, ids: np.ndarray, weights: np.ndarray, pad: np.ndarray) -> Batch:
        missing = self.batch_size - len(ids)
        if missing:
            ids = np.concatenate([ids, np.resize(pad, missing)])
            weights = np.concatenate([weights, np.zeros(missing, np.float32)])
        return Batch(ids, weights, rows, self._layout)

    def _windows(self) -> Iterator[tuple[np.ndarray, np.ndarray, pa.Table]]:
        ahead = None
        for window in self._order.windows:
            begun = self._begin(window)
            if ahead is not None:
                yield ahead[0], ahead[1], ahead[2]()
            ahead = begun
        if ahead is not None:
            yield ahead[0], ahead[1], ahead[2]()

    def _begin(self, window: Window) -> tuple[np.ndarray, np.ndarray, Callable[[], pa.Table]]:
        pieces = self._layout.take(window.pieces)
        ids, weights = self._chosen(pieces.ranges)
        by_id = np.argsort(ids)
        order = by_id[np.searchsorted(ids[by_id], shuffled(ids, **self._key))]
        order = order[window.skip : window.skip + window.take]
        ids, weights = ids[order], weights[order]
        if not self._order.rows:
            weights = np.zeros_like(weights)
        wanted = np.sort(ids)
        return ids, weights, self._read(pieces.holding(wanted), wanted)
