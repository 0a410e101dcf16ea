"""Manifests against the schemas of the tools they are for, and against every shell on their way."""

import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.errors import UserError
from cluster.manifest import FIELDS, TEMPLATES, manifest
from pipelines import cli
from pipelines.cli.cluster import ManifestCommand

NASTY = st.text(
    st.one_of(
        st.sampled_from(list("\"'`$(){}[];&|<>*?!#~\\ \n\t=%")),
        st.characters(blacklist_characters="\0", blacklist_categories=["Cs"]),
    ),
    max_size=24,
)
PLAIN = st.lists(st.from_regex(r"\A[A-Za-z0-9_./:@%+=,-]+\Z"), max_size=4).map(
    lambda words: ("score", *words)
)
KUBERAY: dict[str, set[str]] = {
    "RayJob": {
        "entrypoint", "rayClusterSpec", "shutdownAfterJobFinishes", "ttlSecondsAfterFinished",
        "submissionMode", "backoffLimit", "submitterPodTemplate",
    },
    "rayClusterSpec": {"rayVersion", "authOptions", "headGroupSpec", "workerGroupSpecs"},
    "headGroupSpec": {"rayStartParams", "template"},
    "workerGroupSpecs": {"groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"},
}  # fmt: skip
"""Fields of KubeRay 1.5.1, the first with authOptions, that are used above the pods' templates."""


def filled(kind: str, **values: Any) -> Any:
    return yaml.safe_load(manifest(kind, values))


def check_restricted(pod: Mapping[str, Any]) -> None:
    """What the "restricted" Pod Security Standard asks of a pod, and the places that sites fill in."""
    security = pod["securityContext"]
    assert security["runAsNonRoot"] is True
    assert security["runAsUser"] != 0
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    assert {next(iter(v.keys() - {"name"})) for v in pod.get("volumes", [])} <= {
        "persistentVolumeClaim", "emptyDir",
    }  # fmt: skip
    for container in pod["containers"]:
        inside = container["securityContext"]
        assert inside == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    assert (pod["imagePullSecrets"], pod["nodeSelector"], pod["tolerations"]) == ([], {}, [])


def check_fields(made: dict[str, Any]) -> None:
    """Every key above the pods' templates is one that KubeRay has."""
    assert made["apiVersion"] == "ray.io/v1"
    assert set(made) == {"apiVersion", "kind", "metadata", "spec"}
    cluster = made["spec"]
    if made["kind"] == "RayJob":
        assert set(made["spec"]) <= KUBERAY["RayJob"]
        cluster = made["spec"]["rayClusterSpec"]
        submitter = made["spec"]["submitterPodTemplate"]["spec"]
        assert submitter["restartPolicy"] == "Never"
        assert [c["name"] for c in submitter["containers"]] == ["ray-job-submitter"]
        check_restricted(submitter)
    assert set(cluster) <= KUBERAY["rayClusterSpec"]
    assert cluster["rayVersion"] == version("ray")
    assert cluster["authOptions"] == {"mode": "token"}
    assert set(cluster["headGroupSpec"]) <= KUBERAY["headGroupSpec"]
    for group in cluster["workerGroupSpecs"]:
        assert set(group) <= KUBERAY["workerGroupSpecs"]
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    for pod in (cluster["headGroupSpec"]["template"], *(g["template"] for g in cluster["workerGroupSpecs"])):
        check_restricted(pod["spec"])
        [container] = pod["spec"]["containers"]
        mounts, volumes = container["volumeMounts"], pod["spec"]["volumes"]
        assert {m["name"] for m in mounts} == {v["name"] for v in volumes}
        assert container["resources"]["requests"] == container["resources"]["limits"]
        assert all(isinstance(v, str) for v in container["resources"]["limits"].values())


def test_kuberay_fields() -> None:
    for values in ({}, {"workers": 7, "gpus": 2, "namespace": "team", "name": "no"}):
        job, cluster = filled("kuberay", **values), filled("kuberay-cluster", **values)
        check_fields(job)
        check_fields(cluster)
        assert (job["kind"], cluster["kind"]) == ("RayJob", "RayCluster")
        assert job["spec"]["rayClusterSpec"] == cluster["spec"], "one cluster in both files"
        worker = cluster["spec"]["workerGroupSpecs"][0]
        assert worker["replicas"] == values.get("workers", 2)
        limits = worker["template"]["spec"]["containers"][0]["resources"]["limits"]
        assert limits.get("nvidia.com/gpu") == ("2" if values else None)
        assert job["metadata"]["name"] == values.get("name", "spikeprune"), "text, whatever YAML makes of it"


