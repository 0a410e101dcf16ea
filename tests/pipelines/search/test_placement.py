"""Trials on clusters of their own: few CPUs, parts of GPUs, a node that vanishes; none starves."""

import os
import subprocess
import sys
import textwrap
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from pipelines.config.load import dump_config
from pipelines.search.config import SearchTree
from tests.pipelines.search.conftest import journal_of, records_of, tree

pytestmark = pytest.mark.slow
SOON = 30.0
"""Seconds within which the next trial is at work, process starts included; without its resources, never."""
ROOT = Path(__file__).resolve().parents[3]


def on_ray_of_its_own(folder: Path, start: str, found: SearchTree, end: str = "") -> str:
    """Run a search in a process that starts Ray by the statements in ``start``; what it prints."""
    path = folder / "settings.yaml"
    path.write_text(dump_config(found))
    script = folder / "script.py"
    script.write_text(
        textwrap.dedent(
            """
            import os, sys
            os.environ |= {"RAY_AUTH_MODE": "disabled", "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2"}
            import ray
            from pathlib import Path
            from rich.console import Console
            from pipelines.config.load import load_tree
            from pipelines.search.config import SearchTree
            from pipelines.search.search import search
            tree = load_tree(SearchTree, Path(sys.argv[1]))
            """
        )
        + textwrap.dedent(start)
        + "\nsearch(tree, console=Console(quiet=True))\n"
        + end
    )
    env = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, str(script), str(path)], env=env, capture_output=True, text=True, timeout=580
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.parametrize(
    ("workers", "cpus", "concurrent"), [(1, 0.5, 2), (1, 2.0, 1), (2, 0.25, 1), (2, 0.2, 2)]
)
def test_allowed_settings_end_at_two_cpus(
    workers: int, cpus: float, concurrent: int, tmp_path: Path, digits: Path
) -> None:
    """Also where several trials share the one CPU that feeds them, and want the same training."""
    settings = {
        "space": {"weights.sparsity": [0.5, 0.9]},
        "sampler": "grid",
        "objectives": ["accuracy", "density"],
    }
    found = tree(
        tmp_path,
        digits,
        settings | {"concurrent": concurrent},
        **{"cluster.workers": workers, "cluster.cpus_per_worker": cpus},
    )
    on_ray_of_its_own(
        tmp_path,
        "ray.init(address='local', num_cpus=2, dashboard_host='127.0.0.1', log_to_driver=False)",
        found,
    )
    records = records_of(found)
    assert [r.status for r in records] == ["finished"] * 2
    trainings = Counter(n for r in records for n in r.trained if n.startswith("train-"))
    assert list(trainings.values()) == [1]
    assert records[0].metrics["density"] == pytest.approx(0.5, abs=1e-3)


ANOTHER_RAY = """
import subprocess
start = "import ray; ray.init(address='local', num_cpus=1); print('up', flush=True); input()"
another = subprocess.Popen([sys.executable, "-c", start], stdin=-1, stdout=-1, text=True)
while "up" not in another.stdout.readline():
    assert another.poll() is None
"""


FREED = """
import time
deadline = time.monotonic() + 30
while ray.available_resources().get("CPU") != 2 and time.monotonic() < deadline:
    time.sleep(0.2)
print("free", ray.available_resources().get("CPU"), flush=True)
"""


def test_asha_frees_the_workers_of_ray_train(tmp_path: Path, digits: Path) -> None:
    """Beside another Ray on the machine, where Ray Train's own cleaner fails."""
    settings = {
        "space": {"train.lr": [0.2, 0.1, 1e-5, 2e-5, 3e-5]},
        "objectives": ["accuracy"],
        "sampler": "grid",
        "scheduler": "asha",
        "grace_epochs": 1,
        "reduction": 2,
        "concurrent": 1,
    }
    nested: dict[str, Any] = {"cluster.workers": 2, "cluster.cpus_per_worker": 0.25, "train.epochs": 4}
    found = tree(tmp_path, digits, settings, **nested)
    printed = on_ray_of_its_own(
        tmp_path,
        ANOTHER_RAY
        + "ray.init(address='local', num_cpus=2, dashboard_host='127.0.0.1', log_to_driver=False)",
        found,
        FREED,
    )
    assert "free 2.0\n" in printed
    records = records_of(found)
    statuses = Counter(r.status for r in records)
    assert statuses["stopped"] >= 1
    assert statuses["finished"] >= 1
    assert sum(statuses.values()) == 5
    journal = journal_of(found)
    for stopped, after in pairwise(records):
        if stopped.status == "stopped":
            (begun,) = journal.stage_folders(after)
            gap = (begun / "provenance.json").stat().st_mtime - journal.path(stopped.number).stat().st_mtime
            assert gap < SOON, f"{gap:.0f} s after trial {stopped.number}"


