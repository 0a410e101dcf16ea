"""Live progress in the terminal: a bar per phase, or a line per epoch where there is no terminal."""

from collections.abc import Sequence
from types import TracebackType

from rich.console import Console
from rich.progress import TaskID, TimeElapsedColumn

from pipelines.console import bars
from pipelines.training.phases import Phase

Event = dict[str, object]


class TrainingProgress:
    """Shows the events that training sends; a context manager."""

    def __init__(self, phases: Sequence[Phase], console: Console) -> None:
        self._console = console
        self._phases = {p.name: p for p in phases}
        self._bars = bars(console, "{task.fields[status]}", TimeElapsedColumn())
        self._tasks: dict[str, TaskID] = {}
        self._last: dict[str, str] = {}
        self._seen: dict[tuple[str, object], Event] = {}

    def __enter__(self) -> "TrainingProgress":
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def __call__(self, event: Event) -> None:
        """Show an event; ones that were seen already change nothing."""
        name = str(event["phase"])
        key = (name, event["epoch"])
        if name not in self._phases or self._seen.get(key) == event:
            return
        self._seen[key] = event
        if not self._console.is_terminal:
            self._print(event)
            return
        phase = self._phases[name]
        if name not in self._tasks:
            self._tasks[name] = self._bars.add_task(name, total=max(phase.epochs, 1), status="")
        if "finished" in event:
            self._last[name] = str(event["doing"])
        if event.get("finished"):
            total = max(phase.epochs, 1)
            self._bars.update(self._tasks[name], completed=total, status=str(event["doing"]))
            self._bars.stop_task(self._tasks[name])
            return
        steps = int(str(event.get("steps", 1)))
        within = int(str(event.get("step", 0))) / max(steps, 1)
        epoch = int(str(event["epoch"]))
        doing = event.get("doing") or self._within(name, event, within)
        status = f"epoch {epoch + 1}/{phase.epochs}, {doing}" if phase.epochs else str(doing)
        self._bars.update(self._tasks[name], completed=epoch + within, status=status)

    def _within(self, name: str, event: Event, share: float) -> str:
        """How far an epoch's steps are, and what the epoch before came to."""
        total = int(str(event.get("examples", 0)))
        rate = float(str(event.get("rate", 0)))
        last = f"; {self._last[name]}" if name in self._last else ""
        return f"{round(share * total):,}/{total:,} examples, {rate:,.0f}/s{last}"

    def _print(self, event: Event) -> None:
        if "accuracy" not in str(event.get("doing")):
            return
        phase = self._phases[str(event["phase"])]
        place = f" epoch {int(str(event['epoch'])) + 1}/{phase.epochs}" if phase.epochs else ""
        self._console.print(f"{event['phase']}{place}: {event['doing']}", highlight=False, soft_wrap=True)
