"""norse's neurons (1.1.0), whose state is an argument: for sequences (``LIF``) and cells (``LIFBoxCell``)."""

from typing import Any

from norse.torch.functional.reset import reset_subtract, reset_value
from norse.torch.module import snn as modules
from torch import nn

from snn.adapters.library import Library
from snn.parameters import NeuronParameters
from snn.surrogate import Surrogate


class Norse(Library):
    """Networks of ``norse.torch``."""

    state_is_argument = True

    def is_neuron(self, path: str, module: nn.Module) -> bool:
        """Feed-forward neurons.

        Raises:
            ValueError: recurrent ones, whose weights pruning would not see.
        """
        if isinstance(module, modules.SNNRecurrent | modules.SNNRecurrentCell):
            raise ValueError(
                f"{path} ({type(module).__name__}): holds recurrent weights, which pruning would not see;"
                " only feed-forward neurons can be adapted"
            )
        return isinstance(module, modules.SNN | modules.SNNCell) or super().is_neuron(path, module)

    def one_step(self, neuron: nn.Module) -> bool | None:
        """A cell's call is one timestep, that of others a sequence."""
        return isinstance(neuron, modules.SNNCell)

    def constants(self, neuron: nn.Module) -> NeuronParameters:
        """Of neurons without a synaptic current: ``LIFBoxCell``, or ``LIF`` with ``tau_syn_inv = 1 / dt``."""
        cell: Any = neuron
        p, dt = cell.p, float(cell.dt)
        names = ("tau_mem_inv", "v_leak", "v_th", "v_reset")
        if not all(hasattr(p, name) and getattr(p, name).numel() == 1 for name in names):
            return super().constants(neuron)
        if p.method != "super" or float(p.v_leak) or float(p.v_reset):
            raise ValueError(f"{type(neuron).__name__}: method, v_leak and v_reset must be super, 0 and 0")
        if abs(float(getattr(p, "tau_syn_inv", 1 / dt)) * dt - 1) > 1e-6:
            raise ValueError(f"{type(neuron).__name__}: has a synaptic current, which snn.neurons has not")
        how = getattr(p, "reset_method", reset_value)
        if how not in (reset_value, reset_subtract):
            raise ValueError(f"{type(neuron).__name__}: reset_method must be reset_value or reset_subtract")
        return NeuronParameters(
            beta=1 - dt * float(p.tau_mem_inv),
            theta=float(p.v_th),
            reset="soft" if how is reset_subtract else "hard",
            decay_input=True,
            detach_reset=False,
            surrogate=Surrogate("fast_sigmoid", 1.0),  # its own alpha is not used by norse
        )

    def reset(self, model: nn.Module) -> None:
        """Nothing: a call without a state starts from rest."""
