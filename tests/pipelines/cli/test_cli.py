"""The command as a user meets it: its surface, its help, and one line for every mistake."""

import operator
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import get_type_hints

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.connect import local_cpus
from pipelines import cli
from pipelines.cli import cluster
from pipelines.cli.main import VERBS
from pipelines.config import field_paths
from pipelines.config.load import load_config
from pipelines.config.parser import leaf_hint, split_overrides
from pipelines.config.schema import SearchTree

SURFACE = Path(__file__).parent / "assets" / "cli_surface.txt"


def surface() -> str:
    """Every verb with its own options, then every config field with its type."""
    lines = []
    for verb, function in VERBS.items():
        command = get_type_hints(function).get("o", cluster.SubmitCommand)
        lines.append(f"{verb}: {' '.join(f.name for f in fields(command))}")
    for path in field_paths(SearchTree):
        lines.append(f"{path}: {leaf_hint(path, SearchTree)}")
    return "\n".join(lines) + "\n"


def test_the_surface_is_pinned() -> None:
    """A change of the command's options is a decision: update the file and the changelog together."""
    assert surface() == SURFACE.read_text()


def fails_with(line: str, args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """The command exits with 2 and says one line that holds ``line``."""
    assert cli.main(args) == 2
    error = capsys.readouterr().err
    assert error.startswith("spikeprune: ")
    assert error.count("\n") == 1, error
    assert line in error


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (["trian"], "trian: is not a verb; did you mean train?"),
        (["data", "digest"], "'digest' is not one of its verbs"),
        (["data"], "data: 'nothing' is not one of its verbs; use ingest, verify"),
        (["train", "none.yaml"], "none.yaml: no such config file"),
        (["train", "--resme"], "--resme: is not an option; did you mean --resume?"),
        (["train", "--train.lrr", "1"], "train.lrr: is not a field; did you mean train.lr?"),
        (["train", "--train.lr"], "train.lr: needs a value"),
        (["train", "--train.epochs", "1:30"], "train.epochs: '1:30' is not possible; it must be a whole"),
        (["train", "a.yaml", "b.yaml"], "b.yaml: is one word too many"),
        (["search", "--search.trials", "x"], "search.trials: 'x' is not possible; it must be a whole number"),
        (["prune"], "SOURCE: is needed; --help explains it"),
        (["score", "x"], "--output: is needed"),
        (
            ["data", "show", "x", "--rows", "many"],
            "--rows: 'many' is not possible; it must",
        ),
        (["data", "ingest", "digits", "--output", "x", "--split-seed", "-1"], "--split-seed: -1 is not"),
        (
            ["data", "ingest", "npy", "--T", "2", "--output", "y", "--size", "1", "2", "3"],
            "--size: (1, 2, 3) is",
        ),
        (["data", "ingest", "digit", "--output", "x"], "SOURCE: 'digit' is unknown; choose one of digits"),
        (["data", "select", "x", "--ratio", ".5", "--output", "y", "--epoch", "-1"], "--epoch: -1 is not"),
        (["train", "--storage", "data/digits/runs"], "storage: data/digits/runs is inside the dataset"),
        (
            ["train", "--cluster.workers", "2", "--cluster.gpus-per-worker", "0.5"],
            "cluster.gpus_per_worker: 0.5 puts two of 2 workers on one GPU, which NCCL refuses",
        ),
        (
            ["train", "--cluster.engine", "local", "--cluster.workers", "1", "--address", "auto"],
            "cluster.address: auto is not used by cluster.engine local",
        ),
        (["train", "--train.weight-decay", "inf"], "train.weight_decay: inf is not possible"),
        (["train", "--cluster.cpus-per-worker", "inf"], "cluster.cpus_per_worker: inf is not possible"),
        (["train", "--cluster.device", "cuda:77"], "cluster.device: cuda:77 is not possible: torch sees "),
        (["train", "--cluster.device", "cuda:0", "--cluster.workers", "2"], "cuda:0 is not possible: Ray"),
        (
            ["train", "--data-pruning.ratio", "1.5"],
            "data_pruning.ratio: 1.5 is not possible; it must be in [0, 1)",
        ),
        (["run", "--model.name", "mpl"], "model.name: 'mpl' is unknown; choose one of"),
        (["train", "--data.path", "none"], "data.path: none does not exist"),
        (["prune", "none"], "none: does not exist"),
        (["report", "none"], "none: is not a run"),
        (["jobs", "list", "--address", "x" * 300], "--address: no Ray dashboard answers at http://xxx"),
        (["data", "verify", "x", "--train.lr", "1"], "--train.lr: is a field of a run's config; this verb"),
        (["cluster", "manifest", "slurm", "--set", "hours=2026-13-45"], "'hours=2026-13-45' cannot be read"),
        (["cluster", "manifest", "slurm", "--set", "hours=[" + "[" * 3000], "--set: 'hours=[["),
        (["cluster", "manifest", "slurm", "--set", f"hours={'x' * 300}"], "hours: 'xxxx"),
        (
            ["cluster", "manifest", "slurm", "--set", "command=[trian, my.yaml]"],
            "command: 'trian' is not a verb",
        ),
        (["cluster", "manifest", "kuberay", "--set", "storage=runs"], "storage: 'runs' is not possible"),
        (["cluster", "manifest", "slurm", "--set", "workers=0"], "workers: 0 is not possible; it must be at"),
        (["compare", "x", "--address", "auto"], "cluster.address: is not used by compare"),
        (["compare", "x", "--sparsity", "0.5"], "weight_pruning.sparsity: is not used by compare"),
        (["data", "ingest", "npy", "--output", "y", "--by", "count"], "--by: applies to event frames, of"),
        (["submit", "--pip", "r.txt", "--", "doctor"], "--pip: r.txt is a file; give its requirements"),
        (["train", "--model.channels", "3"], "model.channels: (3,) does not apply: mlp has no such layers"),
    ],
)
def test_mistakes_are_one_line(
    args: list[str],
    line: str,
    digits: Path,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "digits").symlink_to(digits)
    fails_with(line, args, capsys)


