"""Looking through a split before a run: its files, where its rows lie, and what is wrong with them."""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.data.decode import is_encoded, is_numeric
from pipelines.data.events import is_events
from pipelines.data.ids import Ids
from pipelines.data.layout import COLUMNS, UNREADABLE, Layout, group_bytes, unreadable
from pipelines.errors import UserError
from pipelines.storage.atomic import read_json_below, well_formed, write_json
from pipelines.storage.paths import Folder, below, name_of, open_parquet, short, uri_of

MANIFEST = "manifest.json"
FORMAT = 1
REMEDY = "`spikeprune data ingest` writes a dataset's files"
NUMBER = "ids count the rows of a split from 0; `spikeprune data ingest parquet` numbers them"
SCANNED_ROWS = 1 << 18  # ids and labels that are looked at together
LISTED_IDS = 100  # of one finding; the rest is counted

OnBadRow = Literal["stop", "skip"]


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """Rows that are left out for one reason."""

    file: str
    first_row: int | None
    """Place of the first in its file; ``None`` where the file itself is at fault."""
    rows: int | None
    """How many; ``None`` where nobody can tell."""
    ids: tuple[int, ...]
    """Theirs, as far as known, at most 100."""
    reason: str


@dataclass
class BadRows:
    """What was found to be wrong with rows: the first one stops, or all are left out and listed."""

    skip: bool = False
    skipped: list[Skipped] = field(default_factory=list)
    ids: list[np.ndarray] = field(default_factory=list)
    """Ids to leave out."""

    def found(
        self, error: UserError, *, first_row: int | None = None, rows: int | None = None, ids: Any = ()
    ) -> None:
        """Rows that cannot be used, and why: raised unless bad rows are skipped."""
        if not self.skip:
            raise error
        self.ids.append(np.asarray(ids, dtype=np.int64))
        listed = tuple(self.ids[-1][:LISTED_IDS].tolist())
        self.skipped.append(
            Skipped(file=error.where, first_row=first_row, rows=rows, ids=listed, reason=error.what)
        )

    @property
    def num_rows(self) -> int:
        """Rows known to be left out."""
        return sum(s.rows or 0 for s in self.skipped)


def write_skipped(path: Path, splits: dict[str, BadRows]) -> None:
    """Counts and a list of what was skipped in each split, as JSON."""
    found = {
        name: {"rows": bad.num_rows, "skipped": [asdict(s) for s in bad.skipped]}
        for name, bad in splits.items()
    }
    write_json(path, found)


def split_files(folder: Path | str, split: str) -> tuple[str, ...]:
    """The Parquet files of a split, in order of their names."""
    pattern, uri = f"{split}*.parquet", uri_of(folder)
    if uri is not None:
        files = [below(uri, name) for name in _remote_names(uri) if fnmatch(name, pattern)]
    elif Path(folder).exists():
        files = [str(file.absolute()) for file in sorted(Path(folder).glob(pattern))]
    else:
        raise UserError("data.path", f"{folder} does not exist; {REMEDY}")
    if not files:
        raise UserError("data.path", f"{uri or folder} has no file {pattern}; {REMEDY}")
    return tuple(files)


def _remote_names(uri: str) -> list[str]:
    try:
        return [entry.path for entry in Folder.of(uri, where="data.path").files() if "/" not in entry.path]
    except UserError:
        raise
    except Exception as error:  # fsspec's filesystems raise what they like
        raise UserError("data.path", f"{uri} cannot be read ({short(error)})") from None


def read_manifest(folder: Path | str) -> dict[str, Any] | None:
    """A dataset's manifest; ``None`` where there is none."""
    manifest = read_json_below(folder, MANIFEST)
    if manifest is None:
        return None
    with well_formed(below(folder, MANIFEST)):
        if (found := manifest.get("format", FORMAT)) != FORMAT:
            raise ValueError(f"format {found!r} is unknown; this version reads {FORMAT}")
        for file in (f for split in manifest.get("splits", {}).values() for f in split.get("files", ())):
            counts = (file.get("rows", 0), file.get("first_id", 0))
            if not isinstance(file["path"], str) or not all(type(n) is int and n >= 0 for n in counts):
                raise ValueError(f"no file of a split: {file!r:.80}")
    return manifest


