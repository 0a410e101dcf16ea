"""Folders to read from: local ones, and s3, gs, http and others through pyarrow and fsspec."""

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyarrow as pa
from pyarrow import fs

from cluster.credentials import secret_in
from pipelines.errors import UserError


class Entry(NamedTuple):
    """A file below a folder."""

    path: str
    """Relative to the folder."""
    size: int
    modified: int
    """Nanoseconds; 0 where unknown."""


@dataclass(frozen=True)
class Folder:
    """A folder on some filesystem; travels to other processes."""

    filesystem: Any
    root: str

    @classmethod
    def of(cls, uri: str | None) -> "Folder":
        """A local path, or a URI such as ``s3://bucket/folder``.

        Raises:
            UserError: none given, one with a secret, unknown scheme, or no such folder.
        """
        if uri is None:
            raise UserError("--input", "is needed: the folder to read")
        uri = str(uri)
        if (what := secret_in(uri)) is not None:
            raise UserError("--input", what)
        scheme = uri.partition("://")[0] if "://" in uri else ""
        try:
            if scheme in ("", "file"):
                filesystem, root = fs.LocalFileSystem(), uri.removeprefix("file://")
            elif scheme in ("s3", "gs", "hdfs"):
                filesystem, root = fs.FileSystem.from_uri(uri)
            else:
                filesystem, root = _through_fsspec(scheme, uri)
            root = root.rstrip("/") or "/"
            kind = filesystem.get_file_info(root).type
        except (ImportError, ValueError, OSError) as error:
            raise UserError("--input", f"{uri} cannot be opened ({_first_line(error)})") from None
        if kind == fs.FileType.NotFound:
            raise UserError("--input", f"{uri} does not exist")
        return cls(filesystem, root)

    def __str__(self) -> str:
        return self.root

    def at(self, path: str) -> str:
        """The filesystem's name of a path below the folder."""
        return f"{self.root}/{path}" if path else self.root

    def below(self, path: str) -> "Folder":
        """A folder below this one."""
        return Folder(self.filesystem, self.at(path))

    def exists(self, path: str) -> bool:
        """Whether there is a file or folder of that name."""
        return self.filesystem.get_file_info(self.at(path)).type != fs.FileType.NotFound

    def folders(self) -> list[str]:
        """Names of the folders directly below, sorted; hidden ones left out."""
        if self.filesystem.type_name == "gcs":  # where folders are no objects, pyarrow lists none
            paths = (e.path for e in self.files(recursive=True))
            names: Iterable[str] = {path.partition("/")[0] for path in paths if "/" in path}
        else:
            found = self.filesystem.get_file_info(fs.FileSelector(self.root))
            # Listings of web servers end folders' names with a slash.
            names = (i.path.rstrip("/").rpartition("/")[2] for i in found if i.type == fs.FileType.Directory)
        return sorted(n for n in names if not n.startswith("."))

    def files(self, recursive: bool = False) -> Iterator[Entry]:
        """Files below, in order of their paths; hidden ones left out.

        Raises:
            OSError: a folder that cannot be read.
        """
        selector = fs.FileSelector(self.root, recursive=recursive)
        start = len(self.root)
        entries = [
            Entry(info.path[start:].lstrip("/"), info.size, info.mtime_ns or 0)
            for info in self.filesystem.get_file_info(selector)
            if info.type == fs.FileType.File and not info.base_name.startswith(".")
        ]
        return iter(sorted(entries))

    def read(self, path: str) -> bytes:
        """A file's bytes.

        Raises:
            OSError: it cannot be read.
        """
        if isinstance(self.filesystem, fs.LocalFileSystem):
            with open(self.at(path), "rb", buffering=0) as plain:
                return plain.readall()
        with self.filesystem.open_input_file(self.at(path)) as file:
            return file.read()

    def open(self, path: str) -> Any:
        """A file to read from any place.

        Raises:
            OSError: it cannot be read.
        """
        return self.filesystem.open_input_file(self.at(path))


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
    infos = folder.filesystem.get_file_info([folder.at(p) for p in paths])
    found.add(Entry(p, i.size or 0, i.mtime_ns or 0) for p, i in zip(paths, infos, strict=True))
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


def _through_fsspec(scheme: str, uri: str) -> tuple[Any, str]:
    import fsspec

    filesystem = fsspec.filesystem(scheme)
    handler = fs.PyFileSystem(fs.FSSpecHandler(filesystem))
    return handler, filesystem._strip_protocol(uri)
