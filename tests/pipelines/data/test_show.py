"""Contact sheets of what the decoder gives."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from pipelines.data.decode import pack
from pipelines.data.show import contact_sheet


@pytest.mark.parametrize("shape", [(1, 2, 8, 8), (3, 2, 8, 8), (2, 8, 8), (1, 8, 8), (3, 8, 8), (4, 8, 8)])
def test_frames_and_images_of_any_number_of_channels(shape: tuple[int, ...], tmp_path: Path) -> None:
    x = np.random.default_rng(0).integers(0, 9, (4, *shape)).astype(np.uint8)
    rows = pa.table({"id": np.arange(4), "image": [pack(v) for v in x], "label": np.arange(4) % 2})
    contact_sheet(rows, rows.schema, tmp_path / "sheet.png")
    assert min(Image.open(tmp_path / "sheet.png").size) > 100
