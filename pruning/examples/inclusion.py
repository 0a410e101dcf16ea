"""Scores to inclusion probabilities: a defensive mixture, then water-filling.

For scores ``s_i`` of the ``N`` present examples and an expected subset size ``m``::

    s~_i = (1 - alpha) s_i / mean(s) + alpha          defensive mixture
    pi_i = min(1, c s~_i)   with c such that sum pi = m          water-filling

Why: docs/methods-sadp.md. Scores count as float32. Two histograms over the bit patterns of the floats
(65,280 bins, then the 32,768 values of the bin that holds the water level) give the level without a sort.
They hold integers only, so they add exactly: the probabilities are the same, bit for bit, however the
examples are parted.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from math import fsum

import numpy as np
from numpy.typing import NDArray

from pruning.examples.sampling import Doubles, Ints

Floats = NDArray[np.floating]
Bools = NDArray[np.bool_]

_LOW_BITS = 15
_BINS = 0xFF00
_LOW = 1 << _LOW_BITS
_CHUNK = 1 << 20


def subset_size(num_examples: int, ratio: float) -> int:
    """Examples per epoch: ``m = max(1, round((1 - ratio) num_examples))``.

    Raises:
        ValueError: no example, or a ratio (the share left out) outside [0, 1).
    """
    if num_examples < 1:
        raise ValueError(f"num_examples: {num_examples!r} must be at least 1")
    if not 0 <= ratio < 1:
        raise ValueError(f"ratio: {ratio!r} must be in [0, 1)")
    return max(1, round((1 - ratio) * num_examples))


@dataclass(frozen=True, eq=False)
class ScoreHistogram:
    """What a part of the data tells of its scores; parts add up with ``+`` (exactly, in any order)."""

    counts: Ints
    """Scores per bin, ``[65280]``; a bin holds the floats that share their upper 16 bits."""
    low: Ints
    """Sum over each bin of the scores' lower 15 bits, ``[65280]``: with the counts, the exact sum."""
    zeros: int
    """Scores that are 0 (or were negative)."""
    replaced: int
    """Scores that are not finite; they count as the largest finite one."""
    top: float
    """The largest finite score; -1 where there is none."""

    @classmethod
    def of(cls, scores: Floats, present: Bools | None = None) -> "ScoreHistogram":
        """The histogram of one part's scores ``[n]``, of the present ones if a mask ``[n]`` is given."""
        counts = np.zeros(_BINS, np.int64)
        low = np.zeros(_BINS, np.int64)
        zeros = replaced = 0
        top = -1.0
        for part in _chunks(scores, present):
            finite = part[~np.isnan(part)]
            replaced += len(part) - len(finite)
            if not len(finite):
                continue
            bits = finite.view(np.uint32)
            bins = (bits >> _LOW_BITS).astype(np.intp)
            counts += np.bincount(bins, minlength=_BINS)
            # Exact: a float64 sum of at most 2^20 integers below 2^15.
            low += np.bincount(bins, weights=bits & (_LOW - 1), minlength=_BINS).astype(np.int64)
            zeros += int((bits == 0).sum())
            top = max(top, float(finite.max()))
        return cls(counts, low, zeros, replaced, top)

    def __add__(self, other: "ScoreHistogram") -> "ScoreHistogram":
        return ScoreHistogram(
            self.counts + other.counts,
            self.low + other.low,
            self.zeros + other.zeros,
            self.replaced + other.replaced,
            max(self.top, other.top),
        )

    @property
    def total(self) -> int:
        """``N``: the examples counted, those with non-finite scores included."""
        return int(self.counts.sum()) + self.replaced

    def completed(self) -> "ScoreHistogram":
        """The same with non-finite scores counted as the largest finite one (as 1 where none is)."""
        if not self.replaced:
            return self
        top = self.top if self.top >= 0 else 1.0
        bits = int(np.float32(top).view(np.uint32))
        counts, low = self.counts.copy(), self.low.copy()
        counts[bits >> _LOW_BITS] += self.replaced
        low[bits >> _LOW_BITS] += self.replaced * (bits & (_LOW - 1))
        zeros = self.zeros + (self.replaced if bits == 0 else 0)
        return ScoreHistogram(counts, low, zeros, 0, top)

    def masses(self) -> Doubles:
        """Sum of the scores in each bin, ``[65280]``."""
        first, scale = _all_bins()
        return (self.counts * first + self.low) * scale


