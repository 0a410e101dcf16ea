"""Recordings of event cameras and their like: lists of events, one recording an example.

In Parquet a recording is the struct ``{t, x, y, p}`` of four lists of equal length in the column
``image``, sorted by time; the sensor's ``[width, height, polarities]`` stands in the schema metadata.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa

EVENTS = pa.struct(
    [
        ("t", pa.list_(pa.int32())),
        ("x", pa.list_(pa.uint16())),
        ("y", pa.list_(pa.uint16())),
        ("p", pa.list_(pa.uint8())),
    ]
)
"""``t`` microseconds from the start of the recording, ``x`` column, ``y`` row, ``p`` polarity (1 = ON)."""


class Sensor(NamedTuple):
    """What a sensor sees."""

    width: int
    height: int
    polarities: int = 2

    @classmethod
    def of(cls, schema: pa.Schema) -> "Sensor | None":
        """From the schema metadata, ``None`` where it says nothing."""
        raw = (schema.metadata or {}).get(b"sensor_size")
        return cls(*(int(n) for n in json.loads(raw))) if raw else None


class Recording(NamedTuple):
    """Events of one recording; four arrays ``[E]`` of integers."""

    t: np.ndarray
    x: np.ndarray
    y: np.ndarray
    p: np.ndarray


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
        span = slice(int(self.offsets[row]), int(self.offsets[row + 1]))
        return Recording(*(values[span] for values in self.events))


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
    sizes = np.array([len(r.t) for r in recordings], np.int64)
    offsets = pa.array(np.concatenate([[0], np.cumsum(sizes)]), pa.int32())
    kinds = [field.type.value_type for field in EVENTS]
    flat = [_joined([r[i] for r in recordings], kind) for i, kind in enumerate(kinds)]
    lists = [pa.ListArray.from_arrays(offsets, pa.array(v, k)) for v, k in zip(flat, kinds, strict=True)]
    return pa.StructArray.from_arrays(lists, fields=list(EVENTS))


def fault(recording: Recording, sensor: Sensor) -> str | None:
    """What is wrong with a recording, in a few words, or ``None``."""
    t, x, y, p = recording
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
        return f"{UNSORTED} ({int(back.sum())} of {len(t)} events are earlier than the one before)"
    if int(t[-1]) - int(min(t[0], 0)) >= 2**31:
        return "lasts over 2147 s, more than int32 microseconds hold"
    return "times before the recording's start" if t[0] < 0 else None


UNSORTED = "unsorted times"
"""How `fault` begins where sorting would mend the recording."""


def sort(recording: Recording) -> Recording:
    """The same events in order of time; equal times stay in their order."""
    order = np.argsort(recording.t, kind="stable")
    return Recording(*(values[order] for values in recording))


def _joined(parts: list[np.ndarray], kind: pa.DataType) -> np.ndarray:
    dtype = kind.to_pandas_dtype()
    return np.concatenate([np.asarray(p, dtype) for p in parts]) if parts else np.zeros(0, dtype)
