"""Parquet files, by the Hugging Face layout or our own."""

import json
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cluster.errors import UserError
from pipelines.data.decode import is_encoded, is_numeric
from pipelines.data.events import Recording, Sensor, is_events
from pipelines.data.scan import class_names
from pipelines.data.sources.base import (
    Bad,
    Example,
    Options,
    Source,
    fingerprint,
    open_originals,
    reading,
    split_of_files,
)
from pipelines.storage.paths import Folder, short

READ_ROWS = 32  # at once; recordings are up to megabytes
_WORDS = {"train": "train", "test": "test"} | dict.fromkeys(("validation", "valid", "val"), "validation")
_BEGINS = re.compile(r"train|test|validation|valid|val(?![a-z])")  # values.parquet is no validation


@dataclass(frozen=True)
class Columns:
    """What is read of Parquet files."""

    example: tuple[str, ...]
    """One image column, or t, x, y, p."""
    label: str
    ids: str | None = None
    """Of their own ids."""
    path: str | None = None
    """Of the originals' names."""

    def read(self, folder: Folder, path: str, low: int, high: int) -> Iterator[Example | Bad]:
        """Rows ``low`` to ``high`` of a file; only the row groups that hold them are read."""
        names = [*self.example, self.label, *(n for n in (self.ids, self.path) if n)]
        with folder.open(path) as stream, pq.ParquetFile(stream) as file:
            sizes = [file.metadata.row_group(g).num_rows for g in range(file.num_row_groups)]
            begins = np.concatenate([[0], np.cumsum(sizes)])
            groups = [g for g in range(len(sizes)) if begins[g] < high and begins[g + 1] > low]
            row = int(begins[groups[0]])
            for batch in file.iter_batches(READ_ROWS, groups, columns=names):
                first, last = max(low - row, 0), min(high - row, batch.num_rows)
                if first < last:
                    yield from self._examples(batch.slice(first, last - first), f"{path}#", row + first)
                row += batch.num_rows

    def _examples(self, batch: pa.RecordBatch, name: str, row: int) -> Iterator[Example | Bad]:
        def listed(column: str | None) -> list[Any]:
            return batch.column(column).to_pylist() if column else [None] * batch.num_rows

        parts = [batch.column(c) for c in self.example]
        if is_events(parts[0].type):
            fields = dict(zip((f.name for f in parts[0].type), parts[0].flatten(), strict=True))
            parts = [fields[c] for c in "txyp"]
        rows = zip(listed(self.label), listed(self.path), listed(self.ids), strict=True)
        for k, (label, path, own) in enumerate(rows):
            where, values = path or f"{name}{row + k}", [part[k] for part in parts]
            if label is None or any(not v.is_valid for v in values):
                yield Bad(where, "has no label" if label is None else "has no image")
            elif len(values) == 4:
                given = [v.values.to_numpy() for v in values]
                with np.errstate(invalid="ignore"):  # NaN
                    recording = Recording(*(v.astype(np.int64) for v in given))
                if all(map(np.array_equal, recording, given)):
                    yield Example(recording, int(label), where, own)
                else:
                    yield Bad(where, "has events that are not whole numbers (t counts microseconds)")
            elif is_numeric(parts[0].type):
                yield Example(np.asarray(values[0].as_py(), np.float32), int(label), where, own)
            else:
                data = values[0].as_py()
                if isinstance(data, dict):
                    data, where = data["bytes"], data.get("path") or where
                yield Example(data or b"", int(label), where, own)


