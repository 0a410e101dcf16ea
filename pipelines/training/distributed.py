"""The launcher on Ray: one `TorchTrainer.fit` per run, its workers' start, one score table beside them.

The store of the workers' process group listens on the address of its Ray node alone. Torch binds its port on
every interface, where it asks nobody who they are; a run on one machine would be open to its whole network.
"""

import json
import os
import socket
import threading
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import ray
import ray.train
import torch
import torch.distributed as dist
from ray.train import CheckpointConfig, FailureConfig, LoggingConfig, RunConfig, ScalingConfig
from ray.train.backend import Backend
from ray.train.torch import TorchConfig, TorchTrainer

from cluster.connect import prepare_data
from cluster.errors import UserError
from pipelines.config import ClusterConfig
from pipelines.config.plugins import activate, own_failures_named
from pipelines.storage.paths import Folder
from pipelines.storage.sync import storage_explained
from pipelines.training.checkpoint import PROGRESS, check_whole, latest_checkpoint
from pipelines.training.engine import load_rows
from pipelines.training.loop import run_phases
from pipelines.training.phases import RunSpec
from pipelines.training.ray_engine import PROGRESS_SECONDS, RayEngine
from pipelines.training.score_table import TableActor
from pipelines.training.worker import start
from snn.kernels.allocator import tune_allocator

CHECKPOINTS = "checkpoints"
_RAY_STATE = "checkpoint_manager_snapshot.json"
GLOO, NCCL = "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"
CONNECT_SECONDS = 300.0  # for the slowest worker to find the store
_stores: list[dist.TCPStore] = []  # of this process, until it joins


def train_on_ray(spec: RunSpec, *, watch: Callable[[dict[str, object]], None]) -> None:
    """Run a spec's phases on the connected Ray cluster, from its newest checkpoint if there is one.

    Raises:
        UserError: a mistake that only the workers could see, or Ray Train's controller was killed.
    """
    prepare_data()
    # On any node, and read again where that one is lost.
    load = ray.remote(load_rows).options(scheduling_strategy="DEFAULT")
    train = None if spec.shards else load.remote(spec.train)
    cluster = spec.config.cluster
    name = f"score-table-{Path(spec.folder).name}-{uuid4().hex}"
    actor: Any = ray.remote(TableActor)
    table = actor.options(name=name, num_cpus=0, max_restarts=-1).remote(spec.ids, spec.code)
    trainer = TorchTrainer(
        _train_worker,
        train_loop_config={"spec": spec, "train": train, "table": table},
        torch_config=NodeTorchConfig(backend="nccl" if cluster.gpus_per_worker else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=_worker_counts(cluster),  # type: ignore[arg-type]  # stubs from before V2
            use_gpu=cluster.gpus_per_worker > 0,
            resources_per_worker={
                "CPU": cluster.cpus_per_worker,
                **({"GPU": cluster.gpus_per_worker} if cluster.gpus_per_worker else {}),
            },
        ),
        run_config=RunConfig(  # type: ignore[call-arg]  # Ray's stubs describe the class before V2
            name=CHECKPOINTS,
            **_checkpoint_storage(spec),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
            failure_config=FailureConfig(max_failures=cluster.max_failures),
            logging_config=LoggingConfig(log_level="ERROR"),
        ),
    )
    stop = threading.Event()
    watcher = threading.Thread(target=_follow, args=(table, watch, stop), daemon=True)
    watcher.start()
    mistake = None
    try:
        mend(Path(spec.folder) / CHECKPOINTS)
        trainer.fit()
        mistake = ray.get(table.mistake.remote())
    except ray.train.TrainingFailedError:
        mistake = ray.get(table.mistake.remote())
        if mistake is None:
            with storage_explained(Path(spec.folder), spec.remote):
                raise
    except ray.exceptions.RayActorError:
        what = "has ended (killed, or out of memory); checkpoints are whole, --resume goes on from them"
        raise UserError("Ray", f"the process that controls the training {what}") from None
    except SystemExit:  # how Ray Train's own handler ends on Ctrl-C
        raise KeyboardInterrupt from None
    finally:
        stop.set()
        watcher.join()
        ray.kill(table)
    if mistake is not None:
        raise UserError(*mistake)


def _checkpoint_storage(spec: RunSpec) -> dict[str, Any]:
    """Where Ray Train puts checkpoints, from whichever node: the run's folder, wherever that is."""
    if spec.remote is None:
        return {"storage_path": spec.folder}
    remote = Folder.of(spec.remote)
    return {"storage_path": remote.root, "storage_filesystem": remote.filesystem}


