"""All policies side by side, behind one registry: ``make_policy("sadp", num_examples=..., ...)``."""

import inspect
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pruning.examples.inclusion import Bools, thinned, thinned_to
from pruning.examples.plan import Cost, Plan
from pruning.examples.policy import Policy
from pruning.examples.recent import Orderdp, Repb, RepbMatched, Seta, SetaMatched
from pruning.examples.sampling import Design, Doubles, Ints
from pruning.examples.settings import Settings
from pruning.examples.unweighted import Unweighted, highest

__all__ = ["POLICIES", "Cost", "Plan", "Policy", "Settings", "class_of", "make_policy", "register"]


class Full(Policy):
    """Every example in every epoch."""

    name = "full"

    def is_full(self, epoch: int) -> bool:
        """Always."""
        super().is_full(epoch)
        return True


class Random(Policy):
    """A uniform subset, drawn anew for every epoch."""

    name = "random"

    def is_uniform(self, epoch: int) -> bool:
        """Always: ``m / N`` for every present example."""
        return True


class Sadp(Policy):
    """Drawn by the spike-aware importance score: a bound of the example's gradient norm."""

    name = "sadp"
    score = "sadp"
    weight_power = 0.5


class El2n(Policy):
    """Drawn by the norm of the error vector (the score of Paul et al. 2021, arXiv 2107.07075)."""

    name = "el2n"
    score = "el2n"
    weight_power = 0.5


class Loss(Policy):
    """Drawn by the loss."""

    name = "loss"
    score = "loss"
    weight_power = 0.5


class Highest(Unweighted):
    """The ``m`` highest values, unweighted. `values` is the policy's to define."""

    def chosen(self, epoch: int) -> Ints:
        """The ``m`` highest."""
        s = self.settings
        return highest(self.values(epoch), s.size_at(epoch), s.seed, s.present)

    def values(self, epoch: int) -> NDArray[np.floating]:
        """What decides, ``[N]``; NaN counts as highest."""
        return self.scores


class Static(Highest):
    """One subset for all scored epochs: the highest scores as the first of them starts, unweighted.

    A biased design, the classic coreset; a rival, not a recommendation.

    Args:
        settings: shared settings.
        score: a registered score, or ``None`` for a random subset.
    """

    name = "static"
    rescore_every = 1

    def __init__(self, settings: Settings, *, score: str | None = "el2n") -> None:
        self.score = score
        super().__init__(settings)

    def values(self, epoch: int) -> NDArray[np.floating]:
        """The scores; all alike without a score, so that hashes decide."""
        return self.scores if self.score else np.zeros(self.settings.num_examples)

    def rescore(self, epoch: int) -> Ints | None:
        """Only before the first scored epoch."""
        return super().rescore(epoch) if epoch == self.settings.first_scored else None

    def accept(self, at: Ints, scores: NDArray[np.float32], stamp: int) -> None:
        """Scores made after the first scored epoch has started are not looked at."""
        if stamp <= 2 * self.settings.first_scored:
            super().accept(at, scores, stamp)

    def cost(self, epoch: int) -> Cost:
        """A pass before the first scored epoch only."""
        cost = super().cost(epoch)
        return cost if epoch == self.settings.first_scored else Cost(cost.examples, 0.0)


class Infobatch(Policy):
    """InfoBatch (Qin et al. 2024, arXiv 2303.04947): losses below the mean are thinned, the rest stays.

    An example below the mean loss is left out with probability ``r``; weights are inversely proportional to
    the inclusion probabilities, as InfoBatch's rescaling makes them, in this package's scale (1 on average
    over the subset; InfoBatch's own are ``N / m`` times that, which acts as a higher learning rate). Its
    annealing (the last eighth of the epochs) is the shared ``anneal_epochs``.
    """

    name = "infobatch"
    score = "loss"
    rescore_every = 0

    def importance(self, epoch: int) -> tuple[Doubles, int]:
        """Two probabilities: one below the mean loss, one above."""
        return thinned(self._low(), self.settings.ratio_at(epoch), self.settings.present)

    def examples(self, epoch: int) -> float:
        """By the present share of low losses; by a half of all before any is known."""
        share = self._low().sum() / self.settings.num_present if np.isfinite(self.scores).any() else 0.5
        return float(1 - self.settings.ratio_at(epoch) * share)

    def _low(self) -> NDArray[np.bool_]:
        """Losses below the mean of the known ones; an unknown loss is not low."""
        known = np.isfinite(self.scores)
        if self.settings.present is not None:
            known &= self.settings.present
        if not known.any():
            return np.zeros(self.settings.num_examples, bool)
        return known & (self.scores < self.scores.mean(where=known, dtype=np.float64))


class InfobatchMatched(Infobatch):
    """InfoBatch's two probabilities, scaled down together until ``m = (1 - r) N`` examples are left.

    Our adaptation, for comparisons at one budget: InfoBatch itself keeps more of the data. At high ratios its
    weights spread far more than InfoBatch's, so they are tempered (docs/results/sadp-training.md).
    """

    name = "infobatch_matched"
    weight_power = 0.5

    def importance(self, epoch: int) -> tuple[Doubles, int]:
        """In the ratio ``1 - r`` to 1, below and above the mean loss.

        Where rounding makes ``m`` more than that ratio gives, the high ones are certain and the low ones
        share what is left.
        """
        return thinned_to(
            self.settings.size_at(epoch), self._low(), self.settings.ratio_at(epoch), self.settings.present
        )

    def examples(self, epoch: int) -> float:
        """As of any policy with a fixed budget."""
        return Policy.examples(self, epoch)


