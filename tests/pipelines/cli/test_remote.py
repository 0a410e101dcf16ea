"""What a command becomes on its way to a cluster that does not see this machine's files."""

from pathlib import Path

import pytest

from cluster.errors import UserError
from pipelines.cli.cluster import RemoteCommand, remote_command
from pipelines.config import Config
from pipelines.config.load import load_tree
from pipelines.config.schema import SearchTree

AUTO = ("--cluster.address", "auto")
HERE = ("-m", "spikeprune")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "data").mkdir()
    (tmp_path / "my.yaml").write_text("name: mine\ndata: {path: data}\n")
    (tmp_path / "far.yaml").write_text(
        "name: far\ndata: {path: 's3://b/data'}\nstorage: 's3://b/runs?region=eu'\n"
    )
    (tmp_path / "search.yaml").write_text(
        "name: wide\ndata: {path: data}\nsearch: {space: {train.lr: [0.1, 0.2]}, trials: 2}\n"
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


def sent(command: RemoteCommand, folder: Path) -> Config:
    """The config that goes along, as the job reads it."""
    ((name, content),) = command.extra
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(content)
    return load_tree(SearchTree if "search" in command.words else Config, folder / name)


def test_runs_and_searches_use_the_cluster_and_its_storage(project: Path) -> None:
    for verb, file, name in (("run", "my.yaml", "mine"), ("search", "search.yaml", "wide")):
        command = remote_command([verb, file], project, "~/there")
        assert command.words == (*HERE, verb, f".spikeprune/{name}.yaml")
        config = sent(command, project)
        assert (config.storage, config.cluster.address) == ("~/there", "auto")
        assert command.run == f"~/there/{name}"
        assert command.name == name
        assert project / "data" in command.include


def test_what_the_config_names_absolutely_stays(project: Path) -> None:
    command = remote_command(["run", "far.yaml"], project)
    assert sent(command, project).storage == "s3://b/runs?region=eu"
    assert command.run == "s3://b/runs/far?region=eu"
    alone = remote_command(["run", "my.yaml", "--cluster.engine", "local", "--cluster.workers", "1"], project)
    assert sent(alone, project).cluster.address is None


def test_a_config_from_elsewhere_goes_along(project: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    outside = tmp_path_factory.mktemp("outside") / "c.yaml"
    outside.write_text("data: {path: /data}\n")
    command = remote_command(["train", str(outside), "--train.lr", "0.7"], project)
    assert sent(command, project).train.lr == 0.7
    assert command.words == (*HERE, "train", ".spikeprune/run.yaml")


def test_own_modules_are_told_from_where_they_are_sent(project: Path) -> None:
    (project / "nets").mkdir()
    (project / "nets" / "own.yaml").write_text("data: {path: /data}\nmodel: {name: 'my_net:net'}\n")
    command = remote_command(["train", str(project / "nets" / "own.yaml")], project)
    assert Path(sent(command, project).code or "").resolve() == project / "nets"


def test_other_verbs(project: Path) -> None:
    pruned = remote_command(["prune", "s3://b/runs/mine", "--sparsity", "0.5"], project)
    assert pruned.run == "s3://b/runs/mine-pruned"
    assert pruned.words[-2:] == AUTO
    assert remote_command(["prune", "/runs/mine", "--name", "small"], project).run == "/runs/small"
    doctor = remote_command(["doctor", "my.yaml"], project)
    places = ("--storage", "~/spikeprune-runs")
    assert doctor.words == (*HERE, "doctor", "my.yaml", "--address", "auto", *places)
    assert project / "data" in doctor.include
    given = remote_command(["doctor", "--address=h:1"], project, "~/there")
    assert given.words == (*HERE, "doctor", "--address=h:1", "--storage", "~/there")
    drawn = remote_command(["search", "--plot", "/runs/wide"], project)
    assert drawn.words == (*HERE, "search", "--plot", "/runs/wide")
    assert remote_command(["python", "a.py", "$x"], project).words == ("a.py", "$x")


@pytest.mark.parametrize("given", [["--address", "auto"], ["--address=auto"]])
def test_an_address_belongs_before(project: Path, given: list[str]) -> None:
    with pytest.raises(UserError, match=r"^--address: belongs before the --"):
        remote_command(["run", "my.yaml", *given], project)


def test_options_before_the_config_or_the_run(project: Path) -> None:
    several = remote_command(["run", "--seeds", "3", "my.yaml"], project, "~/there")
    assert several.words[3:] == ("--seeds", "3", ".spikeprune/mine.yaml")
    assert several.run == "~/there/mine-seed-*"
    assert remote_command(["prune", "--sparsity", "0.5", "/runs/mine"], project).run == "/runs/mine-pruned"
    kept = "/runs/mine/checkpoints/train.safetensors"
    assert remote_command(["prune", kept], project).run == "/runs/mine-pruned"


def test_a_command_that_the_job_would_refuse_is_refused_here(project: Path) -> None:
    with pytest.raises(UserError, match=r"^--resum: is not an option; did you mean --resume"):
        remote_command(["run", "my.yaml", "--resum"], project)
    with pytest.raises(UserError, match=r"^SOURCE: is needed"):
        remote_command(["prune", "--sparsity", "0.5"], project)
