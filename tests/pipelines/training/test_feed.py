"""Epochs read by row groups: every chosen row once, whatever the workers, row groups and windows."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.errors import UserError
from pipelines.config import Config, DataConfig
from pipelines.data.dataset import describe
from pipelines.data.layout import Ids, read_rows, uniform_sample
from pipelines.data.scan import Split, read_split
from pipelines.training import feed as feeds
from pipelines.training.engine import LocalEngine
from pipelines.training.feed import Batch, StreamedRows, decoded, shard_order
from pipelines.training.phases import RunSpec
from pipelines.training.score_table import Drawn, ScoreTable
from pruning.examples.sampling import shuffled

N = 700


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Split:
    """Two files, row groups of 64 rows, some rows left out; a row's features are its id."""
    folder = tmp_path_factory.mktemp("rows")
    ids = np.arange(N)
    for part, of_file in enumerate(np.array_split(ids, 2)):
        image = pa.FixedSizeListArray.from_arrays(pa.array(np.repeat(of_file, 3).astype(np.float32)), 3)
        table = pa.table({"id": of_file, "image": image, "label": of_file % 7})
        pq.write_table(table, folder / f"train-{part}.parquet", row_group_size=64)
    return read_split(folder, "train").without(np.flatnonzero(np.random.default_rng(0).random(N) < 0.2))


def drawn_table(split: Split, ratio: float) -> tuple[ScoreTable, Drawn]:
    made = ScoreTable(split.ids)
    given = {"warmup_epochs": 0, "anneal_epochs": 0, "alpha": 0.1, "stale_alpha": 0.3, "score_from": 0}
    given |= {"scoring_cost": 0.3, "rescore_every": None, "rescore_who": "all", "design": "systematic"}
    made.begin({"name": "random", "ratio": ratio, "seed": 3, "epochs": 9, **given})
    return made, made.draw(2)


def batches(split: Split, ratio: float, window: int, rank: int, workers: int, batch: int) -> list[Batch]:
    known, drawn = drawn_table(split, ratio)

    config = Config(data=DataConfig(reading="shards"))
    info = describe(split, split, ".", config.data, config.model.T)
    spec = RunSpec(
        config=config, info=info, phases=(), folder="", train=split, test=split, window_rows=window
    )
    engine = LocalEngine(spec, checkpoints=Path(), watch=lambda event: None)
    engine.table, engine.rank, engine.world_size = known, rank, workers
    also = split.ids.array()[::50]
    feed, rows = engine.feed(drawn, seed=3, global_batch=batch, also=also)
    assert np.array_equal(rows.ids, also)
    found = list(feed)
    assert len(found) == feed.steps
    return found


