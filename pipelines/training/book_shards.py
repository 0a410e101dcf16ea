"""A score book spread over several holders by id range: the same draws as one book's, bit for bit.

A range is a union of the canonical order's blocks. Only sums, histograms and the water level travel
(`pruning.examples.inclusion`, `pruning.examples.sampling`); every holder draws its own ids.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from itertools import pairwise
from operator import add
from typing import Any

import numpy as np

from pipelines.data.ids import IdSet
from pipelines.training.score_book import (
    Drawn,
    PolicySettings,
    ScoreBook,
    Wanted,
    fingerprint,
    hexadecimal,
)
from pruning.examples.diagnostics import PlanSummary
from pruning.examples.inclusion import ScoreHistogram, WaterLevel, bin_counts, bracketing_bin, water_level
from pruning.examples.policies import class_of
from pruning.examples.policy import Policy, Source
from pruning.examples.sampling import (
    BLOCK,
    POWER_UNIT,
    STREAM_POISSON,
    UNIT,
    Correction,
    Tally,
    block_starts,
    block_sums,
    correction,
    power_sum,
    quantise,
    select_blocks,
    uniform,
)

Ask = Callable[[str, Sequence[tuple[Any, ...]]], list[Any]]
"""Calls a method of every holder, each with arguments of its own, and gathers the results in order."""


def shardable(policy: str) -> bool:
    """Whether a policy draws by water level or uniformly, so that holders can draw for themselves."""
    of = class_of(policy)
    return (
        of.importance is Policy.importance and of.select is Policy.select and of.inclusion is Policy.inclusion
    )


def split_ids(ids: IdSet, most: int) -> list[IdSet]:
    """Consecutive ranges of whole blocks, none empty, of at most ``most`` ids (or a block) beside gaps."""
    step = max(1, most // BLOCK) * BLOCK
    parts: list[IdSet] = []
    low = ids.first
    while low < ids.end:
        high = min((low // BLOCK) * BLOCK + step, ids.end)
        part = ids.part(low, high)
        if len(part):
            parts.append(part)
        else:  # a gap belongs to the range before it
            parts[-1] = ids.part(parts[-1].first, high)
        low = high
    return parts


@dataclass(frozen=True)
class Settled:
    """What all holders must know to lay out their probabilities."""

    epoch: int
    level: WaterLevel | None
    """``None`` for a uniform draw."""


@dataclass(frozen=True)
class Picked:
    """One holder's part of a draw."""

    size: int
    total: float
    squares: float
    largest: float
    smallest: float
    certain: int
    powers: int
    fingerprint: int


class BookShard(ScoreBook):
    """The part of a sharded score book that holds one range of ids."""

    def facts(self, epoch: int) -> tuple[str, int, int, int, int, int]:
        """Kind of the epoch, subset size of the whole, its population, sum and number of ages, missing."""
        policy = self._current()
        kind = "full" if policy.is_full(epoch) else "uniform" if policy.is_uniform(epoch) else "scored"
        total, count = policy.score_ages()
        return (
            kind,
            policy.settings.size_at(epoch),
            policy.settings.num_present,
            total,
            count,
            policy.num_missing(),
        )

    def weight_power(self) -> float:
        """Power of the weights in the loss."""
        return self._current().settings.weight_power

    def has_scores(self) -> bool:
        """Whether the policy draws by a score."""
        return self._current().score is not None

    def fill(self, epoch: int) -> int:
        """Draw all; their fingerprint."""
        self.take_all(epoch)
        return sum(fingerprint(ids, np.ones(len(ids), np.float32)) for ids in self._ids.blocks())

    def histogram(self) -> ScoreHistogram:
        """Round one of the water level."""
        return ScoreHistogram.of(self._current().scores, self._current().settings.present)

    def inside(self, which: int, fill: float) -> np.ndarray:
        """Round two."""
        return bin_counts(self._current().scores, which, fill, self._current().settings.present)

    def probabilities(self, settled: Settled) -> np.ndarray:
        """Inclusion probabilities of the holder's range."""
        policy = self._current()
        if settled.level is None:
            return policy.inclusion(settled.epoch)[0]
        return settled.level.probabilities(policy.scores, policy.settings.present)

    def lay(self, settled: Settled) -> Tally:
        """Hold the probabilities in units of the systematic design."""
        self._units = quantise(self.probabilities(settled))
        return Tally.of(self._units)

    def correct(self, step: Correction, offset: int) -> Tally:
        """Move the units towards the exact sum."""
        step.apply(self._units, offset)
        return Tally.of(self._units)

    def sums(self) -> dict[int, int]:
        """Of the units, by block."""
        return block_sums(self._units, self._ids.first)

    def pick(self, epoch: int, starts: dict[int, int]) -> Picked:
        """Draw by the systematic design."""
        first, seed = self._ids.first, self._current().settings.seed
        at = select_blocks(self._units, starts, seed=seed, epoch=epoch, first_id=first)
        chosen = self._units[at] / UNIT
        del self._units
        return self._hold(epoch, at, chosen)

    def pick_alone(self, settled: Settled) -> Picked:
        """Draw by the Poisson design."""
        pi, seed, first = self.probabilities(settled), self._current().settings.seed, self._ids.first
        parts = []
        for start in range(0, len(pi), BLOCK):
            part = pi[start : start + BLOCK]
            ids = np.arange(first + start, first + start + len(part))
            parts.append(np.flatnonzero(uniform(seed, settled.epoch, ids, STREAM_POISSON) < part) + start)
        at = np.concatenate(parts)
        return self._hold(settled.epoch, at, pi[at])

    def show(self, settled: Settled | None) -> None:
        """Make ready `table` with these probabilities; certain ones without."""
        self._probabilities = None if settled is None else self.probabilities(settled)

    def _hold(self, epoch: int, at: np.ndarray, chosen: np.ndarray) -> Picked:
        settings = self._current().settings
        weights = np.empty(len(at), np.float32)
        np.divide(settings.size_at(epoch) / settings.num_present, chosen, out=weights, casting="same_kind")
        ids = at + self._ids.first
        self._chosen = ids, weights
        w = weights.astype(np.float64)
        return Picked(
            size=len(w),
            total=float(w.sum()),
            squares=float((w**2).sum()),
            largest=float(w.max(initial=0)),
            smallest=float(w.min(initial=np.inf)),
            certain=int((chosen == 1).sum()),
            powers=power_sum(weights, settings.weight_power),
            fingerprint=fingerprint(ids, weights),
        )


