"""Faster inference of a pruned network on a CPU: layers that skip zeros, where they win."""

import copy
import logging
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import Generic, TypeVar, cast

import torch
from torch import Tensor, nn

from pruning.weights.masks import Masks
from snn.kernels import sparse
from snn.observing import Network
from snn.sparse import sparse_layer

Model = TypeVar("Model", bound=nn.Module)

_log = logging.getLogger(__name__)
_DENSEST = 0.5
"""Density above which a layer is not even tried: skipping half of the weights never paid."""
_CLEAR = 0.95
"""A layer is replaced when it takes less than this share of the dense one's time."""


@dataclass(frozen=True)
class LayerChoice:
    """One convolution or linear layer, and what it took on the example input."""

    name: str
    density: float
    """Surviving weights / weights."""
    dense_seconds: float | None
    """Median of one call; ``None`` where nothing was measured."""
    sparse_seconds: float | None
    sparse: bool
    """Whether it runs over its surviving weights now."""


@dataclass(frozen=True)
class Inference(Generic[Model]):
    """A network for inference alone, and how its layers were chosen."""

    model: Model
    layers: tuple[LayerChoice, ...]


def for_inference(
    model: Model, example_TB: Tensor, masks: Masks | None = None, *, rounds: int = 7
) -> Inference[Model]:
    """A copy of ``model`` whose pruned layers skip their zeros where that is faster on this machine.

    Each convolution and linear layer is timed on what reaches it of ``example_TB``, as it is and over its
    surviving weights, in turn, on as many threads as torch has; it is replaced only where it is clearly
    faster. So give an input of the batch size and the number of timesteps that will be used. Outputs
    are the network's up to the rounding of sums, which in float32 can flip a spike whose potential is at
    the threshold to the last bit. The copy is in eval mode, has no gradients and refuses to be trained.

    Without a C compiler nothing is replaced, and the log says so.

    Args:
        model: a network on a CPU, float32 or float64; left as it is.
        example_TB: an input for it, ``[T, B, ...]``.
        masks: weights to keep; without them those that are not zero.
        rounds: calls of each layer that are timed.

    Raises:
        ValueError: masks of another model, a model on another device, or no round.
    """
    if rounds < 1:
        raise ValueError(f"rounds: {rounds} must be at least 1")
    if any(p.device.type != "cpu" for p in model.parameters()):
        raise ValueError("model: sparse inference runs on a CPU; move the model there with .cpu()")
    model = copy.deepcopy(model).eval().requires_grad_(False)
    if masks is not None:
        masks.apply_(cast(Network, model))
    layers = {n: m for n, m in model.named_modules() if n and isinstance(m, nn.Conv2d | nn.Linear)}
    why_not = sparse.unavailable()
    if why_not:
        _log.warning("no sparse inference (%s): the network stays dense", why_not)
    sparse_forms = {n: sparse_layer(m) for n, m in layers.items() if not why_not and _density(m) <= _DENSEST}
    candidates = {n: form for n, form in sparse_forms.items() if form is not None}
    seconds = _measured(model, example_TB, {layers[n]: new for n, new in candidates.items()}, rounds)
    choices = []
    for name, layer in layers.items():
        dense, over_survivors = seconds.get(layer, (None, None))
        wins = dense is not None and over_survivors is not None and over_survivors < _CLEAR * dense
        if wins:
            parent, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(parent), attribute, candidates[name])
        choices.append(LayerChoice(name, _density(layer), dense, over_survivors, wins))
    return Inference(model, tuple(choices))


def _density(layer: nn.Conv2d | nn.Linear) -> float:
    return int(layer.weight.count_nonzero()) / max(1, layer.weight.numel())


def _measured(
    model: nn.Module, example_TB: Tensor, candidates: dict[nn.Module, nn.Module], rounds: int
) -> dict[nn.Module, tuple[float, float] | tuple[None, None]]:
    """Seconds of each layer and of its sparse form, at the first call that reaches it.

    None of a layer whose hooks, or own ``forward``, make something else of it.
    """
    found: dict[nn.Module, tuple[float, float] | tuple[None, None]] = {}

    def measure(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if inputs and layer not in found:
            found[layer] = None, None  # the call below comes here as well
            new, y = candidates[layer], layer(inputs[0])
            if torch.allclose(y, new(inputs[0]), rtol=0, atol=1e-4 * float(y.abs().max())):
                found[layer] = _seconds((layer.forward, new.forward), inputs[0], rounds)

    handles = [layer.register_forward_pre_hook(measure) for layer in candidates]
    try:
        with torch.no_grad():
            model(example_TB)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _seconds(forms: tuple[Callable[[Tensor], Tensor], ...], x: Tensor, rounds: int) -> tuple[float, float]:
    taken: list[list[float]] = [[] for _ in forms]
    for i in range(rounds + 1):
        for form, own in zip(forms, taken, strict=True):
            began = perf_counter()
            form(x)
            if i:  # the first call prepares
                own.append(perf_counter() - began)
    dense, over_survivors = map(statistics.median, taken)
    return dense, over_survivors
