"""What training keeps: exact, smaller, and of no consequence for outputs, gradients and statistics."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from snn import activations
from snn.activations import ACTIVATIONS, keep_activations, pack, unpack
from snn.coding import direct
from snn.layers import SpikingLayer
from snn.losses import rate_cross_entropy
from snn.models import build
from snn.neurons import NeuronParameters

FILLS = {
    "bits": lambda n, rng: torch.randint(0, 2, (n,), generator=rng),
    "bytes": lambda n, rng: torch.randint(2, 256, (n,), generator=rng),
    "plain": lambda n, rng: torch.rand(n, generator=rng) + 0.1,
}


@given(
    kind=st.sampled_from(list(FILLS)),
    shape=st.lists(st.integers(1, 5), min_size=1, max_size=5),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
    channels_last=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_what_is_unpacked_is_what_was_packed(kind, shape, dtype, channels_last, seed):
    n = torch.Size(shape).numel()
    x = FILLS[kind](n, torch.Generator().manual_seed(seed)).to(dtype).view(shape)
    if channels_last and x.ndim == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    packed = pack(x)
    if kind != "plain":  # where bfloat16 has rounded to a whole number, that is packed
        assert packed.kind == kind
        assert packed.data.nbytes == {"bits": -(-n // 8), "bytes": n}[kind]
    back = unpack(packed)
    assert back.dtype == dtype
    assert back.stride() == x.stride()
    assert torch.equal(back, x)


@pytest.mark.parametrize("value", [-1.0, 0.5, 256.0, 1e30, float("inf"), float("-inf"), float("nan")])
def test_one_value_that_is_no_count_of_spikes_keeps_all_as_it_is(value):
    x = torch.zeros(4, 5)
    x[2, 3] = value
    packed = pack(x)
    assert packed.kind == "plain"
    assert packed.data.data_ptr() == x.data_ptr()


def test_gaps_and_nothing_are_kept_as_they_are():
    for x in (torch.ones(4, 6)[:, ::2], torch.zeros(0, 3)):
        packed = pack(x)
        assert packed.kind == "plain"
        assert packed.data.data_ptr() == x.data_ptr()


@given(count=st.integers(1, 70), seed=st.integers(0, 1000))
def test_bits_of_other_devices_are_those_of_the_cpu(count, seed):
    flat = torch.randint(0, 2, (count,), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)
    bits = activations._torch_to_bits(flat)
    assert torch.equal(bits, activations._to_bits(flat))
    assert torch.equal(activations._torch_from_bits(bits, count), flat)
    assert torch.equal(activations._from_bits(bits, count), flat)


NETWORKS = {
    "vgg6": {"channels": (4, 4, 6, 6, 8, 8), "pooling": "avg"},
    "vgg9": {"channels": (4, 4, 6, 6, 8, 8, 8), "hidden": (12,)},
    "sew_resnet18": {"width": 4},
    "ms_resnet18": {"width": 4},
    "spikformer": {"dim": 16, "depth": 1, "heads": 2},
    "mlp": {"hidden": (8, 8)},
}


def trained(net, how, T, steps=2, watch=None):
    """Losses, gradients and buffers after a few steps."""
    net = copy.deepcopy(net)
    keep_activations(net, how)
    if watch is not None:
        watch(net)
    shape = net.input_shape
    x = torch.rand(3, *shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = []
    for _ in range(steps):
        net.zero_grad()
        loss = rate_cross_entropy(net(direct(x, T)), torch.arange(3)).mean()
        loss.backward()
        with torch.no_grad():
            for p in net.parameters():
                p -= 0.1 * p.grad
        found += [loss.detach(), *(p.grad.clone() for p in net.parameters())]
    return found + [b.clone() for b in net.buffers()]


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("how", ["pack", "recompute"])
@pytest.mark.parametrize("T", [1, 3])
def test_training_is_the_same_however_activations_are_kept(name, how, T):
    torch.manual_seed(0)
    shape = (12,) if name == "mlp" else (3, 32, 32)
    net = build(name, input_shape=shape, num_classes=4, **NETWORKS[name]).double()
    kept, other = trained(net, "keep", T), trained(net, how, T)
    assert any(g.abs().max() > 0 for g in kept[1:])
    for a, b in zip(kept, other, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-13)


def test_learned_decays_get_their_gradient_from_recomputed_layers():
    torch.manual_seed(0)
    neuron = NeuronParameters(learn_beta=True)
    net = build("convnet", input_shape=(3, 16, 16), num_classes=4, neuron=neuron, channels=(4, 6)).double()
    kept, other = trained(net, "keep", 3), trained(net, "recompute", 3)
    betas = [name for name, _ in net.named_parameters() if "beta" in name]
    assert betas
    for a, b in zip(kept, other, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-13)


def test_a_layer_with_something_random_in_it_has_the_gradients_of_what_was_kept():
    torch.manual_seed(0)
    net = build("mlp", input_shape=(12,), num_classes=4, hidden=(8, 8)).double()

    def drop(net):
        layer = next(m for m in net.modules() if isinstance(m, SpikingLayer)).weight_layer
        layer.register_forward_pre_hook(lambda module, inputs: (nn.functional.dropout(inputs[0], 0.5),))
        torch.manual_seed(1)

    kept, other = (trained(net, how, 2, watch=drop) for how in ("keep", "recompute"))
    for a, b in zip(kept, other, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-13)


def test_a_watched_neuron_shows_its_calls_once():
    torch.manual_seed(0)
    net = build("mlp", input_shape=(12,), num_classes=4, hidden=(8, 8)).double()
    calls = []

    def watch(net):
        next(m for m in net.modules() if isinstance(m, SpikingLayer)).neuron.register_forward_hook(
            lambda *_: calls.append(1)
        )

    kept, other = trained(net, "keep", 3), trained(net, "recompute", 3, watch=watch)
    assert len(calls) == 2  # steps
    for a, b in zip(kept, other, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("how", ["pack", "recompute"])
def test_mixed_precision_gives_the_gradients_it_gives_anyway(how):
    torch.manual_seed(0)
    net = build("convnet", input_shape=(3, 16, 16), num_classes=4, channels=(8, 8))
    x = direct(torch.rand(4, 3, 16, 16), 2)
    found = {}
    for way in ("keep", how):
        keep_activations(net, way)
        net.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = rate_cross_entropy(net(x).float(), torch.arange(4)).mean()
        loss.backward()
        found[way] = [p.grad.clone() for p in net.parameters()]
    for a, b in zip(found["keep"], found[how], strict=True):
        torch.testing.assert_close(a, b, rtol=2e-2, atol=1e-4)


def kept_bytes(net, how, x, monkeypatch):
    keep_activations(net, how)
    own = {p.untyped_storage().data_ptr() for p in [*net.parameters(), *net.buffers()]}
    storages = {}

    def keep(t):
        if t.untyped_storage().data_ptr() not in own:
            storages[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    def packed(t):
        found = pack(t)
        keep(found.data)
        return found

    monkeypatch.setattr(activations, "pack", packed)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        loss = net(x).sum()
    monkeypatch.undo()
    total = sum(storages.values())
    del loss
    return total


@pytest.mark.parametrize(("name", "recompute"), [("vgg9", 0.4), ("ms_resnet18", 0.5)])
def test_less_is_kept(name, recompute, monkeypatch):
    """Currents stay in ``pack``, spikes shrink to bits; ``recompute`` keeps little but bits, and the
    currents of membrane shortcuts."""
    torch.manual_seed(0)
    net = build(name, input_shape=(3, 32, 32), num_classes=4, **({"width": 8} if "resnet" in name else {}))
    x = direct(torch.rand(2, 3, 32, 32), 4)
    kept = {how: kept_bytes(net, how, x, monkeypatch) for how in ACTIVATIONS}
    assert kept["pack"] < 0.75 * kept["keep"]
    assert kept["recompute"] < recompute * kept["pack"]


def test_evaluation_keeps_nothing_and_is_the_same():
    torch.manual_seed(0)
    net = build("sew_resnet18", input_shape=(3, 32, 32), num_classes=4, width=4).eval()
    x = direct(torch.rand(2, 3, 32, 32), 2)
    with torch.no_grad():
        expected = net(x)
        for how in ACTIVATIONS:
            keep_activations(net, how)
            assert torch.equal(net(x), expected)


def test_frozen_weights_and_inputs_that_need_no_gradient():
    net = build("mlp", input_shape=(6,), num_classes=3, hidden=(5,)).double()
    keep_activations(net, "recompute")
    net.features.requires_grad_(False)
    net(torch.rand(2, 3, 6, dtype=torch.float64)).sum().backward()
    assert all(p.grad is None for p in net.features.parameters())
    assert net.readout[-1].weight.grad is not None


def test_unknown_ways_are_refused():
    with pytest.raises(ValueError, match="'zip' is unknown; choose one of keep, pack, recompute"):
        keep_activations(nn.Linear(1, 1), "zip")
