"""A folder of Parquet files as a dataset: its splits, their columns, and what a run must know of them."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.config import DataConfig
from pipelines.data.decode import decode, is_encoded, is_numeric
from pipelines.data.events import EventBatch, Sensor, is_events
from pipelines.data.files import read_json
from pipelines.data.frames import Frames
from pipelines.errors import UserError

COLUMNS = ("id", "image", "label")
STATISTICS_ROWS = 2048
STATISTICS_FRAMES = 256  # recordings that scale event frames; frames are larger than images
MAX_ID_GAP = 32  # ids may spread over this many times the number of rows before scores would waste memory


@dataclass(frozen=True, kw_only=True)
class Split:
    """One split of a dataset, checked.

    ``ids`` are unique; ``first_id`` and ``id_span`` give the range ``[first_id, first_id + id_span)``
    that they lie in.
    """

    files: tuple[str, ...]
    num_examples: int
    first_id: int
    id_span: int
    ids: np.ndarray
    labels: np.ndarray

    def present(self) -> np.ndarray:
        """Which ids of the range exist, bool ``[id_span]``."""
        mask = np.zeros(self.id_span, bool)
        mask[self.ids - self.first_id] = True
        return mask


@dataclass(frozen=True, kw_only=True)
class DatasetInfo:
    """What a network and its inputs need to know of a dataset."""

    input_shape: tuple[int, ...]
    """Of one example at one timestep: ``(C, H, W)`` or ``(N,)``."""
    num_classes: int
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    """Per channel (or one for features), in the units of the decoded values."""
    std: tuple[float, ...]
    """As ``mean``."""
    frames: Frames | None = None
    """How recordings of events become frames; ``None`` for all other data."""
    timesteps: int | None = None
    """Frames per example where the dataset holds frames; ``None`` for all other data."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def split_files(folder: Path | str, split: str) -> tuple[str, ...]:
    """The Parquet files of a split, in order of their names.

    Raises:
        UserError: no such folder, or no file of that split.
    """
    folder = Path(folder)
    if not folder.exists():
        raise UserError("data.path", f"{folder} does not exist; `spikeprune data ingest` writes one")
    files = sorted(folder.glob(f"{split}*.parquet"))
    if not files:
        raise UserError("data.path", f"{folder} has no file {split}*.parquet")
    return tuple(str(f.resolve()) for f in files)


def read_split(folder: Path | str, split: str) -> Split:
    """Check a split's schema, ids and labels by reading those two columns.

    Raises:
        UserError: not Parquet, a missing or mistyped column, no rows, duplicate or negative ids, ids
            spread too far, or a negative label, each with its file.
    """
    files = split_files(folder, split)
    ids, labels = [], []
    schema: pa.Schema | None = None
    for file in files:
        schema = _check_schema(file, schema)
        table = pq.read_table(file, columns=["id", "label"], partitioning=None)
        for name in ("id", "label"):
            if table.column(name).null_count:
                raise UserError(file, f"column {name!r} has {table.column(name).null_count} empty values")
        ids.append(table.column("id").to_numpy())
        labels.append(table.column("label").to_numpy().astype(np.int64))
    all_ids, all_labels = np.concatenate(ids), np.concatenate(labels)
    if all_ids.size == 0:
        raise UserError(files[0], f"split {split!r} has no rows")
    if all_labels.min() < 0:
        raise UserError(files[0], f"label {all_labels.min()} is out of range; labels start at 0")
    order = np.argsort(all_ids, kind="stable")
    sorted_ids = all_ids[order]
    duplicate = np.flatnonzero(sorted_ids[1:] == sorted_ids[:-1])
    if duplicate.size:
        raise UserError(files[0], f"id {sorted_ids[duplicate[0]]} occurs twice in split {split!r}")
    first, span = int(sorted_ids[0]), int(sorted_ids[-1] - sorted_ids[0]) + 1
    if first < 0:
        raise UserError(files[0], f"id {first} is negative; ids start at 0")
    if span > MAX_ID_GAP * all_ids.size + 65536:
        raise UserError(
            files[0],
            f"ids spread over {span} values for {all_ids.size} rows; "
            "`spikeprune data ingest --source parquet` numbers them densely",
        )
    return Split(
        files=files,
        num_examples=all_ids.size,
        first_id=first,
        id_span=span,
        ids=sorted_ids,
        labels=all_labels[order],
    )


