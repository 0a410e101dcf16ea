import numpy as np
import pytest
import torch

from pipelines.training import score_buffer
from pipelines.training.score_buffer import ScoreBuffer


class Recorder:
    def __init__(self) -> None:
        self.seen: list[tuple[int, float, int]] = []
        self.deliveries = 0

    def observe(self, ids, scores, epoch, source, steps=None) -> None:
        assert (epoch, source) == (3, "train")
        self.deliveries += 1
        self.seen += zip(ids.tolist(), scores.tolist(), steps.tolist(), strict=True)


@pytest.mark.parametrize(("held", "deliveries"), [(1, 4), (5, 2), (100, 1)])
def test_scores_reach_the_book_with_their_steps(monkeypatch, held: int, deliveries: int) -> None:
    monkeypatch.setattr(score_buffer, "DELIVERY", held)
    book = Recorder()
    buffer = ScoreBuffer(book, 3)
    for step in range(2):
        buffer.step = step
        for half in range(2):  # accumulated parts of one step
            ids = np.arange(3) + 6 * step + 3 * half
            buffer.add(ids, torch.from_numpy(ids * 10.0), np.array([True, step == 0, True]))
    buffer.flush()
    buffer.flush()
    expected = [(i, 10.0 * i, i // 6) for i in range(12) if i not in (7, 10)]
    assert book.seen == expected
    assert book.deliveries == deliveries
