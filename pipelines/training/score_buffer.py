"""Scores met in training, on their way from a worker's device to the score table."""

import numpy as np
import torch
from torch import Tensor

from pipelines.training.score_table import ScoreTable

DELIVERY = 1 << 18  # scores that a worker holds before it delivers them


class ScoreBuffer:
    """Scores met in training on their way to the score table, in deliveries of a bounded size.

    They stay on their device until one is due, so that no step waits for its scores.
    """

    def __init__(self, table: ScoreTable, epoch: int) -> None:
        self._table, self._epoch = table, epoch
        self._parts: list[tuple[np.ndarray, Tensor, np.ndarray, np.ndarray]] = []
        self._held = 0
        self.step = 0
        """The optimiser step that scores added now belong to."""

    def add(self, ids: np.ndarray, scores_B: Tensor, real: np.ndarray) -> None:
        """Take a batch's scores, of those examples that are real and no filling."""
        self._parts.append((ids, scores_B, real, np.full(len(ids), self.step, np.int32)))
        self._held += len(ids)
        if self._held >= DELIVERY:
            self.flush()

    def flush(self) -> None:
        """Deliver what is held."""
        if self._parts:
            ids, scores, real, steps = zip(*self._parts, strict=True)
            wanted = np.concatenate(real)
            found = torch.cat(scores).float().cpu().numpy()
            self._table.observe(
                np.concatenate(ids)[wanted],
                found[wanted],
                self._epoch,
                "train",
                np.concatenate(steps)[wanted],
            )
            self._parts, self._held = [], 0
