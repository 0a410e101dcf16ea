"""Manifests against the schemas of the tools they are for, and against every shell on their way."""

import os
import shlex
import shutil
import subprocess
import sys
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.errors import ClusterError
from cluster.launch import command_line, decode
from cluster.manifests import KINDS, kuberay, slurm
from cluster.manifests.spec import ManifestSpec, read_spec
from pipelines import cli
from pipelines.cluster_verbs import ManifestCommand

NASTY = st.text(
    st.one_of(
        st.sampled_from(list("\"'`$(){}[];&|<>*?!#~\\ \n\t=%")),
        st.characters(blacklist_characters="\0", blacklist_categories=["Cs"]),
    ),
    max_size=24,
)
COMMAND = st.lists(NASTY, max_size=4).map(lambda words: ("score", *words))


def check_fields(manifest: dict[str, Any]) -> None:
    """Every key above the pods' templates is one that KubeRay has."""
    assert manifest["apiVersion"] == "ray.io/v1"
    assert set(manifest) == {"apiVersion", "kind", "metadata", "spec"}
    cluster = manifest["spec"]
    if manifest["kind"] == "RayJob":
        assert set(manifest["spec"]) <= kuberay.FIELDS["RayJob"]
        cluster = manifest["spec"]["rayClusterSpec"]
    assert set(cluster) <= kuberay.FIELDS["rayClusterSpec"]
    assert cluster["rayVersion"] == version("ray")
    assert cluster["authOptions"] == {"mode": "token"}
    assert set(cluster["headGroupSpec"]) <= kuberay.FIELDS["headGroupSpec"]
    for group in cluster["workerGroupSpecs"]:
        assert set(group) <= kuberay.FIELDS["workerGroupSpecs"]
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    for pod in (cluster["headGroupSpec"]["template"], *(g["template"] for g in cluster["workerGroupSpecs"])):
        [container] = pod["spec"]["containers"]
        mounts, volumes = container["volumeMounts"], pod["spec"]["volumes"]
        assert {m["name"] for m in mounts} == {v["name"] for v in volumes}
        assert container["resources"]["requests"] == container["resources"]["limits"]


@pytest.mark.parametrize("kind", ["kuberay", "kuberay-cluster"])
def test_kuberay_fields(kind: str) -> None:
    for spec in (ManifestSpec(), ManifestSpec(workers=7, gpus=2, namespace="team")):
        manifest = yaml.safe_load(KINDS[kind](spec))
        check_fields(manifest)
        assert manifest["kind"] == ("RayJob" if kind == "kuberay" else "RayCluster")


@pytest.mark.parametrize("kind", ["ray-up", "ray-up-aws", "ray-up-gcp"])
@pytest.mark.parametrize(
    "spec", [ManifestSpec(), ManifestSpec(gpus=1, workers=5, venv="/opt/it's $HOME/venv")]
)
def test_ray_accepts_its_own_schema(kind: str, spec: ManifestSpec) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = yaml.safe_load(KINDS[kind](spec))
    validate_config(prepare_config(config))  # as `ray up` does
    with pytest.raises(Exception, match="cluster_nam"):
        validate_config(prepare_config({**config, "cluster_nam": "x"}))
    for command in config["head_start_ray_commands"] + config["worker_start_ray_commands"]:
        subprocess.run(["bash", "-n", "-c", command], check=True)
        assert command.startswith("export RAY_AUTH_MODE=token")


def test_slurm_passes_shellcheck() -> None:
    tool = shutil.which("shellcheck")
    if tool is None:
        pytest.skip("needs shellcheck")
    for spec in (
        ManifestSpec(),
        ManifestSpec(gpus=2, venv="/o p/t", partition="p", account="a", command=("run", "'$x")),
    ):
        done = subprocess.run([tool, "-"], input=slurm.script(spec), capture_output=True, text=True)
        assert done.returncode == 0, done.stdout


