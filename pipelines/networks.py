"""Networks and their inputs from the config."""

import inspect
from typing import Any

import torch

from pipelines.config import ModelConfig
from pipelines.data.dataset import DatasetInfo
from pipelines.errors import UserError
from snn.interchange import build_described, describe
from snn.models import MODELS, SpikingNetwork
from snn.neurons import NeuronParameters
from snn.surrogate import Surrogate


def architecture(model: ModelConfig, info: DatasetInfo) -> dict[str, Any]:
    """The arguments of `snn.models.build` as plain values, as checkpoints store them.

    Raises:
        UserError: a size that the architecture does not have.
    """
    accepted = inspect.signature(MODELS[model.name]).parameters
    options = {}
    for name in ("hidden", "channels"):
        if (value := getattr(model, name)) is None:
            continue
        if name not in accepted:
            raise UserError(f"model.{name}", f"{value} does not apply: {model.name} has no such layers")
        options[name] = value
    neuron = NeuronParameters(
        beta=model.beta,
        theta=model.theta,
        reset=model.reset,
        detach_reset=model.detach_reset,
        decay_input=model.decay_input,
        learn_beta=model.learn_beta,
        surrogate=Surrogate(model.surrogate, model.surrogate_scale),
    )
    return describe(
        model.name,
        input_shape=info.input_shape,
        num_classes=info.num_classes,
        neuron=neuron,
        **options,
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
            return build_described(spec)
        except ValueError as error:
            raise UserError("model", f"{error} (the data has shape {info.input_shape})") from None
