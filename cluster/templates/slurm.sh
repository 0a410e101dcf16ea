#!/usr/bin/env bash
#SBATCH --job-name=@{name}
#SBATCH --nodes=@{workers}
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=@{cpus}
#SBATCH --mem=@{memory}G
#SBATCH --gpus-per-node=@{gpus}
#SBATCH --partition=@{partition}
#SBATCH --account=@{account}
#SBATCH --time=@{hours}:00:00
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
#SBATCH --exclusive
#SBATCH --requeue
#SBATCH --signal=@{signal}
# --exclusive: ray symmetric-run ends with `ray stop`, which ends all of your Ray on a node.
# --requeue: a job that is preempted or loses a node starts again. --resume is safe then: it continues the
# run from its last epoch, to the same figures as an undisturbed run, and starts one that is not there yet.
# --signal: the same shortly before the time limit; scontrol puts the job back into the queue.
# shellcheck disable=SC1091  # the environment's own script
set -euo pipefail
. @{venv}/bin/activate
unset PYTHONDONTWRITEBYTECODE

again=()
if [ "${SLURM_RESTART_COUNT:-0}" -gt 0 ]; then again=(@{resume}); fi
trap 'echo "time limit: back into the queue" >&2; scontrol requeue "$SLURM_JOB_ID" || :' USR1

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
    tr ' ' '\n' | awk '/^[0-9.]+$/ && !/^127[.]/ && !found { print; found = 1 }')
port=$((20000 + SLURM_JOB_ID % 10000))

# In the background, since bash handles a signal only between commands or while it waits.
# shellcheck disable=SC2016  # the words behind -- are meant as they stand
srun --ntasks=@{workers} --ntasks-per-node=1 ray symmetric-run \
    --address "$head_ip:$port" --min-nodes @{workers} --num-cpus=@{cpus} --num-gpus=@{num_gpus} -- \
    python -m spikeprune @{command} ${again[@]+"${again[@]}"} &
step=$! code=0
wait "$step" || code=$?
while kill -0 "$step" 2>/dev/null; do code=0; wait "$step" || code=$?; done
exit "$code"
