"""A dataset at a glance: the table of classes, and contact sheets of what the decoder gives."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from rich.console import Console

from pipelines.data.decode import pack
from pipelines.data.show import contact_sheet, show


@pytest.mark.parametrize("shape", [(1, 2, 8, 8), (3, 2, 8, 8), (2, 8, 8), (1, 8, 8), (3, 8, 8), (4, 8, 8)])
def test_frames_and_images_of_any_number_of_channels(shape: tuple[int, ...], tmp_path: Path) -> None:
    x = np.random.default_rng(0).integers(0, 9, (4, *shape)).astype(np.uint8)
    rows = pa.table({"id": np.arange(4), "image": [pack(v) for v in x], "label": np.arange(4) % 2})
    contact_sheet(rows, rows.schema, tmp_path / "sheet.png")
    assert min(Image.open(tmp_path / "sheet.png").size) > 100


def test_a_label_far_beyond_the_others_takes_no_memory(tmp_path: Path) -> None:
    table = pa.table({"id": np.arange(3), "image": [[0.0], [1.0], [2.0]], "label": [0, 10**15, 0]})
    pq.write_table(table, tmp_path / "train.parquet")
    console = Console(file=io.StringIO(), width=200)
    show(tmp_path, console)
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert [line.split()[:2] for line in lines[2:4]] == [["0", "2"], [str(10**15), "1"]]
    assert f"and {10**15 - 1} more" in lines[4]
