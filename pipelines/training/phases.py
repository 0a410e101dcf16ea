"""The phases of a run, in order, and all else that a worker needs to know of a run."""

from dataclasses import dataclass, replace
from typing import Literal

from pipelines.config import Config, DataPruningConfig, TrainConfig
from pipelines.config.plugins import OwnCode
from pipelines.data.dataset import DatasetInfo
from pipelines.data.layout import Ids
from pipelines.data.scan import Split
from pruning.examples.policies import POLICIES

Command = Literal["run", "train", "prune"]
HeldOut = Literal["val", "test"]
"""A split that is evaluated on."""


@dataclass(frozen=True, kw_only=True)
class Phase:
    """One phase; consecutive phases share a worker group and hand the network on."""

    name: str
    """baseline, train, prune or retrain; the rounds before the last are prune-1, retrain-1, prune-2, ..."""
    round: int = 0
    """Round of weight pruning, counted from 0."""
    fresh: bool = False
    """Starts from new random weights instead of the network so far."""
    prunes: bool = False
    """Prunes weights instead of training."""
    train: TrainConfig
    """How to train."""
    data_pruning: DataPruningConfig
    """On which examples."""

    @property
    def epochs(self) -> int:
        """Epochs of training."""
        return 0 if self.prunes else self.train.epochs


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """All that a worker needs to know of a run."""

    config: Config
    info: DatasetInfo
    phases: tuple[Phase, ...]
    folder: str
    """The run's folder, on storage that all workers share; or its working copy, where it is remote."""
    remote: str | None = None
    """URI of the run's folder, where storage is one."""
    train: Split
    test: Split
    val: Split | None = None
    window_rows: int = 0
    """Rows that are shuffled together where training rows are read by row groups."""
    code: OwnCode | None = None
    """The user's own model and policy, if the config names any."""
    initial: str | None = None
    """Checkpoint file (path or URI) of the network that a first phase without new weights starts from."""

    @property
    def shards(self) -> bool:
        """Whether rows are read by row groups as an epoch goes on, instead of all being held in memory."""
        return self.config.data.reading == "shards"

    @property
    def ids(self) -> Ids:
        """Training ids."""
        return self.train.ids

    @property
    def held_out(self) -> dict[HeldOut, Split]:
        """All that is evaluated on at the end of a phase."""
        return {"test": self.test} if self.val is None else {"val": self.val, "test": self.test}

    @property
    def watched(self) -> HeldOut:
        """The split that every epoch is evaluated on: validation, if there is any."""
        return "test" if self.val is None else "val"


def phases_of(config: Config, command: Command) -> tuple[Phase, ...]:
    """The phases that a command runs.

    ``run``: (baseline,) train, prune, retrain. ``train``: (baseline,) train. ``prune``: prune, retrain
    of a network that is given. Pruning and retraining repeat for every round.
    """
    if config.data_pruning.policy == "full":
        config = replace(config, data_pruning=_all_examples(config.data_pruning))
    phases: list[Phase] = []
    if command != "prune":
        if config.baseline == "full":
            full = _all_examples(config.data_pruning)
            phases.append(Phase(name="baseline", fresh=True, train=config.train, data_pruning=full))
        examples = _fitted(config.data_pruning, config.train.epochs)
        phases.append(Phase(name="train", fresh=True, train=config.train, data_pruning=examples))
    if command != "train":
        rounds = config.weight_pruning.rounds
        for i in range(rounds):
            # The last round has the plain names: what a run ends with is called alike for any schedule.
            suffix = f"-{i + 1}" if i + 1 < rounds else ""
            prune = Phase(name=f"prune{suffix}", train=config.train, data_pruning=config.data_pruning)
            phases.append(replace(prune, round=i, prunes=True))
            if config.weight_pruning.retrain_epochs:
                phases.append(_retrain(config, f"retrain{suffix}", i))
    return tuple(phases)


def _all_examples(examples: DataPruningConfig) -> DataPruningConfig:
    """Policy full, whatever was said of pruned epochs: a run may be too short for that."""
    return replace(
        examples,
        policy="full",
        ratio=0.0,
        ratio_from=None,
        warmup_epochs=0,
        anneal_epochs=0,
        score_from=0,
        rescore_every=0,
    )


def _fitted(examples: DataPruningConfig, epochs: int) -> DataPruningConfig:
    """Without the warm-up and anneal epochs that a training is too short for."""
    warmup = min(examples.warmup_epochs, epochs)
    return replace(
        examples,
        warmup_epochs=warmup,
        anneal_epochs=min(examples.anneal_epochs, epochs - warmup),
        score_from=min(examples.score_from, epochs),
    )


def _retrain(config: Config, name: str, round_: int) -> Phase:
    epochs = config.weight_pruning.retrain_epochs
    # The network knows the task already: scores mean something from the first epoch on.
    examples = _fitted(replace(config.data_pruning, warmup_epochs=0, score_from=0), epochs)
    if _scores_in_training_alone(examples):
        examples = replace(examples, warmup_epochs=min(1, epochs - examples.anneal_epochs))
    train = replace(config.train, epochs=epochs, lr=config.weight_pruning.retrain_lr)
    return Phase(name=name, round=round_, train=train, data_pruning=examples)


def _scores_in_training_alone(examples: DataPruningConfig) -> bool:
    """Whether no scoring pass tells the policy anything before it has trained."""
    policy, every = POLICIES[examples.policy], examples.rescore_every
    return policy.score is not None and not (policy.rescore_every if every is None else every)
