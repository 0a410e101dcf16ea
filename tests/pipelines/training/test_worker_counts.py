"""1, 2 and 4 workers draw the same subsets; each count repeats itself; two runs share a cluster in peace."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.config.load import dump_config
from pipelines.runs.run import run
from tests.pipelines.training.conftest import QUIET, kill_after, metrics, small

pytestmark = pytest.mark.xdist_group("ray")

SHORT = {"train.epochs": "4", "weight_pruning.retrain_epochs": "0"}


def drawn(folder: Path) -> list[tuple[str, int]]:
    """Fingerprint and size of every epoch's subset."""
    return [(r["subset"], r["examples"]) for r in metrics(folder) if "subset" in r]


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["1", "4"])
def test_any_number_of_workers_draws_the_same_and_survives_a_kill(
    workers: str, tmp_path: Path, digits: Path, ray_session: None
) -> None:
    settings = {**SHORT, "cluster.workers": workers, "cluster.cpus_per_worker": "0.5"}
    local = {"cluster.engine": "local", "cluster.workers": "1", "train.grad_accum_steps": workers}
    uniform = {**SHORT, "data_pruning.policy": "random"}
    plain = run(small(tmp_path, digits, **{**uniform, **local}, name="plain"), "train", console=QUIET)
    spread = run(small(tmp_path, digits, **{**settings, **uniform}, name="spread"), "train", console=QUIET)
    assert drawn(spread) == drawn(plain)
    a, b = metrics(spread), metrics(plain)
    assert a[0]["train_loss"] == pytest.approx(
        b[0]["train_loss"], rel=0.05
    )  # norms see as many examples, in another order

    whole = run(small(tmp_path, digits, **settings, name="whole"), "train", console=QUIET)
    assert [r["workers"] for r in metrics(whole)] == [int(workers)] * 4
    killer = kill_after(tmp_path / "hurt", 2, "ray::RayTrainWorker")
    hurt = run(small(tmp_path, digits, **settings, name="hurt"), "train", console=QUIET)
    killer.join()
    assert metrics(hurt) == metrics(whole)


@pytest.mark.slow
def test_two_runs_at_once_on_one_cluster_do_not_disturb_each_other(
    undisturbed: Path, tmp_path: Path, digits: Path, ray_session: None
) -> None:
    """The second is another process with another seed, and bears the same name."""
    import ray

    address = ray.get_runtime_context().gcs_address
    other = small(tmp_path / "b", digits, name="same", seed="1", **{"cluster.address": address})
    path = tmp_path / "other.yaml"
    path.write_text(dump_config(other))
    beside = subprocess.Popen(
        [sys.executable, "-m", "spikeprune", "run", str(path)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=dict(os.environ),  # with this Ray's token
    )
    try:
        mine = run(small(tmp_path / "a", digits, name="same"), console=QUIET)
        _, errors = beside.communicate(timeout=300)
    finally:
        beside.kill()
    assert beside.returncode == 0, errors
    assert metrics(mine) == metrics(undisturbed)
    theirs = metrics(tmp_path / "b" / "same")
    assert len(theirs) == len(metrics(undisturbed))
    assert drawn(tmp_path / "b" / "same")[1] != drawn(mine)[1]
