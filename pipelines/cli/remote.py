"""What a command needs on a cluster that does not see this machine's files."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pipelines.cli.runs import PruneCommand, RunCommand, SearchCommand
from pipelines.config import Config
from pipelines.config.load import dump_config, load_tree
from pipelines.config.parser import parse, split_overrides
from pipelines.config.schema import SearchTree
from pipelines.errors import UserError
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
    check_no_secret(words, "submit", storage)
    verb, rest = words[0], list(words[1:])
    if verb == "python":
        if not rest:
            raise UserError("submit", "python needs a script or -m MODULE")
        return RemoteCommand(words=tuple(rest), name=Path(rest[0]).stem if rest[0] != "-m" else "python")
    if verb not in VERBS:
        raise UserError("submit", f"{verb!r} is no command to send; use one of {', '.join(VERBS)}, or python")
    here = ("-m", "pipelines.cli", verb)
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


def check_no_secret(words: Sequence[str], command: str, storage: str) -> None:
    """That a command for a cluster and its storage hold no secret: whoever may list jobs reads them."""
    if (what := secret_in(storage)) is not None:
        raise UserError("--storage", what)
    where = command
    for word in words:
        option, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
        if (what := secret_in(value)) is not None:
            raise UserError(option or where, what)
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
    if code.is_relative_to(root):  # a file's `code` is told from where the file lies
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
    found = (working_dir / config.data.path).resolve()
    what = None
    if not found.is_relative_to(working_dir.resolve()):
        what = "is outside of what is sent; give a path of the cluster's"
    elif not found.exists():
        what = f"does not exist in {working_dir}; give an absolute path of the cluster's"
    if what is not None:
        raise UserError("data.path", f"{config.data.path} {what}")
    return (working_dir.resolve() / config.data.path,)


def _pruned(overrides: Mapping[str, str], network: Path) -> str:
    """Where `prune` puts the run that it makes of a run, or of a checkpoint in one."""
    source = uri_of(network) or str(network)
    if uri_of(source) is None and source.endswith(".safetensors"):
        source = parent(parent(source))
    return below(overrides.get("storage", parent(source)), overrides.get("name", f"{name_of(source)}-pruned"))


def _absolute(path: str) -> bool:
    return path.startswith(("/", "~")) or "://" in path