def describe(
    train: Split, test: Split, folder: Path | str, data: DataConfig | None = None, T: int = 4
) -> DatasetInfo:
    """Shape, classes and normalisation of a dataset, from its training rows and schema.

    Args:
        train: training rows.
        test: test rows.
        folder: of the dataset, for its manifest.
        data: how recordings become frames; defaults when not given.
        T: timesteps, as many as frames.

    Raises:
        UserError: a test label that no training label reaches, undecodable or unequal examples, or NaN.
    """
    schema = pq.read_schema(train.files[0])
    names = _class_names(schema)
    num_classes = max(len(names), int(train.labels.max()) + 1)
    if names and train.labels.max() >= len(names):
        raise UserError(
            train.files[0],
            f"label {train.labels.max()} is out of range; the schema names {len(names)} classes",
        )
    if test.labels.max() >= num_classes:
        raise UserError(
            test.files[0],
            f"label {test.labels.max()} is out of range; training has {num_classes} classes",
        )
    if is_numeric(schema.field("image").type):
        _check_finite(train.files + test.files)
    event_frames = _frames(schema, train.files[0], data or DataConfig(), T)
    rows = next(iter_rows(train.files, STATISTICS_FRAMES if event_frames else STATISTICS_ROWS))
    x = decode(rows.column("image"), rows.column("id").to_numpy())
    if isinstance(x, EventBatch):
        assert event_frames is not None
        x = event_frames.batch(x)
    mean, std = _statistics(x)
    manifest = Path(folder) / "manifest.json"
    if manifest.exists() and event_frames is None:
        stored = read_json(manifest).get("statistics", {})
        mean = np.asarray(stored.get("mean", mean), np.float64)
        std = np.asarray(stored.get("std", std), np.float64)
    return DatasetInfo(
        input_shape=x.shape[2:] if x.ndim == 5 else x.shape[1:],
        num_classes=num_classes,
        class_names=tuple(names) or tuple(str(k) for k in range(num_classes)),
        mean=tuple(float(v) for v in mean),
        std=tuple(float(v) or 1.0 for v in std),
        frames=event_frames,
        timesteps=x.shape[1] if x.ndim == 5 and event_frames is None else None,
    )


def _frames(schema: pa.Schema, file: str, data: DataConfig, T: int) -> Frames | None:
    if not is_events(schema.field("image").type):
        return None
    sensor = Sensor.of(schema)
    if sensor is None:
        raise UserError(file, "its schema metadata do not tell the sensor_size; ingest the recordings again")
    by, size = data.frames.by, data.frames.size
    return Frames.of(sensor, T=T, by=by, size=size, where="data.frames.size")


def _statistics(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation per channel; frames keep their zeros, so their mean counts as 0."""
    if x.ndim == 5:
        scale = np.sqrt(np.square(x, dtype=np.float64).mean((0, 1, 3, 4)))
        return np.zeros_like(scale), scale
    axes = (0, 2, 3) if x.ndim == 4 else None
    return np.atleast_1d(x.mean(axes, np.float64)), np.atleast_1d(x.std(axes, dtype=np.float64))


def iter_rows(files: tuple[str, ...], batch_rows: int) -> Iterator[pa.Table]:
    """Tables of up to ``batch_rows`` rows with the columns of a training example, file by file."""
    for file in files:
        with pq.ParquetFile(file) as parquet:
            for batch in parquet.iter_batches(batch_rows, columns=list(COLUMNS)):
                yield pa.Table.from_batches([batch])


def _check_schema(file: str, expected: pa.Schema | None) -> pa.Schema:
    try:
        schema = pq.read_schema(file)
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


def _check_finite(files: tuple[str, ...]) -> None:
    for file in files:
        for rows in iter_rows((file,), 65536):
            values = rows.column("image").combine_chunks()
            flat = values.flatten()
            if flat.null_count or (
                pa.types.is_floating(flat.type) and not pc.all(pc.is_finite(flat)).as_py()
            ):
                ids = rows.column("id").to_numpy()
                x = decode(rows.column("image"), ids)
                assert isinstance(x, np.ndarray)
                bad = ids[~np.isfinite(x).all(1)]
                raise UserError(file, f"column 'image' is NaN or infinite at id {bad[0]}")


def _class_names(schema: pa.Schema) -> list[str]:
    import json

    raw = (schema.metadata or {}).get(b"class_names")
    return [str(n) for n in json.loads(raw)] if raw else []
