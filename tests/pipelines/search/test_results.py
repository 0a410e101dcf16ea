"""What stands out among trials: the best of each kind, figures, and why a trial failed."""

import matplotlib as mpl
import numpy as np
import optuna
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pipelines.search.plan import OBJECTIVES
from pipelines.search.results import _best, figures
from pipelines.search.trial import _reason

POINTS = arrays(np.float64, st.tuples(st.integers(1, 12), st.integers(1, 3)), elements=st.integers(0, 5))
SPACE = {
    "data_pruning.ratio": optuna.distributions.FloatDistribution(0.1, 0.9),
    "weight_pruning.criterion": optuna.distributions.CategoricalDistribution(["slamp", "lamp"]),
}


def study_of(
    values: np.ndarray, names: list[str], params: list[dict[str, object]] | None = None
) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(
        directions=["maximize" if OBJECTIVES[n].mode == "max" else "minimize" for n in names]
    )
    for i, row in enumerate(values.tolist()):
        given = {"params": params[i], "distributions": SPACE} if params else {}
        study.add_trial(optuna.trial.create_trial(values=row, **given))
    return study


@given(POINTS)
def test_the_best_of_each_kind_are_on_the_front(points: np.ndarray) -> None:
    names = list(OBJECTIVES)[: points.shape[1]]
    study = study_of(points, names)
    front = [t.number for t in study.best_trials]
    best = _best(study, front, tuple(OBJECTIVES[n] for n in names))
    assert set(best) == set(names) | ({"balanced"} if len(names) > 1 else set())
    assert set(best.values()) <= set(front)
    for i, name in enumerate(names):
        reached = points[:, i].max() if OBJECTIVES[name].mode == "max" else points[:, i].min()
        assert points[best[name], i] == reached


def test_balanced_is_the_bend_of_the_front() -> None:
    points = np.array([[0.0, 10.0], [1.0, 1.0], [10.0, 0.0], [5.0, 0.9]])
    study = study_of(points, ["examples", "synops"])
    front = [t.number for t in study.best_trials]
    assert _best(study, front, (OBJECTIVES["examples"], OBJECTIVES["synops"]))["balanced"] == 1


def test_figures_leave_the_style_of_other_plots_alone() -> None:
    rng = np.random.default_rng(0)
    params = [
        {"data_pruning.ratio": r, "weight_pruning.criterion": "lamp"} for r in rng.uniform(0.1, 0.9, 12)
    ]
    names = ["accuracy", "examples", "synops"]
    before = dict(mpl.rcParams)
    drawn = figures(study_of(rng.random((12, 3)), names, params), [OBJECTIVES[n] for n in names])
    assert len(drawn) == 3 + 1 + 3  # fronts of two; coordinates of all; importances of each
    assert all(svg.startswith("<svg") for _, svg in drawn)
    assert dict(mpl.rcParams) == before


def test_the_reason_is_the_line_of_a_trace_that_names_the_exception() -> None:
    trace = "Training failed:\n[Rank 0 Error Snippet]:\n  File x.py, line 3\nValueError: no room\n\n"
    assert _reason(trace) == "ValueError: no room"
    assert _reason("lost") == "lost"
