"""What all sources share: splits that any process reads from any row on, and originals that may be bad.

Originals are what somebody else has put there: no pickles, no files that grow without end.
"""

import hashlib
import io
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa

from cluster.errors import UserError
from pipelines.data.events import By, Frames, Recording, Sensor, fault
from pipelines.storage.paths import Entry, Folder, short

MOST_TIMES, FLOOR_BYTES = 200, 256 << 20
"""A file may grow so many times when it is decompressed, or to so many bytes."""
Value = bytes | np.ndarray | Recording
"""An encoded image, raw pixels ``[C, H, W]`` uint8 (or features ``[N]`` float32), or a recording."""


class Example(NamedTuple):
    """A row to be written."""

    value: Value
    label: int
    path: str
    """Where it comes from, for humans."""
    source_id: int | str | None = None
    """Its id in the original, where that has ids of its own."""


class Bad(NamedTuple):
    """A row that cannot be written."""

    path: str
    what: str


@dataclass(frozen=True)
class Split:
    """Rows in the order of their future ids. Travels to other processes."""

    rows: int
    read: Callable[[int, int], Iterator[Example | Bad]]
    """Rows ``start`` to ``stop``, each once, in order."""


ReadSpan = Callable[[Folder, str, int, int], Iterator[Example | Bad]]
"""Of a file of a folder: the rows from one place to another."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """An opened source."""

    splits: dict[str, Split]
    class_names: tuple[str, ...]
    fingerprint: str
    """Changes when what would be read changes: a started ingestion goes on only with the same."""
    sensor: Sensor | None = None
    """For recordings."""
    source_id: Literal["int64", "string"] | None = None
    """Type of the originals' own ids, where they have any: kept in a column of that name."""
    bad: tuple[Bad, ...] = ()
    """What opening the source found amiss."""
    notes: dict[str, object] = field(default_factory=dict)
    """For the manifest: how splits and order came about."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What users may say about a source."""

    input: str | None = None
    """Folder or URI to read."""
    download: bool = False
    """Fetch the dataset into ``input`` first, as torchvision does."""
    test_share: float = 0.1
    """Share of every class that is held out where the source has no test split."""
    split_seed: int = 0
    """Draws that share, and the order of class folders' files."""
    sensor: tuple[int, ...] | None = None
    """Width and height, for recordings that do not tell."""


def framed(source: Source, *, T: int, by: By, size: tuple[int, ...] | None) -> Source:
    """Recordings as event frames ``[T, P, H, W]``, uint8 (or wider where needed); see `Frames`."""
    if source.sensor is None:
        raise UserError("--T", "applies to recordings; this source has none")
    frames = Frames.of(source.sensor, T=T, by=by, size=size, where="--size")
    rule = {"T": T, "by": by, "height": frames.height, "width": frames.width}
    return replace(
        source,
        splits={s: Split(r.rows, partial(_read_framed, r, frames)) for s, r in source.splits.items()},
        sensor=None,
        fingerprint=fingerprint((), source.fingerprint, rule),
        notes={**source.notes, "frames": rule, "sensor_size": list(source.sensor)},
    )


def _read_framed(recordings: Split, frames: Frames, start: int, stop: int) -> Iterator[Example | Bad]:
    for row in recordings.read(start, stop):
        if isinstance(row, Example) and isinstance(recording := row.value, Recording):
            if (wrong := fault(recording, frames.sensor)) is not None:
                row = Bad(row.path, wrong)
            else:
                counts = frames.count(recording)
                row = row._replace(value=counts.astype(np.min_scalar_type(counts.max())))
        yield row


def open_originals(path: str | None) -> Folder:
    """The folder that a user names as a local path, or as a URI such as ``s3://bucket/folder``."""
    if path is None:
        raise UserError("--input", "is needed: the folder to read")
    folder = Folder.of(path, "--input")
    try:
        found = folder.exists()
    except (ImportError, ValueError, OSError) as error:
        raise UserError("--input", f"{path} cannot be opened ({short(error)})") from None
    if not found:
        raise UserError("--input", f"{path} does not exist")
    return folder


def fingerprint(entries: Iterable[Entry], *parts: object) -> str:
    """A hash of what a source consists of: its files, and what else decides on its examples."""
    found = hashlib.sha256(repr(parts).encode())
    for path, size, modified in entries:
        found.update(f"{path}\0{size}\0{modified}\n".encode())
    return found.hexdigest()


def first_existing(folder: Folder, candidates: list[str], what: str) -> str:
    """The first of several names that exists."""
    for path in candidates:
        if folder.exists(path):
            return path
    raise UserError("--input", f"{folder} holds no {what} (looked for {', '.join(candidates)})")


def split_of_files(folder: Folder, sizes: dict[str, int], read: ReadSpan) -> Split:
    """A split of files with many rows each, one file after the other; ``sizes`` are their rows."""
    return Split(sum(sizes.values()), partial(_read_files, folder, sizes, read))


def _read_files(
    folder: Folder, sizes: dict[str, int], read: ReadSpan, start: int, stop: int
) -> Iterator[Example | Bad]:
    first = 0
    for file, size in sizes.items():
        low, high = max(start - first, 0), min(stop - first, size)
        if low < high:
            with reading(folder.at(file)):
                yield from read(folder, file, low, high)
        first += size


@contextmanager
def reading(path: str) -> Iterator[None]:
    """Name the file, so that a failure to read it is not taken for one to write what is made of it."""
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        raise UserError(path, f"cannot be read ({short(error)})") from None


def most_bytes(stored: int) -> int:
    """What a file of so many bytes may become when it is decompressed."""
    return max(FLOOR_BYTES, MOST_TIMES * stored)


def check_expansion(expanded: int, stored: int) -> None:
    """Refuse, by a ValueError, a file that grows beyond reason when it is decompressed."""
    if expanded > most_bytes(stored):
        raise ValueError(f"{stored:,} bytes would become {expanded:,}; that is no data")


def load_numpy(data: bytes, name: str | None = None) -> Any:
    """The array of a .npy file; of an .npz file that of this name, or all by their names.

    Raises:
        KeyError: no array of this name.
        ValueError: it is not whole, holds Python objects, or grows beyond reason.
    """
    try:
        if data.startswith(b"PK"):
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                check_expansion(sum(member.file_size for member in archive.infolist()), len(data))
        found = np.load(io.BytesIO(data), allow_pickle=False)
        if isinstance(found, np.ndarray):
            return found
        with found:
            return {n: found[n] for n in found.files} if name is None else found[name]
    except KeyError:
        raise
    except Exception as error:  # zipfile's and zlib's own
        raise ValueError(f"is not whole NumPy data ({error})") from None
