"""One process at a time works on a run or a search: a lock beside its folder, which ends with its holder."""

import logging
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

from filelock import FileLock, Timeout

from pipelines.errors import UserError

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