class ShardedBook:
    """The whole book as its asker sees it (see `pipelines.training.score_book.ScoreBook`).

    Args:
        ask: reaches the holders.
        bounds: first ids of their ranges, and the end of the last.
        population: examples of all together.
    """

    def __init__(self, ask: Ask, bounds: Sequence[int], population: int) -> None:
        self._ask, self._bounds, self._population = ask, np.asarray(bounds, np.int64), population
        self._settings: PolicySettings | None = None
        self._drawn: Drawn | None = None

    def begin(self, settings: PolicySettings) -> Wanted | None:
        """Start a phase."""
        self._settings, self._drawn = replace(settings, population=self._population), None
        return self._all("begin", self._settings)[0]

    def rescore(self, epoch: int) -> np.ndarray | None:
        """Ids to score."""
        found = [ids for ids in self._all("rescore", epoch) if ids is not None]
        return np.concatenate(found) if found else None

    def open_pass(self, epoch: int) -> int:
        """Fix whom a pass scores."""
        return sum(self._all("open_pass", epoch))

    def wanted(self, ranges: np.ndarray) -> np.ndarray:
        """Ids that the pass scores."""
        return np.concatenate(self._ask("wanted", self._cut(ranges)))

    def observe(
        self,
        ids: np.ndarray,
        scores: np.ndarray,
        epoch: int,
        source: Source,
        steps: np.ndarray | None = None,
    ) -> None:
        """Deliver scores."""
        of = self._holder(ids)
        masks = [of == k for k in range(len(self._bounds) - 1)]
        at = [None if steps is None else steps[mask] for mask in masks]
        self._ask(
            "observe",
            [(ids[mask], scores[mask], epoch, source, own) for mask, own in zip(masks, at, strict=True)],
        )

    def scores(self, ids: np.ndarray) -> np.ndarray:
        """What is known of these examples."""
        of, found = self._holder(ids), np.empty(len(ids), np.float32)
        masks = [of == k for k in range(len(self._bounds) - 1)]
        for mask, part in zip(masks, self._ask("scores", [(ids[mask],) for mask in masks]), strict=True):
            found[mask] = part
        return found

    def draw(self, epoch: int) -> Drawn:
        """Decide on the epoch's examples."""
        if self._drawn is None or self._drawn.epoch != epoch:
            self._drawn = self._draw(epoch)
        return self._drawn

    def _draw(self, epoch: int) -> Drawn:
        assert self._settings is not None
        kind, size, age, missing = self._facts(epoch)
        if kind == "full":
            every, n = sum(self._all("fill", epoch)), self._population
            return Drawn(
                epoch, n, True, hexadecimal(every), PlanSummary(n, 1.0, 1.0, 1.0, 1.0, 1.0, age, 0).to_dict()
            )
        settled = self._settle(epoch)
        if self._settings.design == "poisson":
            parts = self._all("pick_alone", settled)
        else:
            tallies: list[Tally] = self._all("lay", settled)
            while (step := correction(reduce(add, tallies), size)) is not None:
                opened = [step.open(t) for t in tallies]
                before = np.cumsum([0, *opened[:-1]]).tolist()
                tallies = self._ask("correct", [(step, offset) for offset in before])
            sums: dict[int, int] = {}
            for part in self._all("sums"):
                sums |= part
            starts = block_starts(sums, seed=self._settings.seed, epoch=epoch)
            parts = self._all("pick", epoch, starts)
        scored = kind == "scored"
        drawn = _told(epoch, parts, age if scored else None, missing if scored else 0)
        power, powers = self._all("weight_power")[0], sum(p.powers for p in parts)
        if power == 1 or not drawn.size:
            return drawn
        return replace(drawn, weight_power=power, mean_power=powers / POWER_UNIT / drawn.size)

    def counts(self, ranges: np.ndarray) -> np.ndarray:
        """How many were drawn."""
        clipped = [np.clip(ranges, a, b) for a, b in pairwise(self._bounds)]
        return sum(self._ask("counts", [(c,) for c in clipped]), np.zeros(len(ranges), np.int64))

    def chosen(self, ranges: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Who was drawn, holder by holder."""
        ids, weights = zip(*self._ask("chosen", self._cut(ranges)), strict=True)
        return np.concatenate(ids), np.concatenate(weights)

    def costs(self) -> dict[str, float]:
        """Of the phase."""
        return self._all("costs")[0]

    def state_arrays(self) -> dict[str, tuple[str, int]]:
        """For a checkpoint."""
        parts = self._all("state_arrays")
        return {name: (dtype, sum(p[name][1] for p in parts)) for name, (dtype, _) in parts[0].items()}

    def state_part(self, name: str, low: int, high: int) -> np.ndarray:
        """For a checkpoint."""
        places = self._places(low, high)
        return np.concatenate(self._ask("state_part", [(name, a, b) for a, b in places]))

    def load_part(self, name: str, low: int, values: np.ndarray) -> None:
        """From a checkpoint."""
        starts = self._bounds[:-1] - self._bounds[0]
        arguments = []
        for (a, b), start in zip(self._places(low, low + len(values)), starts.tolist(), strict=True):
            arguments.append((name, a, values[a + start - low : b + start - low] if a < b else values[:0]))
        self._ask("load_part", arguments)

    def open_table(self, epoch: int) -> bool:
        """For scores.parquet."""
        if not self._all("has_scores")[0]:
            return False
        full = self._facts(epoch)[0] == "full"
        self._all("show", None if full else self._settle(epoch))
        return True

    def table(self, low: int, high: int) -> dict[str, np.ndarray]:
        """For scores.parquet."""
        parts = self._ask("table", self._clipped(low, high))
        return {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}

    def close_table(self) -> None:
        """It is written."""
        self._all("close_table")

    def _facts(self, epoch: int) -> tuple[str, int, float | None, int]:
        facts = self._all("facts", epoch)
        total, count, missing = (sum(f[i] for f in facts) for i in (3, 4, 5))
        return facts[0][0], facts[0][1], epoch - total / count / 2 if count else None, missing

    def _settle(self, epoch: int) -> Settled:
        """The water level, from two rounds of histograms."""
        assert self._settings is not None
        kind, size, age, _ = self._facts(epoch)
        if kind == "uniform" or not self._all("has_scores")[0]:
            return Settled(epoch, None)
        s = self._settings
        alpha = s.alpha if age is None or age <= 1 else max(s.alpha, s.stale_alpha)
        whole: ScoreHistogram = reduce(add, self._all("histogram"))
        which = bracketing_bin(whole, size, alpha)
        inside = reduce(add, self._all("inside", which, whole.completed().top))
        return Settled(epoch, water_level(whole, which, inside, size, alpha))

    def _all(self, method: str, *arguments: Any) -> list[Any]:
        return self._ask(method, [arguments] * (len(self._bounds) - 1))

    def _holder(self, ids: np.ndarray) -> np.ndarray:
        return np.searchsorted(self._bounds[1:], ids, side="right")

    def _cut(self, ranges: np.ndarray) -> list[tuple[np.ndarray]]:
        """The ranges' parts that each holder has."""
        return [(np.clip(ranges, a, b),) for a, b in pairwise(self._bounds)]

    def _clipped(self, low: int, high: int) -> list[tuple[int, int]]:
        bounds = self._bounds.tolist()
        return [(min(max(low, a), b), min(max(high, a), b)) for a, b in pairwise(bounds)]

    def _places(self, low: int, high: int) -> list[tuple[int, int]]:
        """Positions of the whole as positions of each holder."""
        first = int(self._bounds[0])
        cut = self._clipped(low + first, high + first)
        return [(a - s, b - s) for (a, b), s in zip(cut, self._bounds[:-1].tolist(), strict=True)]


def _told(epoch: int, parts: list[Picked], age: float | None, missing: int) -> Drawn:
    n = sum(p.size for p in parts)
    total, squares = sum(p.total for p in parts), sum(p.squares for p in parts)
    summary = PlanSummary(
        examples=n,
        effective_share=total**2 / squares / n if n else 0.0,
        max_weight=max(p.largest for p in parts),
        min_weight=min(p.smallest for p in parts) if n else 0.0,
        mean_weight=total / n if n else 0.0,
        capped_share=sum(p.certain for p in parts) / n if n else 0.0,
        mean_score_age=age,
        replaced_scores=missing,
    )
    found = hexadecimal(sum(p.fingerprint for p in parts))
    return Drawn(epoch, n, False, found, summary.to_dict())
