"""Packed arrays: NumPy reads them, and they come back alone and by the batch."""

import io

import numpy as np
import pyarrow as pa
import pytest

from cluster.errors import UserError
from pipelines.data.decode import ExampleError, decode, pack, unpack, unpack_rows


def column(values: list[bytes]) -> pa.Array:
    return pa.array([{"bytes": v, "path": ""} for v in values])


def test_numpy_reads_what_is_packed() -> None:
    x = np.arange(24, dtype=np.uint16).reshape(2, 3, 4)
    assert np.array_equal(np.load(io.BytesIO(pack(x[:, ::-1]))), x[:, ::-1])
    assert np.array_equal(unpack(pack(x)), x)


def test_rows_of_one_shape_come_at_once() -> None:
    x = np.random.default_rng(0).integers(0, 256, (7, 3, 5, 5)).astype(np.uint8)
    packed = column([pack(row) for row in x])
    assert np.array_equal(decode(packed, np.arange(7)), x)
    assert np.array_equal(decode(packed.slice(2, 3), np.arange(3)), x[2:5])
    assert unpack_rows(packed.field("bytes")) is not None


def test_rows_of_two_types_are_widened() -> None:
    small, large = np.full((2, 1, 4, 4), 7, np.uint8), np.full((2, 1, 4, 4), 700, np.uint16)
    found = decode(column([pack(small), pack(large)]), np.arange(2))
    assert found.dtype == np.uint16
    assert np.array_equal(found, np.stack([small, large]))


def test_objects_and_cut_rows_are_refused() -> None:
    objects = io.BytesIO()
    np.save(objects, np.array([{}], object), allow_pickle=True)
    for bad in (objects.getvalue(), pack(np.zeros((3, 4, 4), np.uint8))[:-1]):
        with pytest.raises(UserError, match="id 4 cannot be decoded"):
            decode(column([bad]), np.array([4]))


@pytest.mark.parametrize(
    "kind",
    [
        pa.list_(pa.float32()),
        pa.list_(pa.float32(), 2),
        pa.struct([(c, pa.list_(pa.int32())) for c in "txyp"]),
    ],
)
def test_an_empty_row_does_not_move_the_others_up(kind: pa.DataType) -> None:
    value = {c: [0, 1] for c in "txyp"} if pa.types.is_struct(kind) else [0, 1]
    with pytest.raises(UserError, match="image: id 6 is empty"):
        decode(pa.array([value, None, value, None], kind), np.array([3, 6, 8, 9]))


def test_arrays_in_fortran_order_are_what_they_were_also_side_by_side() -> None:
    values = [
        np.zeros((1, 4, 3), np.uint8),
        *np.random.default_rng(0).integers(0, 256, (3, 1, 4, 3), np.uint8),
    ]
    rows = []
    for value in values:
        buffer = io.BytesIO()
        np.save(buffer, np.asfortranarray(value))
        rows.append(buffer.getvalue())
    found = decode(pa.array(rows, pa.binary()), np.arange(4))
    assert np.array_equal(found, np.stack(values))


def test_a_header_that_claims_too_much_is_an_error_of_its_row() -> None:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        buffer, {"descr": "|u1", "fortran_order": False, "shape": (1, 10**15, 1)}
    )
    with pytest.raises(ExampleError, match="id 0 "):
        decode(pa.array([buffer.getvalue() + b"0" * 9], pa.binary()), np.arange(1))
