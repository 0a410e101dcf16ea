"""Fields of the config about the data, the network and its training."""

from dataclasses import dataclass, field
from typing import Literal

from pipelines.config.checks import check, check_no_secret
from pipelines.errors import UserError

MOST_EPOCHS = 1_000_000
MOST_PIXELS = 65_536
MOST_WIDTH = 1_000_000
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


@dataclass(kw_only=True, slots=True)
class FramesConfig:
    """How recordings of events become model.T frames."""

    by: Literal["time", "count"] = "time"
    """Frames of equal duration (time), or of equally many events (count)."""
    size: tuple[int, ...] | None = None
    """Height and width of the frames (one number for both); the sensor's when not given."""

    def __post_init__(self) -> None:
        ok = self.size is None or (len(self.size) in (1, 2) and all(n >= 1 for n in self.size))
        check(ok, "data.frames.size", self.size, "one or two positive numbers")


@dataclass(kw_only=True, slots=True)
class AugmentConfig:
    """Augmentation of training examples, the same for any number of workers."""

    crop: int = 0
    """Largest shift in pixels, with black beyond the border (a random crop of the padded image)."""
    flip: bool = False
    """Random horizontal flip (p = 0.5)."""
    cutout: int = 0
    """Side of a square that is blanked, in pixels."""
    roll: int = 0
    """Largest shift in pixels, with what leaves on one side entering on the other."""
    drop_time: float = 0.0
    """Largest share of an example's frames that are blanked, one after the other, in [0, 1); events alone."""

    def __post_init__(self) -> None:
        for name in ("crop", "cutout", "roll"):
            pixels = getattr(self, name)
            check(0 <= pixels <= MOST_PIXELS, f"data.augment.{name}", pixels, f"between 0 and {MOST_PIXELS}")
        check(0 <= self.drop_time < 1, "data.augment.drop_time", self.drop_time, "in [0, 1)")


@dataclass(kw_only=True, slots=True)
class DataConfig:
    """Where the examples are. `spikeprune data ingest` writes such a folder."""

    path: str = "data/digits"
    """Folder of Parquet files named <split>*.parquet with columns id (int64), image and label."""
    train_split: str = "train"
    """Prefix of the files with training examples."""
    test_split: str = "test"
    """Prefix of the files with test examples; with validation, measured only at the end of a phase."""
    val_split: str | None = None
    """Prefix of the files with validation examples, which every epoch is evaluated on."""
    val_share: float | None = None
    """Without a split of its own, the share of the training examples that is kept for validation, in (0, 1);
    which ones depends on the seed. Reading by shards, every evaluation reads all training files."""
    train_rows: int | None = None
    """Train on so many examples only, the first in the files; all when not given."""
    test_rows: int | None = None
    """Test on so many examples only, the first in the files; all when not given."""
    frames: FramesConfig = field(default_factory=FramesConfig)
    """Event frames."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """Augmentation."""
    reading: Literal["auto", "memory", "shards"] = "auto"
    """memory (all training rows are held, still encoded), shards (row groups are read as an epoch goes on,
    in bounded memory) or auto (shards where the rows would take more than data.memory_gb)."""
    memory_gb: float | None = None
    """Gigabytes (uncompressed, as the files' footers tell them) up to which auto holds rows in memory; 2
    when not given, on any machine: the two ways shuffle differently."""
    shuffle_rows: int | None = None
    """Rows that are shuffled together when reading by shards; as many as make 64 MB, from 1,024 to 65,536,
    when not given."""
    on_bad_row: Literal["stop", "skip"] = "stop"
    """stop at the first row that cannot be used, or skip such rows: all are looked for before training,
    counted, and listed in the run's skipped.json."""

    def __post_init__(self) -> None:
        check_no_secret("data.path", self.path)
        check(self.memory_gb is None or self.memory_gb >= 0, "data.memory_gb", self.memory_gb, "zero or more")
        for name in ("train_rows", "test_rows"):
            rows = getattr(self, name)
            check(rows is None or rows >= 1, f"data.{name}", rows, "at least 1")
        ok = self.val_share is None or 0 < self.val_share < 1
        check(ok, "data.val_share", self.val_share, "in (0, 1)")
        if self.val_share is not None and self.val_split is not None:
            raise UserError("data", "val_split and val_share exclude one another; give one of them")
        ok = self.shuffle_rows is None or self.shuffle_rows >= 1
        check(ok, "data.shuffle_rows", self.shuffle_rows, "at least 1")


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
        check(1 <= self.T <= 1024, "model.T", self.T, "between 1 and 1024")
        check(0 <= self.beta <= 1, "model.beta", self.beta, "in [0, 1]")
        check(0 < self.theta < float("inf"), "model.theta", self.theta, "a positive number")
        for name in ("hidden", "channels"):
            widths = getattr(self, name)
            ok = all(1 <= n <= MOST_WIDTH for n in widths or ())
            check(ok, f"model.{name}", widths, f"widths between 1 and {MOST_WIDTH}")
        scale = self.surrogate_scale
        ok = scale is None or 0 < scale < float("inf")
        check(ok, "model.surrogate_scale", scale, "a positive number")


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
    """Gradient accumulation steps: parts of each step's batch, to fit the memory."""
    ema: float | None = None
    """Decay of a moving average of the weights, which is then what is evaluated and kept; in (0, 1)."""
    norm_examples: int = 1024
    """Uniformly drawn examples that re-estimate batch norm before scoring and evaluation."""

    def __post_init__(self) -> None:
        check(1 <= self.epochs <= MOST_EPOCHS, "train.epochs", self.epochs, f"between 1 and {MOST_EPOCHS}")
        check(self.batch_size >= 1, "train.batch_size", self.batch_size, "at least 1")
        check(0 < self.lr < float("inf"), "train.lr", self.lr, "a positive number")
        check(0 <= self.momentum < 1, "train.momentum", self.momentum, "in [0, 1)")
        check(self.weight_decay >= 0, "train.weight_decay", self.weight_decay, "zero or more")
        check(0 <= self.warmup < 1, "train.warmup", self.warmup, "in [0, 1)")
        check(0 <= self.label_smoothing < 1, "train.label_smoothing", self.label_smoothing, "in [0, 1)")
        check(self.clip_norm is None or self.clip_norm > 0, "train.clip_norm", self.clip_norm, "positive")
        check(self.accumulate >= 1, "train.accumulate", self.accumulate, "at least 1")
        check(self.ema is None or 0 < self.ema < 1, "train.ema", self.ema, "in (0, 1)")
        check(self.norm_examples >= 2, "train.norm_examples", self.norm_examples, "at least 2")
