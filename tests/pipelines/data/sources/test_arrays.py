"""Arrays in the layouts of CIFAR, MNIST and NumPy, written by an independent writer, come back exactly."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageOps

from cluster.errors import UserError
from pipelines.data.dataset import describe
from pipelines.data.ingest import Writing, ingest
from pipelines.data.scan import read_split
from tests.pipelines.data import writers
from tests.pipelines.data.sources.reading import ALONE, written
from tests.pipelines.data.writers import class_folders


def cifar_rows(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (n, 3072)).astype(np.uint8), rng.integers(0, 10, n)


def test_cifar10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"class {k}" for k in range(10)]
    parts = [cifar_rows(40, k) for k in range(6)]
    files = [*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"]
    writers.cifar(tmp_path / "in", monkeypatch, "CIFAR10", dict(zip(files, parts, strict=True)), names)
    out = tmp_path / "out"
    # Shards that cut through the files' borders.
    manifest = ingest(
        "cifar10", out, tmp_path / "in", writing=Writing(workers=1, shard_rows=64, group_rows=16)
    )
    assert len(manifest["splits"]["train"]["files"]) == 4
    x, labels, paths = written(out, "train")
    pixels = np.concatenate([p[0] for p in parts[:5]]).reshape(-1, 3, 32, 32)
    assert np.array_equal(x, pixels)
    assert labels == np.concatenate([p[1] for p in parts[:5]]).tolist()
    assert paths[41] == "cifar10-train#41"
    assert np.array_equal(written(out, "test")[0].reshape(-1, 3072), parts[5][0])
    info = describe(read_split(out, "train"), read_split(out, "test"), out)
    assert info.class_names == tuple(names)
    assert info.mean == pytest.approx(pixels.mean((0, 2, 3)), rel=1e-12)
    assert info.std == pytest.approx(pixels.std((0, 2, 3)), rel=1e-12)
    groups = pq.ParquetFile(out / "train-00000.parquet").metadata
    assert [groups.row_group(g).num_rows for g in range(groups.num_row_groups)] == [16, 16, 16, 16]
    assert groups.row_group(0).column(0).compression == "ZSTD"


def test_cifar100_fine_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = cifar_rows(30, 0)
    names = [f"fine {k}" for k in range(10)]
    writers.cifar(tmp_path / "in", monkeypatch, "CIFAR100", {"train": (x, y), "test": (x, y)}, names)
    ingest("cifar100", tmp_path / "out", tmp_path / "in", writing=ALONE)
    found, labels, _ = written(tmp_path / "out", "test")
    assert np.array_equal(found.reshape(30, -1), x)
    assert labels == y.tolist()


@pytest.mark.parametrize("source", ["mnist", "fashion-mnist"])
def test_mnist(tmp_path: Path, source: str) -> None:
    rng = np.random.default_rng(0)
    folder = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST"}[source]
    sets = {
        p: (rng.integers(0, 256, (n, 28, 28)), rng.integers(0, 10, n))
        for p, n in (("train", 50), ("t10k", 20))
    }
    for part, (x, y) in sets.items():
        for name, array in ((f"{part}-images-idx3-ubyte", x), (f"{part}-labels-idx1-ubyte", y)):
            class_folders(tmp_path / "in" / folder / "raw", {name: writers.idx(array)})
    ingest(source, tmp_path / "out", tmp_path / "in", writing=ALONE)
    for split, part in (("train", "train"), ("test", "t10k")):
        x, labels, _ = written(tmp_path / "out", split)
        assert np.array_equal(x[:, 0], sets[part][0])
        assert labels == sets[part][1].tolist()


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
    folder = tmp_path / "in"
    folder.mkdir()
    np.savez(folder / "train.npz", x=x, y=np.arange(12) % 3)
    np.savez(folder / "test.npz", x=x[:4], y=np.arange(4) % 3)
    manifest = ingest("numpy", tmp_path / "out", folder, writing=ALONE)
    assert np.array_equal(written(tmp_path / "out", "train")[0], x)
    assert manifest["statistics"]["mean"] == pytest.approx([x.mean(dtype=np.float64)])


def numpy_folder(folder: Path, x: np.ndarray, y: np.ndarray) -> Path:
    """The same arrays as training and test split."""
    folder.mkdir()
    for split in ("train", "test"):
        np.savez(folder / f"{split}.npz", x=x, y=y)
    return folder


def test_arrays_are_brought_to_a_size_as_images_are(tmp_path: Path) -> None:
    x = np.random.default_rng(0).integers(0, 256, (6, 9, 8, 3)).astype(np.uint8)
    source = numpy_folder(tmp_path / "in", x, np.arange(6) % 2)
    ingest("numpy", tmp_path / "out", source, writing=Writing(workers=1, size=(4, 6)))
    found = written(tmp_path / "out", "train")[0]
    fitted = [ImageOps.fit(Image.fromarray(v), (6, 4), Image.Resampling.BICUBIC) for v in x]
    assert np.array_equal(found, np.stack([np.asarray(v) for v in fitted]).transpose(0, 3, 1, 2))


def test_rows_of_numbers_have_no_size(tmp_path: Path) -> None:
    source = numpy_folder(tmp_path / "in", np.zeros((4, 5)), np.arange(4) % 2)
    with pytest.raises(UserError, match="is no image, which alone can be brought to a --size"):
        ingest("numpy", tmp_path / "out", source, writing=Writing(workers=1, size=(4,)))


@pytest.mark.parametrize(
    "shape", [(2, 9, 8), (4, 9, 9), (9, 8, 2), (8, 8, 4), (3, 2, 2), (2, 2, 3), (8, 8, 8)]
)
def test_channels_are_the_shorter_axis(shape: tuple[int, int, int], tmp_path: Path) -> None:
    x = np.random.default_rng(0).integers(0, 256, (4, *shape)).astype(np.uint8)
    ingest("numpy", tmp_path / "out", numpy_folder(tmp_path / "in", x, np.arange(4) % 2), writing=ALONE)
    first = shape[0] in (2, 3, 4) and shape[2] != 3
    assert np.array_equal(written(tmp_path / "out", "train")[0], x if first else x.transpose(0, 3, 1, 2))


def test_a_label_beyond_any_number_of_classes_is_refused(tmp_path: Path) -> None:
    source = numpy_folder(tmp_path / "in", np.zeros((4, 5)), np.array([0, 1, 10**12, 1]))
    with pytest.raises(
        UserError, match=r"train.npz: label 1000000000000 would make 1,000,000,000,001 classes"
    ):
        ingest("numpy", tmp_path / "out", source, writing=ALONE)


def test_an_empty_array_file_is_named(tmp_path: Path) -> None:
    for split in ("train", "test"):
        (tmp_path / f"{split}_x.npy").write_bytes(b"")
        np.save(tmp_path / f"{split}_y.npy", np.arange(4))
    with pytest.raises(UserError, match=r"train_x.npy: cannot be read \(No data left in file\)"):
        ingest("numpy", tmp_path.with_name("out"), tmp_path, writing=ALONE)
