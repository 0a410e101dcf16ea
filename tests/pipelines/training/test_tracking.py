"""Progress, TensorBoard, MLflow and Weights & Biases show what metrics.jsonl holds."""

import io
import json
import shutil
import struct
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from cluster.errors import UserError
from pipelines.runs.run import run
from pipelines.runs.run_folder import read_metrics
from pipelines.training.worker import progress_line, scalars
from tests.pipelines.training.conftest import QUIET, metrics, small
from tests.pipelines.training.test_loop import LOCAL

pytestmark = pytest.mark.xdist_group("ray")


def test_a_line_says_what_matters() -> None:
    line = progress_line(
        {
            "test_accuracy": 0.9752,
            "examples": 1718,
            "mean_score_age": 1.0,
            "speed": {"examples_per_second": 1234.4},
        }
    )
    assert line == "test accuracy 97.52%, 1,234 examples/s"


def test_progress_shows_it(tmp_path: Path, digits: Path) -> None:
    out = io.StringIO()
    run(small(tmp_path, digits, **LOCAL), "train", resume=True, console=Console(file=out, width=200))
    lines = [line for line in out.getvalue().splitlines() if line.startswith("train epoch")]
    assert len(lines) == 6
    assert all("accuracy " in line and "examples/s" in line and len(line) <= 80 for line in lines)
    assert all(line.endswith(" left") for line in lines[1:-1])
    assert "yet: it starts" in out.getvalue(), "there was nothing to resume"


def events(folder: Path) -> dict[str, dict[int, float]]:
    """Scalars of TensorBoard event files as TensorBoard shows them: later files purge what they repeat."""
    from tensorboardX.proto.event_pb2 import Event

    found: dict[str, dict[int, float]] = defaultdict(dict)
    for path in sorted(folder.glob("events.out.tfevents.*")):  # named by when they were begun
        data = path.read_bytes()
        while data:
            (size,) = struct.unpack("<Q", data[:8])
            event = Event.FromString(data[12 : 12 + size])
            data = data[16 + size :]
            if event.HasField("session_log") and event.session_log.status == 1:
                for steps in found.values():
                    for step in [s for s in steps if s >= event.step]:
                        del steps[step]
            for value in event.summary.value:
                found[value.tag][event.step] = value.simple_value
    return found


def test_tensorboard_shows_every_record_once_also_after_a_resume(tmp_path: Path, digits: Path) -> None:
    config = small(tmp_path, digits, **LOCAL, **{"tracking.tensorboard": "true"}, name="board")
    folder = run(config, "train", console=QUIET)
    newest = sorted(p for p in (folder / "checkpoints").iterdir() if p.is_dir())[-1]
    shutil.rmtree(newest)  # as if killed just before it
    run(config, "train", resume=True, console=QUIET)
    records = read_metrics(folder)
    shown = events(folder / "tensorboard")
    assert sorted(shown["train/test_accuracy"]) == list(range(6))
    for index, r in enumerate(records):
        for name, value in scalars(r).items():
            assert shown[name][index] == pytest.approx(value, rel=1e-6), name
    assert "train/speed/examples_per_second" in shown
    assert "train/seconds/train" in shown


def test_what_is_not_installed_or_does_not_answer_is_named(tmp_path: Path, digits: Path) -> None:
    config = small(tmp_path, digits, **LOCAL, **{"tracking.mlflow": "http://127.0.0.1:9"}, name="lost")
    with pytest.raises(
        UserError, match=r"tracking\.mlflow: (needs the package mlflow|http.* does not answer)"
    ):
        run(config, "train", console=QUIET)
    assert not (tmp_path / "lost").exists()


def test_mlflow_holds_every_record(tmp_path: Path, digits: Path) -> None:
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed")
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    config = small(tmp_path, digits, **LOCAL, **{"tracking.mlflow": uri}, name="flow")
    folder = run(config, "train", console=QUIET)
    newest = sorted(p for p in (folder / "checkpoints").iterdir() if p.is_dir())[-1]
    shutil.rmtree(newest)
    run(config, "train", resume=True, console=QUIET)
    client = mlflow.MlflowClient(tracking_uri=uri)
    (found,) = client.search_runs([client.get_experiment_by_name("spikeprune").experiment_id])
    assert found.data.params["data_pruning.policy"] == "sadp"
    history = {m.step: m.value for m in client.get_metric_history(found.info.run_id, "train/test_accuracy")}
    assert history == {i: r["test_accuracy"] for i, r in enumerate(metrics(folder))}


def wandb_records(file: Path) -> Iterator[Any]:
    """What an offline run holds: protocol buffers in LevelDB's log format."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, whole = file.read_bytes(), 7, b""
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        _, size, kind = struct.unpack("<IHB", data[at : at + 7])
        whole += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or its last part
            yield Record.FromString(whole)
            whole = b""


@pytest.mark.slow
def test_wandb_holds_every_record(tmp_path: Path, digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    config = small(tmp_path, digits, **LOCAL, **{"tracking.wandb": "spikes"}, name="wand")
    folder = run(config, "train", console=QUIET)
    newest = sorted(p for p in (folder / "checkpoints").iterdir() if p.is_dir())[-1]
    shutil.rmtree(newest)
    run(config, "train", resume=True, console=QUIET)
    files = sorted((folder / "wandb").glob("offline-run-*/*.wandb"))
    assert len(files) == 2
    assert len({file.name for file in files}) == 1, "both are the same run"
    shown: dict[int, dict[str, float]] = {}
    for record in (r for file in files for r in wandb_records(file)):
        if record.HasField("run"):
            assert (record.run.project, record.run.display_name) == ("spikes", "wand")
        if record.HasField("history"):
            of = {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.history.item}
            shown.setdefault(record.history.step.num, {}).update(of)
    records = read_metrics(folder)
    assert sorted(shown) == list(range(len(records)))
    for index, r in enumerate(records):
        assert scalars(r).items() <= shown[index].items()


def test_wandb_needs_a_login(tmp_path: Path, digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    for place in ("HOME", "NETRC", "WANDB_CONFIG_DIR"):
        monkeypatch.setenv(place, str(tmp_path / "nobody"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    config = small(tmp_path, digits, **LOCAL, **{"tracking.wandb": "spikes"}, name="unknown")
    with pytest.raises(UserError, match=r"tracking\.wandb: needs (the package wandb|a login)"):
        run(config, "train", console=QUIET)
    assert not (tmp_path / "unknown").exists()
