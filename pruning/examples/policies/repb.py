"""RePB: losses compared within windows of consecutive batches."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from pruning.examples.inclusion import Bools
from pruning.examples.policies.base import Plan
from pruning.examples.policies.drawn import Matched, Thinned
from pruning.examples.policies.settings import Settings
from pruning.examples.sampling import Ints


class Repb(Thinned):
    """RePB (Zhou et al., ICLR 2026): losses are compared only within a window of consecutive batches.

    Losses of different batches come from different states of the model ("score context drift"). Of the last
    epoch's examples, those below the mean loss of their window are left out with probability ``r``; examples
    that it did not train on come back with probability ``1 - r``. Weights are ``E / N_i``, epochs over those
    that trained on the example (this one counts in both), here 1 on average over the subset: unbiased only in
    the limit of many epochs. The window is one batch, as in the paper. We know the rule from a detailed
    summary and the reviews, and could not verify it, or the paper's ``r``, in the paper or its code.

    A batch is that of all workers together. A scoring pass is one window, as are losses without steps.

    Args:
        settings: shared settings; ``ratio`` is the probability that an example is left out.
        window: batches that are compared with each other, at least 1.
    """

    name = "repb"
    counts_training = True

    def __init__(self, settings: Settings, *, window: int = 1) -> None:
        if not isinstance(window, int) or window < 1:
            raise ValueError(f"window: {window!r} must be a whole number of at least 1")
        self.window = window
        self.steps = np.full(settings.num_examples, -1, np.int32)
        self.visits = np.zeros(settings.num_examples, np.int32)
        super().__init__(settings)

    def select(self, epoch: int) -> Plan:
        """A draw, with weights by the number of epochs that the examples were trained in."""
        plan = self._drawn(epoch)
        weights = 1 / (self.visits[plan.ids] + 1.0)
        weights /= weights.mean() if len(weights) else 1
        return replace(plan, weights=weights.astype(np.float32))

    def accept(self, at: Ints, scores: NDArray[np.float32], stamp: int) -> None:
        """Count the epochs that an example is trained in."""
        super().accept(at, scores, stamp)
        self.visits[at] += stamp % 2

    def accept_steps(self, at: Ints, steps: NDArray[np.integer] | None) -> None:
        """Keep them, to tell windows apart."""
        self.steps[at] = -1 if steps is None else steps

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """With steps and number of visits."""
        return {**super().arrays(), "steps": self.steps, "visits": self.visits}

    def examples(self, epoch: int) -> float:
        """In the long run: ``(1 - r) / (1 - r h)`` for a share ``h`` from the mean on (a half at first)."""
        newest, ratio, high = int(self.stamps.max()), self.settings.ratio_at(epoch), 0.5
        if newest >= 0:
            last = (newest + 1) // 2
            high = float(1 - self.low(last)[self._fresh(last)].mean())
        return (1 - ratio) / (1 - ratio * high)

    def _fresh(self, epoch: int) -> Bools:
        """Examples whose loss is of the training epoch before ``epoch``, or of a pass just before it."""
        return (self.stamps >= max(2 * epoch - 1, 0)) & (self.stamps <= 2 * epoch)

    def low(self, epoch: int) -> Bools:
        """Losses below the mean of their window, and examples that were not trained on."""
        at = np.flatnonzero(self._fresh(epoch))
        losses, low = self.scores[at].astype(np.float64), np.ones(self.settings.num_examples, bool)
        # 0 for a pass, 1 for training whose steps are not known, then the windows.
        window = np.where(self.stamps[at] % 2, self.steps[at] // self.window + 2, 0)
        known = np.isfinite(losses)
        count = np.bincount(window, known)
        mean = np.bincount(window, np.where(known, losses, 0)) / np.maximum(count, 1)
        low[at] = known & (losses < mean[window])
        return self.settings.among_present(low)


class RepbMatched(Matched, Repb):
    """RePB at a fixed budget, our adaptation: RePB itself keeps more of the data."""

    name = "repb_matched"
