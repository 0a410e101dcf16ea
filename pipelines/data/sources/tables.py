"""Sources that are tables already: Parquet (the Hugging Face layout) and NumPy arrays."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.data.decode import is_encoded, is_numeric
from pipelines.data.events import Recording, Sensor, from_arrow, is_events
from pipelines.data.sources.base import Bad, Example, Options, Source
from pipelines.data.sources.originals import Fingerprint, fingerprint_of, open_originals, reading, reason
from pipelines.data.sources.splits import by_split
from pipelines.data.sources.untrusted import load_numpy
from pipelines.errors import UserError
from pipelines.storage.paths import Folder

READ_ROWS = 256


@dataclass(frozen=True)
class ParquetRows:
    """A split of Parquet files."""

    folder: Folder
    files: tuple[str, ...]
    sizes: tuple[int, ...]
    """Rows of each file."""
    columns: tuple[str, ...]
    """Of the example: one image column, or t, x, y, p."""
    label: str
    ids: str | None = None
    """Of their own ids."""

    @property
    def rows(self) -> int:
        """See `Split`."""
        return sum(self.sizes)

    def read(self, start: int, stop: int) -> Iterator[Example | Bad]:
        """See `Split`. Only the row groups that hold the rows are read."""
        first = 0
        for path, size in zip(self.files, self.sizes, strict=True):
            low, high = max(start - first, 0), min(stop - first, size)
            if low < high:
                with reading(self.folder.at(path)):
                    yield from self._span(path, low, high)
            first += size

    def _span(self, path: str, low: int, high: int) -> Iterator[Example | Bad]:
        with self.folder.open(path) as stream, pq.ParquetFile(stream) as file:
            sizes = [file.metadata.row_group(g).num_rows for g in range(file.num_row_groups)]
            begins = np.concatenate([[0], np.cumsum(sizes)])
            groups = [g for g in range(len(sizes)) if begins[g] < high and begins[g + 1] > low]
            row = int(begins[groups[0]])
            names = [*self.columns, self.label, *([self.ids] if self.ids else [])]
            for batch in file.iter_batches(READ_ROWS, groups, columns=names):
                cut = slice(max(low - row, 0), min(high - row, batch.num_rows))
                if cut.start < cut.stop:
                    part = batch.slice(cut.start, cut.stop - cut.start)
                    yield from self._examples(part, f"{path}#", row + cut.start)
                row += batch.num_rows

    def _examples(self, batch: pa.RecordBatch, name: str, row: int) -> Iterator[Example | Bad]:
        labels = batch.column(self.label).to_pylist()
        parts = [batch.column(c) for c in self.columns]
        kept = batch.column(self.ids).to_pylist() if self.ids else [None] * len(labels)
        recordings = from_arrow(parts[0]) if is_events(parts[0].type) else None
        for k, label in enumerate(labels):
            where = f"{name}{row + k}"
            values = [part[k] for part in parts]
            if label is None or any(not v.is_valid for v in values):
                yield Bad(where, "has no label" if label is None else "has no image")
            elif len(values) == 4:
                recording = Recording(*(v.values.to_numpy().astype(np.int64) for v in values))
                yield Example(recording, int(label), where, kept[k])
            elif recordings is not None:
                recording = Recording(*(v.astype(np.int64) for v in recordings[k]))
                yield Example(recording, int(label), where, kept[k])
            elif is_numeric(parts[0].type):
                yield Example(np.asarray(values[0].as_py(), np.float32), int(label), where, kept[k])
            else:
                value = values[0].as_py()
                data, path = (value["bytes"], value.get("path")) if isinstance(value, dict) else (value, None)
                yield Example(data or b"", int(label), path or where, kept[k])


def parquet(options: Options) -> Source:
    """Files named after their split (`pipelines.data.sources.splits`), numbered as they come.

    The image column holds encoded images (bytes, or a struct with bytes) or lists of numbers, or the columns
    t, x, y and p hold events; the label column holds integers. Their names are found by their types. A
    column source_id, or id, of integers or text is kept as source_id: ids of the dataset are positions.
    """
    folder = open_originals(options.input)
    with reading(str(folder)):
        entries = [e for e in folder.files(hidden=False) if e.path.endswith(".parquet")]
    named = by_split(e.path for e in entries)
    found = Fingerprint("parquet", options.sensor, named)
    found.add(entries)
    splits: dict[str, Any] = {}
    schema: pa.Schema | None = None
    for split, names in (("train", ("train",)), ("test", ("test", "validation"))):
        files = next((named[n] for n in names if n in named), ())
        if not files:
            raise UserError("--input", f"{folder} holds no {' or '.join(names)}*.parquet")
        sizes = []
        for file in files:
            told, size = _footer(folder, file)
            schema = schema or told
            if not told.equals(schema):
                raise UserError(folder.at(file), "has other columns than the files before")
            sizes.append(size)
        assert schema is not None
        columns, label = _columns(schema, folder.at(files[0]))
        ids = next((n for n in ("source_id", "id") if source_id_kind(schema, n)), None)
        splits[split] = ParquetRows(folder, files, tuple(sizes), columns, label, ids)
    assert schema is not None
    sensor = Sensor(*options.sensor) if options.sensor else Sensor.of(schema)
    events = len(columns) == 4 or is_events(schema.field(columns[0]).type)
    if events and sensor is None:
        raise UserError("--sensor", "is needed: width and height, which these files do not tell")
    return Source(
        splits=splits,
        class_names=class_names(schema, label),
        sensor=sensor if events else None,
        source_id=source_id_kind(schema, ids or ""),
        fingerprint=found.result(),
        notes={"split": "by file name", "order": "as in the files"},
    )


@dataclass(frozen=True)
class ArrayRows:
    """A split of two arrays in .npy or .npz files."""

    folder: Folder
    x: tuple[str, str | None]
    """File and, for .npz, the array's name."""
    y: tuple[str, str | None]
    rows: int

    def read(self, start: int, stop: int) -> Iterator[Example | Bad]:
        """See `Split`."""
        values, labels = load_array(self.folder, *self.x), load_array(self.folder, *self.y)
        for row in range(start, stop):
            value = np.asarray(values[row])
            if value.ndim == 1:
                value = value.astype(np.float32)
            elif value.ndim == 2:
                value = value[None]
            elif value.shape[0] not in (1, 3):
                value = np.ascontiguousarray(value.transpose(2, 0, 1))
            yield Example(value, int(labels[row]), f"{self.x[0]}#{row}")


