"""Whatever is wrong with a source is named and counted, and nothing of it is published."""

import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from cluster.errors import UserError
from pipelines.data.events import Frames, Sensor
from pipelines.data.ingest import Writing, ingest
from pipelines.data.manifest import verify
from pipelines.data.scan import read_split
from pipelines.data.shards import Format, Shard, write_shard
from pipelines.data.sources import SOURCES
from pipelines.data.sources.base import Options, Split, _read_framed, split_of_files
from pipelines.data.sources.recordings import _read_spikes
from pipelines.data.sources.tables import Columns
from pipelines.storage.paths import Folder
from tests.pipelines.data import writers
from tests.pipelines.data.writers import class_folders, random_recording

FLOATS = io.BytesIO()
Image.fromarray(np.random.default_rng(0).random((24, 24), np.float32)).save(FLOATS, "TIFF")

ALONE = Writing(workers=1, shard_rows=8)


def photo(seed: int, kind: str = "JPEG") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (24, 24, 3)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def good_images(root: Path, n: int = 20) -> dict[str, bytes]:
    return {f"{split}/{k}/{i}.jpg": photo(i) for split in ("train", "test") for k in "ab" for i in range(n)}


@pytest.mark.parametrize(
    ("name", "data", "what"),
    [
        ("cut.jpg", photo(1)[:-200], "image file is truncated"),
        ("empty.jpg", b"", "zero bytes"),
        ("magic.jpg", b"no image at all", "cannot identify image file"),
        ("cut.png", photo(1, "PNG")[:400], ""),
        (
            "float.tif",
            FLOATS.getvalue(),
            "TIFF of mode F does not tell the range of its values; save it with 8",
        ),
        ("size.png", None, "is 9x7, the first is 24x24; --size brings all to one"),
    ],
)
def test_bad_images(tmp_path: Path, name: str, data: bytes | None, what: str) -> None:
    if data is None:
        buffer = io.BytesIO()
        Image.new("RGB", (7, 9)).save(buffer, "PNG")
        data = buffer.getvalue()
    class_folders(tmp_path / "in", {**good_images(tmp_path), f"train/a/{name}": data})
    out = tmp_path / "out"
    with pytest.raises(UserError) as caught:
        ingest("imagefolder", out, tmp_path / "in", writing=ALONE)
    line = str(caught.value)
    assert f"1 of 81 examples are bad, nothing is published (train/a/{name}: " in line
    assert what in line
    assert "\n" not in line
    assert not out.exists()
    manifest = ingest(
        "imagefolder", out, tmp_path / "in", writing=Writing(workers=1, shard_rows=8, on_bad="skip")
    )
    assert manifest["bad"]["rows"] == 1
    assert manifest["bad"]["skipped"][0]["path"] == f"train/a/{name}"
    assert manifest["splits"]["train"]["rows"] == 40
    verify(out)  # ids are dense although a row is left out
    assert read_split(out, "train").ids.end == 40


def test_a_mended_source_goes_on(tmp_path: Path) -> None:
    files = good_images(tmp_path)
    class_folders(tmp_path / "in", {**files, "train/a/3.jpg": b"broken"})
    with pytest.raises(UserError, match=r"1 of 80 examples are bad"):
        ingest("imagefolder", tmp_path / "out", tmp_path / "in", writing=ALONE)
    named = json.loads((tmp_path / ".out.ingest" / "bad.json").read_text())
    assert [b["path"] for b in named] == ["train/a/3.jpg"]
    class_folders(tmp_path / "in", {"train/a/3.jpg": files["train/a/3.jpg"]})
    ingest("imagefolder", tmp_path / "out", tmp_path / "in", writing=ALONE)
    assert verify(tmp_path / "out")["splits"]["train"]["rows"] == 40
    assert not (tmp_path / ".out.ingest").exists()


