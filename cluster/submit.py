"""Send a command to a cluster as a job: pack the folder, choose an id, say what happens."""

import re
import secrets
import shlex
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from cluster.credentials import names_secret, secret_in
from cluster.errors import ClusterError
from cluster.jobs import PRODUCT, Jobs
from cluster.package import LAUNCHER, Package, pack

_SECRET = re.compile(r"RAY_AUTH_TOKEN(_PATH)?$")


@dataclass(frozen=True, kw_only=True)
class Submission:
    """What to run, and with what."""

    words: Sequence[str]
    """Arguments of the cluster's Python interpreter, one by one: nothing is left to a shell."""
    name: str = "job"
    """Beginning of the job's id."""
    id: str | None = None
    """The whole id, instead."""
    working_dir: Path = Path()
    include: Sequence[Path] = ()
    """Files and folders below it that are sent in any case."""
    excludes: Sequence[str] = ()
    extra: Sequence[tuple[str, bytes]] = ()
    """Further files, as relative path and content."""
    pip: Sequence[str] = ()
    """Requirements that the job's environment gets on top of the cluster's."""
    env: Mapping[str, str] = field(default_factory=dict)
    """Environment variables of the job, none of them secret; whoever may list jobs can read them."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    """Kept with the job."""


def submit(
    jobs: Jobs,
    job: Submission,
    packed: Callable[[Package], None] = lambda _: None,
    *,
    node: str | None = None,
) -> str:
    """Pack, upload and start a job; returns its id.

    Args:
        jobs: the cluster.
        job: what to run.
        packed: told the package before it is uploaded.
        node: id of the node to run on; the head when not given.

    Raises:
        ClusterError: a folder, id or variable that cannot be used, or a cluster that refuses.
    """
    name = job_id(job.name) if job.id is None else _checked_id(job.id)
    env = dict(job.env)
    for variable in env:
        if _SECRET.match(variable):
            raise ClusterError("--env", f"{variable} stays here; jobs take the token from their cluster")
        if names_secret(variable) or secret_in(env[variable]) is not None:
            raise ClusterError(
                "--env",
                f"{variable} stays here: whoever lists jobs would read it, and Ray writes it into its logs; "
                "set it on the cluster's nodes before ray start, or keep it in a file there",
            )
    runtime_env: dict[str, object] = {"env_vars": {"PYTHONUNBUFFERED": "1", **env}}
    if job.pip:
        runtime_env["pip"] = list(job.pip)
        runtime_env["env_vars"] = {"SPIKEPRUNE_JOB_PIP": "1", "PYTHONUNBUFFERED": "1", **env}
    with tempfile.TemporaryDirectory() as folder:
        package = pack(
            job.working_dir,
            Path(folder) / "job.zip",
            include=job.include,
            excludes=job.excludes,
            extra=job.extra,
        )
        packed(package)
        runtime_env["working_dir"] = str(package.path)
        with jobs._errors():
            return jobs.client.submit_job(
                entrypoint=shlex.join(["sh", LAUNCHER, *job.words]),
                submission_id=name,
                runtime_env=runtime_env,
                metadata={PRODUCT: "1", **job.metadata},
                entrypoint_label_selector={"ray.io/node-id": node} if node else None,
            )


def job_id(name: str) -> str:
    """A new id that begins with ``name``."""
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "job"
    return f"{stem}-{datetime.now():%m%d-%H%M%S}-{secrets.token_hex(2)}"


def variables(given: Sequence[str], environ: Mapping[str, str]) -> dict[str, str]:
    """Variables from ``NAME=VALUE``, or from ``NAME`` alone: its value here, which no process list shows.

    Raises:
        ClusterError: not a name, or one without a value here.
    """
    found: dict[str, str] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not re.fullmatch(r"[A-Za-z_]\w*", name):
            raise ClusterError("--env", f"{text!r} is not NAME=VALUE or NAME")
        if not equals and name not in environ:
            raise ClusterError("--env", f"{name} has no value here; give {name}=VALUE")
        found[name] = value if equals else environ[name]
    return found


def requirements(given: Sequence[str]) -> list[str]:
    """Requirements one by one, with the lines of files that are named in between.

    Raises:
        ClusterError: a file that is not there.
    """
    found: list[str] = []
    for text in given:
        if text.endswith(".txt"):
            try:
                lines = Path(text).read_text().splitlines()
            except OSError as error:
                raise ClusterError("--pip", f"{text} cannot be read ({error.strerror})") from None
            found += [line.strip() for line in lines if line.strip() and not line.strip().startswith("#")]
        else:
            found.append(text)
    return found


def _checked_id(id: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", id):
        raise ClusterError("--id", f"{id!r} is not possible; letters, digits, dots, dashes and underscores")
    return id