class Ucb(Highest):
    """Upper confidence bound: the highest smoothed losses plus a bonus for rarely seen examples, unweighted.

    After Raju et al. 2021 (arXiv 2111.12621), in our formula: ``mean + c sd sqrt(2 log(E) / visits)`` with
    the moving average of an example's losses, the standard deviation over examples, and ``E`` epochs so far.
    A biased design; a rival, not a recommendation.

    Args:
        settings: shared settings.
        exploration: ``c``, not negative.
        smoothing: weight of the past in the moving average, in [0, 1).
    """

    name = "ucb"
    score = "loss"
    rescore_every = 0

    def __init__(self, settings: Settings, *, exploration: float = 0.1, smoothing: float = 0.8) -> None:
        if exploration < 0:
            raise ValueError(f"exploration: {exploration!r} must not be negative")
        if not 0 <= smoothing < 1:
            raise ValueError(f"smoothing: {smoothing!r} must be in [0, 1)")
        self.exploration = exploration
        self.smoothing = smoothing
        self.visits = np.zeros(settings.num_examples, np.int32)
        super().__init__(settings)

    def values(self, epoch: int) -> NDArray[np.floating]:
        """The bounds; examples never seen come first."""
        known = np.isfinite(self.scores)
        spread = float(self.scores.std(where=known, dtype=np.float64)) if known.any() else 0.0
        with np.errstate(divide="ignore", invalid="ignore"):
            bonus = np.sqrt(2 * np.log(max(epoch, 1) + 1) / self.visits)
            return self.scores + self.exploration * spread * bonus

    def accept(self, at: Ints, scores: NDArray[np.float32], stamp: int) -> None:
        """Move the average towards the new loss."""
        past = np.where(np.isfinite(self.scores[at]), self.smoothing, 0).astype(np.float32)
        old = np.nan_to_num(self.scores[at])
        finite = np.isfinite(scores)
        super().accept(at[finite], (past * old + (1 - past) * scores)[finite], stamp)
        self.visits[at[finite]] += 1

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """With the number of visits."""
        return {**super().arrays(), "visits": self.visits}


POLICIES: dict[str, type[Policy]] = {
    policy.name: policy
    for policy in (
        *(Full, Random, Static, Infobatch, InfobatchMatched, El2n, Ucb, Loss, Sadp),
        *(Seta, SetaMatched, Repb, RepbMatched, Orderdp),
    )
}
"""Every policy by its name."""
_OWN: dict[str, type[Policy]] = {}


def register(name: str, policy: type[Policy]) -> None:
    """Let `make_policy` know a policy of one's own.

    Args:
        name: ``module:attribute``; the colon keeps it apart from the names in ``POLICIES``.
        policy: a subclass of `Policy`.

    Raises:
        ValueError: a name without a colon, or another class.
    """
    if ":" not in name:
        raise ValueError(f"policy: {name!r} must have the form module:attribute")
    if not (isinstance(policy, type) and issubclass(policy, Policy)):
        raise ValueError(f"policy: {name!r} must be a subclass of Policy")
    _OWN[name] = policy


def class_of(name: str) -> type[Policy]:
    """The policy of this name.

    Raises:
        ValueError: unknown policy.
    """
    if name in _OWN:
        return _OWN[name]
    if name not in POLICIES:
        hint = (
            "import it and call policies.register" if ":" in name else f"choose one of {', '.join(POLICIES)}"
        )
        raise ValueError(f"policy: {name!r} is unknown; {hint}")
    return POLICIES[name]


def make_policy(
    name: str,
    *,
    num_examples: int,
    first_id: int = 0,
    present: Bools | None = None,
    ratio: float,
    seed: int,
    epochs: int,
    rescore_every: int | None = None,
    weight_power: float | None = None,
    design: Design = "systematic",
    **options: Any,
) -> Policy:
    """A registered policy.

    Args:
        name: a key of ``POLICIES``, or a registered one of one's own.
        num_examples: ``N``; ids run from ``first_id`` to ``first_id + N - 1``.
        first_id: the first id.
        present: mask ``[N]`` of ids that exist; all of them when not given.
        ratio: pruning ratio ``r``, the share left out, in [0, 1).
        seed: of the draws.
        epochs: length of the run.
        rescore_every: pruned epochs between scoring passes, 0 for none; the policy's own when not given.
        weight_power: power of the weights, 1 for an unbiased gradient; the policy's own when not given.
        design: ``systematic`` or ``poisson``.
        options: further fields of `Settings`, and what the policy's class takes beyond these.

    Raises:
        ValueError: an unknown policy or option, or a value outside its range.
    """
    cls = class_of(name)
    shared = [f for f in Settings.__dataclass_fields__ if f in options]
    own = set(inspect.signature(cls.__init__).parameters) - {"self", "settings"}
    unknown = sorted(set(options) - set(shared) - own)
    if unknown:
        raise ValueError(f"policy {name}: unknown option {unknown[0]!r}; it takes {sorted(own) or 'none'}")
    settings = Settings(
        num_examples=num_examples,
        first_id=first_id,
        present=None if present is None else np.array(present, dtype=bool),
        ratio=ratio,
        seed=seed,
        epochs=epochs,
        rescore_every=cls.rescore_every if rescore_every is None else rescore_every,
        weight_power=cls.weight_power if weight_power is None else weight_power,
        design=design,
        **{f: options.pop(f) for f in shared},
    )
    return cls(settings, **options)
