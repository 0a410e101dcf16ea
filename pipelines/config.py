"""The one config tree. YAML files, dotted command-line overrides and Python share it.

Every field says what it means below itself; ``spikeprune train --help`` shows the same text. Checks
that need no data run when a config is made; `pipelines.preflight` holds it against data and cluster.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pipelines.errors import UserError
from pipelines.storage.credentials import secret_in

ModelName = Literal[
    "mlp",
    "convnet",
    "vgg6",
    "vgg9",
    "vgg11",
    "vgg16",
    "sew_resnet18",
    "sew_resnet34",
    "sew_resnet50",
    "ms_resnet18",
    "ms_resnet34",
    "spikformer",
]
SurrogateName = Literal["atan", "sigmoid", "triangle", "fast_sigmoid"]
LossName = Literal["rate_ce", "tet"]
PolicyName = Literal[
    "full",
    "random",
    "static",
    "infobatch",
    "infobatch_matched",
    "el2n",
    "ucb",
    "loss",
    "sadp",
    "seta",
    "seta_matched",
    "repb",
    "repb_matched",
    "orderdp",
]
CriterionName = Literal["slamp", "slamp_curve", "lamp", "magnitude", "erk", "uniform", "wanda", "fisher"]


def is_own(name: str) -> bool:
    """Whether a model's, policy's or criterion's name is ``module:attribute`` of a user's own."""
    return ":" in name


def _check(ok: bool, where: str, value: Any, allowed: str) -> None:
    if not ok:
        raise UserError(where, f"{value!r} is not possible; it must be {allowed}")


def _check_no_secret(where: str, uri: str, remedy: str | None = None) -> None:
    """The config is kept with the run."""
    if (what := secret_in(uri, remedy)) is not None:
        raise UserError(where, what)


@dataclass(kw_only=True, slots=True)
class FramesConfig:
    """How recordings of events become model.T frames."""

    by: Literal["time", "count"] = "time"
    """Frames of equal duration (time), or of equally many events (count)."""
    size: tuple[int, ...] | None = None
    """Height and width of the frames (one number for both); the sensor's when not given."""

    def __post_init__(self) -> None:
        ok = self.size is None or (len(self.size) in (1, 2) and all(n >= 1 for n in self.size))
        _check(ok, "data.frames.size", self.size, "one or two positive numbers")


@dataclass(kw_only=True, slots=True)
class AugmentConfig:
    """Augmentation of training examples, the same for any number of workers."""

    crop: int = 0
    """Largest shift in pixels, with black beyond the border (a random crop of the padded image)."""
    flip: bool = False
    """Mirror half of the examples left to right."""
    cutout: int = 0
    """Side of a square that is blanked, in pixels."""
    roll: int = 0
    """Largest shift in pixels, with what leaves on one side entering on the other."""
    drop_time: float = 0.0
    """Largest share of an example's frames that are blanked, one after the other, in [0, 1); events alone."""

    def __post_init__(self) -> None:
        for name in ("crop", "cutout", "roll"):
            _check(getattr(self, name) >= 0, f"data.augment.{name}", getattr(self, name), "zero or more")
        _check(0 <= self.drop_time < 1, "data.augment.drop_time", self.drop_time, "in [0, 1)")


