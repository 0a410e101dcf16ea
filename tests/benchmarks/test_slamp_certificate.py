"""The certificate against what pruning really does: never below, and tight where it can be."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from benchmarks.slamp_certificate import certify
from pruning.weights.allocation import allocate
from pruning.weights.masks import Masks
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


@torch.no_grad()
def change(model, masks, x):
    pruned = copy.deepcopy(model)
    masks.apply_(pruned)
    return (pruned.eval()(x).mean(0) - model.eval()(x).mean(0)).abs()


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(KINDS),
    st.integers(0, 10**6),
    st.floats(0.01, 0.9),
    st.sampled_from([{}, {"beta": 0.9, "reset": "soft"}, {"beta": 1.0}, {"decay_input": True, "theta": 0.6}]),
    st.integers(-1, 4),
)
def test_never_violated(kind, seed, sparsity, neuron, only):
    model, x = network(kind, seed, **neuron)
    masks = allocate(model, criterion="magnitude", sparsity=sparsity).masks
    if 0 <= only < len(masks):  # one layer alone, where the bound is not vacuous
        keep = Masks.of(model)
        masks = Masks({n: masks[n] if i == only else keep[n] for i, n in enumerate(masks)})
    certificate = certify(model, masks, x)
    assert (change(model, masks, x) <= certificate.bound).all()
    assert all(0 <= share <= 1 for share in certificate.flagged.values())


def test_the_head_alone_is_exact():
    model, x = network("convnet")
    head = model.synapses()[-1]
    keep = dict(Masks.of(model))
    keep[head.name] = torch.rand(head.layer.weight.shape) < 0.5
    masks = Masks(keep)
    certificate = certify(model, masks, x)
    torch.testing.assert_close(certificate.bound, change(model, masks, x), rtol=1e-6, atol=1e-8)
    assert set(certificate.flagged.values()) == {0.0}


def test_nothing_pruned_changes_nothing():
    model, x = network("mlp")
    certificate = certify(model, Masks.of(model), x)
    assert certificate.bound.max() < 1e-8
    assert max(certificate.flagged.values()) == 0


def test_small_changes_below_every_margin_are_certified_away():
    model, x = network("mlp")
    first = model.synapses()[0]
    with torch.no_grad():
        first.layer.weight[:, 0] = 1e-7
    keep = dict(Masks.of(model))
    keep[first.name] = torch.ones_like(keep[first.name])
    keep[first.name][:, 0] = False
    certificate = certify(model, Masks(keep), x)
    assert certificate.bound.max() < 1e-8


def test_layers_before_the_pruned_one_are_untouched():
    model, x = network("convnet")
    third = model.synapses()[2].name
    keep = dict(Masks.of(model))
    keep[third] = allocate(model, criterion="uniform", sparsity=0.5).masks[third]
    flagged = list(certify(model, Masks(keep), x).flagged.values())
    assert flagged[:2] == [0, 0]
    assert min(flagged[2:]) > 0


def test_refusals():
    model, x = network("mlp")
    with pytest.raises(ValueError, match="layer"):
        certify(model, Masks({}), x)
    model.features.append(nn.Tanh())
    with pytest.raises(ValueError, match="Tanh"):
        certify(model, Masks.of(model), x)
