"""Each check on a fault that is really there."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest

from cluster import checks
from cluster.checks import PACKAGES, check_nodes
from cluster.connect import local_cpus
from pipelines import cli
from pipelines.config.load import load_config
from pipelines.runs.preflight import examine
from pipelines.storage.paths import Folder
from tests.cluster.heads import Head, environment, running_head, spikeprune
from tests.object_store import s3_server

pytestmark = pytest.mark.xdist_group("ray")


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    with running_head() as running:
        yield running


@pytest.fixture
def project(tmp_path: Path, digits: Path) -> Path:
    (tmp_path / "small.yaml").write_text(f"name: small\ndata: {{path: {digits}}}\n")
    return tmp_path


def lines(folder: Path, settings: dict[str, str], **env: str) -> dict[str, tuple[bool, str]]:
    config = load_config(None, settings)
    clean = mock.patch.dict(os.environ, environment(HOME=str(folder), **env), clear=True)
    with clean, contextlib.chdir(folder):
        return {line.name: (line.ok, line.what) for line in examine(config)}


def test_nothing_wrong(tmp_path: Path, digits: Path) -> None:
    found = lines(tmp_path, {"storage": str(tmp_path / "runs"), "data.path": str(digits)})
    assert all(ok for ok, _ in found.values()), found
    assert {"bytecode", "token", "resources", "data", "storage"} <= set(found)


def test_what_is_wrong_is_named_with_its_remedy(tmp_path: Path) -> None:
    (tmp_path / "snn.py").write_text("")
    token = tmp_path / "token"
    token.write_text("x")
    token.chmod(0o644)
    (tmp_path / "file").write_text("")
    settings = {
        "data.path": str(tmp_path / "none"),
        "storage": str(tmp_path / "file" / "runs"),
        "cluster.workers": "1000",
        "train.batch_size": "1000",
    }
    found = lines(tmp_path, settings, PYTHONDONTWRITEBYTECODE="1", RAY_AUTH_TOKEN_PATH=str(token))
    for name, remedy in [
        ("bytecode", "unset it"),
        ("own modules", "rename it"),
        ("token", "chmod 600"),
        ("resources", "or lower cluster.cpus_per_worker"),
        ("data", "does not exist"),
        ("storage", "cannot be written"),
    ]:
        ok, what = found[name]
        assert not ok, name
        assert remedy in what


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"cluster.scorers": "1", "cluster.gpus_per_scorer": "64"}, "do not fit the cluster's"),
        ({"cluster.device": "cuda", "cluster.workers": "2"}, "2 workers of 1 GPUs do not fit"),
        ({"cluster.device": "cuda:64"}, "cuda:64 is not possible"),
    ],
)
def test_gpus_that_a_run_would_be_refused_for(settings: dict[str, str], what: str, tmp_path: Path) -> None:
    ok, said = lines(tmp_path, settings)["resources"]
    assert not ok
    assert what in said


def test_one_worker_here_needs_no_cpu_for_scoring(tmp_path: Path) -> None:
    all_cpus = {"cluster.cpus_per_worker": str(local_cpus())}
    for engine, enough in (("local", True), ("ray", False)):
        ok, said = lines(tmp_path, {**all_cpus, "cluster.engine": engine})["resources"]
        assert ok == enough, said


def test_a_bucket_is_looked_at(digits: Path) -> None:
    with s3_server():
        for path in digits.iterdir():
            Folder.of("s3://bucket/data").upload(path.name, path)
        for bucket, well in (("bucket", True), ("no-such-bucket", False)):
            config = load_config(None, {"storage": f"s3://{bucket}/runs", "data.path": f"s3://{bucket}/data"})
            found = {line.name: line for line in examine(config)}
            assert found["storage"].ok == found["data"].ok == well, found
            assert well or "cannot be written" in found["storage"].what


@pytest.mark.parametrize("there", ["0.0.1", None])
def test_a_node_with_other_versions_is_named(there: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nodes in disagreement need two installations; the comparison is of what they would answer."""
    well = checks.packages()
    answers = {"192.0.2.1": well, "192.0.2.2": {**well, "spikeprune": there}}
    monkeypatch.setattr(checks, "on_every_node", lambda task: answers)
    found = check_nodes()
    assert not found.ok
    assert found.what.startswith("node 192.0.2.2 has ")
    assert f"spikeprune {there or 'missing'} (here " in found.what
    monkeypatch.setattr(checks, "on_every_node", lambda task: dict.fromkeys(answers, well))
    found = check_nodes()
    assert found.ok
    assert all(name in found.what for name in PACKAGES)


def test_what_costs_speed_alone_is_not_called_wrong(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], digits: Path, tmp_path: Path
) -> None:
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    monkeypatch.setenv("HOME", str(tmp_path))
    settings = ["--data.path", str(digits), "--storage", str(tmp_path)]
    assert cli.main(["doctor", *settings]) == 0, capsys.readouterr().out
    assert "slow  bytecode: PYTHONDONTWRITEBYTECODE is set" in capsys.readouterr().out


def test_a_cluster(head: Head, project: Path) -> None:
    said = spikeprune(
        "doctor", "small.yaml", "--address", head.address, "--dashboard", head.url,
        "--token-file", str(head.token), cwd=project,
    )  # fmt: skip
    assert said.code == 0, said
    for name in ("dashboard", "cluster", "resources", "versions", "storage", "data"):
        assert f"ok    {name}: " in said.out
    assert head.token.read_text().strip() not in said.out + said.err


def test_a_cluster_that_is_not_there(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--address", "127.0.0.1:9"]) == 1
    out = capsys.readouterr().out
    assert "wrong cluster: cluster.address: no Ray cluster answers at 127.0.0.1:9" in " ".join(out.split())
