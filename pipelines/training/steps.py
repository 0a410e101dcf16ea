"""The optimiser's steps of an epoch: precision, accumulation, clipping, in-train scores."""

import time
from collections.abc import Iterable
from contextlib import nullcontext
from math import cos, pi
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cluster.errors import UserError
from pipelines.config import TrainConfig
from pipelines.data.inputs import to_device
from pipelines.scoring.scorer import Scoring
from pipelines.training.feed import Feed, Part, decoded
from pipelines.training.phases import Phase
from pipelines.training.score_table import Drawn
from pipelines.training.worker import Worker
from pruning.examples.sampling import tempered
from snn.activations import keep_activations
from snn.losses import LOSSES
from snn.weighted_norm import weighted_statistics

CHECK_STEPS = 100  # from one look at the loss to the next: on a GPU it waits for the device
Seen = tuple[np.ndarray, Tensor, np.ndarray, int]
"""Ids, scores (left on their device, so that no step waits), which are real, and the step of a batch."""
_HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


def diverged(phase: Phase, epoch: int, what: str) -> UserError:
    """The error of a training that has run away, with what helps against it."""
    return UserError(
        "weight_pruning.retrain_lr" if phase.name.startswith("retrain") else "train.lr",
        f"training diverged: {what} in epoch {epoch + 1} of phase {phase.name}; lower the learning rate"
        f" ({phase.train.lr:g}), or set train.max_grad_norm. Checkpoints of earlier epochs are whole",
    )


def make_optimizer(parameters: Iterable[nn.Parameter], train: TrainConfig) -> torch.optim.Optimizer:
    """The optimiser that ``train.optimizer`` names."""
    if train.optimizer == "adamw":
        return torch.optim.AdamW(parameters, lr=train.lr, weight_decay=train.weight_decay)
    return torch.optim.SGD(
        parameters,
        lr=train.lr,
        momentum=train.momentum,
        weight_decay=train.weight_decay,
        nesterov=train.momentum > 0,
    )


def learning_rate(train: TrainConfig, fraction: float) -> float:
    """Learning rate after ``fraction`` in [0, 1] of the training; subset sizes cannot shift it."""
    if fraction < train.warmup:
        return train.lr * (fraction / train.warmup)
    if train.schedule == "constant":
        return train.lr
    return train.lr * 0.5 * (1 + cos(pi * (fraction - train.warmup) / (1 - train.warmup)))


