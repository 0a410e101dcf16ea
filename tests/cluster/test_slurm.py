"""The SLURM script, run by bash on two nodes joined by a network: real Ray, a stand-in for srun."""

import json
import os
import secrets
import subprocess
from pathlib import Path

import pytest

from cluster.manifest import manifest
from tests.cluster.heads import BIN, environment
from tests.netns import two_namespaces, why_not

pytestmark = pytest.mark.xdist_group("ray")

SRUN = """#!/bin/bash
# On every node, until all have ended; the exit code is the highest, as SLURM's.
while [[ $1 == --* ]]; do shift; done
case "$*" in *hostname*) echo "::1 127.0.1.1"; echo "$FIRST_IP fe80::1 "; exit;; esac
for node in $NODES; do
    ip netns exec "$node" unshare --pid --fork --kill-child=KILL --mount-proc "$@" &
    started+=($!)
done
highest=0
for pid in "${started[@]}"; do
    wait "$pid"; code=$?
    [ $code -gt $highest ] && highest=$code
done
exit $highest
"""


@pytest.mark.slow
@pytest.mark.parametrize(("epochs", "code"), [("2", 0), ("-1", 2)])
def test_two_nodes_run_the_command_and_end(tmp_path: Path, project: Path, epochs: str, code: int) -> None:
    if reason := why_not():
        pytest.skip(reason)
    # Two workers of two CPUs, and one CPU for scoring: more than one node of three has.
    values = {
        "workers": 2, "cpus": 3, "venv": str(BIN.parent), "storage": str(tmp_path / "runs"),
        "command": ["run", "small.yaml", "--cluster.cpus-per-worker", "2", "--train.epochs", epochs],
    }  # fmt: skip
    home, tools, temp = tmp_path / "home", tmp_path / "bin", Path("/tmp") / f"sl-{secrets.token_hex(3)}"
    for folder in (home, tools, temp):
        folder.mkdir()
    for name, text in {"srun": SRUN, "scontrol": "#!/bin/sh\nprintf 'node1\\nnode2\\n'\n"}.items():
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    (tmp_path / "job.sh").write_text(manifest("slurm", values))
    job = str(secrets.randbelow(10**6))
    try:
        with two_namespaces() as pair:
            env = environment(
                PATH=f"{tools}:/usr/local/bin:/usr/sbin:/usr/bin:/bin", HOME=str(home), SLURM_JOB_ID=job,
                SLURM_JOB_NODELIST="node[1-2]", FIRST_IP=pair[0].ip, NODES=" ".join(n.name for n in pair),
                RAY_TMPDIR=str(temp), OMP_NUM_THREADS="1",
            )  # fmt: skip
            done = subprocess.run(
                ["bash", str(tmp_path / "job.sh")],
                cwd=project, env=env, capture_output=True, text=True, timeout=500,
            )  # fmt: skip
        assert done.returncode == code, (done.stdout, done.stderr)
        if code:
            assert "train.epochs: -1 is not possible" in done.stderr
        else:
            lines = (tmp_path / "runs" / "small" / "metrics.jsonl").read_text().splitlines()
            records = [json.loads(line) for line in lines]
            assert [r["workers"] for r in records if r["phase"] != "prune"] == [2, 2, 2]
            assert (tmp_path / "runs" / "small" / "report.html").exists()
        assert not list(home.glob(".spikeprune-*")), "the token is removed"
        assert not any((home / ".ray").glob("*"))
    finally:
        subprocess.run(["rm", "-rf", str(temp)], check=True)
    assert os.path.isdir(project)
