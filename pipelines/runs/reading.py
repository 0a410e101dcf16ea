"""Whether a run holds its training rows in memory or reads them by row groups."""

from dataclasses import replace
from pathlib import Path

from pipelines.config import Config
from pipelines.data.dataset import Split
from pipelines.runs.run_folder import CONFIG, read_config

MEMORY_GB = 2.0
WINDOW_BYTES = 64 << 20
MIN_WINDOW, MAX_WINDOW = 1024, 65_536


def settle_reading(config: Config, train: Split, folder: Path) -> Config:
    """The config with ``data.reading`` decided: ``memory`` or ``shards``; a run goes on as it began.

    The machine has no say: the two shuffle differently, and a config's figures are to be the same anywhere.

    Args:
        config: of the run.
        train: training rows.
        folder: of the run.
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
