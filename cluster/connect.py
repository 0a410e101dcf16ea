"""Connect to Ray: to a running cluster, or to one started here for as long as it is needed."""

import json
import logging
import os
import platform
import re
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from cluster.errors import UserError
from cluster.ray_private import head_client, loopback_only, node_addresses, refresh
from cluster.tokens import MODE, PLACES, TOKEN, TOKEN_PATH, Token, find_token
from cluster.watch import servers, watch

MIN_LOCAL_CPUS = 4  # logical: workers reserve a part of one each, scoring tasks a whole one
SECONDS = 10.0
"""How long a head may take to answer."""
START_SECONDS = 60.0  # a head answers before its own node is known
CGROUP = Path("/sys/fs/cgroup")
_WHERE = "cluster.address"
_KIND = "accelerator_type:"
_PROXY = "RAY_grpc_enable_http_proxy"


@dataclass(frozen=True)
class Cluster:
    """What a connected cluster offers."""

    cpus: float
    """Logical CPUs of all nodes."""
    gpus: float
    accelerators: tuple[str, ...]
    """Kinds of its GPUs, as Ray calls them."""
    nodes: int


@contextmanager
def connect(
    address: str | None = None, *, token_file: Path | None = None, lost: Callable[[str], None] | None = None
) -> Iterator[Cluster]:
    """Connect to a Ray cluster, quietly, and disconnect afterwards.

    Without an address Ray is started on this machine (all its servers on loopback, a token of its
    own that is written nowhere) and stopped at the end. With one, that cluster is used and left
    running; the authentication mode is set by whether there is a token (see `use_token`).

    Args:
        address: ``auto`` or ``host:port`` of a running cluster; ``None`` starts one.
        token_file: the cluster's token; where Ray looks for it when not given.
        lost: is called with its name, from a thread, where one of the servers of a Ray that was started here
            ends; Ray itself would wait for a minute, and then end this process without a word.

    Raises:
        UserError: the address has a form that does not work for training, or nobody answers
            there, or it asks for another token or runs other versions.
    """
    if address is not None:
        check_address(address)
    before_token = {name: os.environ.get(name) for name in (MODE, TOKEN)}
    _prepare_environment(local=address is None, token_file=token_file)
    import ray

    if ray.is_initialized():  # whoever connected this process disconnects it
        if address is not None:
            check_cluster_answers(address, token_file=token_file)
        yield _describe()
        return
    stop = threading.Event()
    if address is None and lost is not None:  # from the beginning: a server may end while others start
        threading.Thread(target=watch, args=(servers(), lost, stop), daemon=True).start()
    try:
        _join(address, token_file)
        yield _describe()
    finally:
        stop.set()
        ray.shutdown()
        if address is None:  # its token is nobody else's
            for name, value in before_token.items():
                os.environ.pop(name, None)
                os.environ.update({} if value is None else {name: value})


def _join(address: str | None, token_file: Path | None) -> None:
    """Start Ray here, or join a running cluster."""
    import ray

    try:
        if address is None:
            with loopback_only():
                ray.init(
                    address="local",  # whatever RAY_ADDRESS says
                    num_cpus=local_cpus(),
                    dashboard_host="127.0.0.1",
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                )
        else:
            head = check_cluster_answers(address, token_file=token_file)
            with _silent(), loopback_only() if _check_is_node(head) else nullcontext():
                ray.init(address=head, log_to_driver=False, logging_level=logging.ERROR)
    except UserError:
        raise
    except Exception as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        if address is None:
            raise UserError("Ray", f"could not be started on this machine ({first})") from error
        if isinstance(error, ConnectionError):  # a container with the node's network, but not its processes
            raise _no_node(address) from error
        raise UserError(_WHERE, f"{address} cannot be used ({first})") from error


def check_cluster_answers(address: str, *, token_file: Path | None = None) -> str:
    """``host:port`` of a head that answers, takes our token and runs our versions; costs milliseconds.

    It goes the way that Ray itself goes, past proxies and by TLS where ``RAY_USE_TLS`` asks for it.

    Raises:
        UserError: what is wrong with the address, the token or the versions.
    """
    check_address(address)
    if address == "auto" and "ray" in sys.modules:
        import ray

        if ray.is_initialized():  # a trial of a search, whose Ray need not be looked for
            return str(ray.get_runtime_context().gcs_address)
    head = find_head() if address == "auto" else address
    token = use_token(token_file)
    _check_listens(head)
    import ray
    from ray.exceptions import AuthenticationError, RayError

    try:
        with _silent():
            told = head_client(head).internal_kv_get(b"CLUSTER_METADATA", b"cluster", timeout=SECONDS)
    except AuthenticationError:
        if token is None:
            raise UserError(_WHERE, f"{head} asks for a token; {PLACES}") from None
        raise UserError(_WHERE, f"{head} refuses the token of {token.source}; {PLACES}") from None
    except RayError as error:
        first = str(error).strip().splitlines()[0]
        raise UserError(_WHERE, f"no Ray cluster answers at {head} ({first})") from None
    if not told:
        raise UserError(_WHERE, f"{head} is still starting; try again in some seconds")
    about, here = json.loads(told), (ray.__version__, platform.python_version())
    there = (about["ray_version"], about["python_version"])
    if there != here:
        raise UserError(
            _WHERE,
            f"{address} runs Ray {there[0]} and Python {there[1]}, here Ray {here[0]} and Python {here[1]}; "
            "they must agree: install the cluster's versions here, or use an image with these there",
        )
    return head


