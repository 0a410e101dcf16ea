"""Event recordings: files of one each (N-MNIST's .bin, AEDAT, events in .npy and .npz), and two datasets that
have a layout of their own.

DVS128 Gesture: IBM's AEDAT 3.1 recordings with trials in CSV files; spikingjelly's ``events_np`` folder is
class folders of .npz files, which source npy reads. Heidelberg: spike trains of 700 channels in HDF5.
"""

from collections.abc import Iterator, Mapping
from functools import partial

import numpy as np

from pipelines.data.events import Recording, Sensor, sort
from pipelines.data.sources.aedat import read_aedat
from pipelines.data.sources.base import (
    Bad,
    Example,
    Options,
    Source,
    Split,
    fingerprint,
    first_existing,
    load_numpy,
    open_originals,
    split_of_files,
)
from pipelines.errors import UserError
from pipelines.storage.paths import Folder, short

_NAMES = {
    "t": ("t", "ts", "time", "times", "timestamp", "timestamps"),
    "x": ("x", "xs"),
    "y": ("y", "ys"),
    "p": ("p", "ps", "pol", "polarity"),
}
GESTURES = (
    "hand clapping", "right hand wave", "left hand wave", "right arm clockwise",
    "right arm counter clockwise", "left arm clockwise", "left arm counter clockwise", "arm roll",
    "air drums", "air guitar", "other gestures",
)  # fmt: skip
CHANNELS = 700
_LISTS = {"train": "trials_to_train.txt", "test": "trials_to_test.txt"}
_Trials = tuple[tuple[str, int, int, int], ...]
"""File, label, first and last microsecond."""


def read_recording(path: str, data: bytes, *, cifar10_dvs: bool = False) -> tuple[Recording, Sensor | None]:
    """A file's events, in microseconds, and the sensor where the file tells.

    AEDAT times, which count from the camera's start, are counted from the earliest event. AEDAT 2.0 files may
    be CIFAR10-DVS's.

    Raises:
        ValueError: the file is not what its name says, or is cut short.
    """
    suffix = path.rpartition(".")[2].lower()
    if suffix in ("aedat", "aedat4"):
        recording, sensor = read_aedat(data, cifar10_dvs=cifar10_dvs)
        start = recording.t.min() if len(recording.t) else 0
        return recording._replace(t=recording.t - start), sensor
    if suffix in ("bin", "bs2"):
        return read_nmnist(data), Sensor(34, 34)
    array = load_numpy(data)
    if not isinstance(array, dict):
        if array.dtype.names is None:
            raise ValueError(f"has shape {array.shape}; events are records, or arrays, of t, x, y and p")
        array = {n: array[n] for n in array.dtype.names}
    t, *rest = _named(array)
    if not np.isfinite(t).all():
        raise ValueError("has times that are not numbers")
    t = t if t.dtype.kind in "iu" else np.rint(t)
    return Recording(*(v.astype(np.int64) for v in (t, *rest))), None


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


def _named(arrays: Mapping[str, np.ndarray]) -> Recording:
    found = []
    for column, names in _NAMES.items():
        name = next((n for n in names if n in arrays), None)
        if name is None:
            raise ValueError(f"has no {column} (looked for {', '.join(names)}; it has {', '.join(arrays)})")
        found.append(np.asarray(arrays[name]).reshape(-1))
    return Recording(*found)


def _read_trials(folder: Folder, trials: _Trials, start: int, stop: int) -> Iterator[Example | Bad]:
    opened, whole = "", Recording(*[np.zeros(0, np.int64)] * 4)
    for path, label, begin, end in trials[start:stop]:
        try:
            if path != opened:  # trials of one recording follow one another
                whole, opened = read_aedat(folder.read(path))[0], path
        except (OSError, ValueError) as error:
            yield Bad(path, short(error))
        else:
            trial = whole.take((whole.t >= begin) & (whole.t < end))
            yield Example(trial._replace(t=trial.t - begin), label, f"{path}#{begin}")


