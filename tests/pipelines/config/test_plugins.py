"""Models and policies of a user's own, from a folder that only the driver knows, through every verb."""

import importlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from cluster.errors import UserError
from pipelines import cli
from pipelines.config import Config, ModelConfig
from pipelines.config.load import load_config
from pipelines.config.plugins import check_unchanged, keep_copy, use_own_code
from snn.interchange import read_tensors
from tests.pipelines.cli.test_cli import fails_with
from tests.pipelines.training.conftest import metrics

pytestmark = pytest.mark.xdist_group("ray")

EXAMPLE = Path(__file__).resolve().parents[3] / "examples" / "own"


@pytest.fixture
def example(tmp_path: Path) -> Path:
    """The example's folder, copied to where no process could find it by itself."""
    folder = tmp_path / "mine"
    shutil.copytree(EXAMPLE, folder)
    return folder


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Another current folder."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def arguments(digits: Path, storage: Path, *more: str) -> list[str]:
    return ["--data.path", str(digits), "--storage", str(storage), *more]


LOCAL = ("--cluster.engine", "local", "--cluster.workers", "1")
SHORT = ("--train.epochs", "3", "--weight-pruning.retrain_epochs", "0")


@pytest.mark.slow
def test_own_code_runs_on_ray_and_every_verb_rebuilds_it(
    example: Path, elsewhere: Path, digits: Path, tmp_path: Path, ray_session: None
) -> None:
    storage = tmp_path / "runs"
    more = arguments(digits, storage, *SHORT, "--data-pruning.rescore_every", "1")
    more += ["--cluster.workers", "2"]
    assert cli.main(["run", str(example / "own.yaml"), *more]) == 0
    folder = storage / "own"
    records = metrics(folder)
    assert [r for r in records if r["phase"] == "train"][-1]["test_accuracy"] > 0.85
    assert records[1]["examples"] == 718
    assert 1.5 < records[1]["max_weight"] <= 10  # drawn by importance, not uniformly
    pruned = json.loads((folder / "pruning.json").read_text())
    assert "spread" in json.dumps(pruned)
    _, header = read_tensors(folder / "checkpoints" / "train.safetensors")
    assert json.loads(header["spikeprune"])["architecture"]["name"] == "my_net:two_leaks"
    shutil.rmtree(example)  # what follows rebuilds the network from the run alone
    assert cli.main(["score", str(folder), "--output", str(tmp_path / "scores.parquet")]) == 0
    assert pq.read_table(tmp_path / "scores.parquet").num_rows == 1437
    assert cli.main(["export", str(folder), "--output", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "code" / "my_net.py").exists()
    assert cli.main(["compare", str(folder), "--criteria", "lamp", "--levels", "0.8"]) == 0
    assert cli.main(["prune", str(folder), "--sparsity", "0.7", "--no-retrain", *LOCAL]) == 0
    assert (storage / "own-pruned" / "code" / "my_net.py").exists()


def test_a_run_resumes_only_with_the_code_it_started_with(
    example: Path, digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["train", str(example / "own.yaml"), *arguments(digits, tmp_path / "runs", *SHORT, *LOCAL)]
    assert cli.main(args) == 0
    assert cli.main([*args, "--resume"]) == 0
    check_that_a_checkpoint_alone_imports_nothing(tmp_path / "runs" / "own", example)
    (example / "my_net.py").write_text((example / "my_net.py").read_text() + "\n# changed\n")
    capsys.readouterr()
    fails_with("my_net.py is not what it was when the run started", [*args, "--resume"], capsys)


def check_that_a_checkpoint_alone_imports_nothing(run: Path, example: Path) -> None:
    """A file's header is not a reason to run code: only a config is."""
    checkpoint = run / "checkpoints" / "train.safetensors"
    code = (
        "import json, sys\nfrom snn.interchange import load_checkpoint\n"
        f"try:\n    load_checkpoint({str(checkpoint)!r})\nexcept ValueError as error:\n"
        "    print(json.dumps([str(error), 'my_net' in sys.modules]))"
    )
    env = {**os.environ, "PYTHONPATH": str(example)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
    error, imported = json.loads(done.stdout)
    assert "'my_net:two_leaks' is unknown; import it and register it" in error
    assert not imported


@pytest.mark.parametrize(
    ("field", "name", "line"),
    [
        ("model.name", "my_net", "'my_net' is unknown; choose one of"),
        ("model.name", "my net:two_leaks", "one of your own is package.module:attribute"),
        ("model.name", "my_nets:two_leaks", "there is no module 'my_nets' in"),
        ("model.name", "my_net:two_leak", "has no 'two_leak'; did you mean two_leaks?"),
        ("model.name", "my_net:prod", "my_net:prod must take input_shape, num_classes, neuron"),
        (
            "model.name",
            "broken:net",
            "importing broken failed: NameError: name 'x' is not defined (broken.py, line 2)",
        ),
        (
            "model.name",
            "cut:net",
            "importing cut failed: source code string cannot contain null bytes (cut, line",
        ),
        ("model.name", "wrong:text", "wrong:text is of type str; it must be a function or class"),
        ("model.name", "wrong:linear", "has no 'synapses'; derive it from snn.models.SpikingNetwork"),
        ("model.name", "wrong:no_network", "wrong:no_network gave a dict, not a torch.nn.Module"),
        ("model.name", "wrong:fails", "wrong:fails failed: KeyError: 'x' (wrong.py, line 17)"),
        (
            "model.name",
            "wrong:batch_first",
            "cannot be counted: readout.0: ran on (2, 4, 128), where T=4",
        ),
        (
            "data_pruning.policy",
            "my_policy:np",
            "must be a subclass of pruning.examples.policies.base.Policy",
        ),
        ("data_pruning.policy", "wrong:Odd", "wants the score 'odd'; choose one of"),
        ("data_pruning.policy", "my_policy:Flat", "has no 'Flat'; did you mean Flattened?"),
        ("weight_pruning.criterion", "my_criterion:prod", "has no 'prod'"),
        ("weight_pruning.criterion", "builtins:max", "builtins:max does not tell its arguments; wrap it in"),
        ("weight_pruning.criterion", "wrong:text", "wrong:text is of type str; it must be a function"),
        (
            "weight_pruning.criterion",
            "wrong:fails",
            "takes 4 arguments; it must take synapses, calibration, objective",
        ),
    ],
)
def test_mistakes_are_one_line(
    field: str,
    name: str,
    line: str,
    example: Path,
    elsewhere: Path,
    digits: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (example / "broken.py").write_text("a = 1\nb = x\n")
    (example / "cut.py").write_bytes(b"a = 1\n\0\0")
    (example / "wrong.py").write_text(
        "from torch import nn\nfrom pruning.examples.policies import Policy\nfrom snn.models import build\n\n"
        "text = 'a'\n\n\n"
        "def linear(*, input_shape, num_classes, neuron, **options):\n    return nn.Linear(64, 10)\n\n\n"
        "def no_network(*, input_shape, num_classes, neuron, **options):\n    return {}\n\n\n"
        "def fails(*, input_shape, num_classes, neuron, **options):\n    return {}['x']\n\n\n"
        "class Odd(Policy):\n    score = 'odd'\n\n\n"
        "def batch_first(*, input_shape, num_classes, neuron, width=0):\n"
        "    net = build('mlp', input_shape=input_shape, num_classes=num_classes)\n"
        "    net.forward = lambda x: net.readout(net.features(x).transpose(0, 1)).transpose(0, 1)\n"
        "    return net\n"
    )
    config = str(example / "own.yaml")
    fails_with(line, ["train", config, *arguments(digits, tmp_path / "runs"), f"--{field}", name], capsys)


@pytest.mark.parametrize(
    ("field", "name", "line"),
    [
        ("model.name", "late:net", "code: ValueError: no more (late.py, line 8)"),
        ("model.name", "late:nans", "train.lr: training diverged: the loss is not finite from step 1 of"),
        ("data_pruning.policy", "late:Odd", "code: ZeroDivisionError: division by zero (late.py, line"),
    ],
)
def test_own_code_that_fails_while_training_is_named_with_its_line(
    field: str,
    name: str,
    line: str,
    example: Path,
    elsewhere: Path,
    digits: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (example / "late.py").write_text(
        "from my_net import two_leaks\n"
        "from pruning.examples.policies import Policy\n\n\n"
        "def fail(module, args):\n"
        "    if module.training:\n"
        "        if args[0].shape[1] > 2:\n"
        "            raise ValueError('no more')\n\n\n"
        "def net(**options):\n"
        "    made = two_leaks(**options)\n"
        "    made.register_forward_pre_hook(fail)\n"
        "    return made\n\n\n"
        "def nans(**options):\n"
        "    made = two_leaks(**options)\n"
        "    made.register_forward_hook(lambda m, args, out: out * float('nan') if m.training else out)\n"
        "    return made\n\n\n"
        "class Odd(Policy):\n    score = None\n\n"
        "    def select(self, epoch):\n        return 1 / 0\n"
    )
    config = str(example / "own.yaml")
    args = ["train", config, *arguments(digits, tmp_path / "runs"), f"--{field}", name]
    assert cli.main(args) == 2
    error = capsys.readouterr().err
    assert error.splitlines()[-1].startswith("spikeprune: ")
    assert line in error.splitlines()[-1]
    assert "Traceback" not in error


def test_unknown_options_of_the_model_are_named(
    example: Path, digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["train", str(example / "own.yaml"), *arguments(digits, tmp_path / "runs")]
    fails_with(
        "model.options: my_net:two_leaks takes no 'depth'", [*args, "--model.options", "{depth: 3}"], capsys
    )


@pytest.mark.parametrize("package", ["snn", "cluster", "torch"])
def test_a_folder_that_hides_a_package_is_refused(package: str, example: Path) -> None:
    (example / package).mkdir()
    (example / package / "__init__.py").write_text("")
    with pytest.raises(UserError, match=f"would be imported instead of the package '{package}'"):
        use_own_code(load_config(example / "own.yaml"))


def test_a_current_folder_that_hides_ours_from_the_workers_is_refused(
    elsewhere: Path, digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (elsewhere / "pruning.py").write_text("")
    args = ["train", *arguments(digits, tmp_path / "runs"), "--cluster.engine", "ray"]
    fails_with("pruning.py would be imported instead of the package 'pruning'", args, capsys)


def test_two_folders_with_modules_of_one_name_do_not_mix(example: Path, tmp_path: Path) -> None:
    """Also what a worker does that serves one run after another."""
    from snn.models import MODELS

    other = tmp_path / "other"
    shutil.copytree(example, other)
    text = (other / "my_net.py").read_text()
    (other / "my_net.py").write_text(text.replace("width: int = 64", "width: int = 32"))
    widths = []
    for folder in (example, other, example):
        use_own_code(load_config(folder / "own.yaml"))
        widths.append(MODELS["my_net:two_leaks"].__kwdefaults__["width"])
    assert widths == [64, 32, 64]


def test_an_environment_below_the_folder_stays_imported(
    example: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A project's folder often holds its .venv, and numpy can be imported once a process."""
    installed = example / ".venv" / "site-packages"
    installed.mkdir(parents=True)
    (installed / "of_the_environment.py").write_text("")
    monkeypatch.syspath_prepend(installed)
    package = importlib.import_module("of_the_environment")
    use_own_code(load_config(example / "own.yaml"))
    assert sys.modules.pop("of_the_environment", None) is package


def test_a_folder_below_a_hidden_one_travels_whole(tmp_path: Path) -> None:
    package = tmp_path / ".projects" / "mine" / "nets"
    package.mkdir(parents=True)
    shutil.copy(EXAMPLE / "my_net.py", package / "leaks.py")
    (package / ".scratch").mkdir()
    (package / ".scratch" / "old.py").write_text("")
    code = use_own_code(Config(code=str(package.parent), model=ModelConfig(name="nets.leaks:two_leaks")))
    assert code is not None
    assert set(code.files) == {"nets/leaks.py"}
    keep_copy(code, package.parent / "kept")
    check_unchanged(code, package.parent / "kept")
