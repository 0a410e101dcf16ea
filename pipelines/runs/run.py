"""Run a config: check everything, launch the phases, leave a folder that tells all."""

import atexit
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress, TaskID

from cluster.connect import Cluster, connect, local_cpus
from cluster.errors import UserError
from pipelines.config import ClusterConfig, Config
from pipelines.config.load import load_config
from pipelines.console import bars, messages
from pipelines.runs.interrupts import exit_without_ray, reclaim_sigterm
from pipelines.runs.preflight import (
    CheckedData,
    advice,
    assign_gpus,
    check_cluster,
    check_inputs,
    check_locations,
    check_same_validation,
    placement,
    resolve_engine,
    resolve_reading,
)
from pipelines.runs.run_folder import (
    CONFIG,
    check_run,
    check_same_start,
    create_run,
    read_config,
    read_metrics,
    run_path,
    run_uri,
    start_of,
)
from pipelines.storage.paths import below, parent, uri_of
from pipelines.storage.sync import (
    Mirror,
    beside_checkpoints,
    check_shared,
    local_copy,
    mirror_of,
    remove_working_copy,
    run_lock,
    storage_errors,
)
from pipelines.training.checkpoint import check_resumable, latest_checkpoint, load_progress
from pipelines.training.phases import Command, Phase, RunSpec, phases_of

Event = dict[str, Any]


class TrainingProgress:
    """Shows the events that training sends, a bar for a phase. A line fits 80 columns."""

    def __init__(self, phases: Sequence[Phase], shown: Progress) -> None:
        self._bars = shown
        self._phases = {p.name: p for p in phases}
        self._tasks: dict[str, TaskID] = {}
        self._last: dict[str, str] = {}
        self._seen: dict[tuple[str, object], Event] = {}

    def __call__(self, event: Event) -> None:
        """Show an event; ones that were seen already change nothing."""
        name = event["phase"]
        key = (name, event["epoch"])
        if name not in self._phases or self._seen.get(key) == event:
            return
        self._seen[key] = event
        phase = self._phases[name]
        ended = "accuracy" in str(event.get("doing"))
        done = event["epoch"] + (1.0 if ended else event.get("step", 0) / max(event.get("steps", 1), 1))
        if name not in self._tasks:
            self._tasks[name] = self._bars.add_task(name, total=max(phase.epochs, 1), status="")
        self._bars.update(self._tasks[name], completed=done)
        left = self._left(self._tasks[name])
        place = f"{event['epoch'] + 1}/{phase.epochs}" if phase.epochs else ""
        if not self._bars.console.is_terminal:
            if ended:
                what = f"{name}{place and f' epoch {place}'}: {event['doing']}{left}"
                self._bars.console.print(what, highlight=False, soft_wrap=True)
            return
        if "finished" in event:
            self._last[name] = event["doing"]
        # What the epoch before came to; the present speed before there is one.
        doing = event.get("doing") or self._last.get(name) or f"{event.get('rate', 0):,.0f} examples/s"
        status = doing if event.get("finished") or not place else f"{place}, {doing}{left}"
        self._bars.update(self._tasks[name], status=status)

    def _left(self, task: TaskID) -> str:
        """How long the phase will still take, as rich estimates it."""
        seconds = next(t.time_remaining for t in self._bars.tasks if t.id == task)
        return f", {timedelta(seconds=int(seconds))} left" if seconds else ""


