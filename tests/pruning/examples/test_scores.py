import copy

import numpy as np
import pytest
import torch
from torch import nn

from pruning.examples import bound
from pruning.examples.scores import SCORES, ExampleScorer
from snn.coding import direct
from snn.layers import Folded
from snn.models import MODELS, SpikingNetwork, build
from snn.neurons import NeuronParameters
from snn.surrogate import Surrogate
from snn.weighted_norm import weighted_statistics
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
        error = bound.errors(net.eval()(x), y, "rate_ce")[0].norm(dim=-1)
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
        error = bound.errors(net.eval()(x), y, "rate_ce")[0].norm(dim=-1)
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
    torch.testing.assert_close(view, copies, rtol=1e-6, atol=0)


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


def norms(net):
    return [m for m in net.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", ["mlp", "convnet", "conv tail, average pool"])
def test_scores_of_a_training_step_are_those_of_a_network_frozen_at_its_batch_statistics(name, weighted):
    """Slope and currents come from one set of statistics: the batch's, with the weights of the examples."""
    net = NETS[name]().train()
    for module in net.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    x, y = batch(net)
    weights = torch.linspace(0.3, 2.0, x.shape[1], dtype=torch.float64) if weighted else None
    frozen, seen = copy.deepcopy(net), []
    hooks = [m.register_forward_pre_hook(lambda m, inputs: seen.append(inputs[0])) for m in norms(net)]
    scorer = ExampleScorer(net)
    with weighted_statistics(weights), scorer.recording():
        logits = net(x)
    found = scorer.from_recording(logits, y, weights)["sadp"]
    for hook in hooks:
        hook.remove()
    for m, inputs in zip(norms(frozen), seen, strict=True):
        rows = inputs.detach().flatten(2) if inputs.ndim > 2 else inputs.detach()[..., None]  # [T*B, C, P]
        w = (torch.ones(len(y)) if weights is None else weights).repeat(len(rows) // len(y))[:, None, None]
        m.running_mean.copy_((w * rows).sum((0, 2)) / (w.sum() * rows.shape[2]))
        centred = rows - m.running_mean[:, None]
        m.running_var.copy_((w * centred**2).sum((0, 2)) / (w.sum() * rows.shape[2]))
    torch.testing.assert_close(found, ExampleScorer(frozen.eval()).score(x, y)["sadp"], rtol=1e-6, atol=1e-9)


def test_scores_beside_a_step_in_half_precision_are_taken_in_float32():
    net = build("convnet", input_shape=(2, 8, 8), num_classes=4, channels=(4,), hidden=(9,)).train()
    x, y = torch.rand(4, 16, 2, 8, 8), torch.randint(0, 4, (16,))
    found = []
    for inside in (True, False):
        scorer = ExampleScorer(copy.deepcopy(net))
        with torch.autocast("cpu", torch.bfloat16), scorer.recording():
            logits = scorer.model(x)
        with torch.autocast("cpu", torch.bfloat16, enabled=inside):
            found.append(scorer.from_recording(logits, y)["sadp"])
    assert found[0].dtype == torch.float32
    assert torch.equal(*found)


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
    ExampleScorer(net).score(x, y)
    assert [m.training for m in net.modules()] == before
    assert all(p.grad is None for p in net.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())
    torch.testing.assert_close(net.features[2].norm.running_mean, mean, rtol=0, atol=0)


def test_fewer_timesteps():
    net = mlp()
    x, y = batch(net)
    torch.testing.assert_close(sadp(net, x, y, timesteps=2), sadp(net, x[:2], y))
    torch.testing.assert_close(sadp(net, x, y, timesteps=9), sadp(net, x, y))
    static = direct(x[0], 4)
    torch.testing.assert_close(sadp(net, static, y, timesteps=3), sadp(net, direct(x[0], 3), y))


@pytest.mark.parametrize("name", ["mlp", "conv tail, average pool", "conv tail, max pool"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_networks_score_in_float32(name, dtype):
    net = NETS[name]()
    x, y = batch(net)
    exact = sadp(net, x, y)
    half = sadp(net.to(dtype), x.to(dtype), y)
    assert torch.isfinite(half).all()
    assert torch.corrcoef(torch.stack([exact, half]))[0, 1] > 0.8


def test_the_error_of_a_confident_half_precision_network_does_not_vanish():
    net = conv_tail().half()
    spikes_TB, e_TBK = torch.ones(3, 2, 6, 2, 2), torch.full((1, 2, 4), 1e-9)
    g = bound.readout_gradient(net.readout, spikes_TB, e_TBK)
    expected = (net.readout[-1].weight.float().sum(0) * 1e-9 / 3 / 4).view(6, 1, 1).expand(1, 2, 6, 2, 2)
    torch.testing.assert_close(g, expected, rtol=1e-5, atol=0)


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
    squares = [squares_by_loop(net, x, y, list(s.layer.parameters())).sum(1) for s in net.synapses()[-2:]]
    assert (sadp(net, x, y) >= torch.stack(squares).sum(0).sqrt() * (1 - 1e-6)).all()


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


class Backbone(nn.Module):
    """A module that is no sequence, called as ours is."""

    def __init__(self, features):
        super().__init__()
        self.first, self.flatten = features[:-1], features[-1]

    def forward(self, x_TB):
        return self.flatten(self.first(x_TB))


def test_a_bare_linear_readout_behind_a_module_of_ones_own():
    torch.manual_seed(0)
    net = build("mlp", input_shape=(6,), num_classes=4, hidden=(8, 5))
    own = build("mlp", input_shape=(6,), num_classes=4, hidden=(8, 5))
    own.load_state_dict(net.state_dict())
    synapses = own.synapses()
    own.synapses = lambda: synapses
    own.features, own.readout = Backbone(own.features), own.readout[-1]
    x, y = torch.rand(3, 7, 6), torch.arange(7) % 4
    torch.testing.assert_close(sadp(own, x, y), sadp(net, x, y))
    own.readout = nn.Sequential(own.readout, nn.Identity())
    with pytest.raises(ValueError, match=r"readout: must be nn\.Linear, or nn.Sequential that ends in one"):
        ExampleScorer(own)


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
        ({"tail_depth": 2}, "tail_depth"),
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
    net.synapses()[1].norm.running_var = None
    with pytest.raises(ValueError, match="running statistics"):
        bound.norm_slope(net.synapses()[1].norm)
