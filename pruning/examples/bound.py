"""Bounds of an example's gradient norm from its forward pass: the formulas behind the SADP score.

In the symbols of docs/methods-sadp.md, where they are derived::

    h^2    = T^-2 sum_tt' <e[t], e[t']> (<r[t], r[t']> + 1)          exact for the head's weights and bias
    v      = sum_tp ||G delta[t, p]|| sqrt(||x[t, field of p]||^2 + 1)     delta = dL/d(current), by autograd
    score  = sqrt(h^2 + v^2)
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from snn.layers import Norm, Synapses, WeightLayer
from snn.weighted_norm import batch_statistics, wide

Call = tuple[Tensor, Tensor]
"""Input and output of a module."""


def gradients(losses_B: Tensor, outputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The losses' gradients at what the network's last pass gave; their graph is kept.

    Raises:
        ValueError: no pass, or losses that do not come from it.
    """
    if not outputs:
        raise ValueError("loss: the network has not run in training mode since the last batch")
    try:
        return torch.autograd.grad(losses_B.sum(), outputs, retain_graph=True)
    except RuntimeError as error:
        told = f"does not come from the network's last forward pass ({error})"
        remedy = "a network under torch.compile takes el2n or loss"
        raise ValueError(f"loss: {told}; {remedy}") from None


def head_squared(e_TBK: Tensor, r_TBN: Tensor, bias: bool) -> Tensor:
    """``h^2``: the squared norm of the gradient of the head's weights (and bias), exactly, ``[B]``.

    ``e_TBK`` are T times the loss's gradients at the head's output, ``r_TBN`` the head's input.
    """
    if len(e_TBK) == 1:
        return e_TBK[0].square().sum(-1) * (r_TBN.mean(0).square().sum(-1) + bias)
    e, r = e_TBK.transpose(0, 1), r_TBN.transpose(0, 1)
    products = (e @ e.mT) * (r @ r.mT + bias)
    return products.sum((1, 2)).clamp(min=0) / len(r_TBN) ** 2


def norm_slope(
    norm: Norm | None, input: Tensor | None = None, weights_B: Tensor | None = None
) -> Tensor | None:
    """``G``: factor per channel of a batch norm, ``[C]``; ``None`` without a norm.

    Args:
        norm: in training mode its slope is that of the batch statistics, else of the running ones.
        input: what the norm was given; needed in training mode and without running statistics.
        weights_B: of the examples in the batch statistics (`snn.weighted_norm.weighted_statistics`).

    Raises:
        ValueError: a norm without running statistics in eval mode, which has no slope of its own there.
    """
    if norm is None:
        return None
    if norm.training and input is not None:
        var = batch_statistics(wide(input), weights_B)[1]
    elif norm.running_var is not None:
        var = wide(norm.running_var)
    else:
        raise ValueError("norm: needs running statistics (track_running_stats) to score examples")
    slope = (var + norm.eps).rsqrt()
    return slope if norm.weight is None else slope * wide(norm.weight.detach())


def field_squares(x: Tensor, layer: WeightLayer) -> Tensor:
    """Squared norm of the input in every receptive field (the number of spikes, for binary input).

    ``[n, ..., N]`` to ``[n, ...]`` (linear), ``[n, C, H, W]`` to ``[n, G, H', W']`` for ``G`` groups of a
    convolution.

    Raises:
        ValueError: a convolution that pads with anything but zeros.
    """
    if isinstance(layer, nn.Linear):
        return torch.linalg.vector_norm(x, dim=-1).square()
    if layer.padding_mode != "zeros":
        raise ValueError(f"padding_mode: {layer.padding_mode!r} is not supported; only zeros")
    squares = x.unflatten(1, (layer.groups, -1)).square().sum(2)
    box = x.new_ones(layer.groups, 1, *layer.kernel_size)
    return F.conv2d(squares, box, None, layer.stride, layer.padding, layer.dilation, layer.groups)


def layer_bound(delta: Tensor, squares: Tensor, slope: Tensor | None, layer: WeightLayer) -> Tensor:
    """``sum_p ||G delta[:, p]|| sqrt(squares[p] + 1)`` of each row, ``[n]``.

    ``delta`` is the loss's gradient at the layer's output, normed where there is a `norm_slope`, and
    ``squares`` its `field_squares`.

    Raises:
        ValueError: shapes that do not belong together.
    """
    conv = isinstance(layer, nn.Conv2d)
    channel = 1 if conv else delta.ndim - 1
    scaled = delta.square()
    if slope is not None:
        shape = [1] * delta.ndim
        shape[channel] = -1
        scaled.mul_(slope.to(delta.dtype).square().view(shape))
    norms = scaled.unflatten(1, (layer.groups, -1)).sum(2) if conv else scaled.sum(-1)
    if norms.shape != squares.shape:
        raise ValueError(
            f"layer {layer}: currents of shape {tuple(delta.shape)} are not its output; "
            "a layer runs on [T*B, ...] or [T, B, ...]"
        )
    return (norms.sqrt_() * (squares + 1).sqrt()).view(len(delta), -1).sum(1)


