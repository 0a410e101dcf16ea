"""One process at a time works on a run or search: real processes, killed and forked."""

import errno
import fcntl
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.errors import UserError
from pipelines.config.load import load_config
from pipelines.runs.run_folder import create_run
from pipelines.storage.sync import run_lock

HOLDER = """
import os, subprocess, sys, time
from pathlib import Path
from pipelines.storage.sync import run_lock

with run_lock(Path(sys.argv[1]), "run", "runs"):
    started = subprocess.Popen(["sleep", "60"], close_fds=False, stdout=subprocess.DEVNULL).pid
    forked = os.fork()
    if not forked:
        os.write(1, b"forked\\n")
        time.sleep(60)
    os.write(1, f"{started} {forked}\\n".encode())
    time.sleep(60)
"""


def test_a_killed_process_holds_nothing_though_its_children_live_on(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "mine"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder)], stdout=subprocess.PIPE, text=True, cwd=Path.cwd()
    )
    assert holder.stdout is not None
    lines = {holder.stdout.readline().strip() for _ in range(2)}
    children = [int(pid) for pid in (lines - {"forked"}).pop().split()]
    by = f"by another process (process {holder.pid} on {socket.gethostname()})"
    try:
        with pytest.raises(UserError) as caught, run_lock(folder, "run", "runs"):
            pass
        assert str(caught.value) == (
            f"name: run 'mine' in runs is being trained {by}; wait for it, or choose another --name"
        )
        with run_lock(folder.with_name("other"), "run", "runs"):
            pass
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        for child in children:
            os.kill(child, 0)
        for _ in range(2):
            with run_lock(folder, "run", "runs"):
                pass
    finally:
        holder.kill()
        for child in children:
            os.kill(child, signal.SIGKILL)
    assert not list(folder.parent.iterdir()), "nothing is left behind"


def test_a_filesystem_without_locks_is_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def flock(file: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    with run_lock(tmp_path / "mine", "run", "runs"):
        assert "nothing keeps a second process away here (No locks available)" in caplog.text


def test_storage_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    line = r"^storage: .*/file cannot be written"
    with pytest.raises(UserError, match=line), run_lock(tmp_path / "file" / "mine", "run", "runs"):
        pass


def test_a_run_that_has_appeared_meanwhile_is_kept(tmp_path: Path) -> None:
    first = load_config(None, {"name": "a", "data.path": str(tmp_path), "storage": str(tmp_path / "runs")})
    create_run(first, ["first"], new=True)
    text = (tmp_path / "runs" / "a" / "config.yaml").read_text()
    with pytest.raises(UserError, match=r"^name: run 'a' exists in .*; --resume continues it"):
        create_run(first, ["second"], new=True)
    create_run(first, ["third"])
    assert (tmp_path / "runs" / "a" / "config.yaml").read_text() == text
