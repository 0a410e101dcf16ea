"""Looking through a split before a run: its files, where its rows lie, and that they can be used."""

import json
from collections import Counter
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cluster.errors import UserError
from pipelines.data.decode import is_encoded, is_numeric
from pipelines.data.events import is_events
from pipelines.data.layout import COLUMNS, UNREADABLE, Layout, group_bytes, unreadable
from pipelines.storage.atomic import read_json_below, well_formed
from pipelines.storage.paths import Folder, below, name_of, open_parquet, short, uri_of

MANIFEST = "manifest.json"
FORMAT = 1
REMEDY = "`spikeprune data ingest` writes a dataset's files"
NUMBER = "ids count the rows of a split from 0; `spikeprune data ingest parquet` numbers them"
SCANNED_ROWS = 1 << 18  # ids and labels that are looked at together


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
            if not isinstance(file["path"], str) or not isinstance(file.get("rows", 0), int):
                raise ValueError(f"no file of a split: {file!r:.80}")
    return manifest


@dataclass
class Scan:
    """What is known of a split, file by file."""

    files: tuple[str, ...]
    schema: pa.Schema | None = None
    """Of the first file."""
    layouts: list[Layout] = field(default_factory=list)
    """Of each file's row groups."""
    num_bytes: int = 0
    """Of all rows in memory, still encoded."""
    class_counts: Counter[int] = field(default_factory=Counter)
    """Rows of each label."""
    end: int = 0
    """Rows so far, and with it the next id."""

    def read(self, file: str) -> None:
        """Look through the columns id and label of the next file, a bounded number of rows at a time."""
        parquet, schema = _opened(file)
        _check_schema(file, schema, self.schema)
        self.schema = self.schema or schema
        classes = len(class_names(self.schema))
        with parquet:
            groups = [parquet.metadata.row_group(g) for g in range(parquet.metadata.num_row_groups)]
            rows = np.array([g.num_rows for g in groups], dtype=np.int64)
            at, starts = np.arange(len(rows), dtype=np.int32), np.cumsum(rows) - rows
            layout = Layout((file,), np.zeros_like(at), at, starts, rows, self.end + starts)
            layout = layout.take(np.flatnonzero(rows))
            for part in layout.parts(SCANNED_ROWS):
                self.class_counts.update(_checked_labels(part, _ids_and_labels(parquet, part), classes))
        self.layouts.append(layout)
        self.num_bytes += sum(group_bytes(g) for g in groups)
        self.end += int(rows.sum())

    @property
    def layout(self) -> Layout:
        """Where all rows lie."""
        file = np.repeat(np.arange(len(self.files), dtype=np.int32), [len(part) for part in self.layouts])
        columns = (
            np.concatenate([getattr(part, name) for part in self.layouts])
            for name in ("group", "start", "rows", "low")
        )
        return Layout(self.files, file, *columns)


def scan(folder: Path | str, split: str) -> Scan:
    """A split's files, which must all be there and hold rows that can be used."""
    files = split_files(folder, split)
    listed = (read_manifest(folder) or {}).get("splits", {}).get(split, {}).get("files", [])
    if gone := {file["path"] for file in listed} - {name_of(file) for file in files}:
        what = f"is missing, {MANIFEST} lists it; restore it or ingest again"
        raise UserError(below(folder, min(gone)), what)
    found = Scan(files)
    for file in files:
        found.read(file)
    if not found.end:
        raise UserError(files[0], f"split {split!r} has no rows")
    return found


def _ids_and_labels(parquet: pq.ParquetFile, part: Layout) -> pa.Table:
    try:
        return parquet.read_row_groups(part.group.tolist(), columns=["id", "label"], use_threads=False)
    except UNREADABLE as error:
        if len(part) == 1:
            raise unreadable(part, 0, error) from None
        return pa.concat_tables(_ids_and_labels(parquet, part.take([i])) for i in range(len(part)))


def _checked_labels(part: Layout, table: pa.Table, classes: int) -> list[int]:
    """The labels of row groups that follow each other; refused with the first row that cannot be used."""
    ids, labels = (
        table.column(n).cast(pa.int64(), safe=False).fill_null(-1).to_numpy() for n in ("id", "label")
    )
    positions = np.arange(len(ids)) + part.low[0]
    beyond = labels >= (classes or np.iinfo(np.int64).max)
    bad = (ids != positions) | (labels < 0) | beyond
    if not bad.any():
        return labels.tolist()
    k = int(np.argmax(bad))
    if ids[k] != positions[k]:
        what = f"id {ids[k]} is not its position, {positions[k]}; {NUMBER}"
    elif not table.column("label")[k].is_valid:
        what = f"column 'label' has {table.column('label').null_count} empty values"
    else:
        known = f"the schema names {classes} classes" if beyond[k] else "labels start at 0"
        what = f"label {labels[k]} is out of range; {known}"
    raise UserError(part.files[0], f"row {int(part.start[0]) + k}: {what}")


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
