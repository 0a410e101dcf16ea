"""Layers over surviving weights against torch's dense ones."""

import copy
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from snn.kernels import cpu, sparse
from snn.kernels.sparse import Geometry, Survivors, convolution, planned
from snn.sparse import SparseConv2d, SparseLinear, sparse_layer

pytestmark = pytest.mark.skipif(sparse.unavailable() is not None, reason="no C compiler")
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-13}


def thinned(layer: nn.Module, density: float, seed: int = 0) -> nn.Module:
    """Weights at random places zero."""
    weight = layer.weight
    keep = torch.rand(weight.shape, generator=torch.Generator().manual_seed(seed)) < density
    with torch.no_grad():
        weight.mul_(keep)
    return layer.eval().requires_grad_(False)


def assert_close(found: torch.Tensor, wanted: torch.Tensor, scale: torch.Tensor) -> None:
    """To rounding: relative to the sum of magnitudes of what was added."""
    assert found.shape == wanted.shape
    assert bool(((found - wanted).abs() <= TOLERANCE[found.dtype] * (scale + 1e-30)).all())


def magnitudes(layer: nn.Conv2d | nn.Linear, x: torch.Tensor) -> torch.Tensor:
    own = copy.deepcopy(layer)
    with torch.no_grad():
        for p in own.parameters():
            p.abs_()
        return own(x.abs())


pairs = st.tuples(st.integers(1, 3), st.integers(1, 3))


@st.composite
def convolutions(draw):
    """A thinned convolution and an input for it, in any memory layout."""
    groups = draw(st.sampled_from([1, 1, 1, 2, 3]))
    kernel, stride = draw(st.tuples(st.integers(1, 5), st.integers(1, 5))), draw(pairs)
    dilation = draw(st.sampled_from([(1, 1), (1, 1), (2, 1), (2, 3)]))
    padding = draw(st.tuples(st.integers(0, 3), st.integers(0, 3)))
    least = [max(1, d * (k - 1) + 1 - 2 * p) for k, d, p in zip(kernel, dilation, padding, strict=True)]
    size = [n + draw(st.integers(0, 18)) for n in least]
    dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    seed = draw(st.integers(0, 1000))
    torch.manual_seed(seed)
    layer = nn.Conv2d(
        groups * draw(st.integers(1, 9)), groups * draw(st.integers(1, 20)), kernel, stride, padding,
        dilation, groups, bias=draw(st.booleans()), dtype=dtype,
    )  # fmt: skip
    thinned(layer, draw(st.sampled_from([0.0, 0.02, 0.1, 0.5, 1.0])), seed)
    N, C = draw(st.sampled_from([1, 2, 3, 5, 16, 17, 33])), layer.in_channels
    layout = draw(st.sampled_from(["nchw", "channels_last", "sliced", "repeated", "turned"]))
    if layout == "repeated":
        x = torch.randn(1, C, *size, dtype=dtype).expand(N, -1, -1, -1)
    elif layout == "turned":
        x = torch.randn(N, C, size[1], size[0], dtype=dtype).transpose(2, 3)
    elif layout == "sliced":
        x = torch.randn(N, C + 2, size[0] + 1, 2 * size[1], dtype=dtype)[:, 1:-1, 1:, ::2]
    else:
        x = torch.randn(N, C, *size, dtype=dtype)
        x = x.contiguous(memory_format=torch.channels_last) if layout == "channels_last" else x
    return layer, x


@settings(max_examples=100)
@given(convolutions())
def test_equal_to_the_dense_convolution(problem):
    layer, x = problem
    assert_close(SparseConv2d(layer)(x), layer(x), magnitudes(layer, x))


