"""Whether a run holds its training rows in memory or reads them by row groups."""

import os
from dataclasses import replace
from pathlib import Path

from pipelines.config import Config
from pipelines.data.dataset import Split
from pipelines.runs.run_folder import CONFIG, read_config

WINDOW_BYTES = 64 << 20
MIN_WINDOW, MAX_WINDOW = 1024, 65_536


def settle_reading(config: Config, train: Split, folder: Path) -> Config:
    """The config with ``data.reading`` decided: ``memory`` or ``shards``; a run goes on as it began.

    Args:
        config: of the run; with engine ray, Ray is connected.
        train: training rows.
        folder: of the run.
    """
    reading = config.data.reading
    if reading == "auto" and (folder / CONFIG).exists():
        reading = read_config(folder).data.reading
    if reading == "auto":
        given = config.data.memory_gb
        limit = _limit(config.cluster.engine) if given is None else given * 1e9
        reading = "shards" if train.num_bytes > limit else "memory"
    return replace(config, data=replace(config.data, reading=reading))


def window_rows(config: Config, train: Split) -> int:
    """Rows that are shuffled together when reading by row groups: a property of config and data alone."""
    if config.data.shuffle_rows is not None:
        return config.data.shuffle_rows
    row = max(train.num_bytes / max(int(train.layout.rows.sum()), 1), 1)
    return max(MIN_WINDOW, min(MAX_WINDOW, int(WINDOW_BYTES / row)))


def _limit(engine: str) -> float:
    if engine == "local":
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 4
    import ray

    return ray.cluster_resources().get("object_store_memory", 0) / 2
