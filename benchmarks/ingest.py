"""Ingestion against a plain decode-and-write loop, and its memory from 10^4 to 10^6 rows.

    python -m benchmarks.ingest [--repeats 3] [--rows 20000] [--memory] [--output FILE.json]

Throughput: image files in class folders (real JPEGs of 32x32 and 64x64, from the shared Parquet) are written
by ``spikeprune data ingest`` (one process; and two on Ray, whose start is told apart) and by a loop that
reads, decodes and writes the same files with Pillow and pyarrow and does nothing else; interleaved, medians.
Ours also checks every image, hashes the files and counts classes and pixels. ``ratio_per_core`` is rows per
second and core over those of the plain loop in one process; at least 0.8 is asked for. Two plain loops at
once, each on half of the files, tell what of two cores this machine gives at all. With ``--memory`` (three
minutes) the peak resident memory of a process that ingests 10^4, 10^5 and 10^6 rows of Parquet is measured
instead.
"""

import argparse
import io
import multiprocessing
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from benchmarks.about import about
from pipelines.data.ingest import Writing, ingest
from pipelines.storage.atomic import write_json

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
COLUMNS = (  # of the table: kind, its ratio, title, width
    ("plain", "", "plain loop", 10),
    ("ours, 1 process", "1 process", "ours", 7),
    ("plain, 2 processes", "2 plain", "2 plain loops", 13),
    ("ours, 2 on Ray", "2 on Ray", "2 processes", 11),
)
SETS = {"cifar10 32x32": "cifar10/full", "tiny-imagenet 64x64": "tiny-imagenet"}


def extract(source: Path, folder: Path, rows: int) -> None:
    """The first ``rows`` images as files in class folders."""
    left = rows
    for file in sorted(source.glob("train-*.parquet")):
        table = pq.read_table(file, columns=["image", "label"]).slice(0, left)
        images, labels = table.column("image").to_pylist(), table.column("label").to_pylist()
        for k, (image, label) in enumerate(zip(images, labels, strict=True)):
            place = folder / ("test" if k % 10 == 0 else "train") / f"{label:03d}"
            place.mkdir(parents=True, exist_ok=True)
            (place / f"{left}_{k}.jpg").write_bytes(image["bytes"])
        left -= table.num_rows
        if left <= 0:
            return


def plain(folder: Path, output: Path, part: int = 0, of: int = 1) -> None:
    """Read, decode, write: nothing else."""
    for split in ("train", "test"):
        files = sorted((folder / split).glob("*/*.jpg"))[part::of]
        writer: pq.ParquetWriter | None = None
        for start in range(0, len(files), 1024):
            rows = []
            for path in files[start : start + 1024]:
                data = path.read_bytes()
                np.asarray(Image.open(io.BytesIO(data)))
                rows.append({"bytes": data, "path": str(path)})
            labels = [int(p.parent.name) for p in files[start : start + 1024]]
            table = pa.table({"id": np.arange(start, start + len(rows)), "image": rows, "label": labels})
            path = output / f"{split}-{part}.parquet"
            writer = writer or pq.ParquetWriter(path, table.schema, compression="zstd")
            writer.write_table(table)
        assert writer is not None
        writer.close()


def plain_twice(pool: ProcessPoolExecutor, folder: Path, output: Path) -> None:
    """Two plain loops at once."""
    for half in [pool.submit(plain, folder, output, part, 2) for part in range(2)]:
        half.result()


def seconds_of(run: Callable[[Path], object], out: Path) -> float:
    out.mkdir()
    started = time.perf_counter()
    run(out)
    elapsed = time.perf_counter() - started
    shutil.rmtree(out)
    return elapsed


