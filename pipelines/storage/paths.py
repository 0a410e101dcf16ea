"""Folders on this machine and, named by URIs, on others: s3, gs, hdfs, abfs by pyarrow, all else by fsspec.

Configs and commands hold paths as text; `Folder` is what can be opened. Secrets have no place in them:
others read them in a run's config, a job's command, a list of processes, Ray's logs.
"""

import io
import os
import re
import shutil
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple
from urllib.parse import parse_qsl
from uuid import uuid4

from cluster.errors import UserError

if TYPE_CHECKING:
    import pyarrow.parquet as pq

WHOLE_WRITES = ("s3", "gcs", "abfs")  # an object is there as a whole or not at all, and needs no folder
BLOCK = 8 << 20
PROBE_BYTES = 1 << 16  # a full disk may still take a few
_URI = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+([^/?#]*)([^?#]*)\??(.*)", re.DOTALL)
_NAME = re.compile(
    r"secret|passw|passphrase|signature|token$|(^|[-_])(key|sig|sas|auth)$|(access|account|api)key$", re.I
)
_REMEDIES = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE and ~/.aws/credentials",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS, the path of a file with the key",
    "abfs": "AZURE_TENANT_ID, AZURE_CLIENT_ID and AZURE_CLIENT_SECRET, or the machine's identity",
}
_ALIASES = {"gcs": "gs", "abfss": "abfs"}
_NO_SECRET = ("github",)  # github://owner:repository@branch


def uri_of(path: str | Path) -> str | None:
    """The URI that ``path`` is, also after pathlib has folded its slashes; ``None`` for a plain path."""
    found = re.fullmatch(r"([a-z][a-z0-9+.-]+):/(?:/(.*)|(.+))", str(path))
    if found is None:
        return None
    scheme, whole, folded = found.groups()
    if whole is None:
        return f"{scheme}:///{folded}" if scheme == "file" else f"{scheme}://{folded}"
    return f"{scheme}://{whole}"


def below(folder: str | Path, name: str) -> str:
    """What is called ``name`` in a folder, as a path or a URI."""
    if (uri := uri_of(folder)) is None:
        return str(Path(folder) / name)
    path, mark, options = uri.partition("?")
    return f"{path.rstrip('/')}/{name}{mark}{options}"


def parent(path: str | Path) -> str:
    """The folder that holds ``path``, as a path or a URI."""
    if (uri := uri_of(path)) is None:
        return str(Path(path).parent)
    path, mark, options = uri.partition("?")
    return f"{path.rstrip('/').rpartition('/')[0]}{mark}{options}"


def name_of(path: str | Path) -> str:
    """The last part of a path or of a URI's path."""
    uri = uri_of(path)
    return Path(path).name if uri is None else uri.partition("?")[0].rstrip("/").rpartition("/")[2]


def names_secret(name: str) -> bool:
    """Whether an option or a variable of that name holds a password or a key."""
    return _NAME.search(name) is not None


def secret_in(uri: str | Path, remedy: str | None = None) -> str | None:
    """What is wrong with a URI that holds a password or a key, without repeating it; ``None`` for any other.

    ``remedy`` is where that secret belongs instead; this scheme's usual place when not given.
    """
    found = _URI.fullmatch(str(uri))
    if found is None:
        return None
    scheme, authority, path, options = found.groups()
    scheme = _ALIASES.get(scheme.lower(), scheme.lower())
    user, _, host = authority.rpartition("@")
    # A key with a slash in it ends the authority too early: what should be a port is none then.
    cut = re.search(r":(?!\d*$)", host.rpartition("]")[2])
    secret = scheme not in _NO_SECRET and (":" in user.rstrip(":") or cut)
    if not secret and not any(names_secret(name) for name, _ in parse_qsl(options)):
        return None
    place = f"{scheme}://..." if cut else f"{scheme}://{host}{path}"
    usual = f"fsspec's configuration (~/.config/fsspec, or FSSPEC_{scheme.upper()}_... variables)"
    return (
        f"{place} is given with a secret, which would be kept with the run and shown in lists of processes; "
        f"leave it out, and use {remedy or _REMEDIES.get(scheme, usual)}"
    )


class Entry(NamedTuple):
    """A file below a folder."""

    path: str
    """Relative to the folder."""
    size: int
    """In bytes; -1 of a link to nothing."""
    modified: int
    """Nanoseconds; 0 where unknown."""


def _local_files(folder: str, above: tuple[str, ...], prefix: str = "") -> Iterator[Entry]:
    """Files and links to nothing below a local folder; a link back to a folder above it is not followed.

    ``above`` are the real paths of the folder and of those that it was reached through.
    """
    for child in os.listdir(folder):
        path, name = os.path.join(folder, child), f"{prefix}{child}"
        try:
            found = os.stat(path)
        except FileNotFoundError:
            if os.path.islink(path):  # else it has gone meanwhile
                yield Entry(name, -1, 0)
            continue
        if stat.S_ISREG(found.st_mode):
            yield Entry(name, found.st_size, found.st_mtime_ns)
        elif stat.S_ISDIR(found.st_mode):
            real = os.path.realpath(path)
            if not any(f"{way}/".startswith(f"{real.rstrip('/')}/") for way in above):
                yield from _local_files(path, (*above, real), f"{name}/")


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A file beside ``path`` to fill, which takes its place at the end, so that no reader sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


@dataclass(frozen=True)
class Folder:
    """A folder on a filesystem; travels to other processes."""

    uri: str
    """As the user names it: a path or a URI."""
    filesystem: Any
    """Of pyarrow."""
    root: str
    """The folder's path there."""

    @classmethod
    def of(cls, path: str | Path, where: str = "storage") -> "Folder":
        """The folder of a path or URI; asks nobody yet.

        Raises:
            UserError: a URI of no filesystem, or one with a secret, or a package for it is missing;
                ``where`` is the field or option that names it.
        """
        from pyarrow import fs

        if (uri := uri_of(path)) is None:
            return cls(str(path), fs.LocalFileSystem(), os.path.expanduser(path).rstrip("/") or "/")
        if (what := secret_in(uri)) is not None:
            raise UserError(where, what)
        try:
            try:
                filesystem, root = fs.FileSystem.from_uri(uri)
            except ValueError as error:
                if "nrecognized filesystem type" not in str(error):
                    raise
                filesystem, root = fs.FileSystem.from_uri(f"fsspec+{uri}")
        except (ValueError, ImportError, OSError) as error:
            raise UserError(where, f"{uri} cannot be opened ({short(error)})") from None
        return cls(uri, filesystem, root.rstrip("/"))

    @classmethod
    def holding(cls, file: str | Path) -> "tuple[Folder, str]":
        """The folder of a file, and the file's name there; connections are kept."""
        return _opened(parent(file)), name_of(file)

    def __str__(self) -> str:
        return self.root

    @property
    def is_local(self) -> bool:
        """Whether it is on a filesystem of this machine."""
        return bool(self.filesystem.type_name == "local")

    def at(self, path: str) -> str:
        """The filesystem's name of a path below the folder."""
        return f"{self.root}/{path}" if path else self.root

    def below(self, path: str) -> "Folder":
        """A folder below this one."""
        return Folder(below(self.uri, path), self.filesystem, self.at(path))

    def files(self, *, originals: bool = False) -> list[Entry]:
        """Files below, however deep, in order of their paths; none where there is no such folder.

        Of originals, hidden files are left out, and links to nothing are listed: something is missing.
        """
        found: Iterable[Entry]
        if not self.is_local:
            found = self._remote_files()
        elif os.path.isdir(self.root):
            found = _local_files(self.root, (os.path.realpath(self.root),))
        else:
            found = [Entry("", -1, 0)] if os.path.islink(self.root) else []
        if originals:
            return sorted(e for e in found if not e.path.rpartition("/")[2].startswith("."))
        return sorted(e for e in found if e.size >= 0)

    def _remote_files(self) -> Iterator[Entry]:
        from pyarrow import fs

        selector = fs.FileSelector(self.root, recursive=True, allow_not_found=True)
        for info in self.filesystem.get_file_info(selector):
            if info.type == fs.FileType.File:
                name = info.path[len(self.root) :].lstrip("/")
                yield Entry(name, info.size or 0, info.mtime_ns or 0)

    def folders(self) -> list[str]:
        """Names of the folders, and links to nothing, directly below, sorted; hidden ones left out."""
        from pyarrow import fs

        if self.is_local:
            there = {name: self.at(name) for name in os.listdir(self.root)}
            names = {n for n, path in there.items() if os.path.isdir(path) or not os.path.exists(path)}
        elif self.filesystem.type_name == "gcs":  # where folders are no objects, pyarrow lists none
            names = {e.path.partition("/")[0] for e in self.files() if "/" in e.path}
        else:
            found = self.filesystem.get_file_info(fs.FileSelector(self.root))
            # Listings of web servers end folders' names with a slash.
            names = {i.path.rstrip("/").rpartition("/")[2] for i in found if i.type == fs.FileType.Directory}
        return sorted(n for n in names if not n.startswith("."))

    def exists(self, path: str = "") -> bool:
        """Whether there is a file or folder of that name."""
        from pyarrow import fs

        return bool(self.filesystem.get_file_info(self.at(path)).type != fs.FileType.NotFound)

    def find(self, names: list[str]) -> list[Entry]:
        """What the filesystem tells of these files, which exist."""
        told = self.filesystem.get_file_info([self.at(name) for name in names])
        return [Entry(n, i.size or 0, i.mtime_ns or 0) for n, i in zip(names, told, strict=True)]

    def open(self, path: str) -> Any:
        """A file to read from any place."""
        self.refuse_pipe(path)
        return self.filesystem.open_input_file(self.at(path))

    def read(self, path: str) -> bytes:
        """A file's content."""
        self.refuse_pipe(path)
        if self.is_local:
            with open(self.at(path), "rb", buffering=0) as plain:  # a third of the time for small files
                return plain.readall()
        with self.open(path) as file:
            return bytes(file.read())

    def write(self, name: str, content: bytes) -> None:
        """A file of that content, whole or not at all."""
        self._put(name, io.BytesIO(content))

    def upload(self, name: str, path: Path) -> None:
        """Copy a local file there, whole or not at all."""
        with path.open("rb") as file:
            self._put(name, file)

    def download(self, name: str, path: Path) -> None:
        """Copy a file to here, whole or not at all."""
        there = self.filesystem.open_input_stream(self.at(name))
        with there as file, whole_file(path) as partial, partial.open("wb") as out:
            shutil.copyfileobj(file, out, BLOCK)

    def remove(self, name: str) -> None:
        """Delete a file, if it is there."""
        if self.exists(name):
            self.filesystem.delete_file(self.at(name))

    def why_unwritable(self) -> str | None:
        """What keeps files from being written there and read again, or ``None``."""
        name, content = f".probe-{uuid4().hex}", os.urandom(PROBE_BYTES)
        try:
            try:
                self.write(name, content)
                same = self.read(name) == content
            finally:
                with suppress(Exception):
                    self.remove(name)
        except Exception as error:  # fsspec's filesystems raise what they like
            return short(error)
        return None if same else "what is read there is not what was written"

    def refuse_pipe(self, path: str) -> None:
        """Refuse, by an OSError, what is no file: into a pipe nobody may ever write."""
        if self.is_local and os.path.exists(self.at(path)) and not os.path.isfile(self.at(path)):
            raise OSError("not a file")

    def _put(self, name: str, content: BinaryIO) -> None:
        target = self.at(name)
        if self.filesystem.type_name in WHOLE_WRITES:
            with self.filesystem.open_output_stream(target) as out:
                shutil.copyfileobj(content, out, BLOCK)
            return
        folder, _, last = target.rpartition("/")
        self.filesystem.create_dir(folder, recursive=True)
        partial = f"{folder}/.{last}.partial-{uuid4().hex[:8]}"
        try:
            with self.filesystem.open_output_stream(partial) as out:
                shutil.copyfileobj(content, out, BLOCK)
            self.filesystem.move(partial, target)
        except BaseException:
            with suppress(Exception):
                self.filesystem.delete_file(partial)
            raise


def real_path(path: str | Path) -> Path:
    """As ``Path.resolve``, which raises for a link to itself."""
    return Path(os.path.realpath(path))


def open_parquet(file: str | Path) -> "pq.ParquetFile":
    """A Parquet file, named by a path or a URI; raises OSError or ArrowException."""
    import pyarrow.parquet as pq

    folder, name = Folder.holding(file)
    folder.refuse_pipe(name)
    return pq.ParquetFile(folder.at(name), filesystem=folder.filesystem)


def why_unreadable(file: str) -> str | None:
    """Why a file, named by a path or a URI, cannot be read from here; ``None`` when it can."""
    try:
        folder, name = Folder.holding(file)
        with folder.open(name) as opened:
            opened.read(1)
    except Exception as error:  # fsspec's filesystems raise what they like
        return short(error)
    return None


def short(error: BaseException) -> str:
    """An error of a filesystem as one line that is not too long."""
    text = " ".join(str(getattr(error, "strerror", None) or error).split()) or type(error).__name__
    if found := re.search(r"AWS Error (\w+) during \w+ operation: *(.*)", text):
        text = f"{found[1].lower().replace('_', ' ')}: {found[2]}"
    if found := re.search(r"Detail: \[errno \d+\] (.*)", text):  # of pyarrow's local files
        text = found[1]
    return text if len(text) <= 200 else f"{text[:200]}..."


@lru_cache(maxsize=16)
def _opened(folder: str) -> Folder:
    return Folder.of(folder, where="data.path")
