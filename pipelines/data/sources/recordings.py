"""Files of one recording each: N-MNIST's .bin, AEDAT, and events in .npy, .npz and HDF5."""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipelines.data.events import Recording, Sensor
from pipelines.data.sources.aedat import read_aedat
from pipelines.data.sources.base import check_expansion, load_numpy

_NAMES = {
    "t": ("t", "ts", "time", "times", "timestamp", "timestamps"),
    "x": ("x", "xs"),
    "y": ("y", "ys"),
    "p": ("p", "ps", "pol", "polarity"),
}
_MICROSECONDS = {"us": 1.0, "ms": 1e3, "s": 1e6, "ns": 1e-3}


@dataclass(frozen=True, kw_only=True)
class Reader:
    """How files become recordings."""

    columns: str | None = None
    """Order of the columns of arrays ``[E, 4]``."""
    time_unit: str = "us"
    cifar10_dvs: bool = False
    """AEDAT 2.0 files are CIFAR10-DVS's."""

    def read(self, path: str, data: bytes) -> tuple[Recording, Sensor | None]:
        """A file's events, in microseconds, and the sensor where the file tells.

        AEDAT times, which count from the camera's start, are counted from the earliest event.

        Raises:
            ValueError: the file is not what its name says, or is cut short.
        """
        suffix = path.rpartition(".")[2].lower()
        if suffix in ("aedat", "aedat4"):
            recording, sensor = read_aedat(data, cifar10_dvs=self.cifar10_dvs)
            start = recording.t.min() if len(recording.t) else 0
            return recording._replace(t=recording.t - start), sensor
        if suffix in ("bin", "bs2"):
            return read_nmnist(data), Sensor(34, 34)
        found = _hdf5(data) if suffix in ("h5", "hdf5") else self._numpy(data)
        t, *rest = (np.asarray(v) for v in found)
        return Recording(self._microseconds(t), *(v.astype(np.int64) for v in rest)), None

    def _microseconds(self, t: np.ndarray) -> np.ndarray:
        if self.time_unit == "us" and t.dtype.kind in "iu":
            return t
        if not np.isfinite(t).all():
            raise ValueError("has times that are not numbers")
        return np.rint(t.astype(np.float64) * _MICROSECONDS[self.time_unit]).astype(np.int64)

    def _numpy(self, data: bytes) -> Recording:
        array = load_numpy(data)
        if isinstance(array, dict):
            return _named(array)
        if array.dtype.names:
            return _named({n: array[n] for n in array.dtype.names})
        if array.ndim != 2 or array.shape[1] != 4:
            raise ValueError(f"has shape {array.shape}; events are records, or rows of 4 numbers")
        if self.columns is None:
            raise ValueError("has rows without names; give their order, such as --columns txyp")
        return Recording(*(array[:, self.columns.index(c)] for c in "txyp"))


def read_nmnist(data: bytes) -> Recording:
    """Events of an N-MNIST file: 40 bits each, of x, y, polarity and 23 bits of microseconds.

    Rows of 240 are no events: they tell that 2^13 microseconds have passed.

    Raises:
        ValueError: cut short.
    """
    if len(data) % 5:
        raise ValueError(f"is cut short: {len(data)} bytes are no multiple of 5")
    rows = np.frombuffer(data, np.uint8).reshape(-1, 5).astype(np.int64)
    x, y = rows[:, 0], rows[:, 1]
    overflow = y == 240
    t = ((rows[:, 2] & 127) << 16 | rows[:, 3] << 8 | rows[:, 4]) + (np.cumsum(overflow) << 13)
    return Recording(t, x, y, rows[:, 2] >> 7).take(~overflow)


def _hdf5(data: bytes) -> Recording:
    import h5py

    try:
        with h5py.File(io.BytesIO(data), "r") as file:
            place = _within(file, "events") if "events" in file else file
            if isinstance(place, h5py.Dataset):
                array = _values(place, len(data))
                return _named({n: array[n] for n in array.dtype.names or ()})
            found = {name: _within(place, name) for name in place}
            columns = {n: v for n, v in found.items() if isinstance(v, h5py.Dataset)}
            return _named({name: _values(v, len(data)) for name, v in columns.items()})
    except (OSError, KeyError) as error:  # KeyError: a link to nothing
        raise ValueError(f"is not a whole HDF5 file ({error})") from None


def _within(group: Any, name: str) -> Any:
    """A member of an HDF5 group that lies in the same file."""
    import h5py

    if isinstance(group.get(name, getlink=True), h5py.ExternalLink):
        raise ValueError(f"its {name} is a link to another file")
    return group[name]


def _values(dataset: Any, stored: int) -> np.ndarray:
    """What an HDF5 dataset holds; a few bytes can claim any size, or another file's content."""
    if dataset.external or dataset.is_virtual:
        raise ValueError(f"its {dataset.name} lies in another file")
    check_expansion(dataset.size * dataset.dtype.itemsize, stored)
    return np.asarray(dataset[()])


def _named(arrays: Mapping[str, np.ndarray]) -> Recording:
    found = []
    for column, names in _NAMES.items():
        name = next((n for n in names if n in arrays), None)
        if name is None:
            raise ValueError(f"has no {column} (looked for {', '.join(names)}; it has {', '.join(arrays)})")
        found.append(np.asarray(arrays[name]).reshape(-1))
    if len({len(v) for v in found}) > 1:
        raise ValueError(f"has {', '.join(str(len(v)) for v in found)} values of t, x, y, p")
    return Recording(*found)
