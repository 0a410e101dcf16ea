"""Inference over the weights that are left: layers that skip zeros, on a CPU.

They are `torch.nn.Conv2d` and `torch.nn.Linear` with the same parameters, names and state_dict; only
``forward`` differs, by the rounding of sums. `pruning.weights.inference` puts them where they are faster.
"""

from typing import Self, cast

import torch
from torch import Tensor, nn

from snn.convolution import Conv2d
from snn.kernels import sparse


class _ForInference(nn.Module):
    def train(self, mode: bool = True) -> Self:
        """Refuses ``mode=True``.

        Raises:
            RuntimeError: training was asked for.
        """
        if mode:
            raise RuntimeError(f"{type(self).__name__} is for inference; train the network it was made from")
        return super().train(False)


class _Found:
    """The surviving weights of a layer, found again when its weight has changed."""

    def __init__(self) -> None:
        self._weight: Tensor | None = None  # kept, so that no other takes its place in memory
        self._version: int | None = None
        self._survivors: sparse.Survivors | None = None

    def of(self, weight: Tensor, geometry: sparse.Geometry) -> sparse.Survivors:
        version = None if weight.is_inference() else weight._version
        known = self._weight
        if (
            self._survivors is None
            or known is None
            or (known.data_ptr(), known.dtype, self._version) != (weight.data_ptr(), weight.dtype, version)
        ):
            self._weight, self._version = weight.detach(), version
            shaped = self._weight if weight.ndim == 4 else self._weight[:, :, None, None]
            self._survivors = sparse.Survivors(shaped, geometry)
        return self._survivors


class SparseConv2d(_ForInference, nn.Conv2d):
    """A convolution over the weights that are not zero; zero padding, any stride, dilation and groups."""

    def __init__(self, layer: nn.Conv2d) -> None:
        """Of ``layer``, whose weight and bias it shares the values of.

        Raises:
            ValueError: a padding other than zeros by numbers, or a dtype that the kernel does not take.
        """
        if isinstance(layer.padding, str) or layer.padding_mode != "zeros":
            raise ValueError(f"padding: {layer.padding!r}, {layer.padding_mode}; must be numbers of zeros")
        kernel, stride, padding, dilation = (
            cast(tuple[int, int], pair)
            for pair in (layer.kernel_size, layer.stride, layer.padding, layer.dilation)
        )
        super().__init__(
            layer.in_channels, layer.out_channels, kernel, stride, padding, dilation, layer.groups,
            layer.bias is not None, device="meta", dtype=layer.weight.dtype,
        )  # fmt: skip
        _adopt(self, layer)
        self._found = _Found()
        self._geometry = sparse.Geometry(kernel, stride, padding, dilation, layer.groups)

    def forward(self, x: Tensor) -> Tensor:
        """Outputs ``[N, out_channels, H', W']`` of ``x_NCHW``.

        Raises:
            RuntimeError: a gradient would be needed.
            ValueError: another shape, dtype or device than the weight's.
        """
        if x.ndim != 4:
            raise ValueError(f"SparseConv2d: input of shape {tuple(x.shape)} must be [N, C, H, W]")
        return _convolution(self, x, self._found, self._geometry)


class SparseLinear(_ForInference, nn.Linear):
    """A linear layer over the weights that are not zero."""

    def __init__(self, layer: nn.Linear) -> None:
        """Of ``layer``, whose weight and bias it shares the values of.

        Raises:
            ValueError: a dtype that the kernel does not take.
        """
        super().__init__(
            layer.in_features,
            layer.out_features,
            layer.bias is not None,
            device="meta",
            dtype=layer.weight.dtype,
        )
        _adopt(self, layer)
        self._found = _Found()

    def forward(self, x: Tensor) -> Tensor:
        """Outputs ``[..., out_features]`` of ``x``.

        Raises:
            RuntimeError: a gradient would be needed.
            ValueError: another shape, dtype or device than the weight's.
        """
        if x.ndim < 1 or x.shape[-1] != self.in_features:
            raise ValueError(
                f"SparseLinear: input of shape {tuple(x.shape)} must be [..., {self.in_features}]"
            )
        rows = x.reshape(-1, self.in_features, 1, 1)
        return _convolution(self, rows, self._found, sparse.Geometry()).reshape(
            *x.shape[:-1], self.out_features
        )


def sparse_layer(layer: nn.Module) -> SparseConv2d | SparseLinear | None:
    """``layer`` over its surviving weights, or ``None`` where there is no such form of it.

    Modules with hooks, a ``forward`` of the instance or parametrisations have none.
    """
    watched = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    if any(getattr(layer, hooks) for hooks in watched) or "forward" in vars(layer):
        return None
    try:
        if isinstance(layer, nn.Conv2d) and type(layer) in (nn.Conv2d, Conv2d):
            return SparseConv2d(layer)
        if type(layer) is nn.Linear:
            return SparseLinear(layer)
    except ValueError:
        return None
    return None


def _convolution(layer: nn.Conv2d | nn.Linear, x: Tensor, found: _Found, geometry: sparse.Geometry) -> Tensor:
    name, weight = type(layer).__name__, layer.weight
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
        raise RuntimeError(f"{name} has no gradients; run it under torch.no_grad()")
    if x.device.type != "cpu" or x.dtype != weight.dtype or x.dtype not in sparse.DTYPES:
        raise ValueError(
            f"{name}: input of {x.dtype} on {x.device}; it takes the weight's dtype ({weight.dtype}) on a CPU"
        )
    bias = None if layer.bias is None else layer.bias.detach()
    return sparse.convolution(x.detach(), found.of(weight, geometry), bias)


def _adopt(new: SparseConv2d | SparseLinear, layer: nn.Conv2d | nn.Linear) -> None:
    if layer.weight.dtype not in sparse.DTYPES or layer.weight.device.type != "cpu":
        raise ValueError(
            f"weight: {layer.weight.dtype} on {layer.weight.device} must be float32 or 64 on a CPU"
        )
    new.weight = nn.Parameter(layer.weight.detach(), requires_grad=False)
    if layer.bias is not None:
        new.bias = nn.Parameter(layer.bias.detach().contiguous(), requires_grad=False)
    new.eval()
