"""Events to frames: ``T`` images that count the events of a cell and a polarity.

The rule is that of tonic's ``ToFrame`` (``n_time_bins``, ``n_event_bins``, no overlap), bit for bit:

- by time: the window is ``(t_last - t_first) // T`` microseconds long; frame ``k`` counts the events with
  ``k window <= t - t_first < (k + 1) window``. What the division leaves over is not counted.
- by count: with ``n = E // T``, frame ``k`` counts the events ``k n`` to ``(k + 1) n``. The last
  ``E mod T`` events are not counted.

Fewer cells: ``x * width // sensor width``, and rows likewise, in integers.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from pipelines.data.events import EventBatch, Recording, Sensor
from pipelines.errors import UserError

By = Literal["time", "count"]


@dataclass(frozen=True, kw_only=True)
class Frames:
    """How recordings become frames."""

    T: int
    by: By
    height: int
    width: int
    sensor: Sensor

    @classmethod
    def of(cls, sensor: Sensor, *, T: int, by: By, size: tuple[int, ...] | None, where: str) -> "Frames":
        """For a size as users give it: none (the sensor's), one number, or height and width.

        Raises:
            UserError: a size that is not smaller than the sensor, under the name ``where``.
        """
        height, width = (size[0], size[-1]) if size else (sensor.height, sensor.width)
        if not (1 <= height <= sensor.height and 1 <= width <= sensor.width):
            raise UserError(
                where,
                f"{height}x{width} is not possible; the sensor has {sensor.height}x{sensor.width} cells",
            )
        return cls(T=T, by=by, height=height, width=width, sensor=sensor)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """``(T, polarities, height, width)``."""
        return self.T, self.sensor.polarities, self.height, self.width

    def count(self, recording: Recording) -> np.ndarray:
        """Frames of one recording, int64 ``[T, P, H, W]``; all zero without events."""
        t, x, y, p = recording
        cells = self.sensor.polarities * self.height * self.width
        if self.by == "count":
            n = len(t) // self.T
            t, x, y, p = (values[: n * self.T] for values in recording)
            frame = np.arange(len(t), dtype=np.int64) // max(n, 1)
        else:
            since = t.astype(np.int64) - (int(t[0]) if len(t) else 0)
            window = int(since[-1]) // self.T if len(t) else 0
            stop = int(np.searchsorted(since, window * self.T))
            x, y, p = x[:stop], y[:stop], p[:stop]
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


def smallest(counts: np.ndarray) -> np.ndarray:
    """The same counts as uint8 where they fit, else uint16.

    Raises:
        ValueError: a count beyond 65,535.
    """
    most = int(counts.max(initial=0))
    if most > 65535:
        raise ValueError(f"{most} events in one cell of one frame; use more frames or cells")
    return counts.astype(np.uint8 if most < 256 else np.uint16)
