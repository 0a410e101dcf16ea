"""The only place that prints: results on stdout, everything else on stderr."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # --help does without it
    from rich.console import Console

Told = Callable[[int, int], None]
"""Is given how much is done, and of how much."""


def results(width: int = 120) -> "Console":
    """The console of tables and reports; ``width`` columns wide where there is no terminal."""
    from rich.console import Console

    return Console() if sys.stdout.isatty() else Console(width=width)


def messages() -> "Console":
    """The console of progress and remarks."""
    from rich.console import Console

    return Console(stderr=True)


def write(text: str, end: str = "\n") -> None:
    """Put text on stdout as it is, for scripts."""
    sys.stdout.write(f"{text}{end}")
    sys.stdout.flush()


def say(text: str) -> None:
    """Put a line on stderr as it is."""
    sys.stderr.write(f"{text}\n")


@contextmanager
def progress(what: str, console: "Console | None" = None) -> Iterator[Told]:
    """A bar while something goes on; nothing where there is no terminal."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = console or messages()
    columns = (TextColumn(what), BarColumn(bar_width=32), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
