"""Run three configs of a folder on a cluster of two simulated nodes; kill the second in the last two."""

import json
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

from ray.cluster_utils import Cluster

from cluster.connect import connect
from pipelines.config.load import load_config
from pipelines.runs.run import run
from tests.pipelines.training.conftest import QUIET, metrics, wait_for

SECOND = {"num_cpus": 2}


def main(folder: Path) -> None:
    """Print, as JSON, after how many records each run lost its node."""
    # Otherwise a node installs a signal handler, which only the main thread may.
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 3}, shutdown_at_exit=False)
    try:
        print(json.dumps(run_all(nodes, folder)))
    finally:
        nodes.shutdown()


def run_all(nodes: Cluster, folder: Path) -> dict[str, int]:
    """Run the configs one after the other."""
    lost_at: dict[str, int] = {}
    second = nodes.add_node(**SECOND)
    with connect(nodes.address):
        for name in ("calm", "replaced", "elastic"):
            nodes.wait_for_nodes()
            config = load_config(folder / f"{name}.yaml")
            config = replace(config, cluster=replace(config.cluster, address=nodes.address))

            again: list[object] = []

            def lose(name: str = name, node: object = second, again: list[object] = again) -> None:
                wait_for(lambda: len(metrics(folder / name)) >= 2, "2 records")
                nodes.remove_node(node, allow_graceful=False)
                lost_at[name] = len(metrics(folder / name))
                if name == "replaced":
                    time.sleep(3)
                    again.append(nodes.add_node(**SECOND))

            thread = threading.Thread(target=lose) if name != "calm" else None
            if thread is not None:
                thread.start()
            run(config, "train", console=QUIET)
            if thread is not None:
                thread.join()
                second = again[0] if again else None
    return lost_at


if __name__ == "__main__":
    main(Path(sys.argv[1]))