def test_many_bad_rows_are_counted_and_whole_shards_may_go(tmp_path: Path) -> None:
    files = good_images(tmp_path)
    broken = {p: b"x" for p in files if p.startswith("train")}
    kept = dict(list(broken.items())[-3:])
    class_folders(tmp_path / "in", {**files, **broken, **{p: files[p] for p in kept}})
    skip = Writing(workers=1, shard_rows=8, on_bad="skip")
    manifest = ingest("imagefolder", tmp_path / "out", tmp_path / "in", writing=skip)
    assert manifest["bad"]["rows"] == 37
    assert len(manifest["splits"]["train"]["files"]) <= 3
    verify(tmp_path / "out")
    rows = [r for f in read_split(tmp_path / "out", "train").files for r in pq.read_table(f).to_pylist()]
    assert {r["image"]["path"] for r in rows} == set(kept)


EVENTS = {
    "cut.aedat": (writers.aedat2(random_recording(0))[:-3], "is cut short"),
    "empty.aedat": (b"", "zero bytes"),
    "magic.aedat": (b"#!AER-DAT1.0\r\n", "is not AEDAT 2.0, 3.1 or 4.0"),
    "none.aedat": (writers.aedat2(random_recording(0, 0)), "empty recording"),
    "cut3.aedat": (writers.aedat31(random_recording(0))[:-3], "is cut short within a packet"),
    "off.aedat": (
        writers.aedat31(random_recording(0)._replace(x=np.full(400, 300))),
        "400 of 400 events off the 128x128 sensor (the first at x 300",
    ),
    "unsorted.aedat": (
        writers.aedat2(random_recording(0)._replace(t=np.arange(400)[::-1])),
        "unsorted times (399 of 400 events are earlier than the one before)",
    ),
}


@pytest.mark.parametrize("name", EVENTS)
def test_bad_recordings(tmp_path: Path, name: str) -> None:
    data, what = EVENTS[name]
    good = {
        f"{s}/{k}/{i}.aedat": writers.aedat2(random_recording(i))
        for s in ("train", "test")
        for k in "ab"
        for i in range(3)
    }
    class_folders(tmp_path / "in", {**good, f"train/a/{name}": data})
    options = Options(sensor=(128, 128))
    with pytest.raises(UserError) as caught:
        ingest("aedat", tmp_path / "out", tmp_path / "in", options=options, writing=ALONE)
    assert f"1 of 13 examples are bad, nothing is published (train/a/{name}: " in str(caught.value)
    assert what in str(caught.value)
    assert not (tmp_path / "out").exists()
    skip = Writing(workers=1, on_bad="skip")
    manifest = ingest("aedat", tmp_path / "out", tmp_path / "in", options=options, writing=skip)
    assert manifest["splits"]["train"]["rows"] == 6
    verify(tmp_path / "out")


def test_a_class_folder_without_files(tmp_path: Path) -> None:
    class_folders(tmp_path / "in", good_images(tmp_path, 4))
    (tmp_path / "in" / "train" / "empty").mkdir()
    with pytest.raises(UserError, match=r"\(train/empty: class folder without files \*\."):
        ingest("imagefolder", tmp_path / "out", tmp_path / "in", writing=ALONE)
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every folder")
def test_an_unreadable_folder(tmp_path: Path) -> None:
    class_folders(tmp_path / "in", good_images(tmp_path, 4))
    (tmp_path / "in" / "train" / "a").chmod(0)
    try:
        with pytest.raises(UserError, match=r"\(train/a: "):
            ingest("imagefolder", tmp_path / "out", tmp_path / "in", writing=ALONE)
    finally:
        (tmp_path / "in" / "train" / "a").chmod(0o755)


UNREADABLE = """
import os, sys
from pathlib import Path
from pipelines.data.ingest import Writing, ingest
from cluster.errors import UserError
ingest("imagefolder", Path(sys.argv[2]).with_name("before"), sys.argv[1])  # imports all there is to import
os.setgid(65534); os.setuid(65534)
try:
    ingest("imagefolder", Path(sys.argv[2]), sys.argv[1], writing=Writing(workers=1))
except UserError as error:
    print(error)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become nobody")
def test_an_unreadable_folder_as_nobody() -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        folder = Path(name)
        folder.chmod(0o777)
        class_folders(folder / "in", good_images(folder, 4))
        (folder / "in" / "train" / "a").chmod(0o700)
        command = [sys.executable, "-c", UNREADABLE, str(folder / "in"), str(folder / "out")]
        done = subprocess.run(command, capture_output=True, text=True)
        assert "(train/a: " in done.stdout, done
        assert "Permission denied" in done.stdout
        assert not (folder / "out").exists()


FULL = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
from pipelines.data.ingest import Writing, ingest
from cluster.errors import UserError
resource.setrlimit(resource.RLIMIT_FSIZE, (8_000, 8_000))
try:
    ingest("imagefolder", sys.argv[2], sys.argv[1], writing=Writing(workers=1, shard_rows=64))
except UserError as error:
    print(error)
"""


