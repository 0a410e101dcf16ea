"""Each check on a fault that is really there."""

import os
from pathlib import Path
from unittest import mock

import pytest

from cluster.doctor import Needs, examine
from pipelines import cli
from tests.cluster.heads import Head, environment, spikeprune


def lines(folder: Path, needs: Needs, **env: str) -> dict[str, tuple[bool, str]]:
    with mock.patch.dict(os.environ, environment(HOME=str(folder), **env), clear=True):
        return {line.name: (line.ok, line.what) for line in examine(needs, folder=folder)}


def test_nothing_wrong(tmp_path: Path) -> None:
    found = lines(tmp_path, Needs(cpus=2, storage=tmp_path / "runs"))
    assert all(ok for ok, _ in found.values()), found
    assert {"python", "torch", "ray", "bytecode", "token", "CPUs", "storage", "object store", "disk"} <= set(
        found
    )


def test_what_is_wrong_is_named_with_its_remedy(tmp_path: Path) -> None:
    (tmp_path / "snn.py").write_text("")
    token = tmp_path / "token"
    token.write_text("x")
    token.chmod(0o644)
    (tmp_path / "file").write_text("")
    needs = Needs(
        cpus=10**4, data=(str(tmp_path / "none"),), data_bytes=10**16, storage=tmp_path / "file" / "runs"
    )
    found = lines(tmp_path, needs, PYTHONDONTWRITEBYTECODE="1", RAY_AUTH_TOKEN_PATH=str(token))
    for name, remedy in [
        ("bytecode", "unset it"),
        ("own modules", "rename it"),
        ("token", "chmod 600"),
        ("CPUs", "lower cluster.workers"),
        ("data", "cannot be read"),
        ("storage", "give another --storage"),
        ("object store", "use more nodes or memory"),
        ("disk", "are needed"),
    ]:
        ok, what = found[name]
        assert not ok, name
        assert remedy in what


def test_a_cluster(head: Head, project: Path) -> None:
    said = spikeprune(
        "doctor", "small.yaml", "--address", head.address, "--dashboard", head.url,
        "--token-file", str(head.token), cwd=project,
    )  # fmt: skip
    assert said.code == 0, said
    for name in ("dashboard", "cluster", "CPUs", "storage", "data", "clocks", "network", "object store"):
        assert f"ok    {name}: " in said.out
    assert head.token.read_text().strip() not in said.out + said.err


def test_a_cluster_that_is_not_there(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--address", "127.0.0.1:9"]) == 1
    out = capsys.readouterr().out
    assert "wrong cluster: cluster.address: no Ray cluster answers at 127.0.0.1:9" in " ".join(out.split())
