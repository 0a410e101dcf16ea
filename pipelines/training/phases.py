"""The phases of a run, in order: what is trained, from where, on which examples."""

from dataclasses import dataclass, replace
from typing import Literal

from pipelines.config import Config, ExamplesConfig, TrainConfig

IN_TRAINING = (
    "infobatch",
    "infobatch_matched",
    "ucb",
)  # policies that score in training alone, and so know nothing at first
Command = Literal["run", "train", "prune"]


@dataclass(frozen=True, kw_only=True)
class Phase:
    """One phase; consecutive phases share a worker group and hand the network on."""

    name: str
    """baseline, train, prune or retrain."""
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
    of a network that is given.
    """
    phases: list[Phase] = []
    if command != "prune":
        if config.baseline == "full":
            full = replace(config.examples, policy="full")
            phases.append(Phase(name="baseline", fresh=True, train=config.train, examples=full))
        phases.append(Phase(name="train", fresh=True, train=config.train, examples=config.examples))
    if command != "train":
        phases.append(Phase(name="prune"))
        if config.weights.retrain_epochs:
            phases.append(_retrain(config))
    return tuple(phases)


def _retrain(config: Config) -> Phase:
    epochs = config.weights.retrain_epochs
    # The network knows the task already: scores mean something from the first epoch on.
    examples = replace(
        config.examples, warmup_epochs=0, anneal_epochs=min(config.examples.anneal_epochs, epochs)
    )
    if examples.rescore_every == 0 or examples.policy in IN_TRAINING:
        examples = replace(examples, warmup_epochs=min(1, epochs - examples.anneal_epochs))
    train = replace(config.train, epochs=epochs, lr=config.weights.retrain_lr)
    return Phase(name="retrain", train=train, examples=examples)
