"""A small job on the digits, run once undisturbed, that others are compared with."""

import json
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from pipelines.config import Config
from pipelines.config.load import load_config
from pipelines.runs.run import run

QUIET = Console(quiet=True)
SMALL = {
    "cluster.engine": "ray",
    "cluster.workers": "2",
    "model.hidden": "[48]",
    "train.epochs": "4",
    "train.bn_examples": "256",
    "weight_pruning.retrain_epochs": "2",
    "weight_pruning.calibration_examples": "100",
    "data_pruning.rescore_every": "2",
}


def small(folder: Path, digits: Path, **overrides: str) -> Config:
    """The job's config with its runs below ``folder``."""
    return load_config(None, {**SMALL, "data.path": str(digits), "storage": str(folder), **overrides})


def metrics(folder: Path) -> list[dict[str, Any]]:
    """All records without what differs from run to run: times."""
    path = folder / "metrics.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [{k: v for k, v in r.items() if "seconds" not in k and k != "speed"} for r in records]


def wait_for(condition: Callable[[], bool], what: str, seconds: float = 240) -> None:
    """Until ``condition`` holds; fails after ``seconds``."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what} within {seconds} s"
        time.sleep(0.02)


def kill_process(name: str) -> int | None:
    """SIGKILL a process below this one whose command line holds ``name``; its id, None if there is none."""
    import psutil
    import ray  # noqa: F401  # brings psutil

    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if name in "\0".join([*process.cmdline(), ""]):
                process.kill()
                return process.pid
    return None


def kill_after(folder: Path, records: int, name: str) -> threading.Thread:
    """A thread that kills a process once the run in ``folder`` has so many records."""

    def kill() -> None:
        wait_for(lambda: len(metrics(folder)) >= records, f"{records} records")
        assert kill_process(name), f"no process {name} to kill"

    thread = threading.Thread(target=kill)
    thread.start()
    return thread


@pytest.fixture(scope="session")
def listeners() -> set[tuple[str, str]]:
    """Addresses on which processes of this one listened while the job ran, with the processes' names."""
    return set()


@pytest.fixture(scope="session")
def undisturbed(
    tmp_path_factory: pytest.TempPathFactory, digits: Path, ray_session: None, listeners: set[tuple[str, str]]
) -> Path:
    """The job's run folder."""
    config = small(tmp_path_factory.mktemp("runs"), digits, name="undisturbed")
    stop = threading.Event()
    watcher = threading.Thread(target=_watch_sockets, args=(listeners, stop))
    watcher.start()
    try:
        return run(config, console=QUIET)
    finally:
        stop.set()
        watcher.join()


def _watch_sockets(found: set[tuple[str, str]], stop: threading.Event) -> None:
    import psutil
    import ray  # noqa: F401  # brings psutil

    while not stop.wait(0.5):
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):
                for c in process.net_connections(kind="tcp"):
                    if c.status == psutil.CONN_LISTEN:
                        found.add((c.laddr.ip, process.name()))
