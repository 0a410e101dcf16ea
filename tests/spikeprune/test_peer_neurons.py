"""Neurons of snntorch and norse: constants, surrogate and reset as we read them, against the libraries."""

from typing import Any

import pytest
import torch
from torch import nn

from snn.adapters import library_of
from snn.adapters.network import Spikes
from snn.neurons import LIF


def leaky_of(**options: Any) -> nn.Module:
    library = pytest.importorskip("snntorch", reason="snntorch is not installed (extra peers)")
    if "spike_grad" in options:
        name, *scale = options["spike_grad"]
        options["spike_grad"] = getattr(library.surrogate, name)(*scale)
    return library.Leaky(**{"beta": 0.8, "threshold": 0.7, "reset_mechanism": "zero", **options})


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"reset_delay": False},
        {"spike_grad": ("fast_sigmoid", 25)},
        {"spike_grad": ("sigmoid", 50)},
        {"spike_grad": ("atan", 3.0)},
    ],
)
def test_gradients_of_snntorchs_neurons_are_read(options: dict[str, Any]) -> None:
    leaky = leaky_of(**options)
    torch.manual_seed(0)
    current, weights = torch.rand(6, 40, requires_grad=True), torch.randn(6, 40)
    tap = Spikes("lif", leaky, library_of(leaky))
    spikes, mem = [], torch.zeros(40)
    for x in current:
        s, mem = leaky(x, mem)
        spikes.append(s)
    ours_spikes = LIF(tap.constants)(current[:, None])[:, 0]
    assert torch.equal(ours_spikes, torch.stack(spikes))
    assert 0.1 < ours_spikes.mean() < 0.9
    (wanted,) = torch.autograd.grad((torch.stack(spikes) * weights).sum(), current)
    (found,) = torch.autograd.grad((ours_spikes * weights).sum(), current)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"spike_grad": ("straight_through_estimator",)}, "spike_grad is none of atan"),
        ({"surrogate_disable": True}, "spike_grad is none of atan"),
        ({"graded_spikes_factor": 2.0}, "graded spikes"),
    ],
)
def test_snntorchs_neurons_with_another_equation(options: dict[str, Any], message: str) -> None:
    leaky = leaky_of(**options)
    with pytest.raises(ValueError, match=f"lif: Leaky.*{message}"):
        _ = Spikes("lif", leaky, library_of(leaky)).constants


def test_the_reset_of_norses_neurons_is_read() -> None:
    norse = pytest.importorskip("norse.torch", reason="norse is not installed (extra peers)")
    from norse.torch.functional.reset import reset_subtract

    p = norse.LIFBoxParameters(tau_mem_inv=torch.tensor(400.0), reset_method=reset_subtract)
    cell = norse.LIFBoxCell(p)
    torch.manual_seed(0)
    current = 4 * torch.rand(8, 40)
    spikes, state = [], None
    for x in current:
        s, state = cell(x, state)
        spikes.append(s)
    lif = LIF(Spikes("lif", cell, library_of(cell)).constants)
    assert lif.constants.reset == "soft"
    assert torch.equal(lif(current[:, None])[:, 0], torch.stack(spikes))
    other = norse.LIFBoxCell(norse.LIFBoxParameters(reset_method=lambda z, v, reset, th: v))
    with pytest.raises(ValueError, match="reset_method must be"):
        _ = Spikes("lif", other, library_of(other)).constants
