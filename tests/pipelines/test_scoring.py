"""Blocks of rows to scores."""

import os

import numpy as np
import pyarrow as pa
import pytest
import torch

from pipelines import scoring
from pipelines.errors import UserError
from pipelines.scoring import Scoring, _Job, _Runner
from pipelines.training.rows import Inputs
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


@pytest.fixture(scope="module")
def job():
    shape = {"input_shape": (12,), "num_classes": 4, "hidden": [8]}
    model = build("mlp", **shape)
    inputs = Inputs(mean=(0.0,), std=(1.0,), T=3)
    what = Scoring(
        scores=("sadp",), loss="rate_ce", label_smoothing=0.0, tail_depth=1, timesteps=None, inputs=inputs
    )
    return {
        "architecture": describe("mlp", **shape),
        "weights": model.state_dict(),
        "scoring": what,
        "wanted": np.arange(0, 300, 3),
    }


def test_spare_time_gives_the_same_scores(job):
    plain, spare = (pa.concat_tables(_Runner(_Job(**job, spare=s))(BLOCK)) for s in (False, True))
    assert plain.num_rows == 100
    assert plain.equals(spare)


@pytest.mark.skipif(not hasattr(os, "SCHED_IDLE"), reason="this system has no idle scheduling class")
def test_spare_time_binds_the_scoring_thread_alone(job, monkeypatch):
    seen = []

    def watched(*args, **kwargs):
        seen.append((os.sched_getscheduler(0), torch.get_num_threads()))
        return score_table(*args, **kwargs)

    score_table = scoring.score_table
    monkeypatch.setattr(scoring, "score_table", watched)
    before = os.sched_getscheduler(0)
    list(_Runner(_Job(**job, spare=True))(BLOCK))
    list(_Runner(_Job(**job, spare=False))(BLOCK))
    assert seen == [(os.SCHED_IDLE, 1), (before, 1)]
    assert os.sched_getscheduler(0) == before


def test_a_mistake_in_spare_time_is_told(job):
    ragged = BLOCK.set_column(1, "image", pa.array([[1.0] * (12 + (i == 3)) for i in range(300)]))
    with pytest.raises(UserError, match="id 3 has 13 values"):
        list(_Runner(_Job(**job, spare=True))(ragged))