def run_slurm(folder: Path, spec: ManifestSpec) -> list[str]:
    """The words that the script's last srun gets, by a real bash with stand-ins for SLURM's own tools."""
    tools = {
        "scontrol": "printf 'node1\\nnode2\\n'",
        "srun": 'case "$*" in *hostname*) echo 192.0.2.9;; '
        '*) printf "%s\\0" "$@" >words; ls -l "$RAY_AUTH_TOKEN_PATH" >mode;; esac',
    }
    (folder / "bin").mkdir(exist_ok=True)
    for name, body in tools.items():
        (folder / "bin" / name).write_text(f"#!/bin/sh\n{body}\n")
        (folder / "bin" / name).chmod(0o755)
    (folder / "bin" / "python").unlink(missing_ok=True)
    (folder / "bin" / "python").symlink_to(sys.executable)
    (folder / "script").write_text(slurm.script(spec))
    env = {
        "PATH": f"{folder}/bin:/usr/bin:/bin", "HOME": str(folder), "SLURM_JOB_ID": "17",
        "SLURM_JOB_NODELIST": "node[1-2]", "LC_ALL": "C.UTF-8",
    }  # fmt: skip
    done = subprocess.run(["bash", "script"], cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (folder / "mode").read_text().startswith("-rw-------")
    assert not list(folder.glob(".spikeprune-*")), "the token is removed"
    return (folder / "words").read_bytes().decode().split("\0")[:-1]


@settings(max_examples=8, deadline=None)
@given(command=COMMAND)
def test_slurm_hands_words_on(tmp_path_factory: pytest.TempPathFactory, command: tuple[str, ...]) -> None:
    folder = tmp_path_factory.mktemp("slurm")
    words = run_slurm(folder, ManifestSpec(command=command, workers=2))
    assert words[words.index("--") + 1 :] == ["python", "-m", "pipelines.cli", *command]
    assert words[words.index("--address") + 1] == "192.0.2.9:20017"
    assert {p.name for p in folder.iterdir()} == {"bin", "script", "words", "mode"}


ODD = ["it's", "a b", "$(touch pwned)", "`touch pwned`", '"; touch pwned; "', "*", "\\", "é && touch pwned"]


@pytest.mark.parametrize("name", ODD)
def test_folders_of_any_name_survive_the_shell(tmp_path: Path, name: str) -> None:
    """The virtual environment is found and the storage handed on, by bash, and nothing else happens."""
    venv = tmp_path / name
    (venv / "bin").mkdir(parents=True)
    (venv / "bin" / "activate").write_text("touch activated\n")
    spec = ManifestSpec(venv=str(venv), command=("run", "my.yaml"), storage=f"/runs/{name}")
    words = run_slurm(tmp_path, spec)
    assert words[-2:] == ["--storage", f"/runs/{name}"]
    (tmp_path / "activated").unlink()
    (tmp_path / "bin" / "ray").write_text('#!/bin/sh\necho "$@" >>started\n')
    (tmp_path / "bin" / "ray").chmod(0o755)
    config = yaml.safe_load(KINDS["ray-up"](spec))
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
    assert not (tmp_path / "pwned").exists()


@settings(max_examples=15, deadline=None)
@given(command=COMMAND)
def test_kuberay_hands_words_on(tmp_path_factory: pytest.TempPathFactory, command: tuple[str, ...]) -> None:
    """Through the submitter's bash, `ray job submit`'s joining of words, and the job server's sh."""
    folder = tmp_path_factory.mktemp("kuberay")
    entrypoint = yaml.safe_load(KINDS["kuberay"](ManifestSpec(command=command)))["spec"]["entrypoint"]
    shown = subprocess.run(
        ["bash", "-c", f"printf '%s\\0' {entrypoint}"], cwd=folder, capture_output=True, text=True, check=True
    ).stdout.split("\0")[:-1]
    rejoined = subprocess.list2cmdline(shown)
    last = subprocess.run(
        ["sh", "-c", f"printf '%s\\0' {rejoined}"], cwd=folder, capture_output=True, text=True, check=True
    ).stdout.split("\0")[:-1]
    assert last[:2] == ["python", "-m"]
    got = decode(last[3]) if last[2] == "cluster.launch" else last[3:]
    assert got == list(command)
    assert not list(folder.iterdir())


def test_encoded_words_run(tmp_path: Path) -> None:
    line = command_line(["report", "no such 'run'; touch x"])
    python = shlex.quote(sys.executable)
    done = subprocess.run(
        line.replace("python", python, 1), shell=True, cwd=tmp_path, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip
    assert done.returncode == 2
    assert "no such 'run'; touch x: is not a run" in done.stderr
    assert not (tmp_path / "x").exists()


FIELD = st.sampled_from([n for n, t in get_type_hints(ManifestSpec).items() if t is str])


@settings(max_examples=150, deadline=None)
@given(field=FIELD, value=NASTY)
def test_no_value_breaks_a_manifest(field: str, value: str) -> None:
    """Refused with the field's name, or every manifest still is what it was but for that value."""
    spec = None
    with suppress(ClusterError):
        spec = read_spec({field: value})
    if spec is None:
        with pytest.raises(ClusterError, match=f"^{field}: .*$"):  # one line
            read_spec({field: value})
        return
    check_fields(yaml.safe_load(KINDS["kuberay"](spec)))
    for kind in ("ray-up", "ray-up-aws", "ray-up-gcp"):
        assert set(yaml.safe_load(KINDS[kind](spec))) == set(
            yaml.safe_load(KINDS[kind](ManifestSpec(venv=spec.venv)))
        )
    for kind in ("slurm", "docker"):
        changed, plain = KINDS[kind](spec), KINDS[kind](ManifestSpec())
        lines = {"partition": 1, "account": 1, "venv": 2} if kind == "slurm" else {}
        extra = sum(n for key, n in lines.items() if getattr(spec, key))
        assert len(changed.splitlines()) == len(plain.splitlines()) + extra
    subprocess_free_check = shlex.split(KINDS["slurm"](spec), comments=True)
    assert "symmetric-run" in subprocess_free_check


def test_kinds_and_their_command(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert get_args(get_args(get_type_hints(ManifestCommand, include_extras=True)["kind"])[0]) == tuple(KINDS)
    (tmp_path / "c.yaml").write_text("name: mine\nworkers: 3\n")
    args = ["cluster", "manifest", "kuberay", "--config", str(tmp_path / "c.yaml")]
    assert cli.main([*args, "--set", "command=[run, a b.yaml]", "cpus=2"]) == 0
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
