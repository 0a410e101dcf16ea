"""A budget to masks: which weights a network keeps, exactly.

All criteria share one mechanism (`pruning.weights.criteria`): the weights of all layers stand in one order,
ascending in score, and the longest prefix that the target allows is pruned. With distortion scores that
prefix is the optimum (docs/methods-slamp.md, section 4); the predicted distortion is an estimate, no bound.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

import numpy as np
import torch

from pruning.weights.calibration import Calibration
from pruning.weights.criteria import CRITERIA, LayerRule, Objective
from pruning.weights.masks import Masks
from pruning.weights.order import LayerRanking, Prefix
from pruning.weights.targets import BudgetOver, Target
from snn.layers import Synapses
from snn.observing import Network


@dataclass(frozen=True, kw_only=True)
class LayerAllocation:
    """One row of the table: what a layer keeps and what that is predicted to cost."""

    name: str
    numel: int
    kept: int
    density: float
    coefficient: float
    """``c``: distortion per unit of -log kept energy share."""
    sensitivity: float | None
    """Of the calibration; None where it was not measured."""
    price: float | None
    """Synaptic operations per weight and example; None without a calibration."""
    distortion: float
    """``c`` times -log kept energy share, or the curve's value: an estimate in the criterion's units."""
    removed_energy: float
    """Share of the surviving weights' sum of squares that was removed, in [0, 1)."""
    at_minimum: bool
    """Nothing but protected weights is left."""


@dataclass(frozen=True, kw_only=True)
class Allocation:
    """Masks and how they came about."""

    masks: Masks
    layers: tuple[LayerAllocation, ...]
    criterion: str
    objective: Objective
    budget_over: BudgetOver
    budget: float
    """Distortion spent, normalised: the mean -log kept energy share, weighted by ``c`` over the layers
    that were not excluded; with curves the sum over layers, in variances of the logits. With ``max_t``, ``T``
    times the worst timestep's part of it."""
    synops_fraction: float | None
    """SynOps of the kept weights over those of all, at the calibrated activity; None without one."""
    step_distortion: tuple[float, ...] | None
    """Distortion by timestep where it was measured (curves); with ``max_t`` none exceeds its part."""
    step_weights: tuple[float, ...] | None
    """Lagrange weights of the timesteps, adding up to 1 (``max_t`` only)."""
    duality_gap: float | None
    """Relative distance to the best that any masks could reach (``max_t`` only), at least that small."""

    @property
    def sparsity(self) -> float:
        """Pruned weights over all weights."""
        return self.masks.sparsity

    def to_dict(self) -> dict[str, Any]:
        """Everything but the masks, as plain values for JSON, with their fingerprint."""
        values = {k: v for k, v in vars(self).items() if k not in ("masks", "layers")}
        plain = {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}
        return {
            **plain,
            "sparsity": self.sparsity,
            "fingerprint": self.masks.fingerprint(),
            "layers": [dict(vars(layer)) for layer in self.layers],
        }


