"""Connect to Ray: to a running cluster, or to one started here for as long as it is needed."""

import logging
import os
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

MIN_LOCAL_CPUS = 4  # logical: workers reserve a part of one each, scoring tasks a whole one


class ClusterError(ValueError):
    """A cluster that cannot be reached or used, and what to do about it."""


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
def connect(address: str | None = None) -> Iterator[Cluster]:
    """Connect to a Ray cluster, quietly, and disconnect afterwards.

    Without an address Ray is started on this machine (loopback only, a token of its own that is
    written nowhere) and stopped at the end. With one, that cluster is used and left running.

    Args:
        address: ``auto`` or ``host:port`` of a running cluster; ``None`` starts one.

    Raises:
        ClusterError: the address has a form that does not work for training, or nobody answers.
    """
    if address is not None and address.startswith("ray://"):
        raise ClusterError(
            f"cluster.address: {address} is a Ray Client address, which cannot run training; "
            "submit the run as a job on the cluster, or give the head's host:port from one of its nodes"
        )
    _prepare_environment(local=address is None)
    import ray

    if ray.is_initialized():  # whoever connected this process disconnects it
        yield _describe(address)
        return
    try:
        if address is None:
            ray.init(
                num_cpus=local_cpus(),
                dashboard_host="127.0.0.1",
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
        else:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:
        raise ClusterError(_explain(address, error)) from error
    try:
        yield _describe(address)
    finally:
        ray.shutdown()


def quiet_data() -> None:
    """No log lines and progress bars of Ray Data's own, in this process."""
    import ray.data

    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)


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


def _prepare_environment(local: bool) -> None:
    """Settings that Ray reads when it is imported or started, unless the user has made them."""
    defaults = {
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # report() waits for this poll
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    }
    if local and "RAY_AUTH_MODE" not in os.environ:
        # Ray would otherwise leave a token file in the home folder.
        defaults |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    # Every Ray process would compile all its imports anew.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    sys.dont_write_bytecode = False


def _explain(address: str | None, error: Exception) -> str:
    first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if address is None:
        return f"Ray could not be started on this machine ({first})"
    if "Authentication" in type(error).__name__ or "token" in first.lower():
        return (
            f"cluster.address: {address} asks for a token; export RAY_AUTH_MODE=token and put the token "
            "in RAY_AUTH_TOKEN_PATH's file or ~/.ray/auth_token"
        )
    return f"cluster.address: no Ray cluster answers at {address} ({first})"
