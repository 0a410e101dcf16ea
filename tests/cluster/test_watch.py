"""The end of this process's own children is noticed."""

import subprocess
import threading
from pathlib import Path

from cluster import watch
from cluster.watch import SERVERS, servers


def test_a_server_that_ends_is_told_by_name(tmp_path, monkeypatch):  # type: ignore[no-untyped-def]
    """Real processes with the servers' names, whether they are reaped or not."""
    monkeypatch.setattr(watch, "SECONDS", 0.02)
    started = {}
    for name in SERVERS:
        (tmp_path / name).symlink_to("/bin/sleep")
        started[name] = subprocess.Popen([str(tmp_path / name), "60"])
    other = subprocess.Popen(["/bin/sleep", "60"])
    try:
        found = servers()
        assert {p.pid: name for name, p in started.items()} == {k: found[k] for k in found}
        told, stop = [], threading.Event()
        thread = threading.Thread(target=watch.watch, args=((), told.append, stop))
        thread.start()
        thread.join(0.2)
        assert thread.is_alive()
        started["gcs_server"].kill()
        thread.join(10)
        assert told == ["gcs_server"]
        stop.set()
        watch.watch((), told.append, stop)
        assert told == ["gcs_server"], "told to stop, it tells no more"
    finally:
        for process in (*started.values(), other):
            process.kill()
            process.wait()


def test_what_the_other_server_has_started_ends_too(tmp_path, monkeypatch):  # type: ignore[no-untyped-def]
    monkeypatch.setattr(watch, "SECONDS", 0.02)
    (tmp_path / "raylet").symlink_to("/bin/bash")
    command = "/bin/sleep 60 & echo $!; wait"
    raylet = subprocess.Popen([str(tmp_path / "raylet"), "-c", command], stdout=subprocess.PIPE, text=True)
    (tmp_path / "gcs_server").symlink_to("/bin/true")
    gone = subprocess.Popen([str(tmp_path / "gcs_server")])
    try:
        assert raylet.stdout is not None
        child = Path(f"/proc/{int(raylet.stdout.readline())}/stat")
        assert child.exists()
        told: list[str] = []
        watch.watch((), told.append, threading.Event())
        assert told == ["gcs_server"]
        assert raylet.wait(10) is not None  # it had nothing left to wait for
        assert not child.exists()
    finally:
        raylet.kill()
        gone.wait()


def test_a_server_that_starts_later_is_watched_too(tmp_path, monkeypatch):  # type: ignore[no-untyped-def]
    monkeypatch.setattr(watch, "SECONDS", 0.02)
    told: list[str] = []
    thread = threading.Thread(target=watch.watch, args=(servers(), told.append, threading.Event()))
    thread.start()
    (tmp_path / "gcs_server").symlink_to("/bin/sleep")
    late = subprocess.Popen([str(tmp_path / "gcs_server"), "60"])
    thread.join(0.3)
    assert thread.is_alive()
    late.kill()
    thread.join(10)
    late.wait()
    assert told == ["gcs_server"]