@dataclass(frozen=True)
class WaterLevel:
    """Inclusion probability as a function of the score: 1 above ``cap``, else ``slope s + offset``."""

    slope: float
    offset: float
    cap: float
    """Scores above it are included for certain; at least one float below the smallest capped score."""
    fill: float
    """The score of examples whose own is not finite."""

    def probabilities(self, scores: Floats, present: Bools | None = None) -> Doubles:
        """``pi`` float64 ``[n]`` of one part; 0 where not present."""
        out = np.zeros(len(scores), np.float64)
        for start in range(0, len(scores), _CHUNK):
            part = _finite_nonnegative(scores[start : start + _CHUNK])
            part[np.isnan(part)] = self.fill
            pi = part.astype(np.float64)
            pi *= self.slope
            pi += self.offset
            np.minimum(pi, 1.0, out=pi)
            pi[part > self.cap] = 1.0
            if present is not None:
                pi[~present[start : start + _CHUNK]] = 0.0
            out[start : start + _CHUNK] = pi
        return out


def bracketing_bin(histogram: ScoreHistogram, size: int, alpha: float) -> int:
    """The bin of the histogram of all parts that holds the water level (round one); arguments checked.

    Raises:
        ValueError: a size ``m`` that is not from 1 to ``N``, or an alpha outside [0, 1].
    """
    if not 1 <= size <= histogram.total:
        raise ValueError(
            f"size: {size!r} must be from 1 to the number of present examples, {histogram.total}"
        )
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha: {alpha!r} must be in [0, 1]")
    h = histogram.completed()
    edges, scale = _all_bins()
    expected = _expected_size(edges * scale, h.counts, h.masses(), h, alpha)
    return int(np.flatnonzero(expected >= size)[-1])


def bin_counts(scores: Floats, which: int, fill: float, present: Bools | None = None) -> Ints:
    """How many of a part's scores equal each float of a bin, ``[32768]`` (round two; counts add up).

    ``fill`` is what non-finite scores count as: the histogram's ``top`` after ``completed()``.
    """
    counts = np.zeros(_LOW, np.int64)
    for part in _chunks(scores, present):
        part[np.isnan(part)] = fill
        bits = part.view(np.uint32)
        inside = bits[(bits >> _LOW_BITS) == which]
        counts += np.bincount((inside & (_LOW - 1)).astype(np.intp), minlength=_LOW)
    return counts


def water_level(histogram: ScoreHistogram, which: int, inside: Ints, size: int, alpha: float) -> WaterLevel:
    """The exact level (to a float64's rounding) from the bin and the `bin_counts` of all parts."""
    N, h = histogram.total, histogram.completed()
    if size == N or h.zeros == N:
        return WaterLevel(0.0, size / N, np.inf, h.top)
    if alpha == 0 and size >= N - h.zeros:
        # Every positive score is certain; what is left is spread evenly over the zeros.
        return WaterLevel(0.0, (size - (N - h.zeros)) / h.zeros, 0.0, h.top)
    masses = h.masses()
    mean = _sum(masses) / N
    first, scale = _bin_floats(np.array([which]))
    significands = first[0] + np.arange(_LOW)
    values = significands * scale[0]
    inside_masses = inside * significands * scale[0]
    above, below = int(h.counts[which + 1 :].sum()), masses[:which]
    expected = _expected_size(
        values, inside, inside_masses, h, alpha, more_above=above, more_below=_sum(below)
    )
    last = int(np.flatnonzero(expected >= size)[-1]) if (expected >= size).any() else 0
    capped = above + int(inside[last + 1 :].sum())
    open_mass = _sum(np.concatenate([below, inside_masses[: last + 1]]))
    c = (size - capped) / ((1 - alpha) * open_mass / mean + alpha * (N - capped))
    return WaterLevel(
        slope=c * (1 - alpha) / mean,
        offset=max(c * alpha, alpha * size / N),
        cap=float(np.float32(values[last])),
        fill=h.top,
    )


