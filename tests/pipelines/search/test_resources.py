"""As many trials at once as fit, none that starves; refusals that say what would fit."""

import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations, product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.config import Config
from pipelines.config.load import load_config
from pipelines.errors import UserError
from pipelines.search.resources import SCORING_CPUS, Node, plan_resources


def config(workers: int, cpus: float = 0.5, gpus: float = 0, scorer: float = 0) -> Config:
    return load_config(
        None,
        {
            "cluster.workers": workers,
            "cluster.cpus_per_worker": cpus,
            "cluster.gpus_per_worker": gpus,
            "cluster.scorers": 1,
            "cluster.gpus_per_scorer": scorer,
            "train.batch_size": 8 * workers,
        },
    )


def test_one_worker_trains_in_the_trial_on_a_cpu_of_its_own() -> None:
    plan = plan_resources(config(1), None, [Node(2, 0)])
    assert (plan.nested, plan.concurrent, plan.request) == (False, 2, {"CPU": 1.0})
    plan = plan_resources(config(1, cpus=2), None, [Node(5, 0), Node(3, 0)])
    assert plan.concurrent == 3


def test_gpus_are_shared_in_fractions_within_a_node() -> None:
    plan = plan_resources(config(1, gpus=0.25), None, [Node(16, 1), Node(16, 2)])
    assert (plan.concurrent, plan.request) == (12, {"CPU": 1.0, "GPU": 0.25})
    # Two halves on two nodes are no 0.75.
    assert plan_resources(config(1, gpus=0.75), None, [Node(16, 1), Node(16, 1)]).concurrent == 2
    assert plan_resources(config(2, gpus=0.5), None, [Node(16, 1), Node(16, 2)]).concurrent == 3
    # A fifth 0.4 would need parts of two GPUs.
    assert plan_resources(config(1, gpus=0.4), None, [Node(16, 2)]).concurrent == 4
    assert plan_resources(config(1, gpus=2), None, [Node(16, 5)]).concurrent == 2


def test_several_workers_leave_a_cpu_for_scoring() -> None:
    assert plan_resources(config(2), None, [Node(4, 0)]).concurrent == 1
    assert plan_resources(config(2), 2, [Node(4, 0)]).concurrent == 2
    assert plan_resources(config(2), None, [Node(64, 0)]).concurrent == 31


@pytest.mark.parametrize(
    ("workers", "cpus", "gpus", "wanted", "nodes", "line"),
    [
        (1, 0.5, 0, 3, [Node(2, 0)], "search.concurrent: 3 trials at once do not fit; set it to 2 or less"),
        (2, 0.5, 0, 3, [Node(4, 0)], "search.concurrent: 3 trials at once do not fit; set it to 2 or less"),
        (
            1,
            3,
            0,
            None,
            [Node(2, 0), Node(2, 0)],
            "cluster.cpus_per_worker: 3 CPUs do not fit any node; set it to 2",
        ),
        (8, 1, 0, None, [Node(4, 0)], "does not fit the cluster's 4; set it to 2 or less"),
        (
            1,
            1,
            2,
            None,
            [Node(4, 1)],
            "cluster.gpus_per_worker: 2 GPUs per worker do not fit any node; set it to 1",
        ),
        (
            3,
            1,
            0.5,
            None,
            [Node(8, 1)],
            "cluster.workers: a trial of 3 workers of 1 CPUs and 0.5 GPUs each, and one CPU for scoring, "
            "does not fit the cluster's 8 CPUs and 1 GPUs; set it to 2 or less",
        ),
        (2, 0.5, 0, None, [Node(1, 0)], "does not fit the cluster's 1; set it to 1 or less"),
    ],
)
def test_refusals_say_what_would_fit(
    workers: int, cpus: float, gpus: float, wanted: int | None, nodes: list[Node], line: str
) -> None:
    with pytest.raises(UserError) as refused:
        plan_resources(config(workers, cpus, gpus), wanted, nodes)
    assert line in str(refused.value)


def fewest_that_leave_no_room(gpus: tuple[int, ...], worker: float, scorer: float) -> float:
    """By trying every placement, one worker after the other."""
    Free = tuple[tuple[float, ...], ...]  # by node, of each GPU

    def placements(free: Free, size: float) -> Iterator[Free]:
        for n, node in enumerate(free):
            if size <= 1:
                places = [(i,) for i, left in enumerate(node) if left >= size - 1e-9]
            else:
                places = list(combinations([i for i, left in enumerate(node) if left == 1], int(size)))
            for taken in places:
                after = [left - min(size, 1) if i in taken else left for i, left in enumerate(node)]
                yield (*free[:n], tuple(sorted(round(left, 6) for left in after)), *free[n + 1 :])

    states: set[Free] = {tuple((1.0,) * count for count in gpus)}
    for count in range(20):
        if any(next(placements(state, scorer), None) is None for state in states):
            return count
        states = {after for state in states for after in placements(state, worker)}
        if not states:
            break
    return math.inf


@pytest.mark.parametrize("gpus", [(1,), (2,), (3,), (1, 1), (2, 1), (2, 2)])
def test_however_workers_are_spread_a_scorer_finds_room(gpus: tuple[int, ...]) -> None:
    nodes = [Node(1000, count) for count in gpus]
    base = config(5)

    def planned(workers: int, worker: float, scorer: float) -> int:
        c = replace(base.cluster, workers=workers, gpus_per_worker=worker, gpus_per_scorer=scorer)
        try:
            return plan_resources(replace(base, cluster=c), None, nodes).concurrent
        except UserError:
            return 0

    for worker, scorer in product((0.25, 0.4, 0.5, 0.75, 1, 2), (0.3, 0.5, 1, 2)):
        fewest = fewest_that_leave_no_room(gpus, worker, scorer)
        for workers in (2, 3, 5):
            most = planned(workers, worker, 0) * workers
            expected = max(min(most, fewest - 1) // workers, 0)
            assert planned(workers, worker, scorer) == expected, (worker, scorer, workers)


@given(
    workers=st.integers(1, 6),
    cpus=st.sampled_from([0.25, 0.5, 1.0, 2.0]),
    nodes=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    wanted=st.none() | st.integers(1, 12),
)
def test_whatever_is_allowed_fits(workers: int, cpus: float, nodes: list[int], wanted: int | None) -> None:
    """All trials at once leave a CPU for scoring, and the number in a refusal is accepted."""
    offered = [Node(float(n), 0.0) for n in nodes]
    try:
        plan = plan_resources(config(workers, cpus), wanted, offered)
    except UserError as error:
        if error.where != "search.concurrent":
            return
        fits = int(error.what.rpartition("set it to ")[2].split()[0])
        assert fits < (wanted or 0)
        assert plan_resources(config(workers, cpus), fits, offered).concurrent == fits
        return
    held = plan.concurrent * (plan.request["CPU"] + (workers * cpus if plan.nested else 0))
    assert held + (SCORING_CPUS if plan.nested else 0) <= sum(nodes) + 1e-6
