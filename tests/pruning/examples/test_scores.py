from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from pruning.examples import tail
from pruning.examples.scores import SCORES, ExampleScorer
from snn.coding import direct
from snn.layers import Folded
from snn.models import MODELS, SpikingNetwork, build
from snn.neurons import NeuronParameters
from snn.surrogate import Surrogate
from tests.pruning.examples.oracles import (
    batch,
    conv_tail,
    convnet,
    disturbed,
    last_layer_bound,
    losses,
    mlp,
    norms_by_loop,
    squares_by_loop,
)

NETS = {
    "mlp": mlp,
    "mlp without norm": lambda **o: mlp(norm=False, **o),
    "one hidden layer": lambda **o: mlp(hidden=(13,), **o),
    "convnet": convnet,
    "conv tail, average pool": conv_tail,
    "conv tail, grouped": lambda **o: conv_tail(groups=2, **o),
    "conv tail, max pool": lambda **o: conv_tail(pool=nn.MaxPool2d(1), **o),
    "conv tail, flatten": lambda **o: conv_tail(pool=nn.Identity(), **o),
}
NEURONS = [
    {},
    {"reset": "soft"},
    {"detach_reset": False},
    {"reset": "soft", "detach_reset": False},
    {"decay_input": True, "beta": 0.7},
    {"beta": 1.0, "theta": 0.6},
    {"learn_beta": True, "beta": 0.4},
]


def sadp(net, x, y, **options):
    return ExampleScorer(net, **options).score(x, y)["sadp"].double()


def head(net):
    return list(net.readout[-1].parameters())


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
    for depth in range(len(layers)):
        norms = torch.stack(squares[len(layers) - 1 - depth :]).sum(0).sqrt()
        assert (sadp(net, x, y, loss=loss, tail_depth=depth) >= norms * (1 - 1e-6)).all()


@pytest.mark.parametrize("loss", ["rate_ce", "tet"])
def test_one_timestep_and_linear_layers_make_the_bound_exact(loss):
    net = mlp(norm=False)
    x, y = batch(net, T=1)
    for depth, layers in ((1, net.synapses()[1:]), ("all", net.synapses())):
        norms = norms_by_loop(net, x, y, [p for s in layers for p in s.layer.parameters()], loss)
        score = sadp(net, x, y, loss=loss, tail_depth=depth)
        torch.testing.assert_close(score, norms, rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", ["mlp", "convnet", "conv tail, average pool"])
def test_deeper_tails_contain_shallower_ones(name):
    net = NETS[name]()
    x, y = batch(net)
    depths = [0, 1, 2, *(["all"] if name == "convnet" else [])][: len(net.synapses())]
    scores = [sadp(net, x, y, tail_depth=d) for d in depths]
    for shallow, deep in pairwise(scores):
        assert (deep >= shallow).all()
    assert (scores[-1] > scores[0]).any()


@pytest.mark.parametrize("depth", [1, "all"])
def test_static_input_to_the_covered_layer(depth):
    net = mlp(hidden=(12,))
    x, y = batch(net, T=1)
    copies = sadp(net, x.repeat(4, 1, 1), y, tail_depth=depth)
    view = sadp(net, direct(x[0], 4), y, tail_depth=depth)
    norms = norms_by_loop(net, x.repeat(4, 1, 1), y, [*net.synapses()[0].layer.parameters(), *head(net)])
    assert (view >= norms * (1 - 1e-6)).all()
    if depth == 1:
        torch.testing.assert_close(view, copies, rtol=1e-6, atol=0)
    else:  # errors of equal inputs are added before their norm is taken: tighter
        assert (view <= copies * (1 + 1e-6)).all()


@pytest.mark.parametrize("depth", [0, 1, 2])
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


@pytest.mark.parametrize("name", NETS)
def test_recording_a_forward_pass_gives_the_same(name):
    net = NETS[name]().eval()
    x, y = batch(net)
    scorer = ExampleScorer(net, list(SCORES))
    with scorer.recording():
        logits = net(x)
    recorded = scorer.from_recording(logits.detach(), y)
    for key, value in scorer.score(x, y).items():
        torch.testing.assert_close(recorded[key], value, rtol=1e-6, atol=1e-7)


def test_recording_leaves_training_alone():
    plain, recorded = mlp().train(), mlp().train()
    x, y = batch(plain)
    losses(plain, x, y).sum().backward()
    scorer = ExampleScorer(recorded)
    with scorer.recording():
        logits = recorded(x)
    scores = scorer.from_recording(logits.detach(), y)["sadp"]
    assert (scores > 0).all()
    assert not scores.requires_grad
    torch.nn.functional.cross_entropy(logits.mean(0), y, reduction="none").sum().backward()
    for a, b in zip(plain.parameters(), recorded.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=0, atol=0)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in recorded.modules())