PARTS_OF_GPUS = """
import time
from ray.cluster_utils import Cluster
import tempfile
from pipelines.search.resources import plan_resources
from pipelines.search.search import _nodes
place = tempfile.mkdtemp(prefix="sp-")
head = {"num_cpus": 4, "num_gpus": 1, "include_dashboard": False, "temp_dir": place}
cluster = Cluster(initialize_head=True, head_node_args=head)
cluster.add_node(num_cpus=8, num_gpus=2)
tree.cluster.address = cluster.address
ray.init(cluster.address, log_to_driver=False)
plan = plan_resources(tree, None, _nodes(tree))
print("planned", plan.concurrent, flush=True)

@ray.remote
class Held:
    def where(self):
        return ray.get_runtime_context().get_node_id(), ray.get_gpu_ids()

options = {"num_cpus": plan.request["CPU"], "num_gpus": plan.request["GPU"]}
held = [Held.options(**options).remote() for _ in range(plan.concurrent + 1)]
asked = [h.where.remote() for h in held]
ready, late = ray.wait(asked, num_returns=plan.concurrent, timeout=300)
more, late = ray.wait(late, timeout=5)
print("placed", len(ready), len(more), flush=True)
print("places", sorted((node[:6], *ids) for node, ids in ray.get(ready)), flush=True)
for h in held:
    ray.kill(h)
"""


def test_parts_of_gpus_are_shared_out(tmp_path: Path, digits: Path) -> None:
    """As many trials at once as planned find their part, and no more; declared GPUs, on two nodes."""
    found = tree(
        tmp_path,
        digits,
        {"space": {"weights.sparsity": [0.5, 0.9]}, "sampler": "grid", "objectives": ["accuracy", "density"]},
        **{"cluster.gpus_per_worker": 0.4, "cluster.address": "auto"},
    )
    printed = on_ray_of_its_own(tmp_path, PARTS_OF_GPUS, found, "ray.shutdown()")
    assert "planned 6\n" in printed  # two on each of three GPUs
    assert "placed 6 0\n" in printed
    records = records_of(found)
    if torch.cuda.is_available():
        assert [r.status for r in records] == ["finished"] * 2
    else:  # placed, and each told why it could not go on
        assert [r.status for r in records] == ["failed"] * 2
        assert all("CUDA" in (r.reason or "") or "NVIDIA" in (r.reason or "") for r in records)


def test_two_nodes_of_which_one_is_lost(tmp_path: Path, digits: Path) -> None:
    space = {"seed": [0, 1, 2, 3, 4, 5], "weights.sparsity": [0.8]}
    settings = {"space": space, "sampler": "grid", "objectives": ["accuracy", "density"]}
    address = {"cluster.address": "auto", "train.epochs": 12}
    found = tree(tmp_path, digits, settings, **address)
    trials = journal_of(found).folder / "trials"
    start = f"""
    import json, tempfile, threading, time
    from ray.cluster_utils import Cluster
    place = tempfile.mkdtemp(prefix="sp-")  # others on this machine would take it for their cluster
    head = {{"num_cpus": 1, "include_dashboard": False, "temp_dir": place}}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    second = cluster.add_node(num_cpus=1)
    tree.cluster.address = cluster.address
    def lose():
        while True:
            records = [json.loads(p.read_text()) for p in Path({str(trials)!r}).glob("[0-9]*.json")]
            here = [r for r in records if r["node"] == second.node_id]
            busy = [r for r in here if r["status"] == "open" and r["process"]]
            if any(r["status"] == "finished" for r in here) and busy:
                break
            time.sleep(0.05)
        time.sleep(1)
        cluster.remove_node(second, allow_graceful=False)
        print("lost", second.node_id, flush=True)
    threading.Thread(target=lose, daemon=True).start()
    """
    printed = on_ray_of_its_own(tmp_path, start, found)
    lost = printed.split("lost ")[1].split()[0]
    records = records_of(found)
    assert [r.status for r in records] == ["finished"] * 6
    nodes = Counter(r.node for r in records)
    assert len(nodes) == 2
    assert nodes[lost] >= 1
    assert len({name for r in records for name in r.stages}) == 12
