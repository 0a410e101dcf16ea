"""Scores of every registered network, and of a user's own modules."""

import pytest
import torch
from torch import Tensor, nn

from pruning.examples.scores import ExampleScorer
from snn.adapters import wrap
from snn.coding import direct
from snn.layers import Folded
from snn.models import MODELS, SpikingNetwork, build
from snn.neurons import LIF, NeuronParameters
from snn.surrogate import Surrogate
from tests.pruning.examples.nets import head, sadp
from tests.pruning.examples.oracles import (
    batch,
    conv_tail,
    convnet,
    disturbed,
    last_layer_bound,
    norms_by_loop,
    squares_by_loop,
)

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


class Pool(nn.Module):
    def forward(self, x_TB):
        return x_TB[..., ::2, ::2]


def pooled_after_the_neurons(pool):
    net = conv_tail(pool=nn.Identity())
    return SpikingNetwork(
        nn.Sequential(*net.features, pool), nn.Sequential(nn.Flatten(), nn.Linear(6, 4).double())
    )


@pytest.mark.parametrize("pool", [Folded(nn.AvgPool2d(2)), Folded(nn.MaxPool2d(2)), Pool()])
@pytest.mark.parametrize("loss", ["rate_ce", "tet"])
def test_pooling_that_ends_the_features_counts_as_readout(pool, loss):
    net = pooled_after_the_neurons(pool)
    x, y = batch(net)
    v, h = last_layer_bound(net, x, y, loss), norms_by_loop(net, x, y, head(net), loss)
    assert (v > 0.01 * h).any()
    torch.testing.assert_close(sadp(net, x, y, loss=loss), (h**2 + v**2).sqrt(), rtol=1e-5, atol=0)


class OnTokens(nn.Module):
    """A linear layer on P tokens of every example, ``[T, B, P, N]`` at once or folded to ``[T*B, P, N]``."""

    def __init__(self, folded: bool) -> None:
        super().__init__()
        self.folded = folded
        self.hidden, self.neuron, self.head = nn.Linear(5, 7), LIF(), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        currents = self.hidden(x.flatten(0, 1)).unflatten(0, x.shape[:2]) if self.folded else self.hidden(x)
        return self.head(self.neuron(currents).mean(2))


@pytest.mark.parametrize("tokens", [3, 6])  # as many as there are examples, too
@pytest.mark.parametrize("folded", [True, False])
def test_every_example_has_the_score_of_its_own_tokens(folded, tokens):
    torch.manual_seed(0)
    x, y = 3 * torch.randn(4, 6, tokens, 5), torch.randint(0, 3, (6,))
    scorer = ExampleScorer(wrap(OnTokens(folded), x, neurons=[LIF]))
    alone = [scorer.score(x[:, i : i + 1], y[i : i + 1])["sadp"] for i in range(6)]
    torch.testing.assert_close(scorer.score(x, y)["sadp"], torch.cat(alone))
