"""Every source: files in the original layout, written by an independent writer, come back exactly."""

import gzip
import io
import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipelines.data.dataset import describe, read_split
from pipelines.data.decode import decode
from pipelines.data.events import EventBatch, Recording
from pipelines.data.ingest import Writing, ingest
from pipelines.data.manifest import verify
from pipelines.data.sources import SOURCES
from pipelines.data.sources.aedat import read_aedat
from pipelines.data.sources.base import Options
from pipelines.data.sources.recordings import Reader
from pipelines.data.sources.tables import split_of
from pipelines.errors import UserError
from tests.pipelines.data import writers
from tests.pipelines.data.writers import class_folders, random_recording, same

ALONE = Writing(workers=1)


def written(folder: Path, split: str) -> tuple[Any, list[int], list[str]]:
    """Decoded examples, labels and paths of a split, after a check of the whole dataset."""
    verify(folder)
    table = pa.concat_tables(pq.read_table(f) for f in read_split(folder, split).files)
    assert table.column("id").to_pylist() == list(range(table.num_rows))
    x = decode(table.column("image"), table.column("id").to_numpy())
    if "path" in table.column_names:
        paths = table.column("path").to_pylist()
    else:
        paths = [i["path"] for i in table.column("image").to_pylist() if isinstance(i, dict)]
    return x, table.column("label").to_pylist(), paths


def recordings(batch: EventBatch) -> Iterator[Recording]:
    return (batch[k] for k in range(len(batch)))


def cifar_rows(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (n, 3072)).astype(np.uint8), rng.integers(0, 10, n)


@pytest.mark.parametrize("kind", ["python", "binary"])
def test_cifar10(tmp_path: Path, kind: str) -> None:
    names = [f"class {k}" for k in range(10)]
    parts = [cifar_rows(40, k) for k in range(6)]
    if kind == "python":
        folder = tmp_path / "cifar-10-batches-py"
        files = [*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"]
        packed = {
            f: pickle.dumps({"data": x, "labels": y.tolist(), "filenames": []}, protocol=2)
            for f, (x, y) in zip(files, parts, strict=True)
        }
        class_folders(folder, {**packed, "batches.meta": pickle.dumps({"label_names": names}, protocol=2)})
    else:
        folder = tmp_path / "cifar-10-batches-bin"
        files = [*(f"data_batch_{k}.bin" for k in range(1, 6)), "test_batch.bin"]
        packed = {
            f: b"".join(bytes([label]) + row.tobytes() for row, label in zip(x, y.tolist(), strict=True))
            for f, (x, y) in zip(files, parts, strict=True)
        }
        class_folders(folder, {**packed, "batches.meta.txt": "\n".join([*names, ""]).encode()})
    out = tmp_path / "out"
    # Shards that cut through the files' borders.
    manifest = ingest("cifar10", out, tmp_path, writing=Writing(workers=1, shard_rows=64, group_rows=16))
    assert len(manifest["splits"]["train"]["files"]) == 4
    x, labels, paths = written(out, "train")
    pixels = np.concatenate([p[0] for p in parts[:5]]).reshape(-1, 3, 32, 32)
    assert np.array_equal(x, pixels)
    assert labels == np.concatenate([p[1] for p in parts[:5]]).tolist()
    assert paths[41].endswith(f"{files[1]}#1")
    assert np.array_equal(written(out, "test")[0].reshape(-1, 3072), parts[5][0])
    info = describe(read_split(out, "train"), read_split(out, "test"), out)
    assert info.class_names == tuple(names)
    assert info.mean == pytest.approx(pixels.mean((0, 2, 3)), rel=1e-12)
    assert info.std == pytest.approx(pixels.std((0, 2, 3)), rel=1e-12)
    groups = pq.ParquetFile(out / "train-00000.parquet").metadata
    assert [groups.row_group(g).num_rows for g in range(groups.num_row_groups)] == [16, 16, 16, 16]
    assert groups.row_group(0).column(0).compression == "ZSTD"


def test_cifar100_fine_labels(tmp_path: Path) -> None:
    x, y = cifar_rows(30, 0)
    names = "\n".join(f"fine {k}" for k in range(10))
    rows = b"".join(bytes([19, k]) + r.tobytes() for r, k in zip(x, y.tolist(), strict=True))
    files = {"train.bin": rows, "test.bin": rows, "fine_label_names.txt": names.encode()}
    class_folders(tmp_path / "cifar-100-binary", files)
    ingest("cifar100", tmp_path / "out", tmp_path, writing=ALONE)
    found, labels, _ = written(tmp_path / "out", "test")
    assert np.array_equal(found.reshape(30, -1), x)
    assert labels == y.tolist()


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path("/tmp/never").touch, ())


