"""Event recordings: files of one each (N-MNIST's .bin, AEDAT, events in .npy and .npz), and two datasets that
have a layout of their own.

DVS128 Gesture: IBM's AEDAT 3.1 recordings with trials in CSV files; spikingjelly's ``events_np`` folder is
class folders of .npz files, which source npy reads. Heidelberg: spike trains of 700 channels in HDF5.
"""

import re
import struct
from collections.abc import Iterator, Mapping
from functools import partial

import numpy as np
import pyarrow as pa

from cluster.errors import UserError
from pipelines.data.events import Recording, Sensor, sort
from pipelines.data.sources.base import (
    Bad,
    Example,
    Options,
    Source,
    Split,
    check_expansion,
    fingerprint,
    first_existing,
    load_numpy,
    most_bytes,
    open_originals,
    split_of_files,
)
from pipelines.storage.paths import Folder, short

DVS128 = Sensor(128, 128)


def read_aedat(data: bytes, *, cifar10_dvs: bool = False) -> tuple[Recording, Sensor | None]:
    """Events of a file of any version, with times as they stand in it, and the sensor where the file tells.

    In AEDAT 2.0 files of CIFAR10-DVS, whose camera was turned, rows and columns change places, as in the
    dataset's .aedat4 release.

    Raises:
        ValueError: not AEDAT, another version or camera, or cut short.
    """
    if data.startswith(b"#!AER-DAT4.0"):
        return _version_4(data)
    if data.startswith(b"#!AER-DAT3.1"):
        return _version_3(data), None
    if data.startswith(b"#!AER-DAT2.0"):
        return _version_2(data, cifar10_dvs), DVS128
    raise ValueError(f"is not AEDAT 2.0, 3.1 or 4.0 (it begins with {data[:12]!r})")


def _version_2(data: bytes, turned: bool) -> Recording:
    header = re.match(rb"(#.*\n)*", data)[0]  # type: ignore[index]  # it always matches
    start = len(header)
    if data[start : start + 1] == b"#":
        raise ValueError("is cut short within its header")
    chip = re.search(rb"AEChip: (\S+)", header)
    if chip and b"128" not in chip[1] and not turned:
        raise ValueError(f"is of the camera {chip[1].decode(errors='replace')}; only the DVS128's are read")
    if (len(data) - start) % 8:
        raise ValueError(f"is cut short: {len(data) - start} bytes of events are no multiple of 8")
    words = np.frombuffer(data, ">u4", offset=start).reshape(-1, 2).astype(np.int64)
    address, t = words[:, 0], words[:, 1]
    if not turned:  # the highest bit of an address marks what is not a pixel's event
        address, t = address[address & 0x8000 == 0], t[address & 0x8000 == 0]
    first, second = 127 - (address >> 1 & 127), 127 - (address >> 8 & 127)
    x, y = (second, first) if turned else (first, second)
    return Recording(t, x, y, 1 - (address & 1))


def _version_3(data: bytes) -> Recording:
    end = data.find(b"#!END-HEADER")
    if end < 0:
        raise ValueError("is cut short: its header does not end")
    at = data.index(b"\n", end) + 1
    parts = [np.zeros((0, 2), np.int64)]
    while at < len(data):
        if at + 28 > len(data):
            raise ValueError("is cut short within a packet's header")
        kind, _, size, _, overflow, capacity, count, _ = struct.unpack_from("<HHIIIIII", data, at)
        at += 28
        if at + size * count > len(data):
            raise ValueError("is cut short within a packet")
        if kind == 1 and size == 8:  # polarity events
            words = np.frombuffer(data, "<u4", 2 * count, at).reshape(-1, 2).astype(np.int64)
            words = words[words[:, 0] & 1 == 1]  # valid ones
            words[:, 1] += overflow << 31
            parts.append(words)
        at += size * (capacity if at + size * capacity <= len(data) else count)
    address, t = np.concatenate(parts).T
    return Recording(t, address >> 17 & 0x7FFF, address >> 2 & 0x7FFF, address >> 1 & 1)


_EVENT_4 = np.dtype([("t", "<i8"), ("x", "<i2"), ("y", "<i2"), ("p", "?"), ("", "V3")])
_COMPRESSION = {1: "lz4", 2: "lz4", 3: "zstd", 4: "zstd"}