@settings(max_examples=40)
@given(
    ratio=st.sampled_from([0.0, 0.3, 0.9, 0.997]),
    window=st.integers(1, 800),
    workers=st.integers(1, 4),
    batch=st.integers(1, 90),
)
def test_every_chosen_row_once_with_its_own_content(
    split: Split, ratio: float, window: int, workers: int, batch: int
) -> None:
    plan = drawn_table(split, ratio)[0].chosen(np.array([[0, 5000]]))
    parts = [batches(split, ratio, window, rank, workers, batch) for rank in range(workers)]
    assert {len(p) for p in parts} == {-(-len(plan[0]) // batch)}
    every = [b for p in parts for b in p]
    for b in every:
        (part,) = b.decoded(1)
        assert np.array_equal(part.x, np.repeat(b.ids[:, None], 3, 1))
        assert np.array_equal(part.labels, b.ids % 7)
    ids = np.concatenate([b.ids[b.weights > 0] for b in every])
    weights = np.concatenate([b.weights[b.weights > 0] for b in every])
    order = np.argsort(ids)
    assert np.array_equal(ids[order], plan[0])
    assert np.array_equal(weights[order], plan[1])


def test_one_window_is_the_order_of_rows_in_memory(split: Split) -> None:
    ids = np.concatenate([b.ids for b in batches(split, 0.5, 10_000, 0, 1, 1)])
    chosen = drawn_table(split, 0.5)[0].chosen(np.array([[0, 5000]]))[0]
    assert np.array_equal(ids, shuffled(chosen, seed=3, epoch=2))


def test_the_sequence_does_not_depend_on_the_workers(split: Split) -> None:
    whole = np.concatenate([b.ids for b in batches(split, 0.3, 100, 0, 1, 1)])
    parts = [batches(split, 0.3, 100, rank, 3, 3) for rank in range(3)]
    rows = [np.concatenate([b.ids[b.weights > 0] for b in p]) for p in parts]
    assert np.array_equal(np.concatenate(rows), whole)
    assert max(map(len, rows)) - min(map(len, rows)) <= 1


def test_row_groups_are_read_once_but_for_the_ends() -> None:
    counts = np.random.default_rng(1).integers(0, 90, 500)
    given = {"seed": 0, "epoch": 1, "window_rows": 300, "global_batch": 64, "world_size": 4}
    read = np.concatenate(
        [w.pieces for rank in range(4) for w in shard_order(counts, rank=rank, **given).windows]  # type: ignore[arg-type]
    )
    assert set(read) == set(np.flatnonzero(counts))
    assert len(read) <= np.count_nonzero(counts) + 3 * 12  # three cuts, each within one window


def test_a_streamed_split_is_shared_equally(split: Split) -> None:
    for workers in (1, 3):
        shares = [
            StreamedRows(split, rank, workers, lambda layout, ids: lambda: read_rows(layout, ids))
            for rank in range(workers)
        ]
        ids = [np.concatenate([b[0] for b in s.batches(50)]) for s in shares]
        assert np.array_equal(np.concatenate(ids), split.ids.array())
        assert [len(s) for s in shares] == [len(i) for i in ids]
        assert np.array_equal(shares[-1].head(20).ids[:20], ids[-1][:20])


def test_damage_is_named_with_its_file(split: Split, tmp_path: Path) -> None:
    import dataclasses

    gone = dataclasses.replace(split.layout, files=tuple(str(tmp_path / Path(f).name) for f in split.files))
    with pytest.raises(UserError, match=r"train-0.parquet: row group 0 \(rows 0 to 63\) cannot be read"):
        read_rows(gone, split.ids)


@pytest.mark.parametrize("ahead", [0, 2])
def test_batches_are_decoded_ahead_in_their_order(
    ahead: int, split: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is decoded is that of the batch, however far ahead; the end of a feed is not waited for."""
    monkeypatch.setattr(feeds, "AHEAD", ahead)
    known = batches(split, 0.5, 200, 0, 2, 64)
    asked: list[int] = []

    def slowly() -> Iterator[Batch]:
        for i, batch in enumerate(known):
            asked.append(i)
            yield batch

    found = []
    for i, parts in enumerate(decoded(slowly(), 3)):  # type: ignore[arg-type]
        assert asked[-1] == min(i + ahead, len(known) - 1)
        found.append(parts)
    assert len(found) == len(known)
    for parts, batch in zip(found, known, strict=True):
        assert np.array_equal(np.concatenate([p.ids for p in parts]), batch.ids)
        assert np.array_equal(np.concatenate([p.weights for p in parts]), batch.weights)
        x = np.concatenate([np.asarray(p.x) for p in parts])
        assert np.array_equal(x[:, 0], batch.ids)  # a row's features are its id
        assert np.array_equal(np.concatenate([p.labels for p in parts]), batch.ids % 7)


def test_an_example_that_cannot_be_decoded_is_met_in_its_turn(split: Split) -> None:
    known = batches(split, 0.5, 200, 0, 1, 64)
    known[2] = replace(known[2], ids=known[2].ids + 10**6)
    given = decoded(iter(known), 1)  # type: ignore[arg-type]
    assert len([next(given), next(given)]) == 2
    with pytest.raises(KeyError, match="was not fetched"):
        next(given)


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
