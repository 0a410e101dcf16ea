"""Originals are what somebody else has put there: no pickles, no files that grow without end."""

import gzip
import io
import zipfile
from typing import Any

import numpy as np

MOST_TIMES = 200
FLOOR_BYTES = 256 << 20


def most_bytes(stored: int) -> int:
    """What a file of this size may become when it is decompressed."""
    return max(FLOOR_BYTES, MOST_TIMES * stored)


def check_expansion(expanded: int, stored: int) -> None:
    """That a file does not grow beyond reason.

    Raises:
        ValueError: it would be larger than `most_bytes` allows when decompressed.
    """
    if expanded > most_bytes(stored):
        raise ValueError(f"{stored:,} bytes would become {expanded:,}; that is no data")


def decompress(data: bytes) -> bytes:
    """A gzip file's content.

    Raises:
        ValueError: it is not whole, or grows beyond reason.
    """
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
            found = file.read(most_bytes(len(data)) + 1)
    except Exception as error:  # zlib's own
        raise ValueError(f"is not a whole gzip file ({error})") from None
    check_expansion(len(found), len(data))
    return found


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
