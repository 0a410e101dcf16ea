"""The names of a training script are those of the library."""

import importlib

import pytest

import spikeprune


def test_every_name_is_what_its_module_defines() -> None:
    assert dir(spikeprune) == spikeprune.__all__
    for name, module in spikeprune._MODULES.items():
        assert getattr(spikeprune, name) is getattr(importlib.import_module(module), name)


def test_an_unknown_name_is_told_the_known_ones() -> None:
    with pytest.raises(AttributeError, match=r"no attribute 'Prune'; it has .*ExampleScorer, LIF, .*prune"):
        _ = spikeprune.Prune
    with pytest.raises(ImportError):
        from spikeprune import Nothing  # type: ignore[attr-defined]  # noqa: F401


def test_neurons_by_keyword() -> None:
    assert spikeprune.LIF(beta=0.9).constants.beta == 0.9
    assert spikeprune.LIF(tau=2.0).constants.beta == 0.5
