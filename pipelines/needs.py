"""What a config needs, as the plain numbers and names that `cluster.doctor` takes."""

from pathlib import Path

from cluster.doctor import Needs
from cluster.storage import Remote, below, uri_of
from pipelines.config import Config


def needs_of(config: Config) -> Needs:
    """What a config asks of a machine or cluster; data that is not there yet counts nothing."""
    c, (files, size) = config.cluster, _data(config)
    uri = uri_of(config.storage)
    return Needs(
        cpus=c.workers * c.cpus_per_worker + 1,
        gpus=c.workers * c.gpus_per_worker,
        workers=c.workers,
        data=files,
        data_bytes=size,
        storage=Path(config.storage).expanduser().absolute() if uri is None else uri,
    )


def _data(config: Config) -> tuple[tuple[str, ...], int]:
    """The dataset's files and their bytes; the folder and nothing where there are none."""
    uri, folder = uri_of(config.data.path), Path(config.data.path).absolute()
    if uri is None:
        local = sorted(folder.glob("*.parquet")) if folder.is_dir() else []
        return tuple(map(str, local)) or (str(folder),), sum(p.stat().st_size for p in local)
    try:
        there = Remote.of(uri, where="data.path").files()
    except Exception:  # the check of the folder itself tells why
        there = {}
    found = {name: file.size for name, file in sorted(there.items()) if name.endswith(".parquet")}
    return tuple(below(uri, name) for name in found) or (uri,), sum(found.values())