def arrays(options: Options) -> Source:
    """``{train,test}.npz`` with x and y, ``{train,test}_{x,y}.npy``, or one .npz with x_train, y_train, ...

    ``x`` is uint8 ``[N, H, W]``, ``[N, H, W, C]`` or ``[N, C, H, W]``, or numbers ``[N, D]``.
    ``y`` is ``[N]``.
    """
    folder = open_originals(options.input)
    places: dict[str, tuple[tuple[str, str | None], tuple[str, str | None]]]
    single = options.input is not None and options.input.endswith(".npz")
    if single:
        root, _, name = folder.root.rpartition("/")
        folder = replace(folder, root=root or ".")
        places = {s: ((name, f"x_{s}"), (name, f"y_{s}")) for s in ("train", "test")}
    elif folder.exists("train.npz"):
        places = {s: ((f"{s}.npz", "x"), (f"{s}.npz", "y")) for s in ("train", "test")}
    else:
        places = {s: ((f"{s}_x.npy", None), (f"{s}_y.npy", None)) for s in ("train", "test")}
    splits, most, shape = {}, 0, None
    for split, (x, y) in places.items():
        values, labels = load_array(folder, *x), load_array(folder, *y)
        _check_arrays(folder.at(x[0]), values, labels)
        if shape not in (None, values.shape[1:]):
            raise UserError(folder.at(x[0]), f"holds examples of shape {values.shape[1:]}, train of {shape}")
        shape, most = values.shape[1:], max(most, int(labels.max()))
        splits[split] = ArrayRows(folder, x, y, len(labels))
    files = sorted({f for pair in places.values() for f, _ in pair})
    return Source(
        splits=dict(splits),
        class_names=tuple(str(k) for k in range(most + 1)),
        fingerprint=fingerprint_of(folder, files, "numpy"),
        notes={"split": "by name", "order": "as in the arrays"},
    )


