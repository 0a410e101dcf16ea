"""What differs between libraries: which modules are neurons, how they are called, and their constants."""

from collections.abc import Sequence
from importlib import import_module

from torch import nn

from snn.parameters import NeuronParameters


class Library:
    """Plain modules, whose neurons are named: what a library's own class refines.

    Args:
        names: paths or classes of the neurons.
    """

    state_is_argument = False
    """Whether a network called once a timestep may take its neurons' state and give it back: ``model(x_B,
    *state)`` to ``(logits, *state)``, without state at the first timestep."""

    def __init__(self, names: Sequence[str | type] = ()) -> None:
        self.paths = {name for name in names if isinstance(name, str)}
        self.classes = tuple(name for name in names if isinstance(name, type))

    def is_neuron(self, path: str, module: nn.Module) -> bool:
        """Whether the module gives spikes."""
        return path in self.paths or isinstance(module, self.classes)

    def one_step(self, neuron: nn.Module) -> bool | None:
        """Whether a call of the neuron is one timestep; ``None`` where only the number of calls tells."""
        return None

    def constants(self, neuron: nn.Module) -> NeuronParameters:
        """Leak, threshold, reset and surrogate, as they are now.

        Raises:
            ValueError: a neuron with another equation than `snn.neurons`.
        """
        raise ValueError(f"{type(neuron).__name__} does not tell its constants")

    def reset(self, model: nn.Module) -> None:
        """Take all neurons back to their state before the first timestep."""
        for path, module in model.named_modules():
            if self.is_neuron(path, module) and callable(reset := getattr(module, "reset", None)):
                reset()


_LIBRARIES = {"spikingjelly": "SpikingJelly", "snntorch": "SnnTorch", "norse": "Norse"}


def library_of(model: nn.Module, names: Sequence[str | type] = ()) -> Library:
    """The library that a model's neurons are of; ``names`` as for `Library`.

    Raises:
        ValueError: no neurons, or a path that the model does not have.
    """
    paths = dict(model.named_modules())
    for name in names:
        if isinstance(name, str) and name not in paths:
            raise ValueError(f"neurons: the model has no module {name!r}")
    found = _library(model, names)
    if not any(found.is_neuron(path, module) for path, module in paths.items()):
        raise ValueError(
            f"model: no spiking neurons found in {type(model).__name__}; name them: wrap(..., neurons=[...]),"
            " by path or class"
        )
    return found


def _library(model: nn.Module, names: Sequence[str | type]) -> Library:
    roots = {type(module).__module__.split(".")[0] for module in model.modules()}
    for root, name in _LIBRARIES.items():
        if root in roots:
            library: Library = getattr(import_module(f"snn.adapters.{root}"), name)(names)
            return library
    return Library(names)
