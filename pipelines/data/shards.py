"""One shard: a span of a source's rows, checked, written beside and renamed, and a report of it."""

import io
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from pipelines.data.decode import decode_image, pack
from pipelines.data.events import Recording, Sensor, fault, is_events, to_arrow
from pipelines.data.sources.base import Bad, Example, Split, Value
from pipelines.storage.atomic import sha256_of, write_json, write_parquet

OnBad = Literal["refuse", "skip"]
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
HELD_BYTES = 1 << 18  # of decoded images that are counted at once
BAD_NAMED = 100  # bad rows that a shard's report names; all are counted


@dataclass(frozen=True, kw_only=True)
class Format:
    """What all shards of a dataset have in common."""

    class_names: tuple[str, ...]
    sensor: Sensor | None
    group_rows: int
    size: tuple[int, ...] | None
    """Height and width that images are brought to; as they are when not given."""
    shape: tuple[int, ...] | None
    """Height and width that all images must have (or the number of features)."""
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


@dataclass
class Statistics:
    """Sums over the examples of a shard or a split, all of one kind; of integers they are exact."""

    rows: int = 0
    classes: dict[str, int] = field(default_factory=dict)
    channels: dict[str, list[list[float]]] = field(default_factory=dict)
    """Images by number of channels (features have one): count, sum and sum of squares per channel."""
    framed: bool = False
    """Whether the images are event frames, whose zeros stay zeros."""

    def label(self, label: int) -> None:
        """Count an example and its class."""
        self.rows += 1
        self.classes[str(label)] = self.classes.get(str(label), 0) + 1

    def images(self, x: np.ndarray, *, framed: bool = False) -> None:
        """Add images or frames ``[n, C, H, W]`` of integers, or features ``[n, D]`` of floats."""
        self.framed = self.framed or framed
        kind = int if x.dtype.kind in "iu" else float
        sums = []
        for channel in x.swapaxes(0, 1) if x.ndim == 4 else [x]:
            wide = channel.astype(np.float64).ravel()  # whole numbers below 2^53: exact in any order
            sums.append((wide.size, kind(wide.sum()), kind(np.square(wide).sum())))
        self._add(str(len(sums)), list(zip(*sums, strict=True)))

    def merge(self, other: "Statistics") -> None:
        """Add another shard's sums."""
        self.rows += other.rows
        self.framed = self.framed or other.framed
        for label, count in other.classes.items():
            self.classes[label] = self.classes.get(label, 0) + count
        for channels, sums in other.channels.items():
            self._add(channels, sums)

    def result(self) -> dict[str, list[float]]:
        """For the manifest: mean and deviation per channel; nothing for recordings.

        Greyscale among coloured images counts in every channel; frames get a mean of 0.
        """
        if not self.channels:
            return {}
        total = np.zeros((3, max(map(int, self.channels))))
        for sums in self.channels.values():
            total += np.array(sums, np.float64)  # one channel spreads over all
        count, first, second = total
        mean = first / count * (not self.framed)
        return {"mean": mean.tolist(), "std": np.sqrt(np.maximum(second / count - mean**2, 0)).tolist()}

    def _add(self, channels: str, sums: Sequence[Sequence[float]]) -> None:
        old = np.array(self.channels.get(channels, 0), object)  # Python's own numbers, which have no limit
        self.channels[channels] = (old + np.array(sums, object)).tolist()


@dataclass(frozen=True)
class Shard:
    """A span of a split's rows, and its file."""

    split: str
    number: int
    start: int
    stop: int

    @property
    def rows(self) -> int:
        """How many."""
        return self.stop - self.start

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

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> "ShardReport":
        """What ``asdict`` made, from JSON."""
        bad = [Bad(*b) for b in value["bad"]]
        return cls(**{**value, "statistics": Statistics(**value["statistics"]), "bad": bad})


def write_shard(split: Split, shard: Shard, folder: Path, format: Format) -> ShardReport:
    """Write a shard as a Parquet file with the rows' positions as ids, then its report.

    Memory holds one row group at a time.
    """
    report, path = ShardReport(shard.file), folder / shard.file
    groups = _groups(split.read(shard.start, shard.stop), report, format)
    write_rows(path, groups, shard.start, format.group_rows)
    report.sha256 = sha256_of(path)
    write_json(path.with_suffix(".json"), asdict(report))
    return report


def write_rows(path: Path, tables: Iterable[pa.Table], first_id: int, group_rows: int) -> None:
    """A file of rows without ids, which get those from ``first_id`` on; an empty file without rows."""

    def numbered(next_id: int) -> Iterator[pa.Table]:
        for table in tables:
            ids = pa.array(np.arange(next_id, next_id + table.num_rows))
            next_id += table.num_rows
            yield table.add_column(0, "id", ids)

    write_parquet(path, numbered(first_id), group_rows, _encodings)


def _encodings(schema: pa.Schema) -> dict[str, Any]:
    """Times as differences, coordinates by dictionary, images plain."""
    if not is_events(schema.field("image").type):
        return {"use_dictionary": ["label"]}
    name = "image.{}.list.element"
    return {
        "use_dictionary": ["label", *(name.format(c) for c in "xyp")],
        "column_encoding": {name.format("t"): "DELTA_BINARY_PACKED", "id": "DELTA_BINARY_PACKED"},
    }


