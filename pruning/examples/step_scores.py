"""Scores of the examples of a training step, and their weights in batch norm, by hooks on the network."""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from pruning.examples.scores import ExampleScorer
from snn.weighted_norm import weighted_statistics


class StepScores:
    """Hooks on a network that is trained by somebody else's loop.

    Around every forward pass in training mode the batch norms weight their statistics, and what scores need
    is recorded; from the losses that are made of it follow the scores. Outside of training nothing happens.

    Args:
        model: the network itself, not a wrapper of it.
        score: a name of `pruning.examples.scores.SCORES`; ``None`` for none.
        weights: gives the next batch's weights in batch statistics, ``[B]``; ``None`` if they are all 1.

    Raises:
        ValueError: what `ExampleScorer` refuses.
    """

    def __init__(self, model: nn.Module, score: str | None, weights: Callable[[], Tensor | None]) -> None:
        self.score = score
        self._weights = weights
        self._scorer = None if score in (None, "loss") else _scorer(model, str(score))
        self._open: ExitStack | None = None
        self._output: Any = None
        self._weights_B: Tensor | None = None
        self._constant: bool | None = None
        self._handles = [
            model.register_forward_pre_hook(self._before),
            model.register_forward_hook(self._after, always_call=True),
        ]

    def remove(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()

    def __call__(self, losses_B: Tensor) -> Tensor | None:
        """Scores of the last batch, ``[B]``, from its losses ``[B]``; ``None`` if none are wanted.

        Raises:
            ValueError: losses that do not come from the network's last forward pass in training mode.
        """
        if self._scorer is None:
            return losses_B.detach() if self.score == "loss" else None
        output, self._output = self._output, None
        if output is None:
            raise ValueError("loss: the network has not run in training mode since the last batch")
        logits_TBK = _logits(output)
        if self._constant is None:  # asked once: on a GPU the answer is waited for
            self._constant = _is_constant(losses_B, logits_TBK)
        found = self._scorer.from_losses(losses_B, logits_TBK, self._weights_B, constant=self._constant)
        return found[self._scorer.names[0]]

    def _before(self, module: nn.Module, inputs: Any) -> None:
        if not (module.training and torch.is_grad_enabled()):
            return
        self._weights_B = self._weights()
        self._open = ExitStack()
        self._open.enter_context(weighted_statistics(self._weights_B))
        if self._scorer is not None:
            self._open.enter_context(self._scorer.recording())

    def _after(self, module: nn.Module, inputs: Any, output: Any) -> None:
        if self._open is not None:
            self._open.close()
            self._open, self._output = None, output


def _scorer(model: nn.Module, score: str) -> ExampleScorer:
    try:
        return ExampleScorer(model, (score,))
    except ValueError as error:
        hint = "; the policies loss, el2n, infobatch and repb need no readout" if score == "sadp" else ""
        raise ValueError(f"{error}{hint}") from None


def _logits(output: Any) -> Tensor:
    """A network's output as logits per timestep."""
    if not isinstance(output, Tensor) or output.ndim not in (2, 3):
        found = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ValueError(f"model: its output must be logits [T, B, K] or [B, K], not {found}")
    return output if output.ndim == 3 else output.unsqueeze(0)


def _is_constant(losses_B: Tensor, logits_TBK: Tensor) -> bool:
    """Whether the loss looks at the mean of the logits over time alone."""
    found = torch.autograd.grad(losses_B.sum(), logits_TBK, retain_graph=True, allow_unused=True)[0]
    return found is not None and bool((found == found[:1]).all())
