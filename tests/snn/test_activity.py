"""SynOps against a loop over every weight and every position, rates against plain counting."""

import itertools

import pytest
import torch
from torch import nn

from snn.activity import AC_PICOJOULES, MAC_PICOJOULES, collect, from_sums, measure, synaptic_operations
from snn.coding import direct
from snn.layers import Synapses
from snn.models import build
from snn.neurons import LIF


def brute_force(layer, x):
    """(surviving, dense) operations, one position and one weight at a time."""
    w = layer.weight
    counts = [0, 0]
    if isinstance(layer, nn.Linear):
        for row in x.flatten(0, -2):
            for o, i in itertools.product(range(w.shape[0]), range(w.shape[1])):
                if row[i] != 0:
                    counts[1] += 1
                    counts[0] += int(w[o, i] != 0)
        return tuple(counts)
    (ph, pw), (sh, sw), (dh, dw) = layer.padding, layer.stride, layer.dilation
    H, W = x.shape[2:]
    out, per_group, kh, kw = w.shape
    OH = (H + 2 * ph - dh * (kh - 1) - 1) // sh + 1
    OW = (W + 2 * pw - dw * (kw - 1) - 1) // sw + 1
    for image in x:
        for o, c, i, j, y, z in itertools.product(*map(range, (out, per_group, kh, kw, OH, OW))):
            a, b = y * sh + i * dh - ph, z * sw + j * dw - pw
            channel = o // (out // layer.groups) * per_group + c
            if 0 <= a < H and 0 <= b < W and image[channel, a, b] != 0:
                counts[1] += 1
                counts[0] += int(w[o, c, i, j] != 0)
    return tuple(counts)


def prune_half(layer, seed):
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        layer.weight *= torch.rand(layer.weight.shape, generator=g) < 0.5


@pytest.mark.parametrize(
    "layer",
    [
        nn.Linear(7, 5),
        nn.Conv2d(3, 4, 3, padding=1),
        nn.Conv2d(3, 4, 3, stride=2, padding=1),
        nn.Conv2d(4, 6, (3, 2), stride=(1, 3), padding=(2, 1), dilation=(2, 1)),
        nn.Conv2d(4, 6, 3, stride=2, groups=2),
        nn.Conv2d(4, 4, 1, stride=2),
    ],
    ids=str,
)
def test_operations_equal_a_loop_over_every_weight_and_position(layer):
    prune_half(layer, 0)
    g = torch.Generator().manual_seed(1)
    shape = (3, 7) if isinstance(layer, nn.Linear) else (2, layer.in_channels, 6, 7)
    x = (torch.rand(shape, generator=g) < 0.4).float()
    synops, dense = synaptic_operations(layer, x != 0)
    assert (int(synops), int(dense)) == brute_force(layer, x)
    assert 0 < synops < dense


def test_same_padding_counts_as_the_equal_explicit_padding():
    a = nn.Conv2d(2, 3, 3, padding="same")
    b = nn.Conv2d(2, 3, 3, padding=1)
    x = torch.rand(2, 2, 5, 5) < 0.5
    assert synaptic_operations(a, x)[1] == synaptic_operations(b, x)[1]


@pytest.mark.parametrize("static", [True, False])
def test_a_whole_network_equals_brute_force(static):
    torch.manual_seed(0)
    model = build("convnet", input_shape=(2, 8, 8), num_classes=3, channels=(4, 5), hidden=(6,))
    for i, s in enumerate(model.synapses()):
        prune_half(s.layer, i)
    T, B = 3, 2
    x_TB = direct(torch.rand(B, 2, 8, 8), T) if static else (torch.rand(T, B, 2, 8, 8) < 0.3).float()
    inputs, outputs = {}, {}
    for s in model.synapses():
        s.layer.register_forward_pre_hook(lambda m, a, k=s.name: inputs.__setitem__(k, a[0]))
        if s.neuron is not None:
            s.neuron.register_forward_hook(lambda m, a, o, k=s.name: outputs.__setitem__(k, o))
    model.train()
    activity = measure(model, [x_TB])
    assert model.training
    assert all(m.training for m in model.modules())
    for layer, s in zip(activity.layers, model.synapses(), strict=True):
        x = inputs[s.name]
        repeats = T * B // x.shape[0]
        synops, dense = (repeats * n / B for n in brute_force(s.layer, x))
        assert layer.synops == synops
        assert layer.dense_synops == dense
        assert layer.input_rate == pytest.approx(float((x != 0).float().mean()))
        assert layer.density == pytest.approx(float((s.layer.weight != 0).float().mean()))
        if s.neuron is not None:
            assert layer.firing_rate == pytest.approx(float(outputs[s.name].mean()))
    first = activity.layers[0]
    assert (first.macs > 0, first.acs > 0) == ((True, False) if static else (False, True))
    assert all(layer.macs == 0 for layer in activity.layers[1:])
    assert activity.layers[-1].firing_rate is None
    assert activity.synops == activity.acs + activity.macs
    assert activity.energy_pj == AC_PICOJOULES * activity.acs + MAC_PICOJOULES * activity.macs


