"""Leaky integrate-and-fire neurons over ``T`` timesteps: a pure function and a thin module.

Per timestep ``t``, for membrane potential ``u`` before and ``v`` after the reset::

    u[t] = beta v[t-1] + k I[t]          leak and integrate; k = 1 - beta with decay_input, else 1
    s[t] = 1{u[t] >= theta}              spike, backward by the surrogate gradient phi(u - theta)
    v[t] = u[t] (1 - s[t])               hard reset (to zero)
    v[t] = u[t] - theta s[t]             soft reset (by subtraction)

``beta`` is the share of potential kept per timestep (membrane time constant ``tau = 1 / (1 - beta)``
timesteps), ``theta`` the threshold in the units of ``u``. ``beta = 1`` is the integrate-and-fire neuron.
"""

from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor, nn

from snn import kernels
from snn.surrogate import Surrogate

Reset = Literal["hard", "soft"]


@dataclass(frozen=True, kw_only=True)
class NeuronParameters:
    """Constants of a layer of leaky integrate-and-fire neurons (symbols as in the module's equations).

    Raises:
        ValueError: a value outside its range, named with its field.
    """

    beta: float = 0.5
    """Share of the membrane potential kept per timestep, in [0, 1]."""
    theta: float = 1.0
    """Firing threshold, positive, in units of the membrane potential."""
    reset: Reset = "hard"
    """``hard``: to zero; ``soft``: by subtracting the threshold."""
    detach_reset: bool = True
    """Keep the reset out of the gradient."""
    decay_input: bool = False
    """Scale the input current by ``1 - beta``."""
    surrogate: Surrogate = field(default_factory=Surrogate)
    """Spike function with its surrogate gradient."""

    def __post_init__(self) -> None:
        if not 0 <= self.beta <= 1:
            raise ValueError(f"beta: {self.beta!r} must be in [0, 1]")
        if not 0 < self.theta < float("inf"):
            raise ValueError(f"theta: {self.theta!r} must be a positive number")
        if self.reset not in ("hard", "soft"):
            raise ValueError(f"reset: {self.reset!r} is unknown; choose hard or soft")

    @property
    def gain(self) -> float:
        """``k``: what the input current is multiplied by."""
        return 1 - self.beta if self.decay_input else 1.0


def lif(
    current_TB: Tensor, parameters: NeuronParameters, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Leaky integrate-and-fire neurons over all timesteps.

    Args:
        current_TB: input current ``I``, ``[T, B, ...]``.
        parameters: the constants of the module's equations.
        state: potential ``v`` after the last step before, ``[B, ...]``; zeros when not given.

    Returns:
        spikes ``[T, B, ...]`` in {0, 1} and the state after the last step ``[B, ...]``.

    Raises:
        ValueError: fewer than two axes, no timestep, or a state of another shape.
    """
    if current_TB.ndim < 2 or current_TB.shape[0] < 1:
        raise ValueError(
            f"current: shape {tuple(current_TB.shape)} must be [T, B, ...] with at least one timestep"
        )
    if state is not None and state.shape != current_TB.shape[1:]:
        raise ValueError(f"state: shape {tuple(state.shape)} must be {tuple(current_TB.shape[1:])}")
    return kernels.lif(current_TB, state, parameters)


def membrane_potential(
    current_TB: Tensor, parameters: NeuronParameters, state: Tensor | None = None
) -> Tensor:
    """Potentials ``u`` before the reset, ``[T, B, ...]``; arguments as for `lif`.

    The engines of `lif` never write them; whoever needs them (scores, calibration) has them here.
    """
    return kernels.eager.potentials(current_TB, state, parameters)


class LIF(nn.Module):
    """A layer of leaky integrate-and-fire neurons that starts every forward from zero potential."""

    def __init__(self, parameters: NeuronParameters | None = None) -> None:
        super().__init__()
        self.constants = parameters or NeuronParameters()

    def forward(self, current_TB: Tensor) -> Tensor:
        """Current ``[T, B, ...]`` to spikes ``[T, B, ...]``."""
        return lif(current_TB, self.constants)[0]

    def extra_repr(self) -> str:
        """The neuron's constants."""
        return str(self.constants)
