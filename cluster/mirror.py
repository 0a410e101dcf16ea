"""A local folder kept the same as one on another filesystem: what changed goes up, or comes down.

A file beside the copies remembers what was the same when, so that any process of this machine moves only
what has changed since.
"""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from cluster.storage import Found, Remote

STATE = ".mirror.json"
IGNORED = (".partial-", ".probe-", STATE)


class Mirror:
    """A local folder and the remote one that it stands for.

    Args:
        local: the folder here; made when it is needed.
        remote: the folder there.
    """

    def __init__(self, local: Path, remote: Remote) -> None:
        self.local, self.remote = local, remote

    def push(self, removed: Callable[[str], bool] = lambda name: False) -> None:
        """Upload what is new or has changed here, and delete there what its user has deleted here.

        Args:
            removed: of a file that was the same and is gone here, whether its user has deleted it. Others
                may have: systems clean their folders of temporary files by age.

        Raises:
            OSError: the other filesystem cannot be written.
        """
        known = self._known()
        here = self._here()
        changed = [name for name, now in here.items() if known.get(name, [])[:2] != now]
        for name in changed:
            self.remote.upload(name, self.local / name)
        told = self.remote.find(changed) if changed else {}
        for name in filter(removed, set(known) - set(here)):
            self.remote.remove(name)
            del known[name]
        for name in changed:
            known[name] = [*here[name], told[name].size, told[name].modified]
        self._keep(known)

    def pull(self, wanted: Callable[[str], bool] = lambda name: True) -> None:
        """Download what is new or has changed there, and delete here what is not there.

        Args:
            wanted: the files that are looked at; others stay as they are here.

        Raises:
            OSError: the other filesystem cannot be read.
        """
        known, here = self._known(), self._here()
        there = {n: f for n, f in self.remote.files().items() if wanted(n) and not _ignored(n)}
        for name, found in there.items():
            if name in here and known.get(name) == [*here[name], *_of(found)]:
                continue
            self.remote.download(name, self.local / name)
            known[name] = [*_stamp(self.local / name), *_of(found)]
        for name in {n for n in here if wanted(n)} - set(there):
            (self.local / name).unlink(missing_ok=True)
            known.pop(name, None)
        for folder in sorted((p for p in self.local.rglob("*") if p.is_dir()), reverse=True):
            if not any(folder.iterdir()):
                shutil.rmtree(folder)
        self._keep(known)

    def _here(self) -> dict[str, list[int]]:
        found = {}
        for root, _, names in os.walk(self.local):
            for name in names:
                path = Path(root) / name
                relative = path.relative_to(self.local).as_posix()
                if not _ignored(relative):
                    found[relative] = _stamp(path)
        return found

    def _known(self) -> dict[str, list[int]]:
        try:
            state = json.loads((self.local / STATE).read_text())
        except (OSError, ValueError):
            return {}
        return state["files"] if state.get("uri") == self.remote.uri else {}

    def _keep(self, known: dict[str, list[int]]) -> None:
        self.local.mkdir(parents=True, exist_ok=True)
        if not known:
            (self.local / STATE).unlink(missing_ok=True)
            return
        partial = self.local / f"{STATE}.partial-{os.getpid()}"
        partial.write_text(json.dumps({"uri": self.remote.uri, "files": known}))
        os.replace(partial, self.local / STATE)


def _ignored(name: str) -> bool:
    return any(mark in name for mark in IGNORED)


def _stamp(path: Path) -> list[int]:
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns]


def _of(found: Found) -> list[int]:
    return [found.size, found.modified]
