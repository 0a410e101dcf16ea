"""A network of another library in the shape of our own: ``x_TB`` to logits ``[T, B, K]``, with synapses."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from inspect import signature
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from snn.adapters.library import Library, library_of
from snn.layers import Norm, Synapses, WeightLayer, is_static
from snn.neurons import LIF
from snn.observing import evaluating

Call = tuple[Tensor, Tensor]
"""Input and output of a module."""


class Trace:
    """A record of a model's calls, by hooks, until it is closed.

    Where a tensor comes from is read off the autograd graph, so the pass runs with gradients. It may be
    several calls of the model, one for each timestep. Weight layers at the paths ``exclude`` are left out.
    """

    def __init__(self, model: nn.Module, library: Library, exclude: Sequence[str] = ()) -> None:
        self.calls: dict[str, list[Call]] = {}
        """By path, in order of the first call."""
        self._paths = dict(model.named_modules())
        self.layers: dict[str, WeightLayer] = {}
        self.norms: dict[str, Norm] = {}
        self.neurons: dict[str, nn.Module] = {}
        self._others: list[str] = []
        for name in exclude:
            if name not in self._paths:
                raise ValueError(f"exclude: the model has no module {name!r}")
        inside: tuple[str, ...] = ()
        for path, module in self._paths.items():
            if path in exclude or path.startswith(inside):
                continue
            if library.is_neuron(path, module):
                self.neurons[path] = module
                inside += (f"{path}.",)
            elif isinstance(module, nn.Linear | nn.Conv2d):
                self.layers[path] = module
            elif isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                self.norms[path] = module
            elif any(p.ndim > 1 for p in module.parameters(recurse=False)):
                self._others.append(path)
        self._hooks = ExitStack()
        for path in (*self.layers, *self.norms, *self.neurons, *self._others):
            self._hooks.callback(self._paths[path].register_forward_hook(partial(self._keep, path)).remove)

    def close(self) -> None:
        """Take the hooks off; what was recorded stays."""
        self._hooks.close()

    def _keep(self, path: str, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if path in self._others:
            raise ValueError(
                f"{path} ({type(module).__name__}): has weights that cannot be pruned; only nn.Linear and"
                f" nn.Conv2d can. Leave it out: exclude=[{path!r}]"
            )
        self.calls.setdefault(path, []).append((inputs[0], _first(output)))

    def order(self) -> list[str]:
        """Weight layers that ran, in order; the head last.

        Raises:
            ValueError: none ran, or the last is not linear.
        """
        found = [path for path in self.calls if path in self.layers]
        if not found:
            raise ValueError("model: none of its layers nn.Linear or nn.Conv2d ran in the forward pass")
        if not isinstance(self.layers[found[-1]], nn.Linear):
            raise ValueError(
                f"{found[-1]}: the last weight layer is {type(self.layers[found[-1]]).__name__}; the readout"
                " must end in nn.Linear. Without one, the policies loss, el2n, infobatch and repb still work"
            )
        return found

    def connections(self) -> tuple[dict[str, str], dict[str, str]]:
        """The batch norm behind, and the neurons driven by, each weight layer, as paths."""
        made: dict[Any, str] = {}
        for path, calls in self.calls.items():
            if path not in self.norms:
                made |= {output.grad_fn: path for _, output in calls if output.grad_fn is not None}
        norms: dict[str, str] = {}
        neurons: dict[str, str] = {}
        for path, calls in self.calls.items():
            into = norms if path in self.norms else neurons if path in self.neurons else None
            if into is not None:
                for source in _sources(calls[0][0], made):
                    if source in self.layers:
                        into.setdefault(source, path)
        return norms, neurons


def _sources(x: Tensor, made: dict[Any, str]) -> Iterator[str]:
    """The recorded modules that a tensor was made from, with nothing recorded in between."""
    waiting, seen = [x.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node in made:
            yield made[node]
        else:
            waiting += [before for before, _ in node.next_functions]


Takes = Literal["sequence", "images", "step"]


def _first(output: Any) -> Any:
    return output[0] if isinstance(output, tuple | list) else output


def first_tensor(output: Any) -> Tensor:
    """The first tensor of what a model returns."""
    found = _first(output)
    if not isinstance(found, Tensor):
        raise ValueError(f"output: the model returns {type(output).__name__}; pick the logits: output=...")
    return found


class Spikes(nn.Module):
    """Stands for a library's neurons: `Adapted` calls it with their spikes ``[T, B, ...]`` for its hooks."""

    def __init__(self, path: str, neuron: nn.Module) -> None:
        super().__init__()
        self.path = path
        self._neuron = [neuron]  # not a submodule
        self.observed = False
        """Whether anybody has placed a hook, so that the spikes have to be collected."""

    @property
    def neuron(self) -> nn.Module:
        """The library's own."""
        return self._neuron[0]

    def register_forward_hook(self, *args: Any, **options: Any) -> RemovableHandle:
        """As of any module."""
        self.observed = True
        return super().register_forward_hook(*args, **options)

    def forward(self, spikes_TB: Tensor) -> Tensor:
        """The spikes themselves."""
        return spikes_TB


