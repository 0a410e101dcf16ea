"""Convolution over the weights that are not zero, for inference on a CPU: calls into `sparse.c`.

A layer's surviving weights become values and, for one shape of input, offsets into the packed input.
How many images lie side by side there, and the block of outputs that stays in registers, are the
cheapest by a count of the processor's operations.
"""

import ctypes
import math
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import product
from typing import Any

import torch
from torch import Tensor

from snn.kernels import cpu, cpu_library

DTYPES = (torch.float32, torch.float64)
MOST_PLANS = 4  # shapes of inputs of a layer that are remembered
_SOURCES = ("sparse.c", "sparse.h")
_FLAGS = ("-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math")
_NAMES = {torch.float32: "float", torch.float64: "double"}
_GROUPS = tuple(1 << i for i in range(9))
"""Images side by side."""
_UNALIGNED = 1.7
"""Vectors that start anywhere, over those that start at multiples of their size."""
_PER_WEIGHT = 3
"""Loads of a weight and what belongs to it, in vectors."""
_TILE_BYTES = 3 << 20
"""Packed input that is aimed at: it stays in the caches while all output channels read it."""
_PRODUCTS_PER_THREAD = 1 << 22


class _Convolution(ctypes.Structure):
    """As in `sparse.c`."""

    _fields_ = [
        (name, ctypes.c_ssize_t)
        for name in (
            "images", "channels", "height", "width", "x_image", "x_channel", "x_row", "x_column",
            "out_height", "out_width", "y_image", "y_channel", "y_row", "y_column",
            "top", "left", "stride_y", "stride_x",
            "group", "strip", "row", "plane", "slack", "block_rows", "block_vectors",
        )
    ]  # fmt: skip


