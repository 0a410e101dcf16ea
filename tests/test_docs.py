"""Code and commands in the README and the docs run as written."""

import io
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from cluster.manifest import read_values
from pipelines import cli
from pipelines.cli.main import VERBS
from pipelines.config import Config, field_paths
from pipelines.config.load import load_tree
from pipelines.config.schema import SearchTree
from tests.originals import write_originals

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PEERS = ("spikingjelly", "snntorch", "norse", "lightning", "accelerate")
"""Libraries of an extra: a page's test ends before the first block whose library is not installed."""


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_python_blocks_run(page: Path) -> None:
    names = {"__name__": "__main__"}  # a page's blocks follow one another
    for code in blocks(page, "python"):
        for library in re.findall(rf"^(?:import|from) ({'|'.join(PEERS)})\b", code, re.MULTILINE):
            pytest.importorskip(library, reason=f"{library} is not installed (extra peers)")
        exec(compile(code, str(page), "exec"), names)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_commands_name_verbs_and_options_that_exist(page: Path) -> None:
    known = {f"--{p}" for p in field_paths()} | {f"--{p.replace('_', '-')}" for p in field_paths()}
    known |= {f"--{p}" for p in field_paths(SearchTree)} | {"--plot"}
    known |= {"--resume", "--help", "--sparsity", "--budget", "--synops", "--criterion", "--no-retrain"}
    known |= {"--download", "--rows", "--png", "--size", "--T", "--by", "--workers", "--on-bad"}
    known |= {"--criteria", "--levels", "--objective", "--nir"}
    known |= {"--scores", "--policy", "--ratio", "--filtered", "--input", "--output", "--address"}
    known |= {"--follow", "--storage", "--pip", "--env", "--token-file", "--dashboard", "--set", "--config"}
    known |= {"--python", "--print-config", "--seeds", "--checkpoint", "--split"}
    known |= {"--"}
    for line in "\n".join(blocks(page, "sh")).splitlines():
        words = line.split()
        if words[:1] != ["spikeprune"]:
            continue
        verb = " ".join(words[1:3]) if " ".join(words[1:3]) in VERBS else words[1]
        assert verb in VERBS, line
        for word in words:
            if word.startswith("--"):
                assert word.split("=")[0] in known, line


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_yaml_blocks_are_configs(page: Path, tmp_path: Path) -> None:
    for text in blocks(page, "yaml"):
        tree = yaml.safe_load(text)
        if "image" in tree:  # of a cluster
            read_values(tree)
            continue
        (tmp_path / "block.yaml").write_text(text)
        load_tree(SearchTree if "search" in tree else Config, tmp_path / "block.yaml")


ELSEWHERE = {  # what a command has that this machine has not, by what it is called in the docs
    "http://": "a running cluster or server",
    "s3://": "a bucket",
    "--address auto": "a node of a cluster",
}
FOREIGN = (".", "ssh", "scp", "ray", "export", "sbatch", "tail", "kubectl", "make", "docker", "pip", "chmod")
"""Commands that are not ours."""
ON_ANOTHER_PAGE = ("search examples/search-digits.yaml",)
"""Long commands, run from the page that is about them."""
SMALL = """
--train.epochs 2 --train.batch-size 8 --data-pruning.warmup-epochs 0 --data-pruning.anneal-epochs 1
--weight-pruning.retrain-epochs 1 --weight-pruning.calibration-examples 8
--data.train-rows 16 --data.test-rows 8
--cluster.engine local --cluster.workers 1 --cluster.min-workers 1 --cluster.gpus-per-worker 0
"""
"""Added to the runs of the datasets' page, whose data are stand-ins."""
CONFIG = """
data: {path: data/digits}
model: {hidden: [32]}
train: {epochs: 4, batch_size: 128}
weight_pruning: {retrain_epochs: 1, calibration_examples: 64}
cluster: {engine: local, workers: 1}
"""


def photographs(digits: Path, rows: int, size: int) -> Iterator[tuple[int, bytes]]:
    """Labels and PNG files."""
    table = pq.read_table(digits / "train-00000.parquet").slice(0, rows)
    for image, label in zip(table["image"].to_pylist(), table["label"].to_pylist(), strict=True):
        buffer = io.BytesIO()
        Image.open(io.BytesIO(image["bytes"])).convert("RGB").resize((size, size)).save(buffer, "PNG")
        yield label, buffer.getvalue()


