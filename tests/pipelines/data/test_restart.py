"""Killed ingestions go on where they were: no half shard, no row twice, no dataset before it is whole."""

import hashlib
import io
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from cluster.errors import UserError
from pipelines.data.ingest import Writing, ingest
from pipelines.data.manifest import verify
from pipelines.data.scan import read_split
from pipelines.data.shards import OnBad
from pipelines.data.sources.base import Options
from tests.pipelines.data.writers import aedat2, class_folders, random_recording
from tests.pipelines.training.conftest import kill_process

pytestmark = pytest.mark.xdist_group("ray")

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
import os, signal, sys
from pathlib import Path
from pipelines.data import shards
from pipelines.data.ingest import Writing, ingest

workers, source, out, after = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), int(sys.argv[4])
staging, write_json = out.with_name(f".{out.name}.ingest"), shards.write_json

def write_or_die(*args, **options):
    if len(list(staging.glob("t*-*.json"))) == after:  # the next shard's rows are written, its report is not
        os.kill(os.getpid(), signal.SIGKILL)
    write_json(*args, **options)

shards.write_json = write_or_die
ingest("numpy", out, source, writing=Writing(workers=workers, shard_rows=500, group_rows=100))
"""


def killed_after(shards: int, arrays: Path, out: Path) -> int:
    """Kill a writing process while it writes the shard after so many; how many were finished then."""
    process = subprocess.run([sys.executable, "-c", START, "1", arrays, out, str(shards)], check=False)
    assert process.returncode == -signal.SIGKILL
    assert not out.exists()
    return len(list(out.with_name(f".{out.name}.ingest").glob("t*-*.json")))


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
    assert done == [1, 4, 8]
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
        if done >= 2 * SHARD and not killed and (process := kill_process("ray::write_shard")):
            killed.append(process)

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


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two classes of images, of which 25 bytes are no image."""
    files = {}
    for k in range(20):
        buffer = io.BytesIO()
        Image.fromarray(np.full((8, 8), k, np.uint8)).save(buffer, "PNG")
        files[f"{'ab'[k % 2]}/{k}.png"] = buffer.getvalue()
    return class_folders(tmp_path / "in", {**files, "a/bad.png": b"x" * 25})


def test_the_same_command_finds_the_dataset_and_any_other_is_refused(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"

    def again(source: Path = photos, on_bad: OnBad = "skip", **options: Any) -> dict[str, Any]:
        size, rows = options.pop("size", None), options.pop("shard_rows", None)
        writing = Writing(workers=1, size=size, on_bad=on_bad, shard_rows=rows)
        return ingest("imagefolder", out, source, options=Options(**options), writing=writing)

    manifest = again()
    told = (out / "ingested.json").read_text()
    assert str(photos.parent) not in told, "whoever gets the dataset learns no paths of ours"
    before = contents(out)
    assert again() == manifest
    other = shutil.copytree(photos, tmp_path / "other")
    (other / "b" / "more.png").write_bytes((photos / "a" / "0.png").read_bytes())
    for changed, line in (
        ({"size": (4,)}, "--size was not given, is 4"),
        ({"split_seed": 1}, "--split-seed was 0, is 1"),
        ({"test_share": 0.5}, "--test-share was 0.1, is 0.5"),
        ({"on_bad": "refuse"}, "--on-bad was skip, is refuse"),
        ({"shard_rows": 4}, "--shard-rows was not given, is 4"),
        ({"source": other}, "its originals are other files now, or newer ones"),
    ):
        with pytest.raises(UserError) as caught:
            again(**changed)
        assert f"holds a dataset that was made otherwise ({line}" in str(caught.value)
    (photos / "a" / "20.png").write_bytes((photos / "a" / "0.png").read_bytes())
    with pytest.raises(UserError, match=r"\(its originals are other files now, or newer ones\)"):
        again()
    (photos / "a" / "20.png").unlink()
    moved = photos.rename(tmp_path / "moved")
    assert again(moved) == manifest  # the same files elsewhere
    assert again() == manifest  # gone, but named as before
    assert contents(out) == before
    (out / "ingested.json").unlink()  # a dataset of before there were such records
    assert again(split_seed=1) == manifest


def test_frames_of_another_dataset_are_refused(tmp_path: Path) -> None:
    options, alone = Options(sensor=(128, 128)), Writing(workers=1)
    for name, seed in (("one", 0), ("two", 9)):
        files = {
            f"{split}/{k}/0.aedat": aedat2(random_recording(seed + k, 30))
            for split in ("train", "test")
            for k in range(2)
        }
        class_folders(tmp_path / f"{name}-in", files)
        ingest("aedat", tmp_path / name, tmp_path / f"{name}-in", options=options, writing=alone)
    frames = Writing(workers=1, T=2, size=(8, 8))
    made = ingest("parquet", tmp_path / "frames", tmp_path / "one", writing=frames)
    assert ingest("parquet", tmp_path / "frames", tmp_path / "one", writing=frames) == made
    with pytest.raises(UserError, match="its originals are other files now"):
        ingest("parquet", tmp_path / "frames", tmp_path / "two", writing=frames)


def test_a_killed_ingestion_does_not_go_on_with_another_split(photos: Path, tmp_path: Path) -> None:
    """Refused for its bad file, it leaves its shards for the next start."""
    out, small = tmp_path / "out", Writing(workers=1, shard_rows=4)
    with pytest.raises(UserError, match="1 of 21 examples are bad"):
        ingest("imagefolder", out, photos, writing=small)
    options, skip = Options(test_share=0.5), replace(small, on_bad="skip")
    ingest("imagefolder", out, photos, options=options, writing=skip)
    ingest("imagefolder", tmp_path / "fresh", photos, options=options, writing=skip)
    assert contents(out) == contents(tmp_path / "fresh")


def test_two_at_once_are_refused(arrays: Path, tmp_path: Path) -> None:
    import fcntl

    (tmp_path / ".out.ingest").mkdir()
    with (tmp_path / ".out.ingest" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="is being written by another process"):
            ingest("numpy", tmp_path / "out", arrays)


def test_other_files_are_never_overwritten(arrays: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"^--output: .* holds other files, or is no folder"):
        ingest("numpy", tmp_path, arrays)
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]