@dataclass(frozen=True)
class Geometry:
    """Of a convolution: pairs are (vertical, horizontal)."""

    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the output."""
        found = [
            (n + 2 * p - d * (k - 1) - 1) // s + 1
            for n, p, d, k, s in zip(
                (height, width), self.padding, self.dilation, self.kernel, self.stride, strict=True
            )
        ]
        return found[0], found[1]


@dataclass(frozen=True)
class Plan:
    """How inputs of one shape are packed and in which blocks their outputs are computed (`sparse.c`)."""

    group: int
    strip: int
    row: int
    plane: int
    slack: int
    block_rows: int
    block_vectors: int


class Survivors:
    """The weights ``[out, in / groups, kh, kw]`` of a convolution that are not zero."""

    def __init__(self, weight: Tensor, geometry: Geometry) -> None:
        self.geometry = geometry
        out, channel, self._ky, self._kx = weight.nonzero().unbind(1)
        self.values = weight[out, channel, self._ky, self._kx].contiguous()
        self.out_channels, per_group = weight.shape[:2]
        self.channels = per_group * geometry.groups
        self._channel = channel + out // (self.out_channels // geometry.groups) * per_group
        self.starts = torch.zeros(self.out_channels + 1, dtype=torch.int64)
        self.starts[1:] = torch.bincount(out, minlength=self.out_channels).cumsum(0)
        self._offsets: dict[Plan, Tensor] = {}

    def offsets(self, plan: Plan) -> Tensor:
        """Where each weight reads in the packed input of its output channel's first output, int32."""
        if plan not in self._offsets:
            (dy, dx), sx = self.geometry.dilation, self.geometry.stride[1]
            y, x = self._ky * dy, self._kx * dx
            phase = x % sx * (plan.row // sx)
            found = self._channel * plan.plane + y * plan.row + phase + x // sx * plan.group
            if len(self._offsets) >= MOST_PLANS:
                del self._offsets[next(iter(self._offsets))]
            self._offsets[plan] = found.to(torch.int32)
        return self._offsets[plan]


def unavailable() -> str | None:
    """Why this machine cannot run it, or ``None``; compiles at first use."""
    return _library()[1]


def convolution(x: Tensor, survivors: Survivors, bias: Tensor | None) -> Tensor:
    """``conv2d`` of images ``[N, C, H, W]``, without gradients; in channels_last where ``x`` is.

    Equal to the dense one except for the rounding of sums, and the same for any number of threads.

    Raises:
        ValueError: an input of another shape than the weights', or one too large to index.
        MemoryError: no memory for the packed input.
    """
    g, (N, C, H, W) = survivors.geometry, x.shape
    height, width = g.size(H, W)
    if survivors.channels != C or min(height, width) < 1:
        raise ValueError(
            f"input: shape {tuple(x.shape)} does not fit a kernel of {survivors.channels} channels "
            f"and {g.kernel[0]} x {g.kernel[1]} pixels"
        )
    by_channel = x.stride(1) == 1
    if not by_channel and x.stride(3) != 1:
        x = x.contiguous()
    form = torch.channels_last if by_channel else torch.contiguous_format
    y = torch.empty(N, survivors.out_channels, height, width, dtype=x.dtype, memory_format=form)
    if not y.numel():
        return y
    plan = planned(N, C, H, W, g, x.element_size())
    offsets = survivors.offsets(plan)
    about = _Convolution(
        N, C, H, W, *x.stride(), height, width, *y.stride(), *g.padding, *g.stride,
        plan.group, plan.strip, plan.row, plan.plane, plan.slack, plan.block_rows, plan.block_vectors,
    )  # fmt: skip
    run = getattr(_library()[0], f"sparse_convolution_{_NAMES[x.dtype]}")
    bias_at = None if bias is None else bias.data_ptr()

    def part(*ranges: int) -> None:
        failed = run(
            about, x.data_ptr(), survivors.values.data_ptr(), offsets.data_ptr(), survivors.starts.data_ptr(),
            bias_at, y.data_ptr(), *ranges,
        )  # fmt: skip
        if failed:
            raise MemoryError(f"no memory to pack an input of shape {tuple(x.shape)}")

    units = -(-N // plan.group) * -(-height // plan.strip)
    work = len(survivors.values) * N * height * width
    threads = max(1, min(torch.get_num_threads(), work // _PRODUCTS_PER_THREAD))
    cpu.spread(part, _pieces(units, survivors.out_channels, threads), threads)
    return y


def _pieces(units: int, channels: int, threads: int) -> list[tuple[int, int, int, int]]:
    """Ranges of units, and of output channels where there are fewer units than threads."""
    each = -(-units // threads)
    shares = max(1, threads // units)
    several = -(-channels // shares)
    return [
        (u, min(u + each, units), o, min(o + several, channels))
        for u, o in product(range(0, units, each), range(0, channels, several))
    ]


@lru_cache(maxsize=256)
def planned(N: int, C: int, H: int, W: int, g: Geometry, element_size: int) -> Plan:
    """The cheapest plan for inputs of this shape.

    Raises:
        ValueError: a packed image has more elements than 32 bits index.
    """
    vector, blocks = _processor(element_size)
    (height, width), (sy, sx) = g.size(H, W), g.stride
    columns = -(-(W + 2 * g.padding[1]) // sx)
    reach_y, reach_x = ((k - 1) * d for k, d in zip(g.kernel, g.dilation, strict=True))
    found: list[tuple[float, Plan]] = []
    for group, (rows, vectors) in product([n for n in _GROUPS if n < 2 * N], blocks):
        row = sx * columns * group
        bytes_of = C * row * element_size
        strip = max(1, (_TILE_BYTES // bytes_of - reach_y - 1) // sy + 1)
        strip = math.ceil(height / math.ceil(height / strip))
        strip = min(height, math.ceil(strip / rows) * rows)
        plane = ((strip - 1) * sy + reach_y + 1) * row
        at_once = vectors * vector
        of_row = -(-width * group // at_once)
        # the furthest element that a block's last vector reads
        last = ((-(-strip // rows) * rows - 1) * sy + reach_y) * row
        last += (sx - 1) * columns * group + reach_x // sx * group + of_row * at_once
        slack = max(0, last - plane)
        if C * plane + slack > torch.iinfo(torch.int32).max:
            continue
        products = rows * vectors * (1 if group % vector == 0 else _UNALIGNED)
        cost = -(-N // group) * -(-height // rows) * of_row * (products + _PER_WEIGHT)
        found.append((cost, Plan(group, strip, row, plane, slack, rows, vectors)))
    if not found:
        raise ValueError(f"input: images of {C} x {H} x {W} are too large for 32-bit offsets")
    return min(found, key=lambda each: each[0])[1]


@cache
def _processor(element_size: int) -> tuple[int, tuple[tuple[int, int], ...]]:
    """Elements of a vector, and the blocks (rows, vectors) that the library was compiled with."""
    library = _library()[0]
    vector = ctypes.c_int.in_dll(library, "sparse_vector_bytes").value // element_size
    numbers = (ctypes.c_int * 64).in_dll(library, "sparse_blocks")
    blocks: list[tuple[int, int]] = []
    while numbers[2 * len(blocks)]:
        blocks.append((numbers[2 * len(blocks)], numbers[2 * len(blocks) + 1]))
    return vector, tuple(blocks)


@cache
def _library() -> tuple[Any, str | None]:
    library, why_not = cpu_library.built("sparse", _SOURCES, _FLAGS)
    if library is not None:
        pointer, count = ctypes.c_void_p, ctypes.c_ssize_t
        for name in _NAMES.values():
            function = getattr(library, f"sparse_convolution_{name}")
            function.argtypes = [ctypes.POINTER(_Convolution), *[pointer] * 6, *[count] * 4]
            function.restype = ctypes.c_int
    return library, why_not
