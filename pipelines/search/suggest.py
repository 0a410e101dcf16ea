"""Which values the next trial takes: a Tune searcher that writes every suggestion down first.

After a kill the trials that were open come again under their numbers, the sampler is told of those
that ended, and the search goes on: no state but the records is needed.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Protocol

from ray.tune.search import Searcher

from pipelines.search.config import SearchConfig
from pipelines.search.journal import Journal, Record
from pipelines.search.objectives import Objective
from pipelines.search.space import Choice, Dimension, Range, Space


class Sampler(Protocol):
    """Where new values come from."""

    def next(self, trial: str, number: int) -> dict[str, Any] | None:
        """Values of the trial of this number; ``None`` when there are no more."""
        ...

    def learn(self, trial: str | None, record: Record) -> None:
        """What became of a trial; ``trial`` is ``None`` for one that this sampler did not suggest."""
        ...


class Grid:
    """All combinations, in order."""

    def __init__(self, space: Space, points: int) -> None:
        self._space, self._points = space, points

    def next(self, trial: str, number: int) -> dict[str, Any] | None:
        """The combination of that place."""
        return next(islice(self._space.grid(self._points), number, None), None)

    def learn(self, trial: str | None, record: Record) -> None:
        """Nothing."""


class Random:
    """Independent draws that depend on seed and number alone."""

    def __init__(self, space: Space, seed: int) -> None:
        self._space, self._seed = space, seed

    def next(self, trial: str, number: int) -> dict[str, Any] | None:
        """The draw of that place."""
        return self._space.draw(self._seed, number)

    def learn(self, trial: str | None, record: Record) -> None:
        """Nothing."""


class Learned:
    """Optuna's TPE or NSGA-II through Ray Tune's `OptunaSearch`."""

    def __init__(
        self, space: Space, objectives: Sequence[Objective], name: str, seed: int, trials: int | None
    ) -> None:
        import optuna
        from ray.tune.search.optuna import OptunaSearch

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._optuna = optuna
        self._dimensions = {d.path: d for d in space.dimensions}
        self._distributions = {d.path: _distribution(optuna, d) for d in space.dimensions}
        self._objectives = objectives
        self._storage = optuna.storages.InMemoryStorage()
        some = max(4, (trials or 40) // 4)
        sampler = (
            optuna.samplers.TPESampler(seed=seed, n_startup_trials=min(10, some))
            if name == "tpe"
            else optuna.samplers.NSGAIISampler(seed=seed, population_size=min(50, some))
        )
        self._search = OptunaSearch(
            self._distributions,
            metric=[o.name for o in objectives],
            mode=[o.mode for o in objectives],
            sampler=sampler,
            storage=self._storage,
        )

    def next(self, trial: str, number: int) -> dict[str, Any] | None:
        """What the sampler makes of the trials so far."""
        found = self._search.suggest(trial)
        assert isinstance(found, dict)
        return {path: _decode(d, found[path]) for path, d in self._dimensions.items()}

    def learn(self, trial: str | None, record: Record) -> None:
        """Finished trials with their objectives, stopped ones with the accuracy so far, failures as such."""
        done = all(o.name in record.metrics for o in self._objectives)
        values = {o.name: record.metrics[o.name] for o in self._objectives} if done else None
        if trial is not None:
            self._search.on_trial_complete(trial, values, error=not done)
            return
        state = self._optuna.trial.TrialState
        study = self._optuna.load_study(study_name="optuna", storage=self._storage)
        study.add_trial(
            self._optuna.trial.create_trial(
                state=state.COMPLETE if done else state.FAIL,
                values=[values[o.name] for o in self._objectives] if values else None,
                params={p: _encode(d, record.values[p]) for p, d in self._dimensions.items()},
                distributions=self._distributions,
            )
        )


def make_sampler(
    search: SearchConfig, space: Space, objectives: Sequence[Objective], seed: int, past: int
) -> Sampler:
    """The sampler of a search.

    Args:
        search: settings.
        space: what it samples.
        objectives: what it learns from.
        seed: of the search.
        past: trials that were suggested by earlier launches.
    """
    if search.sampler == "grid":
        return Grid(space, search.grid_points)
    if search.sampler == "random":
        return Random(space, seed)
    # A sampler that starts anew after a kill must not repeat its first draws.
    return Learned(space, objectives, search.sampler, seed + 1_000_003 * past, search.trials)


class JournaledSearcher(Searcher):
    """Suggests trials by number; Tune's configs hold nothing but that number.

    Args:
        journal: where suggestions and results are written.
        sampler: of new values.
        open_numbers: trials of earlier launches to take up first.
        first: number of the first new trial.
        limit: number after the last trial; ``None`` for no end.
        conclude: makes a record of a trial that ended, from its number, last result and whether it
            failed; the sampler learns from that.
    """

    def __init__(
        self,
        journal: Journal,
        sampler: Sampler,
        *,
        open_numbers: Sequence[int],
        first: int,
        limit: int | None,
        conclude: Callable[[int, dict[str, Any], bool], Record],
    ) -> None:
        super().__init__()
        self._journal, self._sampler = journal, sampler
        self._open: Iterator[int] = iter(open_numbers)
        self._next, self._limit = first, limit
        self._numbers: dict[str, tuple[int, bool]] = {}
        self._conclude = conclude

    def recall(self, records: Iterable[Record]) -> None:
        """Tell the sampler of the trials that ended in earlier launches."""
        for record in records:
            self._sampler.learn(None, record)

    def set_search_properties(
        self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any
    ) -> bool:
        """There is nothing to set: the space is ours."""
        return True

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override]
        """The number of the trial that comes next, written down with its values."""
        number = next(self._open, None)
        if number is not None:
            self._numbers[trial_id] = (number, False)
            return {"number": number}
        if self._limit is not None and self._next >= self._limit:
            return Searcher.FINISHED
        values = self._sampler.next(trial_id, self._next)
        if values is None:
            return Searcher.FINISHED
        self._journal.write(Record(number=self._next, values=values))
        self._numbers[trial_id] = (self._next, True)
        self._next += 1
        return {"number": self._next - 1}

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Conclude the trial and tell the sampler."""
        number, ours = self._numbers[trial_id]
        record = self._conclude(number, result or {}, error)
        self._sampler.learn(trial_id if ours else None, record)

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Results in between are asha's affair."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the records are all there is."""
        with open(checkpoint_path, "w"):
            pass

    def restore(self, checkpoint_path: str) -> None:
        """Nothing, as `save`."""


def _distribution(optuna: Any, d: Dimension) -> Any:
    kinds = optuna.distributions
    if isinstance(d, Choice):
        return kinds.CategoricalDistribution(list(range(len(d.values))))
    if d.whole:
        step = int(d.step) if d.step is not None else 1
        return kinds.IntDistribution(int(d.low), int(d.high), log=d.log, step=step)
    return kinds.FloatDistribution(d.low, d.high, log=d.log, step=d.step)


def _decode(d: Dimension, value: Any) -> Any:
    return d.values[value] if isinstance(d, Choice) else d.snap(value)


def _encode(d: Dimension, value: Any) -> Any:
    if isinstance(d, Range):
        return min(max(value, d.low), d.high)
    return d.values.index(value)
