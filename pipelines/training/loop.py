"""The one training function: dense, data-pruned and masked training are the same loop.

It runs on every worker of whatever launched it, knows of the others only through an `Engine`, and
leaves a checkpoint after each epoch from which it goes on as if nothing had happened.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipelines.config.plugins import own_failures_named
from pipelines.data.layout import Rows, uniform_sample
from pipelines.networks import make_network
from pipelines.scoring.scorer import Scoring
from pipelines.storage.sync import storage_explained
from pipelines.training import checkpoint
from pipelines.training.engine import LocalEngine
from pipelines.training.evaluation import diagnose_scores, evaluate, measure_activity, reestimate_norm
from pipelines.training.phases import Phase, RunSpec
from pipelines.training.prune import prune, retrained
from pipelines.training.steps import Stepper, diverged, make_optimizer
from pipelines.training.worker import Clock, Worker, start
from pruning.examples.policies.settings import FORWARD_COST
from snn.kernels.allocator import tune_allocator

POLICY_FIELDS = (
    "ratio", "ratio_from", "weight_power", "warmup_epochs", "anneal_epochs", "alpha", "stale_alpha",
    "score_from", "rescore_who", "rescore_every", "design",
)  # fmt: skip
"""Of the config's examples, what a policy is made from as it is."""
NORM_STREAM = 101  # tells the uniform sample for batch norm from other draws of the same epoch


def run_phases(worker: Worker, resume: Path | None) -> None:
    """Run the phases that are left to do."""
    for phase in worker.spec.phases[worker.progress.phase :]:
        if phase.prunes:
            prune(worker)
        else:
            _train(worker, phase, resume if worker.progress.epoch > 0 else None)
    for tracker in worker.trackers:
        tracker.close()


