"""Arrays as bytes in an image column: NumPy's .npy format, which tells shape and type by itself.

Raw pixels and cached event frames are kept so. Rows of one shape are read without copying or decoding.
"""

import io
from functools import lru_cache

import numpy as np
import pyarrow as pa

MAGIC = b"\x93NUMPY"


def pack(array: np.ndarray) -> bytes:
    """An array as .npy bytes."""
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(array), allow_pickle=False)
    return buffer.getvalue()


def unpack(data: bytes) -> np.ndarray:
    """The array of .npy bytes, read-only.

    Raises:
        ValueError: not .npy, objects in it, or fewer values than its shape asks for.
    """
    start = 10 + int.from_bytes(data[8:10], "little")
    shape, dtype = _header(data[:start])
    return np.frombuffer(data, dtype, offset=start).reshape(shape)


def unpack_rows(column: pa.Array) -> np.ndarray | None:
    """All rows of a binary column as one array ``[B, ...]``; ``None`` unless all are .npy of one shape."""
    if column.null_count or len(column) == 0 or not column[0].as_py().startswith(MAGIC):
        return None
    wide = pa.types.is_large_binary(column.type)
    offsets = np.frombuffer(column.buffers()[1], np.int64 if wide else np.int32)
    offsets = offsets[column.offset : column.offset + len(column) + 1]
    size = int(offsets[1] - offsets[0])
    if (np.diff(offsets) != size).any():
        return None
    first, last = int(offsets[0]), int(offsets[-1])
    rows = np.frombuffer(column.buffers()[2], np.uint8)[first:last].reshape(len(column), size)
    start = 10 + int(rows[0, 8]) + 256 * int(rows[0, 9])
    if (rows[:, :start] != rows[0, :start]).any():
        return None
    try:
        shape, dtype = _header(rows[0, :start].tobytes())
    except ValueError:
        return None
    if dtype.itemsize * int(np.prod(shape)) != size - start:
        return None
    return np.ascontiguousarray(rows[:, start:]).view(dtype).reshape(len(column), *shape)


@lru_cache(maxsize=256)
def _header(head: bytes) -> tuple[tuple[int, ...], np.dtype]:
    stream = io.BytesIO(head)
    if np.lib.format.read_magic(stream) != (1, 0):
        raise ValueError("is .npy of a version other than 1.0")
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
    if fortran or dtype.hasobject:
        raise ValueError("is .npy in Fortran order or with objects")
    return shape, dtype
