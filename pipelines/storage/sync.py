"""A run's storage beyond this process: a lock, copies of folders elsewhere, and whether all nodes share it.

A run on storage named by a URI is written into a working copy and goes up before and after every
checkpoint; Ray's checkpoints go there from the workers directly. What is there is what counts: it is
fetched before a run goes on.
"""

import hashlib
import json
import logging
import os
import re
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

from filelock import FileLock, Timeout

from cluster.checks import on_every_node
from cluster.errors import UserError
from pipelines.storage.atomic import write_json
from pipelines.storage.paths import Entry, Folder, below, name_of, short, uri_of, why_unreadable

STATE = ".mirror.json"
IGNORED = (".partial-", ".probe-", STATE)
_copies: list[tempfile.TemporaryDirectory[str]] = []  # removed when this process ends
SHARE = "give a folder that all nodes share (NFS or the like), or use one node"
_log = logging.getLogger(__name__)
_DOING = {"run": "is being trained", "search": "is being run"}


@contextmanager
def run_lock(folder: Path, kind: Literal["run", "search"], storage: str) -> Iterator[None]:
    """Keep other processes from a run or search meanwhile, also on other machines that share the folder.

    The lock (``.NAME.lock`` beside the folder) is gone with this process, however that ends; the file may
    stay, and then means nothing. Where the filesystem knows no locks, a line in the log says so. Folders
    above are made; ``storage`` is where they are in the user's words.
    """
    path = folder.with_name(f".{folder.name}.lock")
    made = [above for above in path.parents if not above.exists()]
    lock = FileLock(path, blocking=False)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    except OSError as error:
        raise UserError("storage", f"{path.parent} cannot be written ({error.strerror or error})") from None
    try:
        lock.acquire()
    except Timeout:
        raise UserError(
            "name",
            f"{kind} {folder.name!r} in {storage} {_DOING[kind]} by another process{_holder(path)}; "
            "wait for it, or choose another --name",
        ) from None
    except OSError as error:
        _log.warning("%s: nothing keeps a second process away here (%s)", path.parent, error.strerror)
    with suppress(OSError):  # a full disk
        path.write_text(f"{os.getpid()} {socket.gethostname()}\n")
    holder = os.getpid()
    try:
        yield
    finally:
        if holder == os.getpid():  # not in a process that was forked meanwhile
            with suppress(OSError):
                path.unlink()
            lock.release()
            with suppress(OSError):  # a run that was refused leaves no folders
                for above in made:
                    above.rmdir()


def _holder(path: Path) -> str:
    with suppress(OSError):
        found = re.fullmatch(r"(\d+) (\S+)\n", path.read_text(errors="replace"))
        return f" (process {found[1]} on {found[2]})" if found else ""
    return ""


@dataclass(frozen=True)
class Mirror:
    """A local folder and the remote one that it is a copy of.

    A file beside the copies remembers what was the same when, so that any process of this machine moves
    only what has changed since.
    """

    local: Path
    remote: Folder

    def push(self, removed: Callable[[str], bool] = lambda name: False) -> None:
        """Upload what is new or has changed here, and delete there what its user has deleted here.

        ``removed`` tells whether a file that was the same and is gone here was deleted by its user; systems
        clean their folders of temporary files by age.
        """
        known = self._known()
        here = self._here()
        changed = [name for name, now in here.items() if known.get(name, [])[:2] != now]
        for name in changed:
            self.remote.upload(name, self.local / name)
        for entry in self.remote.find(changed):
            known[entry.path] = [*here[entry.path], *_stamp(entry)]
        for name in filter(removed, set(known) - set(here)):
            self.remote.remove(name)
            del known[name]
        self._keep(known)

    def pull(self, wanted: Callable[[str], bool] = lambda name: True) -> None:
        """Download wanted files that are new or changed there, and delete here those that are not there."""
        known, here = self._known(), self._here()
        there = {e.path: e for e in self.remote.files() if wanted(e.path) and not _ignored(e.path)}
        changed = [n for n, e in there.items() if n not in here or known.get(n) != [*here[n], *_stamp(e)]]
        for name in changed:
            self.remote.download(name, self.local / name)
        here = self._here()
        known |= {name: [*here[name], *_stamp(there[name])] for name in changed}
        for name in {n for n in here if wanted(n)} - set(there):
            (self.local / name).unlink(missing_ok=True)
            known.pop(name, None)
        for folder in sorted((p for p in self.local.rglob("*") if p.is_dir()), reverse=True):
            if not any(folder.iterdir()):
                folder.rmdir()
        self._keep(known)

    def _here(self) -> dict[str, list[int]]:
        return {e.path: _stamp(e) for e in Folder.of(self.local).files() if not _ignored(e.path)}

    def _known(self) -> dict[str, list[int]]:
        state = _state(self.local)
        return state["files"] if state.get("uri") == self.remote.uri else {}

    def _keep(self, known: dict[str, list[int]]) -> None:
        self.local.mkdir(parents=True, exist_ok=True)
        if known:
            write_json(self.local / STATE, {"uri": self.remote.uri, "files": known})
        else:
            (self.local / STATE).unlink(missing_ok=True)


def _ignored(name: str) -> bool:
    return any(mark in name for mark in IGNORED) or ".." in name.split("/")  # which would lead elsewhere


def _stamp(entry: Entry) -> list[int]:
    return [entry.size, entry.modified]


def _state(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / STATE).read_text())
    except (OSError, ValueError):
        return {}


def in_checkpoints(name: str) -> bool:
    """Whether a file of a run is in one of its checkpoints, the only ones that a run deletes."""
    return name.startswith("checkpoints/") and name.count("/") > 1


