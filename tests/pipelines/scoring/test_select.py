"""Ranking a dataset and drawing a subset of it, for training elsewhere."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from rich.console import Console

from cluster.errors import UserError
from pipelines import cli
from pipelines.config.load import load_config
from pipelines.data.decode import decode
from pipelines.runs.run import network_of, run
from pipelines.scoring.rank import rank
from pipelines.scoring.select import select_subset
from pruning.examples.inclusion import inclusion_probabilities
from pruning.examples.scores import ExampleScorer
from snn.interchange import load_checkpoint

pytestmark = pytest.mark.xdist_group("ray")

QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, digits: Path) -> Path:
    config = {
        "storage": str(tmp_path_factory.mktemp("runs")),
        "data.path": str(digits),
        "cluster.engine": "local",
        "cluster.workers": "1",
        "model.hidden": "[32]",
        "train.epochs": "2",
    }
    return run(load_config(None, config), "train", console=QUIET)


@pytest.fixture(scope="module")
def scores(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("scores") / "scores.parquet"
    checkpoint = trained / "checkpoints" / "train.safetensors"
    rank(load_config(trained / "config.yaml"), checkpoint, output, names=("sadp", "loss"), console=QUIET)
    return output


def test_scores_are_those_of_the_library(trained: Path, scores: Path, digits: Path) -> None:
    table = pq.read_table(digits / "train-00000.parquet").slice(100, 20)
    ids = table.column("id").to_numpy()
    x = decode(table.column("image"), ids).astype(np.float32)
    mean, std = (float(f(pixels(digits))) for f in (np.mean, np.std))
    currents = torch.from_numpy((x - mean) / std).float().expand(4, *x.shape)
    model, _ = load_checkpoint(trained / "checkpoints" / "train.safetensors")
    labels = torch.from_numpy(table.column("label").to_numpy().copy())
    expected = ExampleScorer(model, ("sadp", "loss")).score(currents, labels)
    written = pq.read_table(scores)
    assert np.array_equal(written.column("id").to_numpy(), np.arange(1437))
    for name in ("sadp", "loss"):
        got = written.column(name).to_numpy()[ids]
        assert got == pytest.approx(expected[name].numpy(), rel=1e-3, abs=1e-5)


def pixels(digits: Path) -> np.ndarray:
    table = pq.read_table(digits / "train-00000.parquet")
    return decode(table.column("image"), table.column("id").to_numpy())


@pytest.mark.slow
@pytest.mark.parametrize("scorers", ["0", "2"])
def test_ray_gives_the_same_scores(
    scorers: str, trained: Path, scores: Path, tmp_path: Path, ray_session: None
) -> None:
    config = load_config(trained / "config.yaml", {"cluster.engine": "ray", "cluster.scorers": scorers})
    checkpoint = trained / "checkpoints" / "train.safetensors"
    assert rank(config, checkpoint, tmp_path / "s.parquet", names=("sadp",), console=QUIET) == 1437
    there = pq.read_table(tmp_path / "s.parquet").column("sadp").to_numpy()
    assert there == pytest.approx(pq.read_table(scores).column("sadp").to_numpy(), rel=1e-5)


def test_a_subset_follows_the_scores(scores: Path, digits: Path, tmp_path: Path) -> None:
    select_subset(
        digits,
        policy="sadp",
        ratio=0.7,
        scores=scores,
        output=tmp_path / "s.parquet",
        filtered=tmp_path / "rows",
    )
    written = pq.read_table(tmp_path / "s.parquet")
    pi = inclusion_probabilities(pq.read_table(scores).column("sadp").to_numpy(), 431, alpha=0.1)
    ids = written.column("id").to_numpy()
    assert len(ids) == 431
    assert written.column("probability").to_numpy() == pytest.approx(pi[ids], abs=1e-9)
    assert written.column("weight").to_numpy() == pytest.approx(431 / 1437 / pi[ids], rel=1e-5)
    rows = pq.read_table(tmp_path / "rows" / "train-00000.parquet")
    original = pq.read_table(digits / "train-00000.parquet")
    kept = original.filter(pa.array(np.isin(np.arange(1437), ids)))
    assert rows.select(["image", "label"]).equals(kept.select(["image", "label"]))
    assert rows.column("id").to_pylist() == list(range(431))
    assert rows.column("source_id").equals(kept.column("id"))
    assert rows.column("weight").equals(written.column("weight"))


def test_a_selection_is_a_dataset_and_ids_of_its_own_go_along(
    trained: Path, scores: Path, digits: Path, tmp_path: Path
) -> None:
    options = {"policy": "sadp", "ratio": 0.7, "filtered": tmp_path / "half"}
    select_subset(digits, scores=scores, output=tmp_path / "s.parquet", **options)  # type: ignore[arg-type]
    own = pq.read_table(tmp_path / "s.parquet")["id"].to_pylist()
    config = load_config(trained / "config.yaml", {"data.path": str(tmp_path / "half"), "name": "again"})
    folder = run(config, "train", console=QUIET)
    assert json.loads((folder / "metrics.jsonl").read_text().splitlines()[0])["examples"] == 431
    checkpoint = folder / "checkpoints" / "train.safetensors"
    assert rank(config, checkpoint, tmp_path / "again.parquet", console=QUIET) == 431
    scored = pq.read_table(tmp_path / "again.parquet")
    assert scored.column_names == ["id", "source_id", "sadp"]
    assert scored["id"].to_pylist() == list(range(431))
    assert scored["source_id"].to_pylist() == own
    out, rows = tmp_path / "t.parquet", tmp_path / "quarter"
    select_subset(
        tmp_path / "half",
        policy="sadp",
        ratio=0.5,
        scores=tmp_path / "again.parquet",
        output=out,
        filtered=rows,
    )
    drawn, chosen = pq.read_table(out), pq.read_table(rows / "train-00000.parquet")
    assert drawn.column_names == ["id", "source_id", "weight", "probability"]
    assert drawn["source_id"].to_pylist() == [own[i] for i in drawn["id"].to_pylist()]
    assert chosen["source_id"].equals(drawn["source_id"])
    assert chosen["id"].to_pylist() == list(range(len(drawn)))


def test_epochs_draw_anew_and_seeds_repeat(digits: Path, tmp_path: Path) -> None:
    def ids(epoch: int) -> list[int]:
        out = tmp_path / "s.parquet"
        select_subset(digits, policy="random", ratio=0.5, output=out, epoch=epoch)
        return pq.read_table(out).column("id").to_pylist()

    assert ids(0) == ids(0)
    assert ids(0) != ids(1)


@pytest.mark.parametrize("epoch", [0, 3])
def test_a_static_subset_is_that_of_the_highest_scores(digits: Path, tmp_path: Path, epoch: int) -> None:
    given, out = tmp_path / "scores.parquet", tmp_path / "s.parquet"
    pq.write_table(pa.table({"id": np.arange(1437), "el2n": np.arange(1437.0)}), given)
    select_subset(digits, policy="static", ratio=0.5, scores=given, output=out, epoch=epoch)
    assert pq.read_table(out).column("id").to_pylist() == list(range(719, 1437))


NUMBERS = np.arange(1437)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"id": NUMBERS, "el2n": NUMBERS.astype(str)}, "column 'el2n' holds string; it must hold numbers"),
        ({"id": NUMBERS.astype(float), "el2n": NUMBERS}, "column 'id' holds double; it must hold whole num"),
        ({"id": pa.array([None, *range(1, 1437)]), "el2n": NUMBERS}, "with other ids than the dataset's"),
    ],
)
def test_scores_of_another_kind_are_refused(
    columns: dict[str, Any], message: str, digits: Path, tmp_path: Path
) -> None:
    given, out = tmp_path / "scores.parquet", tmp_path / "s.parquet"
    pq.write_table(pa.table(columns), given)
    with pytest.raises(UserError, match=f"--scores: .*{message}"):
        select_subset(digits, policy="el2n", ratio=0.5, scores=given, output=out)


def test_a_missing_score_counts_as_the_highest(digits: Path, tmp_path: Path) -> None:
    """Pandas writes NaN as null."""
    given, out = tmp_path / "scores.parquet", tmp_path / "s.parquet"
    column = pa.array([None, *NUMBERS[1:] / 1.0], pa.float32())
    pq.write_table(pa.table({"id": NUMBERS, "el2n": column}), given)
    select_subset(digits, policy="static", ratio=0.5, scores=given, output=out)
    assert pq.read_table(out).column("id").to_pylist() == [0, *range(720, 1437)]


@pytest.mark.parametrize("kind", [pa.uint64(), pa.uint16(), pa.int32()])
def test_ids_of_any_whole_number_type_are_read(kind: pa.DataType, digits: Path, tmp_path: Path) -> None:
    given, out = tmp_path / "scores.parquet", tmp_path / "s.parquet"
    ids = pa.array(NUMBERS).cast(kind)
    pq.write_table(pa.table({"id": ids, "el2n": NUMBERS}), given)
    select_subset(digits, policy="static", ratio=0.5, scores=given, output=out)
    assert pq.read_table(out).column("id").to_pylist() == [*range(719, 1437)]
    pq.write_table(pa.table({"id": pa.array([None, *ids.to_pylist()[1:]], kind), "el2n": NUMBERS}), given)
    with pytest.raises(UserError, match="with other ids than the dataset's"):
        select_subset(digits, policy="static", ratio=0.5, scores=given, output=out)


def test_mistakes_are_named(scores: Path, digits: Path, tmp_path: Path) -> None:
    out = tmp_path / "s.parquet"
    with pytest.raises(UserError, match="--scores: policy sadp needs them"):
        select_subset(digits, policy="sadp", ratio=0.5, output=out)
    with pytest.raises(UserError, match="has no column 'el2n'; it has id, sadp, loss"):
        select_subset(digits, policy="el2n", ratio=0.5, output=out, scores=scores)
    with pytest.raises(UserError, match=r"--policy: 'sdap' is unknown"):
        select_subset(digits, policy="sdap", ratio=0.5, output=out)
    with pytest.raises(UserError, match="--ratio"):
        select_subset(digits, policy="random", ratio=1.5, output=out)
    short = tmp_path / "short.parquet"
    pq.write_table(pq.read_table(scores).slice(1), short)
    with pytest.raises(UserError, match="other ids"):
        select_subset(digits, policy="sadp", ratio=0.5, output=out, scores=short)
    assert not out.exists()


def test_a_dataset_is_never_overwritten_by_its_subset(digits: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(digits, data)
    before = {p.name: p.read_bytes() for p in data.iterdir()}
    out, first = tmp_path / "s.parquet", data / "train-00000.parquet"
    for filtered in (data, tmp_path / "x" / ".." / "data", first):
        with pytest.raises(UserError, match=r"--filtered: .* holds other files, or is no folder"):
            select_subset(data, policy="random", ratio=0.5, output=out, filtered=filtered)
    for output in (first, data / "train-subset.parquet"):
        with pytest.raises(UserError, match=r"--output: .* lies among the dataset's own files"):
            select_subset(data, policy="random", ratio=0.5, output=output)
    assert {p.name: p.read_bytes() for p in data.iterdir()} == before
    assert not out.exists()
    (tmp_path / "empty").mkdir()
    select_subset(data, policy="random", ratio=0.5, output=out, filtered=tmp_path / "empty")
    assert pq.read_metadata(tmp_path / "empty" / first.name).num_rows == 718


def test_a_dataset_of_links_keeps_the_names_of_its_files(digits: Path, tmp_path: Path) -> None:
    """As in a cache of Hugging Face, where links lead to blobs."""
    for split in ("train", "test"):
        shutil.copy(digits / f"{split}-00000.parquet", tmp_path / split)
        (tmp_path / "data").mkdir(exist_ok=True)
        (tmp_path / "data" / f"{split}-00000.parquet").symlink_to(tmp_path / split)
    out, rows = tmp_path / "s.parquet", tmp_path / "rows"
    select_subset(tmp_path / "data", policy="random", ratio=0.5, output=out, filtered=rows)
    assert {p.name for p in rows.iterdir()} == {"train-00000.parquet", "test-00000.parquet"}
    assert pq.read_metadata(rows / "train-00000.parquet").num_rows == 718


def test_a_checkpoint_of_another_network_is_refused(
    trained: Path, digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "s.parquet"
    args = ["score", str(trained), "--output", str(out), "--model.hidden", "8"]
    assert cli.main(args) == 2
    assert "--checkpoint: " in capsys.readouterr().err
    assert cli.main(["score", str(trained), "--output", str(out), "--scores", "grand"]) == 2
    assert "'grand' is unknown; choose from" in capsys.readouterr().err
    for names in ([], ["loss", "sadp", "loss"]):
        assert cli.main(["score", str(trained), "--output", str(out), "--scores", *names]) == 2
        assert f"--scores: '{' '.join(names)}' is not possible" in capsys.readouterr().err
    assert not out.exists()


def test_scores_do_not_replace_a_file_of_the_dataset(trained: Path, digits: Path) -> None:
    config, file = load_config(trained / "config.yaml"), digits / "train-00000.parquet"
    before = file.read_bytes()
    with pytest.raises(UserError, match=r"--output: .* lies among the dataset's own files"):
        rank(config, trained / "checkpoints" / "train.safetensors", file, console=QUIET)
    assert file.read_bytes() == before


def test_the_network_to_score_by(trained: Path, tmp_path: Path) -> None:
    config, checkpoint = trained / "config.yaml", trained / "checkpoints" / "train.safetensors"
    for named in ((trained, None), (checkpoint, None), (config, checkpoint)):
        assert network_of(*named) == (config, checkpoint)
    with pytest.raises(UserError, match="nothing: does not exist; name a run's folder or a checkpoint"):
        network_of(tmp_path / "nothing", None)
    with pytest.raises(UserError, match="--checkpoint: is needed beside a config"):
        network_of(config, None)


def test_an_undecodable_image_stops_the_pass_and_leaves_nothing(
    trained: Path, digits: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "data"
    shutil.copytree(digits, folder)
    path = folder / "train-00000.parquet"
    table = pq.read_table(path)
    images = table.column("image").to_pylist()
    images[1200] = {"bytes": b"\x89PNG", "path": "x"}
    pq.write_table(table.set_column(1, "image", pa.array(images, table.schema.field("image").type)), path)
    config = load_config(trained / "config.yaml", {"data.path": str(folder)})
    out = tmp_path / "s.parquet"
    with pytest.raises(UserError, match="id 1200 cannot be decoded"):
        rank(config, trained / "checkpoints" / "train.safetensors", out, console=QUIET)
    assert not out.exists()


def test_an_empty_draw_is_refused_before_anything_is_written(tmp_path: Path, digits: Path) -> None:
    output, filtered = tmp_path / "s.parquet", tmp_path / "rows"
    with pytest.raises(UserError, match=r"--ratio: at 0.9995 the poisson design drew none"):
        select_subset(
            digits, policy="random", ratio=0.9995, output=output, design="poisson", seed=0, filtered=filtered
        )
    assert not output.exists()
    assert not filtered.exists()
