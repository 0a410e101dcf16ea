"""A trial's stages: runs of our own, keyed by what they depend on, each worked on by one trial at a time.

Trials that differ only in the pruning half name the same training stage; whoever comes first trains it,
the others wait and take it over.
"""

import hashlib
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipelines.config import ClusterConfig, Config, WeightsConfig
from pipelines.config.load import dump_config
from pipelines.run import is_finished
from pipelines.search.config import Stages
from pipelines.training.checkpoint import latest_checkpoint, load_progress
from pipelines.training.phases import Command, Phase, phases_of

ACCURACY = "test_accuracy"
LEADER_SECONDS = 1.0  # in which a killed leader of workers has ended


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One run of a trial."""

    command: Command
    config: Config
    """Complete, with the stage's own name and folder."""
    initial: Path | None
    """The network that it starts from."""

    @property
    def name(self) -> str:
        """The stage's key: the same for all trials that share it."""
        return self.config.name

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return Path(self.config.storage) / self.config.name

    @property
    def phases(self) -> tuple[Phase, ...]:
        """What it runs."""
        return phases_of(self.config, self.command)

    @property
    def finished(self) -> bool:
        """Whether all of its phases are behind it."""
        return is_finished(self.folder, len(self.phases))


def stages_of(config: Config, folder: Path, stages: Stages) -> list[Stage]:
    """The stages of a trial's config, in order.

    Args:
        config: of the trial.
        folder: the search's folder, absolute.
        stages: train, or run: train, then prune and retrain.
    """
    storage = str(folder / "stages")
    dense = replace(config, weights=WeightsConfig(), storage=storage)
    train = replace(dense, name=f"train-{_key(dense)}")
    first = Stage(command="train", config=train, initial=None)
    if stages == "train":
        return [first]
    whole = replace(config, storage=storage)
    prune = replace(whole, name=f"prune-{_key(whole)}")
    network = first.folder / "checkpoints" / "train.safetensors"
    return [first, Stage(command="prune", config=prune, initial=network)]


def steps_of(config: Config, stages: Stages) -> int:
    """Epochs and pruning steps of a trial, as asha counts them."""
    return sum(max(p.epochs, 1) for p in phases_of(config, stages))


def _key(config: Config) -> str:
    """A hash of what a stage's results depend on: names and places are not among it."""
    same = replace(
        config,
        name="x",
        storage="x",
        code=None,
        data=replace(config.data, path="x"),
        cluster=replace(ClusterConfig(), workers=config.cluster.workers),
    )
    return hashlib.sha256(dump_config(same).encode()).hexdigest()[:16]


def history_of(folders: Sequence[Path]) -> list[dict[str, Any]]:
    """All records that the newest checkpoints of a trial's stages hold, in order."""
    found = (latest_checkpoint(folder / "checkpoints") for folder in folders)
    return [record for newest in found if newest is not None for record in load_progress(newest).history]


class Claims:
    """Which trial works on which stage; an actor, so that trials on all nodes agree."""

    def __init__(self) -> None:
        self._owners: dict[str, str] = {}
        self._free_at: dict[str, float] = {}
        self._held: dict[str, list[Any]] = {}
        self._leaders: dict[str, Any] = {}
        self._gone: set[str] = set()
        self._timers: list[threading.Timer] = []

    def claim(self, stage: str, owner: str) -> bool:
        """Whether ``owner`` may work on the stage now."""
        if self._owners.get(stage, owner) != owner or time.monotonic() < self._free_at.get(stage, 0.0):
            return False
        self._owners[stage] = owner
        return True

    def release(self, stage: str, owner: str) -> None:
        """The owner is done with the stage."""
        if self._owners.get(stage) == owner:
            del self._owners[stage]

    def hold(self, owner: str, placement_group: Any) -> None:
        """The owner's workers hold these resources of the cluster."""
        if owner in self._gone:
            self._give_back([placement_group])
        else:
            self._held.setdefault(owner, []).append(placement_group)

    def lead(self, owner: str, controller: Any) -> None:
        """This actor leads the owner's workers."""
        self._leaders[owner] = controller

    def drop(self, owner: str, seconds: float, for_good: bool) -> None:
        """The owner is gone: what its workers hold is given back, and its stages are free soon.

        Ray Train's own cleaner gives nothing back where several Rays run on a machine: it asks for
        "the" Ray of the machine and ends with an error. Whoever leads the workers ends first: it would
        take lost ones for a failure, and start them again on resources that nobody gives back.

        Args:
            owner: a trial.
            seconds: to wait for the processes that it leaves behind.
            for_good: whether it will not be started again.
        """
        if for_good:
            self._gone.add(owner)
        if (leader := self._leaders.pop(owner, None)) is not None:
            import ray

            ray.kill(leader)
        if owner in self._held:
            timer = threading.Timer(LEADER_SECONDS, self._give_back, (self._held.pop(owner),))
            timer.start()
            self._timers.append(timer)
        for stage in [s for s, o in self._owners.items() if o == owner]:
            del self._owners[stage]
            self._free_at[stage] = time.monotonic() + seconds

    def close(self) -> None:
        """Nobody goes on: wait until all that was held is given back."""
        for owner in [*self._held, *self._leaders]:
            self.drop(owner, 0.0, for_good=True)
        for timer in self._timers:
            timer.join()

    def _give_back(self, held: Sequence[Any]) -> None:
        from ray.util import remove_placement_group

        for placement_group in held:
            remove_placement_group(placement_group)