def test_a_pickle_that_runs_code_is_refused(tmp_path: Path) -> None:
    files = {f"data_batch_{k}": pickle.dumps({"data": Evil()}) for k in range(1, 6)}
    meta = {"batches.meta": pickle.dumps({"label_names": ["a"]}), "test_batch": b""}
    class_folders(tmp_path / "cifar-10-batches-py", {**files, **meta})
    with pytest.raises(UserError, match=r"data_batch_1: is not a CIFAR file \(it asks for "):
        ingest("cifar10", tmp_path / "out", tmp_path)


@pytest.mark.parametrize("source", ["mnist", "fashion-mnist"])
@pytest.mark.parametrize("zipped", [False, True])
def test_mnist(tmp_path: Path, source: str, zipped: bool) -> None:
    rng = np.random.default_rng(0)
    folder = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST"}[source]
    sets = {
        p: (rng.integers(0, 256, (n, 28, 28)), rng.integers(0, 10, n))
        for p, n in (("train", 50), ("t10k", 20))
    }
    for part, (x, y) in sets.items():
        for name, array in ((f"{part}-images-idx3-ubyte", x), (f"{part}-labels-idx1-ubyte", y)):
            data = writers.idx(array)
            path = f"{name}.gz" if zipped else name
            class_folders(tmp_path / folder / "raw", {path: gzip.compress(data) if zipped else data})
    ingest(source, tmp_path / "out", tmp_path, writing=ALONE)
    for split, part in (("train", "train"), ("test", "t10k")):
        x, labels, _ = written(tmp_path / "out", split)
        assert np.array_equal(x[:, 0], sets[part][0])
        assert labels == sets[part][1].tolist()


def test_torchvision_reads_the_same_files(tmp_path: Path) -> None:
    """The layouts above are torchvision's own: its readers see the same images in them."""
    from torchvision.datasets import MNIST

    rng = np.random.default_rng(0)
    for part in ("train", "t10k"):
        x, y = rng.integers(0, 256, (9, 28, 28)), rng.integers(0, 10, 9)
        files = {f"{part}-images-idx3-ubyte": writers.idx(x), f"{part}-labels-idx1-ubyte": writers.idx(y)}
        class_folders(tmp_path / "MNIST" / "raw", files)
    ingest("mnist", tmp_path / "out", tmp_path, writing=ALONE)
    x, labels, _ = written(tmp_path / "out", "test")
    theirs = MNIST(tmp_path, train=False)
    assert np.array_equal(x[:, 0], theirs.data.numpy())
    assert labels == theirs.targets.tolist()


def image(seed: int, kind: str, size: tuple[int, int] = (12, 10)) -> bytes:
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (*size, 3)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels if seed % 3 else pixels[..., 0]).save(buffer, kind)
    return buffer.getvalue()


def test_imagefolder_with_official_splits_and_any_format(tmp_path: Path) -> None:
    kinds = ["PNG", "JPEG", "BMP", "WEBP", "GIF", "TIFF"]
    files = {
        f"{split}/n0{k}/{split}_{i}.{kinds[i].lower()}": image(10 * k + i, kinds[i])
        for split in ("train", "val")
        for k in range(3)
        for i in range(6)
    }
    unlabelled = {"test/unknown.png": image(1, "PNG")}
    class_folders(tmp_path / "in", {**files, **unlabelled, "train/n00/readme.txt": b"no image"})
    manifest = ingest("imagefolder", tmp_path / "out", tmp_path / "in", writing=ALONE)
    assert manifest["split"] == "official"
    assert manifest["ignored_files"] == 1
    for split, place in (("train", "train"), ("test", "val")):
        table = pq.read_table(tmp_path / "out" / f"{split}-00000.parquet")
        rows = table.to_pylist()
        assert {r["image"]["path"] for r in rows} == {p for p in files if p.startswith(place)}
        for r in rows:  # the files' bytes as they are
            assert r["image"]["bytes"] == files[r["image"]["path"]]
            assert f"n0{r['label']}/" in r["image"]["path"]
    pixels = []
    for p in files:
        if p.startswith("train"):
            x = np.asarray(Image.open(io.BytesIO(files[p])).convert("RGB"), np.float64)
            pixels.append(x.reshape(-1, 3))
    assert manifest["statistics"]["mean"] == pytest.approx(np.concatenate(pixels).mean(0), rel=1e-9)
    assert manifest["statistics"]["std"] == pytest.approx(np.concatenate(pixels).std(0), rel=1e-9)