@dataclass(kw_only=True, slots=True)
class DataConfig:
    """Where the examples are. `spikeprune data ingest` writes such a folder."""

    path: str = "data/digits"
    """Folder of Parquet files named <split>*.parquet with columns id (int64), image and label."""
    train_split: str = "train"
    """Prefix of the files with training examples."""
    test_split: str = "test"
    """Prefix of the files with held-out examples."""
    train_rows: int | None = None
    """Train on so many examples only, the first in the files; all when not given."""
    test_rows: int | None = None
    """Evaluate on so many held-out examples only, the first in the files; all when not given."""
    frames: FramesConfig = field(default_factory=FramesConfig)
    """Event frames."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """Augmentation."""
    reading: Literal["auto", "memory", "shards"] = "auto"
    """memory (all training rows are held, still encoded), shards (row groups are read as an epoch goes on,
    in bounded memory) or auto (shards where the rows would take more than data.memory_gb)."""
    memory_gb: float | None = None
    """Gigabytes up to which auto holds rows in memory; half of Ray's object store (engine local: a quarter
    of the machine's free memory) when not given."""
    shuffle_rows: int | None = None
    """Rows that are shuffled together when reading by shards; as many as make 64 MB, from 1,024 to 65,536,
    when not given."""
    on_bad_row: Literal["stop", "skip"] = "stop"
    """stop at the first row that cannot be used, or skip such rows: all are looked for before training,
    counted, and listed in the run's skipped.json."""

    def __post_init__(self) -> None:
        _check_no_secret("data.path", self.path)
        _check(
            self.memory_gb is None or self.memory_gb >= 0, "data.memory_gb", self.memory_gb, "zero or more"
        )
        for name in ("train_rows", "test_rows"):
            rows = getattr(self, name)
            _check(rows is None or rows >= 1, f"data.{name}", rows, "at least 1")
        ok = self.shuffle_rows is None or self.shuffle_rows >= 1
        _check(ok, "data.shuffle_rows", self.shuffle_rows, "at least 1")


@dataclass(kw_only=True, slots=True)
class ModelConfig:
    """The spiking network."""

    name: ModelName | str = "mlp"
    """Architecture, from mlp (fully connected) and convnet (small strided convolutions) to deep ones; or
    package.module:attribute of your own."""
    hidden: tuple[int, ...] | None = None
    """Widths of the fully connected spiking layers; the architecture's own when not given."""
    channels: tuple[int, ...] | None = None
    """Channels of the convolutions (convnet, VGG), in order; the architecture's own when not given."""
    options: dict[str, bool | int | float | str] | None = None
    """Further arguments of the architecture, by name: {width: 64}."""
    T: int = 4
    """Timesteps per example."""
    beta: float = 0.5
    """Share of the membrane potential kept per timestep, in [0, 1]."""
    learn_beta: bool = False
    """Let each layer learn its own beta (parametric LIF)."""
    theta: float = 1.0
    """Firing threshold, in units of the membrane potential."""
    reset: Literal["hard", "soft"] = "hard"
    """After a spike: hard sets the potential to zero, soft subtracts the threshold."""
    detach_reset: bool = True
    """Keep the reset out of the gradient."""
    decay_input: bool = False
    """Scale the input current by 1 - beta."""
    surrogate: SurrogateName = "triangle"
    """Surrogate gradient of the spike."""
    channels_last: bool = False
    """Keep convolutions in the memory layout channels-last: faster on most hardware, same network."""
    surrogate_scale: float | None = None
    """Steepness of the surrogate; its usual value when not given."""

    def __post_init__(self) -> None:
        _check(1 <= self.T <= 1024, "model.T", self.T, "between 1 and 1024")
        _check(0 <= self.beta <= 1, "model.beta", self.beta, "in [0, 1]")
        _check(0 < self.theta < float("inf"), "model.theta", self.theta, "a positive number")
        _check(all(n > 0 for n in self.hidden or ()), "model.hidden", self.hidden, "positive widths")
        _check(all(n > 0 for n in self.channels or ()), "model.channels", self.channels, "positive widths")
        if self.surrogate_scale is not None:
            _check(self.surrogate_scale > 0, "model.surrogate_scale", self.surrogate_scale, "positive")


