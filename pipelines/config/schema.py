"""The one config tree. YAML files, dotted command-line overrides and Python share it.

Every field says what it means below itself; ``spikeprune train --help`` shows the same text. Checks
that need no data run when a config is made; `pipelines.runs.preflight` holds it against data and cluster.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Annotated, Any, ClassVar, Literal

from cluster.errors import UserError
from pipelines.config.checks import (
    CLOSED,
    FINITE,
    POSITIVE,
    RATIO,
    SHARE,
    Allowed,
    Checked,
    at_least,
    between,
    check,
    check_no_secret,
)
from pipelines.config.training import MOST_EPOCHS, DataConfig, ModelConfig, TrainConfig

LEAST_ALPHA = 1e-6
DEVICE = Allowed("auto, cpu, cuda or cuda:N", lambda v: bool(re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?", v)))
GPUS = Allowed(
    "zero, a part of one, or a whole number", lambda v: 0 <= v <= 1 or (v > 1 and float(v).is_integer())
)
SOME = Allowed("at least one of them, without repetition", lambda v: 0 < len(v) == len(set(v)))
PolicyName = Literal[
    "full", "random", "static", "infobatch", "infobatch_matched", "el2n", "ucb", "loss", "sadp", "seta",
    "seta_matched", "repb", "repb_matched", "orderdp",
]  # fmt: skip
ObjectiveName = Literal["accuracy", "examples", "seconds", "density", "synops"]
Question = Literal["data", "network", "both"]
Stages = Literal["train", "run"]
CriterionName = Literal["slamp", "slamp_curve", "lamp", "magnitude", "erk", "uniform", "wanda", "fisher"]


@dataclass(kw_only=True, slots=True)
class DataPruningConfig(Checked):
    """Which examples each epoch trains on."""

    PATH: ClassVar[str] = "data_pruning"
    policy: PolicyName | str = "sadp"
    """full (all examples), random (uniform, a new draw each epoch), sadp (by spike-aware
    importance), a rival, or package.module:attribute of your own."""
    ratio: Annotated[float, RATIO] = 0.5
    """Pruning ratio r: the share of examples left out of a pruned epoch, in [0, 1)."""
    ratio_from: Annotated[float | None, RATIO] = None
    """Pruning ratio of the first pruned epoch, from which it moves linearly to ratio; ratio throughout when
    not given."""
    weight_power: Annotated[float | None, CLOSED] = None
    """Power of the example weights in the loss, in [0, 1]: 1 keeps the gradient unbiased (norm statistics
    frozen); a lower power has less variance and a bias towards examples of high score. Default: the policy's
    own (0.5 for sadp, el2n, loss and infobatch_matched, 1 for others)."""
    alpha: Annotated[float, between(LEAST_ALPHA, 1)] = 0.1
    """Weight of the uniform part in the inclusion probabilities, up to 1; bounds the weights by 1 / alpha."""
    warmup_epochs: Annotated[int, at_least(0)] = 1
    """Full epochs at the start, before scores mean anything."""
    anneal_epochs: Annotated[int, at_least(0)] = 1
    """Full epochs at the end."""
    stale_alpha: Annotated[float, between(LEAST_ALPHA, 1)] = 0.3
    """alpha while scores are older than one epoch on average."""
    score_from: Annotated[int, at_least(0)] = 0
    """Epoch before which pruned epochs draw uniformly and nothing is scored: early scores say little."""
    rescore_every: Annotated[int | None, at_least(0)] = None
    """Pruned epochs from one scoring pass to the next; 0 (the default) takes scores from the training steps
    alone, at almost no cost; a pass costs about a third of training on the examples it scores."""
    rescore_who: Literal["all", "unselected", "sample"] = "all"
    """Which examples a scoring pass covers: all, those not selected last epoch, or a random quarter."""
    score_timesteps: Annotated[int | None, at_least(1)] = None
    """Timesteps of a scoring pass; fewer are cheaper and cost accuracy of the scores; all when not given."""
    diagnose_every: Annotated[int, at_least(0)] = 0
    """Epochs between measurements of the gradient's variance and bias on a probe; 0 for none."""
    diagnose_examples: Annotated[int, at_least(2)] = 256
    """Examples of that probe; each costs a backward pass of its own."""
    design: Literal["systematic", "poisson"] = "systematic"
    """systematic draws exactly the same number every epoch; poisson decides each example alone."""
    tail_depth: Annotated[int, Allowed("0 or 1", (0, 1).__contains__)] = 1
    """Layers below the readout that the SADP score covers; 1 needs a forward pass only."""


