"""Before a run: what it decides once and keeps, everything that can be known to go wrong, and `doctor`."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import combinations
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal

import torch

from cluster.checks import Line, check_bytecode, check_dashboard, check_nodes, check_token
from cluster.connect import check_cluster_answers, connect, local_cpus, usable_cpus
from cluster.errors import UserError
from pipelines.config import ClusterConfig, Config, DataConfig, is_own
from pipelines.config.plugins import OURS, OwnCode, check_unchanged, refuse_shadowing, use_own_code
from pipelines.data.dataset import CHEAP_BYTES, DatasetInfo, check_examples, check_labels, describe
from pipelines.data.inputs import choose_device
from pipelines.data.scan import Split, read_split, split_files
from pipelines.networks import check_own_network, make_network
from pipelines.runs.run_folder import CODE, CONFIG, check_same_data, read_config, read_provenance, run_path
from pipelines.storage.atomic import check_storage
from pipelines.storage.paths import real_path, uri_of
from pipelines.storage.sync import check_shared
from pipelines.training.phases import RunSpec
from pipelines.training.score_table import check_size
from pipelines.training.worker import check_trackers
from pruning.examples.policies import POLICIES
from pruning.examples.policies.settings import FORWARD_COST, Settings

MEMORY_GB = 2.0
WINDOW_BYTES = 64 << 20
MIN_WINDOW, MAX_WINDOW = 1024, 65_536


def resolve_engine(config: Config, folder: Path) -> Config:
    """The config with ``cluster.engine`` and ``cluster.threads`` decided; a run goes on as it began."""
    known, c = read_provenance(folder), config.cluster
    began = read_config(folder).cluster if (folder / CONFIG).exists() else c
    engine = known.get("engine", began.launcher) if c.engine == "auto" else c.engine
    threads = c.threads or known.get("threads") or default_threads(c)
    return replace(config, cluster=replace(c, engine=engine, threads=threads))


def default_threads(cluster: ClusterConfig) -> int:
    """Threads of a worker where nobody says how many; the same for both engines."""
    alone = cluster.workers == 1 and cluster.address is None
    return int(cluster.cpus_per_worker) or (min(torch.get_num_threads(), usable_cpus()) if alone else 1)


def resolve_reading(config: Config, train: Split, folder: Path) -> Config:
    """The config with ``data.reading`` decided: ``memory`` or ``shards``; a run goes on as it began.

    The machine has no say: the two shuffle differently, and a config's figures are to be the same anywhere.
    """
    reading = config.data.reading
    if reading == "auto" and (folder / CONFIG).exists():
        reading = read_config(folder).data.reading
    if reading == "auto":
        given = config.data.memory_gb
        limit = MEMORY_GB if given is None else given
        reading = "shards" if train.num_bytes > limit * 1e9 else "memory"
    return replace(config, data=replace(config.data, reading=reading))


def window_rows(config: Config, train: Split) -> int:
    """Rows that are shuffled together when reading by row groups: a property of config and data alone."""
    if config.data.shuffle_rows is not None:
        return config.data.shuffle_rows
    row = max(train.num_bytes / max(int(train.layout.rows.sum()), 1), 1)
    return max(MIN_WINDOW, min(MAX_WINDOW, int(WINDOW_BYTES / row)))


def assign_gpus(config: Config, gpus: float) -> Config:
    """The config with a GPU for each of Ray's workers, where ``cluster.device`` wants one and the cluster has
    so many."""
    c = config.cluster
    wanted = c.device.startswith("cuda") or (c.device == "auto" and gpus >= c.workers + c.gpus_per_scorer)
    if c.gpus_per_worker or not wanted:
        return config
    return replace(config, cluster=replace(c, gpus_per_worker=1))


def placement(asked: ClusterConfig, config: Config) -> str:
    """The line that tells engine, threads and, where it is known before Ray starts, the device."""
    c = config.cluster
    why = c.needs_ray if c.engine == "ray" else "one worker, no address"
    why = "as the run began" if c.engine != asked.launcher else why or "as asked for"
    threads = f"{c.threads} thread{'s' if c.threads != 1 else ''}"
    if c.engine == "ray":
        return f"engine ray ({why}), {threads} per worker"
    device = choose_device(c.device, torch.cuda.device_count())
    name = f" ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else ""
    return f"engine local ({why}), device {device}{name}, {threads}"


@dataclass(frozen=True, kw_only=True)
class CheckedData:
    """A run's dataset, read and found good."""

    train: Split
    val: Split | None
    """Validation examples, where the config has any."""
    test: Split
    info: DatasetInfo

    @property
    def files(self) -> tuple[str, ...]:
        """All files that a run reads."""
        return (*self.train.files, *(self.val.files if self.val else ()), *self.test.files)

    def spec(self, config: Config, **more: Any) -> RunSpec:
        """What the workers of a run on these data need to know; ``more`` are further fields of it."""
        rows = window_rows(config, self.train)
        return RunSpec(config=config, **vars(self), window_rows=rows, **more)


