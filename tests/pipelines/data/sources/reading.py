"""What was written of a source, read back, and what the tests of several sources are made of."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from pipelines.data.decode import decode
from pipelines.data.events import EventBatch, Recording
from pipelines.data.ingest import Writing
from pipelines.data.manifest import verify
from pipelines.data.scan import read_split
from tests.pipelines.data.writers import same

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


def check_events(out: Path, expected: dict[str, Recording]) -> None:
    """Every recording, exactly, whichever split it fell into."""
    seen = set()
    for split in ("train", "test"):
        batch, _, paths = written(out, split)
        for found, path in zip(recordings(batch), paths, strict=True):
            assert same(found, expected[path]), path
            seen.add(path)
    assert seen == set(expected)


def image(seed: int, kind: str, size: tuple[int, int] = (12, 10)) -> bytes:
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (*size, 3)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels if seed % 3 else pixels[..., 0]).save(buffer, kind)
    return buffer.getvalue()
