"""Samplers: what they learn, also from trials of earlier launches."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.errors import UserError
from pipelines.search.config import SearchConfig
from pipelines.search.journal import Record
from pipelines.search.objectives import OBJECTIVES
from pipelines.search.search import search
from pipelines.search.space import Space
from tests.pipelines.search.conftest import journal_of, tree

SPACE = {
    "train.lr": {"low": 0.001, "high": 1.0, "log": True},
    "model.T": {"low": 2, "high": 16},
    "examples.ratio": {"low": 0.1, "high": 0.9, "step": 0.1},
    "model.hidden": [[16], [32, 32]],
}


def make_sampler(*args: Any) -> Any:
    from pipelines.search import suggest  # not before Ray is started: importing it imports Ray

    return suggest.make_sampler(*args)


def space(tmp_path: Path) -> Space:
    return journal_of(tree(tmp_path, tmp_path, {"space": SPACE})).space


def finished(number: int, values: dict[str, Any]) -> Record:
    """A trial whose accuracy falls with the distance from lr 0.03, and whose SynOps rise with T."""
    accuracy = 1 - abs(math.log10(values["train.lr"] / 0.03)) / 3
    metrics = {"accuracy": accuracy, "synops": 100.0 * values["model.T"]}
    return Record(number=number, values=values, status="finished", metrics=metrics)


@pytest.mark.parametrize("sampler", ["tpe", "nsga2"])
def test_learned_samplers_draw_better_than_at_first(sampler: Any, tmp_path: Path, ray_session: None) -> None:
    objectives = [OBJECTIVES["accuracy"], OBJECTIVES["synops"]]
    learned = make_sampler(SearchConfig(sampler=sampler, trials=60), space(tmp_path), objectives, 0, 0)
    records = []
    for i in range(60):
        values = learned.next(f"t{i}", i)
        assert values is not None
        records.append(finished(i, values))
        learned.learn(f"t{i}", records[-1])
    regret = [1 - r.metrics["accuracy"] + r.metrics["synops"] / 1600 for r in records]
    assert np.mean(regret[-20:]) < np.mean(regret[:15])
    for r in records:
        assert isinstance(r.values["model.T"], int)
        assert r.values["examples.ratio"] in [round(0.1 * k, 1) for k in range(1, 10)]
        assert r.values["model.hidden"] in [(16,), (32, 32)]


def test_a_sampler_that_is_told_of_the_past_goes_on_from_there(tmp_path: Path, ray_session: None) -> None:
    objectives = [OBJECTIVES["accuracy"]]
    found = space(tmp_path)
    past = [finished(i, found.draw(1, i)) for i in range(60)]
    told = make_sampler(SearchConfig(trials=80), found, objectives, 0, 60)
    for record in past:
        told.learn(None, record)
    told.learn(None, Record(number=60, values=found.draw(1, 60), status="failed", reason="x"))
    drawn = [told.next(f"t{i}", i) for i in range(20)]
    near = [finished(i, v).metrics["accuracy"] for i, v in enumerate(drawn) if v is not None]
    assert np.mean(near) > np.mean([r.metrics["accuracy"] for r in past]) + 0.1


def test_open_trials_come_first_under_their_numbers(tmp_path: Path, ray_session: None) -> None:
    from pipelines.search.suggest import JournaledSearcher

    journal = journal_of(tree(tmp_path, tmp_path, {"space": SPACE}))
    random = make_sampler(SearchConfig(sampler="random"), journal.space, [], 3, 0)
    concluded = []

    def conclude(number: int, result: dict[str, Any], error: bool) -> Record:
        concluded.append(number)
        return journal.read(number)

    for number in (1, 4):
        journal.write(Record(number=number, values=journal.space.draw(3, number)))
    searcher = JournaledSearcher(journal, random, open_numbers=[1, 4], first=5, limit=7, conclude=conclude)
    suggested = [searcher.suggest(f"t{i}") for i in range(5)]
    assert suggested == [{"number": n} for n in (1, 4, 5, 6)] + ["FINISHED"]
    assert journal.read(6).values == journal.space.draw(3, 6)
    searcher.on_trial_complete("t2", {})
    assert concluded == [5]


def test_without_the_extra_the_samplers_that_need_none_are_named(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.search.search.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"search.sampler: tpe needs the extra search \(pip install") as error:
        search(tree(tmp_path, digits, {}))
    assert "random and grid do without" in str(error.value)
