"""Looking through a split before a run: which ids there are, where they lie, and what is wrong with rows."""

import json
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.data.bad_rows import BadRows
from pipelines.data.decode import is_encoded, is_numeric
from pipelines.data.events import is_events
from pipelines.data.ids import IdCollector, IdSet
from pipelines.data.layout import COLUMNS, UNREADABLE, Layout, chunked, group_bytes, unreadable
from pipelines.errors import UserError
from pipelines.storage.atomic import read_json_below
from pipelines.storage.paths import Folder, below, open_parquet, short, uri_of

MANIFEST = "manifest.json"
REMEDY = "`spikeprune data ingest` writes a dataset's files"
SCANNED_ROWS = 1 << 18  # ids and labels that are looked at together
MAX_ID_GAP = 32  # ids may spread over this many times the number of rows before scores would waste memory


@dataclass(frozen=True, eq=False)
class Scanned:
    """What a look through a split's ids and labels tells."""

    ids: IdSet
    layout: Layout
    num_bytes: int
    """Of the rows in memory, still encoded."""
    class_counts: dict[int, int]
    """Rows of each label that occurs."""


def split_files(folder: Path | str, split: str) -> tuple[str, ...]:
    """The Parquet files of a split, in order of their names.

    Raises:
        UserError: no such folder, or no file of that split.
    """
    if (uri := uri_of(folder)) is not None:
        return _remote_files(uri, split)
    folder = Path(folder)
    if not folder.exists():
        raise UserError("data.path", f"{folder} does not exist; {REMEDY}")
    files = sorted(folder.glob(f"{split}*.parquet"))
    if not files:
        raise UserError("data.path", f"{folder} has no file {split}*.parquet; {REMEDY}")
    return tuple(str(f.resolve()) for f in files)


def _remote_files(uri: str, split: str) -> tuple[str, ...]:
    try:
        found = [entry.path for entry in Folder.of(uri, where="data.path").files()]
    except UserError:
        raise
    except Exception as error:  # fsspec's filesystems raise what they like
        raise UserError("data.path", f"{uri} cannot be read ({short(error)})") from None
    names = sorted(n for n in found if fnmatch(n, f"{split}*.parquet") and "/" not in n)
    if not names:
        raise UserError("data.path", f"{uri} has no file {split}*.parquet; {REMEDY}")
    return tuple(below(uri, name) for name in names)


def check_shards(folder: Path | str, split: str, bad: BadRows) -> None:
    """That all files which the manifest lists for a split, if there is one, are there."""
    manifest = read_json_below(folder, MANIFEST) or {}
    listed = manifest.get("splits", {}).get(split, {}).get("files", [])
    uri = uri_of(folder)
    there = {e.path for e in Folder.of(uri).files()} if uri is not None and listed else set()
    for shard in listed:
        path = Path(folder) / shard["path"] if uri is None else below(uri, shard["path"])
        if not (path.exists() if isinstance(path, Path) else shard["path"] in there):
            first, rows = shard.get("first_id"), shard.get("rows")
            of = f" (ids {first} to {first + rows - 1})" if None not in (first, rows) else ""
            bad.found(
                str(path), f"is missing, {MANIFEST} lists it{of}; restore it or ingest again", rows=rows
            )


def scan(files: tuple[str, ...], bad: BadRows) -> Scanned:
    """Look through the columns id and label of all files, a bounded number of rows at a time."""
    found = _Scan(bad, _num_rows(files))
    for index, file in enumerate(files):
        found.file(index, file)
    return found.result(files)


