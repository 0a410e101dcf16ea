"""A folder of Parquet files as a dataset: what a run must know of its splits, and whether they fit."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cluster.errors import UserError
from pipelines.config import DataConfig
from pipelines.data.decode import ExampleError, Examples, decode
from pipelines.data.events import EventBatch, Frames, Sensor, fault, is_events
from pipelines.data.layout import Rows, naming_rows, read_rows
from pipelines.data.scan import MANIFEST, Split, class_names, read_manifest
from pipelines.storage.atomic import well_formed
from pipelines.storage.paths import below

STATISTICS_ROWS = 2048
STATISTICS_FRAMES = 256  # recordings that scale event frames; frames are larger than images
CHECKED_ROWS = 1024  # examples that are decoded together
MOST_ABSENT = 10  # classes by the highest label over labels that occur, from which on a label is a mistake
CHEAP_BYTES = 256 << 20  # data up to this size are looked through before a run


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


def describe(
    train: Split, test: Split, folder: Path | str, data: DataConfig | None = None, T: int = 4
) -> DatasetInfo:
    """Shape, classes and normalisation of a dataset, from its training rows, schema and manifest.

    ``data`` and ``T`` say how recordings become frames.

    Raises:
        UserError: a test label that no training label reaches, undecodable or unequal examples, or NaN.
    """
    names = class_names(train.schema)
    num_classes = max(len(names), train.max_label + 1)
    present = len(train.class_counts)
    if not names and num_classes > MOST_ABSENT * present:
        raise UserError(
            train.files[0],
            f"label {train.max_label:,} would make {num_classes:,} classes, but only {present} labels occur;"
            " number the classes from 0, or name them in the schema's metadata (class_names)",
        )
    check_labels(test, num_classes)
    frames = _frames(train, data or DataConfig(), T)
    x = _decoded(train, STATISTICS_FRAMES if frames else STATISTICS_ROWS)
    if isinstance(x, EventBatch):
        assert frames is not None
        x = frames.batch(x)
        mean, std = _statistics(x)
    else:
        mean, std = _normalisation(folder, x)
        _check_alike(test, x, len(mean))
    return DatasetInfo(
        input_shape=(len(mean), *x.shape[-2:]) if x.ndim > 3 else x.shape[1:],
        num_classes=num_classes,
        class_names=names or tuple(str(k) for k in range(num_classes)),
        mean=tuple(float(v) for v in mean),
        std=tuple(float(v) or 1.0 for v in std),
        frames=frames,
        timesteps=x.shape[1] if x.ndim == 5 and frames is None else None,
    )


def _decoded(split: Split, rows: int) -> Examples:
    head = split.head(rows)
    with naming_rows(split.layout):
        return decode(head.column("image"), head.column("id").to_numpy())


def check_labels(split: Split, num_classes: int) -> None:
    """Refuse a label of held-out examples that is beyond the classes of training."""
    if split.max_label >= num_classes:
        what = f"label {split.max_label} is out of range; training has {num_classes} classes"
        raise UserError(split.files[0], what)


def _check_alike(test: Split, x: np.ndarray, channels: int) -> None:
    """Refuse test examples that a network for these training examples cannot take."""
    other = _decoded(test, 1)
    if (size := _size(other)) != _size(x):
        what = f"examples have size {size}, those of training {_size(x)}; make them equal"
        raise UserError(test.files[0], what)
    if (found := _channels(other)) not in (1, channels):  # greyscale ones fill all channels
        what = f"examples have {found} channels, those of training {channels}; make them equal"
        raise UserError(test.files[0], what)


def _channels(x: Examples) -> int:
    return 1 if isinstance(x, EventBatch) or x.ndim < 4 else x.shape[-3]


def _normalisation(folder: Path | str, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation per channel, by the manifest, where it has any, or by these examples.

    Of greyscale examples the manifest may hold three, where coloured ones are among those that follow.
    """
    channels = _channels(x)
    allowed = (1, 3) if channels == 1 and x.ndim == 4 else (channels,)
    with well_formed(below(folder, MANIFEST)):
        stored = (read_manifest(folder) or {}).get("statistics") or {}
        if "mean" not in stored:
            return _statistics(x)
        mean, std = (np.asarray(stored[name], np.float64).reshape(-1) for name in ("mean", "std"))
        good = np.isfinite(mean).all() and np.isfinite(std).all() and (std >= 0).all()
        if len(mean) != len(std) or len(mean) not in allowed or not good:
            raise ValueError(f"statistics must hold {channels} finite means and as many deviations from 0 on")
    return mean, std


def _frames(split: Split, data: DataConfig, T: int) -> Frames | None:
    if not is_events(split.schema.field("image").type):
        return None
    sensor = Sensor.of(split.schema)
    if sensor is None:
        what = "its schema metadata do not tell the sensor_size; ingest the recordings again"
        raise UserError(split.files[0], what)
    return Frames.of(sensor, T=T, by=data.frames.by, size=data.frames.size, where="data.frames.size")


def _statistics(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation per channel; frames keep their zeros, so their mean counts as 0."""
    if x.ndim == 5:
        scale = np.sqrt(np.square(x, dtype=np.float64).mean((0, 1, 3, 4)))
        return np.zeros_like(scale), scale
    axes = (0, 2, 3) if x.ndim == 4 else None
    return np.atleast_1d(x.mean(axes, np.float64)), np.atleast_1d(x.std(axes, dtype=np.float64))


def check_examples(split: Split) -> None:
    """Decode every example of a split: all must be of one size, recordings such that frames can be made."""
    size: tuple[int, ...] | None = None
    sensor = Sensor.of(split.schema)
    for piece in range(len(split.layout)):
        part = split.layout.take([piece])
        with naming_rows(part):
            for ids, x, _ in Rows(read_rows(part, split.ids)).batches(CHECKED_ROWS):
                size = size or _size(x)
                _check(ids, x, size, sensor)


def _check(ids: np.ndarray, x: Examples, size: tuple[int, ...], sensor: Sensor | None) -> None:
    if (found := _size(x)) != size:
        raise ExampleError(int(ids[0]), f"has shape {found}, others {size}; make them equal")
    if isinstance(x, EventBatch) and sensor is not None:
        for k in np.flatnonzero(np.diff(x.offsets)).tolist():  # ones without events make no frames
            if (what := fault(x[k], sensor)) is not None:
                raise ExampleError(int(ids[k]), what)


def _size(x: Examples) -> tuple[int, ...]:
    """Height and width, or the number of features; recordings have none."""
    return () if isinstance(x, EventBatch) else x.shape[1:][-2:]
