"""Validation: kept from training and scores, measured every epoch; test is measured at the end of a phase."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from cluster.errors import UserError
from pipelines import cli
from pipelines.config import Config
from pipelines.config.load import load_config
from pipelines.data.inputs import Inputs
from pipelines.data.layout import Rows, read_rows
from pipelines.data.scan import Split
from pipelines.report.compare import compare
from pipelines.report.page import write_page
from pipelines.report.summary import phase_rows, summarise
from pipelines.runs.preflight import check_data
from pipelines.runs.run import prune, run
from snn.interchange import load_checkpoint
from tests.pipelines.training.conftest import QUIET, metrics, small

pytestmark = pytest.mark.xdist_group("ray")

LOCAL = {"cluster.engine": "local", "cluster.workers": "1", "data.val_share": "0.2"}


def accuracy_of(checkpoint: Path, config: Config, split: Split) -> float:
    rows = Rows(read_rows(split.layout, split.ids).combine_chunks())
    model, _ = load_checkpoint(checkpoint)
    model.eval()
    x, y = rows.get(rows.ids)
    with torch.no_grad():
        logits_TBK = model(Inputs.of(check_data(config).info, config.model.T)(x))
    return float((logits_TBK.mean(0).argmax(1).numpy() == y).mean())


@pytest.fixture(scope="module")
def validated(tmp_path_factory: pytest.TempPathFactory, digits: Path) -> Path:
    return run(small(tmp_path_factory.mktemp("runs"), digits, baseline="full", **LOCAL), console=QUIET)


def test_the_share_depends_on_seed_and_id_alone(tmp_path: Path, digits: Path) -> None:
    def drawn(**settings: str) -> tuple[Any, Any]:
        checked = check_data(small(tmp_path, digits, **{"data.val_share": "0.2", **settings}))
        assert checked.val is not None
        return checked.train.ids.array(), checked.val.ids.array()

    train, val = drawn()
    assert sorted([*train, *val]) == list(range(1437))
    assert abs(len(val) - 0.2 * 1437) < 4 * (0.16 * 1437) ** 0.5
    fewer = drawn(**{"data.train_rows": "700"})[1]
    assert fewer.tolist() == [i for i in val if i < 700]
    assert not np.array_equal(drawn(seed="1")[1], val)


def test_every_epoch_goes_by_validation_and_test_is_measured_once_a_phase(
    validated: Path, digits: Path
) -> None:
    config, records = load_config(validated / "config.yaml"), metrics(validated)
    checked = check_data(config)
    assert checked.val is not None
    assert all("val_accuracy" in r for r in records)
    ends = [r["phase"] for r in records if "test_accuracy" in r]
    assert ends == ["baseline", "train", "prune", "retrain"]
    assert {r["examples"] for r in records if r["phase"] == "baseline"} == {checked.train.num_examples}
    scored = pq.read_table(validated / "scores.parquet").column("id").to_pylist()
    assert not set(scored) & set(checked.val.ids.array().tolist())
    for phase in ("baseline", "retrain"):
        last = [r for r in records if r["phase"] == phase][-1]
        file = validated / "checkpoints" / f"{phase}.safetensors"
        assert last["val_accuracy"] == accuracy_of(file, config, checked.val)
        assert last["test_accuracy"] == accuracy_of(file, config, checked.test)
    assert records[-1]["figures"]["accuracy"] == records[-1]["test_accuracy"]


def test_the_report_names_both(validated: Path) -> None:
    summary = summarise(validated)
    headings, rows = phase_rows([summary])
    assert headings[1:3] == ("test accuracy", "validation accuracy")
    last = summary.records[-1]
    assert rows[-1][1:3] == (f"{last['test_accuracy']:.2%}", f"{last['val_accuracy']:.2%}")
    assert "validation accuracy</text>" in write_page(summary).read_text()


def test_criteria_are_compared_by_validation(validated: Path) -> None:
    compared = compare(validated, criteria=("lamp",), levels=(0.5,), console=QUIET)
    dense = [r for r in metrics(validated) if r["phase"] == "train"][-1]
    assert (compared.split, compared.dense["accuracy"]) == ("val", dense["val_accuracy"])


@pytest.mark.parametrize("field", ["seed", "data.val_share"])
def test_what_was_trained_on_does_not_validate(field: str, validated: Path) -> None:
    other = {field: "1" if field == "seed" else "0.3"}
    for command in (
        lambda: prune(validated, other),
        lambda: compare(validated, criteria=("lamp",), overrides=other),
    ):
        with pytest.raises(UserError, match=rf"{field}: .* draws other validation examples than"):
            command()


@pytest.mark.parametrize("engine", ["local", pytest.param("ray", marks=pytest.mark.slow)])
def test_row_groups_are_read_for_validation(
    engine: str, tmp_path: Path, digits: Path, request: pytest.FixtureRequest
) -> None:
    settings = {**LOCAL, "data.reading": "shards", "train.epochs": "2"}
    if engine == "ray":
        request.getfixturevalue("ray_session")
        settings |= {"cluster.engine": "ray", "cluster.workers": "2", "data.reading": "memory"}
    config = small(tmp_path, digits, **settings)
    folder, val = run(config, "train", console=QUIET), check_data(config).val
    assert val is not None
    last = metrics(folder)[-1]
    assert last["val_accuracy"] == accuracy_of(folder / "checkpoints" / "train.safetensors", config, val)


def test_a_split_of_its_own(tmp_path: Path, digits: Path) -> None:
    rows = pq.read_table(next(digits.glob("train*.parquet")))
    (data := tmp_path / "data").mkdir()
    for name, at in (("train", slice(0, 1000)), ("val", slice(1000, 1200)), ("test", slice(1200, 1437))):
        part = rows.slice(at.start, at.stop - at.start)
        part = part.set_column(part.schema.get_field_index("id"), "id", [range(part.num_rows)])
        pq.write_table(part, data / f"{name}.parquet")
    config = small(tmp_path, data, **{**LOCAL, "data.val_share": "null", "data.val_split": "val"})
    folder, checked = run(config, "train", console=QUIET), check_data(config)
    assert checked.val is not None
    assert (checked.train.num_examples, checked.val.num_examples) == (1000, 200)
    last = metrics(folder)[-1]
    for split, of in (("val", checked.val), ("test", checked.test)):
        found = accuracy_of(folder / "checkpoints" / "train.safetensors", config, of)
        assert last[f"{split}_accuracy"] == found


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"data.train_split": "test"}, "data.test_split: 'test' and data.train_split 'test' share"),
        ({"data.train_split": "t"}, "data.test_split: 'test' and data.train_split 't' share"),
        ({"data.val_split": "test"}, "data.test_split: 'test' and data.val_split 'test' share"),
        ({"data.val_split": "train"}, "data.val_split: 'train' and data.train_split 'train' share"),
        ({"data.val_share": "1.5"}, "data.val_share: 1.5 is not possible; it must be in (0, 1)"),
        ({"data.val_share": "0.1", "data.val_split": "val"}, "val_split and val_share exclude one another"),
        ({"data.val_share": "1e-9"}, "leaves 1,437 to train on and 0 to validate on"),
    ],
)
def test_a_split_serves_one_purpose(
    options: dict[str, str], told: str, tmp_path: Path, digits: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [f"--{path}={value}" for path, value in options.items()]
    assert cli.main(["train", "--data.path", str(digits), "--storage", str(tmp_path), *words]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert len(error.splitlines()) == 1
