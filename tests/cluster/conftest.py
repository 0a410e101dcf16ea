"""One real head for all tests of clusters, and a folder to send."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.heads import Head, running_head


@pytest.fixture(scope="package")  # no second Ray beside those of other tests
def head() -> Iterator[Head]:
    with running_head() as running:
        yield running


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory, digits: Path) -> Path:
    """A user's folder: data, a config, a script of their own."""
    folder = tmp_path_factory.mktemp("project")
    shutil.copytree(digits, folder / "data" / "digits")
    (folder / "small.yaml").write_text(
        "name: small\n"
        "data: {path: data/digits}\n"
        "model: {hidden: [16]}\n"
        "train: {epochs: 2, norm_examples: 64}\n"
        "weight_pruning: {retrain_epochs: 1, calibration_examples: 64}\n"
        "cluster: {workers: 2}\n"
    )
    (folder / "script.py").write_text(
        "import os, sys, time\n"
        "print('by', sys.executable, flush=True)\n"
        "print('words', sys.argv[1:], 'mine', os.environ.get('MINE'), flush=True)\n"
        "time.sleep(float(sys.argv[2]))\n"
        "print('the end', flush=True)\n"
        "sys.exit(int(sys.argv[1]))\n"
    )
    (folder / ".env").write_text("PASSWORD=never-sent\n")
    return folder
