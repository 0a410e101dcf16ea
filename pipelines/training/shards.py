"""A worker's rows where the data are larger than memory: read by row groups, window by window."""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from pipelines.data.dataset import Split
from pipelines.data.decode import Examples
from pipelines.data.layout import Rows, chunked, naming_rows
from pipelines.training.feed import Feed, Reader, ShardFeed
from pipelines.training.order import shard_order
from pipelines.training.score_table import Drawn, ScoreTable

TEST_ROWS = 8192  # of the test split that are read together


class ShardSource:
    """What an engine asks for rows in this mode (see `pipelines.training.engine.Engine`).

    Args:
        train: training rows.
        window_rows: chosen rows that are shuffled together.
        rank: this worker.
        world_size: number of workers.
        read: how row groups are read.
    """

    def __init__(self, train: Split, window_rows: int, rank: int, world_size: int, read: Reader) -> None:
        self._layout = train.layout
        self._window_rows, self._read = window_rows, read
        self._rank, self._world_size = rank, world_size
        self._also: Rows | None = None

    def fetch(self, ids: np.ndarray) -> Rows:
        """The rows with these ids (ascending, unique): for a few, scattered ones."""
        return Rows(self._read(self._layout.holding(ids), ids)())

    def feed(
        self, table: ScoreTable, drawn: Drawn, *, seed: int, global_batch: int, also: np.ndarray
    ) -> tuple[Feed, Rows]:
        """The batches of an epoch; the rows ``also`` are kept until other ones are asked for."""
        order = shard_order(
            table.counts(self._layout.ranges),
            seed=seed,
            epoch=drawn.epoch,
            window_rows=self._window_rows,
            global_batch=global_batch,
            rank=self._rank,
            world_size=self._world_size,
        )
        if self._also is None or not np.array_equal(self._also.ids, also):
            self._also = self.fetch(also)
        feed = ShardFeed(order, self._layout, table.chosen, self._read, seed=seed, epoch=drawn.epoch)
        return feed, self._also


class StreamedRows:
    """A worker's equal share of a split, read again on each pass."""

    def __init__(self, split: Split, rank: int, world_size: int, read: Reader) -> None:
        self._layout, self._ids, self._read = split.layout, split.ids, read
        self._counts = split.ids.counts(self._layout.ranges)
        n = int(self._counts.sum())
        self._low, self._high = n * rank // world_size, n * (rank + 1) // world_size
        self._head: Rows | None = None

    def __len__(self) -> int:
        return self._high - self._low

    def batches(self, batch_size: int) -> Iterator[tuple[np.ndarray, Examples, np.ndarray]]:
        """Ids, decoded examples and labels in ascending order of the ids."""
        for table in self._tables():
            with naming_rows(self._layout):
                yield from Rows(table).batches(batch_size)

    def head(self, rows: int) -> Rows:
        """The first ``rows`` rows, or all there are; kept."""
        if self._head is None or len(self._head) < min(rows, len(self)):
            tables: list[pa.Table] = []
            for table in self._tables():
                tables.append(table)
                if sum(t.num_rows for t in tables) >= rows:
                    break
            self._head = Rows(pa.concat_tables(tables).slice(0, rows))
        return self._head

    def _tables(self) -> Iterator[pa.Table]:
        ends = np.cumsum(self._counts)
        mine = np.flatnonzero((ends > self._low) & (ends - self._counts < self._high))
        ahead = None
        for part in chunked(self._counts[mine], TEST_ROWS):
            pieces = self._layout.take(mine[part])
            ids = np.concatenate([self._ids.array(a, b) for a, b in pieces.ranges.tolist()])
            first = int(ends[mine[part[0]]] - self._counts[mine[part[0]]])
            begun = self._read(pieces, ids[max(self._low - first, 0) : self._high - first])
            if ahead is not None:
                yield ahead()
            ahead = begun
        if ahead is not None:
            yield ahead()
