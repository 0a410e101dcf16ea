"""Checkpoints in safetensors with the architecture in the header: no pickle, nothing is executed.

The header's entry ``spikeprune`` is JSON: ``{"format": 1, "architecture": {...}}``, the architecture
being the arguments of `snn.models.build` as plain values (see `describe`).
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from snn.models import MODELS, SpikingNetwork, build
from snn.neurons import NeuronParameters

FORMAT = 1
_KEY = "spikeprune"
_FIELDS = ("name", "input_shape", "num_classes", "neuron", "options")

Architecture = dict[str, Any]
"""What `describe` gives: name, input_shape, num_classes, neuron and options as plain values."""


def describe(
    name: str,
    *,
    input_shape: Sequence[int],
    num_classes: int,
    neuron: NeuronParameters | None = None,
    **options: Any,
) -> Architecture:
    """The arguments of `snn.models.build` as plain values that JSON keeps."""
    return {
        "name": name,
        "input_shape": list(input_shape),
        "num_classes": num_classes,
        "neuron": (neuron or NeuronParameters()).to_dict(),
        "options": {k: list(v) if isinstance(v, tuple) else v for k, v in options.items()},
    }


def build_described(architecture: Mapping[str, Any]) -> SpikingNetwork:
    """The network of an architecture (see `describe`), with random weights.

    Raises:
        ValueError: a field that is missing or unknown, or a value that the model refuses.
    """
    if not isinstance(architecture, Mapping):
        raise ValueError(f"architecture: {architecture!r:.80} holds no fields")
    for key in _FIELDS:
        if key not in architecture:
            raise ValueError(f"architecture: {key!r} is missing")
    for key in architecture:
        if key not in _FIELDS:
            raise ValueError(f"architecture: {key!r} is unknown; known are {', '.join(_FIELDS)}")
    try:
        return build(
            architecture["name"],
            input_shape=tuple(architecture["input_shape"]),
            num_classes=architecture["num_classes"],
            neuron=NeuronParameters.from_dict(architecture["neuron"]),
            **architecture["options"],
        )
    except (TypeError, AttributeError, LookupError, RuntimeError) as error:  # a value of another kind
        raise ValueError(f"architecture: cannot be built ({str(error).splitlines()[0]:.200})") from error


def save_checkpoint(path: str | Path, model: nn.Module, architecture: Mapping[str, Any]) -> None:
    """Write the model's weights and buffers and its architecture; the file appears whole or not at all.

    Raises:
        ValueError: an architecture that JSON cannot hold, or that does not describe ``model``.
    """
    try:
        header = json.dumps({"format": FORMAT, "architecture": dict(architecture)}, sort_keys=True)
    except TypeError as error:
        raise ValueError(f"architecture: must be plain values: {error}") from None
    if MODELS.knows(str(architecture.get("name"))):  # another one cannot be built here
        with torch.device("meta"):
            _fit(build_described(json.loads(header)["architecture"]), model.state_dict(), "the model")
    write_tensors(path, model.state_dict(), {_KEY: header})


def load_checkpoint(path: str | Path) -> tuple[SpikingNetwork, Architecture]:
    """The network of a checkpoint, on the CPU in training mode, and its architecture.

    Raises:
        ValueError: not a safetensors file, or not a checkpoint written by `save_checkpoint`.
        FileNotFoundError: no such file.
    """
    tensors, architecture = _read(path)
    with torch.device("meta"):  # a damaged header may ask for any amount of memory
        _fit(build_described(architecture), tensors, str(path))
    model = build_described(architecture)
    model.load_state_dict(tensors)
    return model, architecture


def load_weights(path: str | Path, model: nn.Module, architecture: Mapping[str, Any] | None = None) -> None:
    """Load a checkpoint's weights and buffers into ``model``, which keeps its device and dtype.

    Args:
        path: a file of `save_checkpoint`.
        model: of the same architecture.
        architecture: of ``model``; where given, the checkpoint's must be the same, value by value.

    Raises:
        ValueError: another architecture (the first differing key is named), not a checkpoint.
        FileNotFoundError: no such file.
    """
    tensors, of_file = _read(path)
    if architecture is not None:
        _same(of_file, json.loads(json.dumps(dict(architecture))), str(path))
    _fit(model, tensors, str(path))
    model.load_state_dict(tensors)


def write_tensors(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> None:
    """Write a safetensors file, whole or not at all."""
    from safetensors.torch import save

    path = Path(path)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(beside, "wb") as file:  # safetensors' own files are for their owner alone
            file.write(save({n: t.detach().cpu().contiguous() for n, t in tensors.items()}, dict(metadata)))
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def read_tensors(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file.

    Raises:
        ValueError: not a safetensors file.
        FileNotFoundError: no such file.
    """
    from safetensors import SafetensorError, safe_open

    if Path(path).exists() and not Path(path).is_file():  # a pipe would never end
        raise ValueError(f"{path}: is not a file")
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path}: is not a safetensors file ({error})") from None


def _read(path: str | Path) -> tuple[dict[str, Tensor], Architecture]:
    tensors, metadata = read_tensors(path)
    try:
        header = json.loads(metadata[_KEY])
        found, architecture = header["format"], header["architecture"]
    except (KeyError, TypeError, ValueError, RecursionError):
        raise ValueError(f"{path}: has no {_KEY!r} header; it was not written as a checkpoint") from None
    if found != FORMAT:
        raise ValueError(f"{path}: format {found!r} is unknown; this version reads {FORMAT}")
    if not isinstance(architecture, dict):
        raise ValueError(f"{path}: architecture: {architecture!r:.80} holds no fields")
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise ValueError(f"{path}: {name!r} holds NaN or infinite values")
    return tensors, architecture


def _same(found: Mapping[str, Any], wanted: Mapping[str, Any], path: str, prefix: str = "") -> None:
    for key in [*wanted, *(k for k in found if k not in wanted)]:
        a, b = found.get(key), wanted.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            _same(a, b, path, f"{prefix}{key}.")
        elif a != b:
            raise ValueError(f"{path}: is of another architecture: {prefix}{key} is {a!r}, not {b!r}")


def _fit(model: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    wanted = model.state_dict()
    for key in [*wanted, *(k for k in tensors if k not in wanted)]:
        a, b = (tuple(t[key].shape) if key in t else "absent" for t in (tensors, wanted))
        if a != b:
            raise ValueError(f"{source}: is of another architecture: {key!r} is {a} there, {b} here")
        if tensors[key].is_floating_point() != wanted[key].is_floating_point():
            raise ValueError(f"{source}: {key!r} is {tensors[key].dtype} there, {wanted[key].dtype} here")
