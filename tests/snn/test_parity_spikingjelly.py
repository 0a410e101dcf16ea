"""Our networks against spikingjelly 2.0.0: same weights, same logits, same gradients, in float64.

spikingjelly comes with the extra `peers`; these tests skip where it is absent.
"""

import pytest
import torch
from torch import nn

from snn.coding import direct
from snn.models import build
from snn.neurons import NeuronParameters, lif
from snn.surrogate import Surrogate
from tests.snn.spikingjelly_names import from_spikingjelly_sew_resnet

SURROGATES = {"atan": ("ATan", {"alpha": 2.0}), "sigmoid": ("Sigmoid", {"alpha": 4.0})}


@pytest.fixture(scope="module")
def sj():
    pytest.importorskip("spikingjelly", reason="spikingjelly 2.0.0 is not installed")
    from spikingjelly.activation_based import functional, layer, neuron, surrogate
    from spikingjelly.activation_based.model import sew_resnet

    class Namespace:
        pass

    Namespace.functional, Namespace.layer, Namespace.neuron = functional, layer, neuron
    Namespace.surrogate, Namespace.sew_resnet = surrogate, sew_resnet
    return Namespace


def node(sj, p, tau):
    kind, options = SURROGATES[p.surrogate.name]
    return {
        "tau": tau,
        "decay_input": p.decay_input,
        "v_threshold": p.theta,
        "v_reset": 0.0 if p.reset == "hard" else None,
        "detach_reset": p.detach_reset,
        "surrogate_function": getattr(sj.surrogate, kind)(**options),
    }


@pytest.mark.parametrize("surrogate", SURROGATES)
@pytest.mark.parametrize("decay", [True, False])
@pytest.mark.parametrize("detach", [True, False])
@pytest.mark.parametrize("reset", ["hard", "soft"])
def test_lif_layer(sj, reset, detach, decay, surrogate):
    p = NeuronParameters(
        beta=0.75,
        theta=0.9,
        reset=reset,
        detach_reset=detach,
        decay_input=decay,
        surrogate=Surrogate(surrogate),
    )
    x = (torch.randn(6, 4, 50, dtype=torch.float64) * 3).requires_grad_()
    grad = torch.randn(6, 4, 50, dtype=torch.float64)
    theirs = sj.neuron.LIFNode(**node(sj, p, tau=4.0), step_mode="m")(x)
    ours = lif(x, p)[0]
    assert torch.equal(ours, theirs)
    assert 0.05 < ours.mean() < 0.9
    (wanted,) = torch.autograd.grad(theirs, x, grad)
    (found,) = torch.autograd.grad(ours, x, grad)
    assert torch.allclose(found, wanted, rtol=1e-9, atol=1e-12)


def test_parametric_lif_layer(sj):
    x = (torch.randn(6, 4, 50, dtype=torch.float64) * 3).requires_grad_()
    theirs = sj.neuron.ParametricLIFNode(
        init_tau=4.0, v_reset=0.0, detach_reset=True, surrogate_function=sj.surrogate.ATan(), step_mode="m"
    ).double()
    beta_logit = (-theirs.w.detach()).clone().requires_grad_()
    p = NeuronParameters(beta=0.75, decay_input=True)
    ours, _ = lif(x, p, beta=beta_logit.sigmoid())
    spikes = theirs(x)
    assert torch.equal(ours, spikes)
    grad = torch.randn_like(ours)
    wanted = torch.autograd.grad(spikes, [x, theirs.w], grad)
    found = torch.autograd.grad(ours, [x, beta_logit], grad)
    assert torch.allclose(found[0], wanted[0], rtol=1e-9, atol=1e-12)
    assert torch.allclose(found[1], -wanted[1], rtol=1e-9)


def compare(theirs, ours, names, x_B, T):
    """Logits and every gradient, batch norm in training mode; ``names``: theirs to ours."""
    wanted, found = theirs(x_B.repeat(T, *[1] * x_B.ndim)), ours(direct(x_B, T))
    assert torch.allclose(found, wanted, rtol=1e-9, atol=1e-10)
    assert wanted.abs().max() > 1e-3
    labels = torch.arange(len(x_B)) % wanted.shape[-1]
    for logits in (wanted, found):
        nn.functional.cross_entropy(logits.mean(0), labels).backward()
    own = dict(ours.named_parameters())
    assert len(names) == len(own)
    largest = 0.0
    for name, p in theirs.named_parameters():
        g = own[names[name]].grad
        assert torch.allclose(g, p.grad, rtol=1e-7, atol=1e-10), name
        largest = max(largest, float(g.abs().max()))
    assert largest > 1e-4


@pytest.mark.parametrize("reset", ["hard", "soft"])
def test_convolutional_network(sj, reset):
    torch.manual_seed(0)
    p = NeuronParameters(beta=0.5, decay_input=True, reset=reset)
    ours = build("convnet", input_shape=(3, 16, 16), num_classes=5, neuron=p, channels=(8, 12), hidden=(16,))
    modules, names = [], {}
    for module in ours.double().modules():
        copy = None
        if isinstance(module, nn.Conv2d):
            copy = sj.layer.Conv2d(
                module.in_channels, module.out_channels, 3, stride=2, padding=1, bias=False
            )
        elif isinstance(module, nn.Linear):
            copy = sj.layer.Linear(module.in_features, module.out_features, bias=module.bias is not None)
        elif isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
            copy = getattr(sj.layer, type(module).__name__)(module.num_features)
        elif isinstance(module, nn.Flatten):
            copy = sj.layer.Flatten()
        elif type(module).__name__ == "LIF":
            copy = sj.neuron.LIFNode(**node(sj, p, tau=2.0))
        if copy is None:
            continue
        copy.double().load_state_dict(module.state_dict())
        path = next(k for k, m in ours.named_modules() if m is module)
        names |= {f"{len(modules)}.{k}": f"{path}.{k}" for k, _ in module.named_parameters(recurse=False)}
        modules.append(copy)
    theirs = nn.Sequential(*modules)
    sj.functional.set_step_mode(theirs, "m")
    compare(theirs, ours, names, torch.rand(6, 3, 16, 16, dtype=torch.float64), T=4)


@pytest.mark.parametrize("depth", [18, pytest.param(50, marks=pytest.mark.slow)])
def test_sew_resnet(sj, depth):
    torch.manual_seed(0)
    p = NeuronParameters(beta=0.5, decay_input=True)
    theirs = getattr(sj.sew_resnet, f"sew_resnet{depth}")(
        num_classes=5, cnf="ADD", spiking_neuron=sj.neuron.LIFNode, **node(sj, p, tau=2.0)
    ).double()
    sj.functional.set_step_mode(theirs, "m")
    ours = build(
        f"sew_resnet{depth}", input_shape=(3, 64, 64), num_classes=5, neuron=p, stem="large"
    ).double()
    ours.load_state_dict(from_spikingjelly_sew_resnet(theirs.state_dict()))
    parameters = dict(theirs.named_parameters())
    marks = {k: torch.full((1,), float(i)) for i, k in enumerate(parameters)}
    mapped = {int(v): k for k, v in from_spikingjelly_sew_resnet(marks).items()}
    names = {k: mapped[i] for i, k in enumerate(parameters)}
    compare(theirs, ours, names, torch.rand(4, 3, 64, 64, dtype=torch.float64), T=3)
