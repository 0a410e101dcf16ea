import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pruning.weights.allocation import allocate
from pruning.weights.schedules import cubic, cubic_synops, equal_distortion
from tests.pruning.weights.weight_problems import Weights, calibration_of


@given(st.floats(0, 0.999), st.integers(1, 40))
def test_cubic_rises_to_its_end_in_shrinking_steps(final, rounds):
    targets = cubic(final, rounds)
    assert len(targets) == rounds
    assert targets[-1] == final
    steps = np.diff([0, *targets])
    assert (steps >= -1e-12).all()
    assert (np.diff(steps) <= 1e-12).all()
    for i, target in enumerate(targets, 1):
        assert final - target == pytest.approx(final * (1 - i / rounds) ** 3, abs=1e-12)


@given(st.floats(0.001, 1), st.integers(1, 40))
def test_synops_fractions_fall_likewise(final, rounds):
    fractions = cubic_synops(final, rounds)
    assert fractions[-1] == final
    np.testing.assert_allclose([1 - f for f in fractions], cubic(1 - final, rounds), atol=1e-12)


def test_equal_distortion_rounds_add_up_to_one_shot():
    g = np.random.default_rng(0)
    model = Weights([list(g.normal(size=n)) for n in (400, 900, 30)])
    calibration = calibration_of(model, c=[2, 0.5, 1])
    masks, spent = None, 0.0
    for part in equal_distortion(0.9, 3):
        allocation = allocate(model, calibration, criterion="slamp", budget=part, previous=masks)
        masks, spent = allocation.masks, spent + allocation.budget
    once = allocate(model, calibration, criterion="slamp", budget=0.9)
    assert spent <= 0.9
    kept, kept_once = masks.density, once.masks.density
    assert once.masks & masks == once.masks  # a round leaves less than one weight's cost unspent
    assert (kept - kept_once) * 1330 <= 3


@pytest.mark.parametrize(
    ("call", "field"),
    [
        (lambda: cubic(1.0, 3), "final"),
        (lambda: cubic(0.5, 0), "rounds"),
        (lambda: cubic(0.5, 2.0), "rounds"),
        (lambda: cubic_synops(0.0, 3), "final"),
        (lambda: equal_distortion(0.0, 3), "budget"),
        (lambda: equal_distortion(0.1, True), "rounds"),
    ],
)
def test_refusals(call, field):
    with pytest.raises(ValueError, match=field):
        call()
