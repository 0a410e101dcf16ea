"""A spiking network of snntorch, trained, pruned to a tenth of its weights in one call, and retrained."""

import snntorch
import torch
import torch.nn.functional as F
from images import load
from torch import nn
from torch.utils.data import DataLoader

import spikeprune

T, EPOCHS, BATCH = 5, 4, 64
train_set, test_set = load()
torch.manual_seed(0)


class Net(nn.Module):
    """Potentials of the output neurons ``[T, B, 10]`` from images ``[B, 1, 28, 28]``."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(784, 200), snntorch.Leaky(beta=0.9)
        self.fc2, self.lif2 = nn.Linear(200, 10), snntorch.Leaky(beta=0.9, reset_mechanism="none")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mem1, mem2 = self.lif1.reset_mem(), self.lif2.reset_mem()
        potentials = []
        for _ in range(T):
            spk1, mem1 = self.lif1(self.fc1(x.flatten(1)), mem1)
            _, mem2 = self.lif2(self.fc2(spk1), mem2)
            potentials.append(mem2)
        return torch.stack(potentials)


net = Net()
optimizer = torch.optim.Adam(net.parameters(), 1e-3)


def train(epochs: int) -> None:
    for _ in range(epochs):
        for x, y in DataLoader(train_set, BATCH, shuffle=True):
            loss = F.cross_entropy(net(x).mean(0), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def report(name: str) -> None:
    x, y = test_set.tensors
    with torch.no_grad():
        accuracy = float((net(x).mean(0).argmax(1) == y).float().mean())
    adapted = spikeprune.adapters.wrap(net, x[:64])
    synops = spikeprune.measure(adapted, [adapted.over_time(x[:256])]).synops
    print(f"{name}: accuracy {accuracy:.3f}, {synops:,.0f} SynOps an image")


train(EPOCHS)
report("dense")
pruned = spikeprune.prune(net, DataLoader(train_set, 256, shuffle=True), sparsity=0.9)
print(pruned)
report("pruned")
pruned.keep(optimizer)
train(2)
report("retrained")
