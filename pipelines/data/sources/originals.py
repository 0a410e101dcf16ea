"""What all sources do with their originals: open the folder, tell when they change, name what is bad."""

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import pyarrow as pa

from pipelines.errors import UserError
from pipelines.storage.paths import Entry, Folder


def open_originals(path: str | None) -> Folder:
    """The folder that a user names as a local path, or as a URI such as ``s3://bucket/folder``.

    Raises:
        UserError: none given, one with a secret, unknown scheme, or no such folder.
    """
    if path is None:
        raise UserError("--input", "is needed: the folder to read")
    folder = Folder.of(path, "--input")
    try:
        found = folder.exists()
    except (ImportError, ValueError, OSError) as error:
        raise UserError("--input", f"{path} cannot be opened ({_first_line(error)})") from None
    if not found:
        raise UserError("--input", f"{path} does not exist")
    return folder


class Fingerprint:
    """A hash of what a source consists of."""

    def __init__(self, *parts: object) -> None:
        self._hash = hashlib.sha256(repr(parts).encode())

    def add(self, entries: Iterable[Entry], place: str = "") -> None:
        """More files, below ``place``."""
        before = f"{place}/" if place else ""
        text = "".join(f"{before}{path}\0{size}\0{modified}\n" for path, size, modified in entries)
        self._hash.update(text.encode())

    def result(self) -> str:
        """Hexadecimal."""
        return self._hash.hexdigest()


def fingerprint_of(folder: Folder, paths: list[str], *parts: object) -> str:
    """Of a few known files."""
    found = Fingerprint(*parts)
    found.add(folder.find(paths))
    return found.result()


def first_existing(folder: Folder, candidates: list[str], what: str) -> str:
    """The first of several names that exists.

    Raises:
        UserError: none does; ``what`` says what was looked for.
    """
    for path in candidates:
        if folder.exists(path):
            return path
    raise UserError("--input", f"{folder} holds no {what} (looked for {', '.join(candidates)})")


@contextmanager
def reading(path: str) -> Iterator[None]:
    """Tell failures to read a file that holds many examples from failures to write what is made of them.

    Raises:
        UserError: in place of what was raised inside.
    """
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        raise UserError(path, f"cannot be read ({reason(error)})") from None


def reason(error: BaseException) -> str:
    """An error's first line, for a list of bad files."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return _first_line(error)


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
