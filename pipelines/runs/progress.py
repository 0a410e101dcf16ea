"""Live progress in the terminal: a bar per phase, or a line per epoch where there is no terminal."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from rich.console import Console
from rich.progress import TaskID

from pipelines.console import bars
from pipelines.training.phases import Phase

Event = dict[str, Any]


class TrainingProgress:
    """Shows the events that training sends; a context manager. A line fits 80 columns."""

    def __init__(self, phases: Sequence[Phase], console: Console) -> None:
        self._console = console
        self._phases = {p.name: p for p in phases}
        self._bars = bars(console, "{task.fields[status]}")
        self._tasks: dict[str, TaskID] = {}
        self._last: dict[str, str] = {}
        self._seen: dict[tuple[str, object], Event] = {}

    def __enter__(self) -> "TrainingProgress":
        self._bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bars.stop()

    def __call__(self, event: Event) -> None:
        """Show an event; ones that were seen already change nothing."""
        name = event["phase"]
        key = (name, event["epoch"])
        if name not in self._phases or self._seen.get(key) == event:
            return
        self._seen[key] = event
        phase = self._phases[name]
        ended = "accuracy" in str(event.get("doing"))
        done = event["epoch"] + (1.0 if ended else event.get("step", 0) / max(event.get("steps", 1), 1))
        if name not in self._tasks:
            self._tasks[name] = self._bars.add_task(name, total=max(phase.epochs, 1), status="")
        self._bars.update(self._tasks[name], completed=done)
        left = self._left(self._tasks[name])
        place = f"{event['epoch'] + 1}/{phase.epochs}" if phase.epochs else ""
        if not self._console.is_terminal:
            if ended:
                what = f"{name}{place and f' epoch {place}'}: {event['doing']}{left}"
                self._console.print(what, highlight=False, soft_wrap=True)
            return
        if "finished" in event:
            self._last[name] = event["doing"]
        # What the epoch before came to; the present speed before there is one.
        doing = event.get("doing") or self._last.get(name) or f"{event.get('rate', 0):,.0f} examples/s"
        status = doing if event.get("finished") or not place else f"{place}, {doing}{left}"
        self._bars.update(self._tasks[name], status=status)

    def _left(self, task: TaskID) -> str:
        """How long the phase will still take, as rich estimates it."""
        seconds = next(t.time_remaining for t in self._bars.tasks if t.id == task)
        return f", {timedelta(seconds=int(seconds))} left" if seconds else ""
