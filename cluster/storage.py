"""Files on other filesystems, named by URIs: s3, gs, hdfs, abfs by pyarrow, all others by fsspec."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from cluster.credentials import secret_in
from cluster.errors import ClusterError

WHOLE_WRITES = ("s3", "gcs", "abfs")  # an object is there as a whole or not at all, and needs no folder


def uri_of(path: str | Path) -> str | None:
    """The URI that ``path`` is, also after pathlib has folded its slashes; ``None`` for a plain path."""
    found = re.fullmatch(r"([a-z][a-z0-9+.-]+):/(?:/(.*)|(.+))", str(path))
    if found is None:
        return None
    scheme, whole, folded = found.groups()
    if whole is None:
        return f"{scheme}:///{folded}" if scheme == "file" else f"{scheme}://{folded}"
    return f"{scheme}://{whole}"


def below(uri: str, name: str) -> str:
    """The URI of what is called ``name`` in the folder ``uri``."""
    path, mark, options = uri.partition("?")
    return f"{path.rstrip('/')}/{name}{mark}{options}"


def parent(uri: str) -> str:
    """The URI of the folder that holds ``uri``."""
    path, mark, options = uri.partition("?")
    return f"{path.rstrip('/').rpartition('/')[0]}{mark}{options}"


def name_of(uri: str) -> str:
    """The last part of a URI's path."""
    return uri.partition("?")[0].rstrip("/").rpartition("/")[2]


@dataclass(frozen=True)
class Found:
    """A file as its filesystem tells of it."""

    size: int
    modified: int
    """Nanoseconds; 0 where unknown."""


@dataclass(frozen=True)
class Remote:
    """A folder on a filesystem."""

    uri: str
    filesystem: Any
    root: str

    @classmethod
    def of(cls, uri: str, *, where: str = "storage") -> "Remote":
        """The folder that a URI names; asks nobody yet.

        Raises:
            ClusterError: not a URI of a filesystem, or one with a secret, or a package for it is missing.
        """
        return cls(uri, *_resolved(uri, where))

    def files(self) -> dict[str, Found]:
        """All files below, by their path relative to the folder; none where there is no such folder.

        Raises:
            OSError: the filesystem does not answer, or forbids it.
        """
        from pyarrow import fs

        selector = fs.FileSelector(self.root, recursive=True, allow_not_found=True)
        return {
            info.path[len(self.root) :].lstrip("/"): Found(info.size or 0, info.mtime_ns or 0)
            for info in self.filesystem.get_file_info(selector)
            if info.type == fs.FileType.File
        }

    def exists(self, name: str) -> bool:
        """Whether there is a file of that name.

        Raises:
            OSError: as `files`.
        """
        from pyarrow import fs

        return bool(self.filesystem.get_file_info(self._at(name)).type == fs.FileType.File)

    def find(self, names: list[str]) -> dict[str, Found]:
        """What the filesystem tells of these files, which exist."""
        told = self.filesystem.get_file_info([self._at(name) for name in names])
        return {n: Found(i.size or 0, i.mtime_ns or 0) for n, i in zip(names, told, strict=True)}

    def read(self, name: str) -> bytes:
        """A file's content.

        Raises:
            OSError: it cannot be read.
        """
        with self.filesystem.open_input_file(self._at(name)) as file:
            return bytes(file.read())

    def write(self, name: str, content: bytes) -> None:
        """A file of that content, whole or not at all.

        Raises:
            OSError: it cannot be written.
        """
        self._put(name, lambda out: out.write(content))

    def upload(self, name: str, path: Path) -> None:
        """Copy a local file there, whole or not at all.

        Raises:
            OSError: it cannot be read or written.
        """
        with path.open("rb") as file:
            self._put(name, lambda out: _copy(file, out))

    def download(self, name: str, path: Path) -> None:
        """Copy a file to here, whole or not at all.

        Raises:
            OSError: it cannot be read or written.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
        try:
            with self.filesystem.open_input_stream(self._at(name)) as file, partial.open("wb") as out:
                _copy(file, out)
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)

    def remove(self, name: str) -> None:
        """Delete a file; one that is gone already is no mistake."""
        if self.exists(name):
            self.filesystem.delete_file(self._at(name))

    def why_not(self) -> str | None:
        """What keeps files from being written there and read again, or ``None``."""
        name = f".probe-{uuid4().hex}"
        try:
            self.write(name, name.encode())
            same = self.read(name) == name.encode()
            self.remove(name)
        except Exception as error:  # fsspec's filesystems raise what they like
            return short(error)
        return None if same else "what is read there is not what was written"

    def _at(self, name: str) -> str:
        return f"{self.root}/{name}"

    def _put(self, name: str, fill: Any) -> None:
        target = self._at(name)
        if self.filesystem.type_name in WHOLE_WRITES:
            with self.filesystem.open_output_stream(target) as out:
                fill(out)
            return
        folder, _, last = target.rpartition("/")
        self.filesystem.create_dir(folder, recursive=True)
        partial = f"{folder}/.{last}.partial-{uuid4().hex[:8]}"
        with self.filesystem.open_output_stream(partial) as out:
            fill(out)
        self.filesystem.move(partial, target)


def open_file(uri: str) -> tuple[Any, str]:
    """The filesystem of a file's URI and the file's path there.

    Raises:
        ClusterError: as `Remote.of`.
    """
    folder, name = parent(uri), name_of(uri)
    filesystem, root = _resolved(folder, "data.path")
    return filesystem, f"{root}/{name}"


def short(error: BaseException) -> str:
    """An error of a filesystem as one line that is not too long."""
    text = " ".join(str(getattr(error, "strerror", None) or error).split()) or type(error).__name__
    if found := re.search(r"AWS Error (\w+) during \w+ operation: *(.*)", text):
        text = f"{found[1].lower().replace('_', ' ')}: {found[2]}"
    return text if len(text) <= 200 else f"{text[:200]}..."


def _resolved(uri: str, where: str) -> tuple[Any, str]:
    from pyarrow import fs

    if (what := secret_in(uri)) is not None:
        raise ClusterError(where, what)
    try:
        try:
            filesystem, root = fs.FileSystem.from_uri(uri)
        except ValueError as error:
            if "nrecognized filesystem type" not in str(error):
                raise
            filesystem, root = fs.FileSystem.from_uri(f"fsspec+{uri}")
    except (ValueError, ImportError, OSError) as error:
        raise ClusterError(where, f"{uri} is not a folder that can be opened ({short(error)})") from None
    return filesystem, root.rstrip("/")


def _copy(source: Any, target: Any) -> None:
    for block in _blocks(source):
        target.write(block)


def _blocks(source: Any) -> Iterator[bytes]:
    while block := source.read(8 << 20):
        yield block
