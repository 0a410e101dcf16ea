"""Recordings in every layout, written by an independent writer or another library, come back exactly."""

import io
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from cluster.errors import UserError
from pipelines.data.events import Recording
from pipelines.data.ingest import Writing, ingest
from pipelines.data.sources.base import Options
from pipelines.data.sources.recordings import read_aedat, read_recording
from tests.pipelines.data import writers
from tests.pipelines.data.sources.reading import ALONE, check_events, written
from tests.pipelines.data.writers import class_folders, random_recording, same

ASSETS = Path(__file__).parents[1] / "assets"


def real_recordings(shared_data: Path, name: str, n: int) -> list[tuple[Recording, int]]:
    table = pq.read_table(next((shared_data / name).glob("train*.parquet"))).slice(0, n)
    columns = [table.column(c).to_pylist() for c in "txyp"]
    labels = table.column("label").to_pylist()
    return [(Recording(*(np.array(c[i]) for c in columns)), labels[i]) for i in range(n)]


def dv_recording() -> Recording:
    """What dv-processing was given when it wrote the files in ``assets`` (128x96, from 1.6e15 us on)."""
    rng, n = np.random.default_rng(0), 600
    t = np.sort(rng.integers(0, 300_000, n))
    return Recording(t - t[0], rng.integers(0, 128, n), rng.integers(0, 96, n), rng.integers(0, 2, n))


def test_nmnist_in_its_layout(tmp_path: Path, shared_data: Path) -> None:
    real = real_recordings(shared_data, "nmnist-small", 40)
    expected = {
        f"{'Test' if i % 4 == 0 else 'Train'}/{label}/{i:05d}.bin": r for i, (r, label) in enumerate(real)
    }
    files = {path: writers.nmnist(r, 100 if i % 3 else None) for i, (path, r) in enumerate(expected.items())}
    class_folders(tmp_path / "NMNIST", files)
    manifest = ingest("n-mnist", tmp_path / "out", tmp_path / "NMNIST", writing=ALONE)
    check_events(tmp_path / "out", expected)
    assert manifest["sensor_size"] == [34, 34, 2]


@pytest.mark.parametrize("release", ["aedat", "aedat4", "npz"])
def test_cifar10_dvs_releases(tmp_path: Path, shared_data: Path, release: str) -> None:
    names = ("airplane", "automobile")
    expected, files = {}, {}
    for i, (r, _) in enumerate(real_recordings(shared_data, "dvs128-objects", 20)):
        path = f"{names[i % 2]}/cifar10_{names[i % 2]}_{i // 2}.{release}"
        first = r._replace(t=r.t - r.t[0])
        if release == "aedat":
            expected[path], files[path] = first, writers.aedat2(r, turned=True)
        elif release == "npz":
            buffer = io.BytesIO()
            np.savez_compressed(buffer, **r._asdict())
            expected[path], files[path] = r, buffer.getvalue()
        else:
            files[path] = (ASSETS / "dv_lz4.aedat4").read_bytes()
            expected[path] = dv_recording()
    class_folders(tmp_path / "in", files)
    manifest = ingest("cifar10-dvs", tmp_path / "out", tmp_path / "in", writing=ALONE)
    check_events(tmp_path / "out", expected)
    assert manifest["splits"]["test"]["class_counts"] == {"0": 1, "1": 1}
    assert manifest["split"] == "10% of every class held out, drawn with seed 0"


@pytest.mark.parametrize("compression", ["none", "lz4", "zstd"])
def test_aedat4_as_dv_processing_writes_it(compression: str) -> None:
    data = (ASSETS / f"dv_{compression}.aedat4").read_bytes()
    found, sensor = read_aedat(data)
    assert found.t[0] > 1_600_000_000_000_000
    assert same(read_recording("a.aedat4", data)[0], dv_recording())
    assert sensor == (128, 96, 2)


def test_aedat_in_class_folders(tmp_path: Path, shared_data: Path) -> None:
    real = real_recordings(shared_data, "dvs128-objects", 12)
    expected = {f"{label}/{i}.aedat": r._replace(t=r.t - r.t[0]) for i, (r, label) in enumerate(real)}
    class_folders(tmp_path / "in", {p: writers.aedat2(r) for p, r in expected.items()})
    options = Options(test_share=0.4)
    ingest("aedat", tmp_path / "out", tmp_path / "in", options=options, writing=ALONE)
    check_events(tmp_path / "out", expected)


