"""Search a space by Ray Tune: place trials, write down how each ends, leave the front and its configs."""

import logging
import os
import shutil
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import fields, replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from rich.console import Console

from cluster.connect import connect, local_cpus, quiet_data
from pipelines.config import Config
from pipelines.config_io import dump_config, load_tree
from pipelines.data.files import read_json, write_beside, write_json
from pipelines.errors import UserError
from pipelines.own_code import OURS, refuse_shadowing, use_own_code
from pipelines.preflight import CheckedData, check_data, check_storage
from pipelines.run_folder import flat_config, run_path
from pipelines.search.config import SearchConfig, SearchTree, Stages
from pipelines.search.journal import Journal, Record, write_table
from pipelines.search.objectives import Objective, choose_objectives
from pipelines.search.progress import SearchProgress
from pipelines.search.resources import Node, TrialResources, nests, plan_resources
from pipelines.search.space import Space, make_space
from pipelines.search.stages import ACCURACY, Claims, history_of
from pipelines.training.phases import phases_of

SETTINGS = "search.yaml"
SPENT = "spent.json"
DEFAULT_TRIALS = 20
LINGER_SECONDS = 10.0  # Ray frees a Ray Train run's workers some seconds after the trial that started it
FREE_TO_CHANGE = (
    "cluster.address", "storage", "code", "search.trials", "search.minutes", "search.concurrent"
)  # fmt: skip


def search(tree: SearchTree, *, resume: bool = False, console: Console | None = None) -> Path:
    """Run a search, or what is left of it.

    Args:
        tree: config and search settings.
        resume: go on with the search of that name.
        console: where progress is shown.

    Returns:
        the search's folder, with search.parquet written after every trial.

    Raises:
        UserError: whatever is wrong with config, space, objectives, data or cluster, before a trial starts.
    """
    console = console or Console(stderr=True)
    journal, stages = open_search(tree)
    settings = tree.search
    _check_settings(settings, journal.objectives, journal.space, stages)
    folder = journal.folder
    _check_folder(tree, folder, resume)
    refuse_shadowing(Path.cwd(), OURS, "the current folder")  # first on the path of Ray's workers
    checked = check_data(journal.space.config)
    if tree.cluster.address is None:
        here = float(local_cpus() if nests(tree) else os.cpu_count() or 1)
        plan_resources(tree, settings.concurrent, [Node(here, float("inf"))])
    check_storage(folder.parent)
    _write_settings(tree, folder)
    limit = _limit(settings, journal.space)
    records = journal.records()
    spent = read_json(folder / SPENT)["seconds"] if (folder / SPENT).exists() else 0.0
    left = None if settings.minutes is None else 60 * settings.minutes - spent
    if _work_left(records, limit) and (left is None or left > 0):
        with ExitStack() as stack:
            with console.status("starting Ray" if tree.cluster.address is None else "connecting"):
                stack.enter_context(connect(tree.cluster.address))
            resources = plan_resources(tree, settings.concurrent, _nodes(tree))
            run = _Run(tree, journal, stages, checked, resources, records, limit, spent, left)
            run.go(console)
    write_table(journal, journal.records())
    return folder


def open_search(tree: SearchTree) -> tuple[Journal, Stages]:
    """The journal of a search, whether it has begun or not, and the stages of its trials.

    Raises:
        UserError: something is wrong with the space or the objectives.
    """
    base = _base_config(tree)
    space = make_space(tree, base)
    stages = _stages(tree.search, space)
    objectives = choose_objectives(tree.search.objectives, tree.search.question, stages)
    return Journal(run_path(tree), space, objectives), stages


def read_search(folder: Path) -> SearchTree:
    """The settings of a search's folder, with the folder as it lies now.

    Raises:
        UserError: it is not a search's folder.
    """
    if not (folder / SETTINGS).exists():
        raise UserError(str(folder), f"is not a search: it has no {SETTINGS}")
    tree = load_tree(SearchTree, folder / SETTINGS)
    place = folder.absolute()
    return replace(tree, name=place.name, storage=str(place.parent))


