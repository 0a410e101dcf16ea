"""Convolutions as torch's, except for two gradients that its CPU library is slow at.

Where maps are small and weights many (512 channels at 4x4, as in the last stage of a ResNet on 32x32
images), oneDNN's gradient of the weights runs at a fraction of a matrix product's speed; there it is one
matrix product of the output's gradient with the input's patches. And the gradients of a 1x1 convolution
with a stride (a shortcut) are those of a plain one on the pixels that it reads. Small maps of many channels
run in NCHW in either case.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from snn.packing import pack, unpack
from snn.torch_private import transforms_active

SMALL_MAP, MANY_WEIGHTS = 16, 1 << 21
"""Pixels up to which, and weights from which, the matrix product wins: beyond a core's own cache."""
TINY_MAP, SOME_WEIGHTS = 4, 1 << 19
DEEP_CHANNELS = 512


class Conv2d(nn.Conv2d):
    """`torch.nn.Conv2d`; same arguments, outputs and gradients, except for the order of sums."""

    pack = False
    """Keep inputs that are spikes as bits or bytes; set by `snn.activations.keep_activations`."""

    def forward(self, input: Tensor) -> Tensor:
        """As `torch.nn.Conv2d`."""
        weight, bias = self.weight, self.bias
        if self._deep(input) and weight.is_contiguous():
            input = input.contiguous()
        if self._plain(input, weight):
            way = self._way(input, weight)
            if way != "torch" or self.pack:
                if torch.is_autocast_enabled(input.device.type):
                    dtype = torch.get_autocast_dtype(input.device.type)
                    input, weight = input.to(dtype), weight.to(dtype)
                    bias = None if bias is None else bias.to(dtype)
                y: Tensor = _Gradient.apply(input, weight, bias, self.stride, self.padding, way, self.pack)
                return y
        return super().forward(input)

    def _deep(self, x: Tensor) -> bool:
        """On CPUs, where maps are small and channels many: NCHW is faster there than channels_last."""
        return (
            x.device.type == "cpu"
            and x.ndim == 4
            and self.out_channels >= DEEP_CHANNELS
            and not isinstance(self.padding, str)
            and self._map_of(x) <= SMALL_MAP
        )

    def _plain(self, x: Tensor, weight: Tensor) -> bool:
        """A gradient of the weights will be wanted, of a convolution without extras."""
        return (
            x.ndim == 4
            and x.numel() > 0
            and torch.is_grad_enabled()
            and weight.requires_grad
            and self.groups == 1
            and self.dilation == (1, 1)
            and self.padding_mode == "zeros"
            and not isinstance(self.padding, str)
            and not transforms_active()
        )

    def _way(self, x: Tensor, weight: Tensor) -> str:
        """Whose gradients: ``torch``'s, or on CPUs those of the ``slice`` or of ``patches``."""
        if x.device.type != "cpu" or x.dtype != weight.dtype or torch.is_autocast_enabled("cpu"):
            return "torch"
        if self.kernel_size == (1, 1) and self.stride != (1, 1) and self.padding == (0, 0):
            return "slice"
        return "patches" if _wins(self._map_of(x), weight.numel()) else "torch"

    def _map_of(self, x: Tensor) -> int:
        """Pixels of the output."""
        assert not isinstance(self.padding, str)
        sides = zip(x.shape[2:], self.kernel_size, self.stride, self.padding, strict=True)
        rows, columns = ((n + 2 * pad - k) // step + 1 for n, k, step, pad in sides)
        return rows * columns


def _wins(pixels: int, weights: int) -> bool:
    return (pixels <= SMALL_MAP and weights >= MANY_WEIGHTS) or (
        pixels <= TINY_MAP and weights >= SOME_WEIGHTS
    )


class _Gradient(torch.autograd.Function):
    """Torch's convolution; what is kept of its input, and how gradients come about, is ours to say."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: tuple[int, int],
        padding: tuple[int, int],
        way: str,
        packs: bool,
    ) -> Tensor:
        kept, ctx.packed = pack(x) if packs else (x, None)
        ctx.save_for_backward(kept, weight)
        ctx.stride, ctx.padding, ctx.way = stride, padding, way
        return F.conv2d(x, weight, bias, stride, padding)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_y: Tensor):  # type: ignore[no-untyped-def]
        kept, weight = ctx.saved_tensors
        x = kept if ctx.packed is None else unpack(kept, ctx.packed)
        stride, padding, wanted = ctx.stride, ctx.padding, list(ctx.needs_input_grad[:3])

        def torchs(x: Tensor, stride: Any, padding: Any, wanted: list[bool]) -> tuple[Tensor | None, ...]:
            return torch.ops.aten.convolution_backward(
                grad_y, x, weight, [len(weight)], stride, padding, [1, 1], False, [0, 0], 1, wanted
            )

        if ctx.way == "slice":
            # Every stride-th pixel is read, and no other has a gradient.
            rows, columns = (slice(None, None, step) for step in stride)
            read = _without_gaps(x[:, :, rows, columns])
            grad_x, grad_weight, grad_bias = torchs(read, (1, 1), (0, 0), wanted)
            if grad_x is not None:
                grad_read, grad_x = grad_x, torch.zeros_like(x)
                grad_x[:, :, rows, columns] = grad_read
        elif ctx.way == "patches":
            grad_x, _, grad_bias = torchs(x, stride, padding, [wanted[0], False, wanted[2]])
            grad_weight = _weight_gradient(x, grad_y, weight, stride, padding) if wanted[1] else None
        else:
            grad_x, grad_weight, grad_bias = torchs(x, stride, padding, wanted)
        return grad_x, grad_weight, grad_bias, None, None, None, None


def _without_gaps(x: Tensor) -> Tensor:
    """A slice of a tensor, without gaps, in the memory format of the tensor."""
    inner = x.stride(1) == 1 and x.shape[1] > 1
    return x.contiguous(memory_format=torch.channels_last if inner else torch.contiguous_format)


def _weight_gradient(
    x: Tensor, grad_y: Tensor, weight: Tensor, stride: tuple[int, int], padding: tuple[int, int]
) -> Tensor:
    """``[out, C, K, L]``, in the memory format of ``weight``."""
    out, C, K, L = weight.shape
    padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, padding[1], padding[1], padding[0], padding[0]))
    patches = padded.unfold(1, K, stride[0]).unfold(2, L, stride[1])  # [B, H, W, C, K, L]
    grad_PO = grad_y.permute(0, 2, 3, 1).reshape(-1, out)
    if weight.is_contiguous():
        return (grad_PO.t() @ patches.reshape(-1, C * K * L)).view(out, C, K, L)
    by_tap = patches.permute(0, 1, 2, 4, 5, 3).reshape(-1, K * L * C)
    return (grad_PO.t() @ by_tap).view(out, K, L, C).permute(0, 3, 1, 2)
