"""Inclusion probabilities to an epoch's subset and its Horvitz-Thompson weights.

Everything here is a pure function of (probabilities, seed, epoch): randomness comes from a hash of
(seed, epoch, id), never from a generator's state.

Two designs. ``poisson``: every id decides alone, the size varies. ``systematic`` (fixed size, Deville and
Tille 1998): the ids in a pseudorandom order, their probabilities laid end to end on a line, and one example
taken wherever a point ``u, u + 1, u + 2, ...`` falls, for one uniform ``u``. Probabilities count in units of
2^-40, so that sums are exact. The order is that of blocks of 65,536 ids and of the ids within each, permuted.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Design = Literal["systematic", "poisson"]
Ints = NDArray[np.int64]
Doubles = NDArray[np.float64]

BLOCK = 1 << 16
"""Ids per block of the canonical order; block ``k`` holds the ids from ``k * BLOCK``."""
UNIT = 1 << 40
"""Inclusion probabilities count in multiples of ``1 / UNIT``."""

# What a hash is for; different uses of one id in one epoch must not agree by construction.
STREAM_POISSON, STREAM_ORDER, STREAM_BLOCKS, STREAM_START = range(4)
STREAM_SHUFFLE, STREAM_RESCORE, STREAM_TIES, STREAM_SUBSET = range(4, 8)

_MASK = (1 << 64) - 1


def hash64(seed: int, epoch: int, ids: NDArray[np.integer], stream: int = 0) -> NDArray[np.uint64]:
    """64 pseudorandom bits per id: two rounds of splitmix64's finaliser, keyed by all arguments.

    Seed and epoch count modulo 2^64; ``stream`` is what the bits are used for. For fixed (seed, epoch,
    stream) a bijection of the id, so that no two ids tie.
    """
    key = _mix_int(_mix_int(_mix_int(int(seed) & _MASK) ^ (int(epoch) & _MASK)) ^ stream)
    h = np.asarray(ids).astype(np.uint64)
    h += np.uint64(key)
    _mix(h)
    h ^= np.uint64(_mix_int(key))
    return _mix(h)


def uniform(seed: int, epoch: int, ids: NDArray[np.integer], stream: int = 0) -> Doubles:
    """A number in [0, 1) per id, a multiple of 2^-53, from `hash64`."""
    return (hash64(seed, epoch, ids, stream) >> np.uint64(11)).astype(np.float64) * 2.0**-53


@dataclass(frozen=True, eq=False)
class Subset:
    """The examples drawn for an epoch."""

    ids: Ints
    """Ascending, ``[m]``."""
    weights: NDArray[np.float32]
    """Horvitz-Thompson: ``(m / N) / pi``, 1 on average over the subset, ``[m]``."""
    probabilities: Doubles
    """Inclusion probabilities ``pi`` of the design, ``[m]``."""


def draw(
    probabilities: Doubles,
    *,
    size: int,
    seed: int,
    epoch: int,
    design: Design = "systematic",
    first_id: int = 0,
    population: int | None = None,
) -> Subset:
    """Draw the subset of an epoch.

    Args:
        probabilities: inclusion probabilities ``[N]`` of the ids from 0 on, summing to ``size``.
        size: ``m``: the subset's size (``systematic``) or its expectation (``poisson``).
        seed: of the run.
        epoch: of the run.
        design: ``systematic`` or ``poisson``.
        first_id: id of the first probability, where these are a part of a ``poisson`` design's.
        population: ``N`` of the weights: examples that exist; by default those of positive probability.

    Raises:
        ValueError: an unknown design, probabilities outside [0, 1] or not summing to ``size``.
    """
    if first_id < 0 or (first_id and design == "systematic"):
        raise ValueError(f"first_id: {first_id!r} must not be negative, and 0 for the systematic design")
    pi = np.asarray(probabilities, dtype=np.float64)
    if pi.ndim != 1:
        raise ValueError(f"probabilities: shape {pi.shape} must be [N]")
    if len(pi) and not (pi.min() >= 0 and pi.max() <= 1):
        raise ValueError(f"probabilities: must be in [0, 1], are from {pi.min()} to {pi.max()}")
    if design == "poisson":
        chosen = [np.zeros(0, np.int64)]
        for start in range(0, len(pi), BLOCK):
            part = pi[start : start + BLOCK]
            ids = np.arange(len(part)) + (start + first_id)
            chosen.append(np.flatnonzero(uniform(seed, epoch, ids, STREAM_POISSON) < part) + start)
        at = np.concatenate(chosen)
        picked = pi[at]
    elif design == "systematic":
        units = quantise(pi)
        settle(units, size)
        at = _systematic(units, seed, epoch)
        assert len(at) == size, "systematic design: the size must be exact"
        picked = units[at] / UNIT
        del units
    else:
        raise ValueError(f"design: {design!r} is unknown; choose systematic or poisson")
    N = int(np.count_nonzero(pi)) if population is None else population
    weights = np.empty(len(at), np.float32)
    np.divide(size / N, picked, out=weights, casting="same_kind")
    at += first_id
    return Subset(at, weights, picked)


def mean_power(weights: NDArray[np.float32], power: float) -> float:
    """Mean of ``w^power``; 1 at power 1, and of none."""
    if power == 1 or not len(weights):
        return 1.0
    return float(np.power(weights, power, dtype=np.float64).mean())


def tempered(weights: NDArray[np.float32], power: float, mean: float) -> NDArray[np.float32]:
    """``w^power / mean``, and 0 where a weight is 0 (padding), ``[m]``.

    With the mean of ``w^power`` over the subset, the result is 1 on average.
    """
    if power == 1:
        return weights
    return np.where(weights > 0, np.power(weights, power, dtype=np.float64) / mean, 0).astype(np.float32)


def quantise(probabilities: Doubles) -> Ints:
    """Probabilities in units of 2^-40, rounded down, ``[n]``; what is below one unit is never drawn."""
    units = np.empty(len(probabilities), np.int64)
    for at in range(0, len(units), BLOCK):  # in parts that stay in the cache, without a second array
        np.multiply(probabilities[at : at + BLOCK], UNIT, out=units[at : at + BLOCK], casting="unsafe")
    return units


def settle(units: Ints, size: int) -> None:
    """Correct units in place until they sum to ``size`` exactly.

    All examples with ``0 < pi < 1`` that can move do, by the same number of units and, the first of them in
    id order, by one more; once or twice, except for contrived inputs.

    Raises:
        ValueError: the probabilities do not sum to ``size``.
    """
    parts = [units[at : at + BLOCK] for at in range(0, len(units), BLOCK)]
    # 2^16 units of at most 2^40 each stay below 2^63; their sum need not.
    while missing := size * UNIT - sum(int(part.sum()) for part in parts):
        down = missing < 0
        count = sum(len(_open(part, down)) for part in parts)
        # Rounding loses less than a unit each; what the probabilities themselves may lack is 2^-20 each.
        if count == 0 or abs(missing) > count << 20:
            total = size - missing / UNIT
            raise ValueError(f"probabilities: sum to {total:.9g}, must be the size, {size}")
        each, extra = divmod(abs(missing), count)
        for part in parts:
            at = _open(part, down)
            change = np.full(len(at), each, np.int64)
            change[: min(len(at), extra)] += 1
            part[at] = np.clip(part[at] + (-change if down else change), 1, UNIT)
            extra = max(extra - len(at), 0)


def _open(units: Ints, down: bool) -> Ints:
    """Positions of what can be raised (0 < pi < 1) or lowered (2^-40 < pi < 1)."""
    return np.flatnonzero((units < UNIT) & (units > (1 if down else 0)))


def _systematic(units: Ints, seed: int, epoch: int) -> Ints:
    """Positions in ``units`` that are drawn, ascending."""
    blocks = np.arange(-(-len(units) // BLOCK))
    chosen: list[NDArray[np.uint16]] = [np.zeros(0, np.uint16)] * len(blocks)  # 16 bits within a block
    start = -int(hash64(seed, epoch, np.zeros(1, np.int64), STREAM_START)[0]) % UNIT
    for k in np.argsort(hash64(seed, epoch, blocks, STREAM_BLOCKS)).tolist():
        part = units[k * BLOCK : (k + 1) * BLOCK]
        order = np.argsort(hash64(seed, epoch, np.arange(len(part)) + k * BLOCK, STREAM_ORDER))
        chosen[k] = np.sort(order[points_hit(part[order], start)]).astype(np.uint16)
        start = (start + int(part.sum())) % UNIT
    positions = np.empty(sum(map(len, chosen)), np.int64)
    filled = 0
    for k, within in enumerate(chosen):
        np.add(within, k * BLOCK, out=positions[filled : filled + len(within)], dtype=np.int64)
        filled += len(within)
    return positions


def points_hit(units: Ints, start: int) -> NDArray[np.bool_]:
    """Which of consecutive intervals of ``units`` lengths hold a multiple of 2^40, ``[n]``.

    The first interval begins at ``start``; intervals are closed below and open above.
    """
    ends = np.cumsum(units)
    ends += start - 1
    floors = ends >> 40
    return np.diff(floors, prepend=(start - 1) >> 40) > 0


def shuffled(ids: Ints, *, seed: int, epoch: int) -> Ints:
    """The ids in the epoch's training order: a function of (set of ids, seed, epoch) alone, ``[m]``."""
    ids = np.asarray(ids, dtype=np.int64)
    return ids[np.argsort(hash64(seed, epoch, ids, STREAM_SHUFFLE))]


def _mix(h: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Splitmix64's finaliser (Steele et al. 2014), in place."""
    h ^= h >> np.uint64(30)
    h *= np.uint64(0xBF58476D1CE4E5B9)
    h ^= h >> np.uint64(27)
    h *= np.uint64(0x94D049BB133111EB)
    h ^= h >> np.uint64(31)
    return h


def _mix_int(x: int) -> int:
    x = (x + 0x9E3779B97F4A7C15) & _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)