def test_dvs_gesture_as_ibm_ships_it(tmp_path: Path) -> None:
    expected, files = {}, {}
    for split, user in (("train", "user01_led"), ("test", "user24_lab")):
        whole = random_recording(len(user) + len(split), 3000)
        rows = ["class,startTime_usec,endTime_usec"]
        for label, begin, end in ((1, 10_000, 90_000), (11, 100_000, 180_000), (11, 170_000, 290_000)):
            rows.append(f"{label},{begin},{end}")
            inside = (whole.t >= begin) & (whole.t < end)
            cut = Recording(*(v[inside] for v in whole))
            expected[f"{user}.aedat#{begin}"] = cut._replace(t=cut.t - begin)
        files |= {f"{user}.aedat": writers.aedat31(whole), f"{user}_labels.csv": "\n".join(rows).encode()}
        files[f"trials_to_{split}.txt"] = f"{user}.aedat\n".encode()
    class_folders(tmp_path / "in" / "DvsGesture", files)
    manifest = ingest("dvs-gesture", tmp_path / "out", tmp_path / "in", writing=ALONE)
    check_events(tmp_path / "out", expected)
    assert written(tmp_path / "out", "test")[1] == [0, 10, 10]
    assert len(manifest["class_names"]) == 11


def test_shd(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    (tmp_path / "in").mkdir()
    rng = np.random.default_rng(0)
    expected = {}
    for split, n in (("train", 9), ("test", 4)):
        with h5py.File(tmp_path / "in" / f"shd_{split}.h5", "w") as file:
            kinds = {"times": h5py.vlen_dtype(np.float16), "units": h5py.vlen_dtype(np.uint16)}
            sets = {k: file.create_dataset(f"spikes/{k}", (n,), dtype=v) for k, v in kinds.items()}
            for row in range(n):
                t = np.sort(rng.random(50)).astype(np.float16)
                units = rng.integers(0, 700, 50)
                sets["times"][row], sets["units"][row] = t, units
                micro = np.rint(t.astype(np.float64) * 1e6).astype(np.int64)
                expected[f"shd_{split}.h5#{row}"] = Recording(
                    micro, units, np.zeros(50, int), np.ones(50, int)
                )
            file["labels"] = np.arange(n) % 3
            file["extra/keys"] = np.array([b"zero", b"one", b"two"])
    manifest = ingest("shd", tmp_path / "out", tmp_path / "in", writing=Writing(workers=1, shard_rows=4))
    check_events(tmp_path / "out", expected)
    assert manifest["sensor_size"] == [700, 1, 1]
    assert manifest["class_names"] == ["zero", "one", "two"]


@pytest.mark.parametrize("kind", ["records", "npz"])
def test_event_arrays_in_class_folders(tmp_path: Path, kind: str) -> None:
    expected = {}
    for i in range(8):
        r, name = random_recording(i), f"train/{i % 2}/{i}" if i > 3 else f"test/{i % 2}/{i}"
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        suffix = {"records": "npy"}.get(kind, kind)
        if kind == "records":
            array = np.zeros(len(r.t), [("x", "<u2"), ("y", "<u2"), ("t", "<i8"), ("p", "?")])
            for c in "txyp":
                array[c] = getattr(r, c)
            np.save(path.with_suffix(".npy"), array)
        else:
            np.savez(path.with_suffix(".npz"), timestamps=r.t, x=r.x, y=r.y, polarity=r.p)
        expected[f"{name}.{suffix}"] = r
    with pytest.raises(UserError, match="--sensor: is needed"):
        ingest("npy", tmp_path / "out", tmp_path / "in", writing=ALONE)
    ingest("npy", tmp_path / "out", tmp_path / "in", options=Options(sensor=(128, 128)), writing=ALONE)
    check_events(tmp_path / "out", expected)


def test_recordings_take_no_size(tmp_path: Path) -> None:
    class_folders(
        tmp_path / "in", {f"a/{k}.bin": writers.nmnist(random_recording(k, 9, 34, 34)) for k in range(10)}
    )
    with pytest.raises(UserError, match=r"^--size: applies to images and, with --T, to event frames"):
        ingest("n-mnist", tmp_path / "out", tmp_path / "in", writing=Writing(workers=1, size=(16,)))
    assert not list(tmp_path.glob(".out*"))
