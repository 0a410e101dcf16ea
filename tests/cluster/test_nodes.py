"""Two nodes that reach one another by a network alone: used both, refused, lost and replaced."""

import json
import os
import secrets
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cluster.heads import BIN, command_lines, environment
from tests.netns import Namespace, Node, two_namespaces, why_not

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("ray")]
PORT = 6399


def wait_until(condition: Callable[[], bool], what: str, seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what} within {seconds} s"
        time.sleep(0.2)


def records(folder: Path) -> list[dict[str, object]]:
    path = folder / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def trainers(namespace: Namespace) -> list[int]:
    """Ray Train's workers in it."""
    lines = command_lines()
    return [p for p, words in lines.items() if "TrainWorker" in words[0] and namespace.holds(p)]


def test_two_nodes_are_used_and_one_may_be_lost(tmp_path: Path, project: Path) -> None:
    if reason := why_not():
        pytest.skip(reason)
    temp = Path("/tmp") / f"sn-{secrets.token_hex(3)}"
    unshared = tmp_path / "unshared"
    for folder in (temp, unshared):
        folder.mkdir()
    (project / "wide.yaml").write_text(
        (project / "small.yaml").read_text().replace("name: small", "name: wide")
        + "search: {space: {train.lr: [0.05, 0.1]}, trials: 2}\n"
    )
    token = temp / "token"
    token.write_text(secrets.token_hex(32))
    token.chmod(0o600)
    env = environment(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=str(token), OMP_NUM_THREADS="1")
    ray = [str(BIN / "ray"), "start", "--block", "--object-store-memory=200000000"]
    nodes: list[Node] = []
    try:
        with two_namespaces() as (a, b):
            head = f"{a.ip}:{PORT}"

            def start_head() -> Node:
                words = [*ray, "--head", f"--node-ip-address={a.ip}", f"--port={PORT}", "--num-cpus=3"]
                words += ["--dashboard-host=127.0.0.1", f"--temp-dir={temp}/a"]
                return a.start(words, env, temp / "a.log")

            def start_other() -> Node:
                words = [*ray, f"--address={head}", f"--node-ip-address={b.ip}", "--num-cpus=2"]
                return b.start(words, env, temp / "b.log", hide=unshared)

            def spikeprune(*words: str) -> subprocess.Popen[str]:
                return subprocess.Popen(
                    a.command([str(BIN / "spikeprune"), *words, "--address", head]),
                    cwd=project, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                )  # fmt: skip

            nodes.append(start_head())
            wait_until(lambda: "Ray runtime started" in (temp / "a.log").read_text(), "a head")
            nodes.append(start_other())
            wait_until(lambda: "Ray runtime started" in (temp / "b.log").read_text(), "a second node")
            # One worker fits on each node, beside a scoring task on the head.
            wide = ("--cluster.workers", "2", "--cluster.cpus-per-worker", "2")

            out, err = (
                refused := spikeprune("train", "small.yaml", "--storage", str(unshared), *wide)
            ).communicate()
            assert refused.returncode == 2, (out, err)
            assert f"storage: {unshared} is not shared" in err.splitlines()[-1]
            assert not (unshared / "small").exists()

            out, err = (
                refused := spikeprune("search", "wide.yaml", "--storage", str(unshared))
            ).communicate()
            assert refused.returncode == 2, (out, err)
            assert f"storage: {unshared} is not shared" in err.splitlines()[-1]

            words = [str(BIN / "spikeprune"), "train", "small.yaml", "--address", head]
            stranger = subprocess.run(a.alone(words), cwd=project, env=env, capture_output=True, text=True)
            assert stranger.returncode == 2
            assert "this machine is none of its nodes; submit" in stranger.stderr.splitlines()[-1]

            doctor = spikeprune("doctor", "small.yaml", "--storage", str(tmp_path / "runs"), *wide)
            out, err = doctor.communicate()
            assert doctor.returncode == 0, (out, err)
            assert "2 nodes" in out
            assert "ok    versions: " in out

            run = tmp_path / "runs" / "small"
            running = spikeprune(
                "run", "small.yaml", "--storage", str(tmp_path / "runs"), *wide, "--train.epochs", "6",
                "--cluster.max-failures", "5",
            )  # fmt: skip
            wait_until(lambda: len(records(run)) >= 2 or running.poll() is not None, "two epochs")
            assert running.poll() is None, running.communicate()
            assert len(trainers(a)) == 1
            assert len(trainers(b)) == 1
            before = len(records(run))
            nodes.pop().lose()
            nodes.append(start_other())
            out, err = running.communicate(timeout=500)
            assert running.returncode == 0, (out, err)
            assert len(records(run)) > before
            assert (run / "report.html").exists()

            shutil.copytree(project / "data" / "digits", unshared / "digits")
            elsewhere = (
                "--data.path",
                str(unshared / "digits"),
                "--output",
                str(tmp_path / "scores.parquet"),
            )
            out, err = (refused := spikeprune("score", str(run), *elsewhere)).communicate()
            assert refused.returncode == 2, (out, err)
            assert f"data.path: node {b.ip} cannot read {unshared / 'digits'}" in err.splitlines()[-1]

            secret = token.read_text()
            for path in run.rglob("*"):
                assert not path.is_file() or secret.encode() not in path.read_bytes()
    finally:
        for node in nodes:
            node.lose()
        subprocess.run(["rm", "-rf", str(temp)], check=True)
    assert os.path.isdir(project)
