"""Where the seconds of a run go: a trace of a few steps, and one table from the first import to the end."""

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch.profiler import ProfilerActivity, profile, schedule

from pipelines.storage.atomic import read_json, write_beside, write_json

FOLDER = "profile"
TRACE, STEPS, TABLE = "trace.json", "steps.json", "table.md"
PARTS = ("data", "forward", "backward", "optimizer")
"""What a step marks with `torch.profiler.record_function`, at next to no cost without a profiler."""
SKIPPED, TRACED = 3, 8  # the first steps load and compile
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
TRAINING = "training"
"""The lap in which the workers run."""


@contextmanager
def traced(folder: Path, *, on: bool, cuda: bool) -> Iterator[Any]:
    """Profile steps 3 to 11 of what runs within; yields a function to call after every step.

    Writes ``profile/trace.json`` (for chrome://tracing or Perfetto) and ``profile/steps.json`` (seconds per
    step of every part, wall time on the CPU's side) into ``folder`` as soon as these steps are over.
    """
    if not on:
        yield lambda: None
        return
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]

    def write(finished: Any) -> None:
        to = folder / FOLDER
        write_beside(to / TRACE, lambda p: finished.export_chrome_trace(str(p)))
        seconds = {e.key: e.cpu_time_total / 1e6 / TRACED for e in finished.key_averages() if e.key in PARTS}
        write_json(to / STEPS, seconds)

    plan = schedule(wait=SKIPPED - 1, warmup=1, active=TRACED, repeat=1)
    with profile(activities=activities, schedule=plan, on_trace_ready=write, acc_events=True) as profiler:

        def step() -> None:
            if cuda:
                torch.cuda.synchronize()
            profiler.step()

        yield step


class Clock:
    """Wall and CPU seconds of this process between laps; from its start where ``whole``."""

    def __init__(self, *, whole: bool = False) -> None:
        self._last = (time.perf_counter() - (_process_seconds() if whole else 0), time.process_time())
        self._began = self._last[0]
        self.laps: dict[str, tuple[float, float]] = {}

    def lap(self, name: str) -> None:
        """Book the time since the last lap under ``name``, beside what is there."""
        now = (time.perf_counter(), time.process_time())
        wall, cpu = self.laps.get(name, (0.0, 0.0))
        self.laps[name] = (wall + now[0] - self._last[0], cpu + now[1] - self._last[1])
        self._last = now

    def total(self) -> float:
        """Wall seconds since it began."""
        return time.perf_counter() - self._began

    def record(self) -> dict[str, dict[str, float]]:
        """All laps and their total, to milliseconds, as ``seconds`` and ``cpu_seconds``."""
        laps = {**self.laps, "total": tuple(map(sum, zip(*self.laps.values(), strict=True)))}
        return {
            name: {lap: round(times[i], 3) for lap, times in laps.items()}
            for i, name in enumerate(("seconds", "cpu_seconds"))
        }


def _rows(folder: Path, clock: Clock, records: Sequence[dict[str, Any]]) -> list[tuple[str, float]]:
    """(what, seconds) of a run that was profiled: start, every part of its epochs, and the rest.

    The steps are split into data, forward, backward and optimiser in the proportion that the traced steps
    had.
    """
    waited = clock.laps.get(TRAINING, (0.0, 0.0))[0]
    rows = [(name, wall) for name, (wall, _) in clock.laps.items() if name != TRAINING]
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


def _steps(folder: Path, seconds: float) -> list[tuple[str, float]]:
    path = folder / FOLDER / STEPS
    parts: dict[str, Any] = read_json(path) if path.exists() else {}
    known = sum(parts.values())
    if not known:
        return [(LAPS["train"], seconds)]
    return [(f"steps: {name}", seconds * parts.get(name, 0.0) / known) for name in PARTS]


def write_table(folder: Path, clock: Clock, records: Sequence[dict[str, Any]]) -> Table:
    """Write ``profile/table.md`` and give it for the terminal."""
    total = clock.total()
    lines = ["| what | seconds | share |", "|---|---|---|"]
    table = Table("what", "seconds", "share", title="where the time went", title_justify="left")
    for name, seconds in (*_rows(folder, clock, records), ("all", total)):
        cells = (name, f"{seconds:.2f}", f"{seconds / total:.1%}")
        lines.append(f"| {' | '.join(cells)} |")
        table.add_row(*cells)
    write_beside(folder / FOLDER / TABLE, lambda p: p.write_text("\n".join(lines) + "\n"))
    return table


def _process_seconds() -> float:
    """Seconds since this process started, where the system tells; else 0."""
    try:
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        uptime = float(Path("/proc/uptime").read_text().split()[0])
    except (OSError, ValueError):
        return 0.0
    return uptime - ticks / os.sysconf("SC_CLK_TCK")
