"""Masks: which weights of a network are kept, as plain boolean tensors beside it.

The network itself stays as it is: no wrapped modules, no renamed parameters. ``copy.deepcopy`` and
``state_dict`` see zeros where weights were pruned and nothing else.
"""

import hashlib
import os
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from snn.interchange import read_tensors, write_tensors
from snn.observing import Network


class Masks(Mapping[str, Tensor]):
    """Boolean tensors by synapse name (`snn.layers.Synapses.name`), ``True`` where a weight is kept.

    Each has the shape of its layer's ``weight``; biases and norms are never masked.

    Raises:
        ValueError: a mask that is not boolean.
    """

    def __init__(self, masks: Mapping[str, Tensor]) -> None:
        for name, mask in masks.items():
            if mask.dtype != torch.bool:
                raise ValueError(f"masks: {name!r} has dtype {mask.dtype}, must be torch.bool")
        self._masks = dict(masks)

    @classmethod
    def of(cls, model: Network) -> "Masks":
        """All weights kept."""
        return cls({s.name: torch.ones_like(s.layer.weight, dtype=torch.bool) for s in model.synapses()})

    @classmethod
    def nonzero(cls, model: Network) -> "Masks":
        """Weights other than zero kept: the masks of a network that was pruned before."""
        return cls({s.name: s.layer.weight.detach() != 0 for s in model.synapses()})

    def __getitem__(self, name: str) -> Tensor:
        return self._masks[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._masks)

    def __len__(self) -> int:
        return len(self._masks)

    def __repr__(self) -> str:
        return f"Masks({len(self)} layers, density {self.density:.4g})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Masks):
            return NotImplemented
        return self.keys() == other.keys() and all(
            m.shape == other[name].shape and torch.equal(m.cpu(), other[name].cpu())
            for name, m in self.items()
        )

    __hash__ = None  # type: ignore[assignment]

    def __and__(self, other: "Masks") -> "Masks":
        """Weights that both keep."""
        if self.keys() != other.keys():
            raise ValueError(f"masks: layers {sorted(self)} and {sorted(other)} differ")
        return Masks({name: m & other[name].to(m.device) for name, m in self.items()})

    def counts(self) -> dict[str, tuple[int, int]]:
        """``{layer: (kept weights, all weights)}``."""
        return {name: (int(m.sum()), m.numel()) for name, m in self.items()}

    @property
    def density(self) -> float:
        """Kept weights / all weights, over all layers."""
        counts = self.counts().values()
        return sum(kept for kept, _ in counts) / max(1, sum(numel for _, numel in counts))

    @property
    def sparsity(self) -> float:
        """1 - density."""
        return 1 - self.density

    def fingerprint(self) -> str:
        """Hexadecimal SHA-256 of names, shapes and bits: equal on all ranks if the masks are."""
        digest = hashlib.sha256()
        for name in sorted(self):
            mask = self[name].cpu()
            digest.update(f"{name}{tuple(mask.shape)}".encode())
            digest.update(mask.contiguous().numpy().tobytes())
        return digest.hexdigest()

    def check(self, model: Network) -> None:
        """Raise ValueError, naming the layer, if these are not masks of ``model``."""
        self._weights(model)

    def apply_(self, model: Network) -> None:
        """Set the pruned weights of ``model`` to zero, in place.

        Raises:
            ValueError: the masks belong to another model, or its weights cannot be masked: they are computed
                in every forward pass, or two layers that are both pruned share them.
        """
        with torch.no_grad():
            for weight, mask in self._weights(model):
                weight.masked_fill_(~mask.to(weight.device), 0)

    def keep(self, model: Network, optimizer: Optimizer) -> "Hold":
        """Apply the masks and hold them through training, until removed.

        After every step of ``optimizer`` (any, also as Accelerate prepared it; weight decay included) pruned
        weights are zero again, and so is what the optimiser remembers of them (momentum, second moments,
        master weights). Their gradients are zeroed as they arrive, so that clipping sees survivors only.

        Returns:
            a handle with ``remove()``, also a context manager.

        Raises:
            ValueError: the masks belong to another model.
        """
        return Hold(self._weights(model), optimizer)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file with one boolean tensor a layer, complete or not at all."""
        write_tensors(path, dict(self.items()), {})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Masks":
        """Masks that ``save`` wrote, on the CPU.

        Raises:
            ValueError: no safetensors file, or one with tensors that are no masks.
            FileNotFoundError: no such file.
        """
        tensors, _ = read_tensors(path)
        try:
            return cls(tensors)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    def _weights(self, model: Network) -> list[tuple[Tensor, Tensor]]:
        """Each weight of ``model`` with its mask."""
        layers = {s.name: s.layer for s in model.synapses()}
        for name in self:
            if name not in layers:
                raise ValueError(f"masks: layer {name!r} is not in the model, which has {sorted(layers)}")
        pairs = []
        pruned: dict[int, str] = {}
        for name, layer in layers.items():
            if name not in self:
                raise ValueError(f"masks: the model's layer {name!r} has no mask")
            if all(parameter is not layer.weight for parameter in layer.parameters(recurse=False)):
                raise ValueError(
                    f"masks: layer {name!r} computes its weight in every forward pass (torch.nn.utils.prune, "
                    "a parametrization), which would undo them; make it permanent first"
                )
            if not self[name].all() and pruned.setdefault(id(layer.weight), name) != name:
                raise ValueError(
                    f"masks: layers {pruned[id(layer.weight)]!r} and {name!r} share their weight; exclude one"
                )
            if self[name].shape != layer.weight.shape:
                raise ValueError(
                    f"masks: layer {name!r} has shape {tuple(self[name].shape)},"
                    f" the model's {tuple(layer.weight.shape)}"
                )
            pairs.append((layer.weight, self[name]))
        return pairs


class Hold:
    """Keeps pruned weights at zero through an optimiser's steps; made by `Masks.keep`."""

    def __init__(self, weights: list[tuple[Tensor, Tensor]], optimizer: Optimizer) -> None:
        while isinstance(inner := getattr(optimizer, "optimizer", None), Optimizer):
            optimizer = inner  # Accelerate's wrapper runs no hooks
        self._pruned = [(weight, ~mask.to(weight.device)) for weight, mask in weights]
        self._zero(optimizer)
        self._handles: list[Any] = [optimizer.register_step_post_hook(lambda o, *_: self._zero(o))]
        for weight, pruned in self._pruned:
            if weight.requires_grad:
                self._handles.append(weight.register_hook(partial(torch.masked_fill, mask=pruned, value=0)))

    def _zero(self, optimizer: Optimizer) -> None:
        with torch.no_grad():
            for weight, pruned in self._pruned:
                weight.masked_fill_(pruned, 0)
                for value in optimizer.state.get(weight, {}).values():
                    if isinstance(value, Tensor) and value.shape == weight.shape:
                        value.masked_fill_(pruned.to(value.device), 0)

    def remove(self) -> None:
        """Let the weights go; what is zero stays zero until the next step."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def __enter__(self) -> "Hold":
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()
