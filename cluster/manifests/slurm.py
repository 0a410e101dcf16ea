"""A batch script for SLURM: one Ray node per task, by ``ray symmetric-run``."""

import shlex

from cluster.manifests.spec import ManifestSpec


def script(spec: ManifestSpec) -> str:
    """The script; submit it with sbatch."""
    directives = [
        f"--job-name={spec.name}",
        f"--nodes={spec.workers}",
        "--ntasks-per-node=1",
        f"--cpus-per-task={spec.cpus}",
        f"--mem={spec.memory}G",
        f"--time={spec.hours}:00:00",
        "--output=%x-%j.log",
        "--exclusive",
    ]
    directives += [f"--gpus-per-node={spec.gpus}"] if spec.gpus else []
    directives += [f"--partition={spec.partition}"] if spec.partition else []
    directives += [f"--account={spec.account}"] if spec.account else []
    activate = (
        f"# shellcheck source=/dev/null\n. {shlex.quote(spec.venv + '/bin/activate')}\n" if spec.venv else ""
    )
    gpus = f" --num-gpus={spec.gpus}" if spec.gpus else ""
    return f"""#!/usr/bin/env bash
{chr(10).join(f"#SBATCH {d}" for d in directives)}
# --exclusive: ray symmetric-run ends with `ray stop`, which ends all of your Ray on a node.
set -euo pipefail
{activate}unset PYTHONDONTWRITEBYTECODE

# A token for this job alone, in your home, which all nodes see; it is in no command and no log.
umask 077
secrets=$(mktemp -d "$HOME/.spikeprune-$SLURM_JOB_ID-XXXXXX")
trap 'rm -rf "$secrets"' EXIT
python -c 'import secrets; print(secrets.token_hex(32))' >"$secrets/auth_token"
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$secrets/auth_token"
export RAY_USAGE_STATS_ENABLED=0 RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT=300

head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
# Its name may resolve to its loopback: the first address that is none.
head_ip=$(srun --nodes=1 --ntasks=1 --nodelist="$head" sh -c 'hostname -i; hostname -I' |
    tr ' ' '\\n' | awk '/^[0-9.]+$/ && !/^127[.]/ && !found {{ print; found = 1 }}')
port=$((20000 + SLURM_JOB_ID % 10000))

# shellcheck disable=SC2016  # the words behind -- are meant as they stand
srun --ntasks={spec.workers} --ntasks-per-node=1 ray symmetric-run \\
    --address "$head_ip:$port" --min-nodes {spec.workers} --num-cpus={spec.cpus}{gpus} -- \\
    python -m pipelines.cli {shlex.join(spec.words)}
"""
