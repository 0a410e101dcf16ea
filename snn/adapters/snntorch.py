"""snntorch's neurons (1.0.0), which run step by step: ``Leaky``, and whatever else spikes."""

import snntorch
from torch import nn

from snn.adapters.library import Library
from snn.parameters import NeuronParameters


class SnnTorch(Library):
    """Networks of ``snntorch``."""

    def is_neuron(self, path: str, module: nn.Module) -> bool:
        """Any of its spiking neurons."""
        return isinstance(module, snntorch.SpikingNeuron) or super().is_neuron(path, module)

    def one_step(self, neuron: nn.Module) -> bool | None:
        """Always."""
        return True

    def constants(self, neuron: nn.Module) -> NeuronParameters:
        """Of ``Leaky`` with one leak and threshold a layer; its surrogate does not tell what it is."""
        if not isinstance(neuron, snntorch.Leaky) or neuron.beta.numel() + neuron.threshold.numel() != 2:
            return super().constants(neuron)
        how, late = neuron.reset_mechanism, neuron.reset_delay
        if how == "none" or (how == "subtract" and late):
            raise ValueError(
                f"Leaky with reset_mechanism={how!r} and reset_delay={late} has another equation than"
                " snn.neurons"
            )
        return NeuronParameters(
            beta=float(neuron.beta.detach().clamp(0, 1)),
            theta=float(neuron.threshold.detach()),
            reset="soft" if neuron.reset_mechanism == "subtract" else "hard",
        )

    def reset(self, model: nn.Module) -> None:
        """Membranes that the neurons keep themselves (``init_hidden=True``)."""
        for module in model.modules():
            if isinstance(module, snntorch.SpikingNeuron):
                for name in ("reset_mem", "reset_hidden"):
                    if callable(reset := getattr(module, name, None)):
                        reset()
                        break