class _Run:
    """One launch of a search on a connected cluster."""

    def __init__(
        self,
        tree: SearchTree,
        journal: Journal,
        stages: Stages,
        checked: CheckedData,
        resources: TrialResources,
        records: list[Record],
        limit: int | None,
        spent: float,
        left: float | None,
    ) -> None:
        self.tree, self.journal, self.stages, self.checked = tree, journal, stages, checked
        self.code = use_own_code(journal.space.config)
        self.resources, self.limit, self.spent, self.left = resources, limit, spent, left
        self.records = {r.number: r for r in records}
        self.started = time.monotonic()
        self.claims: Any = None
        self.progress: SearchProgress | None = None

    def go(self, console: Console) -> None:
        """All trials that are left, or as many as the time allows."""
        for name, value in (
            ("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1"),
            ("TUNE_DISABLE_SIGINT_HANDLER", "1"),
            ("TUNE_PRINT_ALL_TRIAL_ERRORS", "0"),
            ("TUNE_FORCE_TRIAL_CLEANUP_S", "10"),
            ("RAY_AIR_NEW_OUTPUT", "0"),  # which shows a banner however quiet it is told to be
        ):
            os.environ.setdefault(name, value)
        import ray
        from ray import tune
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        from pipelines.search.suggest import JournaledSearcher, make_sampler
        from pipelines.search.trials import run_trial

        logging.getLogger("ray.tune").setLevel(logging.ERROR)
        scratch = self.journal.folder / ".ray"  # Tune's own files; a search goes on without them
        shutil.rmtree(scratch, ignore_errors=True)
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self.claims = ray.remote(Claims).options(num_cpus=0, scheduling_strategy=here).remote()
        first = max(self.records, default=-1) + 1
        open_numbers = [r.number for r in self.records.values() if r.status == "open"]
        searcher = JournaledSearcher(
            self.journal,
            make_sampler(
                self.tree.search, self.journal.space, self.journal.objectives, self.tree.seed, first
            ),
            open_numbers=open_numbers,
            first=first,
            limit=self.limit,
            conclude=self.conclude,
        )
        searcher.recall(r for r in self.records.values() if r.status != "open")
        left = -1 if self.limit is None else len(open_numbers) + max(0, self.limit - first)
        tuner = tune.Tuner(
            tune.with_resources(
                tune.with_parameters(run_trial, shared=self._shared()), self.resources.request
            ),
            tune_config=tune.TuneConfig(
                search_alg=searcher,
                scheduler=self._scheduler(),
                num_samples=left,
                max_concurrent_trials=self.resources.concurrent,
                reuse_actors=not self.resources.nested,
            ),
            run_config=tune.RunConfig(
                name="tune",
                storage_path=str(scratch),
                stop=self._stopper(),
                callbacks=[self._watcher()],
                failure_config=tune.FailureConfig(max_failures=self.tree.cluster.max_failures),
                verbose=0,
            ),
        )
        ended = [r for r in self.records.values() if r.status != "open"]
        with SearchProgress(self.limit, ended, self.journal.objectives, console) as self.progress:
            try:
                tuner.fit()
            finally:
                self._write_spent()
                ray.kill(self.claims)
                shutil.rmtree(scratch, ignore_errors=True)

    def conclude(self, number: int, result: dict[str, Any], error: bool) -> Record:
        """A trial has ended: complete its record, and rewrite the table."""
        record = self.journal.read(number)
        if record.status == "open" and error:
            times = self.tree.cluster.max_failures + 1
            record.status = "failed"
            record.reason = f"lost its process or node {times} times (cluster.max_failures)"
            self.journal.write(record)
        elif record.status == "open":
            record.status = "stopped"
            record.records = int(result.get("training_iteration", 0))
            record.metrics = {"accuracy": float(result[ACCURACY])}
            record.reason = f"asha stopped it after {record.records} epochs and pruning steps"
            self.journal.write(record)
        self.records[number] = record
        write_table(self.journal, [self.records[n] for n in sorted(self.records)])
        self._write_spent()
        if self.progress is not None:
            self.progress.ended(record)
        return record

    def _shared(self) -> Any:
        from pipelines.search.trials import Shared

        train, test = self.checked.train, self.checked.test
        if self.resources.nested:
            from pipelines.training.distributed import load_rows as load

            quiet_data()
        else:
            from pipelines.training.local import read_rows as load
        return Shared(
            journal=self.journal,
            stages=self.stages,
            nested=self.resources.nested,
            asha=self.tree.search.scheduler == "asha",
            checked=self.checked,
            code=self.code,
            train=load(train.files),
            test=load(test.files),
            claims=self.claims,
            command=sys.argv,
        )

    def _scheduler(self) -> Any:
        """asha, knowing the trials of earlier launches; ``None`` for none."""
        settings = self.tree.search
        if settings.scheduler == "none":
            return None
        from ray.tune.schedulers import ASHAScheduler

        scheduler = ASHAScheduler(
            metric=ACCURACY,
            mode="max",
            max_t=steps_of(self.journal.space.config, self.stages),
            grace_period=settings.grace_epochs,
            reduction_factor=settings.reduction,
            stop_last_trials=False,
        )
        controller: Any = None  # asha asks nothing of it
        for record in self.records.values():
            if record.status not in ("finished", "stopped"):
                continue
            trial: Any = SimpleNamespace(trial_id=f"earlier-{record.number}")  # all that asha asks for
            scheduler.on_trial_add(controller, trial)
            history = history_of(self.journal.stage_folders(record))
            for i, epoch in enumerate(history[: record.records or None], 1):
                scheduler.on_trial_result(
                    controller, trial, {ACCURACY: epoch[ACCURACY], "training_iteration": i}
                )
        return scheduler

    def _stopper(self) -> Any:
        from ray import tune

        deadline = None if self.left is None else time.monotonic() + self.left

        class Deadline(tune.Stopper):
            """The wall-time budget."""

            def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
                return False

            def stop_all(self) -> bool:
                return deadline is not None and time.monotonic() > deadline

        return Deadline()

    def _watcher(self) -> Any:
        from ray import tune

        claims, linger = self.claims, LINGER_SECONDS if self.resources.nested else 0.0

        class FreeClaims(tune.Callback):
            """A trial that is gone, for good or to be started again, works on no stage any more."""

            def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
                claims.drop.remote(trial.trial_id, linger)

            on_trial_error = on_trial_recover = on_trial_complete

        return FreeClaims()

    def _write_spent(self) -> None:
        seconds = self.spent + time.monotonic() - self.started
        write_json(self.journal.folder / SPENT, {"seconds": round(seconds, 1)})


