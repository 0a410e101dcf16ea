"""DVS128 Gesture: IBM's AEDAT 3.1 recordings with trials in CSV files, or tonic's trials in .npy.

spikingjelly's ``events_np`` folder is class folders of .npz files: source npy reads it.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from pipelines.data.events import Recording, Sensor
from pipelines.data.sources.aedat import read_aedat
from pipelines.data.sources.base import Bad, Example, Options, Source
from pipelines.data.sources.originals import Fingerprint, open_originals, reason
from pipelines.data.sources.untrusted import load_numpy
from pipelines.errors import UserError
from pipelines.storage.paths import Folder

CLASSES = (
    "hand clapping",
    "right hand wave",
    "left hand wave",
    "right arm clockwise",
    "right arm counter clockwise",
    "left arm clockwise",
    "left arm counter clockwise",
    "arm roll",
    "air drums",
    "air guitar",
    "other gestures",
)
_LISTS = {"train": "trials_to_train.txt", "test": "trials_to_test.txt"}
_TONIC = {"train": "ibmGestureTrain", "test": "ibmGestureTest"}


@dataclass(frozen=True)
class Trials:
    """A split of spans of recordings."""

    folder: Folder
    trials: tuple[tuple[str, int, int, int], ...]
    """File, label, first and last microsecond; a file of its own where both are 0."""

    @property
    def rows(self) -> int:
        """See `Split`."""
        return len(self.trials)

    def read(self, start: int, stop: int) -> Iterator[Example | Bad]:
        """See `Split`."""
        opened, whole = "", Recording(*[np.zeros(0, np.int64)] * 4)
        for row in range(start, stop):
            path, label, begin, end = self.trials[row]
            try:
                if end:
                    if path != opened:  # trials of one recording follow one another
                        whole, opened = read_aedat(self.folder.read(path))[0], path
                    events, name = _trial(whole, begin, end), f"{path}#{begin}"
                else:
                    events, name = _own_file(self.folder, path), path
            except (OSError, ValueError) as error:
                yield Bad(path, reason(error))
            else:
                yield Example(events, label, name)


def dvs_gesture(options: Options) -> Source:
    """The 11 gestures of 29 subjects, official split by subject, in the lists' order."""
    folder = open_originals(options.input)
    for place in (folder, folder.below("DvsGesture"), folder.below("extract/DvsGesture")):
        if place.exists(_LISTS["train"]):
            splits = {split: Trials(place, _listed(place, file)) for split, file in _LISTS.items()}
            break
        if place.exists(_TONIC["train"]):
            splits = {split: Trials(place, _tonic(place, name)) for split, name in _TONIC.items()}
            break
    else:
        raise UserError("--input", f"{folder} holds neither {_LISTS['train']} nor {_TONIC['train']}")
    found = Fingerprint("dvs-gesture", [s.trials for s in splits.values()])
    found.add(place.files(hidden=False))
    return Source(
        splits=dict(splits),
        class_names=CLASSES,
        sensor=Sensor(128, 128),
        fingerprint=found.result(),
        notes={"split": "official", "order": "as listed"},
    )


def _listed(folder: Folder, file: str) -> tuple[tuple[str, int, int, int], ...]:
    trials = []
    for line in folder.read(file).decode().split():
        table = f"{line.removesuffix('.aedat')}_labels.csv"
        try:
            rows = folder.read(table).decode().strip().splitlines()[1:]
            for row in rows:
                label, begin, end = (int(v) for v in row.split(","))
                if not 1 <= label <= len(CLASSES):
                    raise ValueError(f"class {label} is not one of {len(CLASSES)}")
                trials.append((line, label - 1, begin, end))
        except FileNotFoundError:
            raise UserError(folder.at(table), "is missing; every recording needs its trials") from None
        except ValueError as error:
            raise UserError(folder.at(table), f"is not a table of trials ({error})") from None
    if not trials:
        raise UserError(folder.at(file), "lists no recordings")
    return tuple(trials)


def _tonic(folder: Folder, name: str) -> tuple[tuple[str, int, int, int], ...]:
    trials = []
    for entry in folder.below(name).files(hidden=False):
        stem = entry.path.rpartition("/")[2].removesuffix(".npy")
        if entry.path.endswith(".npy") and stem.isdigit() and int(stem) < len(CLASSES):
            trials.append((f"{name}/{entry.path}", int(stem), 0, 0))
    if not trials:
        raise UserError(folder.at(name), "holds no files such as user01_led/0.npy")
    return tuple(trials)


def _trial(whole: Recording, begin: int, end: int) -> Recording:
    inside = (whole.t >= begin) & (whole.t < end)
    cut = Recording(*(values[inside] for values in whole))
    return cut._replace(t=cut.t - begin)


def _own_file(folder: Folder, path: str) -> Recording:
    """tonic's trials: columns x, y, p and milliseconds."""
    data = folder.read(path)
    if not data:
        raise ValueError("zero bytes")
    array = load_numpy(data)
    if isinstance(array, dict):
        raise ValueError("is an archive, not one array")
    if array.ndim != 2 or array.shape[1] != 4:
        raise ValueError(f"has shape {array.shape}, not rows of x, y, p and t")
    x, y, p, t = (array[:, k].astype(np.int64) for k in range(4))
    t = t * 1000
    return Recording(t - (t[0] if len(t) else 0), x, y, p)
