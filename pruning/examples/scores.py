"""Importance scores of examples: one number per example from one forward pass.

========  ==========================================================================================
sadp      bound of the gradient norm of the readout and the last hidden layer (ours)
el2n      norm of ``softmax(mean logits) - one-hot`` (Paul et al. 2021, arXiv 2107.07075)
loss      the training loss
margin    ``1 + max_(k != y) p_k - p_y`` of the mean logits' probabilities, in [0, 2]
entropy   entropy of the mean logits' probabilities, in nats
========  ==========================================================================================

Claims about ``sadp`` hold in eval mode with frozen batch norm, where an example's score does not depend on
its batch. With batch norm in training mode, or scores from the training step, they are approximate.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.data import RandomSampler

from pruning.examples.bound import (
    GraphBound,
    current_gradient,
    errors,
    field_squares,
    gradients,
    head_squared,
    layer_bound,
    norm_slope,
    readout_gradient,
)
from snn.adapters.network import Adapted
from snn.layers import Folded, Synapses
from snn.losses import LOSSES
from snn.observing import evaluating
from snn.weighted_norm import wide

LossName = Literal["rate_ce", "tet"]


@dataclass(eq=False)
class Evidence:
    """What a score may look at."""

    logits: Tensor
    """float32 (or float64), ``[T, B, K]``."""
    errors: Tensor
    """``T`` times the training loss's gradient at the logits, ``[T, B, K]`` or ``[1, B, K]`` if constant."""
    losses: Tensor
    """The training loss, ``[B]``."""
    labels: Tensor | None
    """int64 ``[B]``; ``None`` where only losses are known."""
    bound: Tensor | None = None
    """The bound of the gradient norm, ``[B]``, where it is wanted."""

    def probabilities(self) -> Tensor:
        """Softmax of the mean logits, ``[B, K]``."""
        return self.logits.mean(0).softmax(-1)


def _el2n(evidence: Evidence) -> Tensor:
    if evidence.labels is None:
        return evidence.errors.mean(0).norm(dim=-1)
    return errors(evidence.logits, evidence.labels, "rate_ce")[0].norm(dim=-1)


def _margin(evidence: Evidence) -> Tensor:
    if evidence.labels is None:
        raise ValueError("score margin: needs labels, which losses alone do not tell; use a scoring pass")
    p = evidence.probabilities()
    label = evidence.labels.unsqueeze(1)
    return 1 + p.scatter(1, label, -1.0).amax(1) - p.gather(1, label).squeeze(1)


def _entropy(evidence: Evidence) -> Tensor:
    return torch.special.entr(evidence.probabilities()).sum(-1)


SCORES: dict[str, Callable[[Evidence], Tensor]] = {
    "sadp": attrgetter("bound"),
    "el2n": _el2n,
    "loss": attrgetter("losses"),
    "margin": _margin,
    "entropy": _entropy,
}
"""Every score by its name."""


