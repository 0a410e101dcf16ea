"""A folder of Parquet files as a dataset: its splits, their columns, and what a run must know of them."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from cluster.errors import UserError
from pipelines.config import DataConfig
from pipelines.data.decode import ExampleError, Examples, decode
from pipelines.data.events import EventBatch, Frames, Sensor, fault, is_events
from pipelines.data.layout import Ids, Layout, first_rows, naming_rows, read_rows
from pipelines.data.scan import MANIFEST, class_names, read_manifest, scan
from pipelines.storage.atomic import well_formed
from pipelines.storage.paths import below
from pruning.examples.sampling import uniform

STATISTICS_ROWS = 2048
STATISTICS_FRAMES = 256  # recordings that scale event frames; frames are larger than images
CHECKED_ROWS = 1024  # examples that are decoded together
MOST_ABSENT = 10  # classes by the highest label over labels that occur, from which on a label is a mistake
VALIDATION_STREAM = 106
CHEAP_BYTES = 256 << 20  # data up to this size are looked through before a run


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


def read_split(folder: Path | str, split: str) -> Split:
    """Check a split's schema, ids and labels by reading those two columns, a bounded number at a time.

    Raises:
        UserError: a missing or unreadable file or row group, a missing or mistyped column, no rows,
            ids that are not the rows' positions, or a bad label, each with its file.
    """
    found = scan(folder, split)
    return Split(
        files=found.files,
        schema=found.schema,
        ids=Ids(found.end),
        layout=found.layout,
        num_bytes=found.num_bytes,
        class_counts=dict(found.class_counts),
    )


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
        rows = read_rows(part, split.ids)
        for start in range(0, rows.num_rows, CHECKED_ROWS):
            some = rows.slice(start, CHECKED_ROWS)
            with naming_rows(part):
                size = _check(some.column("image"), some.column("id").to_numpy(), size, sensor)


def _check(
    images: pa.ChunkedArray, ids: np.ndarray, size: tuple[int, ...] | None, sensor: Sensor | None
) -> tuple[int, ...]:
    """Their size, which must be that of those before."""
    x = decode(images, ids)
    found = _size(x)
    if found != (size or found):
        raise ExampleError(int(ids[0]), f"has shape {found}, others {size}; make them equal")
    if isinstance(x, EventBatch) and sensor is not None:
        for k in np.flatnonzero(np.diff(x.offsets)).tolist():  # ones without events make no frames
            if (what := fault(x[k], sensor)) is not None:
                raise ExampleError(int(ids[k]), what)
    return found


def _size(x: Examples) -> tuple[int, ...]:
    """Height and width, or the number of features; recordings have none."""
    return () if isinstance(x, EventBatch) else x.shape[1:][-2:]