@settings(max_examples=30)
@given(
    st.integers(1, 40),
    st.integers(1, 40),
    st.sampled_from([1, 3, 16, 100, 300]),
    st.booleans(),
    st.booleans(),
)
def test_equal_to_the_dense_linear_layer(features, outputs, N, bias, over_time):
    torch.manual_seed(features)
    layer = thinned(nn.Linear(features, outputs, bias), 0.2)
    x = torch.randn(2, N, features) if over_time else torch.randn(features, N).T
    assert_close(SparseLinear(layer)(x), layer(x), magnitudes(layer, x))


@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("C", "size", "N"), [(40, 4, 64), (24, 8, 40), (20, 16, 20), (3, 32, 8), (9, 70, 3)])
def test_the_sizes_of_networks_any_number_of_threads(C, size, N, form):
    layer = thinned(nn.Conv2d(C, 37, 3, padding=1, bias=False), 0.1)
    x = torch.rand(N, C, size, size).round().contiguous(memory_format=form)
    threads = torch.get_num_threads()
    found = []
    try:
        for n in (1, 2, 5):
            torch.set_num_threads(n)
            found.append(SparseConv2d(layer)(x))
    finally:
        torch.set_num_threads(threads)
    assert_close(found[0], layer(x), magnitudes(layer, x))
    assert found[0].is_contiguous(memory_format=form)
    assert all(torch.equal(found[0], other) for other in found[1:])


def test_work_is_divided_by_units_then_by_channels_without_gap_or_overlap():
    for units, channels, threads in [(1, 7, 4), (3, 64, 8), (16, 5, 3), (1, 1, 9), (5, 2, 2)]:
        done = torch.zeros(units, channels, dtype=torch.int64)
        for u0, u1, o0, o1 in sparse._pieces(units, channels, threads):
            done[u0:u1, o0:o1] += 1
        assert bool((done == 1).all())


def test_threads_are_really_used(monkeypatch):
    seen = []
    monkeypatch.setattr(cpu, "spread", lambda part, pieces, threads: seen.append((len(pieces), threads)))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    weight = torch.ones(64, 64, 3, 3)
    convolution(torch.rand(64, 64, 16, 16), Survivors(weight, Geometry((3, 3), padding=(1, 1))), None)
    assert seen == [(4, 4)]


def test_large_images_go_in_strips():
    g = Geometry((3, 3), padding=(1, 1))
    plan = planned(16, 64, 112, 112, g, 4)
    assert plan.strip < 112
    assert 64 * plan.plane * 4 < 4 << 20 or plan.strip <= plan.block_rows
    layer = thinned(nn.Conv2d(16, 5, 3, stride=2, padding=1), 0.1)
    x = torch.rand(17, 16, 97, 90)
    assert planned(17, 16, 97, 90, Geometry((3, 3), (2, 2), (1, 1)), 4).strip < 49
    assert_close(SparseConv2d(layer)(x), layer(x), magnitudes(layer, x))


def test_infinite_inputs_reach_their_own_outputs_alone():
    layer = thinned(nn.Conv2d(4, 4, 3, padding=1, bias=False), 0.5)
    x = torch.rand(5, 4, 6, 6)
    clean = SparseConv2d(layer)(x)
    x[2] = torch.nan
    found = SparseConv2d(layer)(x)
    assert torch.equal(found[[0, 1, 3, 4]], clean[[0, 1, 3, 4]])
    assert bool(found[2].isnan().any())


def test_empty_channels_give_the_bias():
    layer = thinned(nn.Conv2d(6, 8, 3), 0.3)
    with torch.no_grad():
        layer.weight[2:5] = 0
    y = SparseConv2d(layer)(torch.rand(3, 6, 7, 7))
    assert torch.equal(y[:, 2:5], layer.bias[2:5].view(1, 3, 1, 1).expand(3, 3, 5, 5))
    assert SparseConv2d(layer)(torch.rand(0, 6, 7, 7)).shape == (0, 8, 5, 5)


