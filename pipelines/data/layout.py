"""Which rows there are, where they lie, and reading chosen ones out of a split's Parquet files.

Ids are positions: the k-th row of a split, in the order of its files, has the id k.

A row group is the unit of reading: rows in memory at once are those of the row groups that one call
names. All readers go through here, so an unreadable row group is named the same way everywhere. What is
read has 64-bit offsets, so that all of a split's rows can be one array: 32 bits end at 2 GiB.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cluster.errors import UserError
from pipelines.data.decode import ExampleError, Examples, decode
from pipelines.storage.paths import open_parquet, short
from pruning.examples.sampling import uniform

COLUMNS = ("id", "image", "label")
UNREADABLE = (pa.ArrowException, OSError)
PIECE_BYTES = 32 << 20  # of a row group that are decoded at once: Arrow cannot decode 2 GiB of structs


MOST_IDS = 100_000_000
"""Ids that one process draws from: 16 bytes of memory each for their scores, and about 40 for a draw."""
BLOCK = 1 << 16
"""Ids that are looked at together: what walking a set costs in memory."""


@dataclass(frozen=True, eq=False)
class Ids:
    """The ids 0 to ``end - 1``, except those of rows that are left out."""

    end: int
    absent: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    """int64, ascending, unique."""

    def __len__(self) -> int:
        return self.end - len(self.absent)

    def array(self, low: int = 0, high: int | None = None) -> np.ndarray:
        """The ids in ``[low, high)``, int64, ascending; all by default."""
        low, high = max(low, 0), self.end if high is None else min(high, self.end)
        a, b = np.searchsorted(self.absent, [low, high])
        return np.delete(np.arange(low, high), self.absent[a:b] - low)

    def blocks(self) -> Iterator[np.ndarray]:
        """All ids, int64, ascending, a bounded number at a time."""
        return (self.array(low, low + BLOCK) for low in range(0, self.end, BLOCK))

    def counts(self, ranges: np.ndarray) -> np.ndarray:
        """How many ids there are in ranges ``[low, high)``, int64 ``[P, 2]``: int64 ``[P]``."""
        cut = np.clip(ranges, 0, self.end)
        absent = np.searchsorted(self.absent, cut)
        return np.maximum((cut - absent) @ [-1, 1], 0)

    def present(self) -> np.ndarray | None:
        """Which of the ids there are, bool ``[end]``; ``None`` for all."""
        if not len(self.absent):
            return None
        mask = np.ones(self.end, bool)
        mask[self.absent] = False
        return mask

    def without(self, ids: np.ndarray) -> "Ids":
        """The set without these ids; ``end`` stays."""
        return Ids(self.end, np.union1d(self.absent, ids[(ids >= 0) & (ids < self.end)]))

    def first(self, count: int) -> "Ids":
        """The ``count`` lowest ids (of at least so many)."""
        before = self.absent - np.arange(len(self.absent))  # ids there are below each absent one
        end = count + int(np.searchsorted(before, count - 1, side="right"))
        return Ids(end, self.absent[self.absent < end])


def uniform_sample(
    ids: Ids, size: int, *, seed: int, epoch: int, stream: int, rank: int = 0, world_size: int = 1
) -> np.ndarray:
    """This worker's equal share of a uniform sample without replacement: int64, ascending, at least one id.

    Drawn by a hash of (seed, epoch, id, stream); streams tell samples for different purposes apart. ``size``
    is that of all workers together.
    """
    size = min(size, len(ids))
    chosen, keys = np.zeros(0, np.int64), np.zeros(0, np.float64)
    for block in ids.blocks():  # the lowest keys so far; of equal ones the earlier
        chosen = np.concatenate([chosen, block])
        keys = np.concatenate([keys, uniform(seed, epoch, block, stream=stream)])
        order = np.argsort(keys, kind="stable")[:size]
        chosen, keys = chosen[order], keys[order]
    share = max(size // world_size, 1)
    start = rank * share % size
    return np.sort(chosen[start : start + share])


@dataclass(frozen=True, eq=False)
class Layout:
    """Row groups with at least one row, in order of file and place; ``P`` of them."""

    files: tuple[str, ...]
    file: np.ndarray
    """Index into ``files``, int32 ``[P]``."""
    group: np.ndarray
    """Row group in its file, int32 ``[P]``."""
    start: np.ndarray
    """Its first row in its file, int64 ``[P]``."""
    rows: np.ndarray
    """int64 ``[P]``."""
    low: np.ndarray
    """Id of its first row, int64 ``[P]``, ascending; those of the others follow."""

    @classmethod
    def of(cls, files: tuple[str, ...], rows: Sequence[np.ndarray], low: int = 0) -> "Layout":
        """Of files whose row groups have so many ``rows`` each, with ids from ``low`` on."""
        file = np.repeat(np.arange(len(files)), [len(own) for own in rows])
        group = np.concatenate([np.arange(len(own), dtype=np.int32) for own in rows])
        start = np.concatenate([np.cumsum(own) - own for own in rows])
        all_rows = np.concatenate(rows)
        every = cls(files, file, group, start, all_rows, low + np.cumsum(all_rows) - all_rows)
        return every.take(np.flatnonzero(all_rows))

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def high(self) -> np.ndarray:
        """One more than the highest id, int64 ``[P]``."""
        return self.low + self.rows

    @property
    def ranges(self) -> np.ndarray:
        """Id ranges ``[low, high)``, int64 ``[P, 2]``."""
        return np.stack([self.low, self.high], axis=1)

    def take(self, pieces: np.ndarray | Sequence[int]) -> "Layout":
        """Some of the row groups, in the order given; small enough to send to a task."""
        at = np.asarray(pieces, dtype=np.int64)
        used, file = np.unique(self.file[at], return_inverse=True)
        names = tuple(self.files[i] for i in used)
        rest = (column[at] for column in (self.group, self.start, self.rows, self.low))
        return Layout(names, file.astype(np.int32), *rest)

    def holding(self, wanted: np.ndarray | Ids) -> "Layout":
        """The row groups that hold any of these ids (ascending, or a set)."""
        if isinstance(wanted, Ids):
            found = wanted.counts(self.ranges) > 0
        else:
            found = np.searchsorted(wanted, self.high) > np.searchsorted(wanted, self.low)
        return self.take(np.flatnonzero(found))

    def parts(self, rows: int) -> Iterator["Layout"]:
        """Consecutive row groups of at least ``rows`` rows together (the last part may have fewer)."""
        for part in chunked(self.rows, rows):
            yield self.take(part)

    def place_of(self, example: int) -> tuple[str, int] | None:
        """File and row of an id; ``None`` where it is in none of the row groups."""
        for i in np.flatnonzero((self.low <= example) & (example < self.high)):
            return self.files[self.file[i]], int(self.start[i] + example - self.low[i])
        return None


def chunked(rows: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """Consecutive positions whose ``rows`` add up to at least ``size``; the last may have less."""
    ends = np.cumsum(rows)
    start = before = 0
    while start < len(rows):
        stop = min(int(np.searchsorted(ends, before + size)) + 1, len(rows))
        yield np.arange(start, stop)
        start, before = stop, int(ends[stop - 1])


def read_rows(layout: Layout, wanted: np.ndarray | Ids) -> pa.Table:
    """The rows of these ids (ascending, or a set): columns id, image and label (int64)."""
    found = [rows for rows in read_pieces(layout.holding(wanted), wanted) if rows.num_rows]
    return pa.concat_tables(found) if found else next(read_pieces(layout.take([0]), np.zeros(0, np.int64)))


def first_rows(tables: Iterable[pa.Table], rows: int) -> pa.Table:
    """The first ``rows`` rows of tables one after the other, or all there are; no more tables are read."""
    found: list[pa.Table] = []
    for table in tables:
        found.append(table)
        if sum(t.num_rows for t in found) >= rows:
            break
    return pa.concat_tables(found).slice(0, rows)


def read_pieces(layout: Layout, wanted: np.ndarray | Ids) -> Iterator[pa.Table]:
    """As `read_rows`, a part of a row group after the other; those without wanted rows are empty tables."""
    for number in np.unique(layout.file):
        own = np.flatnonzero(layout.file == number)
        i = own[0]
        try:
            with open_parquet(layout.files[number]) as parquet:
                for i in own:
                    low = int(layout.low[i])
                    for piece in _decoded(parquet, int(layout.group[i])):
                        yield _widened(piece, _within(wanted, low, low + piece.num_rows), low)
                        low += piece.num_rows
        except UNREADABLE as error:
            raise unreadable(layout, i, error) from None


def with_source_ids(layout: Layout, schema: pa.Schema, parts: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Tables with the column source_id behind their ids (ascending), where the files have that column."""
    for part in parts:
        if "source_id" in schema.names and part.num_rows:
            own = pa.chunked_array(_source_ids(layout, part.column("id").to_numpy()))
            part = part.add_column(1, "source_id", own)
        yield part


