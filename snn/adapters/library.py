"""What differs between libraries: which modules are neurons, and how they are called and reset."""

from collections.abc import Sequence

from torch import nn

from snn.neurons import LIF


class Library:
    """Plain modules with our own neurons, or named ones: what a library's own class refines.

    Args:
        names: paths or classes of the neurons beside `snn.neurons.LIF`.
    """

    state_is_argument = False
    """Whether a network called once a timestep may take its neurons' state and give it back: ``model(x_B,
    *state)`` to ``(logits, *state)``, without state at the first timestep."""

    def __init__(self, names: Sequence[str | type] = ()) -> None:
        self.paths = {name for name in names if isinstance(name, str)}
        self.classes = (LIF, *(name for name in names if isinstance(name, type)))

    def is_neuron(self, path: str, module: nn.Module) -> bool:
        """Whether the module gives spikes."""
        return path in self.paths or isinstance(module, self.classes)

    def one_step(self, neuron: nn.Module) -> bool | None:
        """Whether a call of the neuron is one timestep; ``None`` where only the number of calls tells."""
        return False if isinstance(neuron, LIF) else None

    def reset(self, model: nn.Module) -> None:
        """Take all neurons back to their state before the first timestep."""
        for path, module in model.named_modules():
            if self.is_neuron(path, module) and callable(reset := getattr(module, "reset", None)):
                reset()


class SpikingJelly(Library):
    """Networks of ``spikingjelly.activation_based`` (2.0.0), multi-step and single-step."""

    def __init__(self, names: Sequence[str | type] = ()) -> None:
        from spikingjelly.activation_based import neuron

        super().__init__([*names, neuron.BaseNode, neuron.SimpleBaseNode])

    def one_step(self, neuron: nn.Module) -> bool | None:
        """By its step mode."""
        mode = getattr(neuron, "step_mode", None)
        return super().one_step(neuron) if mode is None else mode == "s"

    def reset(self, model: nn.Module) -> None:
        """``functional.reset_net``."""
        from spikingjelly.activation_based import functional

        functional.reset_net(model)


class SnnTorch(Library):
    """Networks of ``snntorch`` (1.0.0), whose neurons run step by step."""

    state_is_argument = True

    def __init__(self, names: Sequence[str | type] = ()) -> None:
        import snntorch

        self._own = snntorch.SpikingNeuron
        super().__init__([*names, self._own])

    def one_step(self, neuron: nn.Module) -> bool | None:
        """Always, except for neurons of ours."""
        return not isinstance(neuron, LIF)

    def reset(self, model: nn.Module) -> None:
        """Membranes that the neurons keep themselves (``init_hidden=True``)."""
        for module in model.modules():
            if isinstance(module, self._own):
                for name in ("reset_mem", "reset_hidden"):
                    if callable(reset := getattr(module, name, None)):
                        reset()
                        break


class Norse(Library):
    """Networks of ``norse.torch`` (1.1.0), whose state is an argument: sequences (``LIF``) and cells."""

    state_is_argument = True

    def __init__(self, names: Sequence[str | type] = ()) -> None:
        from norse.torch.module import snn

        self._cell, self._recurrent = snn.SNNCell, (snn.SNNRecurrent, snn.SNNRecurrentCell)
        super().__init__([*names, snn.SNN, snn.SNNCell])

    def is_neuron(self, path: str, module: nn.Module) -> bool:
        """Feed-forward neurons.

        Raises:
            ValueError: recurrent ones, whose weights pruning would not see.
        """
        if isinstance(module, self._recurrent):
            raise ValueError(
                f"{path} ({type(module).__name__}): holds recurrent weights, which pruning would not see;"
                " only feed-forward neurons can be adapted"
            )
        return super().is_neuron(path, module)

    def one_step(self, neuron: nn.Module) -> bool | None:
        """A cell's call is one timestep, that of others a sequence."""
        return isinstance(neuron, self._cell)

    def reset(self, model: nn.Module) -> None:
        """Nothing: a call without a state starts from rest."""


_LIBRARIES = {"spikingjelly": SpikingJelly, "snntorch": SnnTorch, "norse": Norse}


def library_of(model: nn.Module, names: Sequence[str | type] = ()) -> Library:
    """The library that a model's neurons are of; ``names`` as for `Library`.

    Raises:
        ValueError: no neurons, or a path that the model does not have.
    """
    paths = dict(model.named_modules())
    for name in names:
        if isinstance(name, str) and name not in paths:
            raise ValueError(f"neurons: the model has no module {name!r}")
    roots = {type(module).__module__.split(".")[0] for module in paths.values()}
    library = next((_LIBRARIES[root] for root in _LIBRARIES if root in roots), Library)
    found = library(names)
    if not any(found.is_neuron(path, module) for path, module in paths.items()):
        raise ValueError(
            f"model: no spiking neurons found in {type(model).__name__}; name them: wrap(..., neurons=[...]),"
            " by path or class"
        )
    return found
