"""AEDAT files, versions 2.0, 3.1 and 4.0, to events.

The formats are described at https://docs.inivation.com (AEDAT 2.0, 3.1, 4.0); only event packets are
read, images and inertial measurements in the same file are passed over.
"""

import re
import struct

import numpy as np
import pyarrow as pa

from pipelines.data.events import Recording, Sensor
from pipelines.data.sources.base import check_expansion, most_bytes

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
