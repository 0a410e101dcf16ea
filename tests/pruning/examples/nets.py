"""Networks whose score has an oracle, by what is special about them."""

from torch import nn

from pruning.examples.scores import ExampleScorer
from tests.pruning.examples.oracles import (
    conv_tail,
    convnet,
    mlp,
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
