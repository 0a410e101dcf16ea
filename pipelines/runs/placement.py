"""What a run decides once and keeps: engine, device and threads, told in a line; how it reads its rows."""

from dataclasses import replace
from pathlib import Path

import torch

from cluster.connect import usable_cpus
from pipelines.config import ClusterConfig, Config
from pipelines.data.dataset import Split
from pipelines.data.inputs import choose_device
from pipelines.runs.run_folder import CONFIG, read_config, read_provenance

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
