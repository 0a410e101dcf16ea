"""A spiking network of spikingjelly in a plain PyTorch loop.

``spikingjelly_sadp.py`` trains it on half of the examples per epoch, ``spikingjelly_slamp.py`` prunes it too.
"""

import time

import torch
import torch.nn.functional as F
from images import load
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from torch import nn
from torch.utils.data import DataLoader

import spikeprune

T, EPOCHS, BATCH = 4, 6, 64
train_set, test_set = load()
torch.manual_seed(0)


def lif() -> nn.Module:
    return neuron.LIFNode(tau=2.0, detach_reset=True, surrogate_function=surrogate.ATan())


net = nn.Sequential(
    *(layer.Conv2d(1, 8, 3, stride=2, padding=1, bias=False), layer.BatchNorm2d(8), lif()),
    *(layer.Conv2d(8, 16, 3, stride=2, padding=1, bias=False), layer.BatchNorm2d(16), lif()),
    *(layer.Flatten(), layer.Linear(16 * 7 * 7, 64, bias=False), layer.BatchNorm1d(64), lif()),
    layer.Linear(64, 10),
)
functional.set_step_mode(net, "m")
optimizer = torch.optim.Adam(net.parameters(), 2e-3)


def encode(x: torch.Tensor) -> torch.Tensor:
    return x.expand(T, *x.shape)


def train(epochs: int) -> None:
    pruner = spikeprune.DataPruner(train_set, net, ratio=0.5, epochs=epochs)
    loader = DataLoader(pruner, BATCH, sampler=pruner.sampler)
    for _ in pruner.epochs():
        net.train()
        for x, y, index in loader:
            functional.reset_net(net)
            loss = pruner.loss(F.cross_entropy(net(encode(x)).mean(0), y, reduction="none"), index)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


@torch.no_grad()
def accuracy() -> float:
    net.eval()
    correct = 0
    for x, y in DataLoader(test_set, 256):
        functional.reset_net(net)
        correct += int((net(encode(x)).mean(0).argmax(1) == y).sum())
    return correct / len(test_set)


started = time.perf_counter()
train(EPOCHS)
seconds = time.perf_counter() - started
x = encode(test_set.tensors[0][:256])
synops = spikeprune.measure(spikeprune.adapters.wrap(net, x), [x]).synops
print(f"accuracy {accuracy():.3f}, {seconds:.1f} s, {synops:,.0f} SynOps an image")
