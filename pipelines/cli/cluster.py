"""The verbs of clusters: thin functions on `cluster`, which knows nothing of networks."""

import os
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

import tyro

from pipelines.config import Config, parser
from pipelines.config.load import load_config, read_command, read_yaml
from pipelines.errors import UserError

if TYPE_CHECKING:
    from ray.job_submission import JobDetails

    from cluster.jobs import Jobs

C = TypeVar("C")


@dataclass(kw_only=True)
class SubmitCommand:
    """Options of ``submit``; the command to run follows behind ``--``."""

    address: str | None = None
    """The cluster's dashboard, as http://HEAD:8265; RAY_API_SERVER_ADDRESS when not given."""
    token_file: Path | None = None
    """File with the cluster's token; where Ray looks for it when not given."""
    follow: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Show what the job prints until it ends, and exit as it does; Ctrl-C leaves the job running."""
    id: str | None = None
    """The job's id; chosen when not given."""
    working_dir: Path = Path()
    """Folder that is sent: code and configs, and data that the config names by a relative path."""
    exclude: tuple[str, ...] = ()
    """Patterns of files that are not sent; caches, results, secrets and what git ignores never are."""
    storage: str = "~/spikeprune-runs"
    """Folder of runs on the cluster, or a URI such as s3://bucket/runs; used unless the command names an
    absolute one. Results are read from there."""
    python: str = "python"
    """Python interpreter on the cluster; the first on the PATH of ray start when not given."""
    pip: tuple[str, ...] = ()
    """Requirements (or .txt files of them) that the job gets on top of the cluster's environment."""
    env: tuple[str, ...] = ()
    """Environment variables, NAME=VALUE, or NAME for its value here; whoever may list jobs can read them, so
    none that is a secret."""


@dataclass(kw_only=True)
class JobsCommand:
    """Options of ``jobs list``."""

    address: str | None = None
    """The cluster's dashboard, as http://HEAD:8265; RAY_API_SERVER_ADDRESS when not given."""
    token_file: Path | None = None
    """File with the cluster's token; where Ray looks for it when not given."""


@dataclass(kw_only=True)
class JobCommand(JobsCommand):
    """Options of ``jobs status`` and ``jobs stop``."""

    id: Annotated[str, tyro.conf.Positional]
    """The job."""


@dataclass(kw_only=True)
class JobLogsCommand(JobCommand):
    """Options of ``jobs logs``."""

    follow: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Go on until the job ends, and exit as it does; Ctrl-C leaves the job running."""


@dataclass(kw_only=True)
class DoctorCommand:
    """Options of ``doctor``."""

    config: Annotated[Path | None, tyro.conf.Positional] = None
    """The run that the machine or cluster is held against; every config field can be set as well."""
    address: str | None = None
    """A cluster, as auto or host:port from one of its nodes, or its dashboard's URL from elsewhere."""
    dashboard: str | None = None
    """Dashboard to check beside a cluster's address."""
    token_file: Path | None = None
    """File with the cluster's token; where Ray looks for it when not given."""
    settings: Annotated[Config, tyro.conf.arg(name="")] = field(default_factory=Config)
    """Config."""


@dataclass(kw_only=True)
class ManifestCommand:
    """Options of ``cluster manifest``."""

    kind: Annotated[Literal["kuberay", "kuberay-cluster", "ray-up", "slurm", "docker"], tyro.conf.Positional]
    """kuberay (a RayJob), kuberay-cluster, ray-up (your own machines; AWS and GCP as comments), slurm (a
    batch script) or docker (the image)."""
    config: Path | None = None
    """YAML file with fields of the manifest (name, image, workers, cpus, memory, gpus, command, ...)."""
    set: tuple[str, ...] = ()
    """Fields, as KEY=VALUE; a command as 'command=[run, my.yaml]'."""


def submit(args: list[str]) -> int:
    """Run a command on a cluster as a job: spikeprune submit --address URL -- run my.yaml."""
    split = args.index("--") if "--" in args else len(args)
    o = parse(SubmitCommand, args[:split], "submit")
    from cluster.submit import Submission, requirements
    from cluster.submit import submit as send
    from pipelines.cli.remote import job_variables, remote_command

    command = remote_command(args[split + 1 :], o.working_dir, o.storage)
    job = Submission(
        words=command.words,
        python=o.python,
        name=command.name,
        id=o.id,
        working_dir=o.working_dir,
        include=command.include,
        excludes=o.exclude,
        extra=command.extra,
        pip=requirements(o.pip),
        env=job_variables(o.env, os.environ),
        metadata={"run": command.run} if command.run else {},
    )
    jobs = _jobs(o.address, o.token_file)
    id = send(jobs, job, lambda package: _say(f"sending from {o.working_dir.absolute()}: {package}"))
    print(id)  # noqa: T201  # alone on stdout, for scripts
    if command.run:
        _say(f"its run will be in {command.run} on the cluster")
    if o.follow:
        return _follow(jobs, id, o.token_file)
    _say(f"follow it: spikeprune jobs logs {id} --follow {_at(jobs, o.token_file)}")
    return 0


def jobs_list(args: list[str]) -> int:
    """The jobs of a cluster, the newest first."""
    o = parse(JobsCommand, args, "jobs list")
    from rich.console import Console
    from rich.table import Table

    table = Table("job", "status", "exit", "started", "seconds", "run")
    for job in _jobs(o.address, o.token_file).list():
        code = "" if job.driver_exit_code is None else str(job.driver_exit_code)
        run = (job.metadata or {}).get("run", "")
        table.add_row(job.submission_id, job.status.value, code, _clock(job), _seconds(job), run)
    (Console() if sys.stdout.isatty() else Console(width=160)).print(table)
    return 0


