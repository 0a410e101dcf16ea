"""Live progress in the terminal: a bar per phase, or a line per epoch where there is no terminal."""

import time
from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Console
from rich.progress import TaskID

from pipelines.console import bars
from pipelines.training.phases import Phase

Event = dict[str, Any]


class TrainingProgress:
    """Shows the events that training sends; a context manager. A line fits 80 columns."""

    def __init__(
        self, phases: Sequence[Phase], console: Console, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._console = console
        self._phases = {p.name: p for p in phases}
        self._bars = bars(console, "{task.fields[status]}")
        self._tasks: dict[str, TaskID] = {}
        self._last: dict[str, str] = {}
        self._seen: dict[tuple[str, object], Event] = {}
        self._clock = clock
        self._began: dict[str, tuple[float, float]] = {}

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
        left = self._left(phase, event)
        if not self._console.is_terminal:
            self._print(event, left)
            return
        if name not in self._tasks:
            self._tasks[name] = self._bars.add_task(name, total=max(phase.epochs, 1), status="")
        if "finished" in event:
            self._last[name] = event["doing"]
        if event.get("finished"):
            total = max(phase.epochs, 1)
            self._bars.update(self._tasks[name], completed=total, status=event["doing"])
            self._bars.stop_task(self._tasks[name])
            return
        # What the epoch before came to; the present speed before there is one.
        doing = event.get("doing") or self._last.get(name) or f"{event.get('rate', 0):,.0f} examples/s"
        status = f"{event['epoch'] + 1}/{phase.epochs}, {doing}{left}" if phase.epochs else doing
        self._bars.update(self._tasks[name], completed=event["epoch"] + _share(event), status=status)

    def _left(self, phase: Phase, event: Event) -> str:
        """Minutes and seconds left of the phase, by its speed since it was first seen here."""
        done = event["epoch"] + (1.0 if "accuracy" in str(event.get("doing")) else _share(event))
        now = self._clock()
        began, at = self._began.setdefault(phase.name, (now, done))
        if done <= at or done >= phase.epochs:
            return ""
        seconds = round((now - began) / (done - at) * (phase.epochs - done))
        hours, minutes = seconds // 3600, seconds // 60 % 60
        return f", {f'{hours}:{minutes:02}' if hours else minutes}:{seconds % 60:02} left"

    def _print(self, event: Event, left: str) -> None:
        if "accuracy" not in str(event.get("doing")):
            return
        phase = self._phases[event["phase"]]
        place = f" epoch {event['epoch'] + 1}/{phase.epochs}" if phase.epochs else ""
        self._console.print(
            f"{event['phase']}{place}: {event['doing']}{left}", highlight=False, soft_wrap=True
        )


def _share(event: Event) -> float:
    """How much of its epoch is done."""
    return float(event.get("step", 0) / max(event.get("steps", 1), 1))
