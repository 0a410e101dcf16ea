"""What usually goes wrong, checked against a config: one line each, ok or the remedy."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal

from cluster.checks import Line, check_bytecode, check_dashboard, check_nodes, check_token
from cluster.connect import connect, local_cpus
from pipelines.config import Config
from pipelines.config.plugins import OURS, refuse_shadowing
from pipelines.errors import UserError
from pipelines.runs.preflight import assign_gpus, check_cluster, check_data, check_locations
from pipelines.runs.run_folder import run_path
from pipelines.storage.atomic import check_storage
from pipelines.storage.paths import uri_of
from pipelines.storage.sync import check_shared


def examine(
    config: Config,
    *,
    address: str | None = None,
    dashboard: str | None = None,
    token_file: Path | None = None,
) -> Iterator[Line]:
    """All checks, in the order in which they would bite.

    They hold the cluster at ``address`` (``auto`` or ``host:port``), or this machine where there is none,
    against a run's config, and look at the job server at ``dashboard``.
    """
    yield check_bytecode()
    yield _line("own modules", "nothing hides ours", refuse_shadowing, Path.cwd(), OURS, "the current folder")
    yield check_token(token_file)
    if dashboard is not None:
        yield check_dashboard(dashboard, token_file)
    if address is not None:
        try:
            with connect(address, token_file=token_file) as cluster:
                yield Line("cluster", True, f"{address}: {cluster.nodes} nodes")
                yield from check_nodes()
                yield from _needs(config, "ray", cluster.cpus, cluster.gpus, everywhere=True)
        except UserError as error:
            yield Line("cluster", False, str(error))
    elif dashboard is None:
        import torch

        yield from _needs(config, config.cluster.launcher, local_cpus(), torch.cuda.device_count())


def _needs(
    config: Config, engine: Literal["ray", "local"], cpus: float, gpus: float, *, everywhere: bool = False
) -> Iterator[Line]:
    """What a run of the config needs, by the checks that the run itself begins with."""
    there = f"{cpus:g} CPUs and {gpus:g} GPUs suffice"
    yield _line("resources", there, _check_resources, config, engine, cpus, gpus)
    yield _line("storage", f"{config.storage} can be written", check_storage, config.storage)
    read = f"{config.data.path} can be read" + (", as storage, from every node" if everywhere else "")
    yield _line("data", read, _check_places, config, everywhere)


def _check_resources(config: Config, engine: Literal["ray", "local"], cpus: float, gpus: float) -> None:
    config = replace(config, cluster=replace(config.cluster, engine=engine))
    check_locations(config)
    if engine == "ray":
        check_cluster(assign_gpus(config, gpus), cpus, gpus)


def _check_places(config: Config, everywhere: bool) -> None:
    files = check_data(config).files
    if everywhere:
        check_shared(uri_of(config.storage) or run_path(config).parent, files)


def _line(name: str, found: str, check: Callable[..., object], *args: object) -> Line:
    """A line of what is found, or of the mistake that a check raises."""
    try:
        check(*args)
    except UserError as error:
        return Line(name, False, str(error))
    return Line(name, True, found)
