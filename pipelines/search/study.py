"""Search a space by Ray Tune and Optuna, from the first check to the table of trials."""

import logging
import sys
import time
import warnings
from contextlib import ExitStack, redirect_stdout
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

from rich.console import Console

from cluster.connect import local_cpus, usable_cpus
from cluster.errors import UserError
from pipelines.config.load import dump_config
from pipelines.config.plugins import OwnCode, keep_copy
from pipelines.config.schema import SearchTree
from pipelines.console import messages
from pipelines.runs.preflight import CheckedData, check_cluster, check_inputs, resolve_reading
from pipelines.runs.run import prepare_engines, start_ray
from pipelines.runs.run_folder import CODE, check_same_config, exists, run_path, write_provenance
from pipelines.search.plan import SETTINGS, Plan, make_plan, read_plan
from pipelines.search.results import print_trial, read_results, write_results
from pipelines.search.trial import (
    ANALYSES,
    Trial,
    next_number,
    part_number,
    read_analyses,
    read_trials,
    run_trial,
    study_of,
)
from pipelines.storage.atomic import write_beside
from pipelines.storage.paths import uri_of
from pipelines.storage.sync import check_shared, run_lock

VAL_SHARE = 0.1
"""Where the config has no validation: a search never goes by test accuracy."""
FREE_TO_CHANGE = (
    "cluster.address", "storage", "code", "data.path", "search.trials", "search.minutes", "search.concurrent"
)  # fmt: skip


def search(tree: SearchTree, *, resume: bool = False, console: Console | None = None) -> Path:
    """Run a search, or what is left of it; its folder, with its table, best configs and report.

    Raises:
        UserError: whatever is wrong with config, space, objectives, data or cluster, before a trial starts;
            or another process works on the search.
        KeyboardInterrupt: it was interrupted; its state is written down.
    """
    if uri_of(tree.storage) is not None:
        raise UserError("storage", f"{tree.storage} is no folder; searches need one that all nodes share")
    console = console or messages()
    folder = run_path(tree)
    with run_lock(folder, "search", tree.storage), ExitStack() as stack:
        plan, checked = _begin(tree, folder, resume, console)
        if plan.trials is not None and sum(t.status != "open" for t in read_trials(plan)) >= plan.trials:
            write_results(read_results(folder))  # which a kill after the last trial may have left out
            return folder
        prepare_engines(console)
        address = tree.cluster.address
        cluster = start_ray(address, stack, console)
        if cluster.nodes > 1:
            check_shared(folder.parent, checked.files)
        concurrent = trials_at_once(plan, _this_machine(plan, cluster.gpus) if address is None else _nodes())
        with redirect_stdout(StringIO()), warnings.catch_warnings():  # Tune's banner, Optuna's warnings
            warnings.simplefilter("ignore")
            try:
                _run_trials(plan, concurrent, quiet=console.quiet)
            finally:
                if any(t.status != "open" for t in read_trials(plan)):
                    write_results(read_results(folder))
    return folder


def _begin(tree: SearchTree, folder: Path, resume: bool, console: Console) -> tuple[Plan, CheckedData]:
    """Check everything that needs no cluster, and write down what the search is."""
    if uri_of(tree.data.path) is None:
        tree = replace(tree, data=replace(tree.data, path=str(Path(tree.data.path).absolute())))
    if tree.data.reading == "auto" and (folder / SETTINGS).exists():  # as the search began
        reading = read_plan(folder).tree.data.reading
        tree = replace(tree, data=replace(tree.data, reading=reading))
    validated = tree.data.val_split is not None or tree.data.val_share is not None
    if not validated:
        tree = replace(tree, data=replace(tree.data, val_share=VAL_SHARE))
    plan = make_plan(tree)
    if exists(tree, SETTINGS, "search", resume=resume):
        check_same_config(read_plan(folder).tree, tree, FREE_TO_CHANGE, "search", folder)
    if tree.cluster.address is None:
        trials_at_once(plan, _this_machine(plan, gpus=float("inf")))
    code, checked = check_inputs(plan.space.config, folder, "search", on_ray=True)
    if not validated:
        told = f"no data.val_split or data.val_share: trials validate on {VAL_SHARE:.0%} of the training rows"
        console.print(told, highlight=False)
    plan = make_plan(replace(tree, data=resolve_reading(tree, checked.train, folder).data))
    write_settings(plan, code)
    return plan, checked


def _run_trials(plan: Plan, concurrent: int, *, quiet: bool) -> None:
    """Finish what Tune has of the search, then start the trials that are still missing."""
    from ray import tune

    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # a failed trial is told in the end
    cluster, started = plan.tree.cluster, time.monotonic()
    code = str(plan.folder / CODE) if (plan.folder / CODE).exists() else plan.space.config.code
    shared = replace(plan, space=replace(plan.space, config=replace(plan.space.config, code=code)))
    request = {"CPU": 0.01} if plan.nested else {"CPU": max(1.0, cluster.cpus_per_worker)}
    if cluster.gpus_per_worker and not plan.nested:
        request["GPU"] = cluster.gpus_per_worker
    trainable = tune.with_resources(tune.with_parameters(run_trial, plan=shared, command=sys.argv), request)
    if analyses := read_analyses(plan.folder):
        tune.Tuner.restore(str(analyses[-1][0]), trainable=trainable).fit()
    trials = _uninterrupted(plan)
    ended = sum(t.status != "open" for t in trials)
    seconds = None
    if plan.tree.search.minutes is not None:
        seconds = 60 * plan.tree.search.minutes - (time.monotonic() - started)
    if (plan.trials is not None and ended >= plan.trials) or (seconds is not None and seconds <= 0):
        return
    part = 1 + max(map(part_number, plan.folder.glob(ANALYSES)), default=-1)
    tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(
            search_alg=_searcher(plan, trials),
            scheduler=_scheduler(plan),
            num_samples=-1 if plan.trials is None else plan.trials - ended,
            max_concurrent_trials=concurrent,
            time_budget_s=seconds,
            reuse_actors=not plan.nested,
        ),
        run_config=tune.RunConfig(
            name=ANALYSES.replace("*", str(part)),
            storage_path=str(plan.folder),
            failure_config=tune.FailureConfig(max_failures=cluster.max_failures),
            callbacks=[_progress(plan, next_number(trials), quiet)],
            verbose=0,
        ),
    ).fit()
    _uninterrupted(plan)