def beside_checkpoints(name: str) -> bool:
    """Whether a file of a run is in none of its checkpoints (final networks are in none)."""
    return not in_checkpoints(name)


def mirror_of(folder: Path, uri: str | None) -> Mirror | None:
    """The mirror between a working copy and what it is a copy of; ``None`` without a URI."""
    return None if uri is None else Mirror(folder, Folder.of(uri))


def working_copy(uri: str) -> Path:
    """The folder that stands for a run's URI: the same on every machine."""
    ours = Path(tempfile.gettempdir()) / f"spikeprune-{os.getuid()}"
    ours.mkdir(mode=0o700, exist_ok=True)
    if ours.stat().st_uid != os.getuid():
        raise UserError(str(ours), "belongs to somebody else; set TMPDIR to a folder of yours")
    return ours / hashlib.sha256(uri.encode()).hexdigest()[:12] / name_of(uri)


def remove_working_copy(folder: Path) -> None:
    """Remove a working copy, unless another process works on its run."""
    with suppress(UserError), run_lock(folder, "run", str(folder)):
        shutil.rmtree(folder, ignore_errors=True)
    with suppress(OSError):
        folder.parent.rmdir()


def local_copy(source: Path) -> Path:
    """``source``, or for this process a copy of it where it is a run named by a URI.

    Final networks are copied, the checkpoints to resume from are not.
    """
    if (uri := uri_of(source)) is None:
        return source
    remote = Folder.of(uri, where="run")
    _copies.append(tempfile.TemporaryDirectory(prefix="spikeprune-"))
    folder = Path(_copies[-1].name) / name_of(uri)
    with storage_errors(remote):
        Mirror(folder, remote).pull(beside_checkpoints)
    if not any(p.name != STATE for p in folder.iterdir()):
        raise UserError(uri, "does not exist; name a run's folder")
    return folder


def upload_changes(folder: Path) -> None:
    """Upload what has changed in a working copy since it was fetched; nothing for any other folder."""
    if (uri := _state(folder).get("uri")) is not None:
        remote = Folder.of(uri)
        with storage_errors(remote):
            Mirror(folder, remote).push()


def named(path: Path) -> str:
    """A path as its user knows it: the URI that it is, or that it is a working copy of."""
    if (uri := uri_of(path)) is not None:
        return uri
    for folder in path.parents:
        if (uri := _state(folder).get("uri")) is not None:
            return below(uri, path.relative_to(folder).as_posix())
    return str(path)


@contextmanager
def local_file(path: str) -> Iterator[Path]:
    """A file here: the one of that path, or for a while a copy of the one of that URI."""
    if uri_of(path) is None:
        yield Path(path)
        return
    there, name = Folder.holding(path)
    with tempfile.TemporaryDirectory(prefix="spikeprune-") as folder:
        there.download(name, Path(folder) / name)
        yield Path(folder) / name


@contextmanager
def storage_errors(remote: Folder) -> Iterator[None]:
    """Whatever its filesystem raises, as one line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # fsspec's filesystems raise what they like
        raise UserError("storage", f"{remote.uri} cannot be used ({short(error)})") from error


@contextmanager
def storage_explained(folder: Path, uri: str | None) -> Iterator[None]:
    """Turn any failure within into one line about a run's storage, if that is what has failed.

    ``uri`` is what the folder is a working copy of, if it is one.
    """
    try:
        yield
    except Exception as error:
        reason = _why_lost(folder, uri)
        if reason is None:
            raise
        what = f"{reason}; checkpoints of earlier epochs are whole: mend that, then go on with --resume"
        raise UserError("storage", what) from error


def _why_lost(folder: Path, uri: str | None) -> str | None:
    if uri is None and not folder.is_dir():
        return f"{folder} has vanished"
    reason = Folder.of(uri or folder).why_unwritable()
    if reason is None:
        return None
    free = f", {shutil.disk_usage(folder).free >> 10} KiB free" if uri is None else ""
    return f"{uri or folder} cannot be written ({reason}{free})"


def check_shared(storage: Path | str | None, files: Sequence[str]) -> None:
    """That all nodes of the connected cluster write to the same storage and read the data."""
    folder, mark = None if storage is None else Folder.of(storage), f".probe-{uuid4().hex}"
    if folder is not None:
        with storage_errors(folder):
            folder.write(mark, mark.encode())
    try:
        for ip, (unwritable, seen, unreadable) in on_every_node(_look, storage, mark, tuple(files)).items():
            if unwritable is not None:
                what = f"{storage} cannot be written from node {ip} ({unwritable}); {SHARE}"
                raise UserError("storage", what)
            if not seen:
                what = f"{storage} is not shared: the driver and node {ip} see other files there; {SHARE}"
                raise UserError("storage", what)
            if unreadable is not None:
                what = f"node {ip} cannot read {unreadable}; put the data where every node reads it"
                raise UserError("data.path", what)
    finally:
        if folder is not None:
            with suppress(Exception):
                folder.remove(mark)


def _look(
    storage: Path | str | None, mark: str, files: tuple[str, ...]
) -> tuple[str | None, bool, str | None]:
    """On a node: why it cannot write, whether it sees the driver's file, what it cannot read."""
    unreadable = next((file for file in files if why_unreadable(file) is not None), None)
    if storage is None:
        return None, True, unreadable
    try:
        folder = Folder.of(storage)
    except UserError as error:  # a package is missing there
        return error.what, False, unreadable
    return folder.why_unwritable(), _appears(folder, mark), unreadable


def _appears(folder: Folder, name: str) -> bool:
    for _ in range(20):  # network file systems may show a new file a little late
        with suppress(Exception):
            if folder.is_local:
                os.listdir(folder.root)  # they look again
            if folder.read(name) == name.encode():
                return True
        time.sleep(0.1)
    return False
