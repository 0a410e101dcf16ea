"""A network of another library in the shape of our own: ``x_TB`` to logits ``[T, B, K]``, with synapses."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from snn.adapters.library import Library
from snn.adapters.trace import Trace
from snn.layers import Synapses, is_static
from snn.neurons import LIF
from snn.observing import evaluating
from snn.parameters import NeuronParameters

Takes = Literal["sequence", "images", "step"]


def first_tensor(output: Any) -> Tensor:
    """The first tensor of what a model returns."""
    found = output[0] if isinstance(output, tuple | list) else output
    if not isinstance(found, Tensor):
        raise ValueError(f"output: the model returns {type(output).__name__}; pick the logits: output=...")
    return found


class Spikes(nn.Module):
    """Stands for a library's neurons: `Adapted` calls it with their spikes ``[T, B, ...]`` for its hooks."""

    def __init__(self, path: str, neuron: nn.Module, library: Library) -> None:
        super().__init__()
        self.path, self._library = path, library
        self._neuron = [neuron]  # not a submodule

    @property
    def neuron(self) -> nn.Module:
        """The library's own."""
        return self._neuron[0]

    @property
    def constants(self) -> NeuronParameters:
        """Leak, threshold and reset as the library's neuron has them.

        Raises:
            ValueError: a neuron with another equation, with its path.
        """
        try:
            return self._library.constants(self.neuron)
        except ValueError as error:
            raise ValueError(f"{self.path}: {error}") from None

    def forward(self, spikes_TB: Tensor) -> Tensor:
        """The spikes themselves."""
        return spikes_TB


class Adapted(nn.Module):
    """A model of another library, seen as one of ours; made by `snn.adapters.wrap`.

    Its synapses have the paths of the model itself, and so have masks.
    """

    def __init__(
        self,
        model: nn.Module,
        library: Library,
        synapses: Sequence[Synapses],
        takes: Takes,
        T: int | None,
        output: Callable[[Any], Tensor],
    ) -> None:
        super().__init__()
        self.model = model
        self.takes = takes
        """What a call takes: ``sequence``, ``[T, B, ...]``; ``images``, ``[B, ...]``, of which it makes the
        timesteps itself; ``step``, ``[B, ...]`` of one timestep."""
        self.T = T
        """Timesteps that a call makes itself."""
        self._library, self._synapses, self._output = library, list(synapses), output

    @classmethod
    def traced(
        cls,
        model: nn.Module,
        example: Tensor,
        library: Library,
        exclude: Sequence[str],
        output: Callable[[Any], Tensor],
    ) -> "Adapted":
        """See `snn.adapters.wrap`."""
        trace = Trace(model, library, exclude)
        library.reset(model)
        try:
            with evaluating(model), torch.enable_grad():
                result = output(model(example.detach().clone().requires_grad_(example.is_floating_point())))
            synapses = synapses_of(trace, library)
        finally:
            trace.close()
            library.reset(model)
        if not isinstance(result, Tensor) or result.ndim not in (2, 3):
            raise ValueError(f"output: logits must be [T, B, K] or [B, K], not {_shape(result)}; see output=")
        takes, T = _call_of(trace, library, example, one_step_out=result.ndim == 2)
        return cls(model, library, synapses, takes, T, output)

    def synapses(self) -> list[Synapses]:
        """Weight layers in forward order, the head last."""
        return list(self._synapses)

    def over_time(self, x: Tensor) -> Tensor:
        """What a call of the model takes as ``x_TB``; images are repeated, sequences stay."""
        return x.expand(self.T, *x.shape) if self.takes == "images" and self.T is not None else x

    def forward(self, x_TB: Tensor) -> Tensor:
        """Logits ``[T, B, K]`` from the neurons' first state on.

        Raises:
            ValueError: timesteps that differ, where the model makes them itself.
        """
        T = len(x_TB)
        spikes: dict[Spikes, list[Tensor]] = {}
        self._library.reset(self.model)
        with ExitStack() as hooks:
            for tap in (cast(Spikes, s.neuron) for s in self._synapses if s.neuron is not None):
                if tap._forward_hooks and tap not in spikes:
                    spikes[tap] = []
                    keep = _keeper(spikes[tap])
                    hooks.callback(tap.neuron.register_forward_hook(keep).remove)
            logits = self._run(x_TB)
        self._library.reset(self.model)
        for tap, found in spikes.items():
            one_step = self._library.one_step(tap.neuron)
            tap(torch.stack(found) if one_step or len(found) > 1 else found[0])
        return logits if logits.ndim == 3 else logits.expand(T, *logits.shape)

    def _run(self, x_TB: Tensor) -> Tensor:
        if self.takes == "sequence":
            return self._output(self.model(x_TB))
        if self.takes == "images":
            if len(x_TB) != self.T or not (is_static(x_TB) or len(x_TB) == 1):
                raise ValueError(
                    f"input: {tuple(x_TB.shape)}; the model makes its T={self.T} timesteps itself, so it"
                    " takes images over time as over_time() gives them"
                )
            return self._output(self.model(x_TB[0]))
        steps, state = [], None
        for x_B in x_TB:
            found = self.model(x_B) if state is None else self.model(x_B, state)
            if type(self.model).__module__.startswith("norse"):
                state = found[1]
            steps.append(self._output(found))
        return torch.stack(steps)


def synapses_of(trace: Trace, library: Library) -> list[Synapses]:
    """What a trace found, the head last."""
    order, (norms, neurons) = trace.order(), trace.connections()
    taps = {path: Spikes(path, neuron, library) for path, neuron in trace.neurons.items()}
    found = []
    for path in order:
        last = path == order[-1]
        norm = None if path not in norms else trace.norms[norms[path]]
        neuron = None if last or path not in neurons else cast(LIF, taps[neurons[path]])
        found.append(Synapses(path, trace.layers[path], norm, neuron))
    if len(found) > 1 and not any(s.neuron for s in found):
        raise ValueError("model: its layers drive no neurons; name them: wrap(..., neurons=[...])")
    return found


def _call_of(
    trace: Trace, library: Library, example: Tensor, *, one_step_out: bool
) -> tuple[Takes, int | None]:
    """What one call of the model takes, from how its neurons were called."""
    path = next(path for path in trace.calls if path in trace.neurons)
    calls, one_step = trace.calls[path], library.one_step(trace.neurons[path])
    shape, count = tuple(calls[0][0].shape), len(calls)
    first, second = example.shape[0], example.shape[1] if example.ndim > 2 else -1
    if not one_step and count == 1 and shape[:2] == (first, second):
        return "sequence", None
    if not one_step and count == 1 and shape[1] == first:
        return "images", shape[0]
    if one_step is not False and count == first != 1 and shape[0] == second:
        return "sequence", None
    if one_step is not False and shape[0] == first and (count > 1 or one_step_out):
        return ("step", None) if count == 1 else ("images", count)
    raise ValueError(
        f"example: {tuple(example.shape)} and {path}, which ran {count} times on {shape}, have no batch in"
        " common; an example is [T, B, ...] or [B, ...], and neurons run on [T, B, ...] once, or T times on"
        " [B, ...]"
    )


def _keeper(into: list[Tensor]) -> Any:
    return lambda module, inputs, output: into.append(first_tensor(output))


def _shape(x: Any) -> Any:
    return tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
