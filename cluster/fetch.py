"""Bring a folder back from a cluster whose storage this machine does not share.

A small job on the node that holds the folder prints it as an archive; what arrives is checked against
its hash before anything is written where the user wants it.
"""

import base64
import hashlib
import shutil
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO

from cluster.errors import ClusterError
from cluster.jobs import Job, Jobs
from cluster.submit import Submission, submit

BEGIN, END = "spikeprune-archive ", "spikeprune-archive-end"
NO_FOLDER = 4
_SEND = f"""
import base64, hashlib, os, sys, tarfile, tempfile
folder = os.path.expanduser(sys.argv[1])
with tempfile.TemporaryFile() as file, tempfile.TemporaryDirectory() as copy:
    if "://" in folder:
        from pyarrow import fs
        try:
            there, path = fs.FileSystem.from_uri(folder)
        except ValueError:
            there, path = fs.FileSystem.from_uri("fsspec+" + folder)
        if there.get_file_info(path + "/config.yaml").type == fs.FileType.NotFound:
            sys.exit({NO_FOLDER})
        fs.copy_files(path, copy, source_filesystem=there, destination_filesystem=fs.LocalFileSystem())
        folder = copy
    if not os.path.isdir(folder):
        sys.exit({NO_FOLDER})
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        archive.add(folder, arcname=".")
    size, digest = file.tell(), hashlib.sha256()
    file.seek(0)
    for block in iter(lambda: file.read(1 << 20), b""):
        digest.update(block)
    file.seek(0)
    print({BEGIN!r} + str(size) + " " + digest.hexdigest(), flush=True)
    for block in iter(lambda: file.read(30_000), b""):
        print(base64.b64encode(block).decode())
    print({END!r}, flush=True)
"""


def fetch(
    jobs: Jobs, job: Job, output: Path | None = None, progress: Callable[[int, int], None] = lambda *_: None
) -> Path:
    """Copy the folder of a job's run to this machine.

    Args:
        jobs: the cluster.
        job: one that was submitted by `spikeprune submit`.
        output: folder to make; by default the run's name below ``runs``.
        progress: told the bytes that have arrived and all of them.

    Returns:
        the folder made.

    Raises:
        ClusterError: the job has no run's folder, or it is gone, or ``output`` exists.
    """
    remote = job.metadata.get("run")
    if remote is None:
        raise ClusterError(job.id, "makes no run's folder that could be fetched")
    target = output or Path("runs") / Path(remote).name
    if target.exists():
        raise ClusterError("--output", f"{target} exists; choose another folder with --output")
    with tempfile.TemporaryDirectory() as empty:
        sender = submit(
            jobs,
            Submission(
                words=["-c", _SEND, remote], name=f"fetch-{job.id}", working_dir=Path(empty), env=job.env
            ),
            node=job.node,
        )
    with tempfile.TemporaryFile() as archive:
        receiver = _Receiver(archive, progress)
        ended = jobs.follow(sender, receiver)
        if ended.result == NO_FOLDER:
            raise ClusterError(job.id, f"its folder {remote} is not there (any more)")
        if ended.result or not receiver.whole:
            raise ClusterError(
                job.id, f"its folder {remote} did not arrive whole ({ended.message}); try again"
            )
        jobs.forget(sender)
        target.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        try:
            archive.seek(0)
            with tarfile.open(fileobj=archive, mode="r:gz") as members:
                members.extractall(beside, filter="data")
            beside.rename(target)
        except (OSError, tarfile.TarError) as error:
            shutil.rmtree(beside, ignore_errors=True)
            raise ClusterError("--output", f"{target} cannot be written ({error})") from None
    target.chmod(0o755)
    return target


class _Receiver:
    """Takes a job's output in any pieces and writes the archive in it."""

    def __init__(self, out: IO[bytes], progress: Callable[[int, int], None]) -> None:
        self._out, self._progress = out, progress
        self._rest, self._started = "", False
        self._size, self._expected, self._digest, self._hash = 0, 0, "", hashlib.sha256()
        self.whole = False

    def __call__(self, text: str) -> None:
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            if line.startswith(BEGIN):
                size, self._digest = line.removeprefix(BEGIN).split()
                self._expected, self._started = int(size), True
            elif line == END:
                self.whole = self._hash.hexdigest() == self._digest
            elif self._started:
                block = base64.b64decode(line)
                self._out.write(block)
                self._hash.update(block)
                self._size += len(block)
                self._progress(self._size, self._expected)
