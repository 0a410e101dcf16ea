"""What a plan's weights and probabilities say of it; NumPy alone, for processes that train nothing."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pruning.examples.policies.base import Plan


def effective_sample_size(weights: NDArray[np.floating]) -> float:
    """``(sum w)^2 / sum w^2``: how many equally weighted examples the subset is worth."""
    w = np.asarray(weights, dtype=np.float64)
    return float(w.sum() ** 2 / (w @ w)) if len(w) else 0.0


@dataclass(frozen=True)
class PlanSummary:
    """What a plan's weights and probabilities say of it."""

    examples: int
    """Size of the subset."""
    effective_share: float
    """Effective sample size over the size, in (0, 1]."""
    max_weight: float
    min_weight: float
    mean_weight: float
    """1 in expectation."""
    capped_share: float
    """Share of the subset that was certain to be drawn."""
    mean_score_age: float | None
    """In epochs; ``None`` without scores."""
    replaced_scores: int
    """Present examples whose score was missing or not finite."""


def summarise(plan: Plan) -> PlanSummary:
    """Effective sample size, weight extremes, capped share and score age of a plan."""
    w = plan.weights.astype(np.float64)
    pi = np.ones(len(w)) if plan.probabilities is None else plan.probabilities
    return PlanSummary(
        examples=len(w),
        effective_share=effective_sample_size(w) / max(len(w), 1),
        max_weight=float(w.max(initial=0)),
        min_weight=float(w.min()) if len(w) else 0.0,
        mean_weight=float(w.sum()) / max(len(w), 1),
        capped_share=int((pi == 1).sum()) / max(len(w), 1),
        mean_score_age=plan.mean_score_age,
        replaced_scores=plan.replaced_scores,
    )
