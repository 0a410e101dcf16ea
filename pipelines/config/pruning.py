"""Fields of the config about which examples are trained on and which weights stay."""

from dataclasses import dataclass
from typing import Literal

from pipelines.config.checks import check
from pipelines.config.training import MOST_EPOCHS
from pipelines.errors import UserError

LEAST_ALPHA = 1e-6

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


@dataclass(kw_only=True, slots=True)
class ExamplesConfig:
    """Which examples each epoch trains on."""

    policy: PolicyName | str = "sadp"
    """full (all examples), random (uniform, a new draw each epoch), sadp (by spike-aware
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
    """Weight of the uniform part in the inclusion probabilities, up to 1; bounds the weights by 1 / alpha."""
    warmup_epochs: int = 1
    """Full epochs at the start, before scores mean anything."""
    anneal_epochs: int = 1
    """Full epochs at the end."""
    stale_alpha: float = 0.3
    """alpha while scores are older than one epoch on average."""
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
        check(0 <= self.ratio < 1, "examples.ratio", self.ratio, "in [0, 1)")
        if self.ratio_from is not None:
            check(0 <= self.ratio_from < 1, "examples.ratio_from", self.ratio_from, "in [0, 1)")
        if self.weight_power is not None:
            check(0 <= self.weight_power <= 1, "examples.weight_power", self.weight_power, "in [0, 1]")
        check(LEAST_ALPHA <= self.alpha <= 1, "examples.alpha", self.alpha, f"between {LEAST_ALPHA:g} and 1")
        check(self.score_from >= 0, "examples.score_from", self.score_from, "zero or more")
        check(self.warmup_epochs >= 0, "examples.warmup_epochs", self.warmup_epochs, "zero or more")
        check(self.anneal_epochs >= 0, "examples.anneal_epochs", self.anneal_epochs, "zero or more")
        ok = LEAST_ALPHA <= self.stale_alpha <= 1
        check(ok, "examples.stale_alpha", self.stale_alpha, f"between {LEAST_ALPHA:g} and 1")
        check(
            self.rescore_every is None or self.rescore_every >= 0,
            "examples.rescore_every",
            self.rescore_every,
            "zero or more",
        )
        check(
            self.score_timesteps is None or self.score_timesteps >= 1,
            "examples.score_timesteps",
            self.score_timesteps,
            "at least 1",
        )
        check(self.diagnose_every >= 0, "examples.diagnose_every", self.diagnose_every, "zero or more")
        check(self.diagnose_examples >= 2, "examples.diagnose_examples", self.diagnose_examples, "at least 2")
        check(self.tail_depth in (0, 1), "examples.tail_depth", self.tail_depth, "0 or 1")


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
    """Held-out examples on which every layer's predicted distortion is held against the measured; 0: none."""
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
            check(0 < self.sparsity < 1, "weights.sparsity", self.sparsity, "in (0, 1)")
        if self.budget is not None:
            check(0 < self.budget < float("inf"), "weights.budget", self.budget, "a positive number")
        if self.synops is not None:
            check(0 < self.synops < 1, "weights.synops", self.synops, "in (0, 1)")
        check(
            self.calibration_examples >= 1,
            "weights.calibration_examples",
            self.calibration_examples,
            "at least 1",
        )
        check(self.measure_examples >= 4, "weights.measure_examples", self.measure_examples, "at least 4")
        check(
            self.diagnose_examples >= 0, "weights.diagnose_examples", self.diagnose_examples, "zero or more"
        )
        check(self.min_keep >= 1, "weights.min_keep", self.min_keep, "at least 1")
        self._check_rounds()
        ok = 0 <= self.retrain_epochs <= MOST_EPOCHS
        check(ok, "weights.retrain_epochs", self.retrain_epochs, f"between 0 and {MOST_EPOCHS}")
        ok = 0 < self.retrain_lr < float("inf")
        check(ok, "weights.retrain_lr", self.retrain_lr, "a positive number")

    @property
    def saves(self) -> Literal["weights", "synops"]:
        """The objective; a share of the SynOps as target asks for SynOps, anything else for weights."""
        return self.objective or ("weights" if self.synops is None else "synops")

    def _check_rounds(self) -> None:
        check(1 <= self.rounds <= 40, "weights.rounds", self.rounds, "between 1 and 40")
        if self.schedule == "one_shot":
            check(self.rounds == 1, "weights.rounds", self.rounds, "1, or choose another weights.schedule")
        if (self.schedule == "equal_distortion") != (self.budget is not None) and self.rounds > 1:
            allowed = "equal_distortion with a budget, cubic with a sparsity or a SynOps share"
            check(False, "weights.schedule", self.schedule, allowed)