class ExampleScorer:
    """Scores of a network's examples, in a pass of their own or beside a training step.

    Args:
        model: a `SpikingNetwork`, or any module with ``readout`` and ``synapses()`` as it has them, or one of
            another library (`snn.adapters.wrap`); the inner module of ``DistributedDataParallel``.
        names: the scores wanted, of ``SCORES``.
        loss: the training loss.
        label_smoothing: of the training loss, in [0, 1).
        tail_depth: hidden layers that ``sadp`` covers: 1, the last one, or 0, the readout only (exact).
        timesteps: look at the first so many timesteps of the input only; all by default. For direct coding:
            scores of event frames need all of them.

    Raises:
        ValueError: an unknown score or loss, a value outside its range, more layers than there are.
    """

    def __init__(
        self,
        model: nn.Module,
        names: Sequence[str] = ("sadp",),
        *,
        loss: LossName = "rate_ce",
        label_smoothing: float = 0.0,
        tail_depth: int = 1,
        timesteps: int | None = None,
    ) -> None:
        for name in names:
            if name not in SCORES:
                raise ValueError(f"score: {name!r} is unknown; choose one of {', '.join(SCORES)}")
        if loss not in LOSSES:
            raise ValueError(f"loss: {loss!r} is unknown; choose one of {', '.join(LOSSES)}")
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing: {label_smoothing!r} must be in [0, 1)")
        if timesteps is not None and timesteps < 1:
            raise ValueError(f"timesteps: {timesteps!r} must be at least 1")
        if tail_depth not in (0, 1):
            raise ValueError(f"tail_depth: {tail_depth!r} must be 0 or 1")
        self.model = model
        self.names = tuple(names)
        self.loss: LossName = loss
        self.label_smoothing = label_smoothing
        self.timesteps = timesteps
        self._hidden: Synapses | None = None
        self._watched: dict[str, nn.Module] = {}
        self._captured: dict[str, Tensor] = {}
        if "sadp" in self.names and not isinstance(model, Adapted):
            self._watch(tail_depth)

    def _watch(self, tail_depth: int) -> None:
        """Find the modules whose inputs the bound is made of."""
        model: Any = self.model
        if not (hasattr(model, "synapses") and hasattr(model, "readout")):
            raise ValueError(
                f"model: {type(model).__name__} must have readout and synapses() for sadp, or be shown by"
                " snn.adapters.wrap"
            )
        self._path = _path(model)
        if not isinstance(self._path[-1], nn.Linear):
            raise ValueError("readout: must be nn.Linear, or nn.Sequential that ends in one, for sadp")
        self._watched = {"spikes": self._path[0], "head": self._path[-1]}
        if tail_depth:
            hidden = model.synapses()[:-1]
            if not hidden:
                raise ValueError("tail_depth: 1 needs a hidden layer, and the model has none")
            self._hidden = hidden[-1]
            assert self._hidden.neuron is not None
            self._watched |= {"layer": self._hidden.layer, "neuron": self._hidden.neuron}
            if self._hidden.norm is not None:
                self._watched["norm"] = self._hidden.norm

    def score(self, x_TB: Tensor, labels_B: Tensor) -> dict[str, Tensor]:
        """All scores of a batch from one forward pass in eval mode; the model's modes are restored.

        Args:
            x_TB: the model's input, ``[T, B, ...]``.
            labels_B: int64.

        Returns:
            float32 ``[B]`` by name.
        """
        if self.timesteps is not None:
            x_TB = x_TB[: self.timesteps]
        if isinstance(self.model, Adapted):
            return self._adapted(x_TB, labels_B)
        with evaluating(self.model), torch.no_grad():
            with self.recording():
                logits_TBK = self.model(x_TB)
            return self.from_recording(logits_TBK, labels_B)

    def _adapted(self, x_TB: Tensor, labels_B: Tensor) -> dict[str, Tensor]:
        """`score` by the graph of the loss."""
        graph = GraphBound(self.model.synapses(), cut=True)  # type: ignore[operator]
        with closing(graph), evaluating(self.model), torch.enable_grad():
            logits_TBK = self.model(x_TB)
            losses_B = LOSSES[self.loss](logits_TBK, labels_B, self.label_smoothing)
            bound = graph.bound(losses_B) if "sadp" in self.names else None
        with torch.no_grad():
            logits_TBK = wide(logits_TBK.detach())
            e_TBK = errors(logits_TBK, labels_B, self.loss, self.label_smoothing)
            return self._scores(Evidence(logits_TBK, e_TBK, losses_B.detach(), labels_B, bound), None)

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Within it one forward pass of the model is recorded, for `from_recording`."""
        self._captured = {}
        with ExitStack() as hooks:
            for key, module in self._watched.items():
                hooks.callback(module.register_forward_pre_hook(partial(self._capture, key)).remove)
            yield

    def from_recording(
        self, logits_TBK: Tensor, labels_B: Tensor, weights_B: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Scores of the batch whose forward pass was recorded, in float32 whatever autocast says.

        Args:
            logits_TBK: the recorded pass's result.
            labels_B: int64.
            weights_B: of the examples in the batch statistics, where the pass ran in training mode within
                `snn.weighted_norm.weighted_statistics`; the slope of the last norm then comes from the same
                statistics as its output.

        Returns:
            float32 ``[B]`` by name.
        """
        with torch.no_grad(), torch.autocast(labels_B.device.type, enabled=False):
            logits_TBK = wide(logits_TBK.detach())
            e_TBK = errors(logits_TBK, labels_B, self.loss, self.label_smoothing)
            losses_B = LOSSES[self.loss](logits_TBK, labels_B, self.label_smoothing)
            return self._scores(Evidence(logits_TBK, e_TBK, losses_B, labels_B), weights_B)

    def from_losses(
        self, losses_B: Tensor, logits_TBK: Tensor, weights_B: Tensor | None = None, *, constant: bool
    ) -> dict[str, Tensor]:
        """As `from_recording`, by any loss and without labels.

        Args:
            losses_B: made of the logits; their graph is kept for the step's own backward pass.
            logits_TBK: the recorded pass's result.
            weights_B: see `from_recording`.
            constant: whether the gradient is the same at all timesteps, as of a loss of the mean logits.

        Returns:
            float32 ``[B]`` by name. ``el2n`` is the norm of the loss's gradient at the mean logits.

        Raises:
            ValueError: losses that do not come from these logits; the score ``margin``.
        """
        (e_TBK,) = gradients(losses_B, [logits_TBK])
        with torch.no_grad(), torch.autocast(losses_B.device.type, enabled=False):
            e_TBK = wide(e_TBK[:1] if constant else e_TBK) * len(logits_TBK)
            evidence = Evidence(wide(logits_TBK.detach()), e_TBK, wide(losses_B.detach()), None)
            return self._scores(evidence, weights_B)

    def _capture(self, key: str, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if key in self._captured:
            raise ValueError(f"model: its {key} ran twice in one recorded forward pass")
        self._captured[key] = inputs[0].detach()

    def _scores(self, evidence: Evidence, weights_B: Tensor | None) -> dict[str, Tensor]:
        if "sadp" in self.names and evidence.bound is None:
            evidence.bound = self._bound(evidence.errors, len(evidence.logits), weights_B)
        return {name: SCORES[name](evidence).float() for name in self.names}

    def _bound(self, e_TBK: Tensor, T: int, weights_B: Tensor | None) -> Tensor:
        """``sqrt(h^2 + v^2)`` of the recorded pass, ``[B]``."""
        seen, self._captured = self._captured, {}
        if "head" not in seen:
            raise ValueError("sadp: no forward pass was recorded; run the model within recording()")
        r_TBN = _unfold(wide(seen["head"]), T, e_TBK.shape[1])
        squared = head_squared(e_TBK, r_TBN, self._path[-1].bias is not None)
        if self._hidden is not None:
            squared = squared + self._last_hidden(self._hidden, seen, e_TBK, T, weights_B).square()
        return squared.sqrt()

    def _last_hidden(
        self, synapses: Synapses, seen: dict[str, Tensor], e_TBK: Tensor, T: int, weights_B: Tensor | None
    ) -> Tensor:
        """``v``: the last hidden layer's part of the bound, ``[B]``."""
        assert synapses.neuron is not None
        B = e_TBK.shape[1]
        current_TB = wide(seen["neuron"])
        g_TB = readout_gradient(self._path, _unfold(wide(seen["spikes"]), T, B), e_TBK)
        if g_TB[0].numel() != current_TB[0].numel():
            raise ValueError(
                f"readout: takes {tuple(g_TB.shape[2:])} per example, but the last neurons give "
                f"{tuple(current_TB.shape[2:])}; whatever pools or selects in between belongs in the readout"
            )
        g_TB = g_TB.reshape(len(g_TB), *current_TB.shape[1:])
        delta_TB = current_gradient(current_TB, g_TB, synapses.neuron.constants)
        squares = field_squares(wide(seen["layer"]), synapses.layer)
        if len(squares) == B < T * B:  # all timesteps alike
            squares = squares.repeat(T, *[1] * (squares.ndim - 1))
        squares = _unfold(squares, T, B).flatten(0, 1)
        slope = norm_slope(synapses.norm, seen.get("norm"), weights_B)
        return layer_bound(delta_TB.flatten(0, 1), squares, slope, synapses.layer).view(T, B).sum(0)


def _path(model: Any) -> nn.Sequential:
    """From the last spikes to the logits: stateless layers that end ``features``, then the readout."""
    readout, features = model.readout, getattr(model, "features", None)
    modules = list(readout) if isinstance(readout, nn.Sequential) else [readout]
    for layer in reversed(features) if isinstance(features, nn.Sequential) else ():
        if not isinstance(layer, Folded):
            break
        modules.insert(0, layer.module)
    return nn.Sequential(*modules)


def _unfold(x: Tensor, T: int, B: int) -> Tensor:
    """``[T B, ...]`` to ``[T, B, ...]``."""
    if len(x) != T * B:
        raise ValueError(f"model: a recorded module ran on {len(x)} rows, not on T B = {T} x {B}")
    return x.unflatten(0, (T, B))


def score_dataset(
    scorer: ExampleScorer,
    loader: Iterable[Any],
    *,
    encode: Callable[[Tensor], Tensor] = lambda x: x,
) -> dict[str, Tensor]:
    """Scores of all examples of a loader, in its order.

    Args:
        scorer: of a network; inputs and labels are moved to its device.
        loader: batches of inputs and labels int64 ``[B]`` (and anything else behind them), not shuffled.
        encode: a batch's inputs to the network's ``x_TB``, ``[T, B, ...]``; as they are when not given.

    Returns:
        float32 ``[N]`` on the CPU, by name.

    Raises:
        ValueError: a loader that shuffles or is empty, or batches without labels.
    """
    if isinstance(getattr(loader, "sampler", None), RandomSampler):
        raise ValueError("loader: shuffles, so nobody could tell whose score is whose; use shuffle=False")
    device = next(scorer.model.parameters()).device
    parts: dict[str, list[Tensor]] = {name: [] for name in scorer.names}
    for batch in loader:
        if not isinstance(batch, tuple | list) or len(batch) < 2:
            raise ValueError(f"loader: a batch must be (inputs, labels), not {type(batch).__name__}")
        x, labels = batch[:2]
        if not (isinstance(labels, Tensor) and labels.ndim == 1 and labels.dtype == torch.int64):
            found = f"{labels.dtype} {tuple(labels.shape)}" if isinstance(labels, Tensor) else type(labels)
            raise ValueError(f"loader: labels must be int64 [B], not {found}")
        for name, scores in scorer.score(encode(x.to(device)), labels.to(device)).items():
            parts[name].append(scores)
    if not parts[scorer.names[0]]:
        raise ValueError("loader: gives no batch")
    return {name: torch.cat(scores).cpu() for name, scores in parts.items()}
