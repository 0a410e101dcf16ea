"""One shard: a span of a source's rows, checked, written beside and renamed, and a report of it."""

import hashlib
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.data import raw
from pipelines.data.decode import decode_image
from pipelines.data.events import UNSORTED, Recording, Sensor, fault, sort, to_arrow
from pipelines.data.sources.base import Bad, Example, Split, Value
from pipelines.data.statistics import Statistics
from pipelines.storage.atomic import write_beside, write_json

OnBad = Literal["refuse", "skip", "sort"]
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
HELD_BYTES = 1 << 18  # of decoded images that are counted at once
BAD_NAMED = 100  # bad rows that a shard's report names; all are counted


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What all shards of a dataset have in common."""

    class_names: tuple[str, ...]
    sensor: Sensor | None
    group_rows: int
    size: tuple[int, ...] | None
    """Height and width that images are brought to; as they are when not given."""
    shape: tuple[int, ...] | None
    """Height and width that all images must have (or the number of features)."""
    on_bad: OnBad
    source_id: Literal["int64", "string"] | None = None
    """Type of the column source_id, if there is one."""

    def metadata(self) -> dict[bytes, bytes]:
        """For the Parquet schema."""
        told: dict[bytes, bytes] = {}
        if self.class_names:
            told[b"class_names"] = json.dumps(self.class_names).encode()
        if self.sensor is not None:
            told |= {b"sensor_size": json.dumps(self.sensor).encode(), b"time_unit": b"us"}
        return told


@dataclass(frozen=True)
class Shard:
    """A span of a split's rows, and its file."""

    split: str
    number: int
    start: int
    stop: int

    @property
    def file(self) -> str:
        """Its name."""
        return f"{self.split}-{self.number:05d}.parquet"


@dataclass
class ShardReport:
    """What came of a shard."""

    file: str
    statistics: Statistics = field(default_factory=Statistics)
    sha256: str = ""
    bad: list[Bad] = field(default_factory=list)
    """The first ones."""
    bad_rows: int = 0

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**vars(self), "statistics": self.statistics.to_dict()}

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> "ShardReport":
        """What `to_dict` made."""
        bad = [Bad(*b) for b in value["bad"]]
        return cls(**{**value, "statistics": Statistics.from_dict(value["statistics"]), "bad": bad})


def write_shard(split: Split, start: int, stop: int, folder: str, file: str, layout: Layout) -> ShardReport:
    """Write rows ``start`` to ``stop`` as a Parquet file with their positions as ids, then its report.

    Memory holds one row group at a time.

    Raises:
        UserError: the disk is full or the folder cannot be written.
    """
    report = ShardReport(file)
    path = Path(folder) / file

    def write(partial: Path) -> None:
        writer: pq.ParquetWriter | None = None
        next_id = start
        try:
            for table in _groups(split.read(start, stop), report, layout):
                ids = pa.array(np.arange(next_id, next_id + table.num_rows))
                next_id += table.num_rows
                table = table.add_column(0, "id", ids).replace_schema_metadata(layout.metadata())
                if writer is None:
                    writer = parquet_writer(partial, table.schema)
                writer.write_table(table, row_group_size=layout.group_rows)
        finally:
            if writer is not None:
                writer.close()
        if writer is None:
            partial.touch()

    write_beside(path, write)
    report.sha256 = sha256_of(path)
    write_json(path.with_suffix(".json"), report.to_dict())
    return report


