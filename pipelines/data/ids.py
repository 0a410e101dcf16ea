"""A set of example ids as a range and a bitmap: an eighth of a byte per id, nothing where it is dense."""

from collections.abc import Iterator

import numpy as np

MOST_IDS = 100_000_000
"""Ids that one process draws from: 16 bytes of memory each for their scores, and about 40 for a draw."""
BLOCK = 1 << 16
"""Ids that are looked at together: what walking a set costs in memory."""


class IdSet:
    """Ids in ascending order, without holding them one by one.

    Args:
        first: lowest id of the range.
        span: length of the range.
        bits: which of them are in the set, packed, uint8 ``[ceil(span / 8)]``; ``None`` for all.
    """

    def __init__(self, first: int, span: int, bits: np.ndarray | None = None) -> None:
        self.first, self.span, self._bits = first, span, bits
        self._count = span if bits is None else int(np.bitwise_count(bits).sum())
        if self._count == span:
            self._bits = None

    @classmethod
    def of(cls, ids: np.ndarray) -> "IdSet":
        """The set of these ids (unique, not empty)."""
        first = int(ids.min())
        mask = np.zeros(int(ids.max()) - first + 1, bool)
        mask[ids - first] = True
        return cls(first, len(mask), np.packbits(mask))

    def __len__(self) -> int:
        return self._count

    @property
    def dense(self) -> bool:
        """Whether every id of the range is in the set."""
        return self._bits is None

    @property
    def end(self) -> int:
        """One more than the highest id of the range."""
        return self.first + self.span

    def mask(self, low: int | None = None, high: int | None = None) -> np.ndarray:
        """Which ids of ``[low, high)`` are in the set, bool ``[high - low]``; its own range by default."""
        low, high = self.first if low is None else low, self.end if high is None else high
        inside = np.zeros(max(high - low, 0), bool)
        a, b = max(low, self.first) - self.first, min(high, self.end) - self.first
        if a < b:
            at = a + self.first - low
            inside[at : at + b - a] = True if self._bits is None else self._unpacked(a, b)
        return inside

    def array(self, low: int | None = None, high: int | None = None) -> np.ndarray:
        """The ids in ``[low, high)``, int64, ascending; all by default."""
        low, high = self.first if low is None else low, self.end if high is None else high
        ids = np.flatnonzero(self.mask(low, high))
        ids += low
        return ids

    def part(self, low: int, high: int) -> "IdSet":
        """The set within ``[low, high)``, which becomes its range."""
        return IdSet(low, high - low, np.packbits(self.mask(low, high)))

    def blocks(self) -> Iterator[np.ndarray]:
        """All ids, int64, ascending, a bounded number at a time."""
        for low in range(self.first, self.end, BLOCK):
            ids = self.array(low, min(low + BLOCK, self.end))
            if len(ids):
                yield ids

    def contains(self, ids: np.ndarray) -> np.ndarray:
        """Which of these ids are in the set, bool ``[n]``."""
        at = ids - self.first
        inside = (at >= 0) & (at < self.span)
        if self._bits is not None:
            at = np.where(inside, at, 0)
            inside &= (self._bits[at >> 3] >> (7 - (at & 7)).astype(np.uint8)) & 1 == 1
        return inside

    def without(self, ids: np.ndarray) -> "IdSet":
        """The set without these ids; the range stays."""
        bits = np.packbits(np.ones(self.span, bool)) if self._bits is None else self._bits.copy()
        at = ids[self.contains(ids)] - self.first
        np.bitwise_and.at(bits, at >> 3, ~(np.uint8(128) >> (at & 7).astype(np.uint8)))
        return IdSet(self.first, self.span, bits)

    def _unpacked(self, a: int, b: int) -> np.ndarray:
        assert self._bits is not None
        low = a >> 3
        return np.unpackbits(self._bits[low : (b + 7) >> 3])[a - 8 * low : b - 8 * low].astype(bool)


class IdCollector:
    """Gathers ids that come in any order into an `IdSet`, and finds those that come twice."""

    def __init__(self) -> None:
        self._blocks: dict[int, np.ndarray] = {}
        self.low, self.high = 0, 0
        """The range so far: lowest id, and one more than the highest."""

    def add(self, ids: np.ndarray) -> np.ndarray:
        """Take ids; those that were there already (or come twice among them) are returned."""
        if not len(ids):
            return ids
        twice: list[np.ndarray] = []
        low, high = int(ids.min()), int(ids.max()) + 1
        self.low, self.high = (min(self.low, low), max(self.high, high)) if self._blocks else (low, high)
        numbers = ids // BLOCK
        for number in np.unique(numbers).tolist():
            of_block = ids[numbers == number] - number * BLOCK
            packed = self._blocks.get(number)
            mask = np.zeros(BLOCK, bool) if packed is None else np.unpackbits(packed).astype(bool)
            counts = np.bincount(of_block, minlength=BLOCK)
            again = np.flatnonzero((counts > 1) | ((counts > 0) & mask))
            if len(again):
                twice.append(again + number * BLOCK)
            mask[of_block] = True
            self._blocks[number] = np.packbits(mask)
        return np.concatenate(twice) if twice else np.zeros(0, np.int64)

    def result(self) -> IdSet:
        """The set."""
        bits = np.zeros(-(-(self.high - self.low) // 8), np.uint8)
        for number in list(self._blocks):
            mask = np.unpackbits(self._blocks.pop(number)).astype(bool)
            ids = np.flatnonzero(mask) + (number * BLOCK - self.low)
            np.bitwise_or.at(bits, ids >> 3, np.uint8(128) >> (ids & 7).astype(np.uint8))
        return IdSet(self.low, self.high - self.low, bits)