def steps_of(config: Config, stages: Stages) -> int:
    """Epochs and pruning steps of a trial, as asha counts them."""
    return sum(max(p.epochs, 1) for p in phases_of(config, stages))


def _base_config(tree: SearchTree) -> Config:
    """The config of a trial before its values: with the data's absolute path, without a baseline."""
    own = {f.name: getattr(tree, f.name) for f in fields(Config)}
    data = replace(tree.data, path=str(Path(tree.data.path).absolute()))
    return Config(**{**own, "data": data, "baseline": "none"})


def _stages(settings: SearchConfig, space: Space) -> Stages:
    """What trials do: as asked for, or what space and objectives need."""
    prunes = [p for p in space.paths if p.startswith("weights.")]
    if settings.stages is None:
        wants = "density" in (settings.objectives or ())
        return "run" if prunes or wants or settings.question in ("network", "both") else "train"
    if settings.stages == "train" and prunes:
        raise UserError(
            f"search.space.{prunes[0]}", "changes nothing in the stage train; set search.stages to run"
        )
    return settings.stages


def _check_settings(
    settings: SearchConfig, objectives: Sequence[Objective], space: Space, stages: Stages
) -> None:
    if settings.scheduler == "asha":
        names = [o.name for o in objectives]
        if names != ["accuracy"]:
            raise UserError(
                "search.scheduler",
                f"asha compares trials by accuracy alone, not by {', '.join(names)}; "
                "set search.objectives to accuracy, or search.scheduler to none",
            )
        steps = steps_of(space.config, stages)
        if settings.grace_epochs > steps:
            raise UserError(
                "search.grace_epochs", f"{settings.grace_epochs} is more than a trial's {steps} epochs"
            )
    _check_extra(settings)


def _check_extra(settings: SearchConfig) -> None:
    """That Optuna is there, where the sampler needs it.

    Raises:
        UserError: it is not.
    """
    if settings.sampler in ("tpe", "nsga2") and find_spec("optuna") is None:
        raise UserError(
            "search.sampler",
            f"{settings.sampler} needs the extra search (pip install 'spikeprune[search]'); "
            "random and grid do without",
        )


def _check_folder(tree: SearchTree, folder: Path, resume: bool) -> None:
    if not (folder / SETTINGS).exists():
        if folder.exists() and any(folder.iterdir()):
            raise UserError("name", f"{folder} exists and is not a search; choose another --name")
        return
    if not resume:
        raise UserError(
            "name",
            f"search {tree.name!r} exists in {tree.storage}; --resume continues it, --name starts another",
        )
    stored, given = flat_config(read_search(folder)), flat_config(tree)
    for path in sorted(stored.keys() | given.keys()):
        if stored.get(path) != given.get(path) and path not in FREE_TO_CHANGE:
            raise UserError(
                path,
                f"is {given.get(path)!r} here and {stored.get(path)!r} in the search that {folder} holds; "
                "resume with the same config or choose another --name",
            )


def _write_settings(tree: SearchTree, folder: Path) -> None:
    write_beside(folder / SETTINGS, lambda p: p.write_text(dump_config(tree)))


def _limit(settings: SearchConfig, space: Space) -> int | None:
    """The number after the last trial; ``None`` when only the time ends the search."""
    if settings.sampler == "grid":
        size = space.grid_size(settings.grid_points)
        return min(size, settings.trials or size)
    return settings.trials or (DEFAULT_TRIALS if settings.minutes is None else None)


def _work_left(records: Sequence[Record], limit: int | None) -> bool:
    return limit is None or len(records) < limit or any(r.status == "open" for r in records)


def _nodes(tree: SearchTree) -> list[Node]:
    """The cluster's nodes; this machine's by its real cores, for trials that compute by themselves."""
    import ray

    nodes = []
    for node in ray.nodes():
        if node["Alive"]:
            cpus = node["Resources"].get("CPU", 0.0)
            if tree.cluster.address is None and not nests(tree):
                cpus = min(cpus, float(os.cpu_count() or 1))
            nodes.append(Node(cpus, node["Resources"].get("GPU", 0.0)))
    return nodes
