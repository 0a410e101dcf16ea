"""Storage and data as the nodes of a cluster see them."""

import os
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

from cluster.checks import on_every_node
from pipelines.errors import UserError
from pipelines.storage.paths import Folder, short, why_unreadable
from pipelines.storage.sync import storage_errors

SHARE = "give a folder that all nodes share (NFS or the like), or use one node"


def check_shared(storage: Path | str | None, files: Sequence[str]) -> None:
    """That all nodes of the connected cluster write to the same storage and read the data."""
    folder = None if storage is None else Folder.of(storage)
    mark = f".probe-{uuid4().hex}"
    if folder is not None:
        with storage_errors(folder):
            folder.write(mark, mark.encode())
    try:
        for ip, (unwritable, name, unreadable) in on_every_node(_look, storage, mark, tuple(files)).items():
            if unwritable is not None:
                what = f"{storage} cannot be written from node {ip} ({unwritable}); {SHARE}"
                raise UserError("storage", what)
            if folder is not None and (name is None or not _appears(folder, name)):
                what = f"{storage} is not shared: the driver and node {ip} see other files there; {SHARE}"
                raise UserError("storage", what)
            if unreadable is not None:
                what = f"node {ip} cannot read {unreadable}; put the data where every node reads it"
                raise UserError("data.path", what)
    finally:
        if folder is not None:
            with suppress(Exception):
                for entry in folder.files():
                    if entry.path.startswith(mark):
                        folder.remove(entry.path)


def _look(
    storage: Path | str | None, mark: str, files: tuple[str, ...]
) -> tuple[str | None, str | None, str | None]:
    """On a node: why it cannot write, what it wrote if it sees the driver's file, what it cannot read."""
    unreadable = next((file for file in files if why_unreadable(file) is not None), None)
    if storage is None:
        return None, None, unreadable
    name = f"{mark}-{uuid4().hex}"
    try:
        folder = Folder.of(storage)
        folder.write(name, name.encode())
    except Exception as error:  # fsspec's filesystems raise what they like
        return short(error), None, unreadable
    return None, name if _appears(folder, mark) else None, unreadable


def _appears(folder: Folder, name: str) -> bool:
    for _ in range(20):  # network file systems may show a new file a little late
        with suppress(Exception):
            if folder.is_local:
                os.listdir(folder.root)  # they look again
            if folder.read(name) == name.encode():
                return True
        time.sleep(0.1)
    return False
