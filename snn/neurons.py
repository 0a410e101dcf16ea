"""Leaky integrate-and-fire neurons over ``T`` timesteps: a pure function and a thin module.

Per timestep ``t``, for membrane potential ``u`` before and ``v`` after the reset::

    u[t] = beta v[t-1] + k I[t]          leak and integrate; k = 1 - beta with decay_input, else 1
    s[t] = 1{u[t] >= theta}              spike, backward by the surrogate gradient phi(u - theta)
    v[t] = u[t] (1 - s[t])               hard reset (to zero)
    v[t] = u[t] - theta s[t]             soft reset (by subtraction)

``beta`` is the share of potential kept per timestep (membrane time constant ``tau = 1 / (1 - beta)``
timesteps), ``theta`` the threshold in the units of ``u``. ``beta = 1`` is the integrate-and-fire
neuron (IF); a ``beta`` learned per layer makes it the parametric one (PLIF: Fang et al. 2021, arXiv
2007.05785, whose ``w`` is minus our ``beta_logit``, with ``decay_input``).
"""

from dataclasses import replace
from math import log
from typing import Any

import torch
from torch import Tensor, nn

from snn import kernels
from snn.parameters import NeuronParameters, Reset

__all__ = ["LIF", "NeuronParameters", "Reset", "lif"]


def lif(
    current_TB: Tensor,
    parameters: NeuronParameters,
    state: Tensor | None = None,
    *,
    beta: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Leaky integrate-and-fire neurons over all timesteps, in plain torch: the reference.

    Where the state is not needed, `LIF` and `snn.kernels.lif` give the same spikes faster.

    Args:
        current_TB: input current ``I``, ``[T, B, ...]``, of any strides and floating dtype. Potentials
            are held in float32 for the half precisions, else in its own dtype.
        parameters: the constants of the module's equations.
        state: potential ``v`` after the last step before, ``[B, ...]``; zeros when not given.
        beta: scalar tensor that replaces ``parameters.beta``, with its gradient (PLIF).

    Returns:
        spikes ``[T, B, ...]`` in {0, 1} and the state after the last step ``[B, ...]``.

    Raises:
        ValueError: fewer than two axes, no timestep, a dtype that is not floating, or a state of another
            shape.
    """
    _check(current_TB)
    if state is not None and state.shape != current_TB.shape[1:]:
        raise ValueError(f"state: shape {tuple(state.shape)} must be {tuple(current_TB.shape[1:])}")
    return kernels.eager.lif(current_TB, state, parameters, beta)


def _check(current_TB: Tensor) -> None:
    if current_TB.ndim < 2 or current_TB.shape[0] < 1:
        raise ValueError(
            f"current: shape {tuple(current_TB.shape)} must be [T, B, ...] with at least one timestep"
        )
    if not current_TB.is_floating_point():
        raise ValueError(f"current: dtype {current_TB.dtype} must be floating")


class LIF(nn.Module):
    """A layer of leaky integrate-and-fire neurons that starts every forward from zero potential.

    With ``learn_beta`` it holds one parameter, ``beta_logit``, and ``beta = sigmoid(beta_logit)``.

    Args:
        parameters: the constants of all neurons; or give them by name, ``LIF(beta=0.9, theta=0.5)``.
        tau: membrane time constant in timesteps, at least 1, in place of ``beta = 1 - 1 / tau``.
        constants: fields of `NeuronParameters`.

    Raises:
        ValueError: constants given both ways, an unknown or impossible one, or ``learn_beta`` with a
            ``beta`` that no sigmoid reaches (0 or 1).
    """

    def __init__(
        self, parameters: NeuronParameters | None = None, *, tau: float | None = None, **constants: Any
    ) -> None:
        super().__init__()
        if not isinstance(parameters, NeuronParameters | None):
            raise ValueError(f"LIF: {parameters!r} must be NeuronParameters; name a constant: LIF(beta=0.9)")
        if tau is not None:
            if "beta" in constants:
                raise ValueError("LIF: give tau or beta, not both")
            if not tau >= 1:
                raise ValueError(f"tau: {tau!r} must be at least 1 timestep")
            constants["beta"] = 1 - 1 / tau
        if parameters is not None and constants:
            raise ValueError(f"LIF: give parameters or {', '.join(constants)}, not both")
        self._constants = parameters or NeuronParameters.from_dict(constants)
        self.beta_logit: nn.Parameter | None = None
        if self._constants.learn_beta:
            beta = self._constants.beta
            if not 0 < beta < 1:
                raise ValueError(f"beta: {beta!r} must be inside (0, 1) to be learned")
            self.beta_logit = nn.Parameter(torch.tensor(log(beta / (1 - beta))))

    @property
    def constants(self) -> NeuronParameters:
        """The constants as they are now: with ``learn_beta``, the ``beta`` learned so far."""
        if self.beta_logit is None:
            return self._constants
        return replace(self._constants, beta=float(self.beta_logit.detach().sigmoid()))

    def forward(self, current_TB: Tensor) -> Tensor:
        """Current ``[T, B, ...]`` to spikes ``[T, B, ...]``."""
        _check(current_TB)
        beta = None if self.beta_logit is None else self.beta_logit.sigmoid()
        return kernels.lif(current_TB, self._constants, beta=beta)

    def extra_repr(self) -> str:
        """The neuron's constants."""
        return str(self.constants)
