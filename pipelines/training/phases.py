"""The phases of a run, in order: what is trained, from where, on which examples."""

from dataclasses import dataclass, replace
from typing import Literal

from pipelines.config import Config, ExamplesConfig, TrainConfig
from pruning.examples.policies import class_of

Command = Literal["run", "train", "prune"]


@dataclass(frozen=True, kw_only=True)
class Phase:
    """One phase; consecutive phases share a worker group and hand the network on."""

    name: str
    """baseline, train, prune or retrain; the rounds before the last are prune-1, retrain-1, prune-2, ..."""
    round: int = 0
    """Round of weight pruning, counted from 0."""
    fresh: bool = False
    """Starts from new random weights instead of the network so far."""
    train: TrainConfig | None = None
    """How to train; ``None`` for the pruning phase."""
    examples: ExamplesConfig | None = None
    """On which examples; as ``train``."""

    @property
    def epochs(self) -> int:
        """Epochs of training."""
        return 0 if self.train is None else self.train.epochs


def phases_of(config: Config, command: Command) -> tuple[Phase, ...]:
    """The phases that a command runs.

    ``run``: (baseline,) train, prune, retrain. ``train``: (baseline,) train. ``prune``: prune, retrain
    of a network that is given. Pruning and retraining repeat for every round.
    """
    if config.examples.policy == "full":
        config = replace(config, examples=_all_examples(config.examples))
    phases: list[Phase] = []
    if command != "prune":
        if config.baseline == "full":
            full = _all_examples(config.examples)
            phases.append(Phase(name="baseline", fresh=True, train=config.train, examples=full))
        examples = _fitted(config.examples, config.train.epochs)
        phases.append(Phase(name="train", fresh=True, train=config.train, examples=examples))
    if command != "train":
        rounds = config.weights.rounds
        for i in range(rounds):
            # The last round has the plain names: what a run ends with is called alike for any schedule.
            suffix = f"-{i + 1}" if i + 1 < rounds else ""
            phases.append(Phase(name=f"prune{suffix}", round=i))
            if config.weights.retrain_epochs:
                phases.append(_retrain(config, f"retrain{suffix}", i))
    return tuple(phases)


def _all_examples(examples: ExamplesConfig) -> ExamplesConfig:
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


def _fitted(examples: ExamplesConfig, epochs: int) -> ExamplesConfig:
    """Without the warm-up and anneal epochs that a training is too short for."""
    warmup = min(examples.warmup_epochs, epochs)
    return replace(
        examples,
        warmup_epochs=warmup,
        anneal_epochs=min(examples.anneal_epochs, epochs - warmup),
        score_from=min(examples.score_from, epochs),
    )


def _retrain(config: Config, name: str, round_: int) -> Phase:
    epochs = config.weights.retrain_epochs
    # The network knows the task already: scores mean something from the first epoch on.
    examples = _fitted(replace(config.examples, warmup_epochs=0, score_from=0), epochs)
    if _scores_in_training_alone(examples):
        examples = replace(examples, warmup_epochs=min(1, epochs - examples.anneal_epochs))
    train = replace(config.train, epochs=epochs, lr=config.weights.retrain_lr)
    return Phase(name=name, round=round_, train=train, examples=examples)


def _scores_in_training_alone(examples: ExamplesConfig) -> bool:
    """Whether no scoring pass tells the policy anything before it has trained."""
    policy, every = class_of(examples.policy), examples.rescore_every
    return policy.score is not None and not (policy.rescore_every if every is None else every)
