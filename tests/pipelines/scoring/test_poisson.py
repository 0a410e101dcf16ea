"""Draws by passes of Ray Data against the same draws in memory: equal bit for bit."""

import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cluster.errors import UserError
from pipelines.scoring import select as poisson_pass
from pipelines.scoring import select as selection
from pipelines.scoring.select import PoissonDraw, select_subset
from pruning.examples.inclusion import inclusion_probabilities, subset_size
from pruning.examples.sampling import draw

pytestmark = pytest.mark.xdist_group("ray")

KINDS = {
    "lognormal": lambda rng, n: rng.lognormal(0, 2, n),
    "ties": lambda rng, n: rng.integers(0, 3, n),
    "zeros": lambda rng, n: np.zeros(n),
    "odd": lambda rng, n: np.where(rng.random(n) < 0.3, rng.choice([np.nan, np.inf, -1, 1e-42], n), 1.5),
}


@pytest.mark.slow
@settings(max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    n=st.integers(1, 5000),
    kind=st.sampled_from(sorted(KINDS)),
    ratio=st.sampled_from([0.0, 0.3, 0.9]),
    alpha=st.sampled_from([0.0, 0.1]),
    cuts=st.lists(st.floats(0, 1), max_size=5),
    batch=st.sampled_from([7, 1000, 1 << 20]),
    key=st.integers(0, 2**40),
)
def test_a_pass_draws_what_memory_draws(
    n: int,
    kind: str,
    ratio: float,
    alpha: float,
    cuts: list[float],
    batch: int,
    key: int,
    ray_session: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import ray

    monkeypatch.setattr(poisson_pass, "BATCH_ROWS", max(batch, n // 50))
    scores = KINDS[kind](np.random.default_rng(key), n).astype(np.float32)
    table = pa.table({"id": np.arange(n), "s": scores})
    bounds = [0, *sorted(round(c * n) for c in cuts), n]
    parts = [table.slice(a, b - a) for a, b in pairwise(bounds) if b > a]
    size = subset_size(n, ratio)
    plan = PoissonDraw(population=n, size=size, alpha=alpha, seed=key, epoch=key % 9)
    found = list(poisson_pass.poisson_pass(ray.data.from_arrow(parts), "s", plan))
    pi = inclusion_probabilities(scores, size, alpha=alpha)
    expected = draw(pi, size=size, seed=key, epoch=key % 9, design="poisson", population=n)
    if not len(expected.ids):
        assert not found
        return
    whole = pa.concat_tables(found)
    assert np.array_equal(whole.column("id").to_numpy(), expected.ids)
    assert np.array_equal(whole.column("weight").to_numpy(), expected.weights)
    assert np.array_equal(whole.column("probability").to_numpy(), expected.probabilities)


def test_a_file_is_read_in_its_order(
    ray_session: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(poisson_pass, "MOST_READS", 3)
    ids, path = np.arange(1000), tmp_path / "scores.parquet"
    table = pa.table({"id": ids, "s": ids.astype(np.float32), "other": ids})
    pq.write_table(table, path, row_group_size=37)
    found = poisson_pass.rows_in_order(str(path), "s")
    found.context.execution_options.preserve_order = True
    assert pa.concat_tables(found.iter_batches(batch_format="pyarrow")) == table.select(["id", "s"])


def test_rows_keep_their_order_whichever_task_ends_first(ray_session: None) -> None:
    import ray

    def late(table: pa.Table) -> pa.Table:
        time.sleep(1.0 if table.column("id")[0].as_py() == 0 else 0.0)
        return table.append_column("s", pa.array(np.ones(len(table), np.float32)))

    n = 40
    options = ray.data.DataContext.get_current().execution_options
    before, options.preserve_order = options.preserve_order, False
    ids = ray.data.range(n, override_num_blocks=10)  # has options of its own from here on
    table = ids.map_batches(late, batch_format="pyarrow", batch_size=None)
    options.preserve_order = before
    plan = PoissonDraw(population=n, size=n // 2, alpha=0.1, seed=0, epoch=1)
    drawn = pa.concat_tables(poisson_pass.poisson_pass(table, "s", plan)).column("id").to_numpy()
    assert np.array_equal(drawn, np.sort(drawn))


@pytest.mark.parametrize(
    "policy", ["el2n", *(pytest.param(name, marks=pytest.mark.slow) for name in ("random", "full"))]
)
def test_select_by_passes_writes_the_files_of_select_in_memory(
    policy: str, digits: Path, tmp_path: Path, ray_session: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = tmp_path / "scores.parquet"
    values = np.random.default_rng(0).lognormal(size=1437).astype(np.float32)
    pq.write_table(pa.table({"id": np.arange(1437), "el2n": values}), scores, row_group_size=100)
    options = {"policy": policy, "ratio": 0.6, "scores": scores, "design": "poisson", "seed": 3, "epoch": 2}
    told = {}
    for name, most in (("memory", 10**8), ("pass", 1000)):
        monkeypatch.setattr(selection, "IN_MEMORY", most)
        out = tmp_path / f"{name}.parquet"
        told[name] = select_subset(digits, output=out, filtered=tmp_path / name, **options)  # type: ignore[arg-type]
    assert told["memory"] == told["pass"]
    assert pq.read_table(tmp_path / "memory.parquet").equals(pq.read_table(tmp_path / "pass.parquet"))
    name = "train-00000.parquet"
    assert pq.read_table(tmp_path / "memory" / name).equals(pq.read_table(tmp_path / "pass" / name))


def test_what_passes_cannot_draw_is_refused_before_ray_starts(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selection, "IN_MEMORY", 1000)
    scores, out = tmp_path / "scores.parquet", tmp_path / "s.parquet"
    pq.write_table(pa.table({"id": np.arange(1437), "el2n": np.ones(1437, np.float32)}), scores)
    for policy, design, match in (
        ("random", "systematic", r"--design: systematic draws from 1,000 examples at most; take poisson"),
        ("static", "poisson", r"--policy: static ranks all examples, 1,000 at most"),
        ("loss", "poisson", r"has no column 'loss'; it has id, el2n"),
    ):
        with pytest.raises(UserError, match=match):
            select_subset(digits, policy=policy, ratio=0.5, output=out, scores=scores, design=design)
    assert not out.exists()


@pytest.mark.slow
@pytest.mark.parametrize("ids", [np.arange(1, 1438), np.arange(1436), np.arange(1437)[::-1]])
def test_foreign_scores_are_refused_by_a_pass(
    ids: np.ndarray, digits: Path, tmp_path: Path, ray_session: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selection, "IN_MEMORY", 1000)
    scores, out = tmp_path / "scores.parquet", tmp_path / "s.parquet"
    pq.write_table(pa.table({"id": ids, "el2n": np.ones(len(ids), np.float32)}), scores)
    with pytest.raises(UserError, match=r"--scores: its ids are not 0 to 1,436 in this order"):
        select_subset(digits, policy="el2n", ratio=0.5, output=out, scores=scores, design="poisson")
    assert not out.exists()
