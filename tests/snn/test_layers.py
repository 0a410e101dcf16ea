"""Layers of our own against the ones of torch that they stand for."""

import pytest
import torch
from torch import nn

from snn.layers import Conv2d, Pointwise


def assert_alike(layer: nn.Conv2d, theirs: nn.Conv2d, x: torch.Tensor) -> None:
    """Outputs and gradients."""
    found = []
    for conv in (layer, theirs):
        given = x.clone().requires_grad_()
        y = conv(given)
        y.square().sum().backward()
        found.append((y.detach(), given.grad, conv.weight.grad))
    for ours, expected in zip(*found, strict=True):
        torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_a_pointwise_convolution_is_torch_s(stride: int, channels_last: bool) -> None:
    torch.manual_seed(0)
    layer, theirs = Pointwise(8, 16, 1, stride=stride).double(), nn.Conv2d(8, 16, 1, stride=stride).double()
    theirs.load_state_dict(layer.state_dict())
    x = torch.randn(3, 8, 7, 6, dtype=torch.float64)
    x = x.to(memory_format=torch.channels_last) if channels_last else x
    assert_alike(layer, theirs, x)


@pytest.mark.parametrize("size", [4, 8])
@pytest.mark.parametrize("stride", [1, 2])
def test_a_convolution_of_many_channels_is_torch_s(size: int, stride: int) -> None:
    torch.manual_seed(0)
    options = {"stride": stride, "padding": 1, "bias": False, "dtype": torch.float64}
    layer, theirs = Conv2d(8, 512, 3, **options), nn.Conv2d(8, 512, 3, **options)
    theirs.load_state_dict(layer.state_dict())
    x = torch.randn(2, 8, size, size, dtype=torch.float64).to(memory_format=torch.channels_last)
    assert_alike(layer, theirs, x)
