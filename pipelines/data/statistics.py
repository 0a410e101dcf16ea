"""Sums over examples that give the manifest's statistics: integers where they can be, so order is nothing."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pipelines.data.events import Recording

EXACT = 256  # squares of so many bytes add up to less than 2^24: exact in float32, in any order
_Sums = tuple[list[float], list[float]]


@dataclass
class Statistics:
    """Of the examples of a shard or a split; of one kind only. Sums are Python's own, without limit."""

    rows: int = 0
    classes: dict[int, int] = field(default_factory=dict)
    channels: dict[int, list[list[float]]] = field(default_factory=dict)
    """Images (or features, 0) by number of channels: count, sum and sum of squares per channel."""
    events: dict[str, int] = field(default_factory=dict)
    """Recordings: number of events, of ON events, of microseconds; fewest, most events."""
    framed: bool = False
    """Whether the images are event frames, whose zeros stay zeros."""

    def label(self, label: int) -> None:
        """Count an example's class."""
        self.rows += 1
        self.classes[label] = self.classes.get(label, 0) + 1

    def images(self, x: np.ndarray) -> None:
        """Add images ``[n, C, H, W]`` of integers or features ``[n, D]`` of floats."""
        if x.ndim == 2:
            wide = x.astype(np.float64)
            self._add(0, [x.size], [float(wide.sum())], [float((wide**2).sum())])
            return
        count = [x.size // x.shape[1]] * x.shape[1]
        if x.dtype == np.uint8:
            self._add(x.shape[1], count, *_byte_sums(x))
            return
        sums: list[float] = []
        squares: list[float] = []
        for channel in x.swapaxes(0, 1):
            wide = channel.astype(np.float64).ravel()  # whole numbers below 2^53: exact in any order
            sums.append(int(wide.sum()))
            squares.append(int(np.square(wide, out=wide).sum()))
        self._add(x.shape[1], count, sums, squares)

    def frames(self, x: np.ndarray) -> None:
        """Add event frames ``[T, C, H, W]`` of integers."""
        self.framed = True
        wide = x.astype(np.int64)
        count = x.size // x.shape[1]
        squares = (wide**2).sum((0, 2, 3)).tolist()
        self._add(x.shape[1], [count] * x.shape[1], wide.sum((0, 2, 3)).tolist(), squares)

    def recording(self, r: Recording) -> None:
        """Add a recording that is not empty."""
        n, e = len(r.t), self.events
        e["events"] = e.get("events", 0) + n
        e["on_events"] = e.get("on_events", 0) + int(np.count_nonzero(r.p))
        e["microseconds"] = e.get("microseconds", 0) + int(r.t[-1]) - int(r.t[0])
        e["fewest"], e["most"] = min(e.get("fewest", n), n), max(e.get("most", n), n)

    def merge(self, other: "Statistics") -> None:
        """Add another shard's sums."""
        self.rows += other.rows
        self.framed = self.framed or other.framed
        for label, count in other.classes.items():
            self.classes[label] = self.classes.get(label, 0) + count
        for channels, sums in other.channels.items():
            self._add(channels, *sums)
        if other.events:
            e, o = self.events, other.events
            for name in ("events", "on_events", "microseconds"):
                e[name] = e.get(name, 0) + o[name]
            e["fewest"] = min(e.get("fewest", o["fewest"]), o["fewest"])
            e["most"] = max(e.get("most", 0), o["most"])

    def pixels(self) -> dict[str, list[float]]:
        """Mean and deviation per channel; greyscale among coloured images counts in every channel.

        Frames get a mean of 0 and the deviation from 0, so that their zeros stay zeros.
        """
        most = max(self.channels, default=0)
        total = np.zeros((3, max(most, 1)))
        for sums in self.channels.values():
            total += np.array(sums, np.float64)  # one channel spreads over all
        count, first, second = total
        mean = first / count
        if self.framed:
            return {"mean": [0.0] * len(mean), "std": np.sqrt(second / count).tolist()}
        return {"mean": mean.tolist(), "std": np.sqrt(np.maximum(second / count - mean**2, 0)).tolist()}

    def result(self) -> dict[str, Any]:
        """For the manifest: of the pixels, or of the events."""
        if not self.events:
            return self.pixels() if self.channels else {}
        e = self.events
        return {
            "events": e["events"],
            "events_per_recording": e["events"] / self.rows,
            "fewest_events": e["fewest"],
            "most_events": e["most"],
            "on_share": e["on_events"] / e["events"],
            "seconds_per_recording": e["microseconds"] / self.rows / 1e6,
        }

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "rows": self.rows,
            "classes": {str(k): v for k, v in self.classes.items()},
            "channels": {str(k): v for k, v in self.channels.items()},
            "events": self.events,
            "framed": self.framed,
        }

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> "Statistics":
        """What `to_dict` made."""
        return cls(
            rows=value["rows"],
            classes={int(k): v for k, v in value["classes"].items()},
            channels={int(k): v for k, v in value["channels"].items()},
            events=value["events"],
            framed=value["framed"],
        )

    def _add(self, channels: int, *sums: list[float]) -> None:
        old = self.channels.get(channels)
        new = [list(s) for s in sums]
        if old:
            new = [[a + b for a, b in zip(x, y, strict=True)] for x, y in zip(old, new, strict=True)]
        self.channels[channels] = new


def _byte_sums(x: np.ndarray) -> _Sums:
    """Sums and sums of squares per channel of images ``[n, C, H, W]`` uint8, in the order of memory."""
    interleaved = x.transpose(0, 2, 3, 1)
    if interleaved.flags.c_contiguous:  # as images are decoded
        return _interleaved_sums(interleaved.reshape(-1), x.shape[1])
    parts = [_interleaved_sums(channel.reshape(-1), 1) for channel in x.swapaxes(0, 1)]
    return [sums[0] for sums, _ in parts], [squares[0] for _, squares in parts]


def _interleaved_sums(values: np.ndarray, channels: int) -> _Sums:
    """Column by column of a table of ``EXACT`` rows, so that every float32 sum is exact."""
    columns = -(-values.size // (EXACT * channels)) * channels
    flat = np.empty(EXACT * columns, np.float32)
    flat[: values.size] = values
    flat[values.size :] = 0
    wide = flat.reshape(EXACT, columns)
    sums = wide.sum(0)
    np.square(wide, out=wide)
    first, second = (
        part.reshape(-1, channels).sum(0, dtype=np.float64).astype(np.int64).tolist()
        for part in (sums, wide.sum(0))
    )
    return first, second
