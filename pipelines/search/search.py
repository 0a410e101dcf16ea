"""Search a space by Ray Tune: place trials, write down how each ends, leave the front and its configs."""

import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import fields, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from rich.console import Console

from cluster.connect import check_cluster_answers, connect, local_cpus
from pipelines.config import Config
from pipelines.config_io import dump_config, load_tree
from pipelines.errors import UserError
from pipelines.interrupts import renew
from pipelines.lock import hold
from pipelines.own_code import OURS, OwnCode, check_unchanged, keep_copy, refuse_shadowing, use_own_code
from pipelines.preflight import CheckedData, check_data
from pipelines.provenance import check_same_data, write_provenance
from pipelines.reading import settle_reading
from pipelines.run import prepare_engines, tell_skipped
from pipelines.run_folder import CODE, flat_config, run_path
from pipelines.search.config import SearchConfig, SearchTree, Stages
from pipelines.search.journal import Journal, Record, write_table
from pipelines.search.launch import SPENT, Launch
from pipelines.search.objectives import Objective, choose_objectives
from pipelines.search.resources import Node, nests, plan_resources
from pipelines.search.space import Space, make_space
from pipelines.search.stages import steps_of
from pipelines.storage.atomic import check_storage, read_json, write_beside
from pipelines.storage.paths import uri_of
from pipelines.storage.shared import check_shared
from pipelines.training.trackers import check_trackers

SETTINGS = "search.yaml"
DEFAULT_TRIALS = 20
_SLOW = (
    "every stage of a trial starts {} workers, which takes about 15 s; "
    "with --cluster.workers 1 trials train in processes that are there already"
)
FREE_TO_CHANGE = (
    "cluster.address", "storage", "code", "data.path", "search.trials", "search.minutes", "search.concurrent"
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
        UserError: whatever is wrong with config, space, objectives, data or cluster, before a trial starts;
            or another process works on the search.
    """
    if uri_of(tree.storage) is not None:
        raise UserError("storage", f"{tree.storage} is no folder; searches need one that all nodes share")
    with hold(run_path(tree), "search", tree.storage):
        return _search(tree, resume, console or Console(stderr=True))


def _search(tree: SearchTree, resume: bool, console: Console) -> Path:
    if uri_of(tree.data.path) is None:
        tree = replace(tree, data=replace(tree.data, path=str(Path(tree.data.path).absolute())))
    tree = _as_begun(tree)
    journal, stages = open_search(tree)
    settings = tree.search
    _check_settings(settings, journal.objectives, journal.space, stages)
    folder = journal.folder
    _check_folder(tree, folder, resume)
    code = use_own_code(journal.space.config)
    check_unchanged(code, folder / CODE, "search")
    refuse_shadowing(Path.cwd(), OURS, "the current folder")  # first on the path of Ray's workers
    if tree.cluster.address is not None:
        check_cluster_answers(tree.cluster.address)
    checked = check_data(journal.space.config)
    check_same_data(folder, tree, "search")
    check_trackers(journal.space.config)
    if tree.cluster.address is None:
        here = float(local_cpus() if nests(tree) else os.cpu_count() or 1)
        plan_resources(tree, settings.concurrent, [Node(here, float("inf"))])
        if nests(tree):
            console.print(_SLOW.format(tree.cluster.workers), highlight=False, soft_wrap=True)
    check_storage(folder.parent)
    _begin(tree, folder, code)
    tell_skipped(tree, checked, folder, console)
    limit = _limit(settings, journal.space)
    records = journal.records()
    spent = read_json(folder / SPENT)["seconds"] if (folder / SPENT).exists() else 0.0
    left = None if settings.minutes is None else 60 * settings.minutes - spent
    if _work_left(records, limit) and (left is None or left > 0):
        with console.status("preparing"):
            prepare_engines()
        with ExitStack() as stack:
            with console.status("starting Ray" if tree.cluster.address is None else "connecting"):
                cluster = stack.enter_context(connect(tree.cluster.address))
            renew()
            if cluster.nodes > 1:
                check_shared(folder.parent, (*checked.train.files, *checked.test.files))
            resources = plan_resources(tree, settings.concurrent, _nodes(tree))
            tree = _settled(tree, checked, folder)
            journal, stages = open_search(tree)
            Launch(tree, journal, stages, checked, resources, records, limit, spent, left).go(console)
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


def _as_begun(tree: SearchTree) -> SearchTree:
    """The settings, with data read as by the search of that name, if there is one that has decided."""
    folder = run_path(tree)
    if tree.data.reading != "auto" or not (folder / SETTINGS).exists():
        return tree
    return replace(tree, data=replace(tree.data, reading=read_search(folder).data.reading))


def _settled(tree: SearchTree, checked: CheckedData, folder: Path) -> SearchTree:
    """The settings with ``data.reading`` decided once for all trials, and written down."""
    engine: Literal["ray", "local"] = "ray" if nests(tree) else "local"  # whose memory the rows must fit
    asked = replace(tree, cluster=replace(tree.cluster, engine=engine))
    reading = settle_reading(asked, checked.train, folder).data.reading
    settled = replace(tree, data=replace(tree.data, reading=reading))
    _write_settings(settled, folder)
    return settled


def _base_config(tree: SearchTree) -> Config:
    """The config of a trial before its values: the tree's without the search, and without a baseline."""
    own = {f.name: getattr(tree, f.name) for f in fields(Config)}
    return Config(**{**own, "baseline": "none"})


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


def _begin(tree: SearchTree, folder: Path, code: OwnCode | None) -> None:
    """Write down what a search is, and where it came from if it is new."""
    if not (folder / SETTINGS).exists():
        write_provenance(folder, tree, sys.argv)
        keep_copy(code, folder / CODE)
    _write_settings(tree, folder)


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