def throughput(name: str, rows: int, repeats: int) -> dict[str, object]:
    from cluster.connect import connect

    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder, connect(), ProcessPoolExecutor(2, context) as pool:
        place = Path(folder)
        extract(SHARED / SETS[name], place / "in", rows)

        def ours(workers: int) -> Callable[[Path], object]:
            writing = Writing(workers=workers, shard_rows=rows // 4)
            return lambda out: ingest("imagefolder", out, place / "in", writing=writing)

        runs: dict[str, Callable[[Path], object]] = {
            "plain": lambda out: plain(place / "in", out),
            "ours, 1 process": ours(1),
            "plain, 2 processes": lambda out: plain_twice(pool, place / "in", out),
            "ours, 2 on Ray": ours(2),
        }
        times: dict[str, list[float]] = {kind: [] for kind in runs}
        for repeat in range(repeats + 1):  # the first warms the page cache and the processes
            for kind, run in runs.items():
                elapsed = seconds_of(run, place / "out")
                if repeat:
                    times[kind].append(elapsed)
    medians = {kind: statistics.median(t) for kind, t in times.items()}
    return {
        "rows": rows,
        "seconds": times,
        "rows_per_second": {kind: rows / m for kind, m in medians.items()},
        "ratio_per_core": {
            "1 process": medians["plain"] / medians["ours, 1 process"],
            "2 plain": medians["plain"] / medians["plain, 2 processes"] / 2,
            "2 on Ray": medians["plain"] / medians["ours, 2 on Ray"] / 2,
        },
    }


MEMORY = """
import resource, sys
from pathlib import Path
from pipelines.data.ingest import Writing, ingest
ingest("parquet", Path(sys.argv[2]), sys.argv[1], writing=Writing(workers=1))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


def memory(rows: int) -> int:
    """Peak resident MiB of a process that ingests so many 8x8 PNGs."""
    rng = np.random.default_rng(0)
    pool = []
    for _ in range(1000):
        buffer = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (8, 8)).astype(np.uint8)).save(buffer, "PNG")
        pool.append({"bytes": buffer.getvalue(), "path": None})
    table = pa.table({"image": pool, "label": np.arange(1000) % 10})
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "in").mkdir()
        for split, n in (("train", rows), ("test", 1000)):
            path = Path(folder) / "in" / f"{split}.parquet"
            with pq.ParquetWriter(path, table.schema, compression="zstd") as writer:
                for _ in range(n // 1000):
                    writer.write_table(table)
        command = [sys.executable, "-c", MEMORY, f"{folder}/in", f"{folder}/out"]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def tables(result: dict[str, Any]) -> str:
    """Rows per second and ratios of every set, and the peak memory by rows."""
    lines = []
    kinds = [kind for found in result.get("throughput", {}).values() for kind in found["rows_per_second"]]
    columns = [c for c in COLUMNS if c[0] in kinds]
    if columns:
        titles = [f"{title:>{width}}" + (" per core" if ratio else "") for _, ratio, title, width in columns]
        lines.append(f"{'rows per second':<19} {' '.join(titles)}")
    for name, found in result.get("throughput", {}).items():
        speed, per_core = found["rows_per_second"], found["ratio_per_core"]
        values = [
            f"{speed[kind]:>{width},.0f}" + (f" {per_core[ratio]:>8.2f}" if ratio else "")
            for kind, ratio, _, width in columns
        ]
        lines.append(f"{name:<19} {' '.join(values)}")
    if "peak_mib" in result:
        lines.append(f"{'rows ingested':<19} {'peak MiB':>10}")
        lines += [f"{int(rows):<19,} {peak:>10,}" for rows, peak in result["peak_mib"].items()]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    result: dict[str, Any] = {"about": about("benchmarks.ingest", sys.argv[1:])}
    if args.memory:
        result["peak_mib"] = {str(n): memory(n) for n in (10_000, 100_000, 1_000_000)}
    else:
        result["throughput"] = {name: throughput(name, args.rows, args.repeats) for name in SETS}
    print(tables(result))
    if args.output:
        write_json(args.output, result)


if __name__ == "__main__":
    main()
