"""A disk that fills up, storage that vanishes, SIGTERM: one line each, and --resume ends the same."""

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cluster.errors import UserError
from pipelines.config import Config
from pipelines.config.load import dump_config
from pipelines.runs.run import run
from pipelines.training.checkpoint import check_whole, latest_checkpoint
from pipelines.training.distributed import mend
from tests.pipelines.training.conftest import QUIET, metrics, small, wait_for
from tests.pipelines.training.test_loop import LOCAL

pytestmark = pytest.mark.xdist_group("ray")

LONG = {"train.epochs": "10", "weight_pruning.retrain_epochs": "0"}
ENGINES = [pytest.param(LOCAL, id="local"), pytest.param({}, id="ray", marks=pytest.mark.slow)]


def job(storage: Path, digits: Path, engine: dict[str, str], **more: str) -> Config:
    """Enough epochs to get in between."""
    return small(storage, digits, **{**engine, **LONG, **more})


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MiB."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)], capture_output=True, text=True
    )
    if done.returncode != 0:
        pytest.skip(f"no file system can be mounted here ({done.stderr.strip()})")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=False)


@contextmanager
def filled(disk: Path, folder: Path, records: int) -> Iterator[None]:
    """Once the run has so many records, the disk is full and stays so."""
    over = threading.Event()

    def fill() -> None:
        wait_for(lambda: len(metrics(folder)) >= records or over.is_set(), f"{records} records")
        with (disk / "ballast").open("wb", buffering=0) as file:
            while not over.is_set():
                try:
                    file.write(bytes(4096))
                except OSError:
                    over.wait(0.002)

    thread = threading.Thread(target=fill)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        (disk / "ballast").unlink()


@pytest.mark.parametrize("engine", ENGINES)
def test_a_full_disk_is_named_and_the_run_resumes(
    engine: dict[str, str], small_disk: Path, tmp_path: Path, digits: Path, request: pytest.FixtureRequest
) -> None:
    if not engine:
        request.getfixturevalue("ray_session")
    config = job(small_disk, digits, engine, name="full")
    with filled(small_disk, small_disk / "full", 3), pytest.raises(UserError) as caught:
        run(config, "train", console=QUIET)
    assert str(caught.value).startswith("storage: ")
    assert "No space left" in str(caught.value)
    assert "--resume" in str(caught.value)
    assert not list(small_disk.rglob(".probe-*"))
    whole = metrics(run(job(tmp_path, digits, engine, name="whole"), "train", console=QUIET))
    assert metrics(run(config, "train", resume=True, console=QUIET)) == whole


@pytest.mark.parametrize("engine", ENGINES)
def test_storage_that_vanishes_is_named_and_the_run_resumes(
    engine: dict[str, str], tmp_path: Path, digits: Path, request: pytest.FixtureRequest
) -> None:
    if not engine:
        request.getfixturevalue("ray_session")
    config = job(tmp_path, digits, engine, name="here")
    folder, away = tmp_path / "here", tmp_path / "away"

    def move() -> None:
        wait_for(lambda: len(metrics(folder)) >= 3, "3 records")
        folder.rename(away)

    thread = threading.Thread(target=move)
    thread.start()
    with pytest.raises(UserError, match=r"storage: .*here has vanished.*--resume"):
        run(config, "train", console=QUIET)
    thread.join()
    if folder.exists():  # what Ray Train has written after the move
        folder.rename(tmp_path / "leftover")
    away.rename(folder)
    whole = metrics(run(job(tmp_path, digits, engine, name="whole"), "train", console=QUIET))
    assert metrics(run(config, "train", resume=True, console=QUIET)) == whole


