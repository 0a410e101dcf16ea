"""Real data for the benchmarks, as tensors: found in ``shared/data`` above the repository, else refused."""

import io
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor

from snn.coding import direct

_FOLDERS = {
    "cifar10": "cifar10/full",
    "fashion-mnist": "fashion-mnist",
    "nmnist": "nmnist-small",
    "dvs128": "dvs128-objects",
    "cifar10-dvs": "cifar10-dvs-sim",
}
_MEAN, _SD = (0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)


def folder(name: str) -> Path:
    """The folder of a data set; FileNotFoundError where there is none."""
    for parent in Path(__file__).resolve().parents:
        found = parent / "shared" / "data" / _FOLDERS[name]
        if found.is_dir():
            return found
    raise FileNotFoundError(f"shared/data/{_FOLDERS[name]}: not beside the repository")


def load(
    name: str, rows: int, T: int, side: int | None = None, split: str = "train"
) -> tuple[Tensor, Tensor, int]:
    """The first ``rows`` rows of a split: input ``[T, n, C, H, W]``, labels ``[n]``, number of classes."""
    files = sorted(folder(name).glob(f"{split}-*.parquet"))
    columns = ["image", "label"] if name == "cifar10" else ["label", "t", "x", "y", "p"]
    tables, count = [], 0
    for file in files:
        tables.append(pq.read_table(file, columns=columns).slice(0, rows - count))
        count += tables[-1].num_rows
        if count >= rows:
            break
    records = [row for table in tables for row in table.to_pylist()]
    labels = torch.tensor([row["label"] for row in records])
    if name == "cifar10":
        x = torch.stack([_image(row["image"]["bytes"], side or 16) for row in records])
        return direct(x, T), labels, 10
    size = {"nmnist": 34, "dvs128": 128}[name]
    frames = np.stack([_frames(row, T, size, side or size) for row in records], axis=1)
    return torch.from_numpy(frames), labels, int(labels.max()) + 1


def _image(data: bytes, side: int) -> Tensor:
    from PIL import Image

    image = Image.open(io.BytesIO(data)).convert("RGB").resize((side, side), Image.Resampling.BOX)
    pixels = torch.from_numpy(np.array(image, dtype=np.float32) / 255)
    return ((pixels - torch.tensor(_MEAN)) / torch.tensor(_SD)).permute(2, 0, 1)


def _frames(row: dict[str, list[int]], T: int, size: int, side: int) -> np.ndarray:
    """Events summed into ``T`` frames of equal duration, ``[T, 2, side, side]``, at most 4 a pixel."""
    t = np.array(row["t"])
    bins = np.minimum(t * T // (t.max() + 1), T - 1)
    y, x = np.array(row["y"]) * side // size, np.array(row["x"]) * side // size
    at = np.ravel_multi_index((bins, np.array(row["p"]), y, x), (T, 2, side, side))
    counts = np.bincount(at, minlength=T * 2 * side * side).astype(np.float32)
    return np.minimum(counts, 4).reshape(T, 2, side, side)
