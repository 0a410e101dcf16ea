"""AEDAT files, versions 2.0, 3.1 and 4.0, to events.

The formats are described at https://docs.inivation.com (AEDAT 2.0, 3.1, 4.0); only event packets are
read, images and inertial measurements in the same file are passed over.
"""

import re
import struct

import numpy as np
import pyarrow as pa

from pipelines.data.events import Recording, Sensor

DVS128 = Sensor(128, 128)


def read_aedat(data: bytes, *, cifar10_dvs: bool = False) -> tuple[Recording, Sensor | None]:
    """Events of a file of any of the three versions; times as they stand in it.

    Args:
        data: the file.
        cifar10_dvs: an AEDAT 2.0 file of CIFAR10-DVS, whose camera was turned: rows and columns change
            places, as in the dataset's .aedat4 release.

    Returns:
        the events, and the sensor where the file tells.

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
    header, start = _comments(data)
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
    parts: list[np.ndarray] = []
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
    words = np.concatenate(parts) if parts else np.zeros((0, 2), np.int64)
    address, t = words[:, 0], words[:, 1]
    return Recording(t, address >> 17 & 0x7FFF, address >> 2 & 0x7FFF, address >> 1 & 1)


_EVENT_4 = np.dtype([("t", "<i8"), ("x", "<i2"), ("y", "<i2"), ("p", "?"), ("", "V3")])
_COMPRESSION = {1: "lz4", 2: "lz4", 3: "zstd", 4: "zstd"}


def _version_4(data: bytes) -> tuple[Recording, Sensor | None]:
    at = data.index(b"\n") + 1
    (size,) = _unpack("<I", data, at)
    header = _Table.root(data[at + 4 : at + 4 + size])
    compression, table_at = header.int32(0), header.int64(1, -1)
    info = header.string(2)
    streams = _event_streams(info)
    stream = min(streams) if streams else None
    at += 4 + size
    end = table_at if 0 < table_at <= len(data) else len(data)
    parts = []
    while at < end:
        identity, size = _unpack("<ii", data, at)
        at += 8
        if size < 0 or at + size > len(data):
            raise ValueError("is cut short within a packet")
        if stream is not None and identity == stream:
            packet = _decompressed(data[at : at + size], compression)
            parts.append(_Table.root(packet[4:]).structs(0, _EVENT_4))
        at += size
    if stream is None:
        raise ValueError("has no stream of events")
    events = np.concatenate(parts) if parts else np.zeros(0, _EVENT_4)
    x, y, p = (events[name].astype(np.int64) for name in "xyp")
    return Recording(events["t"].astype(np.int64), x, y, p), streams[stream]


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
            found[int(str(node.get("name")))] = (
                Sensor(int(str(size["sizeX"])), int(str(size["sizeY"]))) if known else None
            )
    return found


def _decompressed(data: bytes, compression: int) -> bytes:
    if compression == 0:
        return data
    if compression not in _COMPRESSION:
        raise ValueError(f"is compressed in an unknown way ({compression})")
    try:
        return pa.CompressedInputStream(pa.BufferReader(data), _COMPRESSION[compression]).read()
    except OSError as error:
        raise ValueError(f"has a packet that cannot be decompressed ({error})") from None


class _Table:
    """A FlatBuffers table, as far as AEDAT 4 needs it (https://flatbuffers.dev/internals)."""

    def __init__(self, data: bytes, at: int) -> None:
        self._data, self._at = data, at
        (offset,) = _unpack("<i", data, at)
        self._fields = at - offset
        (self._size,) = _unpack("<H", data, self._fields)

    @classmethod
    def root(cls, data: bytes) -> "_Table":
        """The table that a buffer begins with."""
        return cls(data, _unpack("<I", data, 0)[0])

    def int32(self, number: int) -> int:
        """A number, 0 where it is left out."""
        at = self._field(number)
        return int(_unpack("<i", self._data, at)[0]) if at else 0

    def int64(self, number: int, default: int) -> int:
        """A number."""
        at = self._field(number)
        return int(_unpack("<q", self._data, at)[0]) if at else default

    def string(self, number: int) -> str:
        """Text, empty where it is left out."""
        start, length = self._vector(number)
        return self._data[start : start + length].decode("utf-8", "replace")

    def structs(self, number: int, dtype: np.dtype) -> np.ndarray:
        """A vector of structs."""
        start, length = self._vector(number)
        if start + length * dtype.itemsize > len(self._data):
            raise ValueError("has a packet that is cut short")
        return np.frombuffer(self._data, dtype, length, start)

    def _vector(self, number: int) -> tuple[int, int]:
        at = self._field(number)
        if not at:
            return 0, 0
        start = at + _unpack("<I", self._data, at)[0]
        return start + 4, _unpack("<I", self._data, start)[0]

    def _field(self, number: int) -> int:
        at = 4 + 2 * number
        offset = _unpack("<H", self._data, self._fields + at)[0] if at < self._size else 0
        return self._at + offset if offset else 0


def _unpack(layout: str, data: bytes, at: int) -> tuple[int, ...]:
    try:
        return struct.unpack_from(layout, data, at)
    except struct.error:
        raise ValueError("is cut short") from None


def _comments(data: bytes) -> tuple[bytes, int]:
    """The lines that begin with #, and where they end."""
    at = 0
    while data[at : at + 1] == b"#":
        end = data.find(b"\n", at)
        if end < 0:
            raise ValueError("is cut short within its header")
        at = end + 1
    return data[:at], at