def _uninterrupted(plan: Plan) -> list[Trial]:
    """The trials, after Tune has come to an end.

    Raises:
        KeyboardInterrupt: it was not theirs: Tune takes Ctrl-C for itself, writes its state and returns.
    """
    trials = read_trials(plan)
    if any(t.running for t in trials):
        raise KeyboardInterrupt
    return trials


def _searcher(plan: Plan, past: list[Trial]) -> Any:
    """Optuna's sampler through Tune, told of the trials that ended; a grid is given point by point."""
    import optuna
    from ray.tune.search.optuna import OptunaSearch

    settings, study = plan.tree.search, "search"
    storage = optuna.storages.InMemoryStorage()
    study_of(plan, past, storage=storage, study_name=study)
    seed = plan.tree.seed + 1_000_003 * len(past)  # not the same draws again
    few = max(4, (plan.trials or 40) // 4)
    sampler: optuna.samplers.BaseSampler = optuna.samplers.RandomSampler(seed=seed)
    if settings.sampler == "tpe":
        sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=min(10, few))
    elif settings.sampler == "nsga2":
        sampler = optuna.samplers.NSGAIISampler(seed=seed, population_size=min(50, few))
    first = [t.suggested for t in past if t.status == "open"]
    if settings.sampler == "grid":
        seen = [t.suggested for t in past]
        first += [p for p in plan.space.grid(settings.grid_points) if p not in seen]
    return OptunaSearch(
        plan.space.distributions,
        metric=[o.name for o in plan.objectives],
        mode=[o.mode for o in plan.objectives],
        points_to_evaluate=first,
        sampler=sampler,
        storage=storage,
        study_name=study,
    )


def _scheduler(plan: Plan) -> Any:
    if plan.tree.search.scheduler == "none":
        return None
    from ray.tune.schedulers import ASHAScheduler

    return ASHAScheduler(
        metric="accuracy",
        mode="max",
        max_t=plan.steps + 1,  # a trial's last report tells of no epoch, but of its end
        grace_period=plan.tree.search.grace_epochs,
        reduction_factor=plan.tree.search.reduction,
        stop_last_trials=False,
    )


def _progress(plan: Plan, before: int, quiet: bool) -> Any:
    from ray import tune

    class Progress(tune.Callback):
        """A line for every trial that ends."""

        def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            print_trial(plan, trial, before, messages(quiet=quiet))

        on_trial_error = on_trial_complete

    return Progress()


def trials_at_once(plan: Plan, nodes: list[tuple[float, float]]) -> int:
    """How many trials Tune may start at once: as asked for, or as many as fit.

    Tune itself waits for the resources of a trial that trains alone. It does not see the workers of one that
    launches Ray Train, nor the CPU that feeds them: the limit counts these.
    """
    c = plan.tree.cluster
    if plan.nested:
        cpus, gpus = c.workers * c.cpus_per_worker + 1, c.workers * c.gpus_per_worker + c.gpus_per_scorer
        nodes = [(sum(n[0] for n in nodes), sum(n[1] for n in nodes))]
        check_cluster(plan.tree, *nodes[0])
    else:
        cpus, gpus = max(1.0, c.cpus_per_worker), c.gpus_per_worker
    # 1.0 // 0.2 is 4, as the float 0.2 is a little more.
    fits = [min((n + 1e-6) // e for n, e in zip(node, (cpus, gpus), strict=True) if e) for node in nodes]
    fit = int(sum(fits))
    if fit < 1:
        kind, each = ("gpu", gpus) if gpus else ("cpu", cpus)
        what = f"{each:g} {kind.upper()}s for a trial do not fit any node of the cluster"
        raise UserError(f"cluster.{kind}s_per_worker", what)
    wanted = plan.tree.search.concurrent
    if wanted is not None and wanted > fit:
        raise UserError("search.concurrent", f"{wanted} trials at once do not fit; set it to {fit} or less")
    return wanted or fit


def _this_machine(plan: Plan, gpus: float) -> list[tuple[float, float]]:
    """By the cores that there are, where trials compute by themselves, and not by those that Ray is told."""
    return [(float(local_cpus() if plan.nested else usable_cpus()), gpus)]


def _nodes() -> list[tuple[float, float]]:
    import ray

    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [(found.get("CPU", 0.0), found.get("GPU", 0.0)) for found in alive]


def write_settings(plan: Plan, code: OwnCode | None) -> None:
    """Write down what a search is, and where it came from if it is new."""
    if not (plan.folder / SETTINGS).exists():
        write_provenance(plan.folder, plan.tree, sys.argv)
        keep_copy(code, plan.folder / CODE)
    write_beside(plan.folder / SETTINGS, lambda p: p.write_text(dump_config(plan.tree)))
