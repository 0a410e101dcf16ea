"""Recordings from files to a trained network: ingest, cache frames, show, train."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from rich.console import Console

from cluster.errors import UserError
from pipelines import cli
from pipelines.config import Config
from pipelines.config.load import load_config
from pipelines.data.decode import decode
from pipelines.data.inputs import Inputs
from pipelines.data.scan import read_split
from pipelines.runs.preflight import check_data
from pipelines.runs.run import run
from pipelines.runs.run_folder import read_config
from pipelines.training.engine import LocalEngine
from tests.pipelines.training.conftest import metrics

pytestmark = pytest.mark.xdist_group("ray")

QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def nmnist(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real recordings, 600 of them, ingested."""
    out = tmp_path_factory.mktemp("nmnist") / "events"
    source = str(out.with_name("source"))
    out.with_name("source").mkdir()
    for split in ("train", "test"):
        table = pq.read_table(next((shared_data / "nmnist-small").glob(f"{split}*.parquet")))
        pq.write_table(table.slice(0, 600), f"{source}/{split}.parquet")
    assert cli.main(["data", "ingest", "parquet", "--input", source, "--output", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def framed(nmnist: Path) -> Path:
    """The same as frames of 17x17."""
    out = nmnist.with_name("frames")
    frames = ["--T", "5", "--by", "count", "--size", "17"]
    assert cli.main(["data", "ingest", "parquet", "--input", str(nmnist), *frames, "--output", str(out)]) == 0
    return out


def config(data: Path, storage: Path, **overrides: str) -> Config:
    small = {
        "model.T": "5",
        "model.hidden": "[64]",
        "data.frames.by": "count",
        "data.frames.size": "17",
        "train.epochs": "3",
        "train.lr": "0.05",
        "train.bn_examples": "128",
        "data_pruning.policy": "sadp",
    }
    engine = {"cluster.engine": "local", "cluster.workers": "1"}
    return load_config(
        None, {"data.path": str(data), "storage": str(storage), **small, **engine, **overrides}
    )


def first_inputs(c: Config) -> np.ndarray:
    checked = check_data(c)
    rows = checked.train.head(40)
    x = decode(rows.column("image"), rows.column("id").to_numpy())
    scale = np.array(checked.info.std)[:, None, None]
    return Inputs.of(checked.info, c.model.T)(x).numpy() * scale


def test_cached_frames_are_those_made_at_every_read(nmnist: Path, framed: Path, tmp_path: Path) -> None:
    read, cached = (first_inputs(config(folder, tmp_path)) for folder in (nmnist, framed))
    assert read.shape == (5, 40, 2, 17, 17)
    assert np.allclose(read, cached, atol=1e-4)
    assert np.array_equal(np.rint(read), np.rint(cached))
    recordings = pq.read_table(read_split(nmnist, "train").files[0]).slice(0, 40)
    counted = recordings.column("num_events").to_numpy() // 5 * 5
    assert np.array_equal(np.rint(read).sum((0, 2, 3, 4)), counted)


def test_training_on_recordings_learns(nmnist: Path, tmp_path: Path) -> None:
    folder = run(config(nmnist, tmp_path, **{"data.augment.drop_time": "0.3"}), "train", console=QUIET)
    assert metrics(folder)[-1]["test_accuracy"] > 0.4  # ten classes


class StopError(Exception):
    """Ends a run between two epochs."""


def test_a_stopped_run_goes_on_with_the_same_augmentation(framed: Path, tmp_path: Path) -> None:
    augmented = {"data.augment.roll": "2", "data.augment.drop_time": "0.3", "data.augment.crop": "1"}
    whole = run(config(framed, tmp_path, name="whole", **augmented), "train", console=QUIET)
    part = config(framed, tmp_path, name="part", **augmented)
    original = LocalEngine.report
    calls = []

    def report(self: LocalEngine, *args: object) -> None:
        original(self, *args)  # type: ignore[arg-type]
        calls.append(1)
        if len(calls) == 2:
            raise StopError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LocalEngine, "report", report)
        with pytest.raises(StopError):
            run(part, "train", console=QUIET)
    resumed = run(part, "train", resume=True, console=QUIET)
    assert metrics(resumed) == metrics(whole)
    plain = run(config(framed, tmp_path, name="plain"), "train", console=QUIET)
    assert metrics(plain)[0]["train_loss"] != metrics(whole)[0]["train_loss"]
    assert read_config(whole).data.augment.roll == 2


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        ({"model.T": "4"}, "model.T: 4 does not fit: the dataset holds 5 frames per example"),
        ({"data.frames.by": "counts"}, "data.frames.by: 'counts' is unknown"),
        ({"data.augment.drop_time": "1"}, "data.augment.drop_time: 1.0 is not possible"),
        ({"data.augment.crop": "-1"}, "data.augment.crop: -1 is not possible"),
    ],
)
def test_mistakes_are_refused(framed: Path, tmp_path: Path, overrides: dict[str, str], line: str) -> None:
    with pytest.raises(UserError) as caught:
        check_data(config(framed, tmp_path, **overrides))
    assert line in str(caught.value)


