"""SIGTERM, as schedulers send it before they take a machine away, ends a run as Ctrl-C does."""

import os
import signal
import threading
from types import FrameType

from pipelines.console import say

LOST = 3
"""Exit code of a command whose Ray has ended under it."""
TERMINATED = 143
"""Exit code of a command that SIGTERM has ended."""

_wanted = False
_received = False


def end_on_sigterm() -> None:
    """From now on SIGTERM does what Ctrl-C does, whoever handles that; for commands, not libraries."""
    global _wanted
    _wanted = True
    reclaim_sigterm()


def reclaim_sigterm() -> None:
    """Take SIGTERM back from Ray, which claims it when it connects; nothing where nobody asked for it."""
    if _wanted and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _interrupt)


def was_terminated() -> bool:
    """Whether SIGTERM has come."""
    return _received


def exit_without_ray(server: str) -> None:
    """End this process at once with a line, as Ray would a minute later without one."""
    try:
        say(
            f"spikeprune: Ray's {server} on this machine has ended (killed, or out of memory); checkpoints "
            "of earlier epochs are whole, --resume goes on from them"
        )
    finally:  # Ray's client in this process waits for the server, wherever it is called
        os._exit(LOST)


def _interrupt(number: int, frame: FrameType | None) -> None:
    global _received
    _received = True
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as of commands that a script starts with &
        raise KeyboardInterrupt
    signal.raise_signal(signal.SIGINT)
