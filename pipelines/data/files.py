"""Files that are either whole or absent; those of datasets may lie on other filesystems."""

import json
import os
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.storage import Remote, name_of, parent, uri_of
from pipelines.errors import UserError

if TYPE_CHECKING:
    import pyarrow.parquet as pq


def write_beside(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a file next to ``path``, then rename it, so that no reader sees half of it.

    Raises:
        UserError: the disk is full or the folder cannot be written.
    """
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(partial)
        os.replace(partial, path)
    except OSError as error:
        raise UserError(str(path), f"cannot be written ({error.strerror or error})") from error
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def check_new_folder(where: str, folder: Path) -> None:
    """Refuse a folder to write that holds anything, or is no folder.

    Raises:
        UserError: so it is.
    """
    there = folder.resolve()  # so that a .. behind a folder yet to be made leads where writing would
    if there.exists() and (not there.is_dir() or any(there.iterdir())):
        raise UserError(where, f"{folder} holds other files, or is no folder; name a new or empty one")


def check_beside(where: str, output: Path, dataset: Path) -> None:
    """Refuse a file that would become, or replace, one of a dataset's.

    Raises:
        UserError: it lies in the dataset's folder.
    """
    if output.parent.resolve() == dataset.resolve():
        raise UserError(where, f"{output} lies among the dataset's own files; write it to another folder")


def write_json(path: Path, value: Any) -> None:
    """``value`` as indented JSON."""
    write_beside(path, lambda p: p.write_text(json.dumps(value, indent=2) + "\n"))


def read_json(path: Path) -> Any:
    """JSON from a file.

    Raises:
        UserError: missing or not JSON.
    """
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(str(path), "no such file") from None
    except (OSError, ValueError) as error:
        raise UserError(str(path), f"is not readable JSON ({error})") from None


def open_parquet(file: str) -> "pq.ParquetFile":
    """A Parquet file, named by a path or a URI.

    Raises:
        OSError: it cannot be opened.
        pyarrow.ArrowException: it is no such file.
    """
    import pyarrow.parquet as pq

    if uri_of(file) is None:
        return pq.ParquetFile(file)
    folder = _opened(parent(file))
    return pq.ParquetFile(f"{folder.root}/{name_of(file)}", filesystem=folder.filesystem)


def read_json_below(folder: Path | str, name: str) -> Any:
    """JSON from a file of a folder, named by a path or a URI; ``None`` where there is none.

    Raises:
        UserError: it is not JSON, or the filesystem does not answer.
    """
    uri = uri_of(folder)
    if uri is None:
        path = Path(folder) / name
        return read_json(path) if path.exists() else None
    remote = _opened(uri)
    try:
        return json.loads(remote.read(name)) if remote.exists(name) else None
    except (OSError, ValueError) as error:
        raise UserError(f"{uri}/{name}", f"is not readable JSON ({error})") from None


@lru_cache(maxsize=16)
def _opened(uri: str) -> Remote:
    """Connections are kept; a process reads from few places."""
    return Remote.of(uri, where="data.path")
