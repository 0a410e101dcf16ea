"""The neurons against their equations, written once more as a scalar loop in Python."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from snn import kernels
from snn.kernels import eager
from snn.models import build
from snn.neurons import LIF, NeuronParameters, lif
from snn.surrogate import SURROGATES, Surrogate


def scalar_loop(currents, p, v):
    """(spikes, potentials, end) of one neuron in Python's float64."""
    spikes, potentials = [], []
    for current in currents:
        u = p.beta * v + (1 - p.beta if p.decay_input else 1) * current
        s = 1.0 if u - p.theta >= 0 else 0.0
        v = u * (1 - s) if p.reset == "hard" else u - p.theta * s
        spikes.append(s)
        potentials.append(u)
    return spikes, potentials, v


@settings(max_examples=60)
@given(
    currents=st.lists(st.floats(-4, 4), min_size=1, max_size=16),
    beta=st.floats(0, 0.99),
    theta=st.floats(0.1, 3),
    reset=st.sampled_from(["hard", "soft"]),
    decay=st.booleans(),
    v0=st.floats(-2, 2),
)
def test_equations(currents, beta, theta, reset, decay, v0):
    p = NeuronParameters(beta=beta, theta=theta, reset=reset, decay_input=decay)
    x = torch.tensor(currents, dtype=torch.float64)[:, None]
    v = torch.tensor([v0], dtype=torch.float64)
    wanted_s, _, wanted_v = scalar_loop(currents, p, v0)
    s, end = lif(x, p, v)
    assert s[:, 0].tolist() == wanted_s
    assert end.tolist() == [wanted_v]


def test_beta_1_integrates_and_fires_without_a_leak():
    p = NeuronParameters(beta=1.0)
    s, v = lif(torch.full((4, 1), 0.3), p)
    assert s[:, 0].tolist() == [0, 0, 0, 1]
    assert v.item() == 0


@pytest.mark.parametrize("reset", ["hard", "soft"])
def test_a_sequence_cut_in_two_with_its_state_handed_on_is_the_whole(reset):
    p = NeuronParameters(reset=reset)
    x = torch.randn(7, 3, 4) * 2
    whole, end = lif(x, p)
    first, v = lif(x[:3], p)
    second, v = lif(x[3:], p, v)
    assert torch.equal(torch.cat([first, second]), whole)
    assert torch.equal(v, end)
    assert whole.sum() > 0


def test_no_state_leaks_from_forward_to_forward():
    neuron = LIF()
    x = torch.rand(3, 2, 5)
    assert torch.equal(neuron(x), neuron(x))
    assert not list(neuron.buffers())


@pytest.mark.parametrize("reset", ["hard", "soft"])
def test_gradients_against_finite_differences_of_the_smooth_network(reset):
    """With the step replaced by the surrogate's smooth step, the same recursion has the true gradient."""

    class Smooth:
        def __call__(self, x):
            return torch.atan(math.pi / 2 * 2 * x) / math.pi + 0.5

    class Constants:
        beta, theta, decay_input, detach_reset = 0.7, 0.8, True, False
        surrogate = Smooth()

    Constants.reset = reset
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: eager.lif(x, None, Constants)[0], x)


@pytest.mark.parametrize("name", SURROGATES)
def test_surrogate_derivative_is_that_of_its_smooth_step(name):
    a = Surrogate(name).scale
    step = {
        "atan": lambda x: torch.atan(math.pi / 2 * a * x) / math.pi + 0.5,
        "sigmoid": lambda x: torch.sigmoid(a * x),
        "triangle": lambda x: torch.where(
            x < 0, (1 + a * x).clamp(min=0) ** 2 / 2, 1 - (1 - a * x).clamp(min=0) ** 2 / 2
        ),
        "fast_sigmoid": lambda x: x / (1 + a * x.abs()),
    }[name]
    x = torch.linspace(-3, 3, 301, dtype=torch.float64, requires_grad=True)
    (wanted,) = torch.autograd.grad(step(x).sum(), x)
    inside = x.detach().abs() > 1e-9
    assert torch.allclose(Surrogate(name).derivative(x.detach())[inside], wanted[inside], atol=1e-12)


@pytest.mark.parametrize("name", SURROGATES)
def test_spikes_are_a_step_and_their_gradient_is_the_surrogates(name):
    f = Surrogate(name, 1.7)
    x = torch.tensor([-2.0, -1e-9, 0.0, 1e-9, 0.5], requires_grad=True)
    s = f(x)
    assert s.tolist() == [0, 0, 1, 1, 1]
    (g,) = torch.autograd.grad(s.sum(), x)
    assert torch.equal(g, f.derivative(x.detach()))


def test_surrogate_runs_under_torch_func():
    x = torch.randn(4, 3)
    per_example = torch.func.vmap(torch.func.grad(lambda x: Surrogate()(x).sum()))(x)
    assert torch.equal(per_example, Surrogate().derivative(x))


def test_network_gradients_per_example_by_torch_func_equal_single_example_autograd():
    torch.manual_seed(0)
    model = build("mlp", input_shape=(6,), num_classes=3, hidden=(5,), norm=False)
    weights = dict(model.named_parameters())
    x_TB = torch.rand(4, 2, 6) * 3

    def loss(w, x_T):
        return torch.func.functional_call(model, w, (x_T[:, None],)).square().sum()

    grads = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 1))(weights, x_TB)
    for b in range(2):
        own = torch.autograd.grad(model(x_TB[:, b : b + 1]).square().sum(), list(weights.values()))
        for name, g in zip(weights, own, strict=True):
            assert torch.allclose(grads[name][b], g, atol=1e-6)


