"""SADP under Accelerate: a spiking network on half of the examples per epoch.

One process: ``python examples/accelerate_sadp.py``; two on the CPUs:
``accelerate launch --cpu --num_processes 2 examples/accelerate_sadp.py``.
"""

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import set_seed
from images import load
from torch.utils.data import DataLoader

from spikeprune import DataPruner, build, direct

T, EPOCHS, BATCH = 4, 5, 32
train_set, test_set = load(2_048, 512)
set_seed(0)
accelerator = Accelerator()
net = build("mlp", input_shape=(1, 28, 28), num_classes=10)
optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
net, optimizer = accelerator.prepare(net, optimizer)

pruner = DataPruner(train_set, net, ratio=0.5, epochs=EPOCHS)
# Not prepared: the sampler knows its rank already.
loader = DataLoader(pruner, BATCH // accelerator.num_processes, sampler=pruner.sampler)
steps = 0
for _ in pruner.epochs():
    net.train()
    for batch in loader:
        x, y, index = (part.to(accelerator.device) for part in batch)
        loss = pruner.loss(F.cross_entropy(net(direct(x, T)).mean(0), y, reduction="none"), index)
        optimizer.zero_grad()
        accelerator.backward(loss)
        optimizer.step()
        steps += 1

net.eval()
right = []
for x, y in accelerator.prepare(DataLoader(test_set, 256)):
    with torch.no_grad():
        right.append(accelerator.gather_for_metrics(net(direct(x, T)).mean(0).argmax(1) == y))
accelerator.print(f"{steps} steps, accuracy {torch.cat(right).float().mean():.3f}")
accelerator.end_training()
