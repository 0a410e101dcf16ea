"""Inference over the weights that are left: layers that skip zeros, on a CPU.

They are `torch.nn.Conv2d` and `torch.nn.Linear` with the same parameters, names and state_dict; only
``forward`` differs, by the rounding of sums. `pruning.weights.inference` puts them where they are faster.
"""

from typing import Any, Self, cast

import torch
from torch import Tensor, nn

from snn.kernels import sparse
from snn.layers import Conv2d, Pointwise


class _OverSurvivors(nn.Module):
    """What both layers share."""

    weight: Any
    bias: Any
    _geometry = sparse.Geometry()
    _known: tuple[object, ...] | None = None

    def _adopt(self, layer: nn.Conv2d | nn.Linear) -> None:
        if layer.weight.dtype not in sparse.DTYPES or layer.weight.device.type != "cpu":
            raise ValueError(
                f"weight: {layer.weight.dtype} on {layer.weight.device} must be float32 or 64 on a CPU"
            )
        self.weight = nn.Parameter(layer.weight.detach(), requires_grad=False)
        if layer.bias is not None:
            self.bias = nn.Parameter(layer.bias.detach().contiguous(), requires_grad=False)
        self.eval()

    def train(self, mode: bool = True) -> Self:
        """Refuses ``mode=True``.

        Raises:
            RuntimeError: training was asked for.
        """
        if mode:
            raise RuntimeError(f"{type(self).__name__} is for inference; train the network it was made from")
        return super().train(False)

    def _convolution(self, x: Tensor) -> Tensor:
        name, weight = type(self).__name__, self.weight
        if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
            raise RuntimeError(f"{name} has no gradients; run it under torch.no_grad()")
        if x.device.type != "cpu" or x.dtype != weight.dtype or x.dtype not in sparse.DTYPES:
            raise ValueError(
                f"{name}: input of {x.dtype} on {x.device};"
                f" it takes the weight's dtype ({weight.dtype}) on a CPU"
            )
        bias = None if self.bias is None else self.bias.detach()
        return sparse.convolution(x.detach(), self._survivors(), bias)

    def _survivors(self) -> sparse.Survivors:
        """Found again when the weight has changed."""
        weight = self.weight
        known = weight.data_ptr(), weight.dtype, None if weight.is_inference() else weight._version
        if self._known != known:
            self._known, self._held = known, weight.detach()  # so that no other takes its place in memory
            shaped = self._held if weight.ndim == 4 else self._held[:, :, None, None]
            self._found = sparse.Survivors(shaped, self._geometry)
        return self._found


class SparseConv2d(_OverSurvivors, nn.Conv2d):
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
        self._adopt(layer)
        self._geometry = sparse.Geometry(kernel, stride, padding, dilation, layer.groups)

    def forward(self, x: Tensor) -> Tensor:
        """Outputs ``[N, out_channels, H', W']`` of ``x_NCHW``.

        Raises:
            RuntimeError: a gradient would be needed.
            ValueError: another shape, dtype or device than the weight's.
        """
        if x.ndim != 4:
            raise ValueError(f"SparseConv2d: input of shape {tuple(x.shape)} must be [N, C, H, W]")
        return self._convolution(x)


class SparseLinear(_OverSurvivors, nn.Linear):
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
        self._adopt(layer)

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
        return self._convolution(rows).reshape(*x.shape[:-1], self.out_features)


_FORMS: dict[type[nn.Module], Any] = {
    nn.Conv2d: SparseConv2d,
    Conv2d: SparseConv2d,
    Pointwise: SparseConv2d,
    nn.Linear: SparseLinear,
}


def sparse_layer(layer: nn.Module) -> SparseConv2d | SparseLinear | None:
    """``layer`` over its surviving weights, or ``None`` where there is no such form of it.

    Layers of other classes, parametrised ones too, have none. Hooks stay with ``layer``.
    """
    form = _FORMS.get(type(layer))
    try:
        return None if form is None else form(layer)
    except ValueError:
        return None
