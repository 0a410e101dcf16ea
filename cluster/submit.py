"""Send a command to a cluster as a Ray job, with the files of a folder that it needs."""

import fnmatch
import os
import re
import secrets
import shlex
import subprocess
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Any

from cluster.errors import UserError
from cluster.jobs import Jobs
from cluster.tokens import Token

MAX_BYTES = 100 * 2**20
"""What a dashboard takes in one upload; Ray stores files without compressing them."""
EXCLUDES = (
    ".git", ".gitignore", ".hg", ".svn", ".venv", "venv", "__pycache__", "*.pyc", "*.egg-info", "build",
    "dist", ".mypy_cache", ".ruff_cache", ".pytest_cache", ".hypothesis", ".tox", ".ipynb_checkpoints",
    "node_modules", "runs", "wandb", "mlruns", ".DS_Store",
    ".env", ".env.*", "auth_token", "*-token", "id_rsa*", "id_ed25519*", "*.pem", "*.key", ".ssh",
    ".aws", ".netrc",
)  # fmt: skip
"""Names that are never sent: caches, results and secrets; git's own rules are applied here already."""
PACKAGES = ("spikeprune", "snn", "pruning", "pipelines", "cluster")


@dataclass(frozen=True)
class Package:
    """The files that a job is sent."""

    files: Mapping[str, Path]
    """By their path relative to the working directory."""

    @property
    def bytes(self) -> int:
        """Size of all files, in bytes."""
        return sum(path.stat().st_size for path in self.files.values())

    def largest(self) -> str:
        """The three largest files with their sizes."""
        sizes = {name: path.stat().st_size for name, path in self.files.items()}
        names = sorted(sizes, key=lambda n: sizes[n], reverse=True)[:3]
        return ", ".join(f"{n} ({megabytes(sizes[n])})" for n in names)

    def __str__(self) -> str:
        largest = f"; largest: {self.largest()}" if self.files else ""
        return f"{len(self.files)} files, {megabytes(self.bytes)}{largest}"


def submit(
    jobs: Jobs,
    package: Package,
    words: Sequence[str],
    id: str,
    *,
    python: str = "python",
    extra: Sequence[tuple[str, bytes]] = (),
    pip: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
    metadata: dict[str, str] | None = None,
) -> None:
    """Upload the files of a job, and ``extra`` ones (relative path, content), and start it.

    ``words`` are arguments of ``python``, as the cluster's shell finds it; ``pip`` comes on top of its
    environment. Whoever may list jobs can read ``env`` and ``metadata``, so neither may hold a secret.
    """
    # A folder of links holds exactly what was listed: git's rules and `excludes` alone could neither add
    # ignored data that the config names nor keep out a token of any name.
    with tempfile.TemporaryDirectory(prefix="spikeprune-") as folder:
        for path, source in package.files.items():
            (Path(folder) / path).parent.mkdir(parents=True, exist_ok=True)
            (Path(folder) / path).symlink_to(source)
        for path, content in extra:
            (Path(folder) / path).parent.mkdir(parents=True, exist_ok=True)
            (Path(folder) / path).unlink(missing_ok=True)  # a link to the user's own
            (Path(folder) / path).write_bytes(content)
        environment: dict[str, Any] = {"working_dir": folder, "env_vars": dict(env or {})}
        if pip:
            environment["pip"] = list(pip)
        with jobs.errors():
            jobs.client.submit_job(
                entrypoint=shlex.join([python, *words]),
                submission_id=id,
                runtime_env=environment,
                metadata=metadata,
            )


def collect(
    folder: Path, *, include: Sequence[Path] = (), excludes: Iterable[str] = (), token: Token | None = None
) -> Package:
    """The files of ``folder`` that a job is sent, and those of ``include`` even if git ignores them.

    Left out are `EXCLUDES`, what git ignores (in a git work tree), ``excludes`` (patterns of a name or of a
    relative path), links that lead outside, and every file that holds the token.

    Raises:
        UserError: no such folder, a folder that hides this software, or more than `MAX_BYTES`.
    """
    if not folder.is_dir():
        raise UserError("--working-dir", f"{folder} is not a folder")
    folder = folder.resolve()
    hiding = shadows(folder)
    if hiding and len(hiding) < len(PACKAGES):  # all of them are a checkout, whose code the job then runs
        raise UserError(
            "--working-dir",
            f"{hiding[0]} hides spikeprune's module of that name; rename it, or send another folder",
        )
    files = _files(folder, (*EXCLUDES, *(pattern.rstrip("/") for pattern in excludes)))
    for path in include:
        path = path.absolute()
        inside = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
        files |= {p.relative_to(folder).as_posix(): p for p in inside if not _matches(p.name, EXCLUDES)}
    sent = (name for name in sorted(files) if token is None or not _holds(files[name], token))
    package = Package({name: files[name].resolve() for name in sent})
    if package.bytes > MAX_BYTES:
        raise UserError(
            "--working-dir",
            f"{folder} holds {megabytes(package.bytes)}, a job takes {megabytes(MAX_BYTES)}; largest: "
            f"{package.largest()}; leave some out with --exclude PATTERN, and keep data on storage that the "
            "cluster reads",
        )
    return package


def shadows(folder: Path, names: Sequence[str] = PACKAGES) -> list[Path]:
    """Modules and packages in ``folder`` that hide those of these names, this software's if not given."""
    modules = [folder / f"{n}.py" for n in names if (folder / f"{n}.py").is_file()]
    return modules + [folder / n for n in names if (folder / n / "__init__.py").is_file()]


def job_id(name: str, given: str | None = None) -> str:
    """The id that is given for a job, or a new one that starts with ``name``."""
    if given is None:
        stem = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "job"
        return f"{stem}-{datetime.now():%m%d-%H%M%S}-{secrets.token_hex(2)}"
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", given):
        raise UserError("--id", f"{given!r} is not possible; letters, digits, dots, dashes and underscores")
    return given


def megabytes(size: float) -> str:
    """A size in bytes, for people."""
    return f"{size / 2**20:.1f} MiB" if size >= 2**20 / 10 else f"{size / 1024:.1f} KiB"


def _files(folder: Path, left_out: tuple[str, ...]) -> dict[str, Path]:
    names = _not_ignored(folder)
    if names is None:
        names = set()
        for root, folders, files in os.walk(folder):
            here = Path(root).relative_to(folder)
            folders[:] = [f for f in folders if not _matches((here / f).as_posix(), left_out)]
            names |= {(here / file).as_posix() for file in files}
    found = {}
    for name in names:
        path, above = folder / name, PurePosixPath(name).parents[:-1]
        if any(_matches(str(place), left_out) for place in (name, *above)):
            continue
        if path.is_file() and path.resolve().is_relative_to(folder):
            found[name] = path
    return found


def _matches(relative: str, patterns: Iterable[str]) -> bool:
    """Whether a path or its last part is of one of these patterns."""
    name = PurePosixPath(relative).name
    return any(fnmatch.fnmatch(name, p) or fnmatch.fnmatch(relative, p) for p in patterns)


def _holds(path: Path, token: Token) -> bool:
    """Whether a file holds the token and nothing else but space, whatever it is called."""
    if not len(token.value) <= path.stat().st_size <= len(token.value) + 1024:
        return False
    return path.read_bytes().strip() == token.value.encode()


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
