"""Both methods in a plain PyTorch loop, without Ray, config or files: ``python examples/plain_pytorch.py``.

Trains a spiking network on half of the handwritten digits per epoch, keeps a tenth of its weights, retrains.
"""

import torch
from sklearn.datasets import load_digits

from pruning.examples.policies import make_policy
from pruning.examples.scores import ExampleScorer
from pruning.weights.allocation import allocate
from pruning.weights.calibration import calibrate
from snn.batchnorm import reestimate
from snn.coding import direct
from snn.losses import rate_cross_entropy
from snn.models import build
from snn.weighted_norm import weighted_statistics

T, EPOCHS = 4, 10
images, labels = load_digits(return_X_y=True)
x = torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8) / 16
y = torch.tensor(labels)
train, test = slice(0, 1437), slice(1437, None)
torch.manual_seed(0)
model = build("mlp", input_shape=(1, 8, 8), num_classes=10)


def fit(lr: float, masks=None) -> float:
    """Train under ``masks``; the test accuracy."""
    policy = make_policy("sadp", num_examples=1437, ratio=0.5, seed=0, epochs=EPOCHS)
    scorer = ExampleScorer(model, ("sadp",))
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS)
    if masks is not None:
        masks.keep(model, optimizer)  # the optimiser cannot revive a pruned weight
    for epoch in range(EPOCHS):
        plan = policy.plan(epoch)  # which examples this epoch trains on, and with what weights
        weights, in_loss = torch.from_numpy(plan.weights), torch.from_numpy(plan.loss_weights)
        model.train()
        for batch in torch.randperm(len(plan.ids)).split(32):
            at, w = plan.ids[batch], weights[batch]
            with weighted_statistics(w), scorer.recording():
                logits = model(direct(x[at], T))
            losses = rate_cross_entropy(logits, y[at])
            scores = scorer.from_losses(losses, logits, y[at], w)["sadp"]  # free: from the training step
            policy.observe(at, scores.numpy(), epoch, "train")
            loss = (in_loss[batch] * losses).sum() / 32
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        schedule.step()
        reestimate(model, [direct(x[train], T)])  # running statistics of all data, for evaluation
    with torch.no_grad():
        return (model.eval()(direct(x[test], T)).mean(0).argmax(1) == y[test]).float().mean().item()


print(f"half of the data per epoch: accuracy {fit(0.1):.3f}")
allocation = allocate(model, calibrate(model, [direct(x[:400], T)]), sparsity=0.9)
allocation.masks.apply_(model)
reestimate(model, [direct(x[train], T)])
print(f"a tenth of the weights, retrained: accuracy {fit(0.05, allocation.masks):.3f}")