class TestParametric:
    def test_learns_beta_in_every_layer(self):
        model = build(
            "mlp", input_shape=(6,), num_classes=3, neuron=NeuronParameters(beta=0.6, learn_beta=True)
        )
        logits = [p for n, p in model.named_parameters() if n.endswith("beta_logit")]
        assert len(logits) == 2
        model(torch.rand(4, 5, 6) * 4).square().sum().backward()
        assert all(p.grad is not None and p.grad.abs() > 0 for p in logits)

    def test_constants_follow_what_is_learned(self):
        neuron = LIF(NeuronParameters(beta=0.25, learn_beta=True))
        assert neuron.constants.beta == pytest.approx(0.25, abs=1e-6)
        with torch.no_grad():
            neuron.beta_logit.fill_(0.0)
        assert neuron.constants.beta == 0.5
        x = torch.rand(5, 7) * 2
        assert torch.equal(neuron(x), lif(x, NeuronParameters(beta=0.5))[0])

    @pytest.mark.parametrize("decay", [True, False])
    def test_gradient_of_beta(self, decay):
        p = NeuronParameters(decay_input=decay, reset="soft", theta=1.0)
        x = torch.rand(6, 20, dtype=torch.float64) * 2
        grads = []
        for engine in ("eager", "auto"):
            beta = torch.tensor(0.6, dtype=torch.float64, requires_grad=True)
            s = kernels.lif(x, p, beta=beta, engine=engine)
            grads.append(torch.autograd.grad((s * torch.arange(20)).sum(), beta)[0])
        assert torch.allclose(*grads, rtol=1e-12)
        assert grads[0].abs() > 1e-3

    def test_beta_that_no_sigmoid_reaches(self):
        with pytest.raises(ValueError, match=r"beta: 1\.0 must be inside"):
            LIF(NeuronParameters(beta=1.0, learn_beta=True))


@given(
    p=st.builds(
        NeuronParameters,
        beta=st.floats(0, 0.99),
        theta=st.floats(0.01, 10),
        reset=st.sampled_from(["hard", "soft"]),
        detach_reset=st.booleans(),
        decay_input=st.booleans(),
        learn_beta=st.booleans(),
        surrogate=st.builds(Surrogate, st.sampled_from(SURROGATES), st.one_of(st.none(), st.floats(0.1, 20))),
    )
)
def test_constants_survive_plain_values(p):
    assert NeuronParameters.from_dict(p.to_dict()) == p


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: NeuronParameters(beta=1.1), "beta: 1.1"),
        (lambda: NeuronParameters(beta=math.nan), "beta: nan"),
        (lambda: NeuronParameters(theta=math.nan), "theta: nan"),
        (lambda: NeuronParameters(theta=0), "theta: 0"),
        (lambda: NeuronParameters(theta="1"), "theta: '1' must be a number"),
        (lambda: NeuronParameters(reset="none"), "reset: 'none' is unknown"),
        (lambda: NeuronParameters(beta=1.0, decay_input=True), "beta: 1 with decay_input"),
        (lambda: NeuronParameters.from_dict({"tau": 2.0}), "neuron: field 'tau' is unknown"),
        (lambda: Surrogate("relu"), "surrogate: 'relu' is unknown; choose one of atan"),
        (lambda: Surrogate("atan", math.nan), "surrogate scale: nan"),
        (lambda: Surrogate.from_dict({"name": "atan", "alpha": 2}), "field 'alpha' is unknown"),
        (lambda: lif(torch.zeros(4), NeuronParameters()), "must be .T, B, ...."),
        (lambda: lif(torch.zeros(0, 2, 3), NeuronParameters()), "at least one timestep"),
        (lambda: lif(torch.zeros(2, 3, dtype=torch.int64), NeuronParameters()), "must be floating"),
        (lambda: lif(torch.zeros(2, 3, 4), NeuronParameters(), torch.zeros(3)), "state: shape"),
        (lambda: LIF()(torch.zeros(0, 2)), "at least one timestep"),
    ],
)
def test_errors_name_field_value_and_what_is_allowed(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_learned_beta_is_an_ordinary_parameter_in_a_state_dict():
    neuron = LIF(NeuronParameters(learn_beta=True))
    assert isinstance(neuron, nn.Module)
    assert list(neuron.state_dict()) == ["beta_logit"]
    assert list(LIF().state_dict()) == []


def test_constants_by_name():
    assert LIF(beta=0.9, theta=0.5).constants == NeuronParameters(beta=0.9, theta=0.5)
    assert LIF(tau=2.0, reset="soft").constants == NeuronParameters(beta=0.5, reset="soft")
    assert LIF().constants == NeuronParameters()


@pytest.mark.parametrize(
    ("arguments", "named", "what"),
    [
        ((0.9,), {}, "0.9 must be NeuronParameters; name a constant"),
        ((NeuronParameters(),), {"beta": 0.5}, "give parameters or beta, not both"),
        ((), {"tau": 2.0, "beta": 0.5}, "give tau or beta"),
        ((), {"tau": 0.5}, "tau: 0.5 must be at least 1"),
        ((), {"betta": 0.5}, "field 'betta' is unknown"),
        ((), {"beta": 1.5}, "beta: 1.5 must be in"),
    ],
)
def test_constants_that_are_refused(arguments, named, what):
    with pytest.raises(ValueError, match=what):
        LIF(*arguments, **named)
