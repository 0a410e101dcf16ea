"""Class folders: images in the ImageNet layout, and recordings in that of tonic and spikingjelly."""

import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from cluster.errors import UserError
from pipelines.data.decode import FORMATS
from pipelines.data.events import Recording, Sensor
from pipelines.data.sources.base import (
    Bad,
    Example,
    Options,
    Source,
    Split,
    fingerprint,
    open_originals,
    reading,
)
from pipelines.data.sources.recordings import read_recording
from pipelines.storage.paths import Entry, Folder, short

TRAIN = ("train", "Train", "training")
TEST = ("test", "Test", "val", "Val", "valid", "validation", "testing")
EVENT_SUFFIXES = {
    "n-mnist": ("bin", "bs2"),
    "cifar10-dvs": ("aedat", "aedat4", "npz"),
    "aedat": ("aedat",),
    "aedat4": ("aedat4",),
    "npy": ("npy", "npz"),
}
_DIGITS = re.compile(r"(\d+)")
_SENSORS = {"n-mnist": Sensor(34, 34), "cifar10-dvs": Sensor(128, 128)}
_Reader = Callable[[str, bytes], tuple[Recording, Sensor | None]]
_Rows = tuple[pa.Array, np.ndarray]  # paths (in Arrow's compact form: there may be millions) and labels


def image_folder(options: Options) -> Source:
    """Images in class folders, below train and test (or val) folders or split here."""
    from PIL import Image

    Image.preinit()  # the usual formats first: they are tried in this order
    known = Image.registered_extensions()
    suffixes = tuple(suffix.lstrip(".") for suffix, kind in known.items() if kind in FORMATS)
    return _open("imagefolder", options, suffixes, None, None)


def event_folder(name: str, options: Options) -> Source:
    """Recordings in class folders; ``name`` is a key of ``EVENT_SUFFIXES``."""
    reader = partial(read_recording, cifar10_dvs=name == "cifar10-dvs")
    sensor = Sensor(*options.sensor) if options.sensor else _SENSORS.get(name)
    return _open(name, options, EVENT_SUFFIXES[name], reader, sensor)


def _open(
    name: str, options: Options, suffixes: tuple[str, ...], reader: _Reader | None, sensor: Sensor | None
) -> Source:
    folder, seed = open_originals(options.input), options.split_seed
    places = _places(folder)
    share = None if "test" in places else options.test_share
    listing = _Listing(folder, suffixes)
    entries = (entry for split, place in places.items() for entry in listing.add(split, place))
    found = fingerprint(entries, name, sensor, seed, share)
    classes = listing.classes()
    if not classes:
        raise UserError("--input", f"{folder} holds no class folders with files {listing.globs}")
    rng = np.random.default_rng(seed)
    rows = {split: listing.rows(split, classes) for split in places}
    how = "official"
    if share is not None:
        rows = _held_out(rows["train"], share, rng)
        how = f"{share:.0%} of every class held out, drawn with seed {seed}"
    splits = {}
    for split, (paths, labels) in rows.items():
        if len(paths) == 0:
            what = f"{folder} leaves the {split} split empty; add files, or change --test-share"
            raise UserError("--input", what)
        order = rng.permutation(len(paths))  # every shard holds all classes
        rows[split] = paths.take(pa.array(order)), labels[order]
        splits[split] = Split(len(paths), partial(_read, folder, rows[split], reader))
    if reader is not None and sensor is None:
        sensor = _sensor(folder, rows["train"][0], reader)
    return Source(
        splits=splits,
        class_names=tuple(classes),
        sensor=sensor,
        fingerprint=found,
        bad=tuple(listing.bad),
        notes={"split": how, "order": f"shuffled with seed {seed}", "ignored_files": listing.ignored},
    )


def _read(
    folder: Folder, files: _Rows, reader: _Reader | None, start: int, stop: int
) -> Iterator[Example | Bad]:
    """One file per example; images are kept as they are."""
    paths, labels = files
    for path, label in zip(paths[start:stop].to_pylist(), labels[start:stop].tolist(), strict=True):
        try:
            data = folder.read(path)
            if not data:
                raise ValueError("zero bytes")
            value = data if reader is None else reader(path, data)[0]
        except (OSError, ValueError) as error:
            yield Bad(path, short(error))
        else:
            yield Example(value, label, path)