@pytest.mark.parametrize("engine", ENGINES)
def test_sigterm_ends_with_its_own_code_and_the_run_resumes(
    engine: dict[str, str], tmp_path: Path, digits: Path, request: pytest.FixtureRequest
) -> None:
    config = job(tmp_path, digits, engine, name="taken", **{"train.epochs": "40"})
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(config))
    driver = subprocess.Popen(
        [sys.executable, "-m", "spikeprune", "train", str(path)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={k: v for k, v in os.environ.items() if not k.startswith("RAY_")},
        start_new_session=True,
    )
    wait_for(lambda: len(metrics(tmp_path / "taken")) >= 2 or driver.poll() is not None, "2 records")
    driver.send_signal(signal.SIGTERM)
    _, errors = driver.communicate(timeout=120)
    assert errors.splitlines()[-1] == f"terminated; go on with: spikeprune train {path} --resume"
    assert "Traceback" not in errors
    assert driver.returncode == 143
    done = len(metrics(tmp_path / "taken"))
    assert 2 <= done < 40
    if not engine:
        request.getfixturevalue("ray_session")
    assert len(metrics(run(config, "train", resume=True, console=QUIET))) == 40


def test_sigterm_ends_what_a_script_started_in_the_background(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shells make such commands ignore Ctrl-C."""
    from pipelines.runs import interrupts

    for name in ("_wanted", "_received"):
        monkeypatch.setattr(interrupts, name, False)
    before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        interrupts.end_on_sigterm()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        assert interrupts.was_terminated()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_what_a_full_disk_cut_off_is_not_trusted(tmp_path: Path, digits: Path) -> None:
    """Ray's list of checkpoints in half, and a checkpoint one of whose files is shorter than was written."""
    config = small(tmp_path, digits, **{**LOCAL, "train.epochs": "3"}, name="cut")
    checkpoints = run(config, "train", console=QUIET) / "checkpoints"
    whole = metrics(tmp_path / "cut")
    newest = latest_checkpoint(checkpoints)
    assert newest is not None
    assert newest.name == "00-train-0002"
    weights = newest / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    before = latest_checkpoint(checkpoints)
    assert before is not None
    assert before.name == "00-train-0001"
    state = checkpoints / "checkpoint_manager_snapshot.json"
    state.write_text('{"ray_version": "2.60.0", "checkpoint_results": [{')
    mend(checkpoints)
    assert not state.exists()
    state.write_text("{}")
    mend(checkpoints)
    assert not state.exists(), "the newest is not whole"
    assert metrics(run(config, "train", resume=True, console=QUIET)) == whole
    state.write_text("{}")
    mend(checkpoints)
    assert state.exists()


def test_damage_of_the_same_size_is_seen(tmp_path: Path, digits: Path) -> None:
    """The checkpoint before takes over; with none left, nothing starts again without a word."""
    config = small(tmp_path, digits, **{**LOCAL, "train.epochs": "3"}, name="bad")
    checkpoints = run(config, "train", console=QUIET) / "checkpoints"
    whole = metrics(tmp_path / "bad")

    def damage(name: str, file: str) -> None:
        path = checkpoints / name / file
        data = bytearray(path.read_bytes())
        data[-5] ^= 1
        path.write_bytes(data)

    damage("00-train-0002", "model.safetensors")
    before = latest_checkpoint(checkpoints)
    assert before is not None
    assert before.name == "00-train-0001"
    assert metrics(run(config, "train", resume=True, console=QUIET)) == whole
    damage("00-train-0002", "optimizer.pt")
    damage("00-train-0001", "model.safetensors")
    with pytest.raises(
        UserError,
        match=r"--resume: no checkpoint in .* \(00-train-0001 is damaged, 00-train-0002 is damaged\)",
    ):
        run(config, "train", resume=True, console=QUIET)
    assert metrics(tmp_path / "bad") == whole
    with pytest.raises(UserError, match="--resume: checkpoint 00-train-0002 is damaged"):
        check_whole(checkpoints / "00-train-0002")
    for folder in checkpoints.glob("00-*"):
        shutil.rmtree(folder)
    with pytest.raises(UserError, match="is whole \\(there is none\\); bring one back"):
        run(config, "train", resume=True, console=QUIET)


@pytest.mark.slow
@pytest.mark.parametrize("server", ["gcs_server", "raylet"])
def test_the_end_of_rays_own_processes_is_told_at_once(server: str, tmp_path: Path, digits: Path) -> None:
    import psutil

    path = tmp_path / "config.yaml"
    path.write_text(dump_config(job(tmp_path, digits, {}, name="lost", **{"train.epochs": "60"})))
    driver = subprocess.Popen(
        [sys.executable, "-m", "spikeprune", "train", str(path)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={k: v for k, v in os.environ.items() if not k.startswith("RAY_")},
        start_new_session=True,
    )
    try:
        wait_for(lambda: len(metrics(tmp_path / "lost")) >= 1 or driver.poll() is not None, "a record")
        children = psutil.Process(driver.pid).children(recursive=True)
        next(p for p in children if p.name() == server).kill()
        _, errors = driver.communicate(timeout=30)
    finally:
        driver.kill()
    assert driver.returncode == 3, errors
    assert errors.splitlines()[-1].startswith(f"spikeprune: Ray's {server} on this machine has ended"), errors
    assert "--resume" in errors.splitlines()[-1]
    _, alive = psutil.wait_procs(children, timeout=30)
    assert not alive
