"""Our convolution against torch's own."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from snn import convolution
from snn.convolution import Conv2d
from snn.models import build

LAYOUTS = (torch.contiguous_format, torch.channels_last)


@pytest.fixture(autouse=True)
def every_size(monkeypatch):
    """The patches' product whatever the sizes."""
    monkeypatch.setattr(convolution, "_wins", lambda pixels, weights: True)


def gradients(layer, x, grad_y):
    x = x.clone(memory_format=torch.preserve_format).requires_grad_()
    y = layer(x)
    y.backward(grad_y)
    found = [y.detach(), x.grad, *(p.grad for p in layer.parameters())]
    layer.zero_grad()
    return found


@given(
    batch=st.integers(1, 4),
    c_in=st.integers(1, 5),
    c_out=st.integers(1, 5),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 2)),
    padding=st.tuples(st.integers(0, 2), st.integers(0, 1)),
    side=st.tuples(st.integers(3, 6), st.integers(3, 6)),
    bias=st.booleans(),
    layouts=st.tuples(st.sampled_from(LAYOUTS), st.sampled_from(LAYOUTS)),
    seed=st.integers(0, 1000),
)
def test_outputs_and_gradients_are_torchs(
    batch, c_in, c_out, kernel, stride, padding, side, bias, layouts, seed
):
    torch.manual_seed(seed)
    theirs = nn.Conv2d(c_in, c_out, kernel, stride, padding, bias=bias, dtype=torch.float64)
    theirs = theirs.to(memory_format=layouts[0])
    ours = Conv2d(c_in, c_out, kernel, stride, padding, bias=bias, dtype=torch.float64)
    ours = ours.to(memory_format=layouts[0])
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(batch, c_in, *side, dtype=torch.float64).contiguous(memory_format=layouts[1])
    grad_y = torch.randn_like(theirs(x))
    mine = gradients(ours, x, grad_y)
    for found, expected in zip(mine, gradients(theirs, x, grad_y), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    # the layout that the optimiser and DDP expect
    assert mine[2].is_contiguous(memory_format=layouts[0])


@pytest.mark.parametrize("layouts", [(a, b) for a in LAYOUTS for b in LAYOUTS])
@pytest.mark.parametrize(("stride", "side"), [((2, 2), (6, 6)), ((2, 3), (5, 7)), ((1, 2), (4, 1))])
@pytest.mark.parametrize("bias", [True, False])
def test_shortcuts_read_every_other_pixel(layouts, stride, side, bias):
    torch.manual_seed(0)
    theirs = nn.Conv2d(3, 5, 1, stride, bias=bias, dtype=torch.float64).to(memory_format=layouts[0])
    ours = Conv2d(3, 5, 1, stride, bias=bias, dtype=torch.float64).to(memory_format=layouts[0])
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 3, *side, dtype=torch.float64).contiguous(memory_format=layouts[1])
    assert way(ours, x) == "slice"
    y = theirs(x)
    assert torch.equal(ours(x), y)
    grad_y = torch.randn_like(y)
    for found, expected in zip(gradients(ours, x, grad_y), gradients(theirs, x, grad_y), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_small_maps_of_many_channels_run_in_nchw():
    x = torch.randn(2, 8, 4, 4).contiguous(memory_format=torch.channels_last)
    layer = Conv2d(8, 512, 3, padding=1)
    y = layer(x)
    assert y.is_contiguous()
    torch.testing.assert_close(y, nn.functional.conv2d(x, layer.weight, layer.bias, padding=1))
    wide = torch.randn(2, 8, 8, 8).contiguous(memory_format=torch.channels_last)
    for other, kept in ((Conv2d(8, 256, 3, padding=1), x), (layer, wide)):
        assert other(kept).is_contiguous(memory_format=torch.channels_last)
    layer.to(memory_format=torch.channels_last)  # whoever asks for the format of the weights keeps it
    assert layer(x).is_contiguous(memory_format=torch.channels_last)


def way(layer, x):
    """How the layer's gradients come about, by the graph behind its output."""
    return getattr(layer(x).grad_fn, "way", "torch")


def used(layer, x):
    """Whether the layer's output comes from the product of patches."""
    return way(layer, x) == "patches"


def test_only_where_it_is_a_gradient_of_weights():
    x = torch.randn(2, 4, 4, 4)
    assert used(Conv2d(4, 4, 3), x)
    with torch.no_grad():
        assert not used(Conv2d(4, 4, 3), x)
    assert not used(Conv2d(4, 4, 3).requires_grad_(False), x.clone().requires_grad_())
    with torch.autocast("cpu", torch.bfloat16):
        assert not used(Conv2d(4, 4, 3), x)


@pytest.mark.parametrize(
    "options",
    [{"groups": 2}, {"dilation": 2}, {"padding": "same"}, {"padding": 1, "padding_mode": "circular"}],
)
def test_other_convolutions_stay_torchs(options):
    layer = Conv2d(4, 4, 2, **options)
    x = torch.randn(2, 4, 6, 6)
    assert not used(layer, x)
    plain = nn.Conv2d(4, 4, 2, **options)
    plain.load_state_dict(layer.state_dict())
    assert torch.equal(layer(x), plain(x))


def test_no_examples_and_one_without_batch():
    layer = Conv2d(4, 4, 3)
    assert layer(torch.zeros(0, 4, 5, 5)).shape == (0, 4, 3, 3)
    assert layer(torch.zeros(4, 5, 5)).shape == (4, 3, 3)


def test_per_example_gradients_by_torch_func():
    layer = Conv2d(2, 3, 3, bias=False)
    weight, x = layer.weight.detach(), torch.randn(5, 2, 4, 4)

    def loss(w, example):
        return torch.func.functional_call(layer, {"weight": w}, (example[None],)).square().sum()

    found = torch.func.vmap(torch.func.grad(loss), (None, 0))(weight, x)
    for i in range(5):
        layer.zero_grad()
        layer(x[i : i + 1]).square().sum().backward()
        torch.testing.assert_close(found[i], layer.weight.grad)


@pytest.mark.parametrize(("model", "side"), [("vgg11", 32), ("sew_resnet18", 32)])
def test_the_deep_layers_of_the_models_take_it(monkeypatch, model, side):
    """512 channels at 4x4 and below, on 32x32 images; and only those."""
    monkeypatch.undo()
    net = build(model, input_shape=(3, side, side), num_classes=10)
    taken = {}
    for name, layer in net.named_modules():
        if isinstance(layer, Conv2d):
            layer.register_forward_hook(
                lambda layer, args, y, name=name: taken.__setitem__(
                    name, (getattr(y.grad_fn, "way", "") == "patches", y.shape[-1], y.shape[1])
                )
            )
    net(torch.randn(2, 1, 3, side, side))
    assert any(ours for ours, _, _ in taken.values())
    for ours, pixels, channels in taken.values():
        assert ours <= (pixels <= 4 and channels == 512)