def test_a_disk_that_fills_up_and_then_has_room(tmp_path: Path) -> None:
    class_folders(tmp_path / "in", good_images(tmp_path))
    command = [sys.executable, "-c", FULL, str(tmp_path / "in"), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "cannot be written (" in done.stdout, done
    assert "File too large" in done.stdout
    assert not (tmp_path / "out").exists()
    assert not list((tmp_path / ".out.ingest").glob("*.parquet"))
    ingest("imagefolder", tmp_path / "out", tmp_path / "in", writing=Writing(workers=1, shard_rows=64))
    verify(tmp_path / "out")


ON_A_SMALL_DISK = """
import subprocess, sys
from pathlib import Path
from pipelines.data.ingest import Writing, ingest
from cluster.errors import UserError
source, disk = sys.argv[1], Path(sys.argv[2])
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", disk], check=True)
try:
    ingest("imagefolder", disk / "out", source, writing=Writing(workers=1, shard_rows=16))
except UserError as error:
    print(error)
print([p.name for p in disk.iterdir()], [p.name for p in (disk / ".out.ingest").glob(".*")])
subprocess.run(["mount", "-o", "remount,size=4m", disk], check=True)
manifest = ingest("imagefolder", disk / "out", source, writing=Writing(workers=1, shard_rows=16))
print(manifest["splits"]["train"]["rows"])
"""


def test_a_real_disk_that_is_full(tmp_path: Path) -> None:
    """A disk of 64 KiB in a mount namespace of its own; then it grows, and the same command ends it."""
    apart = ["unshare", "--map-root-user", "--mount"]
    (tmp_path / "disk").mkdir()
    tried = [*apart, "mount", "-t", "tmpfs", "none", str(tmp_path / "disk")]
    if shutil.which("unshare") is None or subprocess.run(tried, capture_output=True).returncode:
        pytest.skip("needs the right to mount a disk in a namespace")
    class_folders(tmp_path / "in", good_images(tmp_path, 30))
    command = [*apart, sys.executable, "-c", ON_A_SMALL_DISK, str(tmp_path / "in"), str(tmp_path / "disk")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done
    refused, left, rows = done.stdout.splitlines()
    assert "cannot be written (" in refused
    assert "No space left on device" in refused
    assert left == "['.out.ingest'] []"
    assert rows == "60"


@pytest.mark.parametrize(
    ("source", "line"),
    [
        ("cifar10", "holds no whole CIFAR10 (Dataset not found"),
        ("mnist", "holds no whole MNIST (Dataset not found"),
        ("imagefolder", "holds no class folders with files *."),
        ("huggingface", "holds no train*.parquet"),
        ("numpy", "train_x.npy cannot be read"),
        ("n-mnist", "holds no class folders with files *.bin, *.bs2"),
        ("dvs-gesture", "holds no trials_to_train.txt"),
        ("shd", "holds no shd_train.h5 (unpacked)"),
    ],
)
def test_empty_folders_tell_what_was_looked_for(tmp_path: Path, source: str, line: str) -> None:
    (tmp_path / "in").mkdir()
    with pytest.raises(UserError) as caught:
        ingest(source, tmp_path / "out", tmp_path / "in")
    assert line in str(caught.value).replace(": cannot", " cannot")
    with pytest.raises(UserError, match="does not exist"):
        ingest(source, tmp_path / "out", tmp_path / "nowhere")


def test_cut_originals_are_refused(tmp_path: Path) -> None:
    empty = {f"{part}-labels-idx1-ubyte": writers.idx(np.zeros(3)) for part in ("train", "t10k")}
    whole = {f"{part}-images-idx3-ubyte": writers.idx(np.zeros((3, 28, 28))) for part in ("train", "t10k")}
    cut = {"train-images-idx3-ubyte": whole["train-images-idx3-ubyte"][:-5]}
    class_folders(tmp_path / "m" / "MNIST" / "raw", {**empty, **whole, **cut})
    with pytest.raises(UserError, match=r"holds no whole MNIST \(shape '\[3, 28, 28\]' is invalid"):
        ingest("mnist", tmp_path / "out", tmp_path / "m")


def numbers(path: Path, n: int) -> Path:
    x = np.random.default_rng(0).random((n, 50), np.float32)
    path.parent.mkdir(exist_ok=True)
    table = {"image": x.tolist(), "label": [k % 2 for k in range(n)]}
    pq.write_table(pa.table(table), path, row_group_size=n // 3)
    return path


@pytest.mark.parametrize("how", ["flipped", "gone"])
def test_a_source_that_cannot_be_read_is_not_called_unwritable(tmp_path: Path, how: str) -> None:
    train = numbers(tmp_path / "in" / "train.parquet", 300)
    numbers(tmp_path / "in" / "test.parquet", 30)
    source = SOURCES["parquet"](Options(input=str(tmp_path / "in")))
    if how == "flipped":  # the footer is whole, the second row group's first page is not
        start = pq.read_metadata(train).row_group(1).column(0).dictionary_page_offset or 0
        data = bytearray(train.read_bytes())
        data[start : start + 400] = bytes(b ^ 0x55 for b in data[start : start + 400])
        train.write_bytes(data)
    else:
        train.unlink()
    format = Format(class_names=(), sensor=None, group_rows=100, size=None, shape=(50,))
    with pytest.raises(UserError, match=r"/in/train.parquet: cannot be read \([^\n]+\)$"):
        write_shard(source.splits["train"], Shard("train", 1, 100, 200), tmp_path, format)
    assert [p.name for p in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize("source", ["shd", "frames"])
def test_files_that_vanish_are_named(tmp_path: Path, source: str) -> None:
    file = tmp_path / "gone"
    folder = Folder.of(str(tmp_path))
    frames = Frames.of(Sensor(4, 4), T=2, by="time", size=None, where="--size")
    recordings = split_of_files(folder, {"gone": 3}, Columns(("image",), "label").read)
    splits: dict[str, Split] = {
        "shd": split_of_files(folder, {"gone": 3}, _read_spikes),
        "frames": Split(3, partial(_read_framed, recordings, frames)),
    }
    with pytest.raises(UserError, match=f"{file}: cannot be read \\(.*No such file or directory"):
        next(iter(splits[source].read(0, 3)))


def test_verify_finds_what_is_amiss(tmp_path: Path) -> None:
    class_folders(tmp_path / "in", good_images(tmp_path))
    out = tmp_path / "out"
    ingest("imagefolder", out, tmp_path / "in", writing=ALONE)
    verify(out)
    with pytest.raises(UserError, match=r"has no manifest.json"):
        verify(tmp_path / "in")
    (out / "train-00009.parquet").write_bytes((out / "train-00000.parquet").read_bytes())
    with pytest.raises(UserError, match=r"train-00009.parquet: is not in the manifest; remove it"):
        verify(out)
    (out / "train-00009.parquet").unlink()
    data = bytearray((out / "train-00001.parquet").read_bytes())
    data[100] ^= 1
    (out / "train-00001.parquet").write_bytes(data)
    with pytest.raises(UserError, match=r"train-00001.parquet: differs from its manifest"):
        verify(out)
    (out / "train-00001.parquet").unlink()
    with pytest.raises(UserError, match=r"train-00001.parquet: is missing"):
        verify(out)


def test_a_manifest_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("[]")
    with pytest.raises(UserError, match=r"manifest.json: is damaged, or not what belongs there"):
        ingest("digits", tmp_path)
