"""Connect to Ray: to a running cluster, or to one started here for as long as it is needed."""

import logging
import os
import re
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from cluster.errors import ClusterError
from cluster.head import ask_head, check_is_node, check_versions, find_head
from cluster.tokens import MODE, TOKEN, find_token, refresh, use_token

MIN_LOCAL_CPUS = 4  # logical: workers reserve a part of one each, scoring tasks a whole one
# Without clusters of several machines (Ray's name for it), all of Ray's servers listen on loopback.
LOOPBACK_ONLY = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"


@dataclass(frozen=True)
class Cluster:
    """What a connected cluster offers."""

    address: str | None
    """As asked for; ``None`` for one started here."""
    cpus: float
    """Logical CPUs of all nodes."""
    gpus: float
    nodes: int


@contextmanager
def connect(address: str | None = None, *, token_file: Path | None = None) -> Iterator[Cluster]:
    """Connect to a Ray cluster, quietly, and disconnect afterwards.

    Without an address Ray is started on this machine (all its servers on loopback, a token of its
    own that is written nowhere) and stopped at the end. With one, that cluster is used and left
    running; the authentication mode is set by whether there is a token (see `cluster.tokens`).

    Args:
        address: ``auto`` or ``host:port`` of a running cluster; ``None`` starts one.
        token_file: the cluster's token; where Ray looks for it when not given.

    Raises:
        ClusterError: the address has a form that does not work for training, or nobody answers
            there, or it asks for another token or runs other versions.
    """
    if address is not None:
        check_address(address)
    _prepare_environment(local=address is None, token_file=token_file)
    import ray

    if ray.is_initialized():  # whoever connected this process disconnects it
        yield _describe(address)
        return
    try:
        if address is None:
            with _loopback_only():
                ray.init(
                    address="local",  # whatever RAY_ADDRESS says
                    num_cpus=local_cpus(),
                    dashboard_host="127.0.0.1",
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                )
        else:
            head = check_cluster_answers(address, token_file=token_file)
            loopback = check_is_node(head, find_token(token_file))
            with _loopback_only() if loopback else nullcontext():
                ray.init(address=head, log_to_driver=False, logging_level=logging.ERROR)
    except ClusterError:
        raise
    except Exception as error:
        raise _explained(address, error) from error
    try:
        yield _describe(address)
    finally:
        ray.shutdown()


def check_cluster_answers(address: str, *, token_file: Path | None = None) -> str:
    """``host:port`` of a head that answers, takes our token and runs our versions; costs milliseconds.

    Raises:
        ClusterError: what is wrong with the address, the token or the versions.
    """
    check_address(address)
    head = find_head() if address == "auto" else address
    check_versions(ask_head(head, find_token(token_file)), address)
    return head


def check_address(address: str) -> None:
    """That a driver in this process can use an address of this form.

    Raises:
        ClusterError: it cannot; the other way to reach that cluster.
    """
    where = "cluster.address"
    if address.startswith("ray://"):
        raise ClusterError(
            where,
            f"{address} is a Ray Client address, which cannot run training; submit the run as a job "
            "(spikeprune submit --address http://HEAD:8265 -- run ...), or give the head's host:port "
            "from one of the cluster's nodes",
        )
    if re.match(r"https?://", address):
        raise ClusterError(
            where,
            f"{address} is a dashboard, which takes jobs: spikeprune submit --address {address} -- run ...; "
            "or give the head's host:port from one of the cluster's nodes",
        )
    if address not in ("auto", "local") and not re.fullmatch(r"\[?[\w.:%-]+\]?:\d{1,5}", address):
        raise ClusterError(where, f"{address!r} is not an address; give auto or host:port (often host:6379)")
    if address == "local":
        raise ClusterError(where, "leave it out to start Ray on this machine")


def prepare_data() -> None:
    """Ray Data in this process: no log lines and progress bars of its own, all of the cluster at once."""
    import ray.data
    from ray.data._internal.execution.resource_manager import ResourceManager

    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    # It asks for the cluster's size once a second and runs a single task until it has heard of it,
    # twice: one to two seconds of every pass.
    ResourceManager.GLOBAL_LIMITS_UPDATE_INTERVAL_S = 0.1  # type: ignore[assignment]


def _describe(address: str | None) -> Cluster:
    import ray

    resources = ray.cluster_resources()
    return Cluster(
        address=address,
        cpus=resources.get("CPU", 0.0),
        gpus=resources.get("GPU", 0.0),
        nodes=sum(1 for node in ray.nodes() if node["Alive"]),
    )


def local_cpus() -> int:
    """Logical CPUs that Ray is started with on this machine."""
    return max(os.cpu_count() or 1, MIN_LOCAL_CPUS)


def _prepare_environment(local: bool, token_file: Path | None) -> None:
    """Settings that Ray reads when it is imported or started, unless the user has made them."""
    defaults = {
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # report() waits for this poll
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    }
    if local:
        defaults["RAY_worker_niceness"] = "0"  # not 15, where the idle class gets a thirteenth of a core
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    if not local:
        use_token(token_file)
    elif MODE not in os.environ:
        # Ray would otherwise leave a token file in the home folder.
        os.environ.setdefault(TOKEN, secrets.token_hex(32))
        os.environ[MODE] = "token"
        refresh()
    # Every Ray process would compile all its imports anew.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    sys.dont_write_bytecode = False


@contextmanager
def _loopback_only() -> Iterator[None]:
    """While Ray starts here: its processes take the setting along, later connections do not."""
    from ray._private import ray_constants  # read once, when Ray is imported

    before, set_before = os.environ.get(LOOPBACK_ONLY), ray_constants.ENABLE_RAY_CLUSTER
    os.environ[LOOPBACK_ONLY], ray_constants.ENABLE_RAY_CLUSTER = before or "0", before in ("1", "true")
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = set_before
        if before is None:
            del os.environ[LOOPBACK_ONLY]


def _explained(address: str | None, error: Exception) -> ClusterError:
    text = " ".join(str(error).split())
    first = str(error).strip().splitlines()[0] if text else type(error).__name__
    if address is None:
        return ClusterError("Ray", f"could not be started on this machine ({first})")
    where = "cluster.address"
    if "ersion mismatch" in text:
        return ClusterError(where, f"{address} runs other versions: {_versions(text)}; use the same on both")
    return ClusterError(where, f"no Ray cluster answers at {address} ({first})")


def _versions(text: str) -> str:
    found = re.findall(r"Ray: (\S+) Python: (\S+)", text)
    if len(found) < 2:
        return text
    return f"the cluster Ray {found[0][0]} and Python {found[0][1]}, here Ray {found[1][0]} and {found[1][1]}"