def scan(
    folder: Path | str, split: str, files: tuple[str, ...], bad: BadRows
) -> tuple[Ids, Layout, pa.Schema | None, int, dict[int, int]]:
    """Look through the columns id and label of a split, a bounded number of rows at a time.

    The result is the ids of the rows that are not bad, where they lie, the schema of the first file that can
    be read, the bytes of all rows in memory (still encoded), and how many there are of each label.
    """
    manifest = read_manifest(folder) or {}
    listed = manifest.get("splits", {}).get(split, {}).get("files", [])
    _check_listed(folder, listed, bad)
    found = _Scan(bad, {file["path"]: file["first_id"] for file in listed if "first_id" in file})
    for index, file in enumerate(files):
        found.file(index, file)
    return found.result(files)


def _check_listed(folder: Path | str, listed: list[dict[str, Any]], bad: BadRows) -> None:
    """That the files that the manifest lists are there."""
    uri = uri_of(folder)
    there = _remote_names(uri) if uri is not None and listed else []
    for file in listed:
        if file["path"] in there or (uri is None and (Path(folder) / file["path"]).exists()):
            continue
        first, rows = file.get("first_id"), file.get("rows")
        of = "" if first is None or rows is None else f" (ids {first} to {first + rows - 1})"
        what = f"is missing, {MANIFEST} lists it{of}; restore it or ingest again"
        bad.found(UserError(below(folder, file["path"]), what), rows=rows)


class _Scan:
    """Gathers what is known of a split, file by file."""

    def __init__(self, bad: BadRows, first_ids: dict[str, int]) -> None:
        self.bad, self.first_ids = bad, first_ids
        self.schema: pa.Schema | None = None
        self.end = 0
        self.lost = False  # whether a file was left out since, and with it nobody knows how many rows
        self.found: list[tuple[int, Layout]] = []  # row groups that could be read, with the file's place
        self.num_bytes, self.num_classes = 0, 0
        self.class_counts: Counter[int] = Counter()

    def file(self, index: int, file: str) -> None:
        """One file; of its row groups those that can be read."""
        try:
            parquet, schema = _opened(file)
            _check_schema(file, schema, self.schema)
        except UserError as error:
            self.bad.found(error)
            self.lost = True
            return
        self.schema = self.schema or schema
        self.num_classes = self.num_classes or len(class_names(schema))
        with parquet:
            groups = [parquet.metadata.row_group(g) for g in range(parquet.metadata.num_row_groups)]
            rows = np.array([g.num_rows for g in groups], dtype=np.int64)
            if not rows.sum():
                return
            self.num_bytes += sum(group_bytes(g) for g in groups)
            first_id = self.first_ids.get(name_of(file), _first_id(parquet) if self.lost else self.end)
            if first_id < self.end:
                what = f"begins at id {first_id}, the files before it reach {self.end}; {NUMBER}"
                raise UserError(file, what)
            self.end, self.lost = first_id + int(rows.sum()), False
            at, starts = np.arange(len(rows), dtype=np.int32), np.cumsum(rows) - rows
            layout = Layout((file,), np.zeros_like(at), at, starts, rows, first_id + starts)
            for part in layout.take(np.flatnonzero(rows)).parts(SCANNED_ROWS):
                for read, table in self._read(parquet, part):
                    self._check(read, table)
                    self.found.append((index, read))

    def _read(self, parquet: pq.ParquetFile, part: Layout) -> Iterator[tuple[Layout, pa.Table]]:
        """Ids and labels of row groups: of all together, or of those alone that can be read."""
        columns = ["id", "label"]
        try:
            yield part, parquet.read_row_groups(part.group.tolist(), columns=columns, use_threads=False)
        except UNREADABLE as error:
            if len(part) > 1:
                for i in range(len(part)):
                    yield from self._read(parquet, part.take([i]))
            else:
                first, rows = int(part.start[0]), int(part.rows[0])
                self.bad.found(unreadable(part, 0, error), first_row=first, rows=rows)

    def _check(self, part: Layout, table: pa.Table) -> None:
        """Ids and labels of row groups that follow each other."""
        ids, labels = (
            table.column(n).cast(pa.int64(), safe=False).fill_null(-1).to_numpy() for n in ("id", "label")
        )
        empty = table.column("label").is_null().to_numpy()
        positions = np.arange(len(ids)) + part.low[0]
        wrong = ids != positions
        beyond = labels >= (self.num_classes or np.iinfo(np.int64).max)
        bad = wrong | (labels < 0) | beyond
        other_ids = 2 * wrong.sum() > len(ids)  # not bad rows, but ids of another kind
        for k in np.flatnonzero(wrong if other_ids else bad).tolist():
            row = int(part.start[0]) + k
            if wrong[k]:
                what = f"id {ids[k]} is not its position, {positions[k]}; {NUMBER}"
            elif empty[k]:
                what = f"column 'label' has {empty.sum()} empty values"
            else:
                known = f"the schema names {self.num_classes} classes" if beyond[k] else "labels start at 0"
                what = f"label {labels[k]} is out of range; {known}"
            error = UserError(part.files[0], f"row {row}: {what}")
            if other_ids:
                raise error
            self.bad.found(error, first_row=row, rows=1, ids=positions[[k]])
        self.class_counts.update(Counter(labels[~bad].tolist()))

    def result(self, files: tuple[str, ...]) -> tuple[Ids, Layout, pa.Schema | None, int, dict[int, int]]:
        """All files' findings together; ids of rows that nobody could read are absent."""
        parts = [np.stack([np.full(len(p), i), p.group, p.start, p.rows, p.low]) for i, p in self.found]
        file, group, start, rows, low = np.concatenate([np.zeros((5, 0), np.int64), *parts], axis=1)
        layout = Layout(files, file.astype(np.int32), group.astype(np.int32), start, rows, low)
        before, after = np.append(0, layout.high), np.append(low, self.end)
        gaps = [np.arange(before[i], after[i]) for i in np.flatnonzero(before < after)]
        ids = Ids(self.end).without(np.concatenate([np.zeros(0, np.int64), *gaps, *self.bad.ids]))
        return ids, layout, self.schema, self.num_bytes, dict(self.class_counts)


