"""Addresses, what a local start listens on, and nodes that do not share their storage."""

import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest

from cluster.connect import check_address, check_cluster_answers, find_head, refresh
from cluster.errors import ClusterError
from tests.cluster.heads import Head, environment, running_head


@pytest.mark.parametrize(
    ("address", "line"),
    [
        ("ray://host:10001", "is a Ray Client address, which cannot run training; submit"),
        (
            "http://host:8265",
            "is a dashboard, which takes jobs: spikeprune submit --address http://host:8265",
        ),
        ("host", "is not an address; give auto or host:port"),
        ("local", "leave it out"),
    ],
)
def test_addresses_that_cannot_train(address: str, line: str) -> None:
    with pytest.raises(ClusterError, match=r"^cluster\.address: ") as caught:
        check_address(address)
    assert line in str(caught.value)


LISTENING = """
import os
from pathlib import Path
import ray
from cluster.connect import connect
with connect() as cluster:
    import psutil
    family = [psutil.Process(), *psutil.Process().children(recursive=True)]
    token = os.environ["RAY_AUTH_TOKEN"]
    assert not any(token in word for process in family for word in process.cmdline())
    logs = Path(ray._private.worker._global_node.get_session_dir_path())
    files = [p for p in logs.rglob("*") if p.is_file()]
    assert files and not any(token.encode() in p.read_bytes() for p in files)
    for process in family:
        for c in process.net_connections(kind="inet"):
            if c.status == psutil.CONN_LISTEN or c.type.name == "SOCK_DGRAM":
                print("listens", c.laddr.ip, process.name())
    nice = ray.remote(lambda: os.getpriority(os.PRIO_PROCESS, 0))
    print("nice", ray.get(nice.remote()) - os.getpriority(os.PRIO_PROCESS, 0))
"""


def test_a_local_start_listens_on_loopback_only_and_is_not_nice(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LISTENING], env=environment(HOME=str(tmp_path)), capture_output=True, text=True
    )
    found = {line.split()[1] for line in done.stdout.splitlines() if line.startswith("listens")}
    assert done.returncode == 0, done.stderr
    assert found
    assert found <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}, done.stdout
    assert not (tmp_path / ".ray").exists()
    assert "nice 0" in done.stdout  # training under Ray has the priority that it has without


SHARING = """
import sys
from pathlib import Path
from cluster.connect import connect
from cluster.nodes import check_shared, look
with connect(sys.argv[1]) as cluster:
    here = Path(sys.argv[2])
    [view] = look(here, [str(here / "data"), str(here / "none")])
    assert view.seen and view.sees_driver and view.unwritable is None, view
    assert view.unreadable == (str(here / "none"),), view
    assert abs(view.skew) < 1, view
    assert view.interface == "lo", view
    check_shared(here, [str(here / "data")])
    uri = f"file://{here}"
    [view] = look(uri, [f"{uri}/data", f"{uri}/none"])
    assert view.seen and view.sees_driver and view.unwritable is None and view.disk is None, view
    assert view.unreadable == (f"{uri}/none",), view
    check_shared(uri, [f"{uri}/data"])
    try:
        check_shared(here, [str(here / "none")])
    except ValueError as error:
        print(error)
    print(sorted(p.name for p in here.iterdir()))
"""


def test_a_node_is_asked_what_it_sees(head: Head, tmp_path: Path) -> None:
    (tmp_path / "data").write_text("x")
    done = subprocess.run(
        [sys.executable, "-c", SHARING, head.address, str(tmp_path)],
        env=environment(RAY_AUTH_TOKEN_PATH=str(head.token)),
        timeout=120,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    refused, left = done.stdout.splitlines()
    assert refused.startswith("data.path: node 127.0.0.1 cannot read"), done
    assert left == "['data']"


def test_auto_finds_the_only_head_among_the_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    services = "ray._private.services"
    monkeypatch.setattr(f"{services}.find_bootstrap_address", lambda _: None)  # a head with a --temp-dir
    for found in (frozenset({"10.0.0.1:6379"}), {"10.0.0.1:6379"}):
        monkeypatch.setattr(f"{services}.find_gcs_addresses", lambda found=found: found)
        assert find_head() == "10.0.0.1:6379"
    monkeypatch.setattr(f"{services}.find_gcs_addresses", lambda: frozenset({"a:1", "b:2"}))
    with pytest.raises(ClusterError, match="several"):
        find_head()
    monkeypatch.setattr(f"{services}.find_bootstrap_address", lambda _: "b:2")
    assert find_head() == "b:2"
    monkeypatch.setenv("RAY_ADDRESS", "c:3")
    assert find_head() == "c:3"


@pytest.fixture
def as_before() -> Iterator[None]:
    """The authentication of this process is what it was."""
    with mock.patch.dict(os.environ):
        yield
    refresh()


@pytest.mark.usefixtures("as_before")
def test_a_head_answers_past_proxies(head: Head, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Ray does, which asks no proxy of the environment's."""
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "grpc_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert check_cluster_answers(head.address, token_file=head.token) == head.address


@pytest.mark.usefixtures("as_before")
@pytest.mark.parametrize("says", [b"", b"SSH-2.0-x\r\n"])
def test_what_is_no_head_is_told_at_once(head: Head, says: bytes) -> None:
    dashboard = head.url.removeprefix("http://")
    with pytest.raises(ClusterError, match="is a dashboard, which takes jobs"):
        check_cluster_answers(dashboard, token_file=head.token)
    with socket.create_server(("127.0.0.1", 0)) as server:
        host, port = server.getsockname()

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.sendall(says)

        threading.Thread(target=answer, daemon=True).start()
        with pytest.raises(ClusterError, match="answers, but is no Ray head"):
            check_cluster_answers(f"{host}:{port}", token_file=head.token)


def certificate(folder: Path) -> dict[str, str]:
    """Ray's variables for TLS, with a certificate of our own for 127.0.0.1."""
    words = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-days",
        "2",
        "-subj",
        "/CN=127.0.0.1",
    ]
    words += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", "key.pem", "-out", "cert.pem"]
    subprocess.run(words, cwd=folder, check=True, capture_output=True)
    cert, key = str(folder / "cert.pem"), str(folder / "key.pem")
    return {
        "RAY_USE_TLS": "1",
        "RAY_TLS_SERVER_CERT": cert,
        "RAY_TLS_SERVER_KEY": key,
        "RAY_TLS_CA_CERT": cert,
    }


ASK = """
import sys
from pathlib import Path
from cluster.connect import check_cluster_answers
print(check_cluster_answers(sys.argv[1], token_file=Path(sys.argv[2])))
"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")
def test_a_head_with_tls_answers(tmp_path: Path) -> None:
    tls = certificate(tmp_path)
    with running_head(**tls) as head:
        done = subprocess.run(
            [sys.executable, "-c", ASK, head.address, str(head.token)],
            env=environment(**tls), capture_output=True, text=True, timeout=120,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{head.address}\n"
