"""A look inside the steps: a chrome trace of a few of them, and what their parts take."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function, schedule

from pipelines.storage.atomic import write_beside, write_json

FOLDER = "profile"
TRACE, STEPS = "trace.json", "steps.json"
PARTS = ("data", "forward", "backward", "optimizer")
"""Names under which `part` marks a step."""
SKIPPED, TRACED = 3, 8  # the first steps load and compile


def part(name: str) -> record_function:
    """Mark a part of a step for the profiler; next to nothing without one."""
    return record_function(name)


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
