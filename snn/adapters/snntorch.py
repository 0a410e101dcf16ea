"""snntorch's neurons (1.0.0), which run step by step: ``Leaky``, and whatever else spikes."""

from collections.abc import Callable

import snntorch
import torch
from torch import Tensor, nn

from snn.adapters.library import Library
from snn.parameters import NeuronParameters
from snn.surrogate import Surrogate


class SnnTorch(Library):
    """Networks of ``snntorch``."""

    state_is_argument = True

    def is_neuron(self, path: str, module: nn.Module) -> bool:
        """Any of its spiking neurons."""
        return isinstance(module, snntorch.SpikingNeuron) or super().is_neuron(path, module)

    def one_step(self, neuron: nn.Module) -> bool | None:
        """Always."""
        return True

    def constants(self, neuron: nn.Module) -> NeuronParameters:
        """Of ``Leaky`` with one leak and threshold a layer."""
        if not isinstance(neuron, snntorch.Leaky) or neuron.beta.numel() + neuron.threshold.numel() != 2:
            return super().constants(neuron)
        how, late = neuron.reset_mechanism, neuron.reset_delay
        if how == "none" or (how == "subtract" and late):
            raise ValueError(
                f"Leaky with reset_mechanism={how!r} and reset_delay={late} has another equation than"
                " snn.neurons"
            )
        if neuron.inhibition or neuron.state_quant or float(neuron.graded_spikes_factor) != 1:
            raise ValueError("Leaky with inhibition, state_quant or graded spikes is not in snn.neurons")
        return NeuronParameters(
            beta=float(neuron.beta.detach().clamp(0, 1)),
            theta=float(neuron.threshold.detach()),
            reset="soft" if how == "subtract" else "hard",
            detach_reset=late,
            surrogate=_surrogate(neuron.spike_grad),
        )

    def reset(self, model: nn.Module) -> None:
        """Membranes that the neurons keep themselves (``init_hidden=True``)."""
        for module in model.modules():
            if isinstance(module, snntorch.SpikingNeuron):
                for name in ("reset_mem", "reset_hidden"):
                    if callable(reset := getattr(module, name, None)):
                        reset()
                        break


def _surrogate(spike_grad: Callable[[Tensor], Tensor]) -> Surrogate:
    """The one of the same derivative: snntorch's functions do not tell what they are."""
    with torch.enable_grad():
        x = torch.linspace(-1, 1, 9, dtype=torch.float64, requires_grad=True)
        spikes = spike_grad(x).sum()
    if spikes.requires_grad:
        (phi,) = torch.autograd.grad(spikes, x)
        middle, last = float(phi[4]), max(float(phi[8]), 1e-12)
        scales = {"atan": 2 * middle, "sigmoid": 4 * middle, "fast_sigmoid": last**-0.5 - 1}
        for name, scale in scales.items():
            if scale > 0:
                found = Surrogate(name, scale)
                if torch.allclose(found.derivative(x.detach()), phi, rtol=1e-3):
                    return found
    raise ValueError("Leaky: spike_grad is none of atan, sigmoid and fast_sigmoid")
