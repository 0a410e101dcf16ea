"""Targets of successive pruning rounds, as pure functions.

A round calibrates, allocates with the previous masks, applies, re-estimates batch norm statistics,
retrains and re-estimates again. Sparsities are of the dense network; budgets are spent by each round on
the weights that the round before left, and add up without retraining.
"""

from math import isfinite


def cubic(final: float, rounds: int) -> list[float]:
    """Cumulative sparsities ``final (1 - (1 - i / rounds)^3)`` for ``i = 1 .. rounds``.

    Early rounds prune much, late ones little (Zhu and Gupta 2017, arXiv 1710.01878). One round is one-shot.

    Raises:
        ValueError: ``final`` outside [0, 1), or no round.
    """
    if not 0 <= final < 1:
        raise ValueError(f"final: {final!r} must be in [0, 1)")
    return [final * (1 - (1 - i / rounds) ** 3) for i in range(1, _checked(rounds))] + [final]


def cubic_synops(final: float, rounds: int) -> list[float]:
    """Cumulative SynOps fractions for ``rounds`` rounds: ``1 - cubic(1 - final)``.

    Raises:
        ValueError: ``final`` outside (0, 1], or no round.
    """
    if not 0 < final <= 1:
        raise ValueError(f"final: {final!r} must be in (0, 1]")
    return [*(1 - pruned for pruned in cubic(1 - final, rounds)[:-1]), final]


def equal_distortion(budget: float, rounds: int) -> list[float]:
    """The part of a budget that each round spends: equal shares, so equal factors of kept energy.

    Raises:
        ValueError: a budget that is not positive, or no round.
    """
    if not (isfinite(budget) and budget > 0):
        raise ValueError(f"budget: {budget!r} must be a positive number")
    return [budget / _checked(rounds)] * rounds


def _checked(rounds: int) -> int:
    if isinstance(rounds, bool) or not isinstance(rounds, int) or rounds < 1:
        raise ValueError(f"rounds: {rounds!r} must be a whole number of at least 1")
    return rounds