def _groups(rows: Iterator[Example | Bad], report: ShardReport, format: Format) -> Iterator[pa.Table]:
    checker = _Checker(report, format)
    good = (found for row in rows if (found := checker.check(row)) is not None)
    while group := list(islice(good, format.group_rows)):
        yield _table(group, format)
    checker.flush()


class _Checker:
    """Checks rows against the format, and counts them in the report."""

    def __init__(self, report: ShardReport, format: Format) -> None:
        self._report, self._format = report, format
        self._images: dict[tuple[int, ...], list[np.ndarray]] = {}
        self._held = 0

    def check(self, row: Example | Bad) -> Example | None:
        """The row as it is to be written; ``None`` for a bad one."""
        if isinstance(row, Example):
            try:
                value = self._value(row.label, row.value)
            except ValueError as error:
                row = Bad(row.path, str(error))
            else:
                self._report.statistics.label(row.label)
                return row._replace(value=value)
        self._report.bad_rows += 1
        if len(self._report.bad) < BAD_NAMED:
            self._report.bad.append(row)
        return None

    def _value(self, label: int, value: Value) -> Value:
        names = self._format.class_names
        if label < 0 or (names and label >= len(names)):
            raise ValueError(f"label {label} is out of range")
        if isinstance(value, Recording):
            return self._recording(value)
        value, pixels = _sized(value, self._format.size)
        self._check_shape(pixels)
        if pixels.ndim == 4:
            self._report.statistics.images(pixels, framed=True)
        else:
            self._images.setdefault(pixels.shape, []).append(pixels)
            self._held += pixels.nbytes
            if self._held > HELD_BYTES:
                self.flush()
        return value

    def _recording(self, value: Recording) -> Recording:
        assert self._format.sensor is not None
        if (wrong := fault(value, self._format.sensor)) is not None:
            raise ValueError(wrong)
        return value

    def _check_shape(self, pixels: np.ndarray) -> None:
        if pixels.dtype.kind == "f" and not np.isfinite(pixels).all():
            raise ValueError("has values that are NaN or infinite")
        expected, shape = self._format.shape, _height_and_width(pixels)
        if expected is not None and shape != expected:
            given, wanted = ("x".join(map(str, s)) for s in (shape, expected))
            remedy = "; --size brings all to one" if pixels.ndim == 3 else ""
            raise ValueError(f"is {given}, the first is {wanted}{remedy}")

    def flush(self) -> None:
        """Count the images that are held back to be counted at once."""
        for images in self._images.values():
            self._report.statistics.images(np.stack(images))
        self._images, self._held = {}, 0


def first_shape(split: Split, size: tuple[int, ...] | None) -> tuple[int, ...] | None:
    """Height and width of a split's first good image as it will be written, or its number of features."""
    for row in split.read(0, min(split.rows, 64)):
        if isinstance(row, Example) and not isinstance(row.value, Recording):
            with suppress(ValueError):
                return _height_and_width(_sized(row.value, size)[1])
    return None


def _height_and_width(pixels: np.ndarray) -> tuple[int, ...]:
    return pixels.shape[-2:] if pixels.ndim > 1 else pixels.shape


def _sized(data: bytes | np.ndarray, size: tuple[int, ...] | None) -> tuple[bytes | np.ndarray, np.ndarray]:
    """An image and its pixels; scaled to cover a size, cut at the centre: encoded ones as PNG."""
    if isinstance(data, bytes) and not data:
        raise ValueError("zero bytes")
    pixels = data if isinstance(data, np.ndarray) else decode_image(data)
    if size is None or pixels.shape[-2:] == size:
        return data, pixels
    if pixels.ndim != 3:
        raise ValueError("is no image, which alone can be brought to a --size")
    from PIL import Image, ImageOps

    def fitted(values: np.ndarray) -> Image.Image:
        return ImageOps.fit(Image.fromarray(values), (size[-1], size[0]), Image.Resampling.BICUBIC)

    if isinstance(data, np.ndarray):
        scaled = np.stack([np.asarray(fitted(channel)) for channel in pixels])
        return scaled, scaled
    buffer = io.BytesIO()
    fitted(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)).save(buffer, format="PNG")
    return buffer.getvalue(), decode_image(buffer.getvalue())


def _table(rows: list[Example], format: Format) -> pa.Table:
    values = [r.value for r in rows]
    paths = pa.array([r.path for r in rows], pa.string())
    columns: dict[str, Any] = {"image": None, "label": pa.array([r.label for r in rows], pa.int64())}
    if isinstance(values[0], Recording):
        recordings = [v for v in values if isinstance(v, Recording)]
        columns["image"] = to_arrow(recordings)
        columns |= {"num_events": pa.array([len(r.t) for r in recordings], pa.int32()), "path": paths}
    elif isinstance(values[0], np.ndarray) and values[0].ndim == 1:
        flat = pa.array(np.concatenate(values), pa.float32())
        columns["image"] = pa.FixedSizeListArray.from_arrays(flat, len(values[0]))
    else:
        encoded = pa.array([pack(v) if isinstance(v, np.ndarray) else v for v in values], pa.binary())
        columns["image"] = pa.StructArray.from_arrays([encoded, paths], fields=list(IMAGE))
    if format.source_id is not None:
        columns["source_id"] = pa.array([r.source_id for r in rows]).cast(format.source_id)
    return pa.table(columns, metadata=format.metadata())
