"""Addresses, what a local start listens on, and nodes that do not share their storage."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest

from cluster.connect import check_address, check_cluster_answers, find_head, local_cpus, usable_cpus
from cluster.errors import UserError
from cluster.ray_private import refresh
from tests.cluster.heads import Head, environment, running_head

pytestmark = pytest.mark.xdist_group("ray")


@pytest.mark.parametrize(
    ("address", "line"),
    [
        ("ray://host:10001", "is a Ray Client address, which cannot run training; submit"),
        (
            "http://host:8265",
            "is a dashboard, which takes jobs: spikeprune submit --address http://host:8265",
        ),
        ("host:8265", "spikeprune submit --address http://host:8265"),
        ("host", "is not an address; give auto or host:port"),
        ("local", "leave it out"),
    ],
)
def test_addresses_that_cannot_train(address: str, line: str) -> None:
    with pytest.raises(UserError, match=r"^cluster\.address: ") as caught:
        check_address(address)
    assert line in str(caught.value)


@pytest.mark.parametrize("host", ["a..b", "x" * 64])
def test_names_that_no_host_can_have_are_one_line(host: str) -> None:
    refused = pytest.raises(UserError, match=rf"^cluster\.address: no Ray cluster answers at {host}:6379")
    with mock.patch.dict(os.environ), refused:
        check_cluster_answers(f"{host}:6379")
    refresh()


def test_an_address_that_ray_wrote_down_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text("")
    with pytest.raises(UserError, match=r"ray_current_cluster: '' is not an address"):
        find_head()


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
print("left", [name for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_MODE") if name in os.environ])
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
    assert "left []" in done.stdout  # the next cluster's token may be another
    assert "nice 0" in done.stdout  # training under Ray has the priority that it has without


DATA = "put the data where every node reads it"
SHARING = """
import sys
from pathlib import Path
from cluster.connect import connect
from pipelines.storage.sync import check_shared
with connect(sys.argv[1]):
    here = Path(sys.argv[2])
    check_shared(here, [str(here / "data")])
    check_shared(f"file://{here}", [f"file://{here}/data"])
    for storage, file in ((here, here / "none"), (here / "data" / "x", here / "data")):
        try:
            check_shared(storage, [str(file)])
        except Exception as error:
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
    unread, unwritten, left = done.stdout.splitlines()
    assert unread == f"data.path: node 127.0.0.1 cannot read {tmp_path}/none; {DATA}"
    assert "Not a directory" in unwritten
    assert left == "['data']"


def test_a_local_start_declares_what_it_may_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within this process's affinity and the quota of either version of control groups, and four at least."""
    monkeypatch.setattr("cluster.connect.CGROUP", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    assert local_cpus() == 64
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    for quota, cpus in (("-1", 64), ("1650000", 16)):
        (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text(f"{quota}\n")
        assert local_cpus() == cpus
    for quota, cpus in (("max", 64), ("1650000", 16), ("200000", 2), ("50000", 1)):
        (tmp_path / "cpu.max").write_text(f"{quota} 100000\n")
        assert (usable_cpus(), local_cpus()) == (cpus, max(cpus, 4))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    assert local_cpus() == 4
    (tmp_path / "cpu.max").unlink()
    assert local_cpus() == 8


def test_auto_is_the_head_that_ray_start_wrote_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ray._private.utils import write_ray_address

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    with pytest.raises(UserError, match="auto finds no Ray on this machine; start it"):
        find_head()
    (tmp_path / "ray").mkdir()
    write_ray_address("10.0.0.1:6379")
    assert find_head() == "10.0.0.1:6379"
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    assert find_head() == "10.0.0.1:6379"
    monkeypatch.setenv("RAY_ADDRESS", "c:3")
    assert find_head() == "c:3"
    for address in ("10.0.0.2", "http://10.0.0.2:8265", "local"):
        monkeypatch.setenv("RAY_ADDRESS", address)
        with pytest.raises(UserError, match=r"^RAY_ADDRESS: "):
            check_cluster_answers("auto")


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
def test_a_wrong_token_is_told_at_once(head: Head, tmp_path: Path) -> None:
    (tmp_path / "other").write_text("0" * 64)
    (tmp_path / "other").chmod(0o600)
    with pytest.raises(UserError, match=r"refuses the token of .*/other"):
        check_cluster_answers(head.address, token_file=tmp_path / "other")


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