def test_workers_that_do_not_fit_are_refused_before_ray(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workers = local_cpus()
    args = ["train", "--data.path", str(digits), "--storage", str(tmp_path / "runs")]
    args += ["--cluster.workers", str(workers), "--cluster.cpus-per-worker", "1"]
    args += ["--train.batch-size", str(8 * workers)]
    fails_with(f"set it to {workers - 1} or less", args, capsys)
    assert not (tmp_path / "runs").exists()


def test_unwritable_storage_is_named(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    args = ["train", "--data.path", str(digits), "--storage", str(tmp_path / "file")]
    fails_with("storage: ", args, capsys)


def test_an_existing_run_needs_resume_and_the_same_config(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = [
        "train", "--data.path", str(digits), "--storage", str(tmp_path), "--cluster.engine", "local",
        "--cluster.workers", "1", "--train.epochs", "2", "--model.hidden", "16",
    ]  # fmt: skip
    assert cli.main(args) == 0
    assert (tmp_path / "run" / "report.html").exists()
    capsys.readouterr()
    fails_with("--resume continues it, --name starts another", args, capsys)
    fails_with("train.lr: is 0.7 here and 0.1 in the run", [*args, "--resume", "--train.lr", "0.7"], capsys)
    assert cli.main([*args, "--resume"]) == 0


@pytest.mark.parametrize(
    ("damage", "line"),
    [
        ("missing", "has no file test*.parquet; `spikeprune data ingest` writes"),
        ("text", "is not a readable Parquet file"),
        ("column", "column 'label' is missing"),
        ("label", "label 11 is out of range; the schema names 10 classes"),
        ("empty", "split 'test' has no rows"),
        ("nan", "id 1 is NaN or infinite"),
    ],
)
def test_bad_data_is_refused_before_training(
    damage: str, line: str, digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "data"
    shutil.copytree(digits, folder)
    train, test = folder / "train-00000.parquet", folder / "test-00000.parquet"
    table = pq.read_table(train)
    if damage == "missing":
        test.unlink()
    elif damage == "text":
        test.write_text("id,image,label")
    elif damage == "column":
        pq.write_table(table.drop_columns(["label"]), train)
    elif damage == "label":
        labels = table.column("label").to_numpy().copy()
        labels[5] = 11
        pq.write_table(table.set_column(2, "label", pa.array(labels)), train)
    elif damage == "empty":
        pq.write_table(pq.read_table(test).slice(0, 0), test)
    else:
        for path in (train, test):
            n = pq.read_table(path).num_rows
            x = np.zeros((n, 4))
            x[1, 0] = np.nan
            features = pa.array(x.tolist(), pa.list_(pa.float64()))
            pq.write_table(pq.read_table(path).set_column(1, "image", features), path)
    args = ["train", "--data.path", str(folder), "--storage", str(tmp_path / "runs")]
    fails_with(line, args, capsys)
    assert not (tmp_path / "runs").exists()


def test_help_teaches_every_field(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        cli.main(["train", "--help"])
    assert done.value.code == 0
    text = capsys.readouterr().out
    for path in field_paths():
        assert f"--{path.replace('_', '-')}" in text or f"--{path}" in text, path


def test_help_shows_the_values_of_the_config_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "c.yaml").write_text("train: {epochs: 37}\nname: of-the-file\n")
    with pytest.raises(SystemExit):
        cli.main(["train", str(tmp_path / "c.yaml"), "--name", "of-the-words", "--help"])
    text = capsys.readouterr().out
    assert "(default: 37)" in text
    assert "(default: of-the-words)" in text


def test_a_printed_config_is_a_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "c.yaml").write_text("name: 0123\nweight_pruning: {synops: 0.2}\n")
    words = ["--train.epochs", "5", "--model.hidden", "8", "4", "--no-model.detach-reset", "--print-config"]
    assert cli.main(["run", str(tmp_path / "c.yaml"), *words]) == 0
    (tmp_path / "printed.yaml").write_text(capsys.readouterr().out)
    config = load_config(tmp_path / "printed.yaml")
    assert (config.name, config.train.epochs, config.model.hidden) == ("0123", 5, (8, 4))
    assert (config.weight_pruning.synops, config.weight_pruning.sparsity, config.model.detach_reset) == (
        0.2,
        None,
        False,
    )


def test_prune_prints_the_config_of_the_new_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (checkpoint := tmp_path / "dense" / "checkpoints" / "train.safetensors").parent.mkdir(parents=True)
    checkpoint.touch()
    (tmp_path / "dense" / "config.yaml").write_text("name: dense\nseed: 3\n")
    assert cli.main(["prune", str(tmp_path / "dense"), "--synops", "0.2", "--print-config"]) == 0
    (tmp_path / "printed.yaml").write_text(capsys.readouterr().out)
    config = load_config(tmp_path / "printed.yaml")
    assert (config.name, config.storage, config.seed) == ("dense-pruned", str(tmp_path), 3)
    assert config.weight_pruning.synops == 0.2
    assert [p.name for p in tmp_path.iterdir() if p.is_dir()] == ["dense"]


def test_every_option_that_help_shows_is_taken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a flag both forms; of what may be null the word null."""
    with pytest.raises(SystemExit):
        cli.main(["train", "--help"])
    text = capsys.readouterr().out
    flags = re.findall(r"--([\w.-]+), --([\w.-]+) ", text)
    assert ("model.detach-reset", "model.no-detach-reset") in flags
    optional = re.findall(r"--([\w.-]+) (?:TEXT|INT|FLOAT|YAML|\[INT \.\.\.\])\|null", text)
    assert {"cluster.address", "model.hidden"} < set(optional)
    for yes, no in flags:
        path = yes.replace("-", "_")
        assert split_overrides([f"--{yes}"])[0] == {path: "true"}
        assert split_overrides([f"--{no}"])[0] == {path: "false"}
    for name in (n for n in optional if "." in n or n == "code"):
        overrides, rest = split_overrides([f"--{name}", "null"])
        assert not rest
        assert operator.attrgetter(name.replace("-", "_"))(load_config(None, overrides)) is None or (
            name == "weight-pruning.sparsity"  # 0.9 where no target is given
        )


def test_help_of_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    text = capsys.readouterr().out
    for verb in VERBS:
        assert f"  {verb} " in text
    assert cli.main([]) == 2


@pytest.mark.parametrize("group", ["data", "jobs", "cluster"])
def test_help_of_a_group_lists_its_verbs(group: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([group, "--help"]) == 0
    text = capsys.readouterr().out
    for verb in (v.split()[1] for v in VERBS if v.startswith(f"{group} ")):
        assert f"  {verb} " in text


def test_a_reader_that_has_seen_enough_ends_the_command_quietly() -> None:
    code = f"{shlex.quote(sys.executable)} -m spikeprune train --help | head -1"
    done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[3])
    assert done.stdout.startswith("usage: spikeprune train")
    assert done.stderr == ""
