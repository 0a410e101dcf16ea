"""CIFAR-10's first rows, made small, as a dataset folder; a share of the training labels made wrong."""

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.real_data import folder
from pruning.examples.sampling import Ints, hash64, uniform

STREAM_WRONG, STREAM_OTHER = 201, 202  # tell these hashes from the product's own
_IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def write(output: Path, *, train_rows: int, test_rows: int, side: int = 16, wrong: float = 0.0) -> None:
    """Write ``train.parquet`` and ``test.parquet``: id, image (PNG, ``side`` x ``side``), label.

    Args:
        output: folder to write, made if need be.
        train_rows: the first rows of the training split.
        test_rows: of the test split.
        side: of the square images; 32 keeps them, 16 averages 2x2 pixels.
        wrong: share of the training labels that become another class, always the same rows.
    """
    output.mkdir(parents=True, exist_ok=True)
    for split, rows, share in (("train", train_rows, wrong), ("test", test_rows, 0.0)):
        table = _first_rows(split, rows)
        names = json.loads(table.schema.metadata[b"class_names"])
        ids = np.arange(rows)
        images = [
            {"bytes": _resized(image["bytes"], side), "path": f"{i}.png"}
            for i, image in enumerate(table.column("image").to_pylist())
        ]
        labels = make_wrong(table.column("label").to_numpy(), share, classes=len(names))
        small = pa.table({"id": ids, "image": pa.array(images, type=_IMAGE), "label": labels})
        small = small.replace_schema_metadata({b"class_names": json.dumps(names).encode()})
        pq.write_table(small, output / f"{split}.parquet")


def make_wrong(labels: Ints, share: float, *, classes: int, seed: int = 0) -> Ints:
    """Labels of which exactly ``round(share * n)``, chosen by a hash, are another class, uniformly."""
    ids = np.arange(len(labels))
    chosen = np.argsort(hash64(seed, 0, ids, STREAM_WRONG))[: round(share * len(labels))]
    shift = 1 + (uniform(seed, 0, chosen, STREAM_OTHER) * (classes - 1)).astype(np.int64)
    changed = labels.astype(np.int64)
    changed[chosen] = (changed[chosen] + shift) % classes
    return changed


def _first_rows(split: str, rows: int) -> pa.Table:
    tables, found = [], 0
    for file in sorted(folder("cifar10").glob(f"{split}-*.parquet")):
        if found < rows:
            tables.append(pq.read_table(file, columns=["image", "label"]).slice(0, rows - found))
            found += tables[-1].num_rows
    if found < rows:
        raise ValueError(f"{split} rows: {rows} asked for, CIFAR-10 has {found}")
    return pa.concat_tables(tables)


def _resized(data: bytes, side: int) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    image = Image.open(io.BytesIO(data)).convert("RGB").resize((side, side), Image.Resampling.BOX)
    image.save(buffer, format="PNG")
    return buffer.getvalue()