@own_failures_named()
def train_locally(
    spec: RunSpec,
    *,
    watch: Callable[[dict[str, object]], None],
    on_record: Callable[[dict[str, object]], None] | None = None,
) -> None:
    """Run a spec's phases in this process, from its newest checkpoint if there is one (see `LocalEngine`)."""
    tune_allocator()
    checkpoints = Path(spec.folder) / "checkpoints"
    engine = LocalEngine(spec, checkpoints=checkpoints, watch=watch, on_record=on_record)
    resume = checkpoint.latest_checkpoint(checkpoints)
    with _threads(spec.config.cluster.threads), storage_explained(Path(spec.folder), spec.remote):
        run_phases(start(spec, engine, resume), resume)


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """Torch computes with so many threads within it; as before afterwards, for whoever calls this."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _train(worker: Worker, phase: Phase, resume: Path | None) -> None:
    spec, engine = worker.spec, worker.engine
    # A new module for every phase: distributing the same one twice would average its gradients twice.
    model = make_network(spec.config.model, spec.info, spec.config.seed).to(engine.device)
    if phase.fresh and resume is None:
        worker.masks = None
    else:
        model.load_state_dict(worker.model.state_dict())
    worker.model = model
    scoring, in_training = _begin(worker, phase)
    if resume is not None and engine.rank == 0:
        checkpoint.load_table(resume, engine.table)
    optimizer = make_optimizer(model.parameters(), phase.train)
    masked = worker.masks.keep(model, optimizer) if worker.masks is not None else nullcontext()
    with masked:
        stepper = Stepper(worker, phase, optimizer, scoring if in_training else None)
        if resume is not None:
            stepper.load(checkpoint.load_optimizer(resume))
        trainer = _Trainer(worker, phase, stepper, scoring)
        for epoch in range(worker.progress.epoch, phase.epochs):
            record = trainer.epoch(epoch)
            last = epoch + 1 == phase.epochs
            if last:
                record["activity"] = measure_activity(worker, spec.watched)
                if worker.masks is not None:
                    record["figures"] = retrained(worker, record)
                record |= engine.table.costs()
                worker.save_final(phase.name)
            worker.report(
                record,
                next_phase=worker.progress.phase + last,
                next_epoch=0 if last else epoch + 1,
                optimizer=stepper.state(),
                table=engine.table,
            )


def _told_epoch(phase: Phase) -> int:
    """The epoch whose draw scores.parquet tells of: the last pruned one, or the last if none is."""
    last = phase.epochs - phase.data_pruning.anneal_epochs - 1
    return last if last >= phase.data_pruning.warmup_epochs else phase.epochs - 1


def _begin(worker: Worker, phase: Phase) -> tuple[Scoring | None, bool]:
    """Open the score table for a phase: how its policy wants examples scored, and whether in training."""
    spec, engine = worker.spec, worker.engine
    T, examples = worker.inputs.T, phase.data_pruning
    settings = {
        "name": examples.policy,
        "seed": spec.config.seed,
        "epochs": phase.train.epochs,
        "scoring_cost": FORWARD_COST * (examples.score_timesteps or T) / T,
        **{name: getattr(examples, name) for name in POLICY_FIELDS},
    }
    wanted = engine.share(engine.table.begin(settings) if engine.rank == 0 else None)
    if wanted is None:
        return None, False
    score, in_training = wanted
    return Scoring(scores=(score,), train=phase.train, examples=examples, inputs=worker.inputs), in_training


class _Trainer:
    """One phase's training on one worker, epoch by epoch."""

    def __init__(self, worker: Worker, phase: Phase, stepper: Stepper, scoring: Scoring | None) -> None:
        self.worker, self.phase, self.stepper, self.scoring = worker, phase, stepper, scoring
        self.engine, self.train = worker.engine, phase.train

    def epoch(self, epoch: int) -> dict[str, Any]:
        """Score, draw, train, evaluate: the epoch's record."""
        engine, seconds = self.engine, Clock()
        rescored = self._rescore(epoch)
        drawn = engine.table.draw(epoch) if engine.rank == 0 else None
        seconds.lap("score")
        if epoch == _told_epoch(self.phase) and self.phase.name == "train":
            self.worker.keep_scores(epoch)  # before training brings other scores than were drawn by
            seconds.lap("table")
        drawn = engine.share(drawn)
        assert drawn is not None
        seconds.lap("score")
        diagnosis = None if drawn.full else self._diagnose(epoch)
        if diagnosis is not None:
            seconds.lap("diagnose")
        seed = self.worker.spec.config.seed
        sample = uniform_sample(
            self.worker.spec.ids,
            self.train.bn_examples,
            seed=seed,
            # Scattered rows are slow to read from row groups: there one sample serves all epochs.
            epoch=0 if self.worker.spec.shards else epoch,
            stream=NORM_STREAM,
            rank=engine.rank,
            world_size=engine.world_size,
        )
        feed, rows = engine.feed(drawn, seed=seed, global_batch=self.train.batch_size, also=sample)
        seconds.lap("select")
        loss = self.stepper.epoch(drawn, feed) / max(drawn.size, 1)
        seconds.lap("train")
        self._reestimate(rows, sample, epoch)
        seconds.lap("norm")
        spec, last = self.worker.spec, epoch + 1 == self.train.epochs
        tested = evaluate(self.worker, *(spec.held_out if last else (spec.watched,)))
        seconds.lap("evaluate")
        engine.barrier()  # all scores of this epoch have reached the score table
        seconds.lap("barrier")
        record: dict[str, Any] = {
            "phase": self.phase.name,
            "epoch": epoch,
            **drawn.summary,
            "subset": drawn.fingerprint,
            "workers": engine.world_size,
            "rescored": rescored,
            **({"diagnosis": diagnosis} if diagnosis is not None else {}),
            "train_loss": loss,
            **tested,
            **seconds.record(),
        }
        rate = round(drawn.size / max(record["seconds"]["train"], 1e-9), 1)
        return {**record, "speed": {"examples_per_second": rate}}

    def _reestimate(self, rows: Rows, sample: np.ndarray, epoch: int) -> None:
        try:
            reestimate_norm(self.worker, rows, sample)
        except ValueError as error:  # weights that are finite can still give currents that are not
            if "not finite" not in str(error):
                raise
            raise diverged(self.phase, epoch, str(error)) from error

    def _rescore(self, epoch: int) -> int:
        """Fresh scores of the examples that the policy asks for; how many those were."""
        if self.scoring is None:
            return 0
        self.engine.progress({"phase": self.phase.name, "epoch": epoch, "doing": "scoring"})
        first = self.engine.rank == 0
        return self.engine.share(self.engine.rescore(self.worker.model, self.scoring, epoch) if first else 0)

    def _diagnose(self, epoch: int) -> dict[str, float] | None:
        """How far the scores that were drawn by are from exact gradient norms, on a probe."""
        examples, engine = self.phase.data_pruning, self.engine
        if self.scoring is None or not examples.diagnose_every or epoch % examples.diagnose_every:
            return None
        engine.progress({"phase": self.phase.name, "epoch": epoch, "doing": "diagnosing"})
        found = diagnose_scores(self.worker, self.train, examples, epoch) if engine.rank == 0 else None
        return engine.share(found)
