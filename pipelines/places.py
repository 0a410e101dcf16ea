"""Where runs lie: a folder that is used as it is, or storage named by a URI with a working copy here.

A run on such storage is written here and goes up before and after every checkpoint; Ray's checkpoints go
there from the workers directly. What is there is what counts: it is fetched before a run goes on.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cluster.mirror import STATE, Mirror
from cluster.storage import Remote, below, name_of, open_file, short, uri_of
from pipelines.config import Config
from pipelines.errors import UserError

CONFIG = "config.yaml"


def run_path(config: Config) -> Path:
    """Where a config's run lies, absolute; the working copy where storage is a URI."""
    uri = run_uri(config)
    if uri is not None:
        return _working_copy(uri, "runs")
    return (Path(config.storage).expanduser() / config.name).absolute()


def run_uri(config: Config) -> str | None:
    """The URI of a config's run; ``None`` where storage is a folder."""
    uri = uri_of(config.storage)
    return None if uri is None else below(uri, config.name)


def mirror_of(folder: Path, uri: str | None) -> Mirror | None:
    """The mirror between a working copy and what it is a copy of."""
    return None if uri is None else Mirror(folder, Remote.of(uri))


def fetch_run(mirror: Mirror, *, resume: bool) -> None:
    """What there is of a run, before it starts or goes on; without its checkpoints where it would start.

    Raises:
        UserError: the storage cannot be read or written.
    """
    with told(mirror.remote):
        reason = mirror.remote.why_not()
        if reason is not None:
            raise UserError("storage", f"{mirror.remote.uri} cannot be used ({reason})")
        starts = not resume and mirror.remote.exists(CONFIG)  # and is refused because of it
        mirror.pull(beside_checkpoints if starts else lambda name: True)


def in_checkpoints(name: str) -> bool:
    """Whether a file of a run is in one of its checkpoints, the only ones that a run deletes."""
    return name.startswith("checkpoints/") and name.count("/") > 1


def beside_checkpoints(name: str) -> bool:
    """Whether a file of a run is in none of its checkpoints."""
    return not in_checkpoints(name)


def here(source: Path) -> Path:
    """``source``, or a copy of it where it is a run named by a URI.

    Raises:
        UserError: there is nothing, or the storage cannot be read.
    """
    uri = uri_of(source)
    if uri is None:
        return source
    remote = Remote.of(uri, where="run")
    with told(remote):
        mirror = Mirror(_working_copy(uri, "copies"), remote)
        mirror.pull()
    if not any(p.name != STATE for p in mirror.local.iterdir()):
        raise UserError(uri, "does not exist; name a run's folder")
    return mirror.local


def give_back(folder: Path) -> None:
    """Upload what has changed in a working copy since it was fetched; nothing for any other folder.

    Raises:
        UserError: the storage cannot be written.
    """
    if (folder / STATE).exists():
        remote = Remote.of(json.loads((folder / STATE).read_text())["uri"])
        with told(remote):
            Mirror(folder, remote).push()


@contextmanager
def local_file(path: str) -> Iterator[Path]:
    """A file here: the one of that path, or for a while a copy of the one of that URI."""
    if uri_of(path) is None:
        yield Path(path)
        return
    filesystem, at = open_file(path)
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / name_of(path)
        Remote(path, filesystem, at.rpartition("/")[0]).download(copy.name, copy)
        yield copy


@contextmanager
def told(remote: Remote) -> Iterator[None]:
    """Whatever its filesystem raises, as one line.

    Raises:
        UserError: instead.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # fsspec's filesystems raise what they like
        raise UserError("storage", f"{remote.uri} cannot be used ({short(error)})") from error


def _working_copy(uri: str, kind: str) -> Path:
    """A folder that is the same on every machine, where anybody may make one."""
    ours = Path(tempfile.gettempdir()) / f"spikeprune-{os.getuid()}"
    ours.mkdir(mode=0o700, exist_ok=True)
    if ours.stat().st_uid != os.getuid():
        raise UserError(str(ours), "belongs to somebody else; set TMPDIR to a folder of yours")
    return ours / kind / hashlib.sha256(uri.encode()).hexdigest()[:12] / name_of(uri)