def test_files_are_listed_by_the_numbers_in_their_names(tmp_path: Path) -> None:
    names = ["2.png", "10.png", "a9_b1.png", "a9_b12.png", "a10.png", "a²b.png", "b.png"]
    files = [f"{split}/{k}/{n}" for split in ("train", "test") for k in ("9", "10") for n in names]
    class_folders(tmp_path, dict.fromkeys(files, image(1, "PNG")))
    found = SOURCES["imagefolder"](Options(input=str(tmp_path), split_seed=1))
    assert found.class_names == ("9", "10")
    drawn = np.random.default_rng(1).permutation(14)  # the seeded order of the rows
    read = {int(place): row.path for place, row in zip(drawn, found.splits["train"].read(0, 14), strict=True)}
    assert [read[place] for place in range(14)] == files[:14]


def test_sizes_are_made_equal_on_demand(tmp_path: Path) -> None:
    files = {f"train/a/{i}.png": image(i + 1, "PNG", (20 + i, 30)) for i in range(4)}
    files |= {f"test/a/{i}.png": image(i + 1, "PNG", (16, 16)) for i in range(2)}
    class_folders(tmp_path / "in", files)
    with pytest.raises(UserError, match=r"is \d+x\d+, the first is \d+x30; --size brings all to one"):
        ingest("imagefolder", tmp_path / "out", tmp_path / "in", writing=ALONE)
    ingest("imagefolder", tmp_path / "out", tmp_path / "in", writing=Writing(workers=1, size=(16,)))
    assert written(tmp_path / "out", "train")[0].shape[2:] == (16, 16)
    unchanged = pq.read_table(tmp_path / "out" / "test-00000.parquet").to_pylist()
    assert all(r["image"]["bytes"] == files[r["image"]["path"]] for r in unchanged)


def test_a_split_is_held_out_by_class(tmp_path: Path) -> None:
    files = {f"{k}/{i}.png": image(20 * k + i, "PNG") for k in (0, 2, 10) for i in range(20)}
    class_folders(tmp_path / "in", files)
    manifest = ingest("imagefolder", tmp_path / "out", tmp_path / "in", writing=ALONE)
    assert manifest["class_names"] == ["0", "2", "10"]
    assert manifest["splits"]["test"]["class_counts"] == {"0": 2, "1": 2, "2": 2}
    held = set(written(tmp_path / "out", "test")[2])
    assert len(held | set(written(tmp_path / "out", "train")[2])) == 60
    ingest("imagefolder", tmp_path / "again", tmp_path / "in", writing=ALONE)
    assert set(written(tmp_path / "again", "test")[2]) == held
    other = Options(split_seed=1, test_share=0.25)
    ingest("imagefolder", tmp_path / "other", tmp_path / "in", options=other, writing=ALONE)
    assert len(held ^ set(written(tmp_path / "other", "test")[2])) > 9


def test_huggingface_layout(tmp_path: Path) -> None:
    told = {"info": {"features": {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}}}
    for split, n in (("train", 7), ("validation", 3)):
        (tmp_path / "in" / "data").mkdir(parents=True, exist_ok=True)
        images = [{"bytes": image(i, "PNG"), "path": None} for i in range(n)]
        table = pa.table({"img": images, "label": [i % 2 for i in range(n)]})
        table = table.replace_schema_metadata({b"huggingface": json.dumps(told).encode()})
        pq.write_table(table, tmp_path / "in" / "data" / f"{split}-00000-of-00001.parquet", row_group_size=3)
    manifest = ingest(
        "huggingface", tmp_path / "out", tmp_path / "in", writing=Writing(workers=1, shard_rows=4)
    )
    assert manifest["class_names"] == ["cat", "dog"]
    found, labels, _ = written(tmp_path / "out", "train")
    assert labels == [0, 1, 0, 1, 0, 1, 0]
    for k, x in enumerate(found):
        alone = decode(pa.array([image(k, "PNG")]), np.array([k]))
        assert np.array_equal(x, np.broadcast_to(alone[0], x.shape))  # type: ignore[index]


