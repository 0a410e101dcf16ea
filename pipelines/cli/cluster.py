"""The verbs of clusters, thin functions on `cluster`; how the words of a command become those of a job."""

import os
import re
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
import yaml

from cluster.errors import UserError
from cluster.jobs import Jobs, describe, exit_code, seconds
from cluster.manifest import manifest as filled
from cluster.manifest import read_values
from cluster.submit import collect, job_id
from cluster.submit import submit as send
from pipelines.cli.runs import PruneCommand, RunCommand, SearchCommand
from pipelines.config import Config
from pipelines.config.checks import check_no_secret
from pipelines.config.load import dump_config, load_config, load_tree, read_yaml
from pipelines.config.parser import parse, split_overrides, typed
from pipelines.config.schema import SearchTree
from pipelines.console import messages, results, say, table, write
from pipelines.storage.paths import below, name_of, names_secret, parent, secret_in, uri_of

_TOKEN_VARIABLE = re.compile(r"RAY_AUTH_TOKEN(_PATH)?$")
STORAGE = "~/spikeprune-runs"
TRAINING = ("run", "train", "search")
VERBS = (*TRAINING, "prune", "compare", "score", "export", "report", "data", "doctor")


@dataclass(frozen=True, kw_only=True)
class RemoteCommand:
    """A command as a job: words for the cluster's interpreter, files that go along, where its run lies."""

    words: tuple[str, ...]
    name: str
    """For the job's id."""
    run: str | None = None
    """The run's folder on the cluster, if the command makes one; a pattern for the runs of several seeds."""
    include: tuple[Path, ...] = ()
    extra: tuple[tuple[str, bytes], ...] = field(default=(), repr=False)


def remote_command(words: Sequence[str], working_dir: Path, storage: str = STORAGE) -> RemoteCommand:
    """How a command line of this machine (a verb or ``python``, and its options) runs on a cluster.

    ``run``, ``train`` and ``search`` are checked here first; their folders go below ``storage`` on the
    cluster unless the command or its config names an absolute one; data named by a path relative to
    ``working_dir``, which is sent, goes along.

    Raises:
        UserError: not such a command, or one that could not run there.
    """
    if not words:
        raise UserError("submit", "nothing to run; put the command behind --, as in: -- run my.yaml")
    check_words(words, "submit", storage)
    verb, rest = words[0], list(words[1:])
    if verb == "python":
        if not rest:
            raise UserError("submit", "python needs a script or -m MODULE")
        return RemoteCommand(words=tuple(rest), name=Path(rest[0]).stem if rest[0] != "-m" else "python")
    if verb not in VERBS:
        raise UserError("submit", f"{verb!r} is no command to send; use one of {', '.join(VERBS)}, or python")
    here = ("-m", "spikeprune", verb)
    tree = SearchTree if verb == "search" else Config
    overrides, others = split_overrides(rest, tree)
    if verb in TRAINING:
        o: Any = parse(SearchCommand if verb == "search" else RunCommand, others)
        if verb == "search" and o.plot is not None:
            return RemoteCommand(words=(*here, *rest), name=verb)
        if any(word.partition("=")[0] == "--address" for word in rest):
            what = "belongs before the --; the job runs on the cluster that it is sent to"
            raise UserError("--address", what)
        flags = [word for word in others if o.config is None or Path(word) != o.config]
        config = load_tree(tree, o.config, overrides)
        runs = config.name if verb == "search" or o.seeds is None else f"{config.name}-seed-*"
        return _training((*here, *flags), config, runs, working_dir, storage)
    if verb == "doctor":
        if "cluster.address" not in overrides:
            rest += ["--address", "auto"]
        # Held against the places that a run of the same config would be given.
        file = next((Path(w) for w in others if w.endswith((".yaml", ".yml"))), None)
        config = load_tree(Config, file, overrides)
        rest += [] if _absolute(config.storage) else ["--storage", storage]
        include = _data(config, working_dir) if (working_dir / config.data.path).exists() else ()
        return RemoteCommand(words=(*here, *rest), name="doctor", include=include)
    if verb in ("prune", "score") and "cluster.address" not in overrides:
        rest += [] if overrides.get("cluster.engine") == "local" else ["--cluster.address", "auto"]
    run = _pruned(overrides, parse(PruneCommand, others).source) if verb == "prune" else None
    return RemoteCommand(words=(*here, *rest), name=f"{verb}-{name_of(run)}" if run else verb, run=run)


def check_words(words: Sequence[str], command: str, storage: str) -> None:
    """That a command for a cluster and its storage hold no secret: whoever may list jobs reads them."""
    check_no_secret("--storage", storage)
    where = command
    for word in words:
        option, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
        check_no_secret(option or where, value)
        where = option if option and not equals else command