class Stepper:
    """Moves one phase's weights on one worker, and holds all that does."""

    def __init__(
        self, worker: Worker, phase: Phase, optimizer: torch.optim.Optimizer, scoring: Scoring | None
    ) -> None:
        self.worker, self.phase, self.train, self.engine = worker, phase, phase.train, worker.engine
        keep_activations(worker.model, phase.train.activations)
        self.module = worker.engine.distribute(worker.model)
        self.optimizer = optimizer
        self.loss = LOSSES[phase.train.loss]
        self._half = _HALF.get(phase.train.precision)
        self._scaler = torch.amp.GradScaler(worker.engine.device.type, enabled=self._half is torch.float16)
        self._score = "" if scoring is None else scoring.scores[0]
        self._scorer = None if scoring is None else scoring.scorer(worker.model)

    def epoch(self, drawn: Drawn, feed: Feed) -> float:
        """All steps of an epoch; the weighted sum of the losses over all workers."""
        epoch = drawn.epoch
        total = torch.zeros((), dtype=torch.float64, device=self.engine.device)
        finite_steps = torch.zeros((), dtype=torch.int64, device=self.engine.device)
        seen: list[Seen] = []
        examples = int(self.engine.world_size * feed.nominal_batch * feed.steps)
        started = time.perf_counter()
        self.module.train()
        for step, parts in enumerate(decoded(feed, self.train.grad_accum_steps)):
            fraction = (epoch + step / feed.steps) / self.train.epochs
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate(self.train, fraction)
            self.optimizer.zero_grad()
            for i, some in enumerate(parts):
                last = i + 1 == len(parts)
                with nullcontext() if last else self._unsynchronised():
                    total += self._backward(drawn, some, feed.nominal_batch, step, seen)
            self._step()
            finite_steps += total.isfinite()
            if (step + 1) % CHECK_STEPS == 0:
                self._check(total, finite_steps, feed.steps, epoch)
            self.engine.progress(
                {
                    "phase": self.phase.name,
                    "epoch": epoch,
                    "step": step + 1,
                    "steps": feed.steps,
                    "examples": examples,
                    "rate": (step + 1) * self.train.batch_size / (time.perf_counter() - started),
                }
            )
        self._deliver(seen, epoch)
        total = self.engine.sum(total)
        self._check(total, finite_steps, feed.steps, epoch)
        moved = torch.stack([p.detach().sum() for p in self.worker.model.parameters()])
        if not moved.isfinite().all():
            raise diverged(self.phase, epoch, f"weights are not finite after step {feed.steps}")
        return float(total)

    def _check(self, total: Tensor, finite_steps: Tensor, steps: int, epoch: int) -> None:
        """That the sum of the losses so far is a number."""
        if not total.isfinite():
            step = min(int(finite_steps) + 1, steps)
            raise diverged(self.phase, epoch, f"the loss is not finite from step {step} of {steps}")

    def state(self) -> dict[str, Any]:
        """For a checkpoint: tensors and numbers."""
        return {"optimizer": self.optimizer.state_dict(), "scaler": self._scaler.state_dict()}

    def load(self, state: dict[str, Any]) -> None:
        """Restore what `state` gave."""
        self.optimizer.load_state_dict(state["optimizer"])
        self._scaler.load_state_dict(state["scaler"])

    def _deliver(self, seen: list[Seen], epoch: int) -> None:
        """Bring the scores met in an epoch into the score table, of examples that are real and no filling."""
        if seen:
            ids, scores, real, steps = zip(*seen, strict=True)
            wanted, of_batch = np.concatenate(real), [len(i) for i in ids]
            found = torch.cat(scores).float().cpu().numpy()
            at = np.repeat(np.array(steps, np.int32), of_batch)
            self.engine.table.observe(np.concatenate(ids)[wanted], found[wanted], epoch, "train", at[wanted])

    def _backward(
        self, drawn: Drawn, some: Part, nominal_batch: float, step: int, seen: list[Seen]
    ) -> Tensor:
        """Add the gradient of some rows; their weighted sum of losses."""
        device, ids, weights = self.engine.device, some.ids, some.weights
        labels, scorer = to_device(some.labels, device), self._scorer
        recording = nullcontext() if scorer is None else scorer.recording()
        # Equal weights are told here: on a GPU the question would wait for the device.
        weights_B = None if (weights == 1).all() else to_device(weights, device)
        half = torch.autocast(device.type, dtype=self._half, enabled=self._half is not None)
        with recording, half, weighted_statistics(weights_B):
            logits_TBK = self.module(self.worker.inputs.training(some.x, ids, drawn.epoch, device))
        if self._half is not None:
            logits_TBK = logits_TBK.float()
        losses = self.loss(logits_TBK, labels, self.train.label_smoothing)
        if scorer is not None:  # before the step changes the weights that made the spikes
            found = scorer.from_losses(losses, logits_TBK, labels, weights_B)
            seen.append((ids, found[self._score], weights > 0, step))
        loss_weights = tempered(weights, drawn.weight_power, drawn.mean_power)
        weighted = (to_device(loss_weights, device) * losses).sum()
        # Averaged over the workers this is the sum over the global batch by its nominal size.
        self._scaler.scale(weighted / nominal_batch).backward()
        return weighted.detach()

    def _step(self) -> None:
        if self.train.max_grad_norm is not None:
            self._scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.worker.model.parameters(), self.train.max_grad_norm)
        self._scaler.step(self.optimizer)
        self._scaler.update()

    def _unsynchronised(self) -> Any:
        """Gradients stay with the worker: only a step's last part averages them."""
        no_sync = getattr(self.module, "no_sync", None)
        return no_sync() if no_sync is not None else nullcontext()
