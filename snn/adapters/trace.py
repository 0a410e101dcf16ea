"""Which weight layer is followed by which batch norm and drives which neurons, from a forward pass."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any

from torch import Tensor, nn

from snn.adapters.library import Library
from snn.layers import Norm, WeightLayer

Call = tuple[Tensor, Tensor]
"""Input and output of a module."""


class Trace:
    """A record of a model's calls, by hooks, until it is closed.

    Where a tensor comes from is read off the autograd graph, so the pass runs with gradients. It may be
    several calls of the model, one for each timestep.

    Args:
        model: that is to run.
        library: of its neurons.
        exclude: paths of weight layers to leave out.
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
            self._hooks.callback(self._paths[path].register_forward_hook(self._keep(path)).remove)

    def close(self) -> None:
        """Take the hooks off; what was recorded stays."""
        self._hooks.close()

    def _keep(self, path: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            first = output[0] if isinstance(output, tuple | list) else output
            if path in self._others:
                raise ValueError(
                    f"{path} ({type(module).__name__}): has weights that cannot be pruned; only nn.Linear and"
                    f" nn.Conv2d can. Leave it out: exclude=[{path!r}]"
                )
            self.calls.setdefault(path, []).append((inputs[0], first))

        return hook

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