@dataclass(kw_only=True, slots=True)
class TrainConfig:
    """How the network learns."""

    epochs: int = 12
    """Epochs of training (an epoch of a data-pruned run visits its subset once)."""
    batch_size: int = 64
    """Examples per optimiser step over all workers together."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """sgd (Nesterov momentum) or adamw."""
    lr: float = 0.1
    """Peak learning rate."""
    momentum: float = 0.9
    """Momentum of sgd."""
    weight_decay: float = 5e-4
    """Weight decay."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """Learning rate over the fraction of training done."""
    warmup: float = 0.05
    """Fraction of training over which the learning rate rises linearly, in [0, 1)."""
    loss: LossName = "rate_ce"
    """rate_ce (cross entropy of the time mean) or tet (mean of every timestep's cross entropy)."""
    label_smoothing: float = 0.0
    """Share of the label spread over all classes, in [0, 1)."""
    clip_norm: float | None = None
    """Gradient clipping (max norm); none when not given. Clipping shrinks exactly the steps that hold large
    example weights, so the gradient is no longer unbiased: leave it off, or raise examples.alpha."""
    precision: Literal["float32", "bf16", "fp16"] = "float32"
    """float32, or mixed precision of the training steps: bf16, or fp16 with a scaled loss."""
    activations: Literal["keep", "pack", "recompute"] = "keep"
    """What is kept for the backward pass: keep (all that gradients need), pack (spikes as bits) or
    recompute (each layer's input alone, packed): less memory, more time."""
    accumulate: int = 1
    """Parts in which each step's batch is computed, one after the other, to fit the memory."""
    ema: float | None = None
    """Decay of a moving average of the weights, which is then what is evaluated and kept; in (0, 1)."""
    norm_examples: int = 1024
    """Uniformly drawn examples that re-estimate batch norm before scoring and evaluation."""

    def __post_init__(self) -> None:
        _check(self.epochs >= 1, "train.epochs", self.epochs, "at least 1")
        _check(self.batch_size >= 1, "train.batch_size", self.batch_size, "at least 1")
        _check(0 < self.lr < float("inf"), "train.lr", self.lr, "a positive number")
        _check(0 <= self.momentum < 1, "train.momentum", self.momentum, "in [0, 1)")
        _check(self.weight_decay >= 0, "train.weight_decay", self.weight_decay, "zero or more")
        _check(0 <= self.warmup < 1, "train.warmup", self.warmup, "in [0, 1)")
        _check(0 <= self.label_smoothing < 1, "train.label_smoothing", self.label_smoothing, "in [0, 1)")
        _check(self.clip_norm is None or self.clip_norm > 0, "train.clip_norm", self.clip_norm, "positive")
        _check(self.accumulate >= 1, "train.accumulate", self.accumulate, "at least 1")
        _check(self.ema is None or 0 < self.ema < 1, "train.ema", self.ema, "in (0, 1)")
        _check(self.norm_examples >= 2, "train.norm_examples", self.norm_examples, "at least 2")


@dataclass(kw_only=True, slots=True)
class ExamplesConfig:
    """Which examples each epoch trains on."""

    policy: PolicyName | str = "sadp"
    """full (all examples), random (uniform, drawn anew each epoch), sadp (by spike-aware
    importance), a rival, or package.module:attribute of your own."""
    ratio: float = 0.5
    """Pruning ratio r: the share of examples left out of a pruned epoch, in [0, 1)."""
    ratio_from: float | None = None
    """Pruning ratio of the first pruned epoch, from which it moves linearly to ratio; ratio throughout when
    not given."""
    weight_power: float | None = None
    """Power of the example weights in the loss, in [0, 1]: 1 keeps the gradient unbiased (norm statistics
    frozen); a lower power has less variance and a bias towards examples of high score. Default: the policy's
    own (0.5 for sadp, el2n, loss and infobatch_matched, 1 for others)."""
    alpha: float = 0.1
    """Weight of the uniform part in the inclusion probabilities, in (0, 1]; bounds the weights."""
    warmup_epochs: int = 1
    """Full epochs at the start, before scores mean anything."""
    anneal_epochs: int = 1
    """Full epochs at the end."""
    stale_alpha: float = 0.3
    """The same while scores are older than one epoch on average."""
    score_from: int = 0
    """Epoch before which pruned epochs draw uniformly and nothing is scored: early scores say little."""
    rescore_every: int | None = None
    """Pruned epochs from one scoring pass to the next; 0 (the default) takes scores from the training steps
    alone, which costs nothing; a pass costs about a third of training on the examples it scores."""
    rescore_who: Literal["all", "unselected", "sample"] = "all"
    """Which examples a scoring pass covers: all, those not selected last epoch, or a random quarter."""
    overlap: bool = False
    """Score the next epoch's examples while this one trains, on spare CPUs; scores are then one epoch old."""
    score_timesteps: int | None = None
    """Timesteps of a scoring pass; fewer are cheaper and cost accuracy of the scores; all when not given."""
    diagnose_every: int = 0
    """Epochs between measurements of the gradient's variance and bias on a probe; 0 for none."""
    diagnose_examples: int = 256
    """Examples of that probe; each costs a backward pass of its own."""
    design: Literal["systematic", "poisson"] = "systematic"
    """systematic draws exactly the same number every epoch; poisson decides each example alone."""
    tail_depth: int = 1
    """Layers below the readout that the SADP score covers; 1 needs a forward pass only."""

    def __post_init__(self) -> None:
        _check(0 <= self.ratio < 1, "examples.ratio", self.ratio, "in [0, 1)")
        if self.ratio_from is not None:
            _check(0 <= self.ratio_from < 1, "examples.ratio_from", self.ratio_from, "in [0, 1)")
        if self.weight_power is not None:
            _check(0 <= self.weight_power <= 1, "examples.weight_power", self.weight_power, "in [0, 1]")
        _check(0 < self.alpha <= 1, "examples.alpha", self.alpha, "in (0, 1]")
        _check(self.score_from >= 0, "examples.score_from", self.score_from, "zero or more")
        _check(self.warmup_epochs >= 0, "examples.warmup_epochs", self.warmup_epochs, "zero or more")
        _check(self.anneal_epochs >= 0, "examples.anneal_epochs", self.anneal_epochs, "zero or more")
        _check(0 < self.stale_alpha <= 1, "examples.stale_alpha", self.stale_alpha, "in (0, 1]")
        _check(
            self.rescore_every is None or self.rescore_every >= 0,
            "examples.rescore_every",
            self.rescore_every,
            "zero or more",
        )
        _check(
            self.score_timesteps is None or self.score_timesteps >= 1,
            "examples.score_timesteps",
            self.score_timesteps,
            "at least 1",
        )
        _check(self.diagnose_every >= 0, "examples.diagnose_every", self.diagnose_every, "zero or more")
        _check(
            self.diagnose_examples >= 2, "examples.diagnose_examples", self.diagnose_examples, "at least 2"
        )
        _check(self.tail_depth in (0, 1), "examples.tail_depth", self.tail_depth, "0 or 1")


@dataclass(kw_only=True, slots=True)
class WeightsConfig:
    """Which weights stay, and the retraining afterwards. Give one of sparsity, budget, synops."""

    criterion: CriterionName | str = "slamp"
    """slamp (time-aware layer scores by gradients), slamp_curve (by measured distortion), a rival, or
    package.module:attribute of your own."""
    objective: Literal["weights", "synops"] | None = None
    """What to save: surviving weights, or synaptic operations; when not given, what the target counts."""
    sparsity: float | None = None
    """Share of weights to remove, in (0, 1)."""
    budget: float | None = None
    """Distortion budget: mean over layers of -log(kept energy), positive."""
    synops: float | None = None
    """Share of the dense network's synaptic operations to keep, in (0, 1)."""
    budget_over: Literal["sum", "max_t"] = "sum"
    """sum bounds the distortion of all timesteps together, max_t that of every timestep."""
    schedule: Literal["one_shot", "cubic", "equal_distortion"] = "one_shot"
    """one_shot, cubic (towards a sparsity or a SynOps share) or equal_distortion (parts of a budget)."""
    rounds: int = 1
    """Rounds of calibrating, pruning and retraining; more than one with cubic and equal_distortion."""
    calibration_examples: int = 400
    """Training examples for calibration."""
    measure_examples: int = 200
    """Of these, those on which slamp measures gradients, or slamp_curve every layer's distortion."""
    diagnose_examples: int = 0
    """Test examples on which every layer's predicted distortion is held against the measured; 0 for none."""
    min_keep: int = 1
    """Weights that every layer keeps at least."""
    exclude: tuple[str, ...] = ()
    """Layers that are not pruned, by name."""
    retrain_epochs: int = 8
    """Epochs of masked retraining after each round, with the same data pruning."""
    retrain_lr: float = 0.05
    """Peak learning rate of the retraining."""

    def __post_init__(self) -> None:
        given = [n for n in ("sparsity", "budget", "synops") if getattr(self, n) is not None]
        if len(given) > 1:
            raise UserError("weights", f"{' and '.join(given)} exclude one another; give one of them")
        if not given:
            self.sparsity = 0.9
        if self.sparsity is not None:
            _check(0 < self.sparsity < 1, "weights.sparsity", self.sparsity, "in (0, 1)")
        if self.budget is not None:
            _check(0 < self.budget < float("inf"), "weights.budget", self.budget, "a positive number")
        if self.synops is not None:
            _check(0 < self.synops < 1, "weights.synops", self.synops, "in (0, 1)")
        _check(
            self.calibration_examples >= 1,
            "weights.calibration_examples",
            self.calibration_examples,
            "at least 1",
        )
        _check(self.measure_examples >= 4, "weights.measure_examples", self.measure_examples, "at least 4")
        _check(
            self.diagnose_examples >= 0, "weights.diagnose_examples", self.diagnose_examples, "zero or more"
        )
        _check(self.min_keep >= 1, "weights.min_keep", self.min_keep, "at least 1")
        self._check_rounds()
        _check(self.retrain_epochs >= 0, "weights.retrain_epochs", self.retrain_epochs, "zero or more")
        _check(self.retrain_lr > 0, "weights.retrain_lr", self.retrain_lr, "a positive number")

    @property
    def saves(self) -> Literal["weights", "synops"]:
        """The objective; a share of the SynOps as target asks for SynOps, anything else for weights."""
        return self.objective or ("weights" if self.synops is None else "synops")

    def _check_rounds(self) -> None:
        _check(1 <= self.rounds <= 40, "weights.rounds", self.rounds, "between 1 and 40")
        if self.schedule == "one_shot":
            _check(self.rounds == 1, "weights.rounds", self.rounds, "1, or choose another weights.schedule")
        if (self.schedule == "equal_distortion") != (self.budget is not None) and self.rounds > 1:
            allowed = "equal_distortion with a budget, cubic with a sparsity or a SynOps share"
            _check(False, "weights.schedule", self.schedule, allowed)


@dataclass(kw_only=True, slots=True)
class ClusterConfig:
    """Where it runs."""

    engine: Literal["ray", "local"] = "ray"
    """ray (Ray Data and Ray Train) or local (one plain process, same results for one worker)."""
    address: str | None = None
    """Address of a running Ray cluster; without one, Ray is started here and stopped afterwards."""
    workers: int = 2
    """Training workers."""
    min_workers: int | None = None
    """Fewest workers to go on with while nodes are lost, and to grow from when they return; without it a
    run waits for all of them. The batch of a step stays the same."""
    cpus_per_worker: float = 0.5
    """Logical CPUs that each training worker reserves; scoring needs one more beside them."""
    max_failures: int = 3
    """Lost workers or nodes after which a run gives up; --resume still continues it."""
    gpus_per_worker: float = 0
    """GPUs that each training worker reserves."""
    scorers: int = 0
    """Actors that score examples, each started once per pass; 0 scores in tasks, which is cheaper on CPUs."""
    gpus_per_scorer: float = 0
    """GPUs that each scoring actor reserves."""
    ids_per_book: int = 50_000_000
    """Ids that one actor of the score book holds; beyond, the book is spread over several actors."""

    def __post_init__(self) -> None:
        _check(self.workers >= 1, "cluster.workers", self.workers, "at least 1")
        if self.min_workers is not None:
            allowed = f"between 1 and cluster.workers ({self.workers})"
            _check(1 <= self.min_workers <= self.workers, "cluster.min_workers", self.min_workers, allowed)
        _check(self.cpus_per_worker > 0, "cluster.cpus_per_worker", self.cpus_per_worker, "positive")
        _check(self.max_failures >= 0, "cluster.max_failures", self.max_failures, "zero or more")
        for name in ("gpus_per_worker", "gpus_per_scorer"):
            gpus = getattr(self, name)
            shared = 0 <= gpus <= 1 or (gpus > 1 and float(gpus).is_integer())
            _check(shared, f"cluster.{name}", gpus, "zero, a part of one, or a whole number")
        _check(self.scorers >= 0, "cluster.scorers", self.scorers, "zero or more")
        ok = self.scorers > 0 or not self.gpus_per_scorer
        _check(ok, "cluster.gpus_per_scorer", self.gpus_per_scorer, "zero, or positive with cluster.scorers")
        _check(self.ids_per_book >= 1, "cluster.ids_per_book", self.ids_per_book, "at least 1")
        if self.engine == "local" and self.workers != 1:
            raise UserError("cluster.workers", f"{self.workers} is not possible with engine local; set 1")


@dataclass(kw_only=True, slots=True)
class TrackConfig:
    """Who else is told of every epoch; metrics.jsonl and Ray's metrics always are."""

    tensorboard: bool = False
    """Write TensorBoard event files into the run's folder."""
    mlflow: str | None = None
    """Tracking URI of an MLflow server, or a folder; needs the package mlflow."""

    def __post_init__(self) -> None:
        account = "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
        _check_no_secret("track.mlflow", self.mlflow or "", account)


@dataclass(kw_only=True, slots=True)
class Config:
    """Everything a run depends on."""

    name: str = "run"
    """Name of the run: its folder below storage."""
    storage: str = "runs"
    """Folder that holds runs."""
    seed: int = 0
    """Keys initial weights, subsets and their order."""
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
    """Ray."""

    def __post_init__(self) -> None:
        ok = self.name not in ("", ".", "..") and all(c.isalnum() or c in "._-" for c in self.name)
        _check(ok, "name", self.name, "letters, digits, dots, dashes and underscores")
        _check_no_secret("storage", self.storage)
        _check(0 <= self.seed < 2**31, "seed", self.seed, "between 0 and 2147483647")
        _check(
            self.train.batch_size % self.cluster.workers == 0,
            "train.batch_size",
            self.train.batch_size,
            f"a multiple of cluster.workers ({self.cluster.workers})",
        )
        full_epochs = self.examples.warmup_epochs + self.examples.anneal_epochs
        _check(
            self.examples.policy == "full" or full_epochs <= self.train.epochs,
            "examples.warmup_epochs",
            self.examples.warmup_epochs,
            f"so that warm-up and anneal epochs fit into train.epochs ({self.train.epochs})",
        )
        _check(
            self.examples.policy == "full" or self.examples.score_from <= self.train.epochs,
            "examples.score_from",
            self.examples.score_from,
            f"at most train.epochs ({self.train.epochs})",
        )


def field_paths(cls: type = Config, prefix: str = "") -> Sequence[str]:
    """All dotted paths of the tree's leaves, in order."""
    from dataclasses import fields, is_dataclass

    paths: list[str] = []
    for f in fields(cls):
        if isinstance(f.type, type) and is_dataclass(f.type):
            paths += field_paths(f.type, f"{prefix}{f.name}.")
        else:
            paths.append(f"{prefix}{f.name}")
    return paths