def run(
    config: Config,
    command: Command = "run",
    *,
    resume: bool = False,
    initial: str | None = None,
    on_record: Callable[[dict[str, Any]], None] | None = None,
    console: Console | None = None,
) -> Path:
    """Run the phases of a command (see `phases_of`), or what is left of them.

    Args:
        config: of the run.
        command: which phases.
        resume: continue the run of that name.
        initial: checkpoint file of the network to prune (a path or a URI), for ``prune``.
        on_record: with engine local, gets each new record once its checkpoint is whole.
        console: where progress is shown.

    Returns:
        the run's folder.

    Raises:
        UserError: whatever is wrong with config, data, storage or cluster, before training starts; or
            another process works on the run.
    """
    console = console or messages()
    folder = run_path(config)
    if run_uri(config) is not None:
        atexit.register(remove_working_copy, folder)
    with run_lock(folder, "run", config.storage):
        mirror = mirror_of(folder, run_uri(config))
        if mirror is not None:
            with console.status(f"looking at {mirror.remote.uri}"):
                fetch_run(mirror, resume=resume)
        check_run(config, resume=resume)
        new = not (folder / CONFIG).exists()
        if resume and new:
            console.print(f"no run {config.name!r} in {config.storage} yet: it starts", highlight=False)
        start = start_of(command, initial)
        check_same_start(folder, start)
        spec, data = _checked(config, command, console)
        if is_finished(folder, spec.phases):
            return folder
        console.print(placement(config.cluster, spec.config), highlight=False, soft_wrap=True)
        prepare_engines(console)
        with ExitStack() as stack:
            spec, launch = _launcher(spec, data, stack, console, on_record)
            kept, cluster = replace(spec.config, cluster=config.cluster), spec.config.cluster
            known = {**start, "engine": cluster.engine, "threads": cluster.threads}
            create_run(kept, sys.argv, spec.code, new=new, start=known)
            if mirror is not None:
                with storage_errors(mirror.remote):
                    mirror.push()
            shown = stack.enter_context(bars(console, "{task.fields[status]}"))
            launch(replace(spec, initial=initial), watch=TrainingProgress(spec.phases, shown))
            if mirror is not None:
                with storage_errors(mirror.remote):
                    mirror.pull(beside_checkpoints)  # what other machines have written
    return folder


def _checked(config: Config, command: Command, console: Console) -> tuple[RunSpec, CheckedData]:
    """Check everything that needs no cluster; the run, with engine, threads and reading decided."""
    folder = run_path(config)
    config = resolve_engine(config, folder)
    check_locations(config)
    on_ray = config.cluster.engine == "ray"
    if on_ray and config.cluster.address is None:
        check_cluster(config, cpus=local_cpus(), gpus=float("inf"))
    if (folder / CONFIG).exists():
        check_resumable(folder / "checkpoints", len(read_metrics(folder)))
    code, data = check_inputs(config, folder, "run", on_ray=on_ray)
    if command != "prune" and (warning := advice(config)) is not None:
        console.print(warning, highlight=False, soft_wrap=True)
    spec = data.spec(
        resolve_reading(config, data.train, folder),
        phases=phases_of(config, command),
        folder=str(folder),
        remote=run_uri(config),
        code=code,
    )
    return spec, data


def _launcher(
    spec: RunSpec,
    data: CheckedData,
    stack: ExitStack,
    console: Console,
    on_record: Callable[[dict[str, Any]], None] | None,
) -> tuple[RunSpec, Callable[..., None]]:
    """The run with GPUs, and what launches it: here, or on a Ray that lives as long as ``stack``."""
    address = spec.config.cluster.address
    if spec.config.cluster.engine == "local":
        from pipelines.training.loop import train_locally

        return spec, partial(train_locally, on_record=on_record)
    cluster = start_ray(address, stack, console)
    config = assign_gpus(spec.config, cluster.gpus)
    check_cluster(config, cpus=cluster.cpus, gpus=cluster.gpus)
    if config.cluster.gpus_per_worker:
        console.print(f"device cuda ({', '.join(cluster.accelerators)})", highlight=False)
    if cluster.nodes > 1:
        check_shared(Path(spec.folder).parent if spec.remote is None else config.storage, data.files)
    from pipelines.training.distributed import train_on_ray

    return replace(spec, config=config), train_on_ray


def start_ray(address: str | None, stack: ExitStack, console: Console) -> Cluster:
    """A Ray that lives as long as ``stack``, or a connection to the one at ``address``."""
    with console.status("starting Ray" if address is None else "connecting"):
        cluster = stack.enter_context(connect(address, lost=exit_without_ray))
    reclaim_sigterm()
    return cluster