@pytest.mark.parametrize(
    ("path", "split"),
    [
        ("train.parquet", "train"),
        ("training-data/train-0.parquet", "train"),
        ("training-data/test-0.parquet", "test"),
        ("testing/deep/training/0.parquet", "train"),
        ("train/0000.parquet", "train"),
        ("train/values.parquet", "train"),
        ("data/val_1.parquet", "validation"),
        ("valid/0.parquet", "validation"),
        ("test/testset.parquet", "test"),
        ("data/0000.parquet", None),
    ],
)
def test_the_name_tells_the_split_then_the_nearest_folder(path: str, split: str | None) -> None:
    assert split_of(path) == split


@pytest.mark.parametrize("path", ["train/test-0.parquet", "test/train/0.parquet", "train/a/val/b.parquet"])
def test_a_file_of_two_splits_is_refused(path: str) -> None:
    with pytest.raises(UserError, match=f"--input: {path} is named as both .* and "):
        split_of(path)


def test_no_test_row_is_trained_on(tmp_path: Path) -> None:
    folder = tmp_path / "in" / "training-data"
    folder.mkdir(parents=True)
    for k, name in enumerate(("train", "test")):
        table = pa.table({"image": [[float(k), i] for i in range(6)], "label": [i % 2 for i in range(6)]})
        pq.write_table(table, folder / f"{name}.parquet")
    ingest("parquet", tmp_path / "out", tmp_path / "in", writing=ALONE)
    for k, name in enumerate(("train", "test")):
        assert written(tmp_path / "out", name)[0].tolist() == [[k, i] for i in range(6)]


@pytest.mark.parametrize("layout", ["npz", "npy", "keras"])
def test_numpy_arrays(tmp_path: Path, layout: str) -> None:
    rng = np.random.default_rng(0)
    x = {s: rng.integers(0, 256, (n, 9, 8, 3)).astype(np.uint8) for s, n in (("train", 20), ("test", 5))}
    y = {s: np.arange(len(x[s])) % 4 for s in x}
    folder = tmp_path / "in"
    folder.mkdir()
    if layout == "keras":
        np.savez(folder / "all.npz", **{f"x_{s}": x[s] for s in x}, **{f"y_{s}": y[s] for s in x})
        folder = folder / "all.npz"
    for s in x:
        if layout == "npz":
            np.savez(folder / f"{s}.npz", x=x[s], y=y[s])
        elif layout == "npy":
            np.save(folder / f"{s}_x.npy", x[s])
            np.save(folder / f"{s}_y.npy", y[s])
    ingest("numpy", tmp_path / "out", folder, writing=ALONE)
    found, labels, _ = written(tmp_path / "out", "train")
    assert np.array_equal(found, x["train"].transpose(0, 3, 1, 2))
    assert labels == y["train"].tolist()


def test_rows_of_numbers(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(12, 5)).astype(np.float32)
    np.savez(tmp_path / "train.npz", x=x, y=np.arange(12) % 3)
    np.savez(tmp_path / "test.npz", x=x[:4], y=np.arange(4) % 3)
    manifest = ingest("numpy", tmp_path / "out", tmp_path, writing=ALONE)
    assert np.array_equal(written(tmp_path / "out", "train")[0], x)
    assert manifest["statistics"]["mean"] == pytest.approx([x.mean(dtype=np.float64)])


def real_recordings(shared_data: Path, name: str, n: int) -> list[tuple[Recording, int]]:
    table = pq.read_table(next((shared_data / name).glob("train*.parquet"))).slice(0, n)
    columns = [table.column(c).to_pylist() for c in "txyp"]
    labels = table.column("label").to_pylist()
    return [(Recording(*(np.array(c[i]) for c in columns)), labels[i]) for i in range(n)]


def check_events(out: Path, expected: dict[str, Recording]) -> None:
    """Every recording, exactly, whichever split it fell into."""
    seen = set()
    for split in ("train", "test"):
        batch, _, paths = written(out, split)
        for found, path in zip(recordings(batch), paths, strict=True):
            assert same(found, expected[path]), path
            seen.add(path)
    assert seen == set(expected)


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
    train = [r for p, r in expected.items() if p.startswith("Train")]
    told = manifest["statistics"]
    assert told["events"] == sum(len(r.t) for r in train)
    assert told["most_events"] == max(len(r.t) for r in train)
    assert told["on_share"] == pytest.approx(np.concatenate([r.p for r in train]).mean())


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


ASSETS = Path(__file__).parent / "assets"


def dv_recording() -> Recording:
    """What dv-processing was given when it wrote the files in ``assets`` (128x96, from 1.6e15 us on)."""
    rng, n = np.random.default_rng(0), 600
    t = np.sort(rng.integers(0, 300_000, n))
    return Recording(t - t[0], rng.integers(0, 128, n), rng.integers(0, 96, n), rng.integers(0, 2, n))


