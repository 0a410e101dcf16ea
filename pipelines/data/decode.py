"""Arrow image columns to uint8 or float arrays.

Accepted columns: a struct with ``bytes`` (the Hugging Face image layout), binary (an encoded image, or an
array in NumPy's .npy format: raw pixels and cached event frames, which are read without decoding), numbers (a
list of floats or integers per row, one feature vector), or recordings of events (`pipelines.data.events`).
"""

import io
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from cluster.errors import UserError
from pipelines.data.events import EventBatch, from_arrow, is_events

if TYPE_CHECKING:
    from PIL import Image

# Formats whose greyscale values span 0 to 65535 where Pillow opens them in such a mode.
_WIDE = {"I": ("PNG", "PPM"), "I;16": ("PNG", "TIFF", "JPEG2000"), "I;16B": ("TIFF",)}
_BITS_PER_SAMPLE = 258  # TIFF's tag
_NPY = b"\x93NUMPY"

FORMATS = ("JPEG", "PNG", "BMP", "DIB", "GIF", "ICO", "JPEG2000", "PCX", "PPM", "SGI", "TGA", "TIFF", "WEBP")
"""Of images: what Pillow decodes by itself. For EPS it would run Ghostscript on what the file says."""
Examples = np.ndarray | EventBatch
"""Decoded examples of a batch."""


class ExampleError(UserError):
    """An example that cannot be decoded: its id, and what is wrong with it."""

    def __init__(self, example: int, what: str) -> None:
        super().__init__("image", f"id {example} {what}")
        self.example, self.problem = example, what

    def __reduce__(self) -> tuple[type, tuple[int, str]]:
        return type(self), (self.example, self.problem)


def is_encoded(kind: pa.DataType) -> bool:
    """Whether rows of this type hold encoded images."""
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind = kind.field("bytes").type
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def is_numeric(kind: pa.DataType) -> bool:
    """Whether rows of this type hold one feature vector each."""
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    return is_list and (pa.types.is_floating(kind.value_type) or pa.types.is_integer(kind.value_type))


def decode(column: pa.ChunkedArray | pa.Array, ids: np.ndarray) -> Examples:
    """One value for all rows of an image column.

    Images are ``[B, C, H, W]`` uint8, cached event frames ``[B, T, C, H, W]`` uint8 or uint16, features
    ``[B, N]`` float32, recordings an `EventBatch`.

    Raises:
        ExampleError: an image that is not one, or rows of different shapes, by the row's id.
    """
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    if isinstance(column, pa.ExtensionArray):
        column = column.storage
    if not is_encoded(column.type):
        if column.null_count:  # whose values are no zeros: they are not there, and those behind would move up
            raise ExampleError(int(ids[np.argmax(column.is_null())]), "is empty")
        return from_arrow(column) if is_events(column.type) else _features(column, ids)
    if pa.types.is_struct(column.type):
        column = column.field("bytes")
    if (rows := unpack_rows(column)) is not None:
        return rows
    images = []
    for value, example in zip(column, ids, strict=True):
        try:
            images.append(decode_image(value.as_py() or b""))
        except ValueError as error:
            raise ExampleError(int(example), f"cannot be decoded ({error})") from None
    return _stack(images, ids)


def _features(column: pa.Array, ids: np.ndarray) -> np.ndarray:
    lengths = np.diff(column.offsets.to_numpy()) if hasattr(column, "offsets") else np.zeros(0)
    other = np.flatnonzero(lengths != lengths[:1])
    if len(other):
        row = int(other[0])
        what = f"has {lengths[row]} values, other rows {lengths[0]}; make them equal"
        raise ExampleError(int(ids[row]), what)
    x = column.flatten().to_numpy(zero_copy_only=False).astype(np.float32).reshape(len(column), -1)
    if not np.isfinite(x).all():
        raise ExampleError(int(ids[~np.isfinite(x).all(1)][0]), "is NaN or infinite")
    return x


def decode_image(data: bytes) -> np.ndarray:
    """One encoded image (or packed array) as an array, images ``[C, H, W]`` uint8 with 1 or 3 channels.

    Greyscale images of 16 bits are scaled to 8 (65535 to 255).

    Raises:
        ValueError: it is not one, is cut short, or has values of a range that the file does not tell.
    """
    if data.startswith(_NPY):
        return unpack(data)
    from PIL import Image

    try:
        image: Image.Image = Image.open(io.BytesIO(data), formats=FORMATS)
        if image.mode[0] in "IF":  # convert() cuts those at 255
            return _eight_bits(image)[None]
        if image.mode not in ("L", "RGB"):
            image = image.convert("RGB")
        pixels = np.frombuffer(image.tobytes(), np.uint8)  # cheaper than np.asarray
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(str(error).partition(" <_io.")[0]) from None  # not where in memory it lay
    return pixels.reshape(image.height, image.width, -1).transpose(2, 0, 1)


def _eight_bits(image: "Image.Image") -> np.ndarray:
    bits = getattr(image, "tag_v2", {}).get(_BITS_PER_SAMPLE, (16,))
    if image.format not in _WIDE.get(image.mode, ()) or bits != (16,):
        raise ValueError(
            f"{image.format} of mode {image.mode} does not tell the range of its values; "
            "save it with 8 bits, or as PNG with 16"
        )
    wide = np.asarray(image).astype(np.uint32)
    return ((wide + 128) // 257).astype(np.uint8)


def _stack(images: list[np.ndarray], ids: np.ndarray) -> np.ndarray:
    size = max((image.shape for image in images), key=lambda s: s[0])
    batch = np.empty((len(images), *size), np.result_type(*{image.dtype for image in images}))
    for row, image in enumerate(images):
        if image.shape[1:] != size[1:]:
            raise ExampleError(
                int(ids[row]),
                f"is {image.shape[1]}x{image.shape[2]} pixels, others {size[1]}x{size[2]}; "
                "resize them when ingesting",
            )
        batch[row] = image  # a greyscale image among RGB ones fills all channels
    return batch


def pack(array: np.ndarray) -> bytes:
    """An array as .npy bytes."""
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(array), allow_pickle=False)
    return buffer.getvalue()


def unpack(data: bytes) -> np.ndarray:
    """The array of .npy bytes.

    Raises:
        ValueError: not .npy, objects in it, or fewer values than its shape asks for.
    """
    try:
        return np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
    except MemoryError:  # by its header alone
        raise ValueError("claims more values than there is memory for") from None


def unpack_rows(column: pa.Array) -> np.ndarray | None:
    """All rows of a binary column as one array ``[B, ...]``; ``None`` unless all are .npy of one shape."""
    if column.null_count or len(column) == 0 or not column[0].as_py().startswith(_NPY):
        return None
    wide = pa.types.is_large_binary(column.type)
    offsets = np.frombuffer(column.buffers()[1], np.int64 if wide else np.int32)
    offsets = offsets[column.offset : column.offset + len(column) + 1]
    size = int(offsets[1] - offsets[0])
    if (np.diff(offsets) != size).any():
        return None
    rows = np.frombuffer(column.buffers()[2], np.uint8)[offsets[0] : offsets[-1]].reshape(-1, size)
    try:
        first = unpack(rows[0].tobytes())
    except ValueError:  # each of them is refused by `unpack`, and named
        return None
    start = size - first.nbytes
    plain = first.flags.c_contiguous and first.tobytes() == rows[0, start:].tobytes()
    if not plain or (rows[:, :start] != rows[0, :start]).any():
        return None
    return np.ascontiguousarray(rows[:, start:]).view(first.dtype).reshape(len(rows), *first.shape)