def check_inputs(
    config: Config, folder: Path, kind: Literal["run", "search"], *, on_ray: bool
) -> tuple[OwnCode | None, CheckedData]:
    """What a run or search in ``folder`` needs and may not change: cluster, own code, data, storage."""
    if on_ray:
        refuse_shadowing(Path.cwd(), OURS, "the current folder")  # first on the path of Ray's workers
        if config.cluster.address is not None:
            check_cluster_answers(config.cluster.address)
    code = use_own_code(config)
    check_unchanged(code, folder / CODE, kind)
    data = check_data(config)
    check_same_data(folder, config, kind)
    check_trackers(config)
    check_storage(folder.parent)
    return code, data


def check_data(config: Config) -> CheckedData:
    """The dataset of a config, checked, with a network that fits it."""
    use_own_code(config)
    train, val, test = _splits(config.data, config.seed)
    info = describe(train, test, config.data.path, config.data, config.model.T)
    if val is not None:
        check_labels(val, info.num_classes)
    _check_inputs(config, info)
    network = make_network(config.model, info, config.seed)
    if is_own(config.model.name):
        score = POLICIES[config.data_pruning.policy].score
        check_own_network(config.model, network, info, score=score, tail_depth=config.data_pruning.tail_depth)
    if train.num_examples < 2 * config.cluster.workers:
        raise UserError(
            train.files[0],
            f"{train.num_examples} rows are too few for {config.cluster.workers} workers; "
            "lower cluster.workers",
        )
    names = [s.name for s in network.synapses()]
    for name in config.weight_pruning.exclude:
        if name not in names:
            raise UserError(
                "weight_pruning.exclude", f"{name!r} is not a layer; choose from {', '.join(names)}"
            )
    return CheckedData(train=train, val=val, test=test, info=info)


def _splits(data: DataConfig, seed: int) -> tuple[Split, Split | None, Split]:
    """Training, validation and test examples, checked; no file holds examples of two of them."""
    fields = ("train_split", "val_split", "test_split")
    prefixes = {field: prefix for field in fields if (prefix := getattr(data, field)) is not None}
    files = {
        f: {real_path(file) for file in split_files(data.path, prefix)} for f, prefix in prefixes.items()
    }
    for a, b in combinations(files, 2):
        if shared := files[a] & files[b]:
            both = f"{prefixes[b]!r} and data.{a} {prefixes[a]!r} share {min(shared).name}"
            raise UserError(
                f"data.{b}",
                f"{both}; what is trained on must not be evaluated on: name a split of other files",
            )
    train = read_split(data.path, data.train_split).first(data.train_rows)
    val = None if data.val_split is None else read_split(data.path, data.val_split)
    test = read_split(data.path, data.test_split).first(data.test_rows)
    check_size(train.num_examples)
    found = [split for split in (train, val, test) if split is not None]
    if sum(s.num_bytes for s in found) <= CHEAP_BYTES:
        for split in found:
            check_examples(split)
    if data.val_share is not None:
        train, val = train.parted(data.val_share, seed)
    return train, val, test


def check_same_validation(source: Config, config: Config) -> None:
    """That no example on which ``source``'s network was trained validates what comes of it."""
    if config.data.val_share is None:
        return
    for field in ("data.val_share", "data.train_rows", "seed"):
        get = attrgetter(field)
        if get(source) != get(config):
            raise UserError(
                field,
                f"{get(config)} draws other validation examples than {get(source)} of run {source.name!r}, "
                "which has trained on them; leave it as it is there, or set data.val_split",
            )


