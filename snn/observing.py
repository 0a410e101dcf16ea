"""A network observed in a forward pass: eval mode put back afterwards, what each weight layer is given."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from snn.layers import Synapses, WeightLayer


class Network(Protocol):
    """A network as calibration and pruning see it: any module that is called on ``x_TB`` and has synapses."""

    def synapses(self) -> list[Synapses]: ...  # noqa: D102
    def modules(self) -> Iterable[nn.Module]: ...  # noqa: D102
    def eval(self) -> Any: ...  # noqa: D102
    def __call__(self, x_TB: Tensor) -> Tensor: ...  # noqa: D102


Taken = Callable[[int, Tensor, int], None]
Fired = Callable[[int, Tensor], None]


@contextmanager
def evaluating(model: nn.Module | Network) -> Iterator[None]:
    """The model in eval mode; every module's own mode is restored."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def observe(model: Network, x_TB: Tensor, take: Taken, fire: Fired | None = None) -> Tensor:
    """Run ``model`` on ``x_TB``, ``[T, B, ...]``, hand over what its weight layers are given; its output.

    A weight layer may run once on ``[T*B, ...]`` or ``[T, B, ...]``, on ``[B, ...]`` once (all timesteps are
    alike) or T times (one by one). Where B is T these look the same: such a batch goes in halves.

    Args:
        model: in the mode that is to be observed.
        x_TB: the model's input.
        take: called with the index in ``model.synapses()``, the layer's input ``[T, B, ...]`` (expanded over
            T where all timesteps are alike), and the number of its outputs per example and timestep.
        fire: called with the index and the spikes ``[T, B, ...]`` of the neurons that the layer drives.

    Raises:
        ValueError: a weight layer that runs on inputs of another layout, or another number of times.
    """
    T, B = x_TB.shape[:2]
    if T == B > 1:
        parts = x_TB.split(-(-B // 2), dim=1)
        return torch.cat([_observe(model, part_TB, take, fire) for part_TB in parts], 1)
    return _observe(model, x_TB, take, fire)


def _observe(model: Network, x_TB: Tensor, take: Taken, fire: Fired | None) -> Tensor:
    T, B = x_TB.shape[:2]
    synapses = model.synapses()
    without_time: list[list[tuple[Tensor, int]]] = [[] for _ in synapses]

    def at_layer(i: int, layer: WeightLayer, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        x = inputs[0]
        convolves = isinstance(layer, nn.Conv2d)
        dense = x.ndim > (4 if convolves else 2)
        if x.ndim < 2 or (convolves and x.ndim not in (4, 5)):
            raise _refusal(synapses[i], x, T, B)
        if len(x) == T * B and not (convolves and dense):
            take(i, x.unflatten(0, (T, B)), output.numel() // (T * B))
        elif dense and tuple(x.shape[:2]) == (T, B):
            take(i, x, output.numel() // (T * B))
        elif len(x) == B and not (dense and x.shape[1] == T):
            without_time[i].append((x, output.numel() // B))
        else:
            raise _refusal(synapses[i], x, T, B)

    with ExitStack() as hooks:
        for i, s in enumerate(synapses):
            hooks.callback(s.layer.register_forward_hook(partial(at_layer, i)).remove)
            if fire is not None and s.neuron is not None:
                at_neuron = partial(lambda i, _, inputs, spikes_TB: fire(i, spikes_TB), i)
                hooks.callback(s.neuron.register_forward_hook(at_neuron).remove)
        y_TB = model(x_TB)
    for i, calls in enumerate(without_time):
        if not calls:
            continue
        x, outputs = calls[0]
        if len(calls) == T:
            x = torch.stack([x for x, _ in calls])
        elif len(calls) == 1:
            x = x.expand(T, *x.shape)
        else:
            raise _refusal(synapses[i], x, T, B, f", {len(calls)} times")
        take(i, x, outputs)
    return y_TB


def _refusal(s: Synapses, x: Tensor, T: int, B: int, times: str = "") -> ValueError:
    return ValueError(
        f"{s.name}: ran on {tuple(x.shape)}{times}, where T={T} and B={B}; a weight layer must run on"
        " [T*B, ...] or [T, B, ...], or on [B, ...] once (all timesteps alike) or T times"
    )
