"""Whether the servers of a Ray that this process has started are still there.

Without its head, Ray's client waits for a minute wherever it is called, then ends the process with C++ lines.
"""

import os
import signal
import threading
from collections.abc import Callable, Container
from contextlib import suppress
from pathlib import Path

SERVERS = ("raylet", "gcs_server")
SECONDS = 1.0


def servers() -> dict[int, str]:
    """Ray's own processes that this one has started: names by their ids; none where no Linux tells them."""
    found = {}
    for pid in _children("self"):
        with suppress(OSError):  # it has ended meanwhile
            name = Path(f"/proc/{pid}/comm").read_text().strip()
            if name in SERVERS:
                found[pid] = name
    return found


def watch(before: Container[int], lost: Callable[[str], None], stop: threading.Event) -> None:
    """Call ``lost`` with the name of the first server that ends before ``stop`` is set.

    Servers may start later than the watch; those of ``before`` are not watched. What the others have started
    is killed first: Ray's agents do not end without its head.
    """
    processes: dict[int, str] = {}
    while not stop.wait(SECONDS):
        processes |= {pid: name for pid, name in servers().items() if pid not in before}
        for pid, name in processes.items():
            if _has_ended(pid) and not stop.is_set():
                for other in processes:
                    _kill_below(other)
                lost(name)
                return


def _children(pid: int | str) -> list[int]:
    found: list[int] = []
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            found += map(int, children.read_text().split())
    return found


def _kill_below(pid: int) -> None:
    for child in _children(pid):
        _kill_below(child)
        with suppress(OSError):
            os.kill(child, signal.SIGKILL)


def _has_ended(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True
