"""Blocks of rows to scores."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.config import ClusterConfig, DataPruningConfig, TrainConfig
from pipelines.data.inputs import Inputs
from pipelines.data.layout import Ids, Layout
from pipelines.scoring import scorer as scoring
from pipelines.scoring.scorer import Scorer, Scoring, ScoringPass, parts_of
from snn.interchange import describe
from snn.models import build

FEATURES = np.random.default_rng(0).normal(size=(300, 12)).astype(np.float32)
BLOCK = pa.table(
    {
        "id": np.arange(300),
        "image": pa.FixedSizeListArray.from_arrays(pa.array(FEATURES.ravel()), 12),
        "label": np.arange(300) % 4,
    }
)


def written(folder, table):
    """The table in row groups of 50 rows."""
    pq.write_table(table, path := folder / "train.parquet", row_group_size=50)
    at = np.arange(6)
    return Layout((str(path),), 0 * at, at, at * 50, np.full(6, 50), at * 50)


@pytest.fixture(scope="module")
def network():
    shape = {"input_shape": (12,), "num_classes": 4, "hidden": [8]}
    model = build("mlp", **shape)
    inputs = Inputs(mean=(0.0,), std=(1.0,), T=3)
    what = Scoring(scores=("sadp",), train=TrainConfig(), examples=DataPruningConfig(), inputs=inputs)
    return {
        "architecture": describe("mlp", **shape),
        "weights": model.state_dict(),
        "scoring": what,
    }


@pytest.mark.parametrize("cores", [1, 2, 96, 1024])
def test_every_core_has_a_part_and_every_row_group_is_in_one(cores):
    groups = 1_281_167 // 1024 + 1  # an ImageNet
    rows = np.full(groups, 1024)
    at = np.arange(groups)
    layout = Layout(("a",), 0 * at, at, at * 1024, rows, at * 1024)
    parts = list(parts_of(layout, cores))
    assert np.array_equal(np.concatenate([part.group for part in parts]), at)
    assert len(parts) >= min(2 * cores, groups // 2)


def test_a_small_dataset_is_not_torn_into_tasks():
    rows = np.full(4, 256)
    at = np.arange(4)
    layout = Layout(("a",), 0 * at, at, at * 256, rows, at * 256)
    assert len(list(parts_of(layout, 1024))) == 1


def test_scores_do_not_depend_on_the_parts(tmp_path, network):
    layout, found = written(tmp_path, BLOCK), []
    for part_rows in (50, 100, 300):
        parts = list(layout.parts(part_rows))
        scorer = Scorer(ScoringPass(**network), Ids(300), parts)
        tables = list(scorer(pa.table({"id": np.arange(len(parts))})))
        assert len(tables) == 300 // part_rows
        found.append(pa.concat_tables(tables).combine_chunks())
    assert found[0].num_rows == 300
    assert found[0].equals(found[1])
    assert found[0].equals(found[2])


@pytest.mark.parametrize(("cpus", "cores", "tasks"), [(4, 2, 3), (4, 4, 4), (4, 1, 2), (64, 64, 64)])
def test_tasks_alone_are_one_more_than_the_cores_if_ray_is_told_of_more(monkeypatch, cpus, cores, tasks):
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": float(cpus)})
    monkeypatch.setattr(scoring, "cluster_cores", lambda: cores)
    assert cpus // scoring.scorers_without_training(ClusterConfig()).cpus == tasks
