"""A score book in several holders against one that holds everything."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.data.ids import IdSet
from pipelines.training.book_shards import BookShard, ShardedBook, shardable, split_ids
from pipelines.training.score_book import PolicySettings, ScoreBook, everything
from pruning.examples.sampling import BLOCK

FIRST, SPAN = 40_000, 3 * BLOCK


def sharded(ids: IdSet, most: int) -> ShardedBook:
    parts = split_ids(ids, most)
    holders = [BookShard(part) for part in parts]

    def ask(method: str, arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        return [getattr(h, method)(*given) for h, given in zip(holders, arguments, strict=True)]

    return ShardedBook(ask, [*(p.first for p in parts), ids.end], len(ids))


def policy(name: str, design: str, ratio: float) -> PolicySettings:
    return PolicySettings(
        name=name,
        num_examples=SPAN,
        first_id=FIRST,
        ratio=ratio,
        seed=5,
        epochs=8,
        warmup_epochs=1,
        anneal_epochs=1,
        alpha=0.1,
        stale_alpha=0.3,
        score_from=2,
        scoring_cost=0.3,
        rescore_every=1,
        rescore_who="all",
        design=design,
    )


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 99),
    design=st.sampled_from(["systematic", "poisson"]),
    name=st.sampled_from(["sadp", "random", "full"]),
    ratio=st.sampled_from([0.3, 0.5, 0.99]),
    most=st.sampled_from([1, 2 * BLOCK]),
    dense=st.booleans(),
    kind=st.sampled_from(["lognormal", "zeros", "ties", "odd"]),
)
def test_draws_states_and_tables_are_those_of_one_book(
    seed: int, design: str, name: str, ratio: float, most: int, dense: bool, kind: str
) -> None:
    rng = np.random.default_rng(seed)
    chosen = np.arange(SPAN) if dense else np.flatnonzero(rng.random(SPAN) < 0.02)
    ids = IdSet.of(chosen + FIRST)
    whole, parts = ScoreBook(ids), sharded(ids, most)
    given_settings = policy(name, design, ratio)
    assert whole.begin(given_settings) == parts.begin(given_settings)
    scores = rng.lognormal(size=len(ids)).astype(np.float32)
    if kind == "zeros":
        scores[:] = 0
    elif kind == "ties":
        scores = np.round(scores)
    elif kind == "odd":
        scores[rng.random(len(ids)) < 0.1] = np.nan
        scores[:3] = [-1, np.inf, 1e-42]
    order = rng.permutation(len(ids))
    for book in (whole, parts):
        book.observe(ids.array()[order], scores[order], 1, "train", np.arange(len(ids)))
        book.observe(ids.array()[order], scores[order], 2, "pass")
    ranges = everything(ids)
    for epoch in (0, 1, 3, 7):
        one, many = whole.draw(epoch), parts.draw(epoch)
        assert (one.size, one.full, one.fingerprint) == (many.size, many.full, many.fingerprint)
        for field, value in one.summary.items():
            assert many.summary[field] == (value if value is None else pytest.approx(value, rel=1e-9))
        for a, b in zip(whole.chosen(ranges), parts.chosen(ranges), strict=True):
            assert np.array_equal(a, b)
        cuts = np.sort(rng.integers(ids.first, ids.end, (9, 2)))
        assert np.array_equal(whole.counts(cuts), parts.counts(cuts))
        assert whole.open_pass(epoch) == parts.open_pass(epoch)
        assert np.array_equal(whole.wanted(ranges), parts.wanted(ranges))
        assert whole.open_table(epoch) == parts.open_table(epoch)
        if whole.open_table(epoch):
            a, b = (book.table(ids.first + 7, ids.end - 7) for book in (whole, parts))
            assert all(np.array_equal(a[c], b[c], equal_nan=c == "score") for c in a)
    assert whole.costs() == parts.costs()
    assert whole.state_arrays() == parts.state_arrays()
    again = sharded(ids, BLOCK)
    again.begin(given_settings)
    for field, (_, length) in parts.state_arrays().items():
        state = parts.state_part(field, 0, length)
        assert np.array_equal(state, whole.state_part(field, 0, length), equal_nan=field == "scores")
        for low in range(0, length, 70_001):
            again.load_part(field, low, state[low : low + 70_001])
    assert again.draw(3) == whole.draw(3) or again.draw(3).fingerprint == whole.draw(3).fingerprint


def test_ranges_are_whole_blocks_with_examples() -> None:
    ids = IdSet.of(np.array([FIRST, FIRST + 1, 10 * BLOCK + 3]))
    parts = split_ids(ids, 1)
    assert sum(p.span for p in parts) == ids.span
    assert [p.array().tolist() for p in parts] == [[FIRST, FIRST + 1], [10 * BLOCK + 3]]
    assert all(p.end % BLOCK == 0 for p in parts[:-1])


def test_policies_that_rank_all_examples_are_not_sharded() -> None:
    assert all(map(shardable, ("full", "random", "sadp", "el2n", "loss")))
    assert not any(map(shardable, ("static", "ucb", "infobatch", "infobatch_matched")))
    assert not any(map(shardable, ("seta", "seta_matched", "repb", "repb_matched", "orderdp")))
