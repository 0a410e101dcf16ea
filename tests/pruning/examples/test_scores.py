import numpy as np
import pytest
import torch
from torch import nn

from pruning.examples import bound
from pruning.examples.scores import SCORES, ExampleScorer
from snn.coding import direct
from tests.pruning.examples.nets import NETS, NEURONS, head, sadp
from tests.pruning.examples.oracles import (
    batch,
    last_layer_bound,
    losses,
    mlp,
    norms_by_loop,
    squares_by_loop,
)


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("loss", ["rate_ce", "tet"])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_readout_part_is_the_exact_norm(name, loss, smoothing):
    net = NETS[name]()
    x, y = batch(net)
    expected = norms_by_loop(net, x, y, head(net), loss, smoothing)
    score = sadp(net, x, y, loss=loss, label_smoothing=smoothing, tail_depth=0)
    torch.testing.assert_close(score, expected, rtol=1e-5, atol=0)


def test_head_without_bias():
    net = mlp()
    net.readout = nn.Sequential(nn.Linear(11, 4, bias=False).double())
    x, y = batch(net)
    for loss in ("rate_ce", "tet"):
        score = sadp(net, x, y, loss=loss, tail_depth=0)
        torch.testing.assert_close(score, norms_by_loop(net, x, y, head(net), loss), rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("neuron", NEURONS, ids=str)
@pytest.mark.parametrize("loss", ["rate_ce", "tet"])
def test_closed_form_is_the_bound_with_autograds_errors(name, neuron, loss):
    net = NETS[name](**neuron)
    x, y = batch(net)
    v = last_layer_bound(net, x, y, loss, 0.1)
    h = norms_by_loop(net, x, y, head(net), loss, 0.1)
    assert (v > 0.01 * h).any()
    score = sadp(net, x, y, loss=loss, label_smoothing=0.1)
    torch.testing.assert_close(score, (h**2 + v**2).sqrt(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("neuron", NEURONS[:5], ids=str)
@pytest.mark.parametrize("loss", ["rate_ce", "tet"])
def test_it_bounds_the_gradient_of_the_covered_layers_of_every_example(name, neuron, loss):
    net = NETS[name](**neuron)
    x, y = batch(net, seed=2)
    layers = [s.layer for s in net.synapses()]
    squares = [squares_by_loop(net, x, y, list(layer.parameters()), loss).sum(1) for layer in layers]
    for depth in (0, 1):
        norms = torch.stack(squares[len(layers) - 1 - depth :]).sum(0).sqrt()
        assert (sadp(net, x, y, loss=loss, tail_depth=depth) >= norms * (1 - 1e-6)).all()


@pytest.mark.parametrize("loss", ["rate_ce", "tet"])
def test_one_timestep_and_linear_layers_make_the_bound_exact(loss):
    net = mlp(norm=False)
    x, y = batch(net, T=1)
    norms = norms_by_loop(net, x, y, [p for s in net.synapses()[1:] for p in s.layer.parameters()], loss)
    torch.testing.assert_close(sadp(net, x, y, loss=loss), norms, rtol=1e-5, atol=0)


def forward_quantities(net, x):
    """Mean readout input ``r`` and root of the spike count per step, from the spikes of a forward pass."""
    net.eval()
    spikes = net.features(x).flatten(2)
    assert ((spikes == 0) | (spikes == 1)).all()
    return spikes.mean(0).norm(dim=-1), spikes.sum(-1).sqrt()


def error_norm(net, x, y):
    return (net.eval()(x).mean(0).softmax(-1) - nn.functional.one_hot(y, 4)).norm(dim=-1)


def without_head_bias(net):
    head = net.readout[-1]
    net.readout[-1] = nn.Linear(head.in_features, head.out_features, bias=False).double()
    return net


@pytest.mark.parametrize("name", ["mlp", "mlp without norm", "one hidden layer", "convnet"])
@pytest.mark.parametrize("T", [1, 2, 6])
def test_two_sided_chain_of_the_spike_count(name, T):
    """``||e|| ||r|| <= S3 <= sqrt(T) ||e|| ||r||``, S3 the mean over time of ``||e|| sqrt(n_t)``."""
    net = without_head_bias(NETS[name](theta=0.2))  # no layer is silent
    x, y = batch(net, T=T, B=24)
    with torch.no_grad():
        error = error_norm(net, x, y)
        r, roots_TB = forward_quantities(net, x)
    head_norm = norms_by_loop(net, x, y, head(net))
    torch.testing.assert_close(error * r, head_norm, rtol=1e-9, atol=1e-12)
    s3 = error * roots_TB.mean(0)
    assert (s3 >= head_norm * (1 - 1e-12)).all()
    assert (s3 <= T**0.5 * head_norm * (1 + 1e-12)).all()
    assert (s3 <= error * roots_TB.square().mean(0).sqrt() * (1 + 1e-12)).all()  # Jensen
    if T == 1:
        torch.testing.assert_close(s3, head_norm, rtol=1e-12, atol=1e-15)
    else:
        assert (s3 > head_norm * 1.001).any()


def test_same_spikes_in_every_step_make_the_spike_count_exact():
    """The chain's left end: without leak memory (beta = 0) and with a constant input, all steps are alike."""
    net = without_head_bias(mlp(beta=0.0))
    x, y = batch(net, B=24)
    x = direct(x[0], 5)
    with torch.no_grad():
        error = error_norm(net, x, y)
        spikes = net.features(x)
        r, roots_TB = forward_quantities(net, x)
    assert (spikes == spikes[0]).all()
    assert (spikes.sum(-1) > 0).any()
    torch.testing.assert_close(error * roots_TB.mean(0), error * r, rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(error * roots_TB.mean(0), sadp(net, x, y, tail_depth=0), rtol=1e-6, atol=0)
    torch.testing.assert_close(error * r, norms_by_loop(net, x, y, head(net)), rtol=1e-9, atol=1e-15)


def test_different_spikes_in_every_step_reach_the_chains_upper_end():
    """Disjoint spikes of equal number: ``S3 = sqrt(T) ||e|| ||r||``."""
    T, n = 4, 3
    spikes = torch.zeros(T, 1, T * n, dtype=torch.float64)
    for t in range(T):
        spikes[t, 0, t * n : (t + 1) * n] = 1
    e = torch.tensor([[[0.4, -0.4]]], dtype=torch.float64)
    exact = bound.head_squared(e, spikes, bias=False).sqrt()
    s3 = e[0].norm(dim=-1) * spikes.sum(-1).sqrt().mean(0)
    torch.testing.assert_close(s3, T**0.5 * exact, rtol=1e-12, atol=0)


def test_static_input_to_the_covered_layer():
    net = mlp(hidden=(12,))
    x, y = batch(net, T=1)
    copies = sadp(net, x.repeat(4, 1, 1), y)
    view = sadp(net, direct(x[0], 4), y)
    norms = norms_by_loop(net, x.repeat(4, 1, 1), y, [*net.synapses()[0].layer.parameters(), *head(net)])
    assert (view >= norms * (1 - 1e-6)).all()
    assert (view <= copies * (1 + 1e-6)).all()  # one outer product in place of T


@pytest.mark.parametrize("depth", [0, 1])
def test_a_silent_network_has_finite_scores(depth):
    net = mlp(norm=False)
    for s in net.synapses()[:-1]:
        s.layer.weight.data.zero_()
        s.layer.bias.data.fill_(-0.5)
    x, y = batch(net)
    score = sadp(net, x, y, tail_depth=depth)
    assert torch.isfinite(score).all()
    error = ExampleScorer(net, ["el2n"]).score(x, y)["el2n"]
    if depth == 0:  # no spikes: only the bias has a gradient
        torch.testing.assert_close(score.float(), error)
    else:
        assert (score >= error).all()


def test_no_error_no_score():
    net = mlp()
    net.readout[-1].weight.data.zero_()
    net.readout[-1].bias.data = torch.tensor([1e4, 0.0, 0.0, 0.0], dtype=torch.float64)
    x, _ = batch(net)
    scores = ExampleScorer(net, list(SCORES)).score(x, torch.zeros(8, dtype=torch.int64))
    for value in scores.values():
        assert (value == 0).all()


@pytest.mark.parametrize("name", NETS)
def test_scores_do_not_depend_on_the_batch(name):
    net = NETS[name]()
    x, y = batch(net)
    scorer = ExampleScorer(net, list(SCORES))
    together = scorer.score(x, y)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    shuffled = scorer.score(x[:, order], y[order])
    alone = [scorer.score(x[:, i : i + 1], y[i : i + 1]) for i in range(len(y))]
    for key, value in together.items():
        torch.testing.assert_close(shuffled[key], value[order], rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(torch.cat([a[key] for a in alone]), value, rtol=1e-6, atol=1e-7)
        assert value.dtype == torch.float32
        assert value.shape == (8,)


def test_rivals_against_numpy():
    net = mlp()
    x, y = batch(net)
    got = ExampleScorer(net, list(SCORES), loss="tet", label_smoothing=0.1).score(x, y)
    net.eval()
    p = net(x).mean(0).softmax(-1).detach().numpy()
    for i, label in enumerate(y.tolist()):
        error = p[i].copy()
        error[label] -= 1
        others = [p[i][k] for k in range(4) if k != label]
        assert got["el2n"][i].item() == pytest.approx((error**2).sum() ** 0.5, rel=1e-5)
        assert got["margin"][i].item() == pytest.approx(1 + max(others) - p[i][label], rel=1e-5)
        assert got["entropy"][i].item() == pytest.approx(-(p[i] * np.log(p[i])).sum(), rel=1e-5)
    torch.testing.assert_close(got["loss"].double(), losses(net, x, y, "tet", 0.1), rtol=1e-5, atol=0)


def test_fewer_timesteps():
    net = mlp()
    x, y = batch(net)
    torch.testing.assert_close(sadp(net, x, y, timesteps=2), sadp(net, x[:2], y))
    torch.testing.assert_close(sadp(net, x, y, timesteps=9), sadp(net, x, y))
    static = direct(x[0], 4)
    torch.testing.assert_close(sadp(net, static, y, timesteps=3), sadp(net, direct(x[0], 3), y))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"names": ["nope"]}, "score: 'nope'"),
        ({"loss": "mse"}, "loss"),
        ({"label_smoothing": 1.0}, "label_smoothing"),
        ({"tail_depth": 2}, "tail_depth"),
        ({"tail_depth": -1}, "tail_depth"),
        ({"timesteps": 0}, "timesteps"),
        ({"model": nn.Linear(2, 2)}, "synapses"),
    ],
)
def test_refuses(options, match):
    with pytest.raises(ValueError, match=match):
        ExampleScorer(**({"model": mlp()} | options))
