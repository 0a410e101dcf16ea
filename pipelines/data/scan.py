"""Looking through a split before a run: where its rows lie, and what is wrong with them."""

import json
from collections import Counter
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.data.bad_rows import BadRows
from pipelines.data.decode import is_encoded, is_numeric
from pipelines.data.events import is_events
from pipelines.data.ids import Ids
from pipelines.data.layout import COLUMNS, UNREADABLE, Layout, chunked, group_bytes, unreadable
from pipelines.errors import UserError
from pipelines.storage.atomic import read_json_below, well_formed
from pipelines.storage.paths import Folder, below, name_of, open_parquet, real_path, short, uri_of

MANIFEST = "manifest.json"
FORMAT = 1
REMEDY = "`spikeprune data ingest` writes a dataset's files"
NUMBER = "ids count the rows of a split from 0; `spikeprune data ingest parquet` numbers them"
SCANNED_ROWS = 1 << 18  # ids and labels that are looked at together


@dataclass(frozen=True, eq=False)
class Scanned:
    """What a look through a split's ids and labels tells."""

    ids: Ids
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
    return tuple(str(real_path(f)) for f in files)


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


def read_manifest(folder: Path | str) -> dict[str, Any] | None:
    """A dataset's manifest; ``None`` where there is none.

    Raises:
        UserError: it is no such file, or of a format that this version does not read.
    """
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


def listed_files(folder: Path | str, split: str) -> list[dict[str, Any]]:
    """What the manifest, if there is one, tells of a split's files."""
    manifest = read_manifest(folder) or {}
    return manifest.get("splits", {}).get(split, {}).get("files", [])


def check_files(folder: Path | str, listed: list[dict[str, Any]], bad: BadRows) -> None:
    """That all listed files are there."""
    uri = uri_of(folder)
    there = {e.path for e in Folder.of(uri).files()} if uri is not None and listed else set()
    for file in listed:
        path = Path(folder) / file["path"] if uri is None else below(uri, file["path"])
        if not (path.exists() if isinstance(path, Path) else file["path"] in there):
            first, rows = file.get("first_id"), file.get("rows")
            of = "" if first is None or rows is None else f" (ids {first} to {first + rows - 1})"
            bad.found(
                str(path), f"is missing, {MANIFEST} lists it{of}; restore it or ingest again", rows=rows
            )


def scan(files: tuple[str, ...], bad: BadRows, listed: list[dict[str, Any]]) -> Scanned:
    """Look through the columns id and label of all files, a bounded number of rows at a time.

    Args:
        files: of the split, in order.
        bad: is told of rows that cannot be used.
        listed: what the manifest tells of the files.

    Raises:
        UserError: ids that are not the rows' positions, and what `BadRows` refuses.
    """
    found = _Scan(bad, {file["path"]: file["first_id"] for file in listed if "first_id" in file})
    for index, file in enumerate(files):
        found.file(index, file)
    return found.result(files)


