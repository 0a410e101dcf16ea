"""Where the time went: the parts are there, add up to the whole, and change no figure."""

import json
import re
from pathlib import Path

import pytest
from rich.console import Console

from pipelines.config.load import load_config
from pipelines.runs.run import run
from pipelines.runs.run_folder import read_metrics
from pipelines.training.profile import PARTS

pytestmark = pytest.mark.xdist_group("ray")


def test_a_profiled_run_says_where_its_time_went(digits: Path, tmp_path: Path) -> None:
    given = {
        "storage": str(tmp_path),
        "data.path": str(digits),
        "cluster.engine": "local",
        "cluster.workers": "1",
        "model.hidden": "[16]",
        "train.epochs": "3",
    }
    plain = run(load_config(None, {**given, "name": "plain"}), "train", console=Console(quiet=True))
    folder = run(
        load_config(None, {**given, "name": "seen"}), "train", profile=True, console=Console(quiet=True)
    )
    assert not (plain / "profile").exists()
    trace = json.loads((folder / "profile" / "trace.json").read_text())
    assert set(PARTS) <= {event.get("name") for event in trace["traceEvents"]}
    table = (folder / "profile" / "table.md").read_text()
    seconds = dict(re.findall(r"\| ([^|]+?) \| ([\d.]+) \| [\d.]+% \|", table))
    for name in PARTS:
        assert float(seconds[f"steps: {name}"]) >= 0
    whole = float(seconds.pop("all"))
    parts = sum(map(float, seconds.values()))
    assert 0.9 * whole <= parts <= 1.01 * whole + 0.1
    losses = [[r["train_loss"] for r in read_metrics(f)] for f in (plain, folder)]
    assert losses[0] == losses[1]


@pytest.mark.slow
def test_gradients_travel_in_buckets_while_backward_goes_on(
    digits: Path, tmp_path: Path, ray_session: None
) -> None:
    given = {
        "storage": str(tmp_path),
        "data.path": str(digits),
        "cluster.workers": "2",
        "model.hidden": "[1024, 1024]",
        "train.epochs": "1",
        "data_pruning.warmup_epochs": "1",
        "data_pruning.anneal_epochs": "0",
    }
    folder = run(load_config(None, given), "train", profile=True, console=Console(quiet=True))
    events = json.loads((folder / "profile" / "trace.json").read_text())["traceEvents"]
    begun = {
        name: sorted((e["ts"], e["tid"]) for e in events if e.get("name") == name and "dur" in e)
        for name in ("c10d::allreduce_", "torch::autograd::AccumulateGrad")
    }
    backward = [(e["ts"], e["ts"] + e["dur"]) for e in events if e.get("name") == "backward" and "dur" in e]
    assert len(backward) == 8
    for start, end in backward:
        sent, gradients = ([e for e in begun[name] if start <= e[0] <= end] for name in begun)
        assert len(sent) >= 2, "one bucket: nothing can overlap"
        # The thread of backward sends the first bucket, then comes to further gradients: an order, no time.
        assert sent[0][1] == gradients[-1][1]
        assert sent[0] < gradients[-1]