def allocate(
    model: Network,
    calibration: Calibration | None = None,
    *,
    criterion: str = "slamp",
    objective: Objective | None = None,
    budget: float | None = None,
    sparsity: float | None = None,
    synops_fraction: float | None = None,
    min_keep: int = 1,
    exclude: Sequence[str] = (),
    previous: Masks | None = None,
    budget_over: BudgetOver = "sum",
) -> Allocation:
    """Masks that meet one target at least predicted distortion, or spend a budget to the full.

    Args:
        model: network whose weight layers are pruned; it is not changed.
        calibration: of this network; needed by criteria that measure and by anything about SynOps.
        criterion: a key of `pruning.weights.criteria.CRITERIA`, or registered there.
        objective: what a unit of distortion buys: removed ``weights``, or removed ``synops`` (scores are
            divided by each layer's SynOps per weight); by default what the target counts: ``synops`` for
            ``synops_fraction``, else ``weights``.
        budget: mean -log kept energy share, weighted by the criterion's coefficients, positive; for
            ``slamp_curve`` the change of the logits over their variance.
        sparsity: share of all weights to prune, excluded layers counted, in [0, 1); the number of pruned
            weights is the nearest whole number.
        synops_fraction: of the dense network's SynOps at the calibrated activity, to keep at most, (0, 1].
        min_keep: surviving weights that every layer keeps at least.
        exclude: names of layers to leave alone.
        previous: masks of an earlier round: pruned weights stay pruned, budgets count from the survivors'
            energy, sparsity and fraction from the dense network.
        budget_over: ``sum`` of the distortion over timesteps, or, for ``slamp_curve``, ``max_t``: every
            timestep within an equal part of the budget (as a target: the least maximum over timesteps).

    Returns:
        masks, the per-layer table and the implied budget.

    Raises:
        ValueError: not exactly one target, a target that cannot be reached (with the nearest that can), an
            unknown criterion or layer, weights that are not finite, a missing or foreign calibration.
    """
    objective = objective or ("weights" if synops_fraction is None else "synops")
    synapses = model.synapses()
    protected = check_request(
        model,
        criterion=criterion,
        objective=objective,
        budget=budget,
        sparsity=sparsity,
        synops_fraction=synops_fraction,
        min_keep=min_keep,
        exclude=exclude,
        previous=previous,
        budget_over=budget_over,
    )
    _check_calibration(calibration, synapses, objective == "synops" or synops_fraction is not None)

    rules = CRITERIA[criterion](synapses, calibration, objective)
    if budget_over == "max_t":
        budget_over = _over_timesteps(rules, calibration, criterion)
    numel = np.array([s.layer.weight.numel() for s in synapses])
    price = None if calibration is None else np.array([layer.price for layer in calibration.layers])
    divisors = np.ones(len(synapses)) if objective == "weights" or price is None else price
    layers = _rankings(synapses, rules, divisors, protected, previous)
    target = Target(layers, rules, numel, price, [s.name not in exclude for s in synapses], budget_over)
    if budget is not None:
        prefix, steps = target.budget(budget, objective)
    elif sparsity is not None:
        prefix, steps = target.sparsity(sparsity)
    else:
        assert synops_fraction is not None
        prefix, steps = target.synops(synops_fraction)
    masks = _masks(synapses, layers, prefix, previous)
    return Allocation(
        masks=masks,
        layers=_table(synapses, target, prefix, masks, previous, calibration),
        criterion=criterion,
        objective=objective,
        budget_over=budget_over,
        budget=target.spent(prefix),
        synops_fraction=target.synops_left(prefix),
        step_distortion=tuple(prefix.spent.sum(0).tolist()) if rules[0].curve else None,
        step_weights=None if steps is None else steps.weights,
        duality_gap=None if steps is None else steps.gap,
    )


def _check_calibration(
    calibration: Calibration | None, synapses: Sequence[Synapses], counts_synops: bool
) -> None:
    if calibration is None and counts_synops:
        raise ValueError("calibration: needed for SynOps")
    if calibration is not None and [c.name for c in calibration.layers] != [s.name for s in synapses]:
        raise ValueError("calibration: of a network with other layers")


def _rankings(
    synapses: Sequence[Synapses],
    rules: Sequence[LayerRule],
    divisors: np.ndarray,
    protected: dict[str, int],
    previous: Masks | None,
) -> list[LayerRanking]:
    return [
        LayerRanking(
            s.name,
            rule,
            None if previous is None else previous[s.name].cpu().flatten().numpy(),
            protected[s.name],
            price=float(divisor),
        )
        for s, rule, divisor in zip(synapses, rules, divisors, strict=True)
    ]


