"""spikingjelly's neurons (2.0.0): LIF, IF and parametric LIF, multi-step and single-step."""

from spikingjelly.activation_based import functional, neuron, surrogate
from torch import nn

from snn.adapters.library import Library
from snn.parameters import NeuronParameters
from snn.surrogate import Surrogate


class SpikingJelly(Library):
    """Networks of ``spikingjelly.activation_based``."""

    def is_neuron(self, path: str, module: nn.Module) -> bool:
        """Any of its spiking neurons."""
        known = isinstance(module, neuron.BaseNode | neuron.SimpleBaseNode)
        return known or super().is_neuron(path, module)

    def one_step(self, node: nn.Module) -> bool | None:
        """By its step mode."""
        mode = getattr(node, "step_mode", None)
        return None if mode is None else mode == "s"

    def constants(self, node: nn.Module) -> NeuronParameters:
        """Of ``LIFNode``, ``IFNode`` and ``ParametricLIFNode`` that reset to 0 or by subtraction."""
        decay_input, beta = False, 1.0
        if isinstance(node, neuron.LIFNode):
            decay_input, beta = node.decay_input, 1 - 1 / node.tau
        elif isinstance(node, neuron.ParametricLIFNode):
            decay_input, beta = node.decay_input, 1 - float(node.w.detach().sigmoid())
        elif not isinstance(node, neuron.IFNode):
            return super().constants(node)
        if node.v_reset not in (None, 0.0):
            raise ValueError(f"{type(node).__name__} resets to {node.v_reset}, not to 0")
        return NeuronParameters(
            beta=beta,
            theta=float(node.v_threshold),
            reset="soft" if node.v_reset is None else "hard",
            detach_reset=node.detach_reset,
            decay_input=decay_input,
            surrogate=_surrogate(node.surrogate_function),
        )

    def reset(self, model: nn.Module) -> None:
        """``functional.reset_net``."""
        functional.reset_net(model)


def _surrogate(function: object) -> Surrogate:
    if isinstance(function, surrogate.ATan):
        return Surrogate("atan", float(function.alpha))
    if isinstance(function, surrogate.Sigmoid):
        return Surrogate("sigmoid", float(function.alpha))
    raise ValueError(f"surrogate {type(function).__name__} is neither ATan nor Sigmoid")
