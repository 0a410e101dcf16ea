"""Code and commands in the README and the docs run as written."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from cluster.manifests.spec import read_spec
from pipelines import cli
from pipelines.config import Config, field_paths
from pipelines.config_io import load_tree
from pipelines.search.config import SearchTree

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_python_blocks_run(page: Path) -> None:
    for code in blocks(page, "python"):
        exec(compile(code, str(page), "exec"), {"__name__": "__main__"})


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_commands_name_verbs_and_options_that_exist(page: Path) -> None:
    known = {f"--{p}" for p in field_paths()} | {f"--{p.replace('_', '-')}" for p in field_paths()}
    known |= {f"--{p}" for p in field_paths(SearchTree)} | {"--plot"}
    known |= {"--resume", "--help", "--sparsity", "--budget", "--synops", "--criterion", "--no-retrain"}
    known |= {"--download", "--rows", "--png", "--size", "--T", "--by", "--workers", "--on-bad"}
    known |= {"--profile", "--criteria", "--levels", "--objective", "--compact", "--nir"}
    known |= {"--scores", "--policy", "--ratio", "--filtered", "--input", "--output", "--address"}
    known |= {"--follow", "--storage", "--pip", "--env", "--token-file", "--dashboard", "--set", "--config"}
    known |= {"--"}
    for line in "\n".join(blocks(page, "sh")).splitlines():
        words = line.split()
        if words[:1] != ["spikeprune"]:
            continue
        verb = " ".join(words[1:3]) if " ".join(words[1:3]) in cli._VERBS else words[1]
        assert verb in cli._VERBS, line
        for word in words:
            if word.startswith("--"):
                assert word.split("=")[0] in known, line


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_yaml_blocks_are_configs(page: Path, tmp_path: Path) -> None:
    for text in blocks(page, "yaml"):
        tree = yaml.safe_load(text)
        if "image" in tree:  # of a cluster
            read_spec(tree)
            continue
        (tmp_path / "block.yaml").write_text(text)
        load_tree(SearchTree if "search" in tree else Config, tmp_path / "block.yaml")


ELSEWHERE = {  # what a command has that this machine has not, by what it is called in the docs
    "http://": "a running cluster or server",
    "s3://": "a bucket",
    "--address auto": "a node of a cluster",
    "--download": "the network",
}
FOREIGN = ("ssh", "scp", "ray", "export", "sbatch", "tail", "kubectl", "make", "docker", "pip")
"""Commands that are not ours."""


@pytest.mark.slow
@pytest.mark.parametrize("page", ["guide.md", "cluster.md", "search.md"])
def test_commands_run_as_written(
    page: str,
    digits: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """One after the other, in a folder with examples, data, a config and the demo's run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)  # doctor tells of it
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "digits").symlink_to(digits)
    (tmp_path / "FOLDER").symlink_to(digits)
    config = "data: {path: data/digits}\nmodel: {hidden: [32]}\ntrain: {epochs: 4, batch_size: 128}\n"
    config += "weights: {retrain_epochs: 1, calibration_examples: 64}\ncluster: {engine: local, workers: 1}\n"
    (tmp_path / "my.yaml").write_text(config)
    (tmp_path / "cluster.yaml").write_text("\n".join(blocks(ROOT / "docs" / "cluster.md", "yaml")))
    if page == "guide.md":
        photos = blocks(ROOT / "docs" / page, "yaml")[0] + "cluster: {engine: local, workers: 1}\n"
        (tmp_path / "photos.yaml").write_text(photos)
        rows = pq.read_table(digits / "train-00000.parquet").slice(0, 120)
        for i, (image, label) in enumerate(
            zip(rows["image"].to_pylist(), rows["label"].to_pylist(), strict=True)
        ):
            folder = tmp_path / "photos" / str(label)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{i}.png").write_bytes(image["bytes"])
        assert cli.main(["run", "my.yaml", "--name", "digits"]) == 0
    ran = 0
    for block in blocks(ROOT / "docs" / page, "sh"):
        shutil.rmtree(tmp_path / "runs" / "run", ignore_errors=True)  # what the block before called so
        for line in block.splitlines():
            line = re.sub(r"\s+#.*$", "", line)
            if line.split()[0] in FOREIGN or any(what in line for what in ELSEWHERE):
                continue
            words = shlex.split(os.path.expandvars(line).split(" > ")[0])
            if words[1:3] == ["data", "ingest"] and (tmp_path / words[-1]).exists():
                continue
            assert words[0] == "spikeprune", line
            assert cli.main(words[1:]) == 0, f"{line}\n{capfd.readouterr().err}"
            ran += 1
            if "--track" in line or "--profile" in line:
                shutil.rmtree(tmp_path / "runs" / "run", ignore_errors=True)
    assert ran >= {"guide.md": 16, "cluster.md": 6, "search.md": 5}[page]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_to_files_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), target


def test_the_plain_loop_learns_and_survives_pruning() -> None:
    done = subprocess.run(
        [sys.executable, "examples/plain_pytorch.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    accuracies = [float(a) for a in re.findall(r"accuracy (0\.\d+)", done.stdout)]
    assert len(accuracies) == 2
    assert min(accuracies) > 0.9


def test_the_site_builds_strictly(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "Aborted" not in done.stderr
    assert (tmp_path / "site" / "concepts" / "index.html").exists()


INNER = ("snn.kernels", "snn.models.shapes")
"""What users reach through others."""


@pytest.mark.parametrize("floor", ["snn", "pruning"])
def test_the_reference_covers_every_module_of_the_library(floor: str) -> None:
    listed = set(
        re.findall(r"^::: (\S+)$", (ROOT / "docs" / "api" / f"{floor}.md").read_text(), re.MULTILINE)
    )
    files = (p for p in (ROOT / floor).rglob("*.py") if not p.stem.startswith("_"))
    modules = {".".join(p.relative_to(ROOT).with_suffix("").parts) for p in files}
    assert {m for m in modules if not m.startswith(INNER)} <= listed
