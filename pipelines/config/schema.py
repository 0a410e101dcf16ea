"""The one config tree. YAML files, dotted command-line overrides and Python share it.

Every field says what it means below itself; ``spikeprune train --help`` shows the same text. Checks
that need no data run when a config is made; `pipelines.runs.preflight` holds it against data and cluster.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Literal

from pipelines.config.checks import check, check_no_secret
from pipelines.config.pruning import ExamplesConfig, WeightsConfig
from pipelines.config.training import DataConfig, ModelConfig, TrainConfig
from pipelines.errors import UserError


@dataclass(kw_only=True, slots=True)
class ClusterConfig:
    """Where it runs."""

    engine: Literal["auto", "ray", "local"] = "auto"
    """local (this process), ray (Ray Data and Ray Train; same results for one worker and as many threads)
    or auto: local for one worker, ray for more of them, an address or scoring actors."""
    address: str | None = None
    """Address of a running Ray cluster; without one, Ray is started here and stopped afterwards."""
    workers: int = 1
    """Training workers."""
    min_workers: int | None = None
    """Minimum number of workers (elastic training): with nodes lost, a run continues with as few and grows
    back when they return; without it a run waits for all. The batch of a step stays the same."""
    cpus_per_worker: float = 0.5
    """Logical CPUs that each training worker reserves; scoring needs one more beside them."""
    threads: int | None = None
    """Threads of torch in each worker: results depend on it in their last bits, so that a resumed run keeps
    it. When not given, the whole CPUs that a worker reserves; where that is none, one, or all of this
    machine for a worker alone on it."""
    max_failures: int = 3
    """Lost workers or nodes after which a run gives up; --resume still continues it."""
    device: str = "auto"
    """cpu, cuda, cuda:N (with engine local), or auto: a GPU for each worker where there are as many."""
    gpus_per_worker: float = 0
    """GPUs that each training worker reserves."""
    scorers: int = 0
    """Actors that score examples, each started once per pass; 0 scores in tasks, which is cheaper on CPUs."""
    gpus_per_scorer: float = 0
    """GPUs that each scoring actor reserves."""

    def __post_init__(self) -> None:
        check(self.workers >= 1, "cluster.workers", self.workers, "at least 1")
        if self.min_workers is not None:
            allowed = f"between 1 and cluster.workers ({self.workers})"
            check(1 <= self.min_workers <= self.workers, "cluster.min_workers", self.min_workers, allowed)
        check(self.cpus_per_worker > 0, "cluster.cpus_per_worker", self.cpus_per_worker, "positive")
        check(self.threads is None or self.threads >= 1, "cluster.threads", self.threads, "at least 1")
        ok = re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?", self.device) is not None
        check(ok, "cluster.device", self.device, "auto, cpu, cuda or cuda:N")
        ok = self.device != "cpu" or not self.gpus_per_worker
        check(ok, "cluster.gpus_per_worker", self.gpus_per_worker, "zero with cluster.device cpu")
        check(self.max_failures >= 0, "cluster.max_failures", self.max_failures, "zero or more")
        for name in ("gpus_per_worker", "gpus_per_scorer"):
            gpus = getattr(self, name)
            shared = 0 <= gpus <= 1 or (gpus > 1 and float(gpus).is_integer())
            check(shared, f"cluster.{name}", gpus, "zero, a part of one, or a whole number")
        check(self.scorers >= 0, "cluster.scorers", self.scorers, "zero or more")
        ok = self.scorers > 0 or not self.gpus_per_scorer
        check(ok, "cluster.gpus_per_scorer", self.gpus_per_scorer, "zero, or positive with cluster.scorers")
        if self.engine == "local" and self.workers != 1:
            raise UserError("cluster.workers", f"{self.workers} is not possible with engine local; set 1")

    @property
    def needs_ray(self) -> str | None:
        """What one process cannot give; ``None`` where it gives all that is asked for."""
        if self.address is not None:
            return f"cluster {self.address}"
        if self.workers > 1:
            return f"{self.workers} workers"
        if self.gpus_per_worker > 1:
            return f"{self.gpus_per_worker:g} GPUs"
        return f"{self.scorers} scoring actors" if self.scorers else None

    @property
    def launcher(self) -> Literal["ray", "local"]:
        """The engine, ``auto`` decided."""
        if self.engine != "auto":
            return self.engine
        return "local" if self.needs_ray is None else "ray"


@dataclass(kw_only=True, slots=True)
class TrackConfig:
    """Experiment tracking, beside metrics.jsonl and Ray's metrics."""

    tensorboard: bool = False
    """Write TensorBoard event files into the run's folder."""
    mlflow: str | None = None
    """Tracking URI of an MLflow server, or a folder; needs the package mlflow."""
    wandb: str | None = None
    """Project of Weights & Biases; needs the package wandb, and a login or WANDB_MODE=offline."""

    def __post_init__(self) -> None:
        account = "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
        check_no_secret("track.mlflow", self.mlflow or "", account)


@dataclass(kw_only=True, slots=True)
class Config:
    """Everything a run depends on."""

    name: str = "run"
    """Name of the run: its folder below storage."""
    storage: str = "runs"
    """Folder that holds runs."""
    seed: int = 0
    """Random seed (weights, sampling, shuffling)."""
    baseline: Literal["none", "full"] = "none"
    """full also trains on all data first, for comparison."""
    code: str | None = None
    """Folder of your own modules, where model.name or examples.policy names one as module:attribute;
    the config file's own folder when not given."""
    data: DataConfig = field(default_factory=DataConfig)
    """Examples."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """Network."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """Training."""
    examples: ExamplesConfig = field(default_factory=ExamplesConfig)
    """Data pruning."""
    weights: WeightsConfig = field(default_factory=WeightsConfig)
    """Weight pruning."""
    track: TrackConfig = field(default_factory=TrackConfig)
    """Tracking."""
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    """Where it runs."""

    def __post_init__(self) -> None:
        ok = self.name[:1].isalnum() and all(c.isalnum() or c in "._-" for c in self.name)
        allowed = "letters, digits, dots, dashes and underscores, a letter or digit first"
        check(ok and len(self.name) <= 200, "name", self.name, f"at most 200 {allowed}")
        check_no_secret("storage", self.storage)
        check(0 <= self.seed < 2**31, "seed", self.seed, "between 0 and 2147483647")
        check(
            self.train.batch_size % self.cluster.workers == 0,
            "train.batch_size",
            self.train.batch_size,
            f"a multiple of cluster.workers ({self.cluster.workers})",
        )


def field_paths(cls: type = Config, prefix: str = "") -> Sequence[str]:
    """All dotted paths of the tree's leaves, in order."""
    paths: list[str] = []
    for f in fields(cls):
        if isinstance(f.type, type) and is_dataclass(f.type):
            paths += field_paths(f.type, f"{prefix}{f.name}.")
        else:
            paths.append(f"{prefix}{f.name}")
    return paths