def check_request(
    model: Network,
    *,
    criterion: str = "slamp",
    objective: str = "weights",
    budget: float | None = None,
    sparsity: float | None = None,
    synops_fraction: float | None = None,
    min_keep: int = 1,
    exclude: Sequence[str] = (),
    previous: Masks | None = None,
    budget_over: str = "sum",
) -> dict[str, int]:
    """Refuse what `allocate` would, of the arguments that need no calibration: call it before you calibrate.

    Returns:
        surviving weights that each layer keeps at least, by name.

    Raises:
        ValueError: as `allocate`.
    """
    CRITERIA[criterion]  # or its error
    if objective not in ("weights", "synops"):
        raise ValueError(f"objective: {objective!r} is unknown; choose weights or synops")
    if budget_over not in ("sum", "max_t"):
        raise ValueError(f"budget_over: {budget_over!r} is unknown; choose sum or max_t")
    if sum(value is not None for value in (budget, sparsity, synops_fraction)) != 1:
        raise ValueError("target: give exactly one of budget, sparsity, synops_fraction")
    if budget is not None and not (isfinite(budget) and budget > 0):
        raise ValueError(f"budget: {budget!r} must be a positive number")
    if sparsity is not None and not 0 <= sparsity < 1:
        raise ValueError(f"sparsity: {sparsity!r} must be in [0, 1)")
    if synops_fraction is not None and not 0 < synops_fraction <= 1:
        raise ValueError(f"synops_fraction: {synops_fraction!r} must be in (0, 1]")
    protected = _protected(model.synapses(), min_keep, exclude)
    if previous is not None:
        previous.check(model)
    return protected


def _protected(synapses: Sequence[Synapses], min_keep: int, exclude: Sequence[str]) -> dict[str, int]:
    """Surviving weights that each layer keeps at least, by name."""
    if isinstance(min_keep, bool) or not isinstance(min_keep, int) or min_keep < 1:
        raise ValueError(f"min_keep: {min_keep!r} must be a whole number of at least 1")
    found = {s.name: min_keep for s in synapses}
    for name in exclude:
        if name not in found:
            raise ValueError(f"exclude: layer {name!r} is unknown; the model has {', '.join(found)}")
    return found | {s.name: s.layer.weight.numel() for s in synapses if s.name in exclude}


def _over_timesteps(
    rules: Sequence[LayerRule], calibration: Calibration | None, criterion: str
) -> BudgetOver:
    """``max_t``, or ``sum`` where there is one timestep and no curve to tell it by."""
    if all(rule.curve is not None for rule in rules):
        return "max_t"
    if calibration is None or calibration.T > 1:
        raise ValueError(
            f"budget_over: max_t needs the distortion of every timestep, which {criterion!r} does not"
            " measure; choose slamp_curve, or sum"
        )
    return "sum"


def _masks(
    synapses: Sequence[Synapses],
    layers: Sequence[LayerRanking],
    prefix: Prefix,
    previous: Masks | None,
) -> Masks:
    masks = {}
    for s, layer, count in zip(synapses, layers, prefix.counts, strict=True):
        weight = s.layer.weight
        # Contiguous, whatever the memory format of the weights that the earlier masks were made of.
        mask = (
            torch.ones(weight.shape, dtype=torch.bool)
            if previous is None
            else previous[s.name].cpu().clone(memory_format=torch.contiguous_format)
        )
        mask.view(-1)[torch.from_numpy(layer.pruned(int(count)))] = False
        masks[s.name] = mask.to(weight.device)
    return Masks(masks)


def _table(
    synapses: Sequence[Synapses],
    target: Target,
    prefix: Prefix,
    masks: Masks,
    previous: Masks | None,
    calibration: Calibration | None,
) -> tuple[LayerAllocation, ...]:
    def row(i: int, s: Synapses) -> LayerAllocation:
        known = None if calibration is None else calibration[s.name]
        numel, kept = int(target.numel[i]), int(target.survivors[i] - prefix.counts[i])
        return LayerAllocation(
            name=s.name,
            numel=numel,
            kept=kept,
            density=kept / numel,
            coefficient=target.coefficients[i],
            sensitivity=None if known is None else known.sensitivity,
            price=None if known is None else known.price,
            distortion=float(prefix.spent[i].sum()),
            removed_energy=_removed_energy(s, masks, previous),
            at_minimum=bool(target.candidates[i] > 0 and prefix.counts[i] == target.candidates[i]),
        )

    return tuple(row(i, s) for i, s in enumerate(synapses))


def _removed_energy(s: Synapses, masks: Masks, previous: Masks | None) -> float:
    square = s.layer.weight.detach().double().square()
    before = float((square if previous is None else square * previous[s.name].to(square.device)).sum())
    return 1 - float((square * masks[s.name]).sum()) / before if before else 0.0