class Own(nn.Module):
    """The same function with its weight layers in several layouts of time."""

    def __init__(self, layout):
        super().__init__()
        torch.manual_seed(0)
        self.layout = layout
        self.first, self.neuron, self.readout = nn.Linear(5, 6), LIF(), nn.Sequential(nn.Linear(6, 3))
        with torch.no_grad():
            self.first.weight.abs_()

    def run(self, layer, x_TB):
        T, B = x_TB.shape[:2]
        if self.layout == "folded":
            return layer(x_TB.flatten(0, 1)).unflatten(0, (T, B))
        if self.layout == "step by step":
            return torch.stack([layer(x) for x in x_TB])
        if self.layout == "batch first":
            return layer(x_TB.transpose(0, 1)).transpose(0, 1)
        if self.layout == "twice" and layer is self.first:
            return (layer(x_TB[0]) + layer(x_TB[0])).expand(T, -1, -1)
        if self.layout == "once" and layer is self.first:
            return layer(x_TB[0]).expand(T, -1, -1)
        return layer(x_TB)

    def forward(self, x_TB):
        return self.run(self.readout[0], self.neuron(self.run(self.first, x_TB)))

    def synapses(self):
        return [
            Synapses("first", self.first, None, self.neuron),
            Synapses("readout.0", self.readout[0], None, None),
        ]


@pytest.mark.parametrize("layout", ["not folded", "step by step", "once"])
@pytest.mark.parametrize(("T", "B"), [(4, 6), (4, 4), (5, 5), (2, 2), (4, 1), (1, 4), (1, 1)])
@pytest.mark.parametrize("static", [True, False])
def test_operations_do_not_depend_on_how_a_network_folds_time(layout, T, B, static):
    if layout == "once" and not static:
        return
    g = torch.Generator().manual_seed(1)
    x = (torch.rand(B if static else T * B, 5, generator=g) < 0.5).float()
    x_TB = direct(x, T) if static else x.unflatten(0, (T, B))
    expected, found = (measure(Own(name), [x_TB]) for name in ("folded", layout))
    assert found == expected
    assert expected.layers[0].dense_synops == int(x_TB.count_nonzero()) * 6 / B


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ("batch first", r"first: ran on \(2, 3, 5\), where T=3 and B=2; a weight layer must run on \[T\*B"),
        ("twice", r"first: ran on \(2, 5\), 2 times, where T=3"),
    ],
)
def test_a_layout_that_tells_no_time_is_refused(layout, message):
    with pytest.raises(ValueError, match=message):
        measure(Own(layout), [torch.rand(3, 2, 5)])


def test_pruning_lowers_synops_and_leaves_the_dense_count():
    model = build("mlp", input_shape=(10,), num_classes=3, hidden=(8,))
    x_TB = direct(torch.rand(4, 10), 2)
    before = measure(model, [x_TB])
    head = model.synapses()[-1].layer
    with torch.no_grad():
        head.weight[0] = 0
    after = measure(model, [x_TB])
    assert after.layers[1].synops == pytest.approx(before.layers[1].synops * 2 / 3)
    assert after.layers[1].dense_synops == before.layers[1].dense_synops
    assert after.density < before.density == 1


def test_sums_of_workers_add_to_the_whole():
    model = build("convnet", input_shape=(1, 8, 8), num_classes=3, channels=(4,), hidden=(6,))
    parts = [torch.rand(2, b, 1, 8, 8) for b in (3, 1, 4)]
    whole = measure(model, [torch.cat(parts, 1)])
    merged = sum(collect(model, [p]) for p in parts)
    assert from_sums(model, merged) == whole == measure(model, parts)


def test_measuring_leaves_norm_statistics_and_gradients_alone():
    model = build("mlp", input_shape=(10,), num_classes=3)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    measure(model, [direct(torch.rand(4, 10), 2)])
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_errors_name_what_is_wrong():
    model = build("mlp", input_shape=(10,), num_classes=3)
    with pytest.raises(ValueError, match="no example"):
        measure(model, [])
    other = build("mlp", input_shape=(10,), num_classes=3, hidden=(4,))
    with pytest.raises(ValueError, match="of 3 layers, the model has 2"):
        from_sums(other, collect(model, []))