@pytest.mark.parametrize("memory", [1, 4, 16, 32, 64])
def test_ray_s_object_store_fits_the_shared_memory(memory: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else Ray puts it into /tmp, on the container's disk."""
    from ray._private import utils

    pod = filled("kuberay-cluster", memory=memory)["spec"]["headGroupSpec"]["template"]["spec"]
    [limit] = [v["emptyDir"]["sizeLimit"] for v in pod["volumes"] if v["name"] == "shm"]
    shared = int(limit.removesuffix("Gi")) * 2**30
    monkeypatch.setattr(utils, "get_shared_memory_bytes", lambda: shared)
    assert utils.resolve_object_store_memory(memory * 2**30) <= shared


@pytest.mark.parametrize("values", [{}, {"worker_ips": [], "venv": "/opt/venv"}])
@pytest.mark.parametrize("aws", [False, True])
def test_ray_accepts_its_own_schema(values: dict[str, Any], aws: bool) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    text = manifest("ray-up", values)
    if aws:  # the comment in the place of the lines that it names
        start, end = text.index("min_workers:"), text.index("\n\n# Instances")
        text = (text[:start] + text[end:]).replace("#|", "")
    config = yaml.safe_load(text)
    assert config["provider"]["type"] == ("aws" if aws else "local")
    assert ("docker" in config) == (not values)
    validate_config(prepare_config(config))  # as `ray up` does
    with pytest.raises(Exception, match="cluster_nam"):
        validate_config(prepare_config({**config, "cluster_nam": "x"}))
    for command in config["head_start_ray_commands"] + config["worker_start_ray_commands"]:
        subprocess.run(["bash", "-n", "-c", command], check=True)
        assert command.startswith("export RAY_AUTH_MODE=token")


def test_slurm_is_a_script_that_starts_again_by_itself() -> None:
    for values in ({}, {"gpus": 2, "venv": "/o/p", "partition": "p", "account": "a"}):
        text = manifest("slurm", values)
        subprocess.run(["bash", "-n"], input=text, text=True, check=True)
        options = dict(re.findall(r"^#SBATCH --([a-z-]+)=?(.*)$", text, re.MULTILINE))
        assert options["signal"] == "B:USR1@120"
        assert options["requeue"] == ""
        assert (options.get("gpus-per-node"), options.get("partition")) == (
            ("2", "p") if values else (None, None)
        )
    assert "--signal=" not in manifest("slurm", {"command": ["doctor"]}), "it has nothing to continue"


def test_slurm_passes_shellcheck() -> None:
    tool = shutil.which("shellcheck")
    if tool is None:
        pytest.skip("needs shellcheck")
    for values in (
        {},
        {"gpus": 2, "venv": "/o/p", "partition": "p", "account": "a"},
        {"command": ["doctor"]},
    ):
        done = subprocess.run([tool, "-"], input=manifest("slurm", values), capture_output=True, text=True)
        assert done.returncode == 0, done.stdout


def prepare_slurm(folder: Path, values: dict[str, Any], srun: str = "") -> dict[str, str]:
    """The script with stand-ins for SLURM's own tools, and the environment of its batch node."""
    tools = {
        "scontrol": 'case "$1" in requeue) echo "$*" >requeued;; *) printf "node1\\nnode2\\n";; esac',
        "srun": 'case "$*" in *hostname*) echo 192.0.2.9;; '
        f'*) printf "%s\\0" "$@" >words; ls -l "$RAY_AUTH_TOKEN_PATH" >mode; {srun}\n;; esac',
    }
    (folder / "bin").mkdir(exist_ok=True)
    for name, body in tools.items():
        (folder / "bin" / name).write_text(f"#!/bin/sh\n{body}\n")
        (folder / "bin" / name).chmod(0o755)
    (folder / "bin" / "python").unlink(missing_ok=True)
    (folder / "bin" / "python").symlink_to(sys.executable)
    (folder / "script").write_text(manifest("slurm", values))
    return {
        "PATH": f"{folder}/bin:/usr/bin:/bin", "HOME": str(folder), "SLURM_JOB_ID": "17",
        "SLURM_JOB_NODELIST": "node[1-2]", "LC_ALL": "C.UTF-8",
    }  # fmt: skip


def run_slurm(folder: Path, values: dict[str, Any], **env: str) -> list[str]:
    """The words that the script's last srun gets, by a real bash."""
    env = {**prepare_slurm(folder, values), **env}
    done = subprocess.run(["bash", "script"], cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (folder / "mode").read_text().startswith("-rw-------")
    assert not list(folder.glob(".spikeprune-*")), "the token is removed"
    return (folder / "words").read_bytes().decode().split("\0")[:-1]


def test_a_requeued_job_continues_its_run(tmp_path: Path) -> None:
    assert "--resume" not in run_slurm(tmp_path, {})
    assert run_slurm(tmp_path, {}, SLURM_RESTART_COUNT="1")[-1] == "--resume"
    assert "--resume" not in run_slurm(tmp_path, {"command": ["doctor"]}, SLURM_RESTART_COUNT="1")


def test_before_its_time_limit_a_job_goes_back_into_the_queue(tmp_path: Path) -> None:
    """And ends with the exit code of its command, if SLURM leaves it the time."""
    env = prepare_slurm(tmp_path, {}, srun="touch running; while [ ! -e go ]; do sleep 0.1; done; exit 7")
    running = subprocess.Popen(["bash", "script"], cwd=tmp_path, env=env, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 30
    while not (tmp_path / "running").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    running.send_signal(signal.SIGUSR1)
    while not (tmp_path / "requeued").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert running.poll() is None
    (tmp_path / "go").touch()
    _, err = running.communicate(timeout=30)
    assert (tmp_path / "requeued").read_text() == "requeue 17\n"
    assert "back into the queue" in err
    assert running.returncode == 7


@settings(max_examples=4)
@given(command=PLAIN)
def test_slurm_hands_words_on(tmp_path_factory: pytest.TempPathFactory, command: tuple[str, ...]) -> None:
    folder = tmp_path_factory.mktemp("slurm")
    words = run_slurm(folder, {"command": command})
    assert words[words.index("--") + 1 :] == ["python", "-m", "spikeprune", *command]
    assert words[words.index("--address") + 1] == "192.0.2.9:20017"
    assert {p.name for p in folder.iterdir()} == {"bin", "script", "words", "mode"}


def test_the_virtual_environment_is_used(tmp_path: Path) -> None:
    venv = tmp_path / "venv"
    (venv / "bin").mkdir(parents=True)
    (venv / "bin" / "activate").write_text("touch activated\n")
    run_slurm(tmp_path, {"venv": str(venv)})
    (tmp_path / "activated").unlink()
    (tmp_path / "bin" / "ray").write_text('#!/bin/sh\necho "$@" >>started\n')
    (tmp_path / "bin" / "ray").chmod(0o755)
    config = filled("ray-up", venv=str(venv))
    for command in config["head_start_ray_commands"] + config["worker_start_ray_commands"]:
        subprocess.run(
            ["bash", "-c", command], cwd=tmp_path, check=True,
            env={"PATH": f"{tmp_path}/bin:/usr/bin:/bin", "HOME": str(tmp_path), "RAY_HEAD_IP": "192.0.2.1"},
        )  # fmt: skip
        (tmp_path / "activated").unlink()
    started = (tmp_path / "started").read_text().splitlines()
    assert [line.split()[:2] for line in started] == [
        ["stop"], ["start", "--head"], ["stop"], ["start", "--address=192.0.2.1:6379"],
    ]  # fmt: skip


@settings(max_examples=15)
@given(command=PLAIN)
def test_kuberay_hands_words_on(tmp_path_factory: pytest.TempPathFactory, command: tuple[str, ...]) -> None:
    """Through the submitter's bash, `ray job submit`'s joining of words, and the job server's sh."""
    folder = tmp_path_factory.mktemp("kuberay")
    entrypoint = filled("kuberay", command=command)["spec"]["entrypoint"]
    shown = subprocess.run(
        ["bash", "-c", f"printf '%s\\0' {entrypoint}"], cwd=folder, capture_output=True, text=True, check=True
    ).stdout.split("\0")[:-1]
    rejoined = subprocess.list2cmdline(shown)
    last = subprocess.run(
        ["sh", "-c", f"printf '%s\\0' {rejoined}"], cwd=folder, capture_output=True, text=True, check=True
    ).stdout.split("\0")[:-1]
    assert last == ["python", "-m", "spikeprune", *command]
    assert not list(folder.iterdir())


@pytest.mark.parametrize("word", ["it's", "a b", "$(touch pwned)", "`x`", '"; x; "', "*", "\\", "é", "", "~"])
def test_words_that_would_not_reach_the_job_are_refused(word: str) -> None:
    with pytest.raises(UserError, match=r"^command: .* is not possible"):
        manifest("slurm", {"command": ["run", word]})
    with pytest.raises(UserError, match=r"^storage: .* is not possible"):
        manifest("slurm", {"storage": word})


FIELD = st.sampled_from([name for name, default in FIELDS.items() if isinstance(default, str)])
LINES = {"partition": ("slurm", 1), "account": ("slurm", 1), "venv": ("slurm", 1)}
"""What a value that is empty otherwise adds."""


@settings(max_examples=150)
@given(field=FIELD, value=NASTY)
def test_no_value_breaks_a_manifest(field: str, value: str) -> None:
    """Refused with the field's name, or every manifest still is what it was but for that value."""
    made: dict[str, str] = {}
    for kind in TEMPLATES:
        with suppress(UserError):
            made[kind] = manifest(kind, {field: value})
    refused = set(TEMPLATES) - set(made)
    assert refused in (set(), set(TEMPLATES))
    for kind in refused:
        with pytest.raises(UserError, match=f"^{field}: .*$"):  # one line
            manifest(kind, {field: value})
    if not made:
        return
    for kind in ("kuberay", "kuberay-cluster"):
        if field != "ray_version":
            check_fields(yaml.safe_load(made[kind]))
    assert set(yaml.safe_load(made["ray-up"])) == set(filled("ray-up")) - (
        {"docker"} if field == "venv" and value else set()
    )
    for kind in ("slurm", "docker"):
        changed, plain = made[kind], manifest(kind, {})
        where, extra = LINES.get(field, ("", 0))
        assert changed.count("\n") == plain.count("\n") + (extra if where == kind and value else 0)
    assert "symmetric-run" in shlex.split(made["slurm"], comments=True)


def test_the_image_holds_every_package() -> None:
    project = Path(__file__).resolve().parents[2] / "pyproject.toml"
    targets = tomllib.loads(project.read_text())["tool"]["hatch"]["build"]["targets"]
    copied = re.findall(r"^COPY (\w+) \1$", manifest("docker", {}), re.MULTILINE)
    assert copied == targets["wheel"]["packages"]


def test_every_template_is_filled_whole() -> None:
    for kind in TEMPLATES:
        for values in ({}, {"gpus": 1, "venv": "/v", "partition": "p", "account": "a"}):
            assert "@{" not in manifest(kind, values), kind


def test_kinds_and_their_command(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert get_args(get_args(get_type_hints(ManifestCommand, include_extras=True)["kind"])[0]) == tuple(
        TEMPLATES
    )
    (tmp_path / "c.yaml").write_text("name: mine\nworkers: 3\n")
    args = ["cluster", "manifest", "kuberay", "--config", str(tmp_path / "c.yaml")]
    assert cli.main([*args, "--set", "command=[run, ab.yaml]", "cpus=2"]) == 0
    made = yaml.safe_load(capsys.readouterr().out)
    assert made["metadata"]["name"] == "mine"
    assert made["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["replicas"] == 3
    for bad, line in [
        ("nam=x", "nam: is not a field"),
        ("name=A b", "name: 'A b' is not possible"),
        ("workers=x", "workers: 'x' is not possible"),
        ("name", "--set: 'name' is not KEY=VALUE"),
    ]:
        assert cli.main([*args, "--set", bad]) == 2
        assert line in capsys.readouterr().err
