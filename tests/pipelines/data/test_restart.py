"""Killed ingestions go on where they were: no half shard, no row twice, no dataset before it is whole."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipelines.data.dataset import read_split
from pipelines.data.ingest import Writing, ingest
from pipelines.data.verify import verify
from pipelines.errors import UserError

ROWS, SHARD = 6000, 500


@pytest.fixture(scope="module")
def arrays(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("arrays")
    rng = np.random.default_rng(0)
    for split, n in (("train", ROWS), ("test", SHARD)):
        np.save(folder / f"{split}_x.npy", rng.integers(0, 256, (n, 3, 16, 16)).astype(np.uint8))
        np.save(folder / f"{split}_y.npy", np.arange(n) % 10)
    return folder


@pytest.fixture(scope="module")
def whole(arrays: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "out"
    ingest("numpy", out, arrays, writing=Writing(workers=1, shard_rows=SHARD, group_rows=100))
    return out


def contents(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}


START = """
import sys
from pathlib import Path
from pipelines.data.ingest import Writing, ingest
workers, source, out = int(sys.argv[1]), sys.argv[2], sys.argv[3]
ingest("numpy", Path(out), source, writing=Writing(workers=workers, shard_rows=500, group_rows=100))
"""


def killed_after(shards: int, arrays: Path, out: Path) -> int:
    """Kill a writing process once so many shards are there; how many were finished then."""
    process = subprocess.Popen([sys.executable, "-c", START, "1", arrays, out])
    staging = out.with_name(f".{out.name}.ingest")
    deadline = time.monotonic() + 120
    while len(list(staging.glob("t*-*.json"))) < shards:
        assert process.poll() is None, "it was done before it could be killed"
        assert time.monotonic() < deadline
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not out.exists()
    return len(list(staging.glob("t*-*.json")))


def test_killed_at_several_places(arrays: Path, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    staging = out.with_name(".out.ingest")
    done: list[int] = []
    for shards in (1, 4, 8):
        done.append(killed_after(shards, arrays, out))
        for file in staging.glob("t*-*.parquet"):  # whatever has its name is whole
            assert pq.read_metadata(file).num_rows == SHARD
    kept = {p: p.stat().st_mtime_ns for p in staging.glob("t*-*.parquet") if p.with_suffix(".json").exists()}
    seen: list[tuple[int, int]] = []
    writing = Writing(workers=1, shard_rows=SHARD, group_rows=100)
    ingest("numpy", out, arrays, writing=writing, told=lambda d, t: seen.append((d, t)))
    assert seen[0] == (done[-1] * SHARD, ROWS + SHARD)  # what was there is not written again
    assert {p.name: p.stat().st_mtime_ns for p in out.glob("*.parquet") if staging / p.name in kept} == {
        p.name: t for p, t in kept.items()
    }
    assert contents(out) == contents(whole)
    assert not staging.exists()
    verify(out)


def test_one_process_and_ray_write_the_same(
    arrays: Path, whole: Path, tmp_path: Path, ray_session: None
) -> None:
    writing = Writing(workers=3, shard_rows=SHARD, group_rows=100)
    ingest("numpy", tmp_path / "out", arrays, writing=writing)
    assert contents(tmp_path / "out") == contents(whole)


def test_a_killed_ray_worker_is_made_good(
    arrays: Path, whole: Path, tmp_path: Path, ray_session: None
) -> None:
    out = tmp_path / "out"
    killed: list[int] = []

    def kill(done: int, total: int) -> None:
        """As soon as two shards are there, a process that writes another one."""
        if done >= 2 * SHARD and not killed:
            for entry in Path("/proc").iterdir():
                if entry.name.isdigit() and b"ray::write_shard" in _command(entry):
                    os.kill(int(entry.name), signal.SIGKILL)
                    killed.append(int(entry.name))
                    return

    ingest("numpy", out, arrays, writing=Writing(workers=2, shard_rows=SHARD, group_rows=100), told=kill)
    assert contents(out) == contents(whole)
    assert killed or ROWS / SHARD < 4


def test_other_arguments_start_anew(arrays: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    killed_after(3, arrays, out)
    ingest("numpy", out, arrays, writing=Writing(workers=1, shard_rows=1000))
    manifest = verify(out)
    assert [f["rows"] for f in manifest["splits"]["train"]["files"]] == [1000] * 6
    rows = np.concatenate([pq.read_table(f)["id"].to_numpy() for f in read_split(out, "train").files])
    assert np.array_equal(rows, np.arange(ROWS))


def test_two_at_once_are_refused(arrays: Path, tmp_path: Path) -> None:
    import fcntl

    (tmp_path / ".out.ingest").mkdir()
    with (tmp_path / ".out.ingest" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="is being written by another process"):
            ingest("numpy", tmp_path / "out", arrays)


def test_other_files_are_never_overwritten(arrays: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="cannot be written: it is no folder or holds other files"):
        ingest("numpy", tmp_path, arrays)
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


def _command(process: Path) -> bytes:
    try:
        return (process / "cmdline").read_bytes()
    except OSError:
        return b""
