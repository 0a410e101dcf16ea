"""Wheel and source distribution hold what is needed, and install into an environment of their own."""

import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PACKAGES = ("spikeprune", "snn", "pruning", "pipelines", "cluster")


def test_versions_agree_everywhere() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    heading = re.search(r"^## (\S+) \((\S+)\)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert heading is not None
    assert re.fullmatch(r"\d+\.\d+\.\d+", PROJECT["version"])
    assert (heading[1], heading[2]) == (citation["version"], str(citation["date-released"]))
    assert PROJECT["version"] == citation["version"]
    assert PROJECT["license"] == citation["license"]


def test_classifiers_are_those_of_the_index() -> None:
    known = pytest.importorskip("trove_classifiers").classifiers
    assert [c for c in PROJECT["classifiers"] if c not in known] == []
    assert any(f"3.{sys.version_info.minor}" in c for c in PROJECT["classifiers"])


def test_the_peers_are_pinned_apart_and_by_hash() -> None:
    def pinned(file: str) -> dict[str, str]:
        text = (ROOT / file).read_text()
        assert "://" not in text
        return dict(re.findall(r"^([\w.-]+)==(\S+).*\\\n +--hash=sha256", text, re.MULTILINE))

    peers, common = pinned("constraints-peers.txt"), pinned("constraints.txt")
    names = [re.split("[><=]", name)[0] for name in PROJECT["optional-dependencies"]["peers"]]
    assert set(names) <= set(peers)
    assert not set(peers) & set(common)
    assert set(names) == {"spikingjelly", "snntorch", "norse", "lightning", "accelerate"}


def call(*words: object, cwd: Path, **env: str) -> str:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    done = subprocess.run(
        [str(w) for w in words], cwd=cwd, env={**kept, **env}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def build(source: Path, output: Path) -> tuple[Path, Path]:
    """Wheel and source distribution of a source tree."""
    hatchling = (sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-t", "sdist", "-d", output)
    call(*hatchling, cwd=source)
    return next(output.glob("*.whl")), next(output.glob("*.tar.gz"))


def names_in_wheel(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def tracked(*folders: str) -> set[str]:
    return set(call("git", "ls-files", *folders, cwd=ROOT).split())


@pytest.mark.slow
def test_what_is_built_installs_and_runs_elsewhere(tmp_path: Path) -> None:
    wheel, sdist = build(ROOT, tmp_path / "dist")
    version = PROJECT["version"]
    assert wheel.name == f"spikeprune-{version}-py3-none-any.whl"
    inside = names_in_wheel(wheel)
    assert {n for n in inside if ".dist-info/" not in n} == tracked(*PACKAGES)
    assert {f"{package}/py.typed" for package in PACKAGES} <= inside
    sources = ("engine.c", "lif.h", "sparse.c", "sparse.h")
    assert {f"snn/kernels/{name}" for name in sources} <= inside
    assert f"spikeprune-{version}.dist-info/licenses/LICENSE" in inside

    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    unpacked = tmp_path / f"spikeprune-{version}"
    files = {str(p.relative_to(unpacked)) for p in unpacked.rglob("*") if p.is_file()}
    assert {
        *tracked(*PACKAGES, "tests", "examples", "docs", "benchmarks"),
        "LICENSE",
        "CITATION.cff",
    } <= files
    again, _ = build(unpacked, tmp_path / "again")
    assert names_in_wheel(again) == inside

    home = tmp_path / "env"
    call(sys.executable, "-m", "venv", "--without-pip", home, cwd=tmp_path)
    uv = Path(sys.executable).with_name("uv")
    call(
        uv,
        "pip",
        "install",
        "--offline",
        "--no-deps",
        "--python",
        home / "bin" / "python",
        wheel,
        cwd=tmp_path,
    )
    site = next((home / "lib").glob("python*/site-packages"))
    # What it depends on comes from this environment; its own editable install does not: a path that
    # a .pth file adds has none of its own .pth files read.
    (site / "zz_dependencies.pth").write_text(sysconfig.get_paths()["purelib"])
    command, away = home / "bin" / "spikeprune", {"SPIKEPRUNE_CACHE": str(tmp_path / "cache")}
    assert call(command, "--version", cwd=tmp_path).strip() == version
    assert "usage: spikeprune" in call(command, "--help", cwd=tmp_path)
    assert "ray symmetric-run" in call(command, "cluster", "manifest", "slurm", cwd=tmp_path)
    where = call(home / "bin" / "python", "-c", "import snn, cluster; print(snn.__file__)", cwd=tmp_path)
    assert where.startswith(str(site))

    data = tmp_path / "digits"
    call(command, "data", "ingest", "digits", "--output", data, cwd=tmp_path)
    options = ["--data.path", data, "--cluster.engine", "local", "--cluster.workers", "1"]
    options += ["--train.epochs", "3", "--weight-pruning.retrain-epochs", "1"]
    printed = call(command, "run", *options, cwd=tmp_path, **away)
    assert "SLAMP at 90% sparsity" in printed
    assert list((tmp_path / "cache").rglob("*.so"))  # the C sources were there to be compiled
    assert (tmp_path / "runs" / "run" / "report.html").exists()
