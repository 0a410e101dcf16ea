"""Losses against their formulas, written out."""

import pytest
import torch

from snn.losses import LOSSES


def cross_entropy(logits, label, smoothing):
    K = len(logits)
    log_p = logits - logits.exp().sum().log()
    target = torch.full((K,), smoothing / K, dtype=logits.dtype)
    target[label] += 1 - smoothing
    return -(target * log_p).sum()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("name", LOSSES)
def test_per_example_values(name, smoothing):
    logits_TBK = torch.randn(3, 4, 5, dtype=torch.float64)
    labels = torch.tensor([0, 4, 2, 2])
    found = LOSSES[name](logits_TBK, labels, smoothing)
    for b, label in enumerate(labels):
        if name == "rate_ce":
            wanted = cross_entropy(logits_TBK[:, b].mean(0), label, smoothing)
        else:
            wanted = sum(cross_entropy(logits_TBK[t, b], label, smoothing) for t in range(3)) / 3
        assert torch.allclose(found[b], wanted)
    assert found.shape == (4,)


def test_at_one_timestep_all_losses_agree():
    logits, labels = torch.randn(1, 6, 3), torch.randint(3, (6,))
    values = [loss(logits, labels) for loss in LOSSES.values()]
    assert all(torch.allclose(v, values[0]) for v in values)
