"""NIR: an interpreter of NIR's own equations, and spikingjelly's import."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from snn.batchnorm import reestimate
from snn.coding import direct
from snn.layers import SpikingLayer
from snn.models import SpikingNetwork, build
from snn.neurons import LIF, NeuronParameters
from snn.nir_graph import to_nir

nir = pytest.importorskip("nir", reason="the nir extra is not installed")

CASES = {
    "mlp": ("mlp", {"input_shape": (3, 4), "hidden": (12, 9)}, NeuronParameters(beta=0.8)),
    "mlp without norm": (
        "mlp",
        {"input_shape": (12,), "hidden": (9,), "norm": False},
        NeuronParameters(beta=1.0),
    ),
    "convnet": (
        "convnet",
        {"input_shape": (2, 9, 8), "channels": (4, 6), "hidden": (10,)},
        NeuronParameters(beta=0.5, decay_input=True, theta=0.6),
    ),
    "vgg6": ("vgg6", {"input_shape": (2, 16, 16), "grid": 2}, NeuronParameters(beta=0.75, learn_beta=True)),
    "vgg6, pooling that leaves a row out": ("vgg6", {"input_shape": (2, 6, 7)}, NeuronParameters(beta=0.75)),
}


def trained(case):
    name, arguments, neuron = CASES[case]
    # A graph's weights are float32: with some seeds the rounding moves a spike at the threshold.
    torch.manual_seed(1)
    model = build(name, num_classes=3, neuron=neuron, **arguments)
    x_TB = direct(torch.rand(16, *arguments["input_shape"]) * 2, 4)
    reestimate(model, [x_TB])
    with torch.no_grad():
        for s in model.synapses():
            if s.norm is not None:
                s.norm.weight.uniform_(0.5, 1.5)
                s.norm.bias.uniform_(0, 0.5)
    return model.eval(), x_TB


def interpret(graph, x_TB, dt):
    """NIR's equations, one Euler step of dt after the other, on float64 arrays."""
    following = dict(graph.edges)
    state, outputs = {}, []
    for x in x_TB.double():
        name = "input"
        while name != "output":
            node = graph.nodes[name]
            if isinstance(node, nir.Affine | nir.Linear):
                x = (
                    x @ torch.tensor(node.weight).double().T
                    + torch.tensor(getattr(node, "bias", 0.0)).double()
                )
            elif isinstance(node, nir.Conv2d):
                w, b = torch.tensor(node.weight).double(), torch.tensor(node.bias).double()
                sizes = (tuple(map(int, of)) for of in (node.stride, node.padding, node.dilation))
                x = F.conv2d(x, w, b, *sizes, int(node.groups))
            elif isinstance(node, nir.Flatten):
                x = x.flatten(1)
            elif isinstance(node, nir.AvgPool2d):
                x = F.avg_pool2d(x, *(tuple(map(int, of)) for of in (node.kernel_size, node.stride)))
            elif isinstance(node, nir.LIF | nir.IF):
                v = state.get(name, torch.zeros_like(x))
                if isinstance(node, nir.LIF):
                    slope = (torch.tensor(node.v_leak) - v + torch.tensor(node.r) * x) / torch.tensor(
                        node.tau
                    )
                else:
                    slope = torch.tensor(node.r) * x
                v = v + dt * slope
                fires = v > torch.tensor(node.v_threshold)
                state[name] = torch.where(fires, torch.tensor(node.v_reset), v)
                x = fires.double()
            name = following[name]
        outputs.append(x)
    return torch.stack(outputs)


@pytest.mark.parametrize("case", CASES)
def test_the_graph_computes_what_the_network_does(case, tmp_path):
    model, x_TB = trained(case)
    nir.write(tmp_path / "a.nir", to_nir(model, dt=1e-3))
    graph = nir.read(tmp_path / "a.nir")
    wanted = model.double()(x_TB.double())
    found = interpret(graph, x_TB, dt=1e-3)
    assert wanted.std() > 1e-2
    assert torch.allclose(found, wanted, atol=1e-5)


def test_a_norm_without_an_affine_part_is_folded_too():
    torch.manual_seed(0)
    layer = SpikingLayer(nn.Linear(6, 9), nn.BatchNorm1d(9, affine=False), LIF())
    model = SpikingNetwork(nn.Sequential(layer), nn.Sequential(nn.Linear(9, 3)))
    model.input_shape = (6,)
    x_TB = torch.rand(4, 16, 6) * 2
    reestimate(model, [x_TB])
    found = interpret(to_nir(model.eval()), x_TB, dt=1e-4)
    wanted = model.double()(x_TB.double())
    assert wanted.std() > 1e-2
    assert torch.allclose(found, wanted, atol=1e-5)
    layer.norm.running_mean = None
    with pytest.raises(ValueError, match="without running statistics"):
        to_nir(model)


@pytest.mark.parametrize("case", CASES)
def test_spikingjelly_reads_the_same_network(case):
    exchange = pytest.importorskip(
        "spikingjelly.activation_based.nir_exchange", reason="spikingjelly 2.0.0 is not installed"
    )
    model, x_TB = trained(case)
    theirs = exchange.import_from_nir(to_nir(model), dt=1e-4)
    from spikingjelly.activation_based import functional

    functional.set_step_mode(theirs, "m")
    found = theirs.double()(x_TB.double())
    found = found[0] if isinstance(found, tuple) else found
    assert torch.allclose(found, model.double()(x_TB.double()), atol=1e-5)


class TestRefusals:
    @pytest.mark.parametrize(
        ("name", "neuron", "message"),
        [
            ("sew_resnet18", NeuronParameters(), "SEWBlock has no place"),
            ("vgg9", NeuronParameters(), "MaxPool2d has no place"),
            ("vgg6", NeuronParameters(reset="soft"), "reset: 'soft' cannot be told in NIR"),
        ],
    )
    def test_what_nir_cannot_tell(self, name, neuron, message):
        model = build(name, input_shape=(3, 16, 16), num_classes=3, neuron=neuron)
        with pytest.raises(ValueError, match=message):
            to_nir(model)

    def test_dt(self):
        with pytest.raises(ValueError, match="dt: 0 must be a positive"):
            to_nir(trained("mlp")[0], dt=0)