def prepare_engines(console: Console) -> None:
    """Compile once here what every worker would compile at once on its first step."""
    from snn import kernels

    try:
        with console.status("preparing"):
            kernels.prepare()
    except ValueError as error:
        where, _, what = str(error).partition(": ")
        raise UserError(where, what) from None


def fetch_run(mirror: Mirror, *, resume: bool) -> None:
    """What there is of a run, before it starts or goes on; without its checkpoints where it would start."""
    with storage_errors(mirror.remote):
        reason = mirror.remote.why_unwritable()
        if reason is not None:
            raise UserError("storage", f"{mirror.remote.uri} cannot be used ({reason})")
        starts = not resume and mirror.remote.exists(CONFIG)  # and is refused because of it
        mirror.pull(beside_checkpoints if starts else lambda name: True)


def is_finished(folder: Path, phases: Sequence[Phase]) -> bool:
    """Whether a run's newest checkpoint has all of its phases behind it."""
    newest = latest_checkpoint(folder / "checkpoints")
    return newest is not None and load_progress(newest, phases).phase >= len(phases)


def prune(
    source: Path, overrides: dict[str, str], *, resume: bool = False, console: Console | None = None
) -> Path:
    """Prune (and retrain) the network of a run, as a new run beside it.

    Args:
        source: a run's folder (also a URI), or a checkpoint file below one.
        overrides: config fields that differ from the source run's.
        resume: continue such a run.
        console: where progress is shown.

    Returns:
        the new run's folder.

    Raises:
        UserError: not a run or checkpoint, and as `run`.
    """
    uri = uri_of(source)
    checkpoint, folder = checkpoint_of(local_copy(source))
    config = prune_config(source, overrides)
    initial = str(checkpoint) if uri is None else below(uri, str(checkpoint.relative_to(folder)))
    return run(config, "prune", resume=resume, initial=initial, console=console)


def prune_config(source: Path, overrides: dict[str, str]) -> Config:
    """The config of `prune`'s new run: the source run's, beside it and under a name of its own."""
    folder = checkpoint_of(local_copy(source))[1]
    stored = read_config(folder)
    place = {"name": f"{stored.name}-pruned", "storage": parent(uri_of(source) or folder)}
    config = load_config(folder / CONFIG, {**place, **overrides})
    check_same_validation(stored, config)
    asked = any(path.startswith("cluster.") for path in overrides)
    if not asked and not config.weight_pruning.retrain_epochs:
        # A few hundred examples are no reason to start a cluster.
        config = replace(config, cluster=ClusterConfig(device=config.cluster.device))
    return config


def network_of(source: Path, checkpoint: Path | None) -> tuple[Path, Path]:
    """Config and checkpoint file of a run's folder, a checkpoint in one, or a config with a checkpoint."""
    source = local_copy(source)
    if source.is_dir() or source.suffix == ".safetensors" or (checkpoint is None and not source.exists()):
        found, folder = checkpoint_of(source)
        return folder / CONFIG, checkpoint or found
    if checkpoint is None:
        raise UserError("--checkpoint", "is needed beside a config; or name a run's folder instead")
    return source, checkpoint


def checkpoint_of(source: Path) -> tuple[Path, Path]:
    """Checkpoint file and run's folder of a run (its trained network) or of a checkpoint below one.

    Both are absolute: Ray's processes have working folders of their own.
    """
    source = Path(os.path.expanduser(source))
    if source.is_dir():
        checkpoint = source / "checkpoints" / "train.safetensors"
        if not checkpoint.exists():
            read_config(source)
            raise UserError(str(source), "has no trained network yet; finish its training first")
        return checkpoint.absolute(), source.absolute()
    if not source.exists():
        raise UserError(str(source), "does not exist; name a run's folder or a checkpoint file in one")
    folder = next((p for p in source.absolute().parents if (p / CONFIG).exists()), None)
    if folder is None:
        raise UserError(str(source), f"is in no run's folder; its config is found through {CONFIG} above it")
    return source.absolute(), folder
