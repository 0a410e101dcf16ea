"""The only place that prints: results on stdout, everything else on stderr."""

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # --help does without it
    from rich.console import Console
    from rich.progress import Progress, ProgressColumn
    from rich.table import Table

Told = Callable[[int, int], None]
"""Is given how much is done, and of how much."""
_AS_IT_IS: Any = {"markup": False, "emoji": False}  # brackets in a path or a reason are no style of rich's


def results(width: int = 120) -> "Console":
    """The console of tables and reports; ``width`` columns wide where there is no terminal."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else width, **_AS_IT_IS)


def messages(*, quiet: bool = False) -> "Console":
    """The console of progress and remarks."""
    from rich.console import Console

    return Console(stderr=True, quiet=quiet, **_AS_IT_IS)


def write(text: str, end: str = "\n") -> None:
    """Put text on stdout as it is, for scripts."""
    sys.stdout.write(f"{text}{end}")
    sys.stdout.flush()


def say(text: str) -> None:
    """Put a line on stderr as it is."""
    sys.stderr.write(f"{text}\n")


def table(
    title: str | None, headings: Sequence[str], rows: "Iterable[Sequence[str]]" = (), *, left: int = 1
) -> "Table":
    """A table of texts, its first ``left`` columns flush left and all others flush right."""
    from rich.table import Table

    made = Table(title=title, title_justify="left")
    for i, heading in enumerate(headings):
        made.add_column(heading, justify="left" if i < left else "right")
    for row in rows:
        made.add_row(*row)
    return made


def bars(console: "Console", *right: "str | ProgressColumn", transient: bool = False) -> "Progress":
    """Bars with their descriptions on the left; nothing where there is no terminal.

    Args:
        console: where they are shown.
        right: what stands on the right of each, as rich's columns or their text.
        transient: whether they disappear at the end.
    """
    from rich.progress import BarColumn, Progress

    columns = ("{task.description:<9}", BarColumn(bar_width=12), *right)
    return Progress(*columns, console=console, disable=not console.is_terminal, transient=transient)


@contextmanager
def progress(what: str) -> Iterator[Told]:
    """A bar of how much is done while something goes on."""
    from rich.progress import MofNCompleteColumn, TimeRemainingColumn

    with bars(messages(), MofNCompleteColumn(), TimeRemainingColumn(), transient=True) as shown:
        task = shown.add_task(what, total=None)
        yield lambda done, total: shown.update(task, completed=done, total=total)
