import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pruning.weights.allocation import allocate
from pruning.weights.compaction import compact
from snn.batchnorm import reestimate
from snn.layers import Folded, SpikingLayer
from snn.models import SpikingNetwork, build
from snn.neurons import LIF, NeuronParameters


def frames(shape, T=5, B=4, seed=0):
    g = torch.Generator().manual_seed(seed)
    return (torch.rand(T, B, *shape, generator=g, dtype=torch.float64) * 3).floor()


def network(kind: str, seed: int = 0, **neuron) -> tuple[SpikingNetwork, torch.Tensor]:
    torch.manual_seed(seed)
    p = NeuronParameters(**neuron)
    if kind == "convnet":
        model = build(
            "convnet", input_shape=(2, 8, 8), num_classes=3, neuron=p, channels=(6, 7), hidden=(9, 5)
        )
        x = frames((2, 8, 8))
    elif kind == "pooled":
        pool, flat = Folded(nn.AvgPool2d(2)), nn.Flatten()
        conv = SpikingLayer(nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6), LIF(p))
        last = SpikingLayer(nn.Conv2d(6, 8, 3, padding=1, bias=True), None, LIF(p))
        readout = nn.Sequential(nn.AdaptiveAvgPool2d(1), flat, nn.Linear(8, 3))
        model = SpikingNetwork(nn.Sequential(conv, pool, last), readout)
        x = frames((2, 8, 8))
    else:
        model = build("mlp", input_shape=(12,), num_classes=3, neuron=p, hidden=(15, 9), norm=kind == "mlp")
        x = frames((12,))
    model = model.double()
    reestimate(model, [x])
    for m in model.modules():
        if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.uniform_(m.bias, -0.3, 1.2)
    return model.eval(), x


KINDS = ["convnet", "pooled", "mlp", "mlp without norm"]


@settings(deadline=None, max_examples=25)
@given(
    st.sampled_from(KINDS),
    st.integers(0, 10**6),
    st.floats(0.3, 0.97),
    st.sampled_from([{}, {"beta": 0.9, "reset": "soft"}, {"beta": 1.0}, {"decay_input": True, "theta": 0.6}]),
)
@torch.no_grad()
def test_outputs_are_the_same(kind, seed, sparsity, neuron):
    model, x = network(kind, seed, **neuron)
    N = sum(s.layer.weight.numel() for s in model.synapses())
    sparsity = min(sparsity, 1 - len(model.synapses()) / N)
    allocate(model, criterion="magnitude", sparsity=sparsity).masks.apply_(model)
    before = copy.deepcopy(model.state_dict())
    small = compact(model)
    torch.testing.assert_close(small.model(x), model(x), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(model.state_dict(), before)
    for s in small.model.synapses()[:-1]:
        assert s.layer.weight.shape[0] == small.widths[s.name] >= 1
    assert [s.name for s in small.model.synapses()] == [s.name for s in model.synapses()]


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_dead_channels_are_cut_in_chains(kind):
    """A channel nobody reads, one that never spikes, and what only these fed."""
    model, x = network(kind)
    first, second = model.synapses()[:2]
    channels, positions = (
        first.layer.weight.shape[0],
        second.layer.weight.shape[1] // first.layer.weight.shape[0],
    )
    second.layer.weight.unflatten(1, (channels, positions))[:, 0] = 0  # channel 0 is not read
    first.layer.weight[1] = 0  # channel 1 is silent
    for part in (first.norm, first.layer):
        if getattr(part, "bias", None) is not None:
            part.bias[1] = -1.0
    if first.norm is not None:
        first.norm.running_mean[1] = 0
    second.layer.weight[2] = 0  # channel 2 of the second hears only channels 0 and 1
    second.layer.weight[2].unflatten(0, (channels, positions))[:2] = 1.0
    second.layer.weight.unflatten(1, (channels, positions))[:, 0] = 0
    for part in (second.norm, second.layer):
        if getattr(part, "bias", None) is not None:
            part.bias[2] = -1.0
    if second.norm is not None:
        second.norm.running_mean[2] = 0
    small = compact(model)
    kept = small.kept[first.name].tolist()
    assert kept == list(range(2, channels))
    assert 2 not in small.kept[second.name].tolist()
    torch.testing.assert_close(small.model(x), model(x), rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_a_channel_that_spikes_by_itself_stays():
    model, x = network("mlp", beta=0.5)
    s = model.synapses()[0]
    s.layer.weight[3] = 0
    s.norm.running_mean[3], s.norm.running_var[3], s.norm.weight[3] = 0, 1, 1
    for bias, spikes in [(0.45, False), (0.55, True)]:  # times 1 / (1 - beta) = 2 against theta = 1
        s.norm.bias[3] = bias
        assert (3 in compact(model).kept[s.name].tolist()) == spikes
        torch.testing.assert_close(compact(model).model(x), model(x), rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_an_all_dead_layer_keeps_one_channel():
    model, x = network("mlp")
    model.synapses()[1].layer.weight.zero_()
    model.synapses()[1].norm.bias.fill_(-3)
    model.synapses()[1].norm.running_mean.zero_()
    small = compact(model)
    assert set(small.widths.values()) == {1}
    torch.testing.assert_close(small.model(x), model(x), rtol=1e-9, atol=1e-9)


def test_the_small_network_trains_on():
    model, x = network("convnet")
    allocate(model, criterion="lamp", sparsity=0.9).masks.apply_(model)
    small = compact(model.train()).model
    assert small.training
    small(x).square().sum().backward()
    assert all(p.grad is not None for p in small.parameters())
    assert small.synapses()[0].layer.weight.numel() <= model.synapses()[0].layer.weight.numel()


def test_other_shapes_of_networks_are_refused():
    model, _ = network("convnet")
    model.features.append(nn.Softmax())
    with pytest.raises(ValueError, match=r"features\.5: Softmax"):
        compact(model)
    grouped = SpikingNetwork(
        nn.Sequential(SpikingLayer(nn.Conv2d(2, 4, 3, groups=2), None, LIF())),
        nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)),
    )
    with pytest.raises(ValueError, match="grouped"):
        compact(grouped)
