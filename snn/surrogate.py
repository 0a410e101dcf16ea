"""The spike function: a step forward, a surrogate gradient backward.

A neuron spikes when ``x = u - theta`` (membrane potential minus threshold) is not negative:
``s = 1{x >= 0}``. Its derivative is zero almost everywhere, so training replaces it by ``phi(x)``,
the derivative of a smooth step (Neftci et al., 2019, arXiv 1901.09948). Every ``phi`` here except
the fast sigmoid's integrates to 1 over ``x``; ``x`` is in units of the membrane potential.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

SurrogateName = Literal["atan", "sigmoid", "triangle", "fast_sigmoid"]


def _atan(x: Tensor, scale: float) -> Tensor:
    return scale / 2 / (1 + (torch.pi / 2 * scale * x) ** 2)


def _sigmoid(x: Tensor, scale: float) -> Tensor:
    return scale * torch.sigmoid(scale * x) * torch.sigmoid(-scale * x)  # 1 - sig would cancel


def _triangle(x: Tensor, scale: float) -> Tensor:
    return scale * torch.clamp(1 - scale * x.abs(), min=0)


def _fast_sigmoid(x: Tensor, scale: float) -> Tensor:
    return 1 / (1 + scale * x.abs()) ** 2


_DERIVATIVES: dict[str, tuple[Callable[[Tensor, float], Tensor], float]] = {
    "atan": (_atan, 2.0),
    "sigmoid": (_sigmoid, 4.0),
    "triangle": (_triangle, 1.0),
    "fast_sigmoid": (_fast_sigmoid, 10.0),
}

SURROGATES: tuple[str, ...] = tuple(_DERIVATIVES)
"""Names of the surrogate gradients."""


@dataclass(frozen=True)
class Surrogate:
    """A step function whose gradient is that of a smooth step.

    ============= ====================================== ======= =================================
    name          ``phi(x)``, with ``a`` the scale       default source
    ============= ====================================== ======= =================================
    atan          ``a/2 / (1 + (pi/2 a x)^2)``           2       Fang et al. 2021, arXiv 2007.05785
    sigmoid       ``a sig(a x) (1 - sig(a x))``          4       Zenke and Vogels 2021
    triangle      ``a max(0, 1 - a |x|)``                1       Esser et al. 2016, arXiv 1603.08270
    fast_sigmoid  ``1 / (1 + a |x|)^2`` (SuperSpike)     10      Zenke and Ganguli 2018, arXiv 1705.11146
    ============= ====================================== ======= =================================

    Args:
        name: one of ``SURROGATES``.
        scale: ``a`` above, positive, in units of 1 / membrane potential; ``None`` takes the default.

    Raises:
        ValueError: unknown name, or a scale that is not a positive number.
    """

    name: str = "atan"
    scale: float | None = None

    def __post_init__(self) -> None:
        if self.name not in _DERIVATIVES:
            raise ValueError(f"surrogate: {self.name!r} is unknown; choose one of {', '.join(SURROGATES)}")
        if self.scale is None:
            object.__setattr__(self, "scale", _DERIVATIVES[self.name][1])
        if not (isinstance(self.scale, int | float) and 0 < self.scale < float("inf")):
            raise ValueError(f"surrogate scale: {self.scale!r} must be a positive number")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Surrogate":
        """A surrogate from ``name`` and, where not the default, ``scale``.

        Raises:
            ValueError: an unknown field, or a value that the class refuses.
        """
        unknown = sorted(set(values) - {"name", "scale"})
        if unknown:
            raise ValueError(f"surrogate: field {unknown[0]!r} is unknown; known are name, scale")
        return cls(**values)

    def derivative(self, x: Tensor) -> Tensor:
        """``phi(x)`` for ``x = u - theta`` of any shape."""
        return _DERIVATIVES[self.name][0](x, float(self.scale or 0))

    def __call__(self, x: Tensor) -> Tensor:
        """Spikes ``1{x >= 0}`` in the dtype of ``x``, differentiable by ``phi``."""
        return _Spike.apply(x, self)


class _Spike(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, surrogate: Surrogate) -> Tensor:
        return (x >= 0).to(x.dtype)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
        x, ctx.surrogate = inputs
        ctx.save_for_backward(x)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[no-untyped-def]
        (x,) = ctx.saved_tensors
        return grad * ctx.surrogate.derivative(x), None
