"""Coding: the hash against its reference in Python's integers, rates against their probabilities."""

import pytest
import torch

from snn import coding
from snn.coding import direct, event_frames, rate


def splitmix64(x):
    """The published algorithm in unbounded integers."""
    mask = (1 << 64) - 1
    x = (x + 0x9E3779B97F4A7C15) & mask
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
    return x ^ (x >> 31)


def test_hash_is_splitmix64():
    values = [0, 1, -1, 123456789, 2**62, -(2**63), 2**63 - 1]
    found = coding._mix(torch.tensor(values)).tolist()
    assert [v % 2**64 for v in found] == [splitmix64(v % 2**64) for v in values]
    assert found[0] % 2**64 == 0xE220A8397B1DCDAF  # the generator's first output for seed 0


def test_rates_are_the_probabilities():
    x_B = torch.linspace(-0.2, 1.2, 15).repeat(4, 200, 1)
    spikes = rate(x_B, 8, torch.arange(4))
    assert set(spikes.unique().tolist()) == {0, 1}
    n = 8 * 4 * 200
    p = x_B[0, 0].clamp(0, 1)
    error = (spikes.mean((0, 1, 2)) - p).abs()
    assert (error <= 4.5 * (p * (1 - p) / n).sqrt() + 1e-6).all()


def test_timesteps_positions_and_examples_are_independent():
    spikes = rate(torch.full((50, 40), 0.5), 30, torch.arange(50))
    centred = (spikes * 2 - 1).flatten()
    for shift in (1, 2, 40, 41, 50 * 40):
        assert (centred[shift:] * centred[:-shift]).mean().abs() < 4.5 / len(centred) ** 0.5


def test_spikes_follow_the_example_whatever_the_batch():
    x_B = torch.rand(6, 2, 3)
    ids = torch.tensor([5, 0, 9, 2**40, 7, 1])
    whole = rate(x_B, 4, ids, seed=3, epoch=2)
    order = torch.tensor([3, 1, 5])
    assert torch.equal(rate(x_B[order], 4, ids[order], seed=3, epoch=2), whole[:, order])
    assert torch.equal(rate(x_B, 2, ids, seed=3, epoch=2), whole[:2])
    for other in ({"seed": 4, "epoch": 2}, {"seed": 3, "epoch": 3}):
        assert not torch.equal(rate(x_B, 4, ids, **other), whole)


def test_event_frames_count_every_event_once():
    g = torch.Generator().manual_seed(0)
    E, T, H, W = 500, 4, 5, 6
    t = torch.randint(1000, 9000, (E,), generator=g)
    x, y, p = (torch.randint(0, n, (E,), generator=g) for n in (W, H, 2))
    frames = event_frames(t, x, y, p, T=T, height=H, width=W)
    wanted = torch.zeros(T, 2, H, W)
    first, last = int(t.min()), int(t.max())
    for i in range(E):
        frame = min((int(t[i]) - first) * T // (last - first), T - 1)
        wanted[frame, p[i], y[i], x[i]] += 1
    assert torch.equal(frames, wanted)


def test_event_frames_of_one_and_of_no_events():
    one = torch.tensor([7])
    frames = event_frames(one, one * 0, one * 0, one * 0 + 1, T=3, height=2, width=2)
    assert frames.sum() == frames[0, 1, 0, 0] == 1
    none = torch.zeros(0, dtype=torch.int64)
    assert event_frames(none, none, none, none, T=3, height=2, width=2).shape == (3, 2, 2, 2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: direct(torch.zeros(2), 0), "T: 0 must be at least 1"),
        (lambda: rate(torch.zeros(2), 0, torch.arange(2)), "T: 0"),
        (
            lambda: rate(torch.zeros(2, 3), 1, torch.arange(3)),
            r"ids: torch.int64 \(3,\) must be int64 \(2,\)",
        ),
        (lambda: rate(torch.zeros(2, 3), 1, torch.zeros(2)), "ids: torch.float32"),
        (
            lambda: event_frames(*[torch.tensor([3])] * 3, torch.tensor([1]), T=2, height=9, width=3),
            r"x: 3\.\.3 must be in 0\.\.2",
        ),
        (
            lambda: event_frames(torch.zeros(2), *[torch.zeros(1)] * 3, T=2, height=2, width=2),
            "one and the same",
        ),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()
