"""Storage that fills up or vanishes while a run writes to it: one line, and nothing half-written trusted."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cluster.storage import Remote
from pipelines.errors import UserError

PROBE_BYTES = 1 << 16
_RAY_STATE = "checkpoint_manager_snapshot.json"


@contextmanager
def explained(folder: Path, remote: str | None = None) -> Iterator[None]:
    """Turn any failure within into one line about the storage, if that is what has failed.

    Args:
        folder: of the run.
        remote: its URI, where ``folder`` is only a working copy.

    Raises:
        UserError: it cannot be written; it says why and what to do.
    """
    try:
        yield
    except Exception as error:
        reason = why_not(folder) if remote is None else _why_not_there(remote)
        if reason is None:
            raise
        raise UserError(
            "storage",
            f"{reason}; checkpoints of earlier epochs are whole: mend that, then go on with --resume",
        ) from error


def why_not(folder: Path) -> str | None:
    """What keeps a run's folder from being written, or ``None``."""
    if not folder.is_dir():
        return f"{folder} has vanished"
    probe = folder / f".probe-{os.getpid()}"
    try:
        with probe.open("wb") as file:
            file.write(bytes(PROBE_BYTES))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        free = ""
        with suppress(OSError):
            free = f", {shutil.disk_usage(folder).free >> 10} KiB free"
        return f"{folder} cannot be written ({error.strerror or error}{free})"
    finally:
        with suppress(OSError):
            probe.unlink(missing_ok=True)
    return None


def _why_not_there(uri: str) -> str | None:
    reason = Remote.of(uri).why_not()
    return None if reason is None else f"{uri} cannot be written ({reason})"


def mend(checkpoints: Path) -> None:
    """Remove Ray Train's list of checkpoints where a full disk has cut it off.

    Ray writes it in place and refuses to start on half a list; a worker then finds the newest whole
    checkpoint by itself.
    """
    state = checkpoints / _RAY_STATE
    if not state.exists():
        return
    try:
        json.loads(state.read_text())
    except ValueError:
        state.unlink()