def _check_inputs(config: Config, info: DatasetInfo) -> None:
    """That the timesteps and the augmentation fit the examples."""
    if info.timesteps not in (None, config.model.T):
        raise UserError(
            "model.T", f"{config.model.T} does not fit: the dataset holds {info.timesteps} frames per example"
        )
    a = config.data.augment
    images = len(info.input_shape) == 3
    for name in ("crop", "flip", "cutout", "roll"):
        if getattr(a, name) and not images:
            raise UserError(f"data.augment.{name}", f"does not apply to examples of shape {info.input_shape}")
    if a.drop_time and info.frames is None and info.timesteps is None:
        raise UserError("data.augment.drop_time", "applies to events alone; this dataset holds none")


def check_locations(config: Config) -> None:
    """That the run is written beside its data, and that it can use the cluster or device that it names."""
    if uri_of(config.storage) is None and uri_of(config.data.path) is None:
        storage, data = real_path(run_path(config).parent), real_path(config.data.path)
        if data.exists() and storage.is_relative_to(data):
            raise UserError(
                "storage", f"{config.storage} is inside the dataset {config.data.path}; choose another"
            )
    c = config.cluster
    if c.engine == "local":
        if c.address is not None:
            remedy = "set the engine to ray, or the address to null"
            raise UserError("cluster.address", f"{c.address} is not used by cluster.engine local; {remedy}")
        device = choose_device(c.device, torch.cuda.device_count())
        if c.gpus_per_worker and device.type == "cpu":
            raise UserError("cluster.gpus_per_worker", f"{c.gpus_per_worker:g} is not possible: no GPU here")
    elif ":" in c.device:
        raise UserError(
            "cluster.device", f"{c.device} is not possible: Ray chooses among the GPUs; set it to cuda"
        )
    if c.workers > 1 and 0 < c.gpus_per_worker <= 0.5:
        raise UserError(
            "cluster.gpus_per_worker",
            f"{c.gpus_per_worker:g} puts two of {c.workers} workers on one GPU, which NCCL refuses; give "
            "each more than half of one, or set cluster.workers to 1",
        )


def advice(config: Config) -> str | None:
    """A warning where no epoch is pruned, or scoring passes cost more than half of what is saved."""
    e, T = config.data_pruning, config.model.T
    policy = POLICIES[e.policy]
    if e.policy != "full" and e.warmup_epochs + e.anneal_epochs >= config.train.epochs:
        return (
            f"train.epochs {config.train.epochs}: data_pruning.warmup_epochs {e.warmup_epochs} and"
            f" anneal_epochs {e.anneal_epochs} leave no epoch to prune; all train on all data"
        )
    every = policy.rescore_every if e.rescore_every is None else e.rescore_every
    if policy.score is None or not every or not e.ratio:
        return None
    scored = {"all": 1.0, "unselected": e.ratio, "sample": Settings.rescore_share}[e.rescore_who]
    cost = FORWARD_COST * (e.score_timesteps or T) / T * scored / every
    if cost <= e.ratio / 2:
        return None
    return (
        f"data_pruning.rescore_every {every}: scoring passes cost {cost:.2f} of a full epoch per pruned"
        f" epoch, of the {e.ratio:.2f} that it saves; 0 takes the scores from the training steps at no cost"
    )


def check_cluster(config: Config, cpus: float, gpus: float) -> None:
    """That all workers and one scoring task fit the cluster at once; Ray would wait without a word."""
    c = config.cluster
    needed = c.workers * c.cpus_per_worker + 1
    if needed > cpus:
        fitting = int((cpus - 1) // c.cpus_per_worker)
        remedy = f"set it to {fitting} or less" if fitting >= 1 else "use a larger cluster"
        raise UserError(
            "cluster.workers",
            f"{c.workers} workers of {c.cpus_per_worker:g} CPUs and one CPU for scoring need {needed:g} "
            f"CPUs, the cluster has {cpus:g}; {remedy}, or lower cluster.cpus_per_worker",
        )
    if c.workers * c.gpus_per_worker + c.gpus_per_scorer > gpus:
        scorer = f" and a scorer of {c.gpus_per_scorer:g}" if c.gpus_per_scorer else ""
        raise UserError(
            "cluster.gpus_per_worker",
            f"{c.workers} workers of {c.gpus_per_worker:g} GPUs{scorer} do not fit the cluster's {gpus:g}",
        )


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
                yield check_nodes()
                yield from _needs(config, "ray", cluster.cpus, cluster.gpus, everywhere=True)
        except UserError as error:
            yield Line("cluster", False, str(error))
    elif dashboard is None:
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