def mend(checkpoints: Path) -> None:
    """Remove Ray Train's list of checkpoints where a full disk has cut it off, or the newest is not whole.

    Ray writes it in place, refuses to start on half a list, and takes what is listed as it is; a worker
    then finds the newest whole checkpoint by itself.
    """
    state, whole = checkpoints / _RAY_STATE, latest_checkpoint(checkpoints)
    if not state.exists():
        return
    newest = max((p.parent for p in checkpoints.glob(f"*/{PROGRESS}")), default=None)
    try:
        json.loads(state.read_text())
    except ValueError:
        newest = None
    if newest is None or newest != whole:
        state.unlink()


def _worker_counts(cluster: ClusterConfig) -> int | tuple[int, int]:
    if cluster.min_workers is None or cluster.min_workers == cluster.workers:
        return cluster.workers
    return cluster.min_workers, cluster.workers


def _train_worker(config: dict[str, Any]) -> None:
    prepare_data()
    tune_allocator()
    spec, table = config["spec"], config["table"]
    torch.set_num_threads(spec.config.cluster.threads or 1)
    activate(spec.code)
    if ray.get(table.mistake.remote()) is not None:
        return  # the group was restarted after a mistake that the driver will report
    try:
        resume = ray.train.get_checkpoint()
        run = Path(spec.folder)
        unlisted = nullcontext(latest_checkpoint(run / CHECKPOINTS) if spec.remote is None else None)
        with (
            storage_explained(run, spec.remote),
            own_failures_named(),
            resume.as_directory() if resume is not None else unlisted as folder,
        ):
            path = Path(folder) if folder is not None else None
            if path is not None:
                check_whole(path)
            run_phases(start(spec, RayEngine(**config), path), path)
    except UserError as error:
        ray.get(table.refuse.remote(error.where, error.what))
        raise


def _follow(table: Any, watch: Callable[[dict[str, object]], None], stop: threading.Event) -> None:
    """Show progress until told to stop, the end included; what cannot be seen is not shown."""
    stopping = False
    while not stopping:
        stopping = stop.wait(PROGRESS_SECONDS)
        try:
            events = ray.get(table.events.remote(), timeout=5)
        except ray.exceptions.RayError:
            continue
        for event in events:
            watch(event)


@dataclass
class NodeTorchConfig(TorchConfig):
    """Ray's, with a store that listens where the node does."""

    @property
    def backend_cls(self) -> type[Backend]:
        """What sets the group up."""
        return _NodeBackend


class _NodeBackend(Backend):
    share_cuda_visible_devices = True

    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        host, port = worker_group.execute_single(0, _serve)
        joining = [
            worker_group.execute_single_async(
                rank,
                _join,
                host=host,
                port=port,
                world_rank=rank,
                world_size=len(worker_group),
                backend=backend_config.backend,
                seconds=backend_config.timeout_s,
            )
            for rank in range(len(worker_group))
        ]
        ray.get(joining)


def _serve() -> tuple[str, int]:
    """Open the store in this process; where it listens."""
    host = ray.util.get_node_ip_address()
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as opened:
        opened.bind((host, 0))
        port: int = opened.getsockname()[1]
        store = dist.TCPStore(
            host, port, is_master=True, wait_for_workers=False, master_listen_fd=opened.detach()
        )
    _stores[:] = [store]
    return host, port


def _join(*, host: str, port: int, world_rank: int, world_size: int, backend: str, seconds: int) -> None:
    choose_interface()
    if world_rank == 0:
        store = _stores.pop()
    else:
        store = dist.TCPStore(host, port, is_master=False, timeout=timedelta(seconds=CONNECT_SECONDS))
    timeout = timedelta(seconds=seconds)
    store.set_timeout(timeout)
    dist.init_process_group(
        backend=backend, store=store, rank=world_rank, world_size=world_size, timeout=timeout
    )


def choose_interface() -> None:
    """Let gloo use the interface that Ray uses, and nccl too where that is loopback; in a worker's process.

    Gloo takes the one that the host's name resolves to, which is loopback on many systems: workers on
    different nodes would then wait for one another in vain. On others it is the network's, where workers
    of one machine have nothing to say. Nccl takes any but loopback.
    """
    name = interface_of(ray.util.get_node_ip_address())
    if name is not None:
        os.environ.setdefault(GLOO, name)
    if name == "lo":
        os.environ.setdefault(NCCL, name)


def interface_of(ip: str) -> str | None:
    """Name of this machine's interface with that address, if it has one."""
    import psutil  # Ray brings it

    known = psutil.net_if_addrs().items()
    return next((name for name, addresses in known if ip in {a.address for a in addresses}), None)