@dataclass(kw_only=True, slots=True)
class WeightPruningConfig(Checked):
    """Which weights stay, and the retraining afterwards. Give one of sparsity, budget, synops."""

    PATH: ClassVar[str] = "weight_pruning"
    criterion: CriterionName | str = "slamp"
    """slamp (time-aware layer scores by gradients), slamp_curve (by measured distortion), a rival, or
    package.module:attribute of your own (short: --criterion)."""
    objective: Literal["weights", "synops"] | None = None
    """What to save: surviving weights, or synaptic operations; when not given, what the target counts."""
    sparsity: Annotated[float | None, SHARE] = None
    """Share of weights to remove, in (0, 1) (short: --sparsity)."""
    budget: Annotated[float | None, FINITE] = None
    """Distortion budget: mean over layers of -log(share of the sum of squared weights kept), weighted by the
    coefficients of the criterion; positive (short: --budget)."""
    synops: Annotated[float | None, SHARE] = None
    """Share of the dense network's synaptic operations to keep, in (0, 1) (short: --synops)."""
    budget_over: Literal["sum", "max_t"] = "sum"
    """sum bounds the distortion of all timesteps together, max_t that of every timestep."""
    rounds: Annotated[int, between(1, 40)] = 1
    """Rounds of calibrating, pruning and retraining: cubic towards a sparsity or a SynOps share, large steps
    first; equal parts of a budget."""
    calibration_examples: Annotated[int, at_least(1)] = 400
    """Training examples for calibration."""
    measure_examples: Annotated[int, at_least(4)] = 200
    """Of these, those on which slamp measures gradients, or slamp_curve every layer's distortion."""
    min_keep: Annotated[int, at_least(1)] = 1
    """Weights that every layer keeps at least."""
    exclude: tuple[str, ...] = ()
    """Layers that are not pruned, by name."""
    retrain_epochs: Annotated[int, between(0, MOST_EPOCHS)] = 8
    """Epochs of masked retraining after each round, with the same data pruning (0 in short: --no-retrain)."""
    retrain_lr: Annotated[float, FINITE] = 0.05
    """Peak learning rate of the retraining."""

    def check_together(self) -> None:
        """One target."""
        given = [n for n in ("sparsity", "budget", "synops") if getattr(self, n) is not None]
        if len(given) > 1:
            raise UserError("weight_pruning", f"{' and '.join(given)} exclude one another; give one of them")
        if not given:
            self.sparsity = 0.9

    @property
    def saves(self) -> Literal["weights", "synops"]:
        """The objective; a share of the SynOps as target asks for SynOps, anything else for weights."""
        return self.objective or ("weights" if self.synops is None else "synops")