def _source_ids(layout: Layout, ids: np.ndarray) -> Iterator[pa.Array]:
    needed = layout.holding(ids)
    for number, file in enumerate(needed.files):
        with open_parquet(file) as parquet:
            for i in np.flatnonzero(needed.file == number):
                column = parquet.read_row_group(int(needed.group[i]), columns=["source_id"]).column(0)
                low = int(needed.low[i])
                at = _within(ids, low, low + int(needed.rows[i])) - low
                yield from column.take(pa.array(at)).chunks


def _within(wanted: np.ndarray | Ids, low: int, high: int) -> np.ndarray:
    """The wanted ids in ``[low, high)``."""
    if isinstance(wanted, Ids):
        return wanted.array(low, high)
    return wanted[slice(*np.searchsorted(wanted, [low, high]))]


def select(block: pa.Table, wanted: np.ndarray) -> pa.Table:
    """The rows of read ones whose id is among ``wanted``."""
    keep = np.isin(block.column("id").to_numpy(), wanted)
    return block if keep.all() else block.filter(pa.array(keep))


def unreadable(layout: Layout, piece: int, error: BaseException) -> UserError:
    """The mistake that a damaged row group is."""
    first, group = layout.start[piece], layout.group[piece]
    place = f"row group {group} (rows {first} to {first + layout.rows[piece] - 1})"
    return UserError(layout.files[layout.file[piece]], f"{place} cannot be read ({short(error)})")


