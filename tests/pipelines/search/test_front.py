"""The front against a definition written out; the best of each kind; what fields explain."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pipelines.search.front import best_of, costs_of, on_front
from pipelines.search.importance import importance
from pipelines.search.objectives import OBJECTIVES
from pipelines.search.space import Choice, Range

POINTS = arrays(np.float64, st.tuples(st.integers(1, 12), st.integers(1, 3)), elements=st.integers(0, 5))


@given(POINTS)
def test_the_front_is_what_nothing_dominates(costs: np.ndarray) -> None:
    def dominates(a: np.ndarray, b: np.ndarray) -> bool:
        return all(x <= y for x, y in zip(a, b, strict=True)) and any(
            x < y for x, y in zip(a, b, strict=True)
        )

    expected = [not any(dominates(a, b) for a in costs) for b in costs]
    assert on_front(costs).tolist() == expected
    assert any(expected)


@given(POINTS)
def test_every_point_is_matched_or_beaten_by_one_on_the_front(costs: np.ndarray) -> None:
    front = costs[on_front(costs)]
    for point in costs:
        assert (front <= point).all(axis=1).any()


@given(POINTS)
def test_the_best_of_each_kind_are_on_the_front(costs: np.ndarray) -> None:
    objectives = list(OBJECTIVES.values())[: costs.shape[1]]
    best = best_of(costs, objectives)
    assert set(best) == {o.name for o in objectives} | ({"balanced"} if len(objectives) > 1 else set())
    for i, o in enumerate(objectives):
        assert costs[best[o.name], i] == costs[:, i].min()
    assert on_front(costs)[list(best.values())].all()


def test_directions() -> None:
    metrics = [
        {"accuracy": 0.9, "synops": 10.0},
        {"accuracy": 0.8, "synops": 10.0},
        {"accuracy": 0.8, "synops": 5.0},
    ]
    objectives = [OBJECTIVES["accuracy"], OBJECTIVES["synops"]]
    costs = costs_of(metrics, objectives)
    assert on_front(costs).tolist() == [True, False, True]
    assert best_of(costs, objectives) == {"accuracy": 0, "synops": 2, "balanced": 0}


def test_balanced_is_the_bend_of_the_front() -> None:
    costs = np.array([[0.0, 10.0], [1.0, 1.0], [10.0, 0.0], [5.0, 0.9]])
    objectives = [OBJECTIVES["examples"], OBJECTIVES["synops"]]
    assert best_of(costs, objectives)["balanced"] == 1


def test_importance_finds_what_an_objective_depends_on() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.uniform(0.1, 0.9, 60), rng.uniform(0.1, 0.9, 60)
    kinds = rng.choice(["x", "y", "z"], 60)
    ratio, lr = (Range(path=p, low=0.1, high=0.9) for p in ("examples.ratio", "train.lr"))
    kind = Choice(path="examples.policy", values=("x", "y", "z"))
    bowl = (a - 0.5) ** 2
    assert importance(ratio, a.tolist(), bowl) == pytest.approx(1, abs=1e-6)
    assert importance(lr, b.tolist(), bowl) < 0.15
    step = np.where(kinds == "y", 3.0, 0.0)
    assert importance(kind, kinds.tolist(), step) == pytest.approx(1, abs=1e-6)
    assert importance(kind, kinds.tolist(), bowl) < 0.15
    mixed = step + rng.normal(0, step.std(), 60)
    assert 0.3 < importance(kind, kinds.tolist(), mixed) < 0.7


def test_importance_says_when_it_cannot_tell() -> None:
    ratio = Range(path="examples.ratio", low=0.1, high=0.9)
    assert importance(ratio, [0.1, 0.5, 0.9], np.array([1.0, 2.0, 3.0])) is None
    assert importance(ratio, [0.1, 0.3, 0.5, 0.7, 0.9], np.full(5, 0.97)) is None


@given(st.integers(0, 10_000))
def test_importance_of_noise_is_small_on_average(seed: int) -> None:
    rng = np.random.default_rng(seed)
    ratio = Range(path="examples.ratio", low=0.0, high=1.0)
    shares = [importance(ratio, rng.random(12).tolist(), rng.random(12)) or 0.0 for _ in range(40)]
    assert np.mean(shares) < 0.3
