"""Event datasets with a layout of their own: DVS128 Gesture and the Spiking Heidelberg Digits.

DVS128 Gesture: IBM's AEDAT 3.1 recordings with trials in CSV files, or tonic's trials in .npy; spikingjelly's
``events_np`` folder is class folders of .npz files, which source npy reads. Heidelberg: spike trains of 700
channels in HDF5.
"""

from collections.abc import Iterator
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
    open_originals,
    split_of_files,
)
from pipelines.data.sources.recordings import Reader
from pipelines.errors import UserError
from pipelines.storage.paths import Folder, short

GESTURES = (
    "hand clapping", "right hand wave", "left hand wave", "right arm clockwise",
    "right arm counter clockwise", "left arm clockwise", "left arm counter clockwise", "arm roll",
    "air drums", "air guitar", "other gestures",
)  # fmt: skip
CHANNELS = 700
_LISTS = {"train": "trials_to_train.txt", "test": "trials_to_test.txt"}
_TONIC = {"train": "ibmGestureTrain", "test": "ibmGestureTest"}
_TONIC_READER = Reader(columns="xypt", time_unit="ms")
_Trials = tuple[tuple[str, int, int, int], ...]
"""File, label, first and last microsecond; a file of its own where both are 0."""


def _read_trials(folder: Folder, trials: _Trials, start: int, stop: int) -> Iterator[Example | Bad]:
    opened, whole = "", Recording(*[np.zeros(0, np.int64)] * 4)
    for path, label, begin, end in trials[start:stop]:
        try:
            if not end:
                recording = _TONIC_READER.read(path, folder.read(path))[0]
                yield Example(recording._replace(t=recording.t - recording.t[:1].sum()), label, path)
                continue
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
            trials = {split: _listed(place, file) for split, file in _LISTS.items()}
            break
        if place.exists(_TONIC["train"]):
            trials = {split: _tonic(place, name) for split, name in _TONIC.items()}
            break
    else:
        raise UserError("--input", f"{folder} holds neither {_LISTS['train']} nor {_TONIC['train']}")
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


def _tonic(folder: Folder, name: str) -> _Trials:
    trials = []
    for entry in folder.below(name).files(originals=True):
        stem = entry.path.rpartition("/")[2].removesuffix(".npy")
        if entry.path.endswith(".npy") and stem.isdigit() and int(stem) < len(GESTURES):
            trials.append((f"{name}/{entry.path}", int(stem), 0, 0))
    if not trials:
        raise UserError(folder.at(name), "holds no files such as user01_led/0.npy")
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