def test_recording_through_distributed_data_parallel(tmp_path):
    torch.distributed.init_process_group("gloo", f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        net = mlp()
        wrapped = nn.parallel.DistributedDataParallel(net)
        x, y = batch(net)
        scorer = ExampleScorer(net)
        net.eval()
        with scorer.recording():
            logits = wrapped(x)
        got = scorer.from_recording(logits.detach(), y)["sadp"]
        torch.testing.assert_close(got, scorer.score(x, y)["sadp"])
    finally:
        torch.distributed.destroy_process_group()


def test_scoring_restores_the_mode_of_every_module_and_leaves_gradients_alone():
    net = conv_tail().train()
    net.features[0].eval()
    x, y = batch(net)
    before = [m.training for m in net.modules()]
    mean = net.features[2].norm.running_mean.clone()
    for depth in (1, "all"):
        ExampleScorer(net, tail_depth=depth).score(x, y)
        assert [m.training for m in net.modules()] == before
        assert all(p.grad is None for p in net.parameters())
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())
    torch.testing.assert_close(net.features[2].norm.running_mean, mean, rtol=0, atol=0)


def test_frozen_weights_and_no_grad_callers_can_score_deep_tails():
    net = mlp()
    x, y = batch(net)
    expected = sadp(net, x, y, tail_depth="all")
    net.requires_grad_(False)
    with torch.no_grad():
        torch.testing.assert_close(sadp(net, x, y, tail_depth="all"), expected)


def test_fewer_timesteps():
    net = mlp()
    x, y = batch(net)
    torch.testing.assert_close(sadp(net, x, y, timesteps=2), sadp(net, x[:2], y))
    torch.testing.assert_close(sadp(net, x, y, timesteps=9), sadp(net, x, y))
    static = direct(x[0], 4)
    torch.testing.assert_close(sadp(net, static, y, timesteps=3), sadp(net, direct(x[0], 3), y))


def test_half_precision_networks_score_in_float32():
    net = mlp()
    x, y = batch(net)
    exact = sadp(net, x, y)
    half = sadp(net.to(torch.bfloat16), x.to(torch.bfloat16), y)
    assert torch.isfinite(half).all()
    assert torch.corrcoef(torch.stack([exact, half]))[0, 1] > 0.8


DEEP = {"vgg9", "vgg11", "vgg16", "sew_resnet34", "sew_resnet50", "ms_resnet34"}
SIDE = {"vgg11": 32, "vgg16": 32}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] if n in DEEP else []) for n in sorted(MODELS)]
)
def test_every_registered_model(name):
    torch.manual_seed(0)
    side = SIDE.get(name, 8)
    small = {"spikformer": {"dim": 16, "depth": 1, "heads": 2}}.get(name, {})
    constants = NeuronParameters(surrogate=Surrogate("atan", 1.0))
    net = disturbed(build(name, input_shape=(2, side, side), num_classes=4, neuron=constants, **small))
    x = direct(torch.randn(3, 2, side, side, dtype=torch.float64), 2)
    y = torch.tensor([0, 3, 1])
    v = last_layer_bound(net, x, y)
    h = norms_by_loop(net, x, y, head(net))
    assert (v > 0.01 * h).all()
    torch.testing.assert_close(sadp(net, x, y), (h**2 + v**2).sqrt(), rtol=1e-5, atol=0)
    squares = [squares_by_loop(net, x, y, list(s.layer.parameters())).sum(1) for s in net.synapses()]
    for depth in (1, 2, len(squares) - 1):
        norms = torch.stack(squares[len(squares) - 1 - depth :]).sum(0).sqrt()
        assert (sadp(net, x, y, tail_depth=depth) >= norms * (1 - 1e-6)).all()


