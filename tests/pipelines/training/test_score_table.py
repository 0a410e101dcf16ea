"""One table of scores and draws: by range and as a whole, stored and restored."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.errors import UserError
from pipelines.data.layout import Ids
from pipelines.training import score_table
from pipelines.training.checkpoint import load_table
from pipelines.training.score_table import ScoreTable
from pruning.examples.inclusion import inclusion_probabilities, subset_size
from tests.pipelines.training.conftest import QUIET, small

N = 3000


def opened(name: str = "sadp", design: str = "systematic", ratio: float = 0.5) -> ScoreTable:
    table = ScoreTable(Ids(N))
    table.begin(
        {
            "name": name,
            "ratio": ratio,
            "seed": 5,
            "epochs": 8,
            "warmup_epochs": 1,
            "anneal_epochs": 1,
            "alpha": 0.1,
            "stale_alpha": 0.3,
            "score_from": 2,
            "scoring_cost": 0.3,
            "rescore_every": 1,
            "rescore_who": "all",
            "design": design,
        }
    )
    return table


@settings(max_examples=20)
@given(
    name=st.sampled_from(["sadp", "random", "infobatch", "static"]),
    design=st.sampled_from(["systematic", "poisson"]),
    epoch=st.sampled_from([0, 1, 3, 7]),
    cuts=st.lists(st.integers(0, N), max_size=6),
    seed=st.integers(0, 99),
)
def test_ranges_add_up_and_a_restored_table_draws_the_same(
    name: str, design: str, epoch: int, cuts: list[int], seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    table, again = opened(name, design), opened(name, design)
    rng = np.random.default_rng(seed)
    ids = rng.permutation(N)
    table.observe(ids, rng.lognormal(size=N).astype(np.float32), 1, "train", np.arange(N) // 64)
    drawn = table.draw(epoch)
    bounds = np.array([0, *sorted(cuts), N])
    ranges = np.stack([bounds[:-1], bounds[1:]], axis=1)
    for part, whole in zip(table.chosen(ranges), table.chosen(np.array([[0, N]])), strict=True):
        assert np.array_equal(part, whole)
        assert len(whole) == drawn.size == table.counts(ranges).sum()
    folder = tmp_path_factory.mktemp("state")
    for key, array in table.state().items():
        np.save(folder / f"book-{key}.npy", array)
    load_table(folder, again)
    assert again.draw(epoch) == drawn
    if (rows := table.rows(epoch, 0, N)) is not None:
        chosen, weights = table.chosen(np.array([[100, 200]]))
        assert rows["id"].tolist() == list(range(N))
        if name == "sadp":
            expected = drawn.size / N / rows["probability"][chosen]
            if design == "systematic":
                assert weights == pytest.approx(expected, rel=1e-5)


def test_the_design_is_what_an_epoch_is_drawn_with() -> None:
    table = ScoreTable(Ids(N))
    table.begin({"name": "sadp", "ratio": 0.9, "ratio_from": 0.5, "seed": 5, "epochs": 7, "alpha": 0.1})
    scores = np.random.default_rng(0).lognormal(size=N).astype(np.float32)
    table.observe(np.arange(N), scores, 0, "train")
    found = []
    for epoch in (1, 5):
        ratio, alpha = table.design(epoch)
        found.append((ratio, alpha))
        expected = inclusion_probabilities(scores, subset_size(N, ratio), alpha=alpha)
        rows = table.rows(epoch, 0, N)
        assert rows is not None
        assert np.array_equal(rows["probability"], expected)
    assert found == [(0.5, 0.1), (0.9, 0.3)]


@pytest.mark.parametrize(
    ("name", "wanted"),
    [("sadp", ("sadp", False)), ("repb", ("loss", True)), ("repb_matched", ("loss", True)), ("random", None)],
)
def test_scores_of_training_steps_that_passes_replace(name: str, wanted: tuple[str, bool] | None) -> None:
    """Without them RePB would know of no epoch that trained on an example, and weight all alike."""
    settings = {"name": name, "ratio": 0.5, "seed": 5, "epochs": 8, "rescore_every": 1}
    assert ScoreTable(Ids(N)).begin(settings) == wanted


def test_a_state_of_another_dataset_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "book-scores.npy", np.zeros(7, np.float32))
    np.save(tmp_path / "book-stamps.npy", np.zeros(7, np.int32))
    with pytest.raises(
        UserError, match=r"does not fit this run \(state scores: shape \(7,\) must be \(3000,\)"
    ):
        load_table(tmp_path, opened())
    (tmp_path / "book-stamps.npy").write_bytes(b"not an array")
    with pytest.raises(UserError, match=r"book-stamps.npy: is not a score table's state"):
        load_table(tmp_path, opened())


def test_more_examples_than_a_table_holds_are_refused(
    tmp_path: Path, digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipelines.runs.run import run

    monkeypatch.setattr(score_table, "MOST_IDS", 1000)
    with pytest.raises(
        UserError, match=r"data.path: 1,437 examples are more than a run draws from \(1,000\)"
    ):
        run(small(tmp_path, digits), "train", console=QUIET)
    assert not (tmp_path / "run").exists()
