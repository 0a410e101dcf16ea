"""Settings that every example-pruning policy has, checked."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from pruning.examples.inclusion import Bools, subset_size
from pruning.examples.sampling import Design, Ints

Who = Literal["all", "unselected", "sample"]

FORWARD_COST = 0.31
"""A forward pass over all examples in units of a training epoch (measured on convolutional nets)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Settings:
    """Settings that every policy has.

    Raises:
        ValueError: a value outside its range, named with its field.
    """

    num_examples: int
    """``N``: ids run from 0 to ``N - 1``."""
    present: Bools | None = None
    """Mask ``[N]`` of ids that exist; ``None`` for all."""
    ratio: float
    """Pruning ratio ``r``, the share left out of a pruned epoch, in [0, 1)."""
    ratio_from: float | None = None
    """Pruning ratio of the first pruned epoch, from which it moves linearly to ``ratio`` in the last one;
    ``ratio`` throughout when not given."""
    seed: int
    """Of the draws."""
    epochs: int
    """Length of the run."""
    warmup_epochs: int = 1
    """Full epochs at the start."""
    anneal_epochs: int = 1
    """Full epochs at the end."""
    score_from: int = 0
    """First epoch that may draw by scores: pruned epochs before it draw uniformly, without scoring passes."""
    alpha: float = 0.1
    """Share of the uniform mixture: no weight exceeds ``1 / alpha``."""
    stale_alpha: float = 0.3
    """The same where scores are older than one epoch on average."""
    rescore_every: int = 0
    """Pruned epochs from one scoring pass to the next; 0 for none: scores come from the training steps."""
    rescore_who: Who = "all"
    """Which examples a scoring pass covers: all, those not selected last epoch, or a random sample."""
    rescore_share: float = 0.25
    """Size of that sample, as a share of all."""
    design: Design = "systematic"
    """``systematic`` (fixed size) or ``poisson``."""
    weight_power: float = 1.0
    """Power of the weights in the loss, in [0, 1]; they are rescaled to mean 1 over the epoch. At 1 the
    gradient is unbiased; a lower power has less variance and a bias towards examples of high score."""
    scoring_cost: float = FORWARD_COST
    """A pass over all examples, in units of a full training epoch (half of it at half the timesteps)."""

    def __post_init__(self) -> None:
        if self.num_examples < 1:
            raise ValueError(f"num_examples: {self.num_examples!r} must be at least 1")
        if not isinstance(self.seed, int | np.integer) or isinstance(self.seed, bool):
            raise ValueError(f"seed: {self.seed!r} must be a whole number")
        if self.present is not None and self.present.shape != (self.num_examples,):
            raise ValueError(f"present: shape {self.present.shape} must be ({self.num_examples},)")
        if self.present is not None and not self.present.any():
            raise ValueError("present: holds no example")
        for name in ("warmup_epochs", "anneal_epochs", "score_from", "rescore_every", "scoring_cost"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: {getattr(self, name)!r} must not be negative")
        if self.warmup_epochs + self.anneal_epochs > self.epochs:
            raise ValueError(
                f"epochs: {self.epochs!r} must be at least warmup_epochs + anneal_epochs, "
                f"{self.warmup_epochs} + {self.anneal_epochs}"
            )
        if self.score_from > self.epochs:
            raise ValueError(f"score_from: {self.score_from!r} must be at most epochs, {self.epochs}")
        for name in ("alpha", "stale_alpha", "weight_power"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: {getattr(self, name)!r} must be in [0, 1]")
        if not 0 < self.rescore_share <= 1:
            raise ValueError(f"rescore_share: {self.rescore_share!r} must be in (0, 1]")
        for name, allowed in (("rescore_who", Who), ("design", Design)):
            if getattr(self, name) not in allowed.__args__:  # type: ignore[attr-defined]
                choices = ", ".join(allowed.__args__)  # type: ignore[attr-defined]
                raise ValueError(f"{name}: {getattr(self, name)!r} is unknown; choose one of {choices}")
        subset_size(self.num_present, self.ratio)
        if self.ratio_from is not None and not 0 <= self.ratio_from < 1:
            raise ValueError(f"ratio_from: {self.ratio_from!r} must be in [0, 1)")

    def ratio_at(self, epoch: int) -> float:
        """Pruning ratio of an epoch that is neither warm-up nor annealing."""
        if self.ratio_from is None:
            return self.ratio
        steps = self.epochs - self.warmup_epochs - self.anneal_epochs - 1
        done = min(max(epoch - self.warmup_epochs, 0) / steps, 1.0) if steps > 0 else 1.0
        return self.ratio_from + (self.ratio - self.ratio_from) * done

    def size_at(self, epoch: int) -> int:
        """Examples of such an epoch: ``m``."""
        return subset_size(self.num_present, self.ratio_at(epoch))

    @property
    def num_present(self) -> int:
        """Examples that exist."""
        return self.num_examples if self.present is None else int(self.present.sum())

    @property
    def positions(self) -> Ints:
        """Ids of the present examples, ascending."""
        return np.arange(self.num_examples) if self.present is None else np.flatnonzero(self.present)

    def among_present(self, mask: Bools) -> Bools:
        """A mask ``[N]`` of ids without those that do not exist."""
        return mask if self.present is None else mask & self.present

    @property
    def first_scored(self) -> int:
        """The first epoch that is neither warm-up nor before ``score_from``."""
        return max(self.warmup_epochs, self.score_from)
