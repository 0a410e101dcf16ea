"""Budgets that hold at every timestep, at size; exactness on tiny problems is tested with the curves."""

import numpy as np
import pytest

from pruning.weights.allocation import allocate
from pruning.weights.curves import DENSITIES, Curve
from tests.pruning.weights.weight_problems import Weights, calibration_of


def problem(T: int = 3):
    g = np.random.default_rng(1)
    model = Weights([list(g.normal(size=n)) for n in (500, 2000, 800)])
    profiles = [[3, 1, 0.1], [0.1, 0.5, 0.6], [0.1, 0.2, 2]]
    curves = [
        Curve(tuple(tuple(c * (1 / d - 1) / 20 for c in profile[:T]) for d in DENSITIES))
        for profile in profiles
    ]
    return model, calibration_of(model, curves=curves, T=T)


def test_the_gap_is_small_with_many_weights():
    model, calibration = problem()
    arguments = {"criterion": "slamp_curve", "sparsity": 0.8}
    by_sum = allocate(model, calibration, **arguments)
    by_max = allocate(model, calibration, budget_over="max_t", **arguments)
    assert by_sum.duality_gap is None
    assert by_max.duality_gap < 0.05  # pieces of a curve go as a whole where two layers' slopes tie
    assert sum(by_max.step_weights) == pytest.approx(1)
    assert max(by_max.step_distortion) < 0.95 * max(by_sum.step_distortion)
    assert sum(by_max.step_distortion) > sum(by_sum.step_distortion)
    budget = by_max.budget
    budgeted = allocate(model, calibration, criterion="slamp_curve", budget=budget, budget_over="max_t")
    assert budgeted.duality_gap < 0.05
    assert 0.95 < max(budgeted.step_distortion) / (budget / 3) <= 1 + 1e-9


def test_one_timestep_makes_sum_and_maximum_the_same():
    model, calibration = problem(T=1)
    for target in ({"sparsity": 0.6}, {"budget": 0.4}, {"synops_fraction": 0.3}):
        one, other = (
            allocate(model, calibration, criterion="slamp_curve", budget_over=over, **target)
            for over in ("sum", "max_t")
        )
        assert one.masks == other.masks


@pytest.mark.parametrize("criterion", ["slamp", "lamp", "magnitude"])
def test_criteria_that_do_not_measure_timesteps_are_refused(criterion):
    model, calibration = problem()
    with pytest.raises(ValueError, match=f"which '{criterion}' does not measure; choose slamp_curve"):
        allocate(model, calibration, criterion=criterion, sparsity=0.5, budget_over="max_t")
