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
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.data import RandomSampler

from pruning.examples.bound import GraphBound
from snn.losses import LOSSES
from snn.observing import evaluating
from snn.weighted_norm import wide

LossName = Literal["rate_ce", "tet"]


@dataclass(eq=False)
class Evidence:
    """What a score may look at."""

    logits: Tensor
    """float32 (or float64), ``[T, B, K]``."""
    labels: Tensor
    """int64 ``[B]``."""
    losses: Tensor
    """The training loss, ``[B]``."""
    bound: Tensor | None
    """The bound of the gradient norm, ``[B]``, where it is wanted."""

    def probabilities(self) -> Tensor:
        """Softmax of the mean logits, ``[B, K]``."""
        return self.logits.mean(0).softmax(-1)


def _el2n(evidence: Evidence) -> Tensor:
    with torch.enable_grad():  # as a training step finds it on its way back, to the last bit
        mean = evidence.logits.mean(0, keepdim=True).requires_grad_()
        value = LOSSES["rate_ce"](mean, evidence.labels).sum()
    return torch.autograd.grad(value, mean)[0][0].norm(dim=-1)


def _margin(evidence: Evidence) -> Tensor:
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
        model: for ``sadp`` a `SpikingNetwork`, any module with ``synapses()`` as it has them, or one of
            another library (`snn.adapters.wrap`); the inner module of ``DistributedDataParallel``.
        names: the scores wanted, of ``SCORES``.
        loss: the training loss.
        label_smoothing: of the training loss, in [0, 1).
        tail_depth: hidden layers that ``sadp`` covers: 1, the last one, or 0, the readout only (exact).
        timesteps: look at the first so many timesteps of the input only; all by default. For direct coding:
            scores of event frames need all of them.

    Raises:
        ValueError: an unknown score or loss, a value outside its range, or a network that has no such score.
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
        self._bound: GraphBound | None = None
        if "sadp" in self.names:
            if not hasattr(model, "synapses"):
                raise ValueError(
                    f"model: {type(model).__name__} must have synapses() for sadp, or be shown by"
                    " snn.adapters.wrap"
                )
            synapses: Any = model.synapses
            self._bound = GraphBound(synapses()[-1 - tail_depth :])

    def score(self, x_TB: Tensor, labels_B: Tensor) -> dict[str, Tensor]:
        """All scores of a batch from one forward pass in eval mode; the model is left as it was.

        Args:
            x_TB: the model's input, ``[T, B, ...]``.
            labels_B: int64.

        Returns:
            float32 ``[B]`` by name.
        """
        if self.timesteps is not None:
            x_TB = x_TB[: self.timesteps]
        with evaluating(self.model), _frozen(self.model), torch.enable_grad():
            with self.recording(cut=True):
                logits_TBK = wide(self.model(x_TB))
            losses_B = LOSSES[self.loss](logits_TBK, labels_B, self.label_smoothing)
            return self.from_losses(losses_B, logits_TBK, labels_B)

    def recording(self, *, cut: bool = False) -> AbstractContextManager[None]:
        """Within it one forward pass of the model is recorded, for `from_losses`; see `GraphBound`."""
        if self._bound is None:
            return nullcontext()
        self._bound.calls = {}
        return self._bound.recording(cut=cut)

    def from_losses(
        self, losses_B: Tensor, logits_TBK: Tensor, labels_B: Tensor, weights_B: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Scores of the batch whose forward pass was recorded, in float32 whatever autocast says.

        Args:
            losses_B: the training loss of the logits, whose graph is kept for the step's own backward pass.
            logits_TBK: the recorded pass's result.
            labels_B: int64.
            weights_B: of the examples in the batch statistics, where the pass ran in training mode within
                `snn.weighted_norm.weighted_statistics`; the slope of the last norm then comes from the same
                statistics as its output.

        Returns:
            float32 ``[B]`` by name.

        Raises:
            ValueError: losses that do not come from the recorded pass.
        """
        bound = None if self._bound is None else self._bound.bound(losses_B, weights_B)
        with torch.no_grad(), torch.autocast(losses_B.device.type, enabled=False):
            evidence = Evidence(wide(logits_TBK.detach()), labels_B, wide(losses_B.detach()), bound)
            return {name: SCORES[name](evidence).float() for name in self.names}


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """No parameter wants a gradient, so that no graph is kept of them."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    try:
        for p in parameters:
            p.requires_grad_(False)
        yield
    finally:
        for p in parameters:
            p.requires_grad_(True)


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
