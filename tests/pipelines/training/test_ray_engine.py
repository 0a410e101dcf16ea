"""What a Ray Train worker finds around it."""

import os

import pytest

from pipelines.config import ClusterConfig
from pipelines.training.ray_engine import _spare_cores

pytestmark = pytest.mark.xdist_group("ray")


@pytest.mark.parametrize("part", [0.25, 0.5, 1.0])
def test_training_is_left_a_whole_core_per_worker(ray_session, part):
    cluster = ClusterConfig(cpus_per_worker=part)
    cores = os.cpu_count() or 1
    assert _spare_cores(1, cluster) == max(1, cores - 1)
    assert _spare_cores(cores - 1, cluster) == 1
    assert _spare_cores(cores, cluster) == 1  # never none