def load_array(folder: Folder, file: str, name: str | None) -> np.ndarray:
    """An array of a .npy file (mapped into memory where it lies on a local disk) or of an .npz file.

    Raises:
        UserError: no such file or array, or Python objects in it.
    """
    from pyarrow import fs

    try:
        if name is None and isinstance(folder.filesystem, fs.LocalFileSystem):
            return np.load(folder.at(file), mmap_mode="r", allow_pickle=False)
        found = load_numpy(folder.read(file), name)
        return np.asarray(found)
    except (OSError, KeyError, ValueError) as error:
        raise UserError(folder.at(file), f"cannot be read ({reason(error)})") from None


def _footer(folder: Folder, file: str) -> tuple[pa.Schema, int]:
    try:
        with folder.open(file) as stream, pq.ParquetFile(stream) as opened:
            return opened.schema_arrow, opened.metadata.num_rows
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(folder.at(file), f"is not a readable Parquet file ({reason(error)})") from None


def _columns(schema: pa.Schema, file: str) -> tuple[tuple[str, ...], str]:
    labels = [n for n in ("label", "fine_label", "labels") if n in schema.names]
    labels += [f.name for f in schema if "label" in f.name and f.name not in labels]
    label = next((n for n in labels if pa.types.is_integer(schema.field(n).type)), None)
    if label is None:
        columns = ", ".join(f"{f.name} ({f.type})" for f in schema)
        raise UserError(file, f"a column 'label' of integers is missing; it has {columns:.300}")
    if all(n in schema.names and pa.types.is_list(schema.field(n).type) for n in "txyp"):
        return tuple("txyp"), label
    images = [n for n in ("image", "img") if n in schema.names]
    images += [f.name for f in schema if f.name not in images and is_encoded(f.type)]
    kinds = {n: schema.field(n).type for n in images}
    fitting = [n for n, kind in kinds.items() if is_encoded(kind) or is_numeric(kind) or is_events(kind)]
    if not fitting:
        columns = ", ".join(f"{f.name} ({f.type})" for f in schema)
        raise UserError(
            file, f"a column 'image' of images, numbers or events is missing; it has {columns:.300}"
        )
    return (fitting[0],), label


def source_id_kind(schema: pa.Schema, name: str = "source_id") -> Literal["int64", "string"] | None:
    """How a column of ids is kept, if there is one and it can be."""
    if name not in schema.names:
        return None
    kind = schema.field(name).type
    if pa.types.is_integer(kind):
        return "int64"
    return "string" if pa.types.is_string(kind) or pa.types.is_large_string(kind) else None


def class_names(schema: pa.Schema, label: str) -> tuple[str, ...]:
    """From our own metadata or Hugging Face's; none where neither tells."""
    metadata = schema.metadata or {}
    if raw := metadata.get(b"class_names"):
        return tuple(str(n) for n in json.loads(raw))
    features = json.loads(metadata.get(b"huggingface", b"{}")).get("info", {}).get("features", {})
    return tuple(str(n) for n in features.get(label, {}).get("names", ()))


def _check_arrays(where: str, values: np.ndarray, labels: np.ndarray) -> None:
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or len(labels) != len(values) or not len(labels):
        raise UserError(where, f"{labels.dtype} labels of shape {labels.shape} do not fit {len(values)} rows")
    if labels.min() < 0:
        raise UserError(where, f"label {labels.min()} is out of range; labels start at 0")
    numbers = values.ndim == 2 and values.dtype.kind in "iuf"
    pixels = values.ndim in (3, 4) and values.dtype == np.uint8
    if not (numbers or pixels):
        raise UserError(
            where,
            f"{values.dtype} values of shape {values.shape} are neither uint8 images nor rows of numbers",
        )