def job_variables(given: Sequence[str], environ: Mapping[str, str]) -> dict[str, str]:
    """Variables from ``NAME=VALUE``, or from ``NAME`` alone: its value here, which no process list shows."""
    found: dict[str, str] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not re.fullmatch(r"[A-Za-z_]\w*", name):
            raise UserError("--env", f"{text!r} is not NAME=VALUE or NAME")
        if not equals and name not in environ:
            raise UserError("--env", f"{name} has no value here; give {name}=VALUE")
        found[name] = value if equals else environ[name]
        if _TOKEN_VARIABLE.match(name):
            raise UserError("--env", f"{name} stays here; jobs take the token from their cluster")
        if names_secret(name) or secret_in(found[name]) is not None:
            raise UserError(
                "--env",
                f"{name} stays here: whoever lists jobs would read it, and Ray writes it into its logs; "
                "set it on the cluster's nodes before ray start, or keep it in a file there",
            )
    return found


def _training(
    words: tuple[str, ...], config: Config, runs: str, working_dir: Path, storage: str
) -> RemoteCommand:
    """The whole config goes along as one file: nothing that it was made of is needed there."""
    include = _data(config, working_dir)
    if _absolute(config.storage):
        storage = config.storage
    auto = config.cluster.engine != "local" and config.cluster.address is None
    cluster = replace(config.cluster, address="auto" if auto else config.cluster.address)
    sent = replace(config, storage=storage, cluster=cluster)
    code, root = Path(config.code or "/").resolve(), working_dir.resolve()
    if code.is_relative_to(root):  # relative to the config file's folder
        sent.code = f"../{code.relative_to(root)}"
    file = f".spikeprune/{config.name}.yaml"
    return RemoteCommand(
        words=(*words, file),
        name=config.name,
        run=below(storage, runs),
        include=include,
        extra=((file, dump_config(sent).encode()),),
    )


def _data(config: Config, working_dir: Path) -> tuple[Path, ...]:
    if _absolute(config.data.path):
        return ()
    path, root = config.data.path, working_dir.resolve()
    if not (root / path).resolve().is_relative_to(root):
        what = "is outside of what is sent; give a path of the cluster's"
        raise UserError("data.path", f"{path} {what}")
    if not (root / path).exists():
        what = f"does not exist in {working_dir}; give an absolute path of the cluster's"
        raise UserError("data.path", f"{path} {what}")
    return (root / path,)


def _pruned(overrides: Mapping[str, str], network: Path) -> str:
    """Where `prune` puts the run that it makes of a run, or of a checkpoint in one."""
    source = uri_of(network) or str(network)
    if uri_of(source) is None and source.endswith(".safetensors"):
        source = parent(parent(source))
    return below(overrides.get("storage", parent(source)), overrides.get("name", f"{name_of(source)}-pruned"))


def _absolute(path: str) -> bool:
    return path.startswith(("/", "~")) or "://" in path


@dataclass(kw_only=True)
class JobsCommand:
    """Options of ``jobs list``."""

    address: str | None = None
    """The cluster's dashboard, as http://HEAD:8265; RAY_API_SERVER_ADDRESS when not given."""
    token_file: Path | None = None
    """File with the cluster's token; where Ray looks for it when not given."""


@dataclass(kw_only=True)
class SubmitCommand(JobsCommand):
    """Options of ``submit``; the command to run follows behind ``--``."""

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
    """Requirements that the job gets on top of the cluster's environment."""
    env: tuple[str, ...] = ()
    """Environment variables, NAME=VALUE, or NAME for its value here; whoever may list jobs can read them, so
    none that is a secret."""


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
    dashboard: str | None = None
    """Dashboard to check beside a cluster's address."""
    token_file: Path | None = None
    """File with the cluster's token; where Ray looks for it when not given."""
    settings: Annotated[Config, tyro.conf.arg(name="")] = field(default_factory=Config)
    """Config; the cluster (--address) as auto or host:port from one of its nodes, or its dashboard's URL."""


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
    o = parse(SubmitCommand, args[:split], prog="spikeprune submit", description=submit.__doc__)
    if files := [text for text in o.pip if text.endswith(".txt")]:
        raise UserError("--pip", f"{files[0]} is a file; give its requirements themselves")
    command = remote_command(args[split + 1 :], o.working_dir, o.storage)
    env, id = job_variables(o.env, os.environ), job_id(command.name, o.id)
    jobs = _jobs(o.address, o.token_file)
    package = collect(o.working_dir, include=command.include, excludes=o.exclude, token=jobs.token)
    say(f"sending from {o.working_dir.absolute()}: {package}")
    send(
        jobs, package, command.words, id, python=o.python, extra=command.extra, pip=o.pip, env=env,
        metadata={"run": command.run} if command.run else {},
    )  # fmt: skip
    write(id)  # alone on stdout, for scripts
    if command.run:
        say(f"its run will be in {command.run} on the cluster")
    if o.follow:
        return _follow(jobs, id, o.token_file)
    say(f"follow it: spikeprune jobs logs {id} --follow {_at(jobs, o.token_file)}")
    return 0


