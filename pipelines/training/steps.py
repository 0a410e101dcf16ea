"""The optimiser's steps of an epoch: precision, accumulation, clipping, averaged weights, in-train scores."""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from math import cos, pi
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn
from torch.profiler import record_function

from pipelines.config import TrainConfig
from pipelines.data.inputs import to_device
from pipelines.errors import UserError
from pipelines.scoring.scorer import Scoring
from pipelines.training.feed import Feed, Part, decoded
from pipelines.training.phases import Phase
from pipelines.training.profile import traced
from pipelines.training.score_table import Drawn, ScoreTable
from pipelines.training.worker import Worker
from pruning.examples.sampling import tempered
from pruning.examples.scores import ExampleScorer
from snn.activations import keep_activations
from snn.losses import LOSSES
from snn.weighted_norm import weighted_statistics

DELIVERY = 1 << 18  # scores that a worker holds before it delivers them
CHECK_STEPS = 100  # from one look at the loss to the next: on a GPU it waits for the device
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


class ScoreBuffer:
    """Scores met in training on their way to the score table, in deliveries of a bounded size.

    They stay on their device until one is due, so that no step waits for its scores.
    """

    def __init__(self, table: ScoreTable, epoch: int) -> None:
        self._table, self._epoch = table, epoch
        self._parts: list[tuple[np.ndarray, Tensor, np.ndarray, np.ndarray]] = []
        self._held = 0
        self.step = 0
        """The optimiser step that scores added now belong to."""

    def add(self, ids: np.ndarray, scores_B: Tensor, real: np.ndarray) -> None:
        """Take a batch's scores, of those examples that are real and no filling."""
        self._parts.append((ids, scores_B, real, np.full(len(ids), self.step, np.int32)))
        self._held += len(ids)
        if self._held >= DELIVERY:
            self.flush()

    def flush(self) -> None:
        """Deliver what is held."""
        if self._parts:
            ids, scores, real, steps = zip(*self._parts, strict=True)
            wanted = np.concatenate(real)
            found = torch.cat(scores).float().cpu().numpy()
            self._table.observe(
                np.concatenate(ids)[wanted],
                found[wanted],
                self._epoch,
                "train",
                np.concatenate(steps)[wanted],
            )
            self._parts, self._held = [], 0


