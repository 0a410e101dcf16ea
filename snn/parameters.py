"""Constants of leaky integrate-and-fire neurons (symbols as in `snn.neurons`)."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

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
    learn_beta: bool = False
    """Parametric LIF: each layer learns its own ``beta``, starting from the one given here."""
    surrogate: Surrogate = field(default_factory=Surrogate)
    """Spike function with its surrogate gradient."""

    def __post_init__(self) -> None:
        for name in ("beta", "theta"):
            if not isinstance(getattr(self, name), int | float):
                raise ValueError(f"{name}: {getattr(self, name)!r} must be a number")
        if not 0 <= self.beta <= 1:
            raise ValueError(f"beta: {self.beta!r} must be in [0, 1]")
        if not 0 < self.theta < float("inf"):
            raise ValueError(f"theta: {self.theta!r} must be a positive number")
        if self.reset not in ("hard", "soft"):
            raise ValueError(f"reset: {self.reset!r} is unknown; choose hard or soft")
        if self.decay_input and self.beta == 1:
            raise ValueError("beta: 1 with decay_input takes no input at all; choose a beta below 1")

    def to_dict(self) -> dict[str, Any]:
        """Plain values; `from_dict` gives the same constants."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "NeuronParameters":
        """Constants from plain values; fields left out take their defaults.

        Raises:
            ValueError: an unknown field, or a value that the class refuses.
        """
        known = [f.name for f in fields(cls)]
        for name in values:
            if name not in known:
                raise ValueError(f"neuron: field {name!r} is unknown; known are {', '.join(known)}")
        given = dict(values)
        if "surrogate" in given:
            given["surrogate"] = Surrogate.from_dict(given["surrogate"])
        return cls(**given)

    @property
    def gain(self) -> float:
        """``k``: what the input current is multiplied by."""
        return 1 - self.beta if self.decay_input else 1.0
