"""A run's network measured again: what the run itself recorded."""

import io
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from rich.console import Console

from cluster.errors import UserError
from pipelines import cli
from pipelines.config.load import load_config
from pipelines.report.network import evaluate_run
from pipelines.report.summary import summarise
from pipelines.runs.run import run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, digits: Path) -> Path:
    config = load_config(
        None,
        {
            "storage": str(tmp_path_factory.mktemp("runs")),
            "data.path": str(digits),
            "data.val_share": "0.2",
            "cluster.engine": "local",
            "cluster.workers": "1",
            "model.hidden": "[32]",
            "train.epochs": "2",
            "weight_pruning.retrain_epochs": "1",
        },
    )
    return run(config, console=Console(quiet=True))


def test_it_measures_what_the_run_recorded(folder: Path) -> None:
    for phase in ("train", "retrain"):
        record = [r for r in summarise(folder).records if r["phase"] == phase][-1]
        file = None if phase == "retrain" else folder / "checkpoints" / "train.safetensors"
        for split in ("val", "test"):
            found = evaluate_run(folder, checkpoint=file, split=split)
            assert found.accuracy == record[f"{split}_accuracy"]
            assert found.loss == pytest.approx(record[f"{split}_loss"], rel=1e-5)
        found = evaluate_run(folder, checkpoint=file, split="val")
        assert found.activity["synops"] == record["activity"]["synops"]


def test_the_verb_starts_no_ray(folder: Path) -> None:
    script = "import sys; from pipelines import cli; cli.main(sys.argv[1:]); assert 'ray' not in sys.modules"
    done = subprocess.run(
        [sys.executable, "-c", script, "evaluate", str(folder), "--split", "train"],
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "80"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    examples = summarise(folder).records[0]["examples"]
    assert f"({examples:,} examples)" in done.stdout
    for word in ("firing rate", "train accuracy", "loss", "SynOps per inference"):
        assert word in done.stdout


def test_what_cannot_be_measured_is_named(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["evaluate", str(folder), "--data.test-split", "nothing"]) == 2
    assert "has no file nothing*.parquet" in capsys.readouterr().err
    assert cli.main(["evaluate", str(folder), "--checkpoint", str(tmp_path / "none")]) == 2
    assert "--checkpoint: " in capsys.readouterr().err
    (tmp_path / "config.yaml").write_text((folder / "config.yaml").read_text())
    with pytest.raises(UserError, match="has not finished its phase train yet"):
        evaluate_run(tmp_path)


def test_other_files_take_the_test_split_s_place(folder: Path, digits: Path, tmp_path: Path) -> None:
    shutil.copytree(digits, tmp_path / "digits")
    table = pq.read_table(digits / "test-00000.parquet").slice(0, 8)
    images = table.column("image").to_pylist()

    def put(name: str, changed: list[dict[str, Any]]) -> None:
        at = table.schema.get_field_index("image")
        field = table.schema.field(at)
        other = table.set_column(at, field, pa.array(changed, field.type))
        pq.write_table(other, tmp_path / "digits" / f"{name}-00000.parquet")

    larger = io.BytesIO()
    Image.new("L", (9, 9)).save(larger, "PNG")
    put("larger", [{**image, "bytes": larger.getvalue()} for image in images])
    put("broken", [{**images[0], "bytes": b"none"}, *images[1:]])

    def measured(split: str) -> int:
        fields = {"data.path": str(tmp_path / "digits"), "data.test_split": split}
        return evaluate_run(folder, overrides=fields).examples

    with pytest.raises(UserError, match=r"larger-00000.parquet: examples have size \(9, 9\), those of train"):
        measured("larger")
    with pytest.raises(UserError, match=r"broken-00000.parquet: row 0: .* cannot be decoded"):
        measured("broken")