@contextmanager
def naming_rows(layout: Layout) -> Iterator[None]:
    """Name the file and row of an example that cannot be decoded, in place of an `ExampleError`."""
    try:
        yield
    except ExampleError as error:
        place = layout.place_of(error.example)
        if place is None:
            raise
        raise UserError(place[0], f"row {place[1]}: {error.what}") from None


def group_bytes(group: pq.RowGroupMetaData) -> int:
    """What a row group's columns take, uncompressed."""
    columns = (group.column(i) for i in range(group.num_columns))
    return sum(c.total_uncompressed_size for c in columns if c.path_in_schema.split(".")[0] in COLUMNS)


def _decoded(parquet: pq.ParquetFile, group: int) -> Iterator[pa.RecordBatch]:
    meta = parquet.metadata.row_group(group)
    rows = max(1, PIECE_BYTES * meta.num_rows // max(group_bytes(meta), 1))
    return parquet.iter_batches(
        min(rows, meta.num_rows), [group], columns=["image", "label"], use_threads=False
    )


def _widened(piece: pa.RecordBatch, ids: np.ndarray, low: int) -> pa.Table:
    """Some rows of a piece whose first has the id ``low``."""
    rows = piece if len(ids) == piece.num_rows else piece.take(pa.array(ids - low))
    images, labels = rows.column("image"), rows.column("label")
    return pa.table({"id": ids, "image": images.cast(_wide(images.type)), "label": labels.cast(pa.int64())})


def _wide(kind: pa.DataType) -> pa.DataType:
    """The same type with offsets of 64 bits."""
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_wide(field.type)) for field in kind])
    if pa.types.is_list(kind):
        return pa.large_list(kind.value_field)
    if pa.types.is_binary(kind):
        return pa.large_binary()
    return pa.large_string() if pa.types.is_string(kind) else kind


class Rows:
    """Encoded examples that are found by id; decoded only when a batch wants them."""

    def __init__(self, table: pa.Table) -> None:
        ids = table.column("id").to_numpy()
        if (np.diff(ids) < 0).any():  # a copy of all images, so only where it is needed
            table = table.take(pa.array(np.argsort(ids, kind="stable")))
        self.ids = table.column("id").to_numpy()
        self._images = table.column("image").combine_chunks()
        self._labels = table.column("label").to_numpy().astype(np.int64)

    def __len__(self) -> int:
        return len(self.ids)

    def get(self, ids: np.ndarray) -> tuple[Examples, np.ndarray]:
        """Decoded examples ``[B, ...]`` and labels int64 ``[B]``, in the order of ``ids`` (repeats allowed).

        Raises:
            KeyError: an id that was not fetched.
        """
        at = np.minimum(np.searchsorted(self.ids, ids), len(self.ids) - 1)
        missing = self.ids[at] != ids
        if missing.any():
            raise KeyError(f"id {ids[missing][0]} was not fetched")
        images = self._images.take(pa.array(at))
        return decode(images, ids), self._labels[at]

    def table(self, ids: np.ndarray) -> pa.Table:
        """Some of the rows (ascending ids that were fetched), as they came."""
        at = np.searchsorted(self.ids, ids)
        return pa.table({"id": ids, "image": self._images.take(pa.array(at)), "label": self._labels[at]})

    def head(self, rows: int) -> "Rows":
        """At least the first ``rows`` rows: all of them."""
        return self

    def batches(self, batch_size: int) -> Iterator[tuple[np.ndarray, Examples, np.ndarray]]:
        """Ids, decoded examples and labels in ascending order of the ids."""
        for start in range(0, len(self), batch_size):
            ids = self.ids[start : start + batch_size]
            yield ids, *self.get(ids)