def parquet_writer(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    """For any of our schemas: zstd; times as differences, coordinates by dictionary, images plain."""
    events = pa.types.is_struct(schema.field("image").type) and "t" in schema.field("image").type.names
    if not events:
        return pq.ParquetWriter(path, schema, compression="zstd", use_dictionary=["label"])
    name = "image.{}.list.element"
    return pq.ParquetWriter(
        path,
        schema,
        compression="zstd",
        use_dictionary=["label", *(name.format(c) for c in "xyp")],
        column_encoding={name.format("t"): "DELTA_BINARY_PACKED", "id": "DELTA_BINARY_PACKED"},
    )


def sha256_of(path: Path) -> str:
    """Of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _groups(rows: Iterator[Example | Bad], report: ShardReport, layout: Layout) -> Iterator[pa.Table]:
    good: list[Example] = []
    checked = _Checker(report.statistics, layout)
    for row in rows:
        found = checked(row) if isinstance(row, Example) else row
        if isinstance(found, Bad):
            report.bad_rows += 1
            if len(report.bad) < BAD_NAMED:
                report.bad.append(found)
            continue
        good.append(found)
        if len(good) == layout.group_rows:
            yield _table(good, layout.source_id)
            checked.flush()
            good = []
    if good:
        yield _table(good, layout.source_id)
    checked.flush()


class _Checker:
    """Holds a row against the layout, and counts it."""

    def __init__(self, statistics: Statistics, layout: Layout) -> None:
        self._statistics, self._layout = statistics, layout
        self._images: list[np.ndarray] = []
        self._held = 0

    def __call__(self, row: Example) -> Example | Bad:
        """The row to write, or why not."""
        if row.label < 0 or (self._layout.class_names and row.label >= len(self._layout.class_names)):
            return Bad(row.path, f"label {row.label} is out of range")
        try:
            value = self._value(row.value)
        except ValueError as error:
            return Bad(row.path, str(error))
        self._statistics.label(row.label)
        return row if value is row.value else row._replace(value=value)

    def _value(self, value: Value) -> Value:
        if isinstance(value, Recording):
            assert self._layout.sensor is not None
            wrong = fault(value, self._layout.sensor)
            if wrong is not None and wrong.startswith(UNSORTED) and self._layout.on_bad == "sort":
                value = sort(value)
                wrong = fault(value, self._layout.sensor)
            if wrong is not None:
                raise ValueError(wrong)
            self._statistics.recording(value)
            return value
        if isinstance(value, bytes):
            value, pixels = _sized(value, self._layout.size)
        else:
            pixels = value
        self._check_shape(pixels)
        if pixels.ndim == 4:
            self._statistics.frames(pixels)
        else:
            self._images.append(pixels)
            self._held += pixels.nbytes
            if self._held > HELD_BYTES:
                self.flush()
        return value

    def _check_shape(self, pixels: np.ndarray) -> None:
        if pixels.dtype.kind == "f" and not np.isfinite(pixels).all():
            raise ValueError("has values that are NaN or infinite")
        expected, shape = self._layout.shape, pixels.shape[-2:] if pixels.ndim > 1 else pixels.shape
        if expected is not None and shape != expected:
            given, wanted = ("x".join(map(str, s)) for s in (shape, expected))
            remedy = "; --size brings all to one" if pixels.ndim == 3 else ""
            raise ValueError(f"is {given}, the first is {wanted}{remedy}")

    def flush(self) -> None:
        """Count what was held back to be counted at once."""
        by_shape: dict[tuple[int, ...], list[np.ndarray]] = {}
        for image in self._images:
            by_shape.setdefault(image.shape, []).append(image)
        for images in by_shape.values():
            self._statistics.images(np.stack(images))
        self._images, self._held = [], 0


def example_shape(value: Value, size: tuple[int, ...] | None) -> tuple[int, ...] | None:
    """Height and width of an image as it will be written, or the number of features.

    Raises:
        ValueError: it cannot be decoded.
    """
    if isinstance(value, Recording):
        return None
    pixels = _sized(value, size)[1] if isinstance(value, bytes) else value
    return pixels.shape[-2:] if pixels.ndim > 1 else pixels.shape


def _sized(data: bytes, size: tuple[int, ...] | None) -> tuple[bytes, np.ndarray]:
    """An encoded image's bytes and pixels; with a size, scaled to cover it, cut at the centre, as PNG."""
    if not data:
        raise ValueError("zero bytes")
    pixels = decode_image(data)
    if size is None or pixels.shape[-2:] == size:
        return data, pixels
    from PIL import Image, ImageOps

    image = Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))
    fitted = ImageOps.fit(image, (size[-1], size[0]), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    fitted.save(buffer, format="PNG")
    return buffer.getvalue(), decode_image(buffer.getvalue())


def _table(rows: list[Example], source_id: str | None) -> pa.Table:
    table = _examples(rows)
    if source_id is None:
        return table
    ids = pa.array([r.source_id for r in rows])
    return table.append_column("source_id", ids.cast(source_id))


def _examples(rows: list[Example]) -> pa.Table:
    labels = pa.array([r.label for r in rows], pa.int64())
    values = [r.value for r in rows]
    paths = pa.array([r.path for r in rows], pa.string())
    if isinstance(values[0], Recording):
        recordings = [v for v in values if isinstance(v, Recording)]
        counts = pa.array([len(r.t) for r in recordings], pa.int32())
        return pa.table({"image": to_arrow(recordings), "label": labels, "num_events": counts, "path": paths})
    if isinstance(values[0], np.ndarray) and values[0].ndim == 1:
        flat = pa.array(np.concatenate(values), pa.float32())
        return pa.table({"image": pa.FixedSizeListArray.from_arrays(flat, len(values[0])), "label": labels})
    encoded = pa.array([raw.pack(v) if isinstance(v, np.ndarray) else v for v in values], pa.binary())
    return pa.table(
        {"image": pa.StructArray.from_arrays([encoded, paths], fields=list(IMAGE)), "label": labels}
    )
