"""Whether the servers of a Ray that this process has started are still there.

Without its head, Ray's client waits for a minute wherever it is called, then ends the process with C++ lines.
"""

import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

SERVERS = ("raylet", "gcs_server")
SECONDS = 1.0


def servers() -> dict[int, str]:
    """Ray's own processes that this one has started: names by their ids; none where no Linux tells them."""
    found = {}
    for children in Path("/proc/self/task").glob("*/children"):
        for pid in children.read_text().split():
            with suppress(OSError):  # it has ended meanwhile
                name = Path(f"/proc/{pid}/comm").read_text().strip()
                if name in SERVERS:
                    found[int(pid)] = name
    return found


def watch(processes: Mapping[int, str], lost: Callable[[str], None], stop: threading.Event) -> None:
    """Call ``lost`` with the name of the first process that ends before ``stop`` is set."""
    while not stop.wait(SECONDS):
        for pid, name in processes.items():
            if _has_ended(pid) and not stop.is_set():
                lost(name)
                return


def _has_ended(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True