class Own(nn.Module):
    """A user's module with the two things that scoring needs."""

    def __init__(self, net):
        super().__init__()
        self.trunk, self.readout, self._net = net.features, net.readout, [net]

    def forward(self, x):
        T, B = x.shape[:2]
        return self.readout(self.trunk(x).flatten(0, 1)).unflatten(0, (T, B))

    def synapses(self):
        return self._net[0].synapses()


def test_a_users_own_module():
    net = convnet()
    x, y = batch(net)
    torch.testing.assert_close(sadp(Own(net), x, y), sadp(net, x, y))
    got = ExampleScorer(nn.Flatten(2), ["loss", "el2n"]).score(
        torch.zeros(2, 3, 5), torch.zeros(3, dtype=torch.int64)
    )
    assert got["loss"].shape == (3,)


class Pool(nn.Module):
    def forward(self, x_TB):
        return x_TB[..., ::2, ::2]


def pooled_after_the_neurons(pool):
    net = conv_tail(pool=nn.Identity())
    return SpikingNetwork(
        nn.Sequential(*net.features, pool), nn.Sequential(nn.Flatten(), nn.Linear(6, 4).double())
    )


@pytest.mark.parametrize("pool", [nn.AvgPool2d(2), nn.MaxPool2d(2)])
@pytest.mark.parametrize("loss", ["rate_ce", "tet"])
def test_pooling_that_ends_the_features_counts_as_readout(pool, loss):
    net = pooled_after_the_neurons(Folded(pool))
    x, y = batch(net)
    v, h = last_layer_bound(net, x, y, loss), norms_by_loop(net, x, y, head(net), loss)
    assert (v > 0.01 * h).any()
    torch.testing.assert_close(sadp(net, x, y, loss=loss), (h**2 + v**2).sqrt(), rtol=1e-5, atol=0)


def test_refuses_what_it_cannot_see_through():
    net = pooled_after_the_neurons(Pool())
    x, y = batch(net)
    with pytest.raises(ValueError, match="belongs in the readout"):
        sadp(net, x, y)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"names": ["nope"]}, "score: 'nope'"),
        ({"loss": "mse"}, "loss"),
        ({"label_smoothing": 1.0}, "label_smoothing"),
        ({"tail_depth": 3}, "tail_depth"),
        ({"tail_depth": -1}, "tail_depth"),
        ({"timesteps": 0}, "timesteps"),
        ({"model": nn.Linear(2, 2)}, "readout"),
    ],
)
def test_refuses(options, match):
    with pytest.raises(ValueError, match=match):
        ExampleScorer(**({"model": mlp()} | options))


def test_refuses_what_was_not_recorded():
    net = mlp()
    x, y = batch(net)
    scorer = ExampleScorer(net)
    with pytest.raises(ValueError, match="recording"):
        scorer.from_recording(net(x), y)
    with scorer.recording():
        net(x)
        with pytest.raises(ValueError, match="twice"):
            net(x)
    with pytest.raises(ValueError, match="tail_depth"), ExampleScorer(net, tail_depth=2).recording():
        pass
    net.synapses()[1].norm.running_var = None
    with pytest.raises(ValueError, match="running statistics"):
        tail.norm_slope(net.synapses()[1].norm)
