"""What makes a scoring pass cheaper: batch norm folded into the weights before it, smaller images."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pruning.examples.tail import norm_slope, wide
from snn.layers import Norm, Synapses, WeightLayer, folded


@contextmanager
def folded_norms(synapses: Sequence[Synapses]) -> Iterator[None]:
    """Within it the weight layers apply their eval-mode batch norm themselves, and the norms do nothing.

    Only the modules' ``forward`` is replaced meanwhile; parameters, statistics and hooks stay as they are.

    Raises:
        ValueError: a norm without running statistics.
    """
    with ExitStack() as stack:
        for s in synapses:
            if s.norm is not None:
                stack.enter_context(_replaced(s.layer, "forward", _folded_forward(s.layer, s.norm)))
                stack.enter_context(_replaced(s.norm, "forward", lambda x: x))
        yield


@contextmanager
def smaller_input(model: nn.Module, factor: int) -> Iterator[None]:
    """Within it a model that knows its ``input_shape`` expects height and width divided by ``factor``."""
    shape = getattr(model, "input_shape", None)
    if shape is None or factor == 1:
        yield
    else:
        with _replaced(model, "input_shape", (shape[0], *(n // factor for n in shape[1:]))):
            yield


def averaged_down(x_TBCHW: Tensor, factor: int) -> Tensor:
    """Means of squares of ``factor`` pixels a side, ``[T, B, C, H // factor, W // factor]``.

    Raises:
        ValueError: an input that is not ``[T, B, C, H, W]``, or smaller than a square.
    """
    if x_TBCHW.ndim != 5 or min(x_TBCHW.shape[3:]) < factor:
        raise ValueError(
            f"downsample: {factor!r} needs input (T, B, C, H, W) of at least that height and width, "
            f"not {tuple(x_TBCHW.shape)}"
        )
    return folded(lambda x: F.avg_pool2d(x, factor), x_TBCHW)


def pools_globally(readout: nn.Module) -> bool:
    """Whether a readout averages (or maximises) over all positions, however many there are."""
    return any(
        isinstance(m, nn.AdaptiveAvgPool2d | nn.AdaptiveMaxPool2d) and m.output_size in (1, (1, 1))
        for m in readout.modules()
    )


def _folded_forward(layer: WeightLayer, norm: Norm) -> Callable[[Tensor], Tensor]:
    with torch.no_grad():
        slope = norm_slope(norm)
        assert slope is not None
        assert norm.running_mean is not None
        shift = -wide(norm.running_mean) if layer.bias is None else wide(layer.bias) - wide(norm.running_mean)
        bias = shift * slope if norm.bias is None else shift * slope + wide(norm.bias)
        weight = wide(layer.weight) * slope.view(-1, *[1] * (layer.weight.ndim - 1))
        weight, bias = weight.to(layer.weight.dtype), bias.to(layer.weight.dtype)
    if isinstance(layer, nn.Linear):
        return lambda x: F.linear(x, weight, bias)
    return lambda x: layer._conv_forward(x, weight, bias)


@contextmanager
def _replaced(module: nn.Module, name: str, value: Any) -> Iterator[None]:
    """An attribute of the module instance (not a parameter, buffer or submodule) replaced for a while."""
    own = vars(module)
    before = {name: own[name]} if name in own else {}
    own[name] = value
    try:
        yield
    finally:
        del own[name]
        own.update(before)