def inclusion_probabilities(
    scores: Floats, size: int, *, alpha: float, present: Bools | None = None
) -> Doubles:
    """Inclusion probabilities of the module's equations; no sort, so linear in ``N``.

    Args:
        scores: ``[N]``. Negative ones count as 0. NaN, infinities and what overflows float32 count as the
            largest finite score, so that an example whose score failed is likelier to be trained on, never
            dropped; where nothing is finite, all count as 1.
        size: ``m``, from 1 to the number of present examples.
        alpha: share of the uniform mixture, in [0, 1].
        present: mask ``[N]`` of examples that exist; all of them when not given.

    Returns:
        float64 ``[N]``, summing to ``size``, each from ``alpha m / N`` to 1; 0 where not present.

    Raises:
        ValueError: a value or shape outside its range.
    """
    scores = np.asarray(scores)
    if scores.ndim != 1:
        raise ValueError(f"scores: shape {scores.shape} must be [N]")
    if present is not None and present.shape != scores.shape:
        raise ValueError(f"present: shape {present.shape} must be {scores.shape}")
    histogram = ScoreHistogram.of(scores, present)
    which = bracketing_bin(histogram, size, alpha)
    inside = bin_counts(scores, which, histogram.completed().top, present)
    return water_level(histogram, which, inside, size, alpha).probabilities(scores, present)


def _expected_size(
    levels: Doubles,
    counts: Ints,
    masses: Doubles,
    h: ScoreHistogram,
    alpha: float,
    *,
    more_above: int = 0,
    more_below: float = 0.0,
) -> Doubles:
    """``sum_i min(1, s~_i / s~(level))`` for ascending levels, whose cells hold ``counts`` and ``masses``.

    It falls as the level rises; the water level is where it passes ``m``.
    """
    N = h.total
    mean = _sum(h.masses()) / N
    if mean == 0:
        return np.full(len(levels), float(N))
    above = more_above + np.cumsum(counts[::-1])[::-1]
    below = more_below + np.concatenate([[0.0], np.cumsum(masses)[:-1]])
    mixed = (1 - alpha) * levels / mean + alpha
    rest = (1 - alpha) * below / mean + alpha * (N - above)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(mixed > 0, above + rest / mixed, float(N))


@cache
def _all_bins() -> tuple[Doubles, Doubles]:
    return _bin_floats(np.arange(_BINS))


def _bin_floats(bins: NDArray[np.integer]) -> tuple[Doubles, Doubles]:
    """Integer significand of the first float32 of each bin, and what it is multiplied by."""
    exponent = bins >> (23 - _LOW_BITS)
    fraction = (bins & ((1 << (23 - _LOW_BITS)) - 1)) << _LOW_BITS
    first = np.where(exponent > 0, fraction + (1 << 23), fraction).astype(np.float64)
    return first, np.ldexp(1.0, np.maximum(exponent, 1) - 150)


def _sum(masses: Doubles) -> float:
    """Correctly rounded."""
    return fsum(masses[masses > 0].tolist())


def _finite_nonnegative(scores: Floats) -> NDArray[np.float32]:
    """A float32 copy: negative to 0, non-finite to NaN."""
    with np.errstate(over="ignore", invalid="ignore"):
        clean = np.array(scores, dtype=np.float32)
    clean[np.isinf(clean)] = np.nan
    np.maximum(clean, 0.0, out=clean)
    clean += 0.0  # -0.0 has a bit pattern of its own
    return clean


def _chunks(scores: Floats, present: Bools | None) -> Iterator[NDArray[np.float32]]:
    for start in range(0, len(scores), _CHUNK):
        part = scores[start : start + _CHUNK]
        yield _finite_nonnegative(part if present is None else part[present[start : start + _CHUNK]])
