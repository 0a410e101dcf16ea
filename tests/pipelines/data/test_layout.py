"""Rows read from row groups: the same values as in the files, in arrays that may be of any size."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.data import layout as reading
from pipelines.data.decode import decode, pack
from pipelines.data.events import EVENTS, EventBatch
from pipelines.data.layout import Rows, read_rows
from pipelines.data.scan import read_split

ROWS = 10


def _packed() -> list[bytes]:
    return [pack(np.full((1, 2, 2), i, np.uint8)) for i in range(ROWS)]


COLUMNS: dict[str, tuple[Any, pa.DataType]] = {
    "bytes": (_packed, pa.binary()),
    "structs": (
        lambda: [{"bytes": b, "path": f"{i}.png"} for i, b in enumerate(_packed())],
        pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
    ),
    "numbers": (lambda: [[i, i + 0.5] for i in range(ROWS)], pa.list_(pa.float32())),
    "equal numbers": (lambda: [[i, i + 0.5] for i in range(ROWS)], pa.list_(pa.float32(), 2)),
    "events": (lambda: [{c: list(range(i + 1)) for c in "txyp"} for i in range(ROWS)], EVENTS),
}


def _offset_bits(kind: pa.DataType) -> set[int]:
    """Of all offsets in a type."""
    if pa.types.is_struct(kind):
        return set().union(*(_offset_bits(field.type) for field in kind))
    if pa.types.is_fixed_size_list(kind):
        return set()
    return {64 if str(kind).startswith("large_") else 32}


@pytest.mark.parametrize("kind", COLUMNS)
@pytest.mark.parametrize("piece_bytes", [1, reading.PIECE_BYTES])
def test_columns_are_read_with_room_for_any_size(
    kind: str, piece_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values, type_ = COLUMNS[kind]
    table = pa.table(
        {"id": np.arange(ROWS), "image": pa.array(values(), type_), "label": np.arange(ROWS) % 3}
    )
    metadata = {b"sensor_size": b"[16, 16, 2]"} if kind == "events" else None
    pq.write_table(table.replace_schema_metadata(metadata), tmp_path / "train.parquet", row_group_size=6)
    split = read_split(tmp_path, "train")
    monkeypatch.setattr(reading, "PIECE_BYTES", piece_bytes)

    ids = np.array([1, 2, 5, 8])
    found = read_rows(split.layout, ids)
    assert _offset_bits(found.schema.field("image").type) <= {64}
    assert found.column("image").to_pylist() == table.column("image").take(ids).to_pylist()
    assert found.column("label").to_pylist() == (ids % 3).tolist()

    rows = Rows(read_rows(split.layout, split.ids))
    wanted = np.array([7, 0, 7])
    got, expected = rows.get(wanted)[0], decode(table.column("image").take(wanted), wanted)
    assert type(got) is type(expected)
    if isinstance(got, EventBatch):
        assert isinstance(expected, EventBatch)
        for row in range(3):
            for a, b in zip(got[row], expected[row], strict=True):
                assert np.array_equal(a, b)
    else:
        assert np.array_equal(got, expected)
    assert rows.table(np.array([3, 9])).column("image").to_pylist() == [values()[3], values()[9]]
    assert read_rows(split.layout, np.zeros(0, np.int64)).schema == found.schema


def test_rows_come_in_the_order_asked_for(digits: Path) -> None:
    table = pq.read_table(digits / "train-00000.parquet")
    shuffled = table.take(pa.array(np.random.default_rng(0).permutation(table.num_rows)))
    rows = Rows(shuffled)
    ids = np.array([7, 3, 3, 1000])
    x, labels = rows.get(ids)
    expected = table.take(pa.array(ids))
    assert np.array_equal(x, decode(expected.column("image"), ids))
    assert np.array_equal(labels, expected.column("label").to_numpy())


def test_a_row_that_was_not_fetched_is_an_error(digits: Path) -> None:
    rows = Rows(pq.read_table(digits / "train-00000.parquet").slice(0, 10))
    with pytest.raises(KeyError, match="id 10 was not fetched"):
        rows.get(np.array([2, 10]))