def dvs_gesture(options: Options) -> Source:
    """The 11 gestures of 29 subjects, official split by subject, in the lists' order."""
    folder = open_originals(options.input)
    for place in (folder, folder.below("DvsGesture"), folder.below("extract/DvsGesture")):
        if place.exists(_LISTS["train"]):
            break
    else:
        raise UserError("--input", f"{folder} holds no {_LISTS['train']}")
    trials = {split: _listed(place, file) for split, file in _LISTS.items()}
    return Source(
        splits={split: Split(len(own), partial(_read_trials, place, own)) for split, own in trials.items()},
        class_names=GESTURES,
        sensor=Sensor(128, 128),
        fingerprint=fingerprint(place.files(originals=True), "dvs-gesture", list(trials.values())),
        notes={"split": "official", "order": "as listed"},
    )


def _listed(folder: Folder, file: str) -> _Trials:
    trials = []
    for line in folder.read(file).decode().split():
        table = f"{line.removesuffix('.aedat')}_labels.csv"
        try:
            rows = folder.read(table).decode().strip().splitlines()[1:]
            for row in rows:
                label, begin, end = (int(v) for v in row.split(","))
                if not 1 <= label <= len(GESTURES):
                    raise ValueError(f"class {label} is not one of {len(GESTURES)}")
                trials.append((line, label - 1, begin, end))
        except FileNotFoundError:
            raise UserError(folder.at(table), "is missing; every recording needs its trials") from None
        except ValueError as error:
            raise UserError(folder.at(table), f"is not a table of trials ({error})") from None
    if not trials:
        raise UserError(folder.at(file), "lists no recordings")
    return tuple(trials)


def _read_spikes(folder: Folder, path: str, start: int, stop: int) -> Iterator[Example | Bad]:
    """A row's spikes are a set: they are put in order of time."""
    import h5py

    with folder.open(path) as stream, h5py.File(stream, "r") as file:
        times, units, labels = file["spikes/times"], file["spikes/units"], file["labels"]
        for row in range(start, stop):
            t, x = np.asarray(times[row], np.float64), np.asarray(units[row]).astype(np.int64)
            name = f"{path}#{row}"
            if len(t) != len(x) or not np.isfinite(t).all():
                yield Bad(name, f"has {len(t)} times for {len(x)} units, or times that are not numbers")
                continue
            recording = Recording(np.rint(t * 1e6).astype(np.int64), x, np.zeros_like(x), np.ones_like(x))
            yield Example(sort(recording), int(labels[row]), name)


def shd(options: Options) -> Source:
    """Official split, in the files' order; times in microseconds from the stimulus' start."""
    folder = open_originals(options.input)
    files = {
        split: first_existing(
            folder,
            [f"{place}shd_{split}.h5" for place in ("", "SHD/", "hsd/", "extract/")],
            f"shd_{split}.h5 (unpacked)",
        )
        for split in ("train", "test")
    }
    splits: dict[str, Split] = {}
    names: tuple[str, ...] = ()
    for split, path in files.items():
        count, names = _header(folder, path)
        splits[split] = split_of_files(folder, {path: count}, _read_spikes)
    return Source(
        splits=splits,
        class_names=names,
        sensor=Sensor(CHANNELS, 1, 1),
        fingerprint=fingerprint(folder.find(list(files.values())), "shd"),
        notes={"split": "official", "order": "as in the files"},
    )


def _header(folder: Folder, path: str) -> tuple[int, tuple[str, ...]]:
    import h5py

    try:
        with folder.open(path) as stream, h5py.File(stream, "r") as file:
            count = len(file["labels"])
            keys = tuple(k.decode() if isinstance(k, bytes) else str(k) for k in file["extra/keys"][()])
            if not len(file["spikes/times"]) == len(file["spikes/units"]) == count:
                raise UserError(folder.at(path), "has unequally many times, units and labels")
    except (OSError, KeyError) as error:
        raise UserError(folder.at(path), f"is not a Heidelberg HDF5 file ({error})") from None
    return count, keys
