"""Write a dataset as Parquet: dense ids, class names in the schema, and a manifest beside it."""

import hashlib
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.data.decode import decode
from pipelines.data.files import read_json, write_beside, write_json
from pipelines.errors import UserError

SHARD_ROWS = 65_536
ROW_GROUP_ROWS = 1_024
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class SourceSplit:
    """One split of a source: encoded images (or features) and labels, in the order of their new ids."""

    name: str
    rows: Iterator[pa.Table]
    class_names: tuple[str, ...]


def ingest(source: str, output: Path | str, input: Path | str | None = None) -> dict[str, Any]:
    """Write a source as a dataset folder, unless it is there already.

    Args:
        source: a key of ``SOURCES``.
        output: folder to write.
        input: where the source lies, for those that read files.

    Returns:
        the manifest: splits with their files, rows, hashes and class counts, and pixel statistics.

    Raises:
        UserError: unknown source, a folder that holds something else, or what the source refuses.
    """
    if source not in SOURCES:
        raise UserError("--source", f"{source!r} is unknown; choose one of {', '.join(SOURCES)}")
    output = Path(output)
    if (output / MANIFEST).exists():
        manifest = read_json(output / MANIFEST)
        if manifest.get("source") != source:
            raise UserError(str(output), f"holds {manifest.get('source')!r} already; choose another --output")
        _verify(output, manifest)
        return manifest
    splits = {}
    statistics = _Statistics()
    for split in SOURCES[source](input):
        splits[split.name] = _write_split(output, split, statistics if split.name == "train" else None)
    manifest = {"format": 1, "source": source, "splits": splits, "statistics": statistics.result()}
    write_json(output / MANIFEST, manifest)
    return manifest


def _digits(_: Path | str | None) -> Iterator[SourceSplit]:
    """The 8x8 handwritten digits that ship with scikit-learn: 1,437 train and 360 test, stratified."""
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError:
        raise UserError("--source digits", "needs scikit-learn; pip install 'spikeprune[demo]'") from None
    digits = load_digits()
    train, test = train_test_split(
        np.arange(len(digits.target)), test_size=360, random_state=0, stratify=digits.target
    )
    pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    names = tuple(str(n) for n in digits.target_names)
    for name, rows in (("train", train), ("test", test)):
        table = pa.table(
            {
                "image": pa.array(
                    [{"bytes": _png(pixels[i]), "path": f"{i}.png"} for i in rows], type=_IMAGE
                ),
                "label": pa.array(digits.target[rows].astype(np.int64)),
            }
        )
        yield SourceSplit(name, iter([table]), names)


def _parquet(input: Path | str | None) -> Iterator[SourceSplit]:
    """Parquet files with columns image and label (the Hugging Face layout), numbered densely."""
    if input is None:
        raise UserError("--input", "is needed: the folder that holds train*.parquet and test*.parquet")
    from pipelines.data.dataset import split_files

    for name in ("train", "test"):
        files = split_files(input, name)
        schema = pq.read_schema(files[0])
        for column in ("image", "label"):
            if column not in schema.names:
                raise UserError(files[0], f"column {column!r} is missing; it has {', '.join(schema.names)}")
        raw = (schema.metadata or {}).get(b"class_names")
        names = tuple(json.loads(raw)) if raw else ()
        yield SourceSplit(name, _parquet_rows(files), names)


SOURCES: dict[str, Callable[[Path | str | None], Iterator[SourceSplit]]] = {
    "digits": _digits,
    "parquet": _parquet,
}
"""Readers of datasets by name."""

_IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def _parquet_rows(files: tuple[str, ...]) -> Iterator[pa.Table]:
    for file in files:
        with pq.ParquetFile(file) as parquet:
            for batch in parquet.iter_batches(SHARD_ROWS, columns=["image", "label"]):
                yield pa.Table.from_batches([batch])


def _png(pixels: np.ndarray) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def _write_split(output: Path, split: SourceSplit, statistics: "_Statistics | None") -> dict[str, Any]:
    files: list[dict[str, Any]] = []
    classes: dict[int, int] = {}
    next_id = 0
    for table in split.rows:
        ids = np.arange(next_id, next_id + table.num_rows)
        next_id += table.num_rows
        labels = table.column("label").cast(pa.int64())
        table = pa.table({"id": ids, "image": table.column("image"), "label": labels})
        metadata = {b"class_names": json.dumps(split.class_names).encode()} if split.class_names else {}
        table = table.replace_schema_metadata(metadata)
        path = output / f"{split.name}-{len(files):05d}.parquet"
        _write_table(table, path)
        for k, n in zip(*np.unique(labels.to_numpy(), return_counts=True), strict=True):
            classes[int(k)] = classes.get(int(k), 0) + int(n)
        if statistics is not None:
            x = decode(table.column("image"), ids)
            assert isinstance(x, np.ndarray)
            statistics.add(x)
        files.append(
            {
                "path": path.name,
                "rows": table.num_rows,
                "first_id": int(ids[0]),
                "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            }
        )
    if not files:
        raise UserError(split.name, "the source has no rows")
    return {"rows": next_id, "files": files, "class_counts": {str(k): classes[k] for k in sorted(classes)}}


def _write_table(table: pa.Table, path: Path) -> None:
    write_beside(path, lambda p: pq.write_table(table, p, compression="zstd", row_group_size=ROW_GROUP_ROWS))


def _verify(output: Path, manifest: dict[str, Any]) -> None:
    for split in manifest["splits"].values():
        for file in split["files"]:
            path = output / file["path"]
            if not path.exists():
                raise UserError(str(path), "is missing; delete the folder and ingest again")
            if hashlib.sha256(path.read_bytes()).hexdigest() != file["sha256"]:
                raise UserError(str(path), "differs from its manifest; delete the folder and ingest again")


class _Statistics:
    """Mean and standard deviation per channel, summed over shards."""

    def __init__(self) -> None:
        self._count = 0
        self._sum: np.ndarray | float = 0.0
        self._squares: np.ndarray | float = 0.0

    def add(self, x: np.ndarray) -> None:
        axes = (0, 2, 3) if x.ndim == 4 else None
        self._count += x.size // (x.shape[1] if x.ndim == 4 else 1)
        self._sum = self._sum + x.sum(axes, dtype=np.float64)
        self._squares = self._squares + (x.astype(np.float64) ** 2).sum(axes)

    def result(self) -> dict[str, list[float]]:
        mean = np.atleast_1d(self._sum) / self._count
        variance = np.maximum(np.atleast_1d(self._squares) / self._count - mean**2, 0)
        return {"mean": mean.tolist(), "std": np.sqrt(variance).tolist()}