def _check_listens(head: str) -> None:
    """That somebody listens at ``host:port``, before Ray's client, which would try for 40 seconds."""
    if os.environ.get(_PROXY, "0").lower() in ("1", "true"):
        return  # Ray goes through a proxy, and not directly as usual
    host, _, port = head.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=SECONDS):
            return
    except TimeoutError:
        raise UserError(
            _WHERE, f"no Ray cluster answers at {head} within {SECONDS:g} s; is it the head's port?"
        ) from None
    except (OSError, UnicodeError) as error:  # UnicodeError: of names that cannot be a host's
        reason = (getattr(error, "strerror", None) or str(error)).lower()
        raise UserError(
            _WHERE,
            f"no Ray cluster answers at {head} ({reason}); is it running there? a head's port is often 6379",
        ) from None


def _check_is_node(head: str) -> bool:
    """That this machine is one of the cluster's nodes, as Ray's drivers must be; Ray would look for minutes.

    Returns:
        whether the cluster is on loopback alone: one node that knows itself as 127.0.0.1. Ray would
        look for its head at this machine's outer address, where nobody listens.
    """
    deadline = time.monotonic() + START_SECONDS
    while not (ips := node_addresses(head, SECONDS)):
        if time.monotonic() > deadline:
            raise UserError(_WHERE, f"{head} has no nodes yet; try again when it has started")
        time.sleep(0.1)
    if not any(map(_is_ours, ips)):
        raise _no_node(head)
    return all(ip == "127.0.0.1" for ip in ips)


def _is_ours(ip: str) -> bool:
    """Whether an address is one of this machine's: only those can be bound."""
    with socket.socket(socket.AF_INET6 if ":" in ip else socket.AF_INET) as probe:
        try:
            probe.bind((ip, 0))
        except OSError:
            return False
    return True


def find_head() -> str:
    """``host:port`` of the head that ``RAY_ADDRESS`` names, or that ``ray start`` wrote down here."""
    if (named := os.environ.get("RAY_ADDRESS", "auto")) not in ("", "auto"):
        check_address(named, "RAY_ADDRESS")
        return named
    temporary = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
    written = Path(temporary) / "ray" / "ray_current_cluster"
    if not written.exists():
        raise UserError(
            _WHERE,
            "auto finds no Ray on this machine; start it (ray start --head --port=6379), name its host:port "
            "(needed with ray start --temp-dir), or leave the address out to have it started for the run",
        )
    named = written.read_text().strip()
    check_address(named, str(written))
    return named


def use_token(path: Path | None = None) -> Token | None:
    """Set Ray's authentication mode for this process, and where it finds the token, which is returned.

    Ray switches authentication on by itself only for some ways to connect, never for an explicit address.
    An explicit mode in the environment is respected.
    """
    token = find_token(path)
    if path is not None:
        os.environ.pop(TOKEN, None)  # it would win over the file
        os.environ[TOKEN_PATH] = os.path.expanduser(path)
        os.environ[MODE] = "token"
    os.environ.setdefault(MODE, "token" if token is not None else "disabled")
    refresh()
    return token


def check_address(address: str, where: str = _WHERE) -> None:
    """That a driver in this process can use an address of this form; ``where`` it is given."""
    if address.startswith("ray://"):
        raise UserError(
            where,
            f"{address} is a Ray Client address, which cannot run training; submit the run as a job "
            "(spikeprune submit --address http://HEAD:8265 -- run ...), or give the head's host:port "
            "from one of the cluster's nodes",
        )
    if re.match(r"https?://|[^/]*:8265$", address):
        url = address if "//" in address else f"http://{address}"
        raise UserError(
            where,
            f"{address} is a dashboard, which takes jobs: spikeprune submit --address {url} -- run ...; "
            "or give the head's host:port from one of the cluster's nodes",
        )
    if address == "local":
        raise UserError(where, "leave it out to start Ray on this machine")
    if address != "auto" and not re.fullmatch(r"\[?[\w.:%-]+\]?:\d{1,5}", address):
        raise UserError(where, f"{address!r} is not an address; give auto or host:port (often host:6379)")


def prepare_data() -> None:
    """Ray Data in this process: no log lines and progress bars of its own."""
    import ray.data

    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)


def _describe() -> Cluster:
    import ray

    resources = ray.cluster_resources()
    return Cluster(
        cpus=resources.get("CPU", 0.0),
        gpus=resources.get("GPU", 0.0),
        accelerators=tuple(r.removeprefix(_KIND) for r in sorted(resources) if r.startswith(_KIND)),
        nodes=sum(1 for node in ray.nodes() if node["Alive"]),
    )


def local_cpus() -> int:
    """Logical CPUs that Ray is started with on this machine: what may be used, and no fewer than four."""
    return max(usable_cpus(), MIN_LOCAL_CPUS)


def usable_cpus() -> int:
    """CPUs that this process may use, by its affinity and its container's quota."""
    affine = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        if (CGROUP / "cpu.max").exists():
            quota, period = map(int, (CGROUP / "cpu.max").read_text().split())
        else:  # the first version of control groups, where -1 is no quota
            quota, period = (
                int((CGROUP / "cpu" / f"cpu.cfs_{n}_us").read_text()) for n in ("quota", "period")
            )
    except (OSError, ValueError):  # no control group, or "max"
        return affine
    return max(1, min(affine, quota // period)) if quota > 0 else affine


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
def _silent() -> Iterator[None]:
    """Nothing on standard error: Ray's C++ prints there what is told in one line of ours."""
    sys.stderr.flush()
    kept, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(null)


def _no_node(head: str) -> UserError:
    return UserError(
        _WHERE,
        f"{head} answers, but this machine is none of its nodes; submit the run as a job instead "
        "(spikeprune submit --address http://HEAD:8265 -- run ...)",
    )