def test_augmentation_must_fit_the_data(nmnist: Path, digits: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data.augment.drop_time: applies to events alone"):
        check_data(config(digits, tmp_path, **{"data.augment.drop_time": "0.2"}))
    with pytest.raises(UserError, match=r"data.frames.size: 48x48 is not possible; the sensor has 34x34"):
        check_data(config(nmnist, tmp_path, **{"data.frames.size": "48"}))


@pytest.mark.parametrize("name", ["nmnist", "framed", "digits"])
def test_show(
    name: str, request: pytest.FixtureRequest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, png = request.getfixturevalue(name), tmp_path / "sheet.png"
    capsys.readouterr()
    assert cli.main(["data", "show", str(folder), "--rows", "9", "--png", str(png)]) == 0
    out = capsys.readouterr().out
    assert f"{read_split(folder, 'train').num_examples:,} examples" in out
    assert "sensor_size" in out or "values per channel" in out
    pixels = np.asarray(Image.open(png).convert("RGB"))
    assert pixels.std() > 10
    assert min(pixels.shape[:2]) > 200
    assert cli.main(["data", "verify", str(folder)]) == 0
    assert "all as the manifest says" in capsys.readouterr().out


def test_verbs_name_what_is_wrong(
    digits: Path, nmnist: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for args, line in (
        (["ingest", "digits", "--T", "4", "--output", str(tmp_path / "o")], "--T: applies to recordings"),
        (["ingest", "digits", "--T", "0", "--output", str(tmp_path / "o")], "--T: 0 is not possible"),
        (["verify", str(tmp_path)], "has no manifest.json"),
        (["show", str(tmp_path)], "has no file train*.parquet"),
        (["show", str(digits), "--rows", "0"], "--rows: 0 is not possible"),
        (["dump"], "'dump' is not one of its verbs; use ingest, verify, show"),
    ):
        assert cli.main(["data", *args]) == 2
        assert line in capsys.readouterr().err


@pytest.mark.slow
def test_ray_trains_on_recordings_as_one_process_does(
    nmnist: Path, tmp_path: Path, ray_session: None
) -> None:
    """The same rows, frames and augmentation reach the network through Ray Data and Ray Train."""
    changes = {"data.augment.roll": "2", "data.augment.drop_time": "0.3", "train.epochs": "2"}
    changes |= {"data_pruning.policy": "random"}
    alone = run(config(nmnist, tmp_path, name="alone", **changes), "train", console=QUIET)
    engine = {"cluster.engine": "ray", "cluster.workers": "1"}
    on_ray = run(config(nmnist, tmp_path, name="ray", **changes, **engine), "train", console=QUIET)
    assert metrics(on_ray) == metrics(alone)


def test_scores_met_in_training_are_those_of_the_augmented_examples(digits: Path, tmp_path: Path) -> None:
    """They cost nothing. A cutout larger than the image leaves all images of a class alike."""
    blank = {"data.augment.cutout": "99", "data_pruning.policy": "infobatch", "model.hidden": "[32]"}
    folder = run(config(digits, tmp_path, **blank), "train", console=QUIET)
    scores = pq.read_table(folder / "scores.parquet").column("score").to_numpy()
    assert np.isfinite(scores).all()
    assert len(np.unique(scores)) < 500