def parquet(options: Options) -> Source:
    """Files named after their split (see `split_of`), numbered as they come.

    The image column holds encoded images (bytes, or a struct with bytes) or lists of numbers, or the columns
    t, x, y and p hold events; the label column holds integers. Their names are found by their types. A
    column source_id, or id, of integers or text is kept as source_id: ids of the dataset are positions.
    """
    folder = open_originals(options.input)
    with reading(str(folder)):
        entries = [e for e in folder.files(originals=True) if e.path.endswith(".parquet")]
    named = by_split(e.path for e in entries)
    files = {"train": named.get("train", ()), "test": named.get("test") or named.get("validation", ())}
    for split, wanted in (("train", "train"), ("test", "test or validation")):
        if not files[split]:
            raise UserError("--input", f"{folder} holds no {wanted}*.parquet")
    footers = {file: _footer(folder, file) for paths in files.values() for file in paths}
    schema = footers[files["train"][0]][0]
    for file, (other, _) in footers.items():
        if not other.equals(schema):
            raise UserError(folder.at(file), "has other columns than the files before")
    example, label = _columns(schema, folder.at(files["train"][0]))
    ids = next((n for n in ("source_id", "id") if _kept_as(schema, n)), None)
    path = "path" if _kept_as(schema, "path") == "string" else None
    columns = Columns(example, label, ids, path)
    sensor = Sensor(*options.sensor) if options.sensor else Sensor.of(schema)
    events = len(example) == 4 or is_events(schema.field(example[0]).type)
    if events and sensor is None:
        raise UserError("--sensor", "is needed: width and height, which these files do not tell")
    return Source(
        splits={
            split: split_of_files(folder, {p: footers[p][1] for p in paths}, columns.read)
            for split, paths in files.items()
        },
        class_names=class_names(schema) or _huggingface_names(schema, label),
        sensor=sensor if events else None,
        source_id=_kept_as(schema, ids) if ids else None,
        fingerprint=fingerprint(entries, "parquet", options.sensor, named),
        notes={"split": "by file name", "order": "as in the files"},
    )


def split_of(path: str) -> str | None:
    """``train``, ``test`` or ``validation``: the file's name tells, else the nearest folder that does.

    ``None`` where no part of the path begins with such a word. Refused is a file whose name tells one split
    while a folder called exactly after another holds it.
    """
    parts = PurePosixPath(path).parts[::-1]
    told = next((_WORDS[found[0]] for part in parts if (found := _BEGINS.match(part))), None)
    for folder in parts[1:]:
        if _WORDS.get(folder, told) != told:
            raise UserError(
                "--input",
                f"{path} is named as both {told} and {_WORDS[folder]}; move it, or let --input name a folder "
                "further down",
            )
    return told


def by_split(paths: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """The files of every split that has any, in their order; others are left out."""
    found: dict[str, tuple[str, ...]] = {}
    for path in paths:
        if (split := split_of(path)) is not None:
            found[split] = (*found.get(split, ()), path)
    return found


def _footer(folder: Folder, file: str) -> tuple[pa.Schema, int]:
    try:
        with folder.open(file) as stream, pq.ParquetFile(stream) as opened:
            return opened.schema_arrow, opened.metadata.num_rows
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(folder.at(file), f"is not a readable Parquet file ({short(error)})") from None


def _columns(schema: pa.Schema, file: str) -> tuple[tuple[str, ...], str]:
    columns = ", ".join(f"{f.name} ({f.type})" for f in schema)
    labels = [n for n in ("label", "fine_label", "labels") if n in schema.names]
    labels += [f.name for f in schema if "label" in f.name and f.name not in labels]
    label = next((n for n in labels if pa.types.is_integer(schema.field(n).type)), None)
    if label is None:
        raise UserError(file, f"a column 'label' of integers is missing; it has {columns:.300}")
    if all(n in schema.names and pa.types.is_list(schema.field(n).type) for n in "txyp"):
        return tuple("txyp"), label
    images = [n for n in ("image", "img") if n in schema.names]
    images += [f.name for f in schema if f.name not in images and is_encoded(f.type)]
    for name in images:
        kind = schema.field(name).type
        if is_encoded(kind) or is_numeric(kind) or is_events(kind):
            return (name,), label
    raise UserError(file, f"a column 'image' of images, numbers or events is missing; it has {columns:.300}")


def _kept_as(schema: pa.Schema, name: str) -> Literal["int64", "string"] | None:
    """How a column of ids or names is kept, if there is one and it can be."""
    kind = schema.field(name).type if name in schema.names else pa.null()
    if pa.types.is_integer(kind):
        return "int64"
    return "string" if pa.types.is_string(kind) or pa.types.is_large_string(kind) else None


def _huggingface_names(schema: pa.Schema, label: str) -> tuple[str, ...]:
    """Names of the classes, where the metadata of the package datasets tell them."""
    with suppress(ValueError, TypeError, LookupError, RecursionError):
        told = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        return tuple(str(n) for n in told["info"]["features"][label]["names"])
    return ()