def jobs_list(o: JobsCommand) -> None:
    """The jobs of a cluster, the newest first."""
    rows = [
        (
            job.submission_id or "",
            job.status.value,
            "" if job.driver_exit_code is None else str(job.driver_exit_code),
            f"{datetime.fromtimestamp(job.start_time / 1000):%d %b %H:%M:%S}" if job.start_time else "",
            seconds(job),
            (job.metadata or {}).get("run", ""),
        )
        for job in _jobs(o.address, o.token_file).list()
    ]
    headings = ("job", "status", "exit", "started", "seconds", "run")
    results(width=160).print(table(None, headings, rows, left=len(headings)))


def jobs_status(o: JobCommand) -> None:
    """How a job is doing; the exit code is 0 whatever became of the job."""
    write(f"{o.id}: {describe(_jobs(o.address, o.token_file).get(o.id))}")


def jobs_logs(o: JobLogsCommand) -> int:
    """What a job has printed; with --follow until it ends."""
    jobs = _jobs(o.address, o.token_file)
    if o.follow:
        return _follow(jobs, o.id, o.token_file)
    write(jobs.logs(o.id), end="")
    return 0


def jobs_stop(o: JobCommand) -> None:
    """End a job; its run can be resumed."""
    jobs = _jobs(o.address, o.token_file)
    if not jobs.stop(o.id):
        say(f"{o.id} had ended already: {describe(jobs.get(o.id))}")
        return
    while not (job := jobs.get(o.id)).status.is_terminal():
        time.sleep(0.3)
    say(f"{o.id}: {describe(job)}")


def doctor(o: DoctorCommand, overrides: dict[str, Any]) -> int:
    """Check this machine, and a cluster, against what a run needs; exits with 1 if something is wrong."""
    from rich.console import Console
    from rich.markup import escape

    from pipelines.runs.preflight import examine

    config = load_config(o.config, overrides)
    address, dashboard = config.cluster.address, o.dashboard
    if address is not None and address.startswith(("http://", "https://")):
        address, dashboard = None, address
    console, wrong = Console(soft_wrap=True), 0
    for line in examine(config, address=address, dashboard=dashboard, token_file=o.token_file):
        wrong += not (line.ok or line.only_slow)
        bad = "[yellow]slow [/]" if line.only_slow else "[red]wrong[/]"
        mark = "[green]ok   [/]" if line.ok else bad
        console.print(f"{mark} {line.name}: {escape(line.what)}", highlight=False)
    return 1 if wrong else 0


def manifest(o: ManifestCommand) -> None:
    """Describe a cluster for the tool that starts it: spikeprune cluster manifest kuberay > job.yaml."""
    values = typed(read_yaml(o.config)) if o.config is not None else {}
    for text in o.set:
        key, equals, value = text.partition("=")
        if not equals:
            raise UserError("--set", f"{text!r:.80} is not KEY=VALUE")
        try:
            values[key] = yaml.safe_load(value)
        except (yaml.YAMLError, ValueError, RecursionError):
            raise UserError("--set", f"{text!r:.80} cannot be read") from None
    checked = read_values(values)
    if (verb := checked["command"][0]) not in VERBS:
        raise UserError("command", f"{verb!r} is not a verb for a cluster; use one of {', '.join(VERBS)}")
    check_words(checked["command"], "command", checked["storage"])
    write(filled(o.kind, values), end="")


def _jobs(address: str | None, token_file: Path | None) -> Jobs:
    with messages().status("asking the cluster"):
        jobs = Jobs(address, token_file=token_file)
    if jobs.token is not None and (warning := jobs.token.exposed()) is not None:
        say(f"warning: {warning}")
    return jobs


def _at(jobs: Jobs, token_file: Path | None) -> str:
    """The options with which another command finds the same cluster."""
    token = "" if token_file is None else f" --token-file {shlex.quote(str(token_file))}"
    return f"--address {jobs.url}{token}"


def _follow(jobs: Jobs, id: str, token_file: Path | None) -> int:
    try:
        job = jobs.follow(id, partial(write, end=""))
    except KeyboardInterrupt:
        back = f"spikeprune jobs logs {id} --follow {_at(jobs, token_file)}"
        say(f"\ndetached, {id} goes on; come back: {back}")
        return 130
    if code := exit_code(job):
        resume = "; the same command with --resume continues its run" if "run" in (job.metadata or {}) else ""
        say(f"spikeprune: {id}: {describe(job)}{resume}")
        return code
    say(f"{id}: {describe(job)}")
    return 0