@pytest.mark.parametrize("compression", ["none", "lz4", "zstd"])
def test_aedat4_as_dv_processing_writes_it(compression: str) -> None:
    data = (ASSETS / f"dv_{compression}.aedat4").read_bytes()
    found, sensor = read_aedat(data)
    assert found.t[0] > 1_600_000_000_000_000
    assert same(Reader().read("a.aedat4", data)[0], dv_recording())
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
    class_folders(tmp_path / "DvsGesture", files)
    manifest = ingest("dvs-gesture", tmp_path / "out", tmp_path, writing=ALONE)
    check_events(tmp_path / "out", expected)
    assert written(tmp_path / "out", "test")[1] == [0, 10, 10]
    assert len(manifest["class_names"]) == 11


def test_dvs_gesture_as_tonic_leaves_it(tmp_path: Path) -> None:
    r = random_recording(1)
    files = {}
    for folder in ("ibmGestureTrain/user01_led", "ibmGestureTest/user24_led"):
        buffer = io.BytesIO()
        np.save(buffer, np.stack([r.x, r.y, r.p, r.t // 1000 + 7], 1).astype(np.float64))
        files[f"{folder}/3.npy"] = buffer.getvalue()
    class_folders(tmp_path / "in", files)
    ingest("dvs-gesture", tmp_path / "out", tmp_path / "in", writing=ALONE)
    batch, labels, _ = written(tmp_path / "out", "train")
    assert labels == [3]
    assert same(batch[0], r._replace(t=(r.t // 1000 - r.t[0] // 1000) * 1000))


def test_shd(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    rng = np.random.default_rng(0)
    expected = {}
    for split, n in (("train", 9), ("test", 4)):
        with h5py.File(tmp_path / f"shd_{split}.h5", "w") as file:
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
    manifest = ingest("shd", tmp_path / "out", tmp_path, writing=Writing(workers=1, shard_rows=4))
    check_events(tmp_path / "out", expected)
    assert manifest["sensor_size"] == [700, 1, 1]
    assert manifest["class_names"] == ["zero", "one", "two"]


@pytest.mark.parametrize("kind", ["records", "rows", "npz", "h5"])
def test_event_arrays_in_class_folders(tmp_path: Path, kind: str) -> None:
    expected = {}
    for i in range(8):
        r, name = random_recording(i), f"train/{i % 2}/{i}" if i > 3 else f"test/{i % 2}/{i}"
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        suffix = {"records": "npy", "rows": "npy"}.get(kind, kind)
        if kind == "records":
            array = np.zeros(len(r.t), [("x", "<u2"), ("y", "<u2"), ("t", "<i8"), ("p", "?")])
            for c in "txyp":
                array[c] = getattr(r, c)
            np.save(path.with_suffix(".npy"), array)
        elif kind == "rows":
            np.save(path.with_suffix(".npy"), np.stack([r.x, r.y, r.t, r.p], 1))
        elif kind == "npz":
            np.savez(path.with_suffix(".npz"), timestamps=r.t, x=r.x, y=r.y, polarity=r.p)
        else:
            h5py = pytest.importorskip("h5py")
            with h5py.File(path.with_suffix(".h5"), "w") as file:
                for c, v in zip(("ts", "xs", "ys", "ps"), r, strict=True):
                    file[f"events/{c}"] = v
        expected[f"{name}.{suffix}"] = r
    source = "h5" if kind == "h5" else "npy"
    with pytest.raises(UserError, match="--sensor: is needed"):
        ingest(source, tmp_path / "out", tmp_path / "in", writing=ALONE)
    options = Options(sensor=(128, 128), columns="xytp")
    ingest(source, tmp_path / "out", tmp_path / "in", options=options, writing=ALONE)
    check_events(tmp_path / "out", expected)


def test_events_in_parquet_columns(tmp_path: Path, shared_data: Path) -> None:
    source = shared_data / "nmnist-small"
    ingest("parquet", tmp_path / "out", source, writing=ALONE)
    original = pq.read_table(next(source.glob("train*.parquet")))
    batch, labels, _ = written(tmp_path / "out", "train")
    assert labels == original.column("label").to_pylist()
    for c, found in zip("txyp", batch.events, strict=True):
        assert np.array_equal(found, original.column(c).combine_chunks().flatten().to_numpy())
    ingest("parquet", tmp_path / "again", tmp_path / "out", writing=ALONE)  # our own layout is one, too
    assert same(written(tmp_path / "again", "train")[0].events, batch.events)
