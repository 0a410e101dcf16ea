"""Tiny stand-ins for the datasets of docs/datasets.md, in the layouts that their publishers use."""

import io
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipelines.data.events import Recording
from tests.pipelines.data import writers

ROWS = {"train": 32, "test": 16}
DV = Path(__file__).parent / "pipelines" / "data" / "assets" / "dv_lz4.aedat4"


def write_originals(root: Path, patch: pytest.MonkeyPatch) -> None:
    """Below ``root``, in the folders that the page's commands name."""
    import h5py

    rng = np.random.default_rng(0)
    files: dict[str, bytes] = {}
    cifar10: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    cifar100: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for split, n in ROWS.items():
        labels, val = np.arange(n) % 10, {"train": "train", "test": "val"}[split]
        pixels = rng.integers(0, 256, (n, 3072)).astype(np.uint8)
        batches = [f"data_batch_{k}" for k in range(1, 6)] if split == "train" else ["test_batch"]
        for k, batch in enumerate(batches):
            cifar10[batch] = pixels[k :: len(batches)], labels[k :: len(batches)]
        cifar100[split] = pixels, labels
        part = {"train": "train", "test": "t10k"}[split]
        for folder in ("MNIST", "FashionMNIST"):
            images = rng.integers(0, 256, (n, 28, 28))
            files[f"originals/{folder}/raw/{part}-images-idx3-ubyte"] = writers.idx(images)
            files[f"originals/{folder}/raw/{part}-labels-idx1-ubyte"] = writers.idx(labels)
        for k, label in enumerate(labels.tolist()):
            files[f"imagenet/{val}/n{label:08d}/{k}.JPEG"] = _photo(rng, (240, 260))
            recording = writers.random_recording(k)
            files[f"recordings/{split}/{label % 4}/{k}.aedat4"] = DV.read_bytes()
            small = Recording(recording.t, recording.x % 34, recording.y % 34, recording.p)
            files[f"NMNIST/{split.capitalize()}/{label}/{k:05d}.bin"] = writers.nmnist(small)
            files[f"CIFAR10DVS/class{label}/{split}_{k}.aedat"] = writers.aedat2(recording, turned=True)
        user = {"train": "user01_led", "test": "user24_led"}[split]
        begins = np.linspace(0, 290_000, n + 1).astype(int).tolist()
        trials = [f"{1 + k % 11},{a},{b}" for k, (a, b) in enumerate(pairwise(begins))]
        files[f"DvsGesture/{user}.aedat"] = writers.aedat31(writers.random_recording(n, 20_000))
        table = "\n".join(["class,startTime_usec,endTime_usec", *trials])
        files[f"DvsGesture/{user}_labels.csv"] = table.encode()
        files[f"DvsGesture/trials_to_{split}.txt"] = f"{user}.aedat\n".encode()
        (root / "tiny-imagenet").mkdir(exist_ok=True)
        images = [{"bytes": _photo(rng, (64, 64)), "path": None} for _ in range(n)]
        file = {"train": "train", "test": "valid"}[split]
        pq.write_table(
            pa.table({"image": images, "label": labels}),
            root / "tiny-imagenet" / f"{file}-00000-of-00001.parquet",
        )
        (root / "SHD").mkdir(exist_ok=True)
        with h5py.File(root / "SHD" / f"shd_{split}.h5", "w") as file:
            kinds = {"times": h5py.vlen_dtype(np.float16), "units": h5py.vlen_dtype(np.uint16)}
            sets = {k: file.create_dataset(f"spikes/{k}", (n,), dtype=v) for k, v in kinds.items()}
            for row in range(n):
                sets["times"][row] = np.sort(rng.random(50)).astype(np.float16)
                sets["units"][row] = rng.integers(0, 700, 50)
            file["labels"] = labels
            file["extra/keys"] = np.array([f"word {k}".encode() for k in range(10)])
    names = [f"class {k}" for k in range(10)]
    writers.cifar(root / "originals", patch, "CIFAR10", cifar10, names)
    writers.cifar(root / "originals", patch, "CIFAR100", cifar100, names)
    writers.class_folders(root, files)


def _photo(rng: np.random.Generator, size: tuple[int, int]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (*size, 3)).astype(np.uint8)).save(buffer, "JPEG")
    return buffer.getvalue()