class WeightAverage:
    """Exponential moving average of a network's parameters.

    After n updates the decay is at most (1 + n) / (10 + n), so that the start is soon forgotten.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._model, self._decay, self.updates = model, decay, 0
        self._average = [p.detach().clone() for p in model.parameters()]

    @torch.no_grad()
    def update(self) -> None:
        """Take in the parameters as they are."""
        self.updates += 1
        decay = min(self._decay, (1 + self.updates) / (10 + self.updates))
        get_ema_multi_avg_fn(decay)(self._average, list(self._model.parameters()), None)

    @contextmanager
    def applied(self, *, keep: bool) -> Iterator[None]:
        """Within it the network has the averaged parameters; afterwards too with ``keep``.

        Buffers (batch norm statistics) that change within belong to the averaged parameters.
        """
        before = [p.detach().clone() for p in self._model.parameters()]
        buffers = [b.clone() for b in self._model.buffers()]
        self._put(self._model.parameters(), self._average)
        yield
        if not keep:
            self._put(self._model.parameters(), before)
            self._put(self._model.buffers(), buffers)

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"updates": self.updates, "average": self._average}

    def load(self, state: dict[str, Any]) -> None:
        """Restore what `state` gave."""
        self.updates = state["updates"]
        self._put(self._average, state["average"])

    @staticmethod
    def _put(into: Any, values: list[Tensor]) -> None:
        with torch.no_grad():
            for tensor, value in zip(into, values, strict=True):
                tensor.copy_(value)


class Stepper:
    """Moves one phase's weights on one worker, and holds all that does."""

    def __init__(
        self, worker: Worker, phase: Phase, optimizer: torch.optim.Optimizer, scoring: Scoring | None
    ) -> None:
        self.worker, self.phase, self.train, self.engine = worker, phase, phase.train, worker.engine
        keep_activations(worker.model, phase.train.activations)
        self.module = worker.engine.distribute(worker.model)
        self.optimizer = optimizer
        self.average = WeightAverage(worker.model, phase.train.ema_decay) if phase.train.ema_decay else None
        self.loss = LOSSES[phase.train.loss]
        self._half = _HALF.get(phase.train.precision)
        self._scaler = torch.amp.GradScaler(worker.engine.device.type, enabled=self._half is torch.float16)
        self._score = "" if scoring is None else scoring.scores[0]
        self._scorer: ExampleScorer | None = None
        if scoring is not None:
            self._scorer = replace(scoring, timesteps=None).scorer(worker.model)

    def epoch(self, drawn: Drawn, feed: Feed) -> float:
        """All steps of an epoch; the weighted sum of the losses over all workers."""
        with self._traced(drawn.epoch) as after_step:
            return self._steps(drawn, feed, after_step)

    def _steps(self, drawn: Drawn, feed: Feed, after_step: Callable[[], None]) -> float:
        epoch = drawn.epoch
        total = torch.zeros((), dtype=torch.float64, device=self.engine.device)
        finite_steps = torch.zeros((), dtype=torch.int64, device=self.engine.device)
        seen = ScoreBuffer(self.engine.table, epoch)
        examples = int(self.engine.world_size * feed.nominal_batch * feed.steps)
        started = time.perf_counter()
        self.module.train()
        for step, parts in enumerate(decoded(feed, self.train.grad_accum_steps)):
            seen.step = step
            fraction = (epoch + step / feed.steps) / self.train.epochs
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate(self.train, fraction)
            self.optimizer.zero_grad()
            for i, some in enumerate(parts):
                last = i + 1 == len(parts)
                with nullcontext() if last else self._unsynchronised():
                    total += self._backward(drawn, some, feed.nominal_batch, seen)
            with record_function("optimizer"):
                self._step()
            finite_steps += total.isfinite()
            after_step()
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
        seen.flush()
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

    def _traced(self, epoch: int) -> AbstractContextManager[Callable[[], None]]:
        spec, engine = self.worker.spec, self.engine
        first = self.worker.progress.phase == epoch == 0
        on = spec.profile and first and engine.rank == 0
        return traced(Path(spec.folder), on=on, cuda=engine.device.type == "cuda")

    def state(self) -> dict[str, Any]:
        """For a checkpoint: tensors and numbers."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "scaler": self._scaler.state_dict(),
            "average": self.average.state() if self.average is not None else {},
        }

    def load(self, state: dict[str, Any]) -> None:
        """Restore what `state` gave."""
        self.optimizer.load_state_dict(state["optimizer"])
        self._scaler.load_state_dict(state["scaler"])
        if self.average is not None:
            self.average.load(state["average"])

    def _backward(self, drawn: Drawn, some: Part, nominal_batch: float, seen: ScoreBuffer) -> Tensor:
        """Add the gradient of some rows; their weighted sum of losses."""
        device, ids, weights = self.engine.device, some.ids, some.weights
        labels, scorer = to_device(some.labels, device), self._scorer
        recording = nullcontext() if scorer is None else scorer.recording()
        # Equal weights are told here: on a GPU the question would wait for the device.
        weights_B = None if (weights == 1).all() else to_device(weights, device)
        with record_function("forward"), recording, self._autocast(), weighted_statistics(weights_B):
            logits_TBK = self.module(self.worker.inputs.training(some.x, ids, drawn.epoch, device))
        if self._half is not None:
            logits_TBK = logits_TBK.float()
        if scorer is not None:  # before the step changes the weights that made the spikes
            found = scorer.from_recording(logits_TBK.detach(), labels, weights_B)
            seen.add(ids, found[self._score], weights > 0)
        losses = self.loss(logits_TBK, labels, self.train.label_smoothing)
        loss_weights = tempered(weights, drawn.weight_power, drawn.mean_power)
        weighted = (to_device(loss_weights, device) * losses).sum()
        # Averaged over the workers this is the sum over the global batch by its nominal size.
        with record_function("backward"):
            self._scaler.scale(weighted / nominal_batch).backward()
        return weighted.detach()

    def _step(self) -> None:
        if self.train.max_grad_norm is not None:
            self._scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.worker.model.parameters(), self.train.max_grad_norm)
        self._scaler.step(self.optimizer)
        self._scaler.update()
        if self.average is not None:
            self.average.update()

    def _autocast(self) -> Any:
        if self._half is None:
            return nullcontext()
        return torch.autocast(self.engine.device.type, dtype=self._half)

    def _unsynchronised(self) -> Any:
        """Gradients stay with the worker: only a step's last part averages them."""
        no_sync = getattr(self.module, "no_sync", None)
        return no_sync() if no_sync is not None else nullcontext()