class TestModule:
    def test_it_is_the_layer_but_for_forward(self):
        layer = thinned(nn.Conv2d(3, 5, 3, stride=2), 0.3)
        before = torch.get_rng_state()
        new = sparse_layer(layer)
        assert torch.equal(torch.get_rng_state(), before)
        assert isinstance(new, nn.Conv2d)
        assert new.state_dict().keys() == layer.state_dict().keys()
        assert str(new).removeprefix("Sparse") == str(layer)
        x = torch.rand(2, 3, 9, 9)
        for other in (copy.deepcopy(new), pickle.loads(pickle.dumps(new))):
            assert torch.equal(other(x), new(x))

    @pytest.mark.parametrize("kind", [lambda: nn.Conv2d(4, 4, 3), lambda: nn.Linear(4, 4)])
    def test_changed_weights_are_seen(self, kind):
        layer = thinned(kind(), 0.5)
        new = sparse_layer(layer)
        x = torch.rand(2, 4, 5, 5) if isinstance(layer, nn.Conv2d) else torch.rand(3, 4)
        new(x)
        other = thinned(kind(), 0.9, seed=1)
        new.load_state_dict(other.state_dict())
        assert_close(new(x), other(x), magnitudes(other, x))
        other, x = other.double(), x.double()
        assert_close(new.double()(x), other(x), magnitudes(other, x))
        with torch.no_grad():
            new.weight.zero_()
        assert torch.equal(new(x)[0, 0].unique(), new.bias[:1])

    def test_it_refuses_to_train(self):
        new = sparse_layer(thinned(nn.Conv2d(4, 4, 3), 0.5))
        assert new.eval() is new
        with pytest.raises(RuntimeError, match="is for inference; train the network it was made from"):
            nn.Sequential(new).train()
        with pytest.raises(RuntimeError, match=r"has no gradients; run it under torch\.no_grad"):
            new(torch.rand(1, 4, 5, 5, requires_grad=True))
        with torch.no_grad():
            assert not new(torch.rand(1, 4, 5, 5, requires_grad=True)).requires_grad
        with torch.inference_mode():
            assert new(torch.rand(1, 4, 5, 5)).shape == (1, 4, 3, 3)

    def test_inputs_that_do_not_fit_are_named(self):
        new, linear = SparseConv2d(nn.Conv2d(4, 4, 3).eval()), SparseLinear(nn.Linear(4, 2).eval())
        for x, words in [
            (torch.rand(1, 3, 9, 9), "does not fit a kernel of 4 channels and 3 x 3"),
            (torch.rand(1, 4, 2, 2), "does not fit"),
            (torch.rand(4, 9, 9), r"must be \[N, C, H, W\]"),
            (torch.rand(1, 4, 9, 9).double(), "takes the weight's dtype"),
        ]:
            with torch.no_grad(), pytest.raises(ValueError, match=words):
                new(x)
        with torch.no_grad(), pytest.raises(ValueError, match=r"must be \[..., 4\]"):
            linear(torch.rand(2, 5))

    def test_the_convolutions_of_our_networks_have_a_sparse_form(self):
        layer = thinned(nn.Conv2d(3, 5, 3, padding=1), 0.2)
        x = torch.rand(2, 3, 9, 9)
        assert_close(sparse_layer(layer)(x), layer(x), magnitudes(layer, x))

    def test_layers_without_a_sparse_form(self):
        for layer in (
            nn.Conv2d(3, 3, 3, padding="same"),
            nn.Conv2d(3, 3, 3, padding=1, padding_mode="circular"),
            nn.Linear(3, 3, dtype=torch.bfloat16),
            nn.utils.parametrizations.weight_norm(nn.Linear(3, 3)),
            nn.ReLU(),
        ):
            assert sparse_layer(layer) is None


def test_images_beyond_32_bits_are_refused():
    with pytest.raises(ValueError, match="too large for 32-bit offsets"):
        planned(1, 1 << 16, 3, 1 << 16, Geometry((3, 3)), 4)
