"""The same networks and layers with other neurons: none, and those of other libraries.

spikingjelly 2.0.0 (its multi-step LIFNode), snntorch 1.0.0 and norse 1.1.0 (one call of the whole network
per timestep, their idiom) are no dependencies. An environment for them beside this one:

    uv venv peers && uv pip install --python peers . spikingjelly==2.0.0 snntorch==1.0.0 norse==1.1.0
"""

import copy
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor, nn

from snn import kernels
from snn.activations import ACTIVATIONS, keep_activations
from snn.layers import SpikingLayer
from snn.models.base import SpikingNetwork
from snn.neurons import LIF, NeuronParameters
from snn.weighted_norm import weighted_statistics

NEURON = NeuronParameters(beta=0.5, decay_input=True)
PEERS = ("spikingjelly", "snntorch", "norse")


class Stepwise(nn.Module):
    """A network called once per timestep, its neurons' state cleared at the start."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x_TB: Tensor) -> Tensor:
        for module in self.model.modules():
            if isinstance(module, StepNeuron):
                module.state = None
        return torch.cat([self.model(x_TB[t : t + 1]) for t in range(len(x_TB))])


class StepNeuron(nn.Module):
    """One timestep of another library's neuron, with the state it wants back."""

    def __init__(self, step: Callable[[Tensor, Any], tuple[Tensor, Any]]) -> None:
        super().__init__()
        self.step = step
        self.state: Any = None

    def forward(self, current_TB: Tensor) -> Tensor:
        spikes, self.state = self.step(current_TB[0], self.state)
        return spikes[None]


class SpikingJellyNeuron(nn.Module):
    """Its multi-step LIF, reset before every sequence."""

    def __init__(self) -> None:
        super().__init__()
        from spikingjelly.activation_based import neuron, surrogate

        self.node = neuron.LIFNode(
            tau=2.0, v_reset=0.0, detach_reset=True, surrogate_function=surrogate.ATan(), step_mode="m"
        )

    def forward(self, current_TB: Tensor) -> Tensor:
        self.node.reset()
        return self.node(current_TB)


def snntorch_step() -> Callable[[Tensor, Any], tuple[Tensor, Any]]:
    import snntorch
    from snntorch import surrogate

    leaky = snntorch.Leaky(beta=0.5, spike_grad=surrogate.atan(alpha=2.0), reset_mechanism="zero")

    def step(current: Tensor, state: Any) -> tuple[Tensor, Any]:
        return leaky(current * 0.5, leaky.init_leaky() if state is None else state)

    return step


def norse_step() -> Callable[[Tensor, Any], tuple[Tensor, Any]]:
    import norse.torch as norse

    cell = norse.LIFBoxCell(norse.LIFBoxParameters(tau_mem_inv=torch.tensor(500.0)), dt=0.001)
    return lambda current, state: cell(current, state)


def installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def with_neurons(model: SpikingNetwork, make: Callable[[], nn.Module]) -> SpikingNetwork:
    """A copy of the network with other neurons."""
    model = copy.deepcopy(model)
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, LIF):
                setattr(module, name, make())
    return model


def network_variants(model: SpikingNetwork) -> dict[str, tuple[nn.Module, bool]]:
    """Networks by name, and whether each is given the static view (else T copies of the images)."""

    def without(make: Callable[[], nn.Module], channels_last: bool = False) -> nn.Module:
        return _of_torch(with_neurons(model, make), channels_last)

    ours = copy.deepcopy(model)
    other = copy.deepcopy(model)
    other.channels_last = not model.channels_last
    variants: dict[str, tuple[nn.Module, bool]] = {
        "limit": (without(nn.Identity), False),
        "limit, channels_last": (without(nn.Identity, True), False),
        "ours": (ours, True),
        "ours, channels_last" if other.channels_last else "ours, NCHW": (other, True),
        "ours, weighted": (Weighted(copy.deepcopy(model)), True),
    }
    if installed("spikingjelly"):
        variants["spikingjelly"] = (without(SpikingJellyNeuron), False)
        variants["spikingjelly, channels_last"] = (without(SpikingJellyNeuron, True), False)
    if installed("snntorch"):
        variants["snntorch"] = (Stepwise(without(lambda: StepNeuron(snntorch_step()))), False)
    if installed("norse"):
        variants["norse"] = (Stepwise(without(lambda: StepNeuron(norse_step()))), False)
    return variants


def _of_torch(net: SpikingNetwork, channels_last: bool) -> SpikingNetwork:
    """The network in that memory format."""
    net.channels_last = channels_last
    return net


def memory_variants(model: SpikingNetwork, x_TB: Tensor) -> dict[str, tuple[nn.Module, bool]]:
    """As `network_variants`: how activations are kept, ours and spikingjelly's.

    Of spikingjelly's levels those above 1 search with a GPU's peak memory; level 1 recomputes all layers and
    keeps spikes as bits.
    """
    variants: dict[str, tuple[nn.Module, bool]] = {}
    for how in ACTIVATIONS:
        net = copy.deepcopy(model)
        keep_activations(net, how)
        variants["ours" if how == "keep" else f"ours, {how}"] = net, True
    if installed("spikingjelly"):
        from spikingjelly.activation_based import memopt

        plain = _of_torch(with_neurons(model, SpikingJellyNeuron), channels_last=False)
        variants["spikingjelly"] = copy.deepcopy(plain), False
        level = 4 if x_TB.device.type == "cuda" else 1
        variants[f"spikingjelly, memory level {level}"] = (
            memopt.optimize_memory(plain, SpikingLayer, lambda net: net(x_TB), level=level),
            False,
        )
    return variants


class Weighted(nn.Module):
    """A network whose batch norms take example weights, half of them below 1."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x_TB: Tensor) -> Tensor:
        weights = torch.linspace(0.5, 1.5, x_TB.shape[1], device=x_TB.device)
        with weighted_statistics(weights):
            y: Tensor = self.model(x_TB)
        return y


def layer_variants(steps: int) -> dict[str, Callable[[Tensor], Tensor]]:
    variants: dict[str, Callable[[Tensor], Tensor]] = {
        "ours": LIF(NEURON),
        "ours, eager": lambda x: kernels.lif(x, NEURON, engine="eager"),
    }
    if installed("spikingjelly"):
        variants["spikingjelly"] = SpikingJellyNeuron()

    def looped(make: Callable[[], Callable[[Tensor, Any], tuple[Tensor, Any]]]) -> Callable[[Tensor], Tensor]:
        step = make()

        def run(x: Tensor) -> Tensor:
            state, spikes = None, []
            for t in range(steps):
                s, state = step(x[t], state)
                spikes.append(s)
            return torch.stack(spikes)

        return run

    if installed("snntorch"):
        variants["snntorch"] = looped(snntorch_step)
    if installed("norse"):
        variants["norse"] = looped(norse_step)
    return variants