class _Scan:
    """Gathers what is known of a split, file by file."""

    def __init__(self, bad: BadRows, num_rows: int) -> None:
        self.bad, self.num_rows = bad, num_rows
        self.schema: pa.Schema | None = None
        self.ids = IdCollector()
        self.groups: list[np.ndarray] = []
        self.num_bytes, self.num_classes = 0, 0
        self.class_counts: Counter[int] = Counter()

    def file(self, index: int, file: str) -> None:
        """One file, in which row groups that cannot be read are found one by one."""
        try:
            self.schema = _check_schema(file, self.schema)
        except UserError as error:
            self.bad.mistake(error)
            return
        self.num_classes = self.num_classes or len(class_names(self.schema))
        with open_parquet(file) as parquet:
            groups = [parquet.metadata.row_group(g) for g in range(parquet.metadata.num_row_groups)]
            rows = np.array([g.num_rows for g in groups], dtype=np.int64)
            self.num_bytes += sum(group_bytes(g) for g in groups)
            starts = np.cumsum(rows) - rows
            for part in chunked(rows, SCANNED_ROWS):
                part = part[rows[part] > 0]
                try:
                    self._part(index, file, parquet, part, starts[part], rows[part])
                except UNREADABLE:
                    for g in part:
                        at = np.array([g])
                        try:
                            self._part(index, file, parquet, at, starts[at], rows[at])
                        except UNREADABLE as error:
                            count = int(rows[g])
                            mistake = unreadable(file, int(starts[g]), count, int(g), error)
                            self.bad.mistake(mistake, first_row=int(starts[g]), rows=count)

    def _part(
        self,
        index: int,
        file: str,
        parquet: pq.ParquetFile,
        groups: np.ndarray,
        starts: np.ndarray,
        rows: np.ndarray,
    ) -> None:
        if not len(groups):
            return
        table = parquet.read_row_groups(groups.tolist(), columns=["id", "label"], use_threads=False)
        columns = {name: table.column(name) for name in ("id", "label")}
        ids, labels = (columns[n].cast(pa.int64()).fill_null(-1).to_numpy() for n in ("id", "label"))
        good = np.ones(len(ids), bool)
        first = int(starts[0])
        for name, column in columns.items():
            if column.null_count:
                empty = column.is_null().to_numpy()
                what = f"column {name!r} has {column.null_count} empty values"
                good &= self._good(file, first, ids, ~empty, _saying(what), ids)
        good &= self._good(file, first, ids, (ids >= 0) | ~good, _negative_id, ids)
        good &= self._good(file, first, ids, (labels >= 0) | ~good, _negative_label, labels)
        if self.num_classes:
            known = f"the schema names {self.num_classes} classes"
            below = (labels < self.num_classes) | ~good
            good &= self._good(
                file, first, ids, below, lambda v: f"label {v} is out of range; {known}", labels
            )
        if not good.any():
            return
        for label, count in zip(*np.unique(labels[good], return_counts=True), strict=True):
            self.class_counts[int(label)] += int(count)
        self._check_span(file, ids[good])
        for twice in self.ids.add(ids[good]).tolist():
            row = first + int(np.flatnonzero(ids == twice)[-1])
            self.bad.found(file, f"id {twice} occurs twice in this split", first_row=row, rows=1, ids=[twice])
        at = starts - first
        low = np.minimum.reduceat(np.where(good, ids, np.iinfo(np.int64).max), at)
        high = np.maximum.reduceat(np.where(good, ids, -1), at) + 1
        used = high > 0
        place = np.full(len(groups), index)
        self.groups.append(np.stack([place, groups, starts, rows, low, high], axis=1)[used])

    def _good(
        self,
        file: str,
        first: int,
        ids: np.ndarray,
        good: np.ndarray,
        say: Callable[[int], str],
        values: np.ndarray,
    ) -> np.ndarray:
        for row in np.flatnonzero(~good):
            self.bad.found(file, say(int(values[row])), first_row=first + int(row), rows=1, ids=ids[[row]])
        return good

    def _check_span(self, file: str, ids: np.ndarray) -> None:
        seen = self.ids.high > self.ids.low
        low = min(self.ids.low, int(ids.min())) if seen else int(ids.min())
        span = max(self.ids.high, int(ids.max()) + 1) - low
        if span > MAX_ID_GAP * self.num_rows + 65536:
            raise UserError(
                file,
                f"ids spread over {span} values for {self.num_rows} rows; "
                "`spikeprune data ingest parquet` numbers them densely",
            )

    def result(self, files: tuple[str, ...]) -> Scanned:
        """All files' findings together."""
        groups = np.concatenate(self.groups) if self.groups else np.zeros((0, 6), np.int64)
        file, group, start, rows, low, high = groups.T.copy()
        layout = Layout(files, file.astype(np.int32), group.astype(np.int32), start, rows, low, high)
        return Scanned(self.ids.result(), layout, self.num_bytes, dict(self.class_counts))


def _saying(what: str) -> Callable[[int], str]:
    return lambda value: what


def _negative_id(value: int) -> str:
    return f"id {value} is negative; ids start at 0"


def _negative_label(value: int) -> str:
    return f"label {value} is out of range; labels start at 0"


def _num_rows(files: tuple[str, ...]) -> int:
    """Rows that the files' footers tell of; what cannot be read is found later."""
    rows = 0
    for file in files:
        with suppress(*UNREADABLE), open_parquet(file) as parquet:
            rows += parquet.metadata.num_rows
    return rows


def _check_schema(file: str, expected: pa.Schema | None) -> pa.Schema:
    try:
        with open_parquet(file) as parquet:
            schema = parquet.schema_arrow
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(file, f"is not a readable Parquet file ({str(error).splitlines()[0]})") from None
    for name in COLUMNS:
        if name not in schema.names:
            raise UserError(file, f"column {name!r} is missing; it has {', '.join(schema.names)}")
    if schema.field("id").type != pa.int64():
        raise UserError(file, f"column 'id' is {schema.field('id').type}; it must be int64")
    if not pa.types.is_integer(schema.field("label").type):
        raise UserError(file, f"column 'label' is {schema.field('label').type}; it must be an integer")
    kind = schema.field("image").type
    if not (is_encoded(kind) or is_numeric(kind) or is_events(kind)):
        raise UserError(
            file,
            f"column 'image' is {kind}; it must hold encoded images (bytes), lists of numbers or events",
        )
    if expected is not None and schema.field("image").type != expected.field("image").type:
        raise UserError(file, f"column 'image' is {kind} here and {expected.field('image').type} before")
    return schema


def class_names(schema: pa.Schema) -> list[str]:
    """Names of the classes in a schema's metadata; empty when it has none."""
    raw = (schema.metadata or {}).get(b"class_names")
    return [str(n) for n in json.loads(raw)] if raw else []
