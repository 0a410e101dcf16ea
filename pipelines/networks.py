"""Networks and their inputs from the config."""

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn

from cluster.errors import UserError
from pipelines.config import ModelConfig, is_own
from pipelines.config.plugins import line_in_own_code
from pipelines.data.dataset import DatasetInfo
from pruning.examples.scores import ExampleScorer
from snn import activity
from snn.interchange import build_described, describe
from snn.layers import Synapses
from snn.models import MODELS, SpikingNetwork
from snn.neurons import NeuronParameters
from snn.observing import evaluating
from snn.surrogate import Surrogate


def architecture(model: ModelConfig, info: DatasetInfo) -> dict[str, Any]:
    """The arguments of `snn.models.build` as plain values, as checkpoints store them.

    Raises:
        UserError: a size that the architecture does not have.
    """
    accepted = inspect.signature(MODELS[model.name]).parameters
    options: dict[str, Any] = dict(model.options or {})
    open_ended = any(p.kind is p.VAR_KEYWORD for p in accepted.values())
    for name in options:
        if (name not in accepted and not open_ended) or name in ("input_shape", "num_classes", "neuron"):
            raise UserError("model.options", f"{model.name} takes no {name!r}")
    for name in ("hidden", "channels"):
        if (value := getattr(model, name)) is None:
            continue
        if name not in accepted and not open_ended:
            raise UserError(f"model.{name}", f"{value} does not apply: {model.name} has no such layers")
        options[name] = value
    surrogate = Surrogate(model.surrogate, model.surrogate_scale)
    constants = {f.name: getattr(model, f.name) for f in fields(NeuronParameters)}
    neuron = NeuronParameters(**{**constants, "surrogate": surrogate})
    return describe(
        model.name, input_shape=info.input_shape, num_classes=info.num_classes, neuron=neuron, **options
    )


def make_network(model: ModelConfig, info: DatasetInfo, seed: int) -> SpikingNetwork:
    """A network with random weights keyed by ``seed``; torch's global generator is left as it was.

    Raises:
        UserError: the architecture does not fit the data.
    """
    spec = architecture(model, info)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            network = build_described(spec)
        except Exception as error:
            cause = error.__cause__ or error
            if is_own(model.name) and not isinstance(cause, ValueError):
                told = f"{type(cause).__name__}: {' '.join(str(cause).split())}"
                where = line_in_own_code(cause)
                raise UserError("model.name", f"{model.name} failed: {told}{where}") from error
            if not isinstance(error, ValueError):
                raise
            raise UserError("model", f"{error} (the data has shape {info.input_shape})") from None
    return in_layout(network, channels_last=model.channels_last)


def in_layout(network: SpikingNetwork, *, channels_last: bool) -> SpikingNetwork:
    """The network with its convolutions' weights in that memory layout."""
    return network.to(memory_format=torch.channels_last) if channels_last else network


def is_channels_last(weights: Mapping[str, Tensor]) -> bool:
    """Whether these are the weights of a network in the layout channels-last."""
    return any(
        w.ndim == 4 and w.is_contiguous(memory_format=torch.channels_last) and not w.is_contiguous()
        for w in weights.values()
    )


def check_own_network(
    model: ModelConfig,
    network: nn.Module,
    info: DatasetInfo,
    *,
    score: str | None = None,
    tail_depth: int = 1,
) -> None:
    """That a network of a user's own is what training, scoring and pruning work on.

    Args:
        model: says which.
        network: built for ``info``.
        info: of the dataset.
        score: of `pruning.examples.scores.SCORES`, if examples will be scored.
        tail_depth: of that score.

    Raises:
        UserError: what it lacks.
    """
    name = model.name
    for part in ("synapses", "readout"):
        if not hasattr(network, part):
            raise UserError("model.name", f"{name} has no {part!r}; derive it from snn.models.SpikingNetwork")
    synapses: Any = network.synapses() if callable(network.synapses) else None
    if not synapses or not all(isinstance(s, Synapses) for s in synapses):
        raise UserError("model.name", f"{name}.synapses() must list snn.layers.Synapses, the head last")
    x_TB = torch.zeros(model.T, 2, *info.input_shape)
    refused = f"{name} does not run on input of shape {tuple(x_TB.shape)}"
    with _failures_told(refused), evaluating(network), torch.no_grad():
        logits = network(x_TB)
    wanted = (model.T, 2, info.num_classes)
    if tuple(logits.shape) != wanted:
        raise UserError(
            "model.name", f"{name} gives {tuple(logits.shape)}; logits must be (T, B, K) = {wanted}"
        )
    with _failures_told(f"{name}'s synaptic operations cannot be counted"):
        activity.collect(network, [x_TB])  # type: ignore[arg-type]
    if score is not None:
        with _failures_told(f"{name} cannot be scored by {score}"):
            scorer = ExampleScorer(network, (score,), tail_depth=tail_depth)
            scorer.score(x_TB, torch.zeros(2, dtype=torch.int64))


@contextmanager
def _failures_told(what: str) -> Iterator[None]:
    """What a user's own network raises within becomes one line that says ``what`` it cannot do."""
    try:
        yield
    except Exception as error:
        told = " ".join(str(error).split())
        raise UserError("model.name", f"{what}: {told}{line_in_own_code(error)}") from error
