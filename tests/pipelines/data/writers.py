"""Writers of the original formats, made from their descriptions and without our readers' help."""

import hashlib
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest

from pipelines.data.events import Recording


def random_recording(seed: int, n: int = 400, width: int = 128, height: int = 128) -> Recording:
    """Events in order of time, none at the same place and moment."""
    rng = np.random.default_rng(seed)
    t = np.sort(rng.integers(0, 300_000, n))
    return Recording(t, rng.integers(0, width, n), rng.integers(0, height, n), rng.integers(0, 2, n))


def same(a: Recording, b: Recording) -> bool:
    """Whether all events agree, exactly."""
    return all(np.array_equal(u, v) for u, v in zip(a, b, strict=True))


def nmnist(r: Recording, overflow_before: int | None = None) -> bytes:
    """40 bits an event: x, y, polarity, 23 bits of time. An overflow row stands for 2^13 microseconds."""
    out = bytearray()
    for k, (t, x, y, p) in enumerate(zip(*(v.tolist() for v in r), strict=True)):
        if overflow_before is not None and k == overflow_before:
            out += bytes([0, 240, 0, 0, 0])
        if overflow_before is not None and k >= overflow_before:
            t -= 8192
        out += bytes([x, y]) + ((p << 23) | t).to_bytes(3, "big")
    return bytes(out)


def aedat2(r: Recording, turned: bool = False, start: int = 1000) -> bytes:
    """jAER's 32-bit addresses and times, both big-endian, of a DVS128."""
    out = bytearray(b"#!AER-DAT2.0\r\n# This is a raw AE data file - do not edit\r\n# created today\r\n")
    for t, x, y, p in zip(*(v.tolist() for v in r), strict=True):
        low, high = (127 - y, 127 - x) if turned else (127 - x, 127 - y)
        out += struct.pack(">II", (high << 8) | (low << 1) | (1 - p), t + start)
    return bytes(out)


def aedat31(r: Recording, packet: int = 100, junk: bool = True) -> bytes:
    """cAER's packets: polarity events, some marked invalid, and between them packets of another kind."""
    out = bytearray(b"#!AER-DAT3.1\r\n#Format: RAW\r\n#Source 1: DVS128\r\n#!END-HEADER\r\n")
    events = list(zip(*(v.tolist() for v in r), strict=True))
    for start in range(0, len(events), packet):
        part = events[start : start + packet]
        if junk:
            out += struct.pack("<HHIIIIII", 0, 1, 8, 4, 0, 1, 1, 1) + struct.pack("<Ii", 3, 0)
        body = bytearray()
        for t, x, y, p in part:
            body += struct.pack("<II", (x << 17) | (y << 2) | (p << 1) | 1, t)
        if junk:  # an event that was filtered out
            body += struct.pack("<II", (5 << 17) | (5 << 2), part[-1][0])
        count = len(part) + junk
        out += struct.pack("<HHIIIIII", 1, 1, 8, 4, 0, count, count, len(part)) + body
    return bytes(out)


def idx(array: np.ndarray) -> bytes:
    """MNIST's format: two zeros, the type (8: bytes), the number of dimensions, their sizes, the values."""
    head = struct.pack(">BBBB", 0, 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    return head + array.astype(np.uint8).tobytes()


def cifar(
    root: Path,
    patch: pytest.MonkeyPatch,
    kind: str,
    batches: dict[str, tuple[np.ndarray, np.ndarray]],
    names: list[str],
) -> None:
    """CIFAR10's or CIFAR100's pickles, which torchvision is made to take for the published ones."""
    from torchvision import datasets

    of = getattr(datasets, kind)
    key = {"CIFAR10": "labels", "CIFAR100": "fine_labels"}[kind]
    files = {f: pickle.dumps({"data": x, key: y.tolist()}, protocol=2) for f, (x, y) in batches.items()}
    files[of.meta["filename"]] = pickle.dumps({of.meta["key"]: names}, protocol=2)
    hashes = {file: hashlib.md5(data).hexdigest() for file, data in files.items()}
    for listed in ("train_list", "test_list"):
        patch.setattr(of, listed, [[file, hashes[file]] for file, _ in getattr(of, listed)])
    patch.setattr(of, "meta", {**of.meta, "md5": hashes[of.meta["filename"]]})
    class_folders(root / of.base_folder, files)


def class_folders(root: Path, files: dict[str, bytes]) -> Path:
    """Files by their path below ``root``."""
    for path, data in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(data)
    return root
