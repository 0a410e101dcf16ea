"""The bound of an example's gradient norm in any network, from the graph of its loss.

The same bound as `pruning.examples.bound`, where the errors at the outputs of the readout and the last
hidden layer are asked of autograd: whatever neurons, pooling and readout lie in between, their own gradients
are used.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pruning.examples.bound import field_squares, head_squared, layer_bound, norm_slope, wide
from snn.layers import Synapses

Call = tuple[Tensor, Tensor]
"""Input and output of a module."""


class GraphBound:
    """Records what its modules are given until `bound` is asked for.

    Args:
        synapses: of the network, the head last.
        cut: begin the graph behind the last hidden layer: for passes that need no other gradients.
    """

    def __init__(self, synapses: Sequence[Synapses], *, cut: bool = False) -> None:
        self._head = synapses[-1]
        self._hidden = synapses[-2] if len(synapses) > 1 else None
        self._cut = cut
        self.on = True
        """Whether calls (with gradients) are recorded."""
        self.calls: dict[nn.Module, list[Call]] = {}
        modules: list[nn.Module] = [self._head.layer]
        if self._hidden is not None:
            modules += [self._hidden.layer] + ([] if self._hidden.norm is None else [self._hidden.norm])
        self.modules = set(modules)
        self._handles = [module.register_forward_hook(self._keep) for module in modules]

    def close(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()

    def _keep(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        if not (self.on and torch.is_grad_enabled()):
            return None
        cut = self._cut and self._hidden is not None and module is (self._hidden.norm or self._hidden.layer)
        kept = output.detach().requires_grad_() if cut else output
        self.calls.setdefault(module, []).append((inputs[0], kept))
        return kept if cut else None

    def bound(self, losses_B: Tensor, weights_B: Tensor | None = None) -> Tensor:
        """``sqrt(h^2 + v^2)`` of the pass that was recorded since the last call, ``[B]``.

        Args:
            losses_B: made by that pass; their graph is kept.
            weights_B: of the examples in the batch statistics, where the pass was one of training.

        Raises:
            ValueError: losses that do not come from that pass, or a layer that ran on another layout.
        """
        calls, self.calls = self.calls, {}
        heads = calls.get(self._head.layer, [])
        hidden = self._hidden
        normed = [] if hidden is None else calls.get(hidden.norm or hidden.layer, [])
        if not heads:
            raise ValueError("loss: the network has not run in training mode since the last batch")
        wanted = [output for _, output in (*heads, *normed)]
        try:
            found = torch.autograd.grad(losses_B.sum(), wanted, retain_graph=True)
        except RuntimeError as error:
            raise ValueError(f"loss: does not come from the network's last forward pass ({error})") from None
        B = len(losses_B)
        with torch.no_grad(), torch.autocast(losses_B.device.type, enabled=False):
            e_TBK = _over_time([wide(g) for g in found[: len(heads)]], B)
            e_TBK = e_TBK * len(e_TBK)
            r_TBN = _over_time([wide(x) for x, _ in heads], B)
            bias = self._head.layer.bias is not None
            squared = head_squared(e_TBK, r_TBN.expand(len(e_TBK), *r_TBN.shape[1:]), bias)
            if hidden is not None and normed:
                deltas, inputs = found[len(heads) :], [x for x, _ in calls[hidden.layer]]
                slopes = self._slopes([x for x, _ in normed], weights_B)
                parts = zip(deltas, inputs, slopes, strict=True)
                squared = squared + torch.stack([self._rows(*p, B) for p in parts]).sum(0).square()
            return squared.sqrt()

    def _slopes(self, inputs: Sequence[Tensor], weights_B: Tensor | None) -> list[Tensor | None]:
        """Of the norm at each call."""
        assert self._hidden is not None
        norm = self._hidden.norm
        return [norm_slope(norm, None if norm is None else _folded(x, norm), weights_B) for x in inputs]

    def _rows(self, delta: Tensor, x: Tensor, slope: Tensor | None, B: int) -> Tensor:
        """``sum_tp ||G delta[t, p]|| sqrt(squares + 1)`` of one call, ``[B]``."""
        assert self._hidden is not None
        layer = self._hidden.layer
        delta, squares = _folded(wide(delta), layer), field_squares(_folded(wide(x), layer), layer)
        if len(delta) % B:
            raise ValueError(f"{self._hidden.name}: ran on {len(delta)} rows, no multiple of B = {B}")
        return layer_bound(delta, squares, slope, layer).view(-1, B).sum(0)


def _folded(x: Tensor, module: nn.Module) -> Tensor:
    """``[T, B, ...]`` to ``[T*B, ...]`` where a module took it so."""
    images = isinstance(module, nn.Conv2d | nn.BatchNorm2d)
    return x.flatten(0, 1) if x.ndim == (5 if images else 3) else x


def _over_time(parts: Sequence[Tensor], B: int) -> Tensor:
    """``[T, B, N]`` of a linear layer's calls: T times ``[B, N]``, or once ``[T, B, N]`` or ``[T*B, N]``."""
    x: Any = parts[0] if len(parts) == 1 else torch.stack(list(parts))
    if x.ndim == 2 and len(x) % B == 0:
        x = x.unflatten(0, (-1, B))
    if x.ndim != 3 or x.shape[1] != B:
        raise ValueError(f"model: its readout ran on {tuple(x.shape)}, which is not [T, B, N] with B = {B}")
    return x
