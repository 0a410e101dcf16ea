"""A split of a dataset, looked through before a run: its files, where its rows lie, that they can be used."""

import json
from collections import Counter
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cluster.errors import UserError
from pipelines.data.decode import is_encoded, is_numeric
from pipelines.data.events import is_events
from pipelines.data.layout import (
    COLUMNS,
    UNREADABLE,
    Ids,
    Layout,
    first_rows,
    group_bytes,
    read_rows,
    unreadable,
)
from pipelines.storage.atomic import read_json_below, well_formed
from pipelines.storage.paths import Folder, below, name_of, open_parquet, short, uri_of
from pruning.examples.sampling import uniform

MANIFEST = "manifest.json"
FORMAT = 1
REMEDY = "`spikeprune data ingest` writes a dataset's files"
NUMBER = "ids count the rows of a split from 0; `spikeprune data ingest parquet` numbers them"
VALIDATION_STREAM = 106
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


@dataclass(frozen=True, kw_only=True, eq=False)
class Split:
    """One split of a dataset, checked. What it holds grows with row groups and rows that are left out."""

    files: tuple[str, ...]
    schema: pa.Schema
    """Of the first file."""
    ids: Ids
    layout: Layout
    num_bytes: int
    """Of its rows in memory, still encoded."""
    class_counts: dict[int, int]
    """Rows of each label that occurs."""

    @property
    def num_examples(self) -> int:
        """Examples that exist and are not left out."""
        return len(self.ids)

    @property
    def max_label(self) -> int:
        """The highest label."""
        return max(self.class_counts)

    def without(self, ids: np.ndarray) -> "Split":
        """The split without these examples."""
        return replace(self, ids=self.ids.without(ids)) if len(ids) else self

    def parted(self, share: float, seed: int) -> tuple["Split", "Split"]:
        """The split without a share of its examples, and that share, drawn by a hash of (seed, id).

        Raises:
            UserError: one of the two is empty.
        """
        drawn = np.concatenate(
            [ids[uniform(seed, 0, ids, VALIDATION_STREAM) < share] for ids in self.ids.blocks()]
        )
        rest = self.without(drawn)
        if not 0 < len(drawn) < self.num_examples:
            raise UserError(
                "data.val_share",
                f"{share:g} of {self.num_examples:,} examples leaves {rest.num_examples:,} to train on and "
                f"{len(drawn):,} to validate on; each needs some",
            )
        return rest, self.without(rest.ids.array())

    def first(self, rows: int | None) -> "Split":
        """The split of its first ``rows`` examples in order of file (all for ``None``); its classes stay."""
        if rows is None or rows >= self.num_examples:
            return self
        ids = self.ids.first(rows)
        layout = self.layout.take(np.flatnonzero(self.layout.low < ids.end))
        return replace(self, ids=ids, layout=layout, num_bytes=int(self.num_bytes * rows / self.num_examples))

    def head(self, rows: int) -> pa.Table:
        """Its first ``rows`` rows in order of file (or all there are), encoded."""
        return first_rows((read_rows(part, self.ids) for part in self.layout.parts(rows)), rows)


def read_split(folder: Path | str, split: str) -> Split:
    """Check a split's schema, ids and labels by reading those two columns, a bounded number at a time.

    Raises:
        UserError: a missing or unreadable file or row group, a missing or mistyped column, no rows,
            ids that are not the rows' positions, or a bad label, each with its file.
    """
    files = split_files(folder, split)
    listed = (read_manifest(folder) or {}).get("splits", {}).get(split, {}).get("files", [])
    if gone := {file["path"] for file in listed} - {name_of(file) for file in files}:
        what = f"is missing, {MANIFEST} lists it; restore it or ingest again"
        raise UserError(below(folder, min(gone)), what)
    first: pa.Schema | None = None
    row_groups: list[np.ndarray] = []
    counts: Counter[int] = Counter()
    num_bytes = end = 0
    for file in files:
        parquet, schema = _opened(file)
        _check_schema(file, schema, first)
        first = first or schema
        classes = len(class_names(first))
        with parquet:
            groups = [parquet.metadata.row_group(g) for g in range(parquet.metadata.num_row_groups)]
            rows = np.array([g.num_rows for g in groups], dtype=np.int64)
            for part in Layout.of((file,), [rows], end).parts(SCANNED_ROWS):
                counts.update(_checked_labels(part, _ids_and_labels(parquet, part), classes))
        row_groups.append(rows)
        num_bytes += sum(group_bytes(g) for g in groups)
        end += int(rows.sum())
    if not end:
        raise UserError(files[0], f"split {split!r} has no rows")
    return Split(
        files=files,
        schema=first,
        ids=Ids(end),
        layout=Layout.of(files, row_groups),
        num_bytes=num_bytes,
        class_counts=dict(counts),
    )


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
