"""On real recordings and images, where they lie beside the repository."""

import numpy as np
import pytest
import torch

from benchmarks import real_data
from pruning.examples.diagnostics import example_gradients, rank_correlation
from pruning.examples.scores import ExampleScorer
from snn.models import build
from snn.neurons import NeuronParameters
from snn.surrogate import Surrogate
from tests.pruning.examples.oracles import losses, norms_by_loop


@pytest.fixture(scope="module", params=["nmnist", "cifar10"])
def trained(request):
    try:
        x, y, K = real_data.load(request.param, 240, 4)
    except FileNotFoundError as error:
        pytest.skip(str(error))
    torch.manual_seed(0)
    net = build(
        "convnet",
        input_shape=tuple(x.shape[2:]),
        num_classes=K,
        neuron=NeuronParameters(surrogate=Surrogate("triangle")),
        channels=(8, 16),
        hidden=(64,),
    )
    optimiser = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
    for _ in range(3):
        for rows in torch.randperm(200).split(20):
            optimiser.zero_grad()
            losses(net, x[:, rows], y[rows]).mean().backward()
            optimiser.step()
    return net, x[:, 180:], y[180:]


def test_bounds_hold_for_every_example(trained):
    net, x, y = trained
    norms = norms_by_loop(net, x, y, [s.layer.weight for s in net.synapses()[-2:]])
    assert (ExampleScorer(net).score(x, y)["sadp"] >= norms * (1 - 1e-5)).all()


def test_the_score_ranks_examples_as_their_gradients_do(trained):
    net, x, y = trained
    norms, _ = example_gradients(net, x, y)
    score = ExampleScorer(net).score(x, y)["sadp"].numpy()
    assert rank_correlation(score.astype(np.float64), norms) > 0.9
