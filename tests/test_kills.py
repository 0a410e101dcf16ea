"""Random kills: whatever process of a run dies, and whenever, the run ends or resumes to the same figures.

A kill is made from a seed, an engine and a number alone. More of them, or one again, with what happened:
``KILLS=0:30 pytest -m slow -rP tests/test_kills.py [-k ray-17]``.
"""

import importlib
import os
import random
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import ray  # noqa: F401  # brings psutil

from pipelines.config.load import dump_config
from tests.pipelines.training.conftest import metrics, small, wait_for

psutil = importlib.import_module("psutil")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SEED, COUNT = map(int, os.environ.get("KILLS", "0:4").split(":"))
ENGINES = {
    "local": {"cluster.engine": "local", "cluster.workers": "1"},
    "ray": {"cluster.engine": "ray", "cluster.workers": "2"},
}
DRIVER, SERVERS = "the command itself", ("raylet", "gcs_server")
VICTIMS = {
    "local": (DRIVER,),
    "ray": (DRIVER, "ray::RayTrainWorker", "ray::TableActor", "ray::TrainController", *SERVERS),
}
PAUSES_S = {"local": 0.4, "ray": 2.0}  # at most, from a record to the kill
START_S = 5.0  # at most, from the start to a kill before the first record
SERVERS_S = 30.0  # in which a command ends whose Ray has gone
GONE_S = 180.0  # in which all has ended: Ray's agents wait a minute for a head that is gone


class Command:
    """``spikeprune run CONFIG`` in a process of its own, and all processes that come of it."""

    def __init__(self, folder: Path, config: Path, *more: str) -> None:
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, "-m", "spikeprune", "run", str(config), *more],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env={k: v for k, v in os.environ.items() if not k.startswith("RAY_")},
            start_new_session=True,
        )
        self._seen: set[Any] = set()
        self._over = threading.Event()
        threading.Thread(target=self._look, daemon=True).start()

    def _look(self) -> None:
        """Keep every descendant, as those whose parent dies are nobody's any more."""
        with suppress(psutil.Error):
            command = psutil.Process(self.process.pid)
            while not self._over.wait(0.1):
                self._seen.update(command.children(recursive=True))

    def left(self) -> list[Any]:
        """Descendants that still run."""
        found = []
        for process in list(self._seen):
            with suppress(psutil.Error):
                if process.is_running() and process.status() != "zombie":
                    found.append(process)
        return found

    def kill(self, victim: str) -> bool:
        """SIGKILL the first process of that name; whether there is one."""
        if victim == DRIVER:
            self.process.kill()
            return True
        for process in self.left():
            with suppress(psutil.Error):  # it has ended meanwhile
                if victim in " ".join([process.name(), *process.cmdline()]):
                    process.kill()
                    return True
        return False

    def end(self) -> str:
        """Wait for it, and for all that it started; what it wrote to stderr."""
        _, errors = self.process.communicate(timeout=300)
        wait_for(lambda: not self.left(), "no process is left", GONE_S)
        self._over.set()
        return errors


def written(engine: str, folder: Path, digits: Path) -> Path:
    """The config of a run ``folder``/run."""
    path = folder / "config.yaml"
    path.write_text(dump_config(small(folder, digits, **ENGINES[engine], name="run")))
    return path


@pytest.fixture(scope="module", params=ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
    """What trains."""
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def whole(engine: str, tmp_path_factory: pytest.TempPathFactory, digits: Path) -> list[dict[str, Any]]:
    """Records of a run that nobody disturbs."""
    folder = tmp_path_factory.mktemp(engine)
    command = Command(folder / "run", written(engine, folder, digits))
    assert "Traceback" not in command.end()
    assert command.process.returncode == 0
    return metrics(folder / "run")


@pytest.mark.parametrize("number", range(COUNT))
def test_a_run_that_loses_any_process_ends_the_same(
    engine: str, number: int, whole: list[dict[str, Any]], tmp_path: Path, digits: Path
) -> None:
    chance = random.Random(f"{SEED}-{engine}-{number}")
    victim = VICTIMS[engine][number % len(VICTIMS[engine])]
    records = chance.randrange(len(whole))
    pause = chance.uniform(0, PAUSES_S[engine] if records else START_S)
    print(f"{engine} {number}: {victim}, {pause:.2f} s after record {records}")
    config = written(engine, tmp_path, digits)
    command = Command(tmp_path / "run", config)

    def ended() -> bool:
        return command.process.poll() is not None

    wait_for(lambda: ended() or len(metrics(command.folder)) >= records, f"{records} records")
    time.sleep(pause)
    wait_for(lambda: ended() or command.kill(victim), f"{victim} is there")
    killed = time.monotonic()
    errors = command.end()
    print(f"ended with {command.process.returncode} after {time.monotonic() - killed:.1f} s: {errors!r}")

    assert "Traceback" not in errors
    if command.process.returncode != 0:
        if victim in SERVERS:
            assert time.monotonic() - killed < SERVERS_S
        if victim != DRIVER:
            assert "--resume" in errors.splitlines()[-1]
        again = Command(tmp_path / "run", config, "--resume")
        assert "Traceback" not in again.end()
        assert again.process.returncode == 0
    assert metrics(command.folder) == whole