def _version_4(data: bytes) -> tuple[Recording, Sensor | None]:
    at = data.index(b"\n") + 1
    size = _number("<I", data, at)
    header = _Table(data[at + 4 : at + 4 + size])
    compression, end = header.number(0, "<i"), header.number(1, "<q", -1)
    streams = _event_streams(header.string(2))
    if not streams:
        raise ValueError("has no stream of events")
    stream = min(streams)
    at += 4 + size
    end = end if 0 < end <= len(data) else len(data)
    parts, grown = [np.zeros(0, _EVENT_4)], 0
    while at < end:
        identity, size = _unpack("<ii", data, at)
        at += 8
        if size < 0 or at + size > len(data):
            raise ValueError("is cut short within a packet")
        if identity == stream:
            packet = _decompressed(data[at : at + size], compression, most_bytes(len(data)) - grown + 1)
            grown += len(packet)
            check_expansion(grown, len(data))
            parts.append(_Table(packet[4:]).structs(0, _EVENT_4))
        at += size
    events = np.concatenate(parts)
    t, x, y, p = (events[name].astype(np.int64) for name in "txyp")
    return Recording(t, x, y, p), streams[stream]


def _event_streams(info: str) -> dict[int, Sensor | None]:
    """Numbers and sizes of the streams of events that a file's description names."""
    from xml.etree import ElementTree

    if "<!DOCTYPE" in info or "<!ENTITY" in info:
        raise ValueError("has a description with XML entities")
    try:
        tree = ElementTree.fromstring(info)
    except ElementTree.ParseError as error:
        raise ValueError(f"has no readable description ({error})") from None
    found: dict[int, Sensor | None] = {}
    for node in tree.iter("node"):
        values = {a.get("key"): (a.text or "").strip() for a in node.findall("attr")}
        if values.get("typeIdentifier") == "EVTS" and str(node.get("name", "")).isdigit():
            size = {a.get("key"): a.text for child in node.findall("node") for a in child.findall("attr")}
            known = size.get("sizeX") and size.get("sizeY")
            sensor = Sensor(int(str(size["sizeX"])), int(str(size["sizeY"]))) if known else None
            found[int(str(node.get("name")))] = sensor
    return found


def _decompressed(data: bytes, compression: int, most: int) -> bytes:
    """A packet's content, or its first ``most`` bytes."""
    if compression == 0:
        return data
    if compression not in _COMPRESSION:
        raise ValueError(f"is compressed in an unknown way ({compression})")
    try:
        return pa.CompressedInputStream(pa.BufferReader(data), _COMPRESSION[compression]).read(most)
    except OSError as error:
        raise ValueError(f"has a packet that cannot be decompressed ({error})") from None


class _Table:
    """A FlatBuffers table, as far as AEDAT 4 needs it (https://flatbuffers.dev/internals)."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, _number("<I", data, 0)
        self._fields = self._at - _number("<i", data, self._at)
        self._size = _number("<H", data, self._fields)

    def number(self, field: int, layout: str, default: int = 0) -> int:
        """A number, ``default`` where it is left out."""
        at = self._place(field)
        return _number(layout, self._data, at) if at else default

    def string(self, field: int) -> str:
        """Text, empty where it is left out."""
        start, length = self._vector(field)
        return self._data[start : start + length].decode("utf-8", "replace")

    def structs(self, field: int, dtype: np.dtype) -> np.ndarray:
        """A vector of structs."""
        start, length = self._vector(field)
        if start + length * dtype.itemsize > len(self._data):
            raise ValueError("has a packet that is cut short")
        return np.frombuffer(self._data, dtype, length, start)

    def _vector(self, field: int) -> tuple[int, int]:
        """Where it starts, and its length."""
        at = self._place(field)
        if not at:
            return 0, 0
        start = at + _number("<I", self._data, at)
        return start + 4, _number("<I", self._data, start)

    def _place(self, field: int) -> int:
        at = 4 + 2 * field
        offset = _number("<H", self._data, self._fields + at) if at < self._size else 0
        return self._at + offset if offset else 0


def _number(layout: str, data: bytes, at: int) -> int:
    return _unpack(layout, data, at)[0]


def _unpack(layout: str, data: bytes, at: int) -> tuple[int, ...]:
    try:
        return struct.unpack_from(layout, data, at)
    except struct.error:
        raise ValueError("is cut short") from None


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
