"""Recordings of event cameras and their like, one an example, and the frames that they become.

In Parquet a recording is the struct ``{t, x, y, p}`` of four lists of equal length in the column
``image``, sorted by time; the sensor's ``[width, height, polarities]`` stands in the schema metadata.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa

from cluster.errors import UserError

_INTEGERS = {"t": pa.int32(), "x": pa.uint16(), "y": pa.uint16(), "p": pa.uint8()}
EVENTS = pa.struct([(name, pa.list_(kind)) for name, kind in _INTEGERS.items()])
"""``t`` microseconds from the start of the recording, ``x`` column, ``y`` row, ``p`` polarity (1 = ON)."""
By = Literal["time", "count"]


class Sensor(NamedTuple):
    """What a sensor sees."""

    width: int
    height: int
    polarities: int = 2

    @classmethod
    def of(cls, schema: pa.Schema) -> "Sensor | None":
        """From the schema metadata, ``None`` where it says nothing.

        Raises:
            UserError: it says what is no size.
        """
        raw = (schema.metadata or {}).get(b"sensor_size")
        if not raw:
            return None
        try:
            found = cls(*(int(n) for n in json.loads(raw)))
        except (ValueError, TypeError, RecursionError):
            found = cls(0, 0)
        if min(found) < 1:
            what = f"in the metadata of the Parquet files is {raw[:80]!r}, not [width, height, polarities]"
            raise UserError("sensor_size", what)
        return found


class Recording(NamedTuple):
    """Events of one recording; four arrays ``[E]`` of integers."""

    t: np.ndarray
    x: np.ndarray
    y: np.ndarray
    p: np.ndarray

    def take(self, events: np.ndarray | slice) -> "Recording":
        """Some of the events."""
        return Recording(*(values[events] for values in self))


@dataclass(frozen=True, eq=False)
class EventBatch:
    """Events of several recordings one after the other; recording ``b`` is ``offsets[b]:offsets[b + 1]``."""

    offsets: np.ndarray
    """int64 ``[B + 1]``."""
    events: Recording
    """Of all recordings, four arrays ``[E]``."""

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> Recording:
        """One recording."""
        return self.events.take(slice(int(self.offsets[row]), int(self.offsets[row + 1])))


def is_events(kind: pa.DataType) -> bool:
    """Whether rows of this type hold recordings."""
    return pa.types.is_struct(kind) and all(
        kind.get_field_index(name) >= 0 and _is_list(kind.field(name).type) for name in "txyp"
    )


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind)


def from_arrow(column: pa.StructArray) -> EventBatch:
    """Recordings of a column that `is_events`, without copying the events."""
    lists = [column.field(name) for name in "txyp"]
    offsets = lists[0].offsets.to_numpy().astype(np.int64)
    flat = [part.flatten().to_numpy(zero_copy_only=False) for part in lists]
    return EventBatch(offsets - offsets[0], Recording(*flat))


def to_arrow(recordings: Sequence[Recording]) -> pa.StructArray:
    """A column of type `EVENTS`."""
    offsets = pa.array(np.cumsum([0, *(len(r.t) for r in recordings)]), pa.int32())
    lists = []
    for field in EVENTS:
        values = np.concatenate([getattr(r, field.name) for r in recordings])
        values = values.astype(field.type.value_type.to_pandas_dtype())
        lists.append(pa.ListArray.from_arrays(offsets, pa.array(values)))
    return pa.StructArray.from_arrays(lists, fields=list(EVENTS))


def fault(recording: Recording, sensor: Sensor) -> str | None:
    """What is wrong with a recording, in a few words, or ``None``."""
    t, x, y, p = recording
    if len({len(values) for values in recording}) > 1:
        return f"has {', '.join(str(len(values)) for values in recording)} values of t, x, y, p"
    if len(t) == 0:
        return "empty recording"
    outside = (x < 0) | (x >= sensor.width) | (y < 0) | (y >= sensor.height)
    if outside.any():
        k = int(np.argmax(outside))
        return (
            f"{int(outside.sum())} of {len(t)} events off the {sensor.width}x{sensor.height} sensor "
            f"(the first at x {int(x[k])}, y {int(y[k])})"
        )
    if ((p < 0) | (p > 1)).any():
        return f"polarities other than 0 and 1 (such as {int(p[(p < 0) | (p > 1)][0])})"
    back = t[1:] < t[:-1]
    if back.any():
        return f"unsorted times ({int(back.sum())} of {len(t)} events are earlier than the one before)"
    if int(t[-1]) - int(min(t[0], 0)) >= 2**31:
        return "lasts over 2147 s, more than int32 microseconds hold"
    return "times before the recording's start" if t[0] < 0 else None


def sort(recording: Recording) -> Recording:
    """The same events in order of time; equal times stay in their order."""
    return recording.take(np.argsort(recording.t, kind="stable"))


@dataclass(frozen=True, kw_only=True)
class Frames:
    """How a recording becomes ``T`` images that count the events of a cell and a polarity.

    The rule is that of tonic's ``ToFrame`` (``n_time_bins``, ``n_event_bins``, no overlap), bit for bit:

    - by time: the window is ``(t_last - t_first) // T`` microseconds long; frame ``k`` counts the events with
      ``k window <= t - t_first < (k + 1) window``. What the division leaves over is not counted.
    - by count: with ``n = E // T``, frame ``k`` counts the events ``k n`` to ``(k + 1) n``. The last
      ``E mod T`` events are not counted.

    Fewer cells: ``x * width // sensor width``, and rows likewise, in integers.
    """

    T: int
    by: By
    height: int
    width: int
    sensor: Sensor

    @classmethod
    def of(cls, sensor: Sensor, *, T: int, by: By, size: tuple[int, ...] | None, where: str) -> "Frames":
        """For a size as users give it: none (the sensor's), one number, or height and width.

        Raises:
            UserError: a size beyond the sensor's, under the name ``where``.
        """
        height, width = (size[0], size[-1]) if size else (sensor.height, sensor.width)
        if not (1 <= height <= sensor.height and 1 <= width <= sensor.width):
            what = f"{height}x{width} is not possible; the sensor has {sensor.height}x{sensor.width} cells"
            raise UserError(where, what)
        return cls(T=T, by=by, height=height, width=width, sensor=sensor)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """``(T, polarities, height, width)``."""
        return self.T, self.sensor.polarities, self.height, self.width

    def count(self, recording: Recording) -> np.ndarray:
        """Frames of one recording, int64 ``[T, P, H, W]``; all zero without events."""
        cells = self.sensor.polarities * self.height * self.width
        if self.by == "count":
            n = len(recording.t) // self.T
            _, x, y, p = recording.take(slice(n * self.T))
            frame = np.arange(len(x), dtype=np.int64) // max(n, 1)
        else:
            since = recording.t.astype(np.int64)
            since -= since[:1].sum()  # nothing where there is no event
            window = int(since[-1]) // self.T if len(since) else 0
            stop = int(np.searchsorted(since, window * self.T))
            _, x, y, p = recording.take(slice(stop))
            frame = since[:stop] // max(window, 1)
        cell = (y.astype(np.int64) * self.height // self.sensor.height) * self.width
        cell += x.astype(np.int64) * self.width // self.sensor.width
        if self.sensor.polarities > 1:
            cell += p.astype(np.int64) * (self.height * self.width)
        return np.bincount(frame * cells + cell, minlength=self.T * cells).reshape(self.shape)

    def batch(self, events: EventBatch) -> np.ndarray:
        """Frames of several recordings, float32 ``[B, T, P, H, W]``."""
        frames = np.empty((len(events), *self.shape), np.float32)
        for row in range(len(events)):
            frames[row] = self.count(events[row])
        return frames
