"""Fields of the config about the data, the network and its training."""

from dataclasses import dataclass, field
from math import inf
from typing import Annotated, ClassVar, Literal

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
    check_no_secret,
)

MOST_EPOCHS = 1_000_000
MOST_PIXELS = 65_536
MOST_WIDTH = 1_000_000
PIXELS = between(0, MOST_PIXELS)
WIDTHS = Allowed(f"widths between 1 and {MOST_WIDTH}", lambda v: all(1 <= n <= MOST_WIDTH for n in v))
SIZE = Allowed("one or two positive numbers", lambda v: len(v) in (1, 2) and min(v) >= 1)
ModelName = Literal[
    "mlp", "convnet", "vgg6", "vgg9", "vgg11", "vgg16", "sew_resnet18", "sew_resnet34", "sew_resnet50",
    "ms_resnet18", "ms_resnet34", "spikformer",
]  # fmt: skip
SurrogateName = Literal["atan", "sigmoid", "triangle", "fast_sigmoid"]
LossName = Literal["rate_ce", "tet"]


@dataclass(kw_only=True, slots=True)
class FramesConfig(Checked):
    """How recordings of events become model.T frames."""

    PATH: ClassVar[str] = "data.frames"
    by: Literal["time", "count"] = "time"
    """Frames of equal duration (time), or of equally many events (count)."""
    size: Annotated[tuple[int, ...] | None, SIZE] = None
    """Height and width of the frames (one number for both); the sensor's when not given."""


@dataclass(kw_only=True, slots=True)
class AugmentConfig(Checked):
    """Augmentation of training examples, the same for any number of workers."""

    PATH: ClassVar[str] = "data.augment"
    crop: Annotated[int, PIXELS] = 0
    """Largest shift in pixels, with black beyond the border (a random crop of the padded image)."""
    flip: bool = False
    """Random horizontal flip (p = 0.5)."""
    cutout: Annotated[int, PIXELS] = 0
    """Side of a square that is blanked, in pixels."""
    roll: Annotated[int, PIXELS] = 0
    """Largest shift in pixels, with what leaves on one side entering on the other."""
    drop_time: Annotated[float, RATIO] = 0.0
    """Largest share of an example's frames that are blanked, one after the other, in [0, 1); events alone."""