class Adapted(nn.Module):
    """A model of another library, seen as one of ours; made by `wrap`.

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
                if tap.observed and tap not in spikes:
                    spikes[tap] = []
                    keep = partial(_keep_output, spikes[tap])
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
        steps: list[Tensor] = []
        state: Sequence[Any] = ()
        for x_B in x_TB:
            found = self.model(x_B, *state)
            if self._library.state_is_argument and isinstance(found, tuple | list):
                state = found[1 : len(signature(self.model.forward).parameters)]
            steps.append(self._output(found))
        return torch.stack(steps)


def wrap(
    model: nn.Module,
    example: Tensor,
    *,
    neurons: Sequence[str | type] = (),
    exclude: Sequence[str] = (),
    output: Callable[[Any], Tensor] = first_tensor,
) -> Adapted:
    """See a network of another library as pruning and scoring see our own; it stays as it is.

    One forward pass in eval mode is traced: weight layers (``nn.Linear``, ``nn.Conv2d``) in their order, the
    batch norm behind each, and the neurons that it drives.

    Args:
        model: of spikingjelly (neurons in multi-step or single-step mode), snntorch or norse, or any module
            with neurons of ours (`snn.neurons.LIF`) or ``neurons`` that are named. Its last weight layer must
            be linear.
        example: what one call of the model takes, with at least two examples: ``[T, B, ...]``; ``[B, ...]``
            where the model makes the timesteps itself; one timestep ``[B, ...]`` where your loop calls it
            for each. Best with B other than T.
        neurons: paths or classes of spiking neurons that no library knows.
        exclude: paths of weight layers to leave out, those of other kinds included.
        output: picks the logits, ``[T, B, K]``, ``[B, K]`` of a timestep or the mean over time, from what a
            call of the model returns; its first tensor when not given.

    Raises:
        ValueError: what cannot be understood, with the path of the module and what to pass.
    """
    library = library_of(model, neurons)
    trace = Trace(model, library, exclude)
    library.reset(model)
    try:
        with evaluating(model), torch.enable_grad():
            result = output(model(example.detach().clone().requires_grad_(example.is_floating_point())))
        synapses = synapses_of(trace)
    finally:
        trace.close()
        library.reset(model)
    if not isinstance(result, Tensor) or result.ndim not in (2, 3):
        found = tuple(result.shape) if isinstance(result, Tensor) else type(result).__name__
        raise ValueError(f"output: logits must be [T, B, K] or [B, K], not {found}; see output=")
    takes, T = _call_of(trace, library, example, one_step_out=result.ndim == 2)
    return Adapted(model, library, synapses, takes, T, output)


def synapses_of(trace: Trace) -> list[Synapses]:
    """What a trace found, the head last."""
    order, (norms, neurons) = trace.order(), trace.connections()
    taps = {path: Spikes(path, neuron) for path, neuron in trace.neurons.items()}
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


def _keep_output(into: list[Tensor], module: nn.Module, inputs: Any, output: Any) -> None:
    into.append(first_tensor(output))
