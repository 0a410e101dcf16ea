"""Each check on a fault that is really there."""

import os
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from cluster.doctor import Needs, _views, examine
from cluster.nodes import View
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
        cpus=10**4,
        gpus=10**3,
        data=(str(tmp_path / "none"),),
        data_bytes=10**16,
        storage=tmp_path / "file" / "runs",
    )
    found = lines(tmp_path, needs, PYTHONDONTWRITEBYTECODE="1", RAY_AUTH_TOKEN_PATH=str(token))
    for name, remedy in [
        ("bytecode", "unset it"),
        ("own modules", "rename it"),
        ("token", "chmod 600"),
        ("CPUs", "lower cluster.workers"),
        ("GPUs", "lower cluster.gpus_per_worker"),
        ("data", "cannot be read"),
        ("storage", "give another --storage"),
        ("object store", "use more nodes or memory"),
        ("disk", "are needed"),
    ]:
        ok, what = found[name]
        assert not ok, name
        assert remedy in what


WELL = View(
    ip="192.0.2.1", host="a", ray="2.60.0", python="3.11.7", product=version("spikeprune"), skew=0.1,
    interface="eth0", misnamed=(), bytecode=True, disk=2**40, store=2**40, unwritable=None, sees_driver=True,
    seen=True, unreadable=(),
)  # fmt: skip
FAULTS = [
    ("spikeprune", {"product": None}, "install the same there"),
    ("spikeprune", {"product": "0.0.1"}, "install the same there"),
    ("storage", {"unwritable": "Read-only file system"}, "use a folder that all nodes share"),
    ("storage", {"sees_driver": False}, "use a folder that all nodes share"),
    ("storage", {"seen": False}, "use a folder that all nodes share"),
    ("disk", {"disk": 10}, "are needed"),
    ("data", {"unreadable": ("/d/train.parquet",)}, "put it where every node reads it"),
    ("clocks", {"skew": -60.0}, "set its clock"),
    ("clocks", {"skew": 60.0}, "set its clock"),
    ("network", {"interface": "lo"}, "give ray start --node-ip-address"),
    ("network", {"misnamed": ("NCCL_SOCKET_IFNAME=ib0",)}, "correct or unset it before ray start"),
    ("bytecode", {"bytecode": False}, "unset it before ray start"),
]


@pytest.mark.parametrize(("name", "fault", "remedy"), FAULTS)
def test_a_node_with_one_fault_is_named(name: str, fault: dict[str, Any], remedy: str) -> None:
    ill = replace(WELL, ip="192.0.2.2", **fault)
    needs = Needs(data=("/d/train.parquet",), data_bytes=2**20)
    well = {line.name: line for line in _views(needs, [WELL, replace(WELL, ip="192.0.2.3")], Path("/s"))}
    assert all(line.ok for line in well.values()), well
    found = {line.name: line for line in _views(needs, [WELL, ill], Path("/s"))}
    assert [n for n, line in found.items() if not line.ok] == [name]
    assert found[name].only_slow == (name == "bytecode"), "every other fault ends a run"
    assert found[name].what.startswith("node 192.0.2.2 ")
    assert remedy in found[name].what


def test_what_costs_speed_alone_is_not_called_wrong(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], digits: Path, tmp_path: Path
) -> None:
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    settings = ["--data.path", str(digits), "--storage", str(tmp_path)]
    assert cli.main(["doctor", *settings]) == 0, capsys.readouterr().out
    assert "slow  bytecode: PYTHONDONTWRITEBYTECODE is set" in capsys.readouterr().out


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
