"""SADP under Lightning: a spiking network on half of the examples per epoch.

One process: ``python examples/lightning_sadp.py``; two on the CPUs: ``python examples/lightning_sadp.py 2``.
"""

import sys

import lightning as L
import torch
import torch.nn.functional as F
from images import load
from torch.utils.data import DataLoader

from spikeprune import DataPruner, build, direct

T, EPOCHS, BATCH = 4, 5, 32
PROCESSES = int(sys.argv[1]) if len(sys.argv) > 1 else 1


class Classifier(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = build("mlp", input_shape=(1, 28, 28), num_classes=10)
        self.pruner = DataPruner(train_set, self.net, ratio=0.5, epochs=EPOCHS)
        self.loader = DataLoader(self.pruner, BATCH // PROCESSES, sampler=self.pruner.sampler)

    def train_dataloader(self) -> DataLoader:
        self.pruner.sampler.plan_next()  # before Lightning asks how many steps the epoch has
        return self.loader

    def training_step(self, batch: list[torch.Tensor], step: int) -> torch.Tensor:
        x, y, index = batch
        losses = F.cross_entropy(self.net(direct(x, T)).mean(0), y, reduction="none")
        return self.pruner.loss(losses, index)

    def validation_step(self, batch: list[torch.Tensor], step: int) -> None:
        x, y = batch
        correct = self.net(direct(x, T)).mean(0).argmax(1) == y
        self.log("accuracy", correct.float().mean(), batch_size=len(y), sync_dist=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.net.parameters(), 0.1, momentum=0.9)

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        checkpoint["pruner"] = self.pruner.state_dict()

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        self.pruner.load_state_dict(checkpoint["pruner"])


L.seed_everything(0)
train_set, test_set = load(2_048, 512)
model = Classifier()
trainer = L.Trainer(
    max_epochs=EPOCHS,
    accelerator="cpu",
    devices=PROCESSES,
    use_distributed_sampler=False,  # the pruner's knows its rank
    reload_dataloaders_every_n_epochs=1,  # pruned epochs have fewer steps
    enable_checkpointing=False,
    enable_progress_bar=False,
    logger=False,
)
trainer.fit(model, val_dataloaders=DataLoader(test_set, 256))
trainer.print(f"{trainer.global_step} steps, accuracy {trainer.callback_metrics['accuracy']:.3f}")