def _first_id(parquet: pq.ParquetFile) -> int:
    """The first id by the file's footer; -1 where it tells none."""
    names = [parquet.schema.column(i).path for i in range(len(parquet.schema))]
    statistics = parquet.metadata.row_group(0).column(names.index("id")).statistics
    return statistics.min if statistics is not None and statistics.has_min_max else -1


def _opened(file: str) -> tuple[pq.ParquetFile, pa.Schema]:
    try:
        parquet = open_parquet(file)
        return parquet, parquet.schema_arrow
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(file, f"is not a readable Parquet file ({short(error)})") from None


def _check_schema(file: str, schema: pa.Schema, expected: pa.Schema | None) -> None:
    for name in COLUMNS:
        if name not in schema.names:
            raise UserError(file, f"column {name!r} is missing; it has {', '.join(schema.names)}")
    label, kind = schema.field("label").type, schema.field("image").type
    if schema.field("id").type != pa.int64():
        raise UserError(file, f"column 'id' is {schema.field('id').type}; it must be int64")
    if not pa.types.is_integer(label):
        raise UserError(file, f"column 'label' is {label}; it must be an integer")
    if not (is_encoded(kind) or is_numeric(kind) or is_events(kind)):
        what = f"column 'image' is {kind}; it must hold encoded images (bytes), lists of numbers or events"
        raise UserError(file, what)
    if expected is not None and kind != expected.field("image").type:
        raise UserError(file, f"column 'image' is {kind} here and {expected.field('image').type} before")


def class_names(schema: pa.Schema) -> tuple[str, ...]:
    """Names of the classes in a schema's metadata; empty when it has none."""
    try:
        names = json.loads((schema.metadata or {}).get(b"class_names", b"[]"))
    except (ValueError, RecursionError):
        names = None
    if not isinstance(names, list):
        raise UserError("class_names", f"in the metadata of the Parquet files are no list of names; {REMEDY}")
    return tuple(str(n) for n in names)
