"""Code and commands in the README and the docs run as written."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines import cli
from pipelines.config import field_paths
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
