"""The bias of the mean gradient under training's batch norm, on real digits with the convnet of the docs."""

import copy
import itertools

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from pruning.examples.diagnostics import TrainingStep, training_bias
from pruning.examples.inclusion import inclusion_probabilities
from pruning.examples.scores import ExampleScorer
from snn.coding import direct
from snn.losses import rate_cross_entropy
from snn.models import build
from snn.weighted_norm import weighted_statistics
from tests.pruning.examples.oracles import batch, mlp


@pytest.fixture(scope="module")
def digits():
    """A network after two epochs, 720 digits and their labels."""
    images, labels = load_digits(return_X_y=True)
    x = torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8) / 16
    y = torch.tensor(labels)
    torch.manual_seed(0)
    net = build("convnet", input_shape=(1, 8, 8), num_classes=10, channels=(8, 16, 32), hidden=(64,))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    for _ in range(2):
        for at in torch.randperm(1437).split(64):
            optimizer.zero_grad()
            rate_cross_entropy(net(direct(x[at], 4)), y[at]).mean().backward()
            optimizer.step()
    return net, direct(x[:720], 4), y[:720]


def test_weighted_statistics_keep_the_bias_near_that_of_random_sampling(digits):
    """Without them the draw's bias is far larger: SADP trained another function than it evaluated."""
    net, x_TB, y = digits
    scores = ExampleScorer(net).score(x_TB, y)["sadp"].numpy()
    pi, flat = inclusion_probabilities(scores, 360, alpha=0.1), np.full(720, 0.5)
    weighted, plain = (TrainingStep(batch_size=64, weighted_norm=w) for w in (True, False))
    random, with_weights, without = (
        training_bias(net, x_TB, y, design, step, draws=96)
        for design, step in ((flat, weighted), (pi, weighted), (pi, plain))
    )
    assert 0.05 < random < 0.5
    assert without > with_weights + 0.05
    assert with_weights < random + 0.1  # weights make the effective batch smaller


def test_the_bias_by_enumeration_of_all_subsets():
    """Two of four examples, all six subsets equally likely, one batch each."""
    net = mlp().train()
    x, y = batch(net, B=4)
    step = TrainingStep(batch_size=2)

    def gradient(at):
        model = copy.deepcopy(net)
        with weighted_statistics(torch.ones(len(at))):
            rate_cross_entropy(model(x[:, at]), y[at]).mean().backward()
        return torch.cat([p.grad.flatten() for p in model.parameters()])

    full = gradient([0, 1, 2, 3])
    mean = torch.stack([gradient(list(pair)) for pair in itertools.combinations(range(4), 2)]).mean(0)
    expected = float((mean - full).norm() / full.norm())
    assert expected > 0.1
    found = training_bias(net, x, y, np.full(4, 0.5), step, draws=600)
    assert found == pytest.approx(expected, rel=0.15)


def test_the_model_is_left_as_it_was(digits):
    net, x_TB, y = digits
    net = copy.deepcopy(net).eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    flat = np.full(32, 0.5)
    training_bias(net, x_TB[:, :32], y[:32], flat, TrainingStep(batch_size=8), draws=2)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert not any(m.training for m in net.modules())


def test_refusals(digits):
    net, x_TB, y = digits
    with pytest.raises(ValueError, match="draws: 1 must be at least 2"):
        training_bias(net, x_TB, y, np.full(720, 0.5), TrainingStep(batch_size=8), draws=1)
    with pytest.raises(ValueError, match="probabilities: 3 of them must be as many as labels, 720"):
        training_bias(net, x_TB, y, np.full(3, 0.5), TrainingStep(batch_size=8))
