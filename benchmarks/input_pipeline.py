"""Training input: rows per second from Parquet to normalised batches, against a torch DataLoader.

    python -m benchmarks.input_pipeline [--rows 6000] [--repeats 5] [--output FILE.json]

The same JPEGs (CIFAR-10 at 32x32, Tiny-ImageNet at 64x64) as a dataset of ours and as class folders. Ours:
an epoch's rows selected by id from the table in memory, decoded batch by batch in the drawn order and
normalised (`pipelines.data.inputs`); reading the Parquet, once a run, is timed apart. Theirs:
torchvision's ImageFolder with ToTensor and Normalize in a shuffling DataLoader, without and with two worker
processes (kept between epochs). One thread each, interleaved, medians; batches of 256. Then the same with
half of the examples selected: seconds, and how many images were decoded. ``packed`` is the dataset as raw
pixels, as the cifar10 source writes it.
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import Compose, Normalize, ToTensor

from benchmarks.about import about
from benchmarks.ingest import SETS, SHARED, extract
from pipelines.data import decode as decoding
from pipelines.data.dataset import describe
from pipelines.data.decode import decode
from pipelines.data.ingest import Writing, ingest
from pipelines.data.inputs import Inputs
from pipelines.data.layout import Rows, read_rows, select
from pipelines.data.scan import read_split
from pipelines.storage.atomic import write_json

BATCH = 256


def ours(table: pa.Table, ids: np.ndarray, order: np.ndarray, inputs: Inputs) -> float:
    """An epoch's input; the seconds it took."""
    started = time.perf_counter()
    rows = Rows(select(table, ids))
    seen = 0
    for start in range(0, len(order), BATCH):
        x, labels = rows.get(order[start : start + BATCH])
        seen += inputs(x).shape[1]
        torch.from_numpy(labels)
    assert seen == len(ids)
    return time.perf_counter() - started


def theirs(loader: DataLoader) -> float:
    """As `ours`."""
    started = time.perf_counter()
    seen = sum(len(x) for x, _ in loader)
    assert seen == len(loader.dataset)  # type: ignore[arg-type]
    return time.perf_counter() - started


def decoded(table: pa.Table, ids: np.ndarray, inputs: Inputs) -> int:
    """How many images an epoch of these examples decodes."""
    count, original = [0], decoding.decode_image

    def counting(data: bytes) -> np.ndarray:
        count[0] += 1
        return original(data)

    decoding.decode_image = counting
    try:
        ours(table, ids, ids, inputs)
    finally:
        decoding.decode_image = original
    return count[0]


def packed(table: pa.Table) -> pa.Table:
    """The same rows as raw pixels."""

    x = decode(table.column("image"), table.column("id").to_numpy())
    assert isinstance(x, np.ndarray)
    images = pa.array([{"bytes": decoding.pack(row), "path": ""} for row in x])
    return pa.table({"id": table.column("id"), "image": images, "label": table.column("label")})


def measure(name: str, rows: int, repeats: int) -> dict[str, object]:
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        extract(SHARED / SETS[name], place / "in", rows)
        ingest("imagefolder", place / "out", place / "in", writing=Writing(workers=1))
        train, test = read_split(place / "out", "train"), read_split(place / "out", "test")
        info = describe(train, test, place / "out")
        inputs = Inputs.of(info, 4)
        started = time.perf_counter()
        table = read_rows(train.layout, train.ids).combine_chunks()
        reading = time.perf_counter() - started
        steps = Compose([ToTensor(), Normalize(*(np.array(v) / 255 for v in (info.mean, info.std)))])
        images = ImageFolder(str(place / "in" / "train"), steps)
        alone = DataLoader(images, BATCH, shuffle=True)
        two = DataLoader(images, BATCH, shuffle=True, num_workers=2, persistent_workers=True)
        rng = np.random.default_rng(0)
        ids = train.ids.array()
        half = np.sort(rng.choice(ids, len(ids) // 2, replace=False))
        raw_table = packed(table)
        runs = {
            "ours": lambda: ours(table, ids, rng.permutation(ids), inputs),
            "ours, half selected": lambda: ours(table, half, rng.permutation(half), inputs),
            "ours, packed": lambda: ours(raw_table, ids, rng.permutation(ids), inputs),
            "DataLoader": lambda: theirs(alone),
            "DataLoader, 2 processes": lambda: theirs(two),
        }
        times: dict[str, list[float]] = {kind: [] for kind in runs}
        for repeat in range(repeats + 1):
            for kind, run in runs.items():
                elapsed = run()
                if repeat:
                    times[kind].append(elapsed)
        median = {kind: statistics.median(t) for kind, t in times.items()}
        return {
            "rows": len(ids),
            "seconds_to_read_parquet": reading,
            "seconds": times,
            "rows_per_second": {
                kind: (len(half) if "half" in kind else len(ids)) / m for kind, m in median.items()
            },
            "speed_over_dataloader": median["DataLoader"] / median["ours"],
            "speed_over_dataloader_with_reading": median["DataLoader"] / (median["ours"] + reading),
            "speed_over_dataloader_of_2": median["DataLoader, 2 processes"] / median["ours"],
            "half_over_all_seconds": median["ours, half selected"] / median["ours"],
            "half_over_all_decoded": decoded(table, half, inputs) / decoded(table, ids, inputs),
        }


def tables(result: dict[str, Any]) -> str:
    """Rows per second of every way, and what selecting half of the examples saves."""
    ways = ("ours", "ours, packed", "DataLoader", "DataLoader, 2 processes")
    heads = ("ours", "ours, raw pixels", "DataLoader", "of 2 processes")
    lines = [f"{'rows per second':<19}" + "".join(f" {h:>16}" for h in heads) + f" {'ours / DataLoader':>18}"]
    for name, found in result["sets"].items():
        speed = "".join(f" {found['rows_per_second'][way]:>16,.0f}" for way in ways)
        lines.append(f"{name:<19}{speed} {found['speed_over_dataloader']:>18.2f}")
    lines.append(f"{'half selected':<19} {'images decoded':>16} {'seconds':>16}   (of all selected)")
    for name, found in result["sets"].items():
        decoded, seconds = found["half_over_all_decoded"], found["half_over_all_seconds"]
        lines.append(f"{name:<19} {decoded:>16.3f} {seconds:>16.3f}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=6000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    result: dict[str, Any] = {
        "about": about("benchmarks.input_pipeline", sys.argv[1:]),
        "sets": {name: measure(name, args.rows, args.repeats) for name in SETS},
    }
    print(tables(result))
    if args.output:
        write_json(args.output, result)


if __name__ == "__main__":
    main()
