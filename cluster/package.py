"""Pack a working directory for a job: what belongs to it, how large it is, and nothing secret."""

import fnmatch
import os
import subprocess
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from cluster.errors import ClusterError

MAX_BYTES = 100 * 2**20  # what a dashboard takes in one upload
LAUNCHER = ".spikeprune/job.sh"
EXCLUDES = (
    ".git", ".hg", ".svn", ".venv", "venv", "__pycache__", "*.pyc", "*.egg-info", "build", "dist",
    ".mypy_cache", ".ruff_cache", ".pytest_cache", ".hypothesis", ".tox", ".ipynb_checkpoints",
    "node_modules", "runs", "wandb", "mlruns", ".DS_Store",
    ".env", ".env.*", "auth_token", "*-token", "id_rsa*", "id_ed25519*", "*.pem", "*.key", ".ssh",
    ".aws", ".netrc",
)  # fmt: skip
"""Names that are left out wherever they occur: caches, results and secrets."""

# Ray starts a job's command by a shell with whichever python comes first on the head's PATH. The
# interpreter that runs the cluster stands in the raylet's command line, some parents up.
LAUNCH_SCRIPT = r"""# Run the words given with the interpreter that the cluster itself runs on.
python=python
if [ -z "$VIRTUAL_ENV" ] || [ -z "$SPIKEPRUNE_JOB_PIP" ]; then
    pid=$PPID
    while [ "${pid:-0}" -gt 1 ]; do
        found=$(tr '\0' '\n' <"/proc/$pid/cmdline" | sed -n 's/^--python_worker_command=\([^ ]*\) .*/\1/p')
        if [ -n "$found" ]; then python=$found; break; fi
        pid=$(sed -n 's/^PPid:[[:space:]]*//p' "/proc/$pid/status")
    done
fi
exec "${SPIKEPRUNE_PYTHON:-$python}" "$@"
"""


@dataclass(frozen=True)
class Package:
    """A packed working directory."""

    path: Path
    files: int
    bytes: int
    """Of the archive."""


def pack(
    folder: Path,
    archive: Path,
    *,
    include: Sequence[Path] = (),
    excludes: Iterable[str] = (),
    extra: Sequence[tuple[str, bytes]] = (),
    respect_gitignore: bool = True,
) -> Package:
    """Write a zip archive of ``folder`` that has the same bytes for the same content.

    Left out are `EXCLUDES`, what git ignores (in a git work tree) and ``excludes``; links that lead
    outside are not followed.

    Args:
        folder: to pack.
        archive: file to write.
        include: files or folders below ``folder`` that are packed in any case.
        excludes: further patterns, of a name or of a path relative to ``folder``.
        extra: further members, as path in the archive and content.
        respect_gitignore: leave out what git ignores.

    Raises:
        ClusterError: no such folder, a folder that hides this software, or more than `MAX_BYTES`.
    """
    if not folder.is_dir():
        raise ClusterError("--working-dir", f"{folder} is not a folder")
    folder = folder.resolve()
    check_shadowing(folder)
    files = _files(folder, tuple(excludes), respect_gitignore)
    for path in include:
        path = path.absolute()
        inside = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
        files |= {p.relative_to(folder).as_posix(): p for p in inside if not _excluded(p.name, EXCLUDES)}
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as out:
        for name, path in sorted(files.items()):
            _write(out, name, path.read_bytes(), executable=os.access(path, os.X_OK))
        for name, content in [(LAUNCHER, LAUNCH_SCRIPT.encode()), *extra]:
            _write(out, name, content)
    size = archive.stat().st_size
    if size > MAX_BYTES:
        largest = sorted(files, key=lambda n: files[n].stat().st_size, reverse=True)[:3]
        told = ", ".join(f"{n} ({megabytes(files[n].stat().st_size)})" for n in largest)
        raise ClusterError(
            "--working-dir",
            f"{folder} packs to {megabytes(size)}, a job takes {megabytes(MAX_BYTES)}; largest: {told}; "
            "leave some out with --exclude PATTERN, and keep data on storage that the cluster reads",
        )
    return Package(archive, len(files), size)


def check_shadowing(folder: Path) -> None:
    """That nothing in a folder hides this software, since a job imports from its folder first.

    A checkout of this software is no mistake: the job then runs that code.

    Raises:
        ClusterError: a module or folder there has the name of one of ours.
    """
    ours = ("snn", "pruning", "pipelines", "cluster")
    hiding = shadows(folder)
    if hiding and len(hiding) < len(ours):
        raise ClusterError(
            "--working-dir",
            f"{folder / hiding[0]} hides spikeprune's module of that name; rename it, or send another folder",
        )


def shadows(folder: Path) -> list[str]:
    """Modules in ``folder`` with the name of one of this software's."""
    names = ("snn", "pruning", "pipelines", "cluster")
    return [
        hit
        for n in names
        for hit in (f"{n}.py", n)
        if (folder / hit).is_file() or (folder / hit / "__init__.py").is_file()
    ]


def megabytes(size: float) -> str:
    """A size for people."""
    return f"{size / 2**20:.1f} MiB" if size >= 2**20 / 10 else f"{size / 1024:.1f} KiB"


def _write(out: zipfile.ZipFile, name: str, content: bytes, *, executable: bool = False) -> None:
    info = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
    info.external_attr = (0o755 if executable else 0o644) << 16
    info.compress_type = zipfile.ZIP_DEFLATED
    out.writestr(info, content)


def _files(folder: Path, excludes: tuple[str, ...], respect_gitignore: bool) -> dict[str, Path]:
    kept = _not_ignored(folder) if respect_gitignore else None
    found: dict[str, Path] = {}
    for root, folders, names in os.walk(folder):
        here = Path(root).relative_to(folder)
        folders[:] = [d for d in folders if not _leaves_out((here / d).as_posix(), excludes)]
        for name in names:
            relative = (here / name).as_posix()
            path = Path(root) / name
            if _leaves_out(relative, excludes) or (kept is not None and relative not in kept):
                continue
            if path.is_file() and path.resolve().is_relative_to(folder.resolve()):
                found[relative] = path
    return found


def _leaves_out(relative: str, excludes: tuple[str, ...]) -> bool:
    return _excluded(PurePosixPath(relative).name, EXCLUDES) or any(
        fnmatch.fnmatch(relative, e.rstrip("/"))
        or fnmatch.fnmatch(PurePosixPath(relative).name, e.rstrip("/"))
        for e in excludes
    )


def _excluded(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch.fnmatch(name, p) for p in patterns)


def _not_ignored(folder: Path) -> set[str] | None:
    """Paths that git does not ignore; ``None`` outside of a work tree, or without git."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            capture_output=True,
            check=False,
        )
    except OSError:
        return None
    return set(done.stdout.decode(errors="surrogateescape").split("\0")) if done.returncode == 0 else None
