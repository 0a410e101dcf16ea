"""The order of an epoch: a pure function that no worker count, fetch order or restart can change."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.data.ids import Ids, uniform_sample
from pipelines.training.order import EpochOrder, epoch_order


def orders(m: int, workers: int, per_worker: int, seed: int = 0, epoch: int = 3) -> list[EpochOrder]:
    rng = np.random.default_rng(m)
    ids = np.sort(rng.choice(10 * m, m, replace=False)).astype(np.int64)
    weights = rng.random(m).astype(np.float32) + 0.5
    return [
        epoch_order(
            ids,
            weights,
            seed=seed,
            epoch=epoch,
            global_batch=workers * per_worker,
            rank=rank,
            world_size=workers,
        )
        for rank in range(workers)
    ]


@given(m=st.integers(1, 300), workers=st.integers(1, 5), per_worker=st.integers(1, 40))
def test_every_chosen_row_once_and_equal_steps(m: int, workers: int, per_worker: int) -> None:
    parts = orders(m, workers, per_worker)
    assert len({p.steps for p in parts}) == 1
    assert parts[0].steps == -(-m // (workers * per_worker))
    real = np.concatenate([p.ids[p.weights > 0] for p in parts])
    assert len(real) == m
    assert len(np.unique(real)) == m
    padding = sum(int((p.weights == 0).sum()) for p in parts)
    assert padding == parts[0].steps * workers * per_worker - m


@given(m=st.integers(1, 200), workers=st.sampled_from([1, 2, 4]))
def test_global_batches_do_not_depend_on_the_worker_count(m: int, workers: int) -> None:
    """Batch b holds the same rows with the same weights, however many workers share it."""
    one = orders(m, 1, 8)[0]
    parts = orders(m, workers, 8 // workers)
    for step in range(one.steps):
        ids, weights = (np.concatenate(x) for x in zip(*(p.batch(step) for p in parts), strict=True))
        assert np.array_equal(ids, one.batch(step)[0])
        assert np.array_equal(weights, one.batch(step)[1])


@given(m=st.integers(1, 200), workers=st.integers(1, 5), batch=st.integers(1, 9))
def test_any_worker_count_shares_the_same_global_batches(m: int, workers: int, batch: int) -> None:
    """Also one that does not divide the batch, as after a lost node."""
    ids, weights = np.arange(m) * 3, np.arange(1, m + 1, dtype=np.float32)
    common: dict[str, Any] = {"seed": 1, "epoch": 2, "global_batch": batch}
    one = epoch_order(ids, weights, rank=0, world_size=1, **common)
    parts = [epoch_order(ids, weights, rank=r, world_size=workers, **common) for r in range(workers)]
    assert {p.steps for p in parts} == {one.steps}
    for step in range(one.steps):
        found, w = (np.concatenate(x) for x in zip(*(p.batch(step) for p in parts), strict=True))
        expected, v = one.batch(step)
        assert np.array_equal(np.sort(found[w > 0]), np.sort(expected[v > 0]))
        assert w.sum() == v.sum()
        assert all(p.nominal_batch * workers == pytest.approx(batch) for p in parts)


def test_epochs_and_seeds_reshuffle() -> None:
    a, b, c = (orders(100, 1, 10, seed=s, epoch=e)[0].ids for s, e in ((0, 0), (0, 1), (1, 0)))
    assert set(a) == set(b) == set(c)
    assert not np.array_equal(a, b)
    assert not np.array_equal(a, c)


def test_padding_repeats_real_rows() -> None:
    (order,) = orders(5, 1, 8)
    assert np.array_equal(order.ids[5:], order.ids[:3])
    assert np.array_equal(order.weights[5:], np.zeros(3, np.float32))


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_uniform_sample_is_disjoint_and_of_equal_size(workers: int) -> None:
    ids = Ids(500).without(np.arange(0, 500, 5))
    parts = [
        uniform_sample(ids, 60, seed=1, epoch=2, stream=9, rank=r, world_size=workers) for r in range(workers)
    ]
    assert {len(p) for p in parts} == {60 // workers}
    everyone = np.concatenate(parts)
    assert len(np.unique(everyone)) == len(everyone)
    assert np.isin(everyone, ids.array()).all()
    whole = uniform_sample(ids, 60, seed=1, epoch=2, stream=9, rank=0, world_size=1)
    assert set(everyone) <= set(whole)


def test_uniform_sample_is_uniform() -> None:
    ids = Ids(20)
    counts = np.zeros(20)
    for epoch in range(2000):
        counts[uniform_sample(ids, 5, seed=0, epoch=epoch, stream=1, rank=0, world_size=1)] += 1
    # Each count is binomial(2000, 1/4): sd 19.4; 5 sd over 20 cells is a chance of about 1e-5.
    assert np.abs(counts - 500).max() < 97


def test_a_sample_never_leaves_a_worker_empty() -> None:
    ids = Ids(3)
    for rank in range(4):
        assert len(uniform_sample(ids, 2, seed=0, epoch=0, stream=0, rank=rank, world_size=4)) == 1
