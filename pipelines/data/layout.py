"""Where rows lie: the row groups of a split's Parquet files, and reading chosen rows out of them.

A row group is the unit of reading: rows in memory at once are those of the row groups that one call
names. All readers go through here, so an unreadable row group is named the same way everywhere.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.data.decode import ExampleError
from pipelines.data.files import open_parquet
from pipelines.data.ids import IdSet
from pipelines.errors import UserError

COLUMNS = ("id", "image", "label")
UNREADABLE = (pa.ArrowException, OSError)


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
    """Lowest id, int64 ``[P]``."""
    high: np.ndarray
    """One more than the highest id, int64 ``[P]``."""

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def ranges(self) -> np.ndarray:
        """Id ranges ``[low, high)``, int64 ``[P, 2]``."""
        return np.stack([self.low, self.high], axis=1)

    def take(self, pieces: np.ndarray | Sequence[int]) -> "Layout":
        """Some of the row groups, in the order given; small enough to send to a task."""
        at = np.asarray(pieces, dtype=np.int64)
        used, file = np.unique(self.file[at], return_inverse=True)
        names = tuple(self.files[i] for i in used)
        rest = (column[at] for column in (self.group, self.start, self.rows, self.low, self.high))
        return Layout(names, file.astype(np.int32), *rest)

    def by_id(self) -> "Layout | None":
        """The row groups in ascending order of their ids; ``None`` where their id ranges overlap."""
        order = np.argsort(self.low, kind="stable")
        low, high = self.low[order], self.high[order]
        return self.take(order) if (low[1:] >= high[:-1]).all() else None

    def parts(self, rows: int) -> Iterator["Layout"]:
        """Consecutive row groups of at least ``rows`` rows together (the last part may have fewer)."""
        for part in chunked(self.rows, rows):
            yield self.take(part)


def chunked(rows: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """Consecutive positions whose ``rows`` add up to at least ``size``; the last may have less."""
    ends = np.cumsum(rows)
    start = 0
    while start < len(rows):
        before = int(ends[start - 1]) if start else 0
        stop = min(int(np.searchsorted(ends, before + size)) + 1, len(rows))
        yield np.arange(start, stop)
        start = stop


def read_rows(layout: Layout, wanted: "np.ndarray | IdSet") -> pa.Table:
    """The wanted rows of a layout's row groups: columns id, image and label (int64).

    Args:
        layout: every row group in it is read, so name no more than fit into memory.
        wanted: ascending ids, or a set of ids.

    Raises:
        UserError: a row group that cannot be read, with its file and rows.
    """
    found = [rows for rows in _read(layout, wanted) if rows.num_rows]
    return pa.concat_tables(found) if found else next(_read(layout.take([0]), np.zeros(0, np.int64)))


def read_stretch(layout: Layout, number: int, of: int, wanted: "np.ndarray | IdSet") -> pa.Table:
    """The ``number``-th of ``of`` equal stretches of a layout's rows (see `read_rows`), the wanted ones."""
    ends = np.cumsum(layout.rows)
    total = int(ends[-1])
    low, high = total * number // of, total * (number + 1) // of
    parts = [next(_read(layout.take([0]), np.zeros(0, np.int64)))]
    for i in np.flatnonzero((ends > low) & (ends - layout.rows < high)).tolist():
        start = int(ends[i] - layout.rows[i])
        first, last = max(low - start, 0), min(high - start, int(layout.rows[i]))
        parts.append(select(next(_read(layout.take([i]), None)).slice(first, last - first), wanted))
    return pa.concat_tables(parts)


def select(block: pa.Table, wanted: "np.ndarray | IdSet") -> pa.Table:
    """The block's rows whose id is among ``wanted`` (a set, or ascending ids)."""
    of_block = block.column("id").to_numpy()
    if isinstance(wanted, IdSet):
        keep = wanted.contains(of_block)
    elif len(wanted) == 0:
        return block.slice(0, 0)
    else:
        at = np.minimum(np.searchsorted(wanted, of_block), len(wanted) - 1)
        keep = wanted[at] == of_block
    return block if keep.all() else block.filter(pa.array(keep))


def unreadable(file: str, start: int, rows: int, group: int, error: BaseException) -> UserError:
    """The mistake that a damaged row group is."""
    reason = " ".join(str(error).split()) or type(error).__name__
    return UserError(
        file, f"row group {group} (rows {start} to {start + rows - 1}) cannot be read ({reason})"
    )


@contextmanager
def naming_rows(layout: Layout) -> Iterator[None]:
    """Let an example that cannot be decoded be told of with its file and row.

    Raises:
        UserError: instead of an `ExampleError`.
    """
    try:
        yield
    except ExampleError as error:
        place = place_of(layout, error.example)
        if place is None:
            raise
        raise UserError(place[0], f"row {place[1]}: {error.what}") from None


def place_of(layout: Layout, example: int) -> tuple[str, int] | None:
    """File and row of an id; ``None`` where it is in none of the row groups."""
    for i in np.flatnonzero((layout.low <= example) & (example < layout.high)):
        file = layout.files[layout.file[i]]
        with suppress(*UNREADABLE), open_parquet(file) as parquet:
            ids = parquet.read_row_group(int(layout.group[i]), columns=["id"]).column("id").to_numpy()
            at = np.flatnonzero(ids == example)
            if len(at):
                return file, int(layout.start[i] + at[0])
    return None


def _read(layout: Layout, wanted: "np.ndarray | IdSet | None") -> Iterator[pa.Table]:
    opened: tuple[int, pq.ParquetFile] | None = None
    try:
        for i in range(len(layout)):
            file, group = int(layout.file[i]), int(layout.group[i])
            try:
                if opened is None or opened[0] != file:
                    if opened is not None:
                        opened[1].close()
                    opened = (file, open_parquet(layout.files[file]))
                rows = opened[1].read_row_group(group, columns=list(COLUMNS), use_threads=False)
            except UNREADABLE as error:
                start, count = int(layout.start[i]), int(layout.rows[i])
                raise unreadable(layout.files[file], start, count, group, error) from None
            rows = rows.select(list(COLUMNS)).replace_schema_metadata(None)
            for column in (0, 2):  # empty values are those of rows that are left out
                filled = (
                    rows.column(column).fill_null(-1)
                    if rows.column(column).null_count
                    else rows.column(column)
                )
                rows = rows.set_column(column, COLUMNS[column], filled.cast(pa.int64()))
            yield rows if wanted is None else select(rows, wanted)
    finally:
        if opened is not None:
            opened[1].close()
