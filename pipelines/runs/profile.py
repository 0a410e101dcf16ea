"""Where the seconds of a run go: from the command's first import to the last checkpoint, as one table."""

import os
import time
from pathlib import Path
from typing import Any

from rich.table import Table

from pipelines.runs.run_folder import read_metrics
from pipelines.storage.atomic import read_json, write_beside
from pipelines.training.trace import FOLDER, PARTS, STEPS, TRACE

TABLE = "table.md"
LAPS = {
    "score": "scoring passes",
    "select": "draw, selecting rows",
    "train": "optimiser steps",
    "norm": "batch norm re-estimation",
    "evaluate": "evaluation",
    "diagnose": "diagnosis",
    "table": "scores.parquet",
    "wait": "waiting for scores",
    "barrier": "waiting for other workers",
    "report": "checkpoints",
}


class Startup:
    """Seconds of the command's own process between laps, counted from the process's start."""

    def __init__(self) -> None:
        self._began = self._last = _process_start()
        self.laps: dict[str, float] = {}

    def lap(self, name: str) -> None:
        """Book what passed since the last lap."""
        now = time.time()
        self.laps[name] = self.laps.get(name, 0.0) + now - self._last
        self._last = now

    def total(self) -> float:
        """Seconds since the process started."""
        return time.time() - self._began


def profile_rows(folder: Path, startup: Startup) -> list[tuple[str, float]]:
    """(what, seconds) of a run that was profiled: start, every part of its epochs, and the rest.

    The steps are split into data, forward, backward and optimiser in the proportion that the traced steps
    had.
    """
    records = read_metrics(folder)
    rows = list(startup.laps.items())
    waited = next((seconds for name, seconds in rows if name == TRAINING), 0.0)
    rows = [(name, seconds) for name, seconds in rows if name != TRAINING]
    start = sum(r.get("start_seconds", 0.0) for r in records)
    rows.append(("workers' first fetch", start))
    inside = start
    for lap, title in LAPS.items():
        seconds = sum(r.get("seconds", {}).get(lap, 0.0) for r in records)
        inside += seconds
        if lap == "train":
            rows += _steps(folder, seconds)
        elif seconds:
            rows.append((title, seconds))
    rows.append(("worker processes, weight pruning", max(waited - inside, 0.0)))
    return rows


TRAINING = "training"
"""The lap in which the workers run."""


def _steps(folder: Path, seconds: float) -> list[tuple[str, float]]:
    path = folder / FOLDER / STEPS
    parts: dict[str, Any] = read_json(path) if path.exists() else {}
    known = sum(parts.values())
    if not known:
        return [(LAPS["train"], seconds)]
    return [(f"steps: {name}", seconds * parts.get(name, 0.0) / known) for name in PARTS]


def write_table(folder: Path, startup: Startup) -> Table:
    """Write ``profile/table.md`` and give it for the terminal."""
    rows = profile_rows(folder, startup)
    total = startup.total()
    lines = ["| what | seconds | share |", "|---|---|---|"]
    table = Table("what", "seconds", "share", title="where the time went", title_justify="left")
    for name, seconds in (*rows, ("all", total)):
        cells = (name, f"{seconds:.2f}", f"{seconds / total:.1%}")
        lines.append(f"| {' | '.join(cells)} |")
        table.add_row(*cells)
    text = "\n".join(lines) + "\n"
    write_beside(folder / FOLDER / TABLE, lambda p: p.write_text(text))
    return table


def _process_start() -> float:
    """Unix time at which this process started, where the system tells; else now."""
    try:
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        uptime = float(Path("/proc/uptime").read_text().split()[0])
    except (OSError, ValueError):
        return time.time()
    return time.time() - uptime + ticks / os.sysconf("SC_CLK_TCK")


def told(folder: Path) -> str:
    """Where the trace lies."""
    return f"trace: {folder / FOLDER / TRACE} (open it in chrome://tracing or ui.perfetto.dev)"