def _places(folder: Folder) -> dict[str, str]:
    """Which folder holds which split; ``{"train": ""}`` where there are none."""
    names = _folders(folder)
    train = next((n for n in TRAIN if n in names), None)
    if train is None:
        return {"train": ""}
    held_out = [n for n in TEST if n in names]
    # ImageNet's test folder has no classes: its val folder is meant.
    test = next((n for n in held_out if _folders(folder.below(n))), held_out[0] if held_out else None)
    return {"train": train} if test is None else {"train": train, "test": test}


def _folders(folder: Folder) -> list[str]:
    with reading(str(folder)):
        return folder.folders()


class _Listing:
    """Files by split and class."""

    def __init__(self, folder: Folder, suffixes: tuple[str, ...]) -> None:
        self._folder, self._suffixes = folder, suffixes
        self._found: dict[str, dict[str, pa.Array]] = {}
        self.globs = ", ".join(f"*.{s}" for s in sorted(set(suffixes))[:6])
        self.bad: list[Bad] = []
        self.ignored = 0

    def add(self, split: str, place: str) -> Iterator[Entry]:
        """List the class folders below ``place``, one after the other; their files as they are found."""
        self._found[split] = {}
        for name in _folders(self._folder.below(place) if place else self._folder):
            path = f"{place}/{name}" if place else name
            try:
                entries = self._folder.below(path).files(originals=True)
            except OSError as error:
                self.bad.append(Bad(path, short(error)))
                continue
            gone = [
                Bad(f"{path}/{e.path}".rstrip("/"), "is a link to nothing") for e in entries if e.size < 0
            ]
            wanted = [
                entry._replace(path=f"{path}/{entry.path}")
                for entry in entries
                if entry.size >= 0 and entry.path.rpartition(".")[2].lower() in self._suffixes
            ]
            self.ignored += len(entries) - len(wanted) - len(gone)
            self.bad += gone
            if not wanted and not gone:
                self.bad.append(Bad(path, f"class folder without files {self.globs}"))
            self._found[split][name] = pa.array(sorted((e.path for e in wanted), key=_natural), pa.string())
            yield from wanted

    def classes(self) -> list[str]:
        """Names of all classes that have files; numbers in order of value."""
        names = {name for found in self._found.values() for name, paths in found.items() if len(paths)}
        return sorted(names, key=_natural)

    def rows(self, split: str, classes: list[str]) -> _Rows:
        """Paths and labels, class by class."""
        paths = [self._found[split].get(name, pa.array([], pa.string())) for name in classes]
        labels = np.repeat(np.arange(len(classes)), [len(p) for p in paths])
        return pa.concat_arrays(paths), labels.astype(np.int32)


def _held_out(rows: _Rows, share: float, rng: np.random.Generator) -> dict[str, _Rows]:
    """The same share of every class as test rows, drawn from the files in natural order."""
    paths, labels = rows
    test = np.zeros(len(paths), bool)
    for k in np.unique(labels):
        of_class = np.flatnonzero(labels == k)
        test[rng.permutation(of_class)[: round(share * len(of_class))]] = True
    return {s: (paths.filter(pa.array(of)), labels[of]) for s, of in (("train", ~test), ("test", test))}


def _sensor(folder: Folder, paths: pa.Array, reader: _Reader) -> Sensor:
    """The sensor that the first readable recording tells of."""
    for path in paths[:16].to_pylist():
        try:
            sensor = reader(path, folder.read(path))[1]
        except (OSError, ValueError):
            continue
        if sensor is None:
            break
        return sensor
    raise UserError("--sensor", "is needed: width and height, which these files do not tell")


def _natural(text: str) -> list[Any]:
    """Numbers within names by value: 9 before 10."""
    parts: list[Any] = _DIGITS.split(text)  # text and numbers by turns
    parts[1::2] = map(int, parts[1::2])
    return parts