class _Scan:
    """Gathers what is known of a split, file by file."""

    def __init__(self, bad: BadRows, first_ids: dict[str, int]) -> None:
        self.bad, self.first_ids = bad, first_ids
        self.schema: pa.Schema | None = None
        self.end = 0
        self.lost = False  # whether a file was left out since, and with it nobody knows how many rows
        self.groups: list[np.ndarray] = []
        self.num_bytes, self.num_classes = 0, 0
        self.class_counts: Counter[int] = Counter()

    def file(self, index: int, file: str) -> None:
        """One file, in which row groups that cannot be read are found one by one."""
        try:
            self.schema = _check_schema(file, self.schema)
        except UserError as error:
            self.bad.mistake(error)
            self.lost = True
            return
        self.num_classes = self.num_classes or len(class_names(self.schema))
        with open_parquet(file) as parquet:
            groups = [parquet.metadata.row_group(g) for g in range(parquet.metadata.num_row_groups)]
            rows = np.array([g.num_rows for g in groups], dtype=np.int64)
            if not rows.sum():
                return
            self.num_bytes += sum(group_bytes(g) for g in groups)
            first_id = self.first_ids.get(name_of(file), _first_id(parquet) if self.lost else self.end)
            if first_id < self.end:
                raise UserError(
                    file, f"begins at id {first_id}, the files before it reach {self.end}; {NUMBER}"
                )
            self.end, self.lost = first_id + int(rows.sum()), False
            starts = np.cumsum(rows) - rows
            for part in chunked(rows, SCANNED_ROWS):
                part = part[rows[part] > 0]
                try:
                    self._part(index, file, parquet, part, starts[part], rows[part], first_id)
                except UNREADABLE:
                    for g in part:
                        at = np.array([g])
                        try:
                            self._part(index, file, parquet, at, starts[at], rows[at], first_id)
                        except UNREADABLE as error:
                            start, count = int(starts[g]), int(rows[g])
                            mistake = unreadable(file, start, count, int(g), error)
                            self.bad.mistake(mistake, first_row=start, rows=count)

    def _part(
        self,
        index: int,
        file: str,
        parquet: pq.ParquetFile,
        groups: np.ndarray,
        starts: np.ndarray,
        rows: np.ndarray,
        first_id: int,
    ) -> None:
        if not len(groups):
            return
        table = parquet.read_row_groups(groups.tolist(), columns=["id", "label"], use_threads=False)
        ids, labels = (table.column(n).cast(pa.int64()).fill_null(-1).to_numpy() for n in ("id", "label"))
        empty = table.column("label").is_null().to_numpy()
        first = int(starts[0])
        positions = np.arange(first_id + first, first_id + first + len(ids))
        if 2 * (wrong := ids != positions).sum() > len(ids):  # not bad rows, but other ids
            row = int(np.argmax(wrong))
            raise UserError(
                file, f"row {first + row}: id {ids[row]} is not its position, {positions[row]}; {NUMBER}"
            )
        good = np.ones(len(ids), bool)
        known = f"the schema names {self.num_classes} classes" if self.num_classes else "labels start at 0"
        for found, say in (
            (wrong, lambda row: f"id {ids[row]} is not its position, {positions[row]}; {NUMBER}"),
            (empty, lambda row: f"column 'label' has {empty.sum()} empty values"),
            (labels < 0, lambda row: f"label {labels[row]} is out of range; labels start at 0"),
            (
                labels >= (self.num_classes or np.iinfo(np.int64).max),
                lambda row: f"label {labels[row]} is out of range; {known}",
            ),
        ):
            for row in np.flatnonzero(found & good).tolist():
                self.bad.found(file, say(row), first_row=first + row, rows=1, ids=positions[[row]])
            good &= ~found
        for label, number in zip(*np.unique(labels[good], return_counts=True), strict=True):
            self.class_counts[int(label)] += int(number)
        place = np.full(len(groups), index)
        self.groups.append(np.stack([place, groups, starts, rows, first_id + starts], axis=1))

    def result(self, files: tuple[str, ...]) -> Scanned:
        """All files' findings together; ids of rows that nobody could read are absent."""
        groups = np.concatenate(self.groups) if self.groups else np.zeros((0, 5), np.int64)
        file, group, start, rows, low = groups.T.copy()
        layout = Layout(files, file.astype(np.int32), group.astype(np.int32), start, rows, low)
        before, after = np.append(0, layout.high), np.append(low, self.end)
        gaps = [np.arange(before[i], after[i]) for i in np.flatnonzero(before < after)]
        ids = Ids(self.end).without(np.concatenate([np.zeros(0, np.int64), *gaps, *self.bad.ids]))
        return Scanned(ids, layout, self.num_bytes, dict(self.class_counts))


def _first_id(parquet: pq.ParquetFile) -> int:
    """The first id by the file's footer; -1 where it tells none."""
    names = [parquet.schema.column(i).path for i in range(len(parquet.schema))]
    statistics = parquet.metadata.row_group(0).column(names.index("id")).statistics
    return statistics.min if statistics is not None and statistics.has_min_max else -1


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
    """Names of the classes in a schema's metadata; empty when it has none.

    Raises:
        UserError: the metadata are no list.
    """
    raw = (schema.metadata or {}).get(b"class_names")
    try:
        names = json.loads(raw) if raw else []
    except (ValueError, RecursionError):
        names = None
    if not isinstance(names, list):
        raise UserError("class_names", f"in the metadata of the Parquet files are no list of names; {REMEDY}")
    return [str(n) for n in names]
