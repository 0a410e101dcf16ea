"""What usually goes wrong, checked against a config: one line each, ok or the remedy."""

from collections.abc import Iterator
from pathlib import Path

from cluster.checks import Line, check_dashboard, check_here, check_nodes, check_token
from cluster.connect import connect, local_cpus
from cluster.submit import shadows
from pipelines.config import Config
from pipelines.data.inputs import choose_device
from pipelines.errors import UserError
from pipelines.runs.placement import assign_gpus
from pipelines.storage.atomic import check_storage
from pipelines.storage.paths import Folder, below, uri_of, why_unreadable
from pipelines.storage.shared import check_shared


def examine(
    config: Config,
    *,
    address: str | None = None,
    dashboard: str | None = None,
    token_file: Path | None = None,
    folder: Path | None = None,
) -> Iterator[Line]:
    """All checks, in the order in which they would bite.

    They hold the cluster at ``address`` (``auto`` or ``host:port``), or this machine where there is none,
    against a run's config, and look at the job server at ``dashboard`` and at the user's ``folder``.
    """
    yield from check_here()
    yield _own_modules(folder or Path())
    yield check_token(token_file)
    if dashboard is not None:
        yield check_dashboard(dashboard, token_file)
    if address is not None:
        yield from _cluster(config, address, token_file)
    elif dashboard is None:
        import torch

        on_ray = config.cluster.launcher == "ray"
        yield from _resources(config, local_cpus(), torch.cuda.device_count(), on_ray=on_ray)
        yield _data(data_files(config))
        yield _storage(config)


def data_files(config: Config) -> tuple[str, ...]:
    """The Parquet files of a config's dataset; its folder where there are none."""
    path = _absolute(config.data.path)
    try:
        names = [e.path for e in Folder.of(path, "data.path").files() if e.path.endswith(".parquet")]
    except Exception:  # looking at the folder itself tells why
        names = []
    return tuple(below(path, name) for name in names) or (path,)


def _own_modules(folder: Path) -> Line:
    hiding = shadows(folder)
    if not hiding or (folder / "pyproject.toml").exists():
        return Line("own modules", True, "nothing hides ours")
    return Line("own modules", False, f"{hiding[0].absolute()} hides spikeprune's; rename it")


def _cluster(config: Config, address: str, token_file: Path | None) -> Iterator[Line]:
    try:
        with connect(address, token_file=token_file) as cluster:
            yield Line("cluster", True, f"{address}: {cluster.nodes} nodes")
            yield from _resources(config, cluster.cpus, cluster.gpus, on_ray=True)
            yield from check_nodes()
            written = _storage(config)
            yield written
            files = data_files(config)
            where = "storage and data"
            try:
                check_shared(_absolute(config.storage) if written.ok else None, files)
            except UserError as error:
                yield Line(where, False, str(error))
            else:
                yield Line(where, True, f"the same from every node; {len(files)} files of data readable")
    except UserError as error:
        yield Line("cluster", False, str(error))


def _resources(config: Config, cpus: float, gpus: float, *, on_ray: bool) -> Iterator[Line]:
    c = assign_gpus(config, gpus).cluster if on_ray else config.cluster
    remedy = "lower cluster.workers or cluster.cpus_per_worker"
    yield _fits(
        "CPUs", c.workers * c.cpus_per_worker + on_ray, cpus, remedy
    )  # a run on Ray scores on one more
    if needed := c.workers * c.gpus_per_worker + c.gpus_per_scorer:
        remedy = "lower cluster.gpus_per_worker or cluster.gpus_per_scorer, or set cluster.device to auto"
        yield _fits("GPUs", needed, gpus, remedy)
    if not on_ray:
        try:
            choose_device(c.device, int(gpus))
        except UserError as error:
            yield Line("device", False, str(error))


def _fits(name: str, needed: float, has: float, remedy: str) -> Line:
    ok = needed <= has
    return Line(name, ok, f"{needed:g} needed, {has:g} there" + ("" if ok else f"; {remedy}"))


def _data(files: tuple[str, ...]) -> Line:
    for file in files:
        if (reason := why_unreadable(file)) is not None:
            return Line("data", False, f"{file} cannot be read ({reason})")
    return Line("data", True, f"{len(files)} files readable")


def _absolute(path: str) -> str:
    return uri_of(path) or str(Path(path).expanduser().absolute())


def _storage(config: Config) -> Line:
    try:
        check_storage(_absolute(config.storage))
    except UserError as error:
        return Line("storage", False, f"{error.what}; give another --storage")
    return Line("storage", True, f"{config.storage} can be written")