class GraphBound:
    """The bound in any network, from the graph of its loss: whatever lies before the logits.

    Records what its modules are given until `bound` is asked for, which asks autograd for the errors at the
    outputs of the readout and the last hidden layer.

    Args:
        synapses: of the network, the head last; of one without a hidden layer, or the head alone, the bound
            is the readout's norm, exactly.
    """

    def __init__(self, synapses: Sequence[Synapses]) -> None:
        self._head = synapses[-1]
        self._hidden = synapses[-2] if len(synapses) > 1 else None
        self._cut_at = self._head.layer if self._hidden is None else self._hidden.norm or self._hidden.layer
        self.calls: dict[nn.Module, list[Call]] = {}
        """What was recorded, by module."""

    @property
    def modules(self) -> set[nn.Module]:
        """Those whose calls are recorded."""
        return {self._head.layer, self._cut_at, *([self._hidden.layer] if self._hidden else [])}

    @contextmanager
    def recording(self, *, cut: bool = False) -> Iterator[None]:
        """Within it calls (with gradients) are recorded.

        With ``cut`` the graph begins behind the last hidden layer: for passes that need no other gradients.
        """
        with ExitStack() as hooks:
            for module in self.modules:
                keep = partial(self._keep, cut and module is self._cut_at)
                hooks.callback(module.register_forward_hook(keep).remove)
            yield

    def _keep(
        self, cut: bool, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor
    ) -> Tensor | None:
        cut = cut or (module is self._cut_at and torch.is_grad_enabled() and not output.requires_grad)
        kept = output.detach().requires_grad_() if cut else output
        self.calls.setdefault(module, []).append((inputs[0], kept))
        return kept.clone() if cut else None  # which whatever follows may change in place

    def bound(self, losses_B: Tensor, weights_B: Tensor | None = None) -> Tensor:
        """``sqrt(h^2 + v^2)`` of the pass since the last call that made the losses, ``[B]``.

        ``weights_B`` are those of the examples in the batch statistics, where the pass was one of training.

        Raises:
            ValueError: losses that do not come from that pass, or a layer that ran on another layout.
        """
        calls, self.calls = self.calls, {}
        heads = calls.get(self._head.layer, [])
        hidden = self._hidden
        normed = [] if hidden is None else calls.get(self._cut_at, [])
        found = gradients(losses_B, [output for _, output in (*heads, *normed)])
        B = len(losses_B)
        with torch.no_grad(), torch.autocast(losses_B.device.type, enabled=False):
            e_TBK = _over_time([wide(g) for g in found[: len(heads)]], B)
            T = len(e_TBK)
            e_TBK = e_TBK * T
            r_TBN = _over_time([wide(x) for x, _ in heads], B)
            bias = self._head.layer.bias is not None
            squared = head_squared(e_TBK, r_TBN.expand(len(e_TBK), *r_TBN.shape[1:]), bias)
            if hidden is not None and normed:
                parts = []
                for delta, (x, _), (y, _) in zip(
                    found[len(heads) :], calls[hidden.layer], normed, strict=True
                ):
                    slope = norm_slope(hidden.norm, _folded(y, hidden.norm, B, T), weights_B)
                    parts.append(_call_bound(hidden, delta, x, slope, B, T))
                squared = squared + torch.stack(parts).sum(0).square()
            return squared.sqrt()


def _call_bound(s: Synapses, delta: Tensor, x: Tensor, slope: Tensor | None, B: int, T: int) -> Tensor:
    """``sum_tp ||G delta[t, p]|| sqrt(squares + 1)`` of one call of a layer, ``[B]``."""
    delta, x = _folded(wide(delta), s.norm or s.layer, B, T), _folded(wide(x), s.layer, B, T)
    if isinstance(s.norm, nn.BatchNorm1d) and isinstance(s.layer, nn.Linear) and delta.ndim == 3:
        delta = delta.mT  # a norm on tokens has channels before them
    squares = field_squares(x, s.layer)
    if len(delta) % B:
        raise ValueError(f"{s.name}: ran on {len(delta)} rows, no multiple of B = {B}")
    return layer_bound(delta, squares, slope, s.layer).view(-1, B).sum(0)


def _folded(x: Tensor, module: nn.Module | None, B: int, T: int) -> Tensor:
    """``[T, B, ...]`` to ``[T*B, ...]`` where a module took it so; tokens ``[T*B, P, N]`` stay."""
    images = isinstance(module, nn.Conv2d | nn.BatchNorm2d)
    if x.ndim < (5 if images else 3) or x.shape[1] != B or (not images and T > 1 and len(x) != T):
        return x
    return x.flatten(0, 1)


def _over_time(parts: Sequence[Tensor], B: int) -> Tensor:
    """``[T, B, N]`` of a linear layer's calls: T times ``[B, N]``, or once ``[T, B, N]`` or ``[T*B, N]``."""
    x = parts[0] if len(parts) == 1 else torch.stack(list(parts))
    if x.ndim == 2 and len(x) % B == 0:
        x = x.unflatten(0, (-1, B))
    if x.ndim != 3 or x.shape[1] != B:
        raise ValueError(f"model: its readout ran on {tuple(x.shape)}, which is not [T, B, N] with B = {B}")
    return x
