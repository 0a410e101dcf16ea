"""One network of ours, and the same in other libraries, with the same weights."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from snn.models import SpikingNetwork, build
from snn.neurons import LIF, NeuronParameters
from snn.surrogate import Surrogate

T, B = 4, 12
SHAPE, CLASSES = (2, 8, 8), 4


def ours(**neuron: Any) -> SpikingNetwork:
    """A small convolutional network in float64, with norms as after some training."""
    torch.manual_seed(0)
    constants = NeuronParameters(**neuron)
    net = build(
        "convnet", input_shape=SHAPE, num_classes=CLASSES, neuron=constants, channels=(4, 6), hidden=(16,)
    )
    for m in net.modules():
        if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d):
            m.weight.data.normal_(0.9, 0.3)
            m.bias.data.normal_(0.3, 0.3)
            m.running_mean.normal_(0, 0.2)
            m.running_var.uniform_(0.5, 1.5)
    return net.double()


def batch(seed: int = 1, size: int = B) -> tuple[Tensor, Tensor]:
    """Frames that differ over time, and labels."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(T, size, *SHAPE, generator=generator, dtype=torch.float64)
    return x, torch.randint(0, CLASSES, (size,), generator=generator)


def leaves(net: SpikingNetwork) -> list[nn.Module]:
    """Layers, norms, neurons and pooling in forward order."""
    kinds = nn.Conv2d | nn.Linear | nn.BatchNorm1d | nn.BatchNorm2d | nn.Flatten | LIF
    return [m for m in net.modules() if isinstance(m, kinds)]


def spikingjelly(net: SpikingNetwork, step_mode: str = "m") -> nn.Sequential:
    """In spikingjelly, as a plain sequence of its layers and ``LIFNode``."""
    pytest.importorskip("spikingjelly", reason="spikingjelly is not installed (extra peers)")
    from spikingjelly.activation_based import functional, layer, neuron, surrogate

    found: list[nn.Module] = []
    for m in leaves(net):
        if isinstance(m, LIF):
            c = m.constants
            kind = {"atan": surrogate.ATan, "sigmoid": surrogate.Sigmoid}[c.surrogate.name]
            found.append(
                neuron.LIFNode(
                    tau=1 / (1 - c.beta),
                    decay_input=c.decay_input,
                    v_threshold=float(c.theta),
                    v_reset=0.0 if c.reset == "hard" else None,
                    detach_reset=c.detach_reset,
                    surrogate_function=kind(alpha=c.surrogate.scale),
                )
            )
        else:
            found.append(_copied(m, layer))
    copy = nn.Sequential(*found).double()
    functional.set_step_mode(copy, step_mode)
    return copy


class Stepwise(nn.Module):
    """A network of snntorch, as its tutorials write them: the loop over time is inside."""

    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x_TB: Tensor) -> tuple[Tensor, Tensor]:
        import snntorch

        mems: dict[int, Tensor] = {}
        out = []
        for x in x_TB:
            for i, layer in enumerate(self.layers):
                if isinstance(layer, snntorch.Leaky):
                    x, mems[i] = layer(x, mems.get(i, layer.reset_mem()))
                else:
                    x = layer(x)
            out.append(x)
        return torch.stack(out), torch.stack([m.mean() for m in mems.values()])


def snntorch(net: SpikingNetwork, **leaky: Any) -> Stepwise:
    """In snntorch: ``Leaky`` that resets to zero, plain layers of torch."""
    library = pytest.importorskip("snntorch", reason="snntorch is not installed (extra peers)")
    found = []
    for m in leaves(net):
        if isinstance(m, LIF):
            c = m.constants
            assert (c.reset, c.decay_input, c.surrogate.name) == ("hard", False, "atan")
            options = {"threshold": c.theta, "reset_mechanism": "zero", **leaky}
            found.append(library.Leaky(beta=c.beta, **options))
        else:
            found.append(_copied(m, nn))
    return Stepwise(found).double()


def norse(net: SpikingNetwork, *, cells: bool = False) -> nn.Module:
    """In norse: sequences of lifted layers and ``LIF``, or one step at a time with ``LIFBoxCell``."""
    library = pytest.importorskip("norse.torch", reason="norse is not installed (extra peers)")
    found: list[nn.Module] = []
    for m in leaves(net):
        if not isinstance(m, LIF):
            found.append(_copied(m, nn) if cells else library.Lift(_copied(m, nn)))
            continue
        c = m.constants
        assert (c.reset, c.decay_input, c.surrogate.name) == ("hard", True, "fast_sigmoid")
        constants = {"tau_mem_inv": torch.tensor((1 - c.beta) * 1000), "v_th": torch.tensor(c.theta)}
        if cells:
            found.append(library.LIFBoxCell(library.LIFBoxParameters(**constants)))
        else:
            p = library.LIFParameters(tau_syn_inv=torch.tensor(1000.0), **constants)
            found.append(library.LIF(p))
    return library.SequentialState(*found).double()


def _copied(module: nn.Module, library: Any) -> nn.Module:
    kind = getattr(library, type(module).__name__.removeprefix("Spiking"))
    if isinstance(module, nn.Conv2d):
        copy = library.Conv2d(
            module.in_channels,
            module.out_channels,
            module.kernel_size,
            module.stride,
            module.padding,
            bias=module.bias is not None,
        )
    elif isinstance(module, nn.Linear):
        copy = library.Linear(module.in_features, module.out_features, bias=module.bias is not None)
    elif isinstance(module, nn.Flatten):
        return kind()
    else:
        copy = kind(module.num_features)
    copy.double().load_state_dict(module.state_dict())
    return copy


CONSTANTS = {
    "spikingjelly": {"beta": 0.5, "decay_input": True},
    "spikingjelly, one step": {"beta": 0.5, "decay_input": True, "reset": "soft"},
    "spikingjelly, sigmoid": {"beta": 0.75, "detach_reset": False, "surrogate": Surrogate("sigmoid", 4.0)},
    "snntorch": {"beta": 0.8, "detach_reset": True},
    "norse": {
        "beta": 0.6,
        "decay_input": True,
        "detach_reset": False,
        "theta": 0.5,
        "surrogate": Surrogate("fast_sigmoid", 1.0),
    },
}
CONSTANTS["norse, one step"] = CONSTANTS["norse"]
PEERS: dict[str, Callable[[SpikingNetwork], nn.Module]] = {
    "spikingjelly": spikingjelly,
    "spikingjelly, one step": lambda net: spikingjelly(net, "s"),
    "spikingjelly, sigmoid": spikingjelly,
    "snntorch": snntorch,
    "norse": norse,
    "norse, one step": lambda net: norse(net, cells=True),
}