def lay_out(page: str, folder: Path, digits: Path, patch: pytest.MonkeyPatch) -> None:
    """What a reader of a page has by then: examples, data, a config, the page's run."""
    (folder / "examples").symlink_to(ROOT / "examples")
    (folder / "data").mkdir()
    if page == "datasets.md":
        write_originals(folder, patch)
        return
    for name in ("digits", "mnist-sample"):
        (folder / "data" / name).symlink_to(digits)
    (folder / "my.yaml").write_text(CONFIG)
    if page == "README.md":
        (folder / "FOLDER").mkdir()
        for split, rows in (("train", 48), ("test", 16)):
            found = [{"label": k, "image": {"bytes": b}} for k, b in photographs(digits, rows, 32)]
            pq.write_table(pa.Table.from_pylist(found), folder / "FOLDER" / f"{split}.parquet")
        return
    (folder / "FOLDER").symlink_to(digits)
    if page == "cluster.md":
        (folder / "cluster.yaml").write_text("\n".join(blocks(ROOT / "docs" / page, "yaml")))
    if page == "guide.md":
        photos = blocks(ROOT / "docs" / page, "yaml")[0] + "cluster: {engine: local, workers: 1}\n"
        (folder / "photos.yaml").write_text(photos)
        for i, (label, data) in enumerate(photographs(digits, 120, 8)):
            (folder / "photos" / str(label)).mkdir(parents=True, exist_ok=True)
            (folder / "photos" / str(label) / f"{i}.png").write_bytes(data)
        assert cli.main(["run", "my.yaml", "--name", "demo"]) == 0


COMMANDS = {
    "README.md": 5,
    "guide.md": 16,
    "cluster.md": 6,
    "search.md": 5,
    "datasets.md": 28,
    "own-code.md": 1,
}
"""How many at least of a page run here."""


def test_every_page_with_commands_is_run() -> None:
    assert {p.name for p in PAGES if "spikeprune " in "".join(blocks(p, "sh"))} == set(COMMANDS)


@pytest.mark.slow
@pytest.mark.parametrize("page", COMMANDS)
def test_commands_run_as_written(
    page: str,
    digits: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """One after the other."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))  # a token that lies at home would be looked at
    monkeypatch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)  # doctor tells of it
    lay_out(page, tmp_path, digits, monkeypatch)
    ran = 0
    for block in blocks(next(p for p in PAGES if p.name == page), "sh"):
        shutil.rmtree(tmp_path / "runs" / "run", ignore_errors=True)  # what the block before called so
        for line in block.splitlines():
            line = re.sub(r"\s+#.*$", "", line)
            if line.split()[0] in FOREIGN or any(what in line for what in ELSEWHERE):
                continue
            if page != "search.md" and line.endswith(ON_ANOTHER_PAGE):
                continue
            words = shlex.split(os.path.expandvars(line).split(" > ")[0])
            if page == "datasets.md":
                words = [w for w in words if w != "--download"]  # the stand-ins are there
                if words[1] == "run":
                    words += SMALL.split()
                    shutil.rmtree(tmp_path / "runs", ignore_errors=True)
            if words[1:3] == ["data", "ingest"] and (tmp_path / words[-1]).exists():
                continue
            assert words[0] == "spikeprune", line
            assert cli.main(words[1:]) == 0, f"{line}\n{capfd.readouterr().err}"
            ran += 1
            if "--track" in line:
                shutil.rmtree(tmp_path / "runs" / "run", ignore_errors=True)
    assert ran >= COMMANDS[page]


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
        [sys.executable, "-m", "mkdocs", "build", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "Aborted" not in done.stderr
    assert (tmp_path / "site" / "concepts" / "index.html").exists()
    files = [
        page.parent / link
        for page in (tmp_path / "site").rglob("index.html")
        for link in re.findall(r'href="([^":#]+\.(?:py|yaml|json))"', page.read_text())
    ]
    assert len(files) > 20
    assert [file for file in files if not file.exists()] == []


INNER = ("snn.kernels",)
"""What users reach through others."""


@pytest.mark.parametrize("floor", ["snn", "pruning"])
def test_the_reference_covers_every_module_of_the_library(floor: str) -> None:
    listed = set(
        re.findall(r"^::: (\S+)$", (ROOT / "docs" / "api" / f"{floor}.md").read_text(), re.MULTILINE)
    )
    files = (p for p in (ROOT / floor).rglob("*.py") if not p.stem.startswith("_"))
    modules = {".".join(p.relative_to(ROOT).with_suffix("").parts) for p in files}
    assert {m for m in modules if not m.startswith(INNER)} <= listed