@dataclass(kw_only=True, slots=True)
class DataConfig(Checked):
    """Where the examples are. `spikeprune data ingest` writes such a folder."""

    PATH: ClassVar[str] = "data"
    path: str = "data/digits"
    """Folder of Parquet files named <split>*.parquet with columns id (int64), image and label."""
    train_split: str = "train"
    """Prefix of the files with training examples."""
    test_split: str = "test"
    """Prefix of the files with test examples; with validation, measured only at the end of a phase."""
    val_split: str | None = None
    """Prefix of the files with validation examples, which every epoch is evaluated on."""
    val_share: Annotated[float | None, SHARE] = None
    """Without a split of its own, the share of the training examples that is kept for validation, in (0, 1);
    which ones depends on the seed. Reading by shards, every evaluation reads all training files."""
    train_rows: Annotated[int | None, at_least(1)] = None
    """Train on so many examples only, the first in the files; all when not given."""
    test_rows: Annotated[int | None, at_least(1)] = None
    """Test on so many examples only, the first in the files; all when not given."""
    frames: FramesConfig = field(default_factory=FramesConfig)
    """Event frames."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """Augmentation."""
    reading: Literal["auto", "memory", "shards"] = "auto"
    """memory (all training rows are held, still encoded), shards (row groups are read as an epoch goes on,
    in bounded memory) or auto (shards where the rows would take more than data.memory_gb)."""
    memory_gb: Annotated[float | None, at_least(0)] = None
    """Gigabytes (uncompressed, as the files' footers tell them) up to which auto holds rows in memory; 2
    when not given, on any machine: the two ways shuffle differently."""
    shuffle_rows: Annotated[int | None, at_least(1)] = None
    """Rows that are shuffled together when reading by shards; as many as make 64 MB, from 1,024 to 65,536,
    when not given."""

    def check_together(self) -> None:
        """Addresses without secrets, one kind of validation."""
        check_no_secret("data.path", self.path)
        if self.val_share is not None and self.val_split is not None:
            raise UserError("data", "val_split and val_share exclude one another; give one of them")


@dataclass(kw_only=True, slots=True)
class ModelConfig(Checked):
    """The spiking network."""

    PATH: ClassVar[str] = "model"
    name: ModelName | str = "mlp"
    """Architecture, from mlp (fully connected) and convnet (small strided convolutions) to deep ones; or
    package.module:attribute of your own."""
    hidden: Annotated[tuple[int, ...] | None, WIDTHS] = None
    """Widths of the fully connected spiking layers; the architecture's own when not given."""
    channels: Annotated[tuple[int, ...] | None, WIDTHS] = None
    """Channels of the convolutions (convnet, VGG), in order; the architecture's own when not given."""
    options: dict[str, bool | int | float | str] | None = None
    """Further arguments of the architecture, by name: {width: 64}."""
    T: Annotated[int, between(1, 1024)] = 4
    """Timesteps per example."""
    beta: Annotated[float, CLOSED] = 0.5
    """Share of the membrane potential kept per timestep, in [0, 1]."""
    learn_beta: bool = False
    """Let each layer learn its own beta (parametric LIF)."""
    theta: Annotated[float, FINITE] = 1.0
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
    surrogate_scale: Annotated[float | None, FINITE] = None
    """Steepness of the surrogate; its usual value when not given."""


@dataclass(kw_only=True, slots=True)
class TrainConfig(Checked):
    """How the network learns."""

    PATH: ClassVar[str] = "train"
    epochs: Annotated[int, between(1, MOST_EPOCHS)] = 12
    """Epochs of training (an epoch of a data-pruned run visits its subset once)."""
    batch_size: Annotated[int, at_least(1)] = 64
    """Examples per optimiser step over all workers together."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """sgd (Nesterov momentum) or adamw."""
    lr: Annotated[float, FINITE] = 0.1
    """Peak learning rate."""
    momentum: Annotated[float, RATIO] = 0.9
    """Momentum of sgd."""
    weight_decay: Annotated[float, Allowed("zero or more", lambda v: 0 <= v < inf)] = 5e-4
    """Weight decay."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """Learning rate over the fraction of training done."""
    warmup: Annotated[float, RATIO] = 0.05
    """Fraction of training over which the learning rate rises linearly, in [0, 1)."""
    loss: LossName = "rate_ce"
    """rate_ce (cross entropy of the time mean) or tet (mean of every timestep's cross entropy)."""
    label_smoothing: Annotated[float, RATIO] = 0.0
    """Share of the label spread over all classes, in [0, 1)."""
    max_grad_norm: Annotated[float | None, POSITIVE] = None
    """Gradient clipping (max norm); none when not given. Clipping shrinks exactly the steps that hold large
    example weights, so the gradient is no longer unbiased: leave it off, or raise data_pruning.alpha."""
    precision: Literal["float32", "bf16", "fp16"] = "float32"
    """float32, or mixed precision of the training steps: bf16, or fp16 with a scaled loss."""
    activations: Literal["keep", "pack", "recompute"] = "keep"
    """What is kept for the backward pass: keep (all that gradients need), pack (spikes as bits) or
    recompute (each layer's input alone, packed): less memory, more time."""
    grad_accum_steps: Annotated[int, at_least(1)] = 1
    """Gradient accumulation steps: parts of each step's batch, to fit the memory."""
    bn_examples: Annotated[int, at_least(2)] = 1024
    """Uniformly drawn examples that re-estimate batch norm before scoring and evaluation."""
