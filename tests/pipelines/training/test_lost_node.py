"""A node of two is lost: with a new one the run ends as if nothing had happened, elastic it goes on alone."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipelines.config.load import dump_config
from tests.pipelines.training.conftest import metrics, small

pytestmark = pytest.mark.xdist_group("ray")

SCRIPT = Path(__file__).with_name("lose_node.py")
# One worker fills the second node; the head has room for the other and for scoring.
NODES = {"cluster.cpus_per_worker": "2", "train.epochs": "8", "weight_pruning.retrain_epochs": "0"}


@pytest.mark.slow
def test_a_lost_node_changes_nothing_once_replaced_and_little_without(tmp_path: Path, digits: Path) -> None:
    for name, more in (("calm", {}), ("replaced", {}), ("elastic", {"cluster.min_workers": "1"})):
        config = small(tmp_path, digits, **NODES, **more, name=name)
        (tmp_path / f"{name}.yaml").write_text(dump_config(config))
    done = subprocess.run(
        [sys.executable, "-m", "tests.pipelines.training.lose_node", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=580,
        env={k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | {"RAY_AUTH_MODE": "disabled"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    lost_at: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    calm = metrics(tmp_path / "calm")
    assert [r["workers"] for r in calm] == [2] * 8
    assert metrics(tmp_path / "replaced") == calm

    elastic = metrics(tmp_path / "elastic")
    workers = [r["workers"] for r in elastic]
    before = lost_at["elastic"] - 1  # the checkpoint behind the last record may not have been there yet
    assert workers[:before] == [2] * before
    assert workers[-1] == 1
    assert sorted(workers, reverse=True) == workers
    assert examples(elastic) == examples(calm)  # not one more or less in any epoch
    assert elastic[-1]["test_accuracy"] > 0.85


def examples(records: list[dict[str, Any]]) -> list[int]:
    return [r["examples"] for r in records]
