"""One process at a time works on a run or a search: a lock beside its folder, which ends with its holder."""

import errno
import fcntl
import logging
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

from pipelines.errors import UserError

_log = logging.getLogger(__name__)
_DOING = {"run": "is being trained", "search": "is being run"}
_TAKEN = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)
_held: set[int] = set()


@contextmanager
def hold(folder: Path, kind: Literal["run", "search"], storage: str) -> Iterator[None]:
    """Keep other processes from a run or search meanwhile, also on other machines that share the folder.

    The lock (flock of ``.NAME.lock`` beside the folder) is gone with this process, however that ends, and
    whatever it has started; the file may stay, and then means nothing. Where the filesystem knows no
    locks, a line in the log says so.

    Args:
        folder: of the run or search, whether there is one yet or not; what is above it is made.
        kind: what it is.
        storage: where it is, as the user calls it.

    Raises:
        UserError: another process holds it, or no file can be written there.
    """
    path = folder.with_name(f".{folder.name}.lock")
    made = [above for above in path.parents if not above.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = _lock(path)
    except BlockingIOError as error:
        raise UserError(
            "name",
            f"{kind} {folder.name!r} in {storage} {_DOING[kind]} by another process{error.strerror}; "
            "wait for it, or choose another --name",
        ) from None
    except OSError as error:
        raise UserError("storage", f"{path.parent} cannot be written ({error.strerror or error})") from None
    _held.add(file)
    try:
        yield
    finally:
        if file in _held:  # not in a process that was forked meanwhile
            _held.remove(file)
            with suppress(OSError):
                path.unlink()
            os.close(file)
            with suppress(OSError):  # a run that was refused leaves no folders
                for above in made:
                    above.rmdir()


def _lock(path: Path) -> int:
    """The descriptor of the locked file.

    Raises:
        BlockingIOError: another process holds it; ``strerror`` tells which, as far as it is known.
        OSError: the file cannot be opened.
    """
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)  # for writing: NFS asks for it
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _TAKEN:
                taken = BlockingIOError(errno.EWOULDBLOCK, _holder(file))
                os.close(file)
                raise taken from None
            _log.warning("%s: nothing keeps a second process away here (%s)", path.parent, error.strerror)
        if _is_there(path, file):
            with suppress(OSError):  # a full disk
                os.ftruncate(file, 0)
                os.write(file, f"{os.getpid()} {socket.gethostname()}\n".encode())
            return file
        os.close(file)  # whoever held it has removed it in between


def _is_there(path: Path, file: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(file))
    except FileNotFoundError:
        return False


def _holder(file: int) -> str:
    found = re.fullmatch(r"(\d+) (\S+)\n", os.read(file, 1000).decode(errors="replace"))
    return f" (process {found[1]} on {found[2]})" if found else ""


def _let_go() -> None:
    """In a forked process, which may outlive the one that holds the locks."""
    for file in _held:
        os.close(file)
    _held.clear()


os.register_at_fork(after_in_child=_let_go)