@dataclass(kw_only=True, slots=True)
class ClusterConfig(Checked):
    """Where it runs."""

    PATH: ClassVar[str] = "cluster"
    engine: Literal["auto", "ray", "local"] = "auto"
    """local (this process), ray (Ray Data and Ray Train; same results for one worker and as many threads)
    or auto: local for one worker, ray for more of them, an address or scoring actors."""
    address: str | None = None
    """Address of a running Ray cluster (short: --address); without one, Ray is started here and stopped
    afterwards."""
    workers: Annotated[int, at_least(1)] = 1
    """Training workers."""
    min_workers: int | None = None
    """Minimum number of workers (elastic training): with nodes lost, a run continues with as few and grows
    back when they return; without it a run waits for all. The size of a step's batch stays the same."""
    cpus_per_worker: Annotated[float, FINITE] = 0.5
    """Logical CPUs that each training worker reserves; scoring needs one more beside them."""
    threads: Annotated[int | None, at_least(1)] = None
    """Threads of torch in each worker: results depend on it in their last bits, so that a resumed run keeps
    it. When not given, the whole CPUs that a worker reserves; where that is none, one, or all of this
    machine for a worker alone on it."""
    max_failures: Annotated[int, at_least(0)] = 3
    """Lost workers or nodes after which a run gives up; --resume still continues it."""
    device: Annotated[str, DEVICE] = "auto"
    """cpu, cuda, cuda:N (with engine local), or auto: a GPU for each worker where there are as many."""
    gpus_per_worker: Annotated[float, GPUS] = 0
    """GPUs that each training worker reserves."""
    scorers: Annotated[int, at_least(0)] = 0
    """Actors that score examples, each started once per pass; 0 scores in tasks, which is cheaper on CPUs."""
    gpus_per_scorer: Annotated[float, GPUS] = 0
    """GPUs that each scoring actor reserves."""

    def check_together(self) -> None:
        """Workers, GPUs and engine that fit each other."""
        if self.min_workers is not None:
            allowed = f"between 1 and cluster.workers ({self.workers})"
            check(1 <= self.min_workers <= self.workers, "cluster.min_workers", self.min_workers, allowed)
        ok = self.device != "cpu" or not self.gpus_per_worker
        check(ok, "cluster.gpus_per_worker", self.gpus_per_worker, "zero with cluster.device cpu")
        ok = self.scorers > 0 or not self.gpus_per_scorer
        allowed = "zero, or positive with cluster.scorers"
        check(ok, "cluster.gpus_per_scorer", self.gpus_per_scorer, allowed)
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
class TrackingConfig:
    """Experiment tracking, beside metrics.jsonl."""

    tensorboard: bool = False
    """Write TensorBoard event files into the run's folder."""
    mlflow: str | None = None
    """Tracking URI of an MLflow server, or a folder; needs the package mlflow."""
    wandb: str | None = None
    """Project of Weights & Biases; needs the package wandb, and a login or WANDB_MODE=offline."""

    def __post_init__(self) -> None:
        account = "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
        check_no_secret("tracking.mlflow", self.mlflow or "", account)


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
    """Folder of your own modules, where the config names a model, policy or criterion as
    module:attribute; the config file's own folder when not given."""
    data: DataConfig = field(default_factory=DataConfig)
    """Examples."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """Network."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """Training."""
    data_pruning: DataPruningConfig = field(default_factory=DataPruningConfig)
    """Data pruning."""
    weight_pruning: WeightPruningConfig = field(default_factory=WeightPruningConfig)
    """Weight pruning."""
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    """Tracking."""
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    """Where it runs."""

    def __post_init__(self) -> None:
        ok = self.name[:1].isalnum() and all(c.isalnum() or c in "._-" for c in self.name)
        allowed = "letters, digits, dots, dashes and underscores, a letter or digit first"
        check(ok and len(self.name) <= 200, "name", self.name, f"at most 200 {allowed}")
        check_no_secret("storage", self.storage)
        check(0 <= self.seed < 2**31, "seed", self.seed, "between 0 and 2147483647")
        batch, workers = self.train.batch_size, self.cluster.workers
        check(batch % workers == 0, "train.batch_size", batch, f"a multiple of cluster.workers ({workers})")


@dataclass(kw_only=True, slots=True)
class SearchConfig(Checked):
    """What to search, for what, and for how long."""

    PATH: ClassVar[str] = "search"
    question: Question | None = None
    """Ready-made space: data (how much data can I drop), network (how much of the network), or both;
    both when no space is given."""
    space: dict[str, Any] | None = None
    """Fields by their path: a list of values, or {low, high} with log: true or step. Beside a
    question it adds to that space."""
    objectives: Annotated[tuple[ObjectiveName, ...] | None, SOME] = None
    """accuracy (highest), examples, seconds, density, synops (lowest); the question's own when not given."""
    stages: Stages | None = None
    """What a trial does: train, or run (train, prune, retrain); what the space and objectives need when
    not given."""
    sampler: Literal["tpe", "nsga2", "random", "grid"] = "tpe"
    """tpe and nsga2 learn from finished trials; random and grid do not."""
    grid_points: Annotated[int, between(2, 1000)] = 5
    """Values that grid takes from a range without a step."""
    scheduler: Literal["none", "asha"] = "none"
    """asha stops trials early whose accuracy lags behind that of others at the same epoch; for the
    objective accuracy alone and trials of one worker."""
    grace_epochs: Annotated[int, at_least(1)] = 2
    """Epochs before asha may stop a trial."""
    reduction: Annotated[int, between(2, 10)] = 3
    """asha keeps one in so many trials at each of its rungs."""
    trials: Annotated[int | None, at_least(1)] = None
    """Trials to finish; with neither trials nor minutes 20, or the whole grid."""
    minutes: Annotated[float | None, POSITIVE] = None
    """Wall time of a launch, after which running trials are left for --resume."""
    concurrent: Annotated[int | None, at_least(1)] = None
    """Trials at once; as many as fit when not given."""


@dataclass(kw_only=True, slots=True)
class SearchTree(Config):
    """A run's config, and the search over it."""

    name: str = "search"
    """Name of the search: its folder below storage."""
    search: SearchConfig = field(default_factory=SearchConfig)
    """Search."""


def field_paths(cls: type = Config, prefix: str = "") -> Sequence[str]:
    """All dotted paths of the tree's leaves, in order."""
    paths: list[str] = []
    for f in fields(cls):
        if isinstance(f.type, type) and is_dataclass(f.type):
            paths += field_paths(f.type, f"{prefix}{f.name}.")
        else:
            paths.append(f"{prefix}{f.name}")
    return paths