def jobs_status(args: list[str]) -> int:
    """How a job is doing; the exit code is 0 whatever became of the job."""
    o = parse(JobCommand, args, "jobs status")
    job = _jobs(o.address, o.token_file).get(o.id)
    print(f"{o.id}: {_state(job)}")  # noqa: T201
    return 0


def jobs_logs(args: list[str]) -> int:
    """What a job has printed; with --follow until it ends."""
    o = parse(JobLogsCommand, args, "jobs logs")
    jobs = _jobs(o.address, o.token_file)
    if o.follow:
        return _follow(jobs, o.id, o.token_file)
    print(jobs.logs(o.id), end="")  # noqa: T201
    return 0


def jobs_stop(args: list[str]) -> int:
    """End a job; its run can be resumed."""
    o = parse(JobCommand, args, "jobs stop")
    jobs = _jobs(o.address, o.token_file)
    if not jobs.stop(o.id):
        _say(f"{o.id} had ended already: {_state(jobs.get(o.id))}")
        return 0
    while not (job := jobs.get(o.id)).status.is_terminal():
        time.sleep(0.3)
    _say(f"{o.id}: {_state(job)}")
    return 0


def doctor(args: list[str]) -> int:
    """Check this machine, and a cluster, against what a run needs; exits with 1 if something is wrong."""
    o, overrides = read_command(DoctorCommand, args, prog="spikeprune doctor", description=doctor.__doc__)
    from rich.console import Console
    from rich.markup import escape

    from pipelines.runs.doctor import examine

    config = load_config(o.config, overrides)
    address = config.cluster.address if o.address is None else o.address
    dashboard = (
        address if address is not None and address.startswith(("http://", "https://")) else o.dashboard
    )
    lines = examine(
        config,
        address=None if address == dashboard else address,
        dashboard=dashboard,
        token_file=o.token_file,
    )
    console, wrong = Console(soft_wrap=True), 0
    for line in lines:
        wrong += not (line.ok or line.only_slow)
        bad = "[yellow]slow [/]" if line.only_slow else "[red]wrong[/]"
        mark = "[green]ok   [/]" if line.ok else bad
        console.print(f"{mark} {line.name}: {escape(line.what)}", highlight=False)
    return 1 if wrong else 0


def manifest(args: list[str]) -> int:
    """Describe a cluster for the tool that starts it: spikeprune cluster manifest kuberay > job.yaml."""
    o = parse(ManifestCommand, args, "cluster manifest")
    import yaml

    from cluster.manifest import manifest as filled
    from cluster.manifest import read_values
    from pipelines.cli.remote import check_no_secret

    values = parser.typed(read_yaml(o.config)) if o.config is not None else {}
    for text in o.set:
        key, equals, value = text.partition("=")
        if not equals:
            raise UserError("--set", f"{text!r:.80} is not KEY=VALUE")
        try:
            values[key] = yaml.safe_load(value)
        except (yaml.YAMLError, ValueError, RecursionError):
            raise UserError("--set", f"{text!r:.80} cannot be read") from None
    checked = read_values(values)
    check_no_secret(checked["command"], "command", checked["storage"])
    print(filled(o.kind, values), end="")  # noqa: T201
    return 0


VERBS: dict[str, Callable[[list[str]], int]] = {
    "submit": submit,
    "jobs list": jobs_list,
    "jobs status": jobs_status,
    "jobs logs": jobs_logs,
    "jobs stop": jobs_stop,
    "doctor": doctor,
    "cluster manifest": manifest,
}


def parse(command: type[C], args: Sequence[str], verb: str) -> C:
    """A verb's options, with its help."""
    return parser.parse(command, args, prog=f"spikeprune {verb}", description=VERBS[verb].__doc__)


def _jobs(address: str | None, token_file: Path | None) -> "Jobs":
    from rich.console import Console

    from cluster.jobs import Jobs

    with Console(stderr=True).status("asking the cluster"):
        jobs = Jobs(address, token_file=token_file)
    if jobs.token is not None and (warning := jobs.token.exposed()) is not None:
        _say(f"warning: {warning}")
    return jobs


def _at(jobs: "Jobs", token_file: Path | None) -> str:
    """The options with which another command finds the same cluster."""
    token = "" if token_file is None else f" --token-file {shlex.quote(str(token_file))}"
    return f"--address {jobs.url}{token}"


def _follow(jobs: "Jobs", id: str, token_file: Path | None) -> int:
    try:
        job = jobs.follow(id, _show)
    except KeyboardInterrupt:
        back = f"spikeprune jobs logs {id} --follow {_at(jobs, token_file)}"
        _say(f"\ndetached, {id} goes on; come back: {back}")
        return 130
    from cluster.jobs import exit_code

    if code := exit_code(job):
        resume = "; the same command with --resume continues its run" if "run" in (job.metadata or {}) else ""
        raise JobFailedError(id, f"{_state(job)}{resume}", code)
    _say(f"{id}: {_state(job)}")
    return 0


class JobFailedError(UserError):
    """A job that was followed has failed."""

    def __init__(self, where: str, what: str, code: int) -> None:
        super().__init__(where, what)
        self.code = code


def _state(job: "JobDetails") -> str:
    from cluster.jobs import describe

    return describe(job, _seconds(job))


def _seconds(job: "JobDetails") -> str:
    if job.start_time is None:
        return ""
    return f"{(job.end_time / 1000 if job.end_time else time.time()) - job.start_time / 1000:.0f}"


def _clock(job: "JobDetails") -> str:
    if not job.start_time:
        return ""
    return time.strftime("%d %b %H:%M:%S", time.localtime(job.start_time / 1000))


def _show(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _say(text: str) -> None:
    print(text, file=sys.stderr)  # noqa: T201
