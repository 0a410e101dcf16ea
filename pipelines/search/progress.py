"""A search's progress in the terminal: a bar, or a line per trial where there is no terminal."""

from collections.abc import Sequence
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from pipelines.search.journal import Record, value_text
from pipelines.search.objectives import Objective


class SearchProgress:
    """Shows how many trials have ended and the best so far; a context manager.

    Args:
        limit: trials in all; ``None`` when only the time ends the search.
        past: trials that ended in earlier launches.
        objectives: of the search.
        console: where it is shown.
    """

    def __init__(
        self, limit: int | None, past: Sequence[Record], objectives: Sequence[Objective], console: Console
    ) -> None:
        self._console, self._objectives, self._limit = console, objectives, limit
        self._done = len(past)
        self._best: dict[str, float] = {}
        self._bars = Progress(
            TextColumn("trials"),
            BarColumn(bar_width=32),
            MofNCompleteColumn(),
            TextColumn("{task.fields[status]}"),
            TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        for record in past:
            self._note(record)
        self._task = self._bars.add_task("trials", total=limit, completed=self._done, status=self._status())

    def __enter__(self) -> "SearchProgress":
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def ended(self, record: Record) -> None:
        """A trial has ended."""
        self._done += 1
        self._note(record)
        self._bars.update(self._task, completed=self._done, status=self._status())
        if not self._console.is_terminal:
            total = f"/{self._limit}" if self._limit else ""
            text = f"{self._done}{total}: trial {record.number}: {record_text(record, self._objectives)}"
            self._console.print(text, highlight=False, soft_wrap=True)

    def _note(self, record: Record) -> None:
        if record.status == "finished":
            for o in self._objectives:
                values = [record.metrics[o.name], *([self._best[o.name]] if o.name in self._best else [])]
                self._best[o.name] = min(values, key=o.cost)

    def _status(self) -> str:
        return ", ".join(f"{o.name} {o.text(self._best[o.name])}" for o in self._objectives if self._best)


def record_text(record: Record, objectives: Sequence[Objective]) -> str:
    """A trial in one line: its values and what it reached, or why it did not."""
    values = ", ".join(f"{path} {value_text(value)}" for path, value in record.values.items())
    if record.status == "finished":
        return f"{values}: " + ", ".join(f"{o.name} {o.text(record.metrics[o.name])}" for o in objectives)
    return f"{values}: {record.status} ({record.reason})"
