"""Scores of the examples of a training step, and their weights in batch norm, by hooks on the network."""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor, nn

from pruning.examples.bound import GraphBound, gradients
from snn.adapters import Adapted, Trace, library_of
from snn.adapters.network import first_tensor, synapses_of
from snn.weighted_norm import BatchNorm, weighted_statistics

WITHOUT_READOUT = "the policies loss, el2n, infobatch and repb need none"
_LAST: "WeakKeyDictionary[nn.Module, ref[StepScores]]" = WeakKeyDictionary()


class StepScores:
    """Hooks on a network that is trained by somebody else's loop.

    Around every forward pass in training mode the batch norms weight their statistics, and what scores need
    is recorded; from the losses that are made of it follow the scores. Outside of training nothing happens.
    A network that is called once for each timestep runs several times between two losses. A network has the
    hooks that were made last; those of a copy of it do nothing.

    Args:
        model: the network itself, not a wrapper of it: one of ours, or of another library, whose structure
            is then traced in the first step, or as `snn.adapters.wrap` sees it.
        score: ``sadp``, ``el2n`` or ``loss``; ``None`` for none.
        weights: gives the next batch's weights in batch statistics, ``[B]``; ``None`` if they are all 1.
        due: whether there is a next batch; where there is none, a forward pass is not one of training.

    Raises:
        ValueError: a network that has no such score.
    """

    def __init__(
        self,
        model: nn.Module,
        score: str | None,
        weights: Callable[[], Tensor | None],
        due: Callable[[], bool] = lambda: True,
    ) -> None:
        self.score = score
        self._model, self._weights, self._due = model, weights, due
        self._open: ExitStack | None = None
        self._weights_B: Tensor | None = None
        self._handles: list[Any] = []
        self.put_on()

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy of the network, or its file, takes along neither the dataset nor a hook that acts."""
        return _idle, ()

    def put_on(self) -> None:
        """Put the hooks on the network, if they are not."""
        if self._handles:
            return
        self._record: Any = _recorder(self._model, self.score)
        hooked = self._model.model if isinstance(self._model, Adapted) else self._model
        if hooked in _LAST and (before := _LAST[hooked]()) is not None:
            before.remove()
        _LAST[hooked] = ref(self)  # the hooks keep it as long as the network lives
        self._handles = [
            hooked.register_forward_pre_hook(self._before),
            hooked.register_forward_hook(self._after, always_call=True),
        ]

    def remove(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        if self._record is not None:
            self._record.remove()

    def __call__(self, losses_B: Tensor) -> Tensor | None:
        """Scores of the last batch, ``[B]``, from its losses ``[B]``; ``None`` if none are wanted.

        Raises:
            ValueError: losses that do not come from the network's last forward pass in training mode, or of
                another number of examples than its batch norms were given weights for.
        """
        B = len(losses_B)
        taken_for = B if self._weights_B is None else len(self._weights_B)
        if taken_for != B and any(isinstance(m, BatchNorm) for m in self._model.modules()):
            raise ValueError(
                f"batch_size: batch norm took this batch of {B} examples for one of {taken_for};"
                " batch_size is how many a forward pass in training mode takes"
            )
        if self._record is None:
            return losses_B.detach() if self.score == "loss" else None
        scores: Tensor = self._record.scores(losses_B, self._weights_B)
        return scores

    def _before(self, module: nn.Module, inputs: Any) -> None:
        if not (module.training and torch.is_grad_enabled() and self._due()):
            return
        self._weights_B = self._weights()
        self._open = ExitStack()
        self._open.enter_context(weighted_statistics(self._weights_B))
        if self._record is not None:
            self._record.begin(self._open)

    def _after(self, module: nn.Module, inputs: Any, output: Any) -> None:
        if self._open is not None:
            self._open.close()
            self._open = None
            if self._record is not None and output is not None:
                self._record.end(output)


def _idle() -> StepScores:
    """One whose hooks do nothing."""
    hooks = StepScores.__new__(StepScores)
    hooks._open, hooks._due = None, lambda: False
    return hooks


def _recorder(model: nn.Module, score: str | None) -> Any:
    if score in (None, "loss"):
        return None
    if score == "sadp":
        try:
            return _Graph(model)
        except ValueError as error:
            raise ValueError(f"{error}; {WITHOUT_READOUT}") from None
    if score == "el2n":
        return _Outputs()
    raise ValueError(f"score: {score!r} of a training step is unknown; choose sadp, el2n or loss")


class _Graph:
    """Any network with spiking neurons and a linear readout, by the graph of the loss."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._trace: Trace | None = None
        self._bound: GraphBound | None = None
        self._whole = hasattr(model, "synapses") and not isinstance(model, Adapted)
        """One call is one pass: others may be called once for each timestep."""
        if hasattr(model, "synapses"):
            synapses: Any = model.synapses
            self._bound = GraphBound(synapses())
        else:
            self._library = library_of(model)

    def begin(self, step: ExitStack) -> None:
        if self._bound is not None:
            if self._whole:  # what an unscored pass left
                self._bound.calls = {}
            step.enter_context(self._bound.recording())
        elif self._trace is None:
            self._trace = Trace(self._model, self._library)

    def end(self, output: Any) -> None:
        pass

    def scores(self, losses_B: Tensor, weights_B: Tensor | None) -> Tensor:
        if self._bound is None:
            if self._trace is None:
                raise ValueError("loss: the network has not run in training mode since the last batch")
            trace, self._trace = self._trace, None
            trace.close()
            self._bound = GraphBound(synapses_of(trace))
            self._bound.calls = {
                module: trace.calls[path]
                for path, module in self._model.named_modules()
                if path in trace.calls and module in self._bound.modules
            }
        return self._bound.bound(losses_B, weights_B)

    def remove(self) -> None:
        if self._trace is not None:
            self._trace.close()
        if self._bound is not None:
            self._bound.calls = {}


class _Outputs:
    """EL2N of any network: the norm of the loss's gradient at the mean of its outputs over time."""

    def __init__(self) -> None:
        self._found: list[Tensor] = []

    def begin(self, step: ExitStack) -> None:
        pass

    def end(self, output: Any) -> None:
        self._found.append(first_tensor(output))

    def scores(self, losses_B: Tensor, weights_B: Tensor | None) -> Tensor:
        outputs, self._found = self._found, []
        found = gradients(losses_B, outputs)
        B = len(losses_B)
        for g in found:
            if g.ndim not in (2, 3) or g.shape[-2] != B:
                raise ValueError(f"output: {tuple(g.shape)} must be [T, B, K] or [B, K], where B = {B}")
        by_call = [g.float().reshape(-1, B, g.shape[-1]).sum(0) for g in found]
        return torch.stack(by_call).sum(0).norm(dim=-1)

    def remove(self) -> None:
        self._found = []
