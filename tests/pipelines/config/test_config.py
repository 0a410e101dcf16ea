"""The config tree: every way in gives the same checked values or the same one line."""

import os
from pathlib import Path
from typing import Any, get_args

import pytest

from cluster.errors import UserError
from pipelines import config as tree
from pipelines.config import Config, DataPruningConfig, migration
from pipelines.config.load import dump_config, load_config
from pipelines.config.migration import VERSION
from pipelines.config.parser import split_overrides
from pipelines.runs.preflight import advice


def test_dump_and_load_round_trip(tmp_path: Path) -> None:
    config = load_config(
        None,
        {
            "train.lr": "1e-3",
            "model.hidden": "[64, 32]",
            "weight_pruning.exclude": "[readout.0]",
            "name": "a.b",
        },
    )
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(config))
    assert load_config(path) == config
    assert config.train.lr == 0.001
    assert config.model.hidden == (64, 32)


def test_overrides_win_over_the_file(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("train: {epochs: 3, lr: 0.5}\nweight_pruning: {sparsity: 0.8}\n")
    config = load_config(path, {"train.epochs": "4", "weight_pruning.budget": "0.2"})
    assert (config.train.epochs, config.train.lr) == (4, 0.5)
    assert (config.weight_pruning.budget, config.weight_pruning.sparsity) == (0.2, None)
    cleared = load_config(path, {"weight_pruning.budget": "null", "weight_pruning.synops": None})
    assert cleared.weight_pruning.sparsity == 0.8


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        ({"train.lrr": "1"}, "train.lrr: is not a field; did you mean train.lr?"),
        ({"train.epochs": "many"}, "train.epochs: 'many' is not possible; it must be a whole number"),
        ({"train.epochs": True}, "train.epochs: 'True' is not possible; it must be a whole number"),
        ({"train.epochs": "0"}, "train.epochs: 0 is not possible; it must be between 1 and 1000000"),
        ({"train.epochs": "9" * 400}, "99...' is not possible; it must be a whole number below 2^63"),
        ({"train.epochs": "9" * 5000}, "99...' is not possible; it must be a whole number below 2^63"),
        ({"train.epochs": [1, 2]}, "train.epochs: [1, 2] is not possible; it must be a whole number"),
        ({"data_pruning.policy": None}, "data_pruning.policy: has no value; give one or leave it out"),
        ({"data.augment.flip": "yes"}, "data.augment.flip: 'yes' is not possible; it must be true or false"),
        ({"data.augment.crop": 10**18}, "data.augment.crop: 1000000000000000000 is not possible"),
        ({"model.hidden": [10**18]}, "model.hidden: (1000000000000000000,) is not possible"),
        ({"model.hidden": "[3, x]"}, "model.hidden: 'x' is not possible; it must be a whole number"),
        ({"model.options": "3"}, "model.options: '3' is not possible; it must be names with values"),
        ({"model.options": {"a": {"b": 1}}}, "is not possible; it must be names with values, as {width: 64}"),
        ({"model.surrogate_scale": ".inf"}, "model.surrogate_scale: inf is not possible"),
        ({"weight_pruning.retrain_lr": "inf"}, "weight_pruning.retrain_lr: inf is not possible"),
        ({"data_pruning.alpha": "5e-324"}, "data_pruning.alpha: 5e-324 is not possible"),
        ({"name": "-rf"}, "name: '-rf' is not possible"),
        ({"name": "--help"}, "name: '--help' is not possible"),
        ({"name": ".hidden"}, "name: '.hidden' is not possible"),
        ({"name": "x" * 5000}, "xxx...' is not possible; it must be text of at most 4,096 characters"),
        ({"data.path": "a\0b"}, "data.path: 'a\\x00b' is not possible; it must be text"),
        ({"data_pruning.ratio": "1"}, "data_pruning.ratio: 1.0 is not possible; it must be in [0, 1)"),
        ({"data_pruning.ratio": "-0.1"}, "data_pruning.ratio: -0.1 is not possible; it must be in [0, 1)"),
        ({"data_pruning.ratio": ".nan"}, "data_pruning.ratio: nan is not possible; it must be in [0, 1)"),
        (
            {"weight_pruning.sparsity": "1"},
            "weight_pruning.sparsity: 1.0 is not possible; it must be in (0, 1)",
        ),
        ({"train": "3"}, "train: '3' is not possible; it must hold fields"),
        ({"name": "../up"}, "name: '../up' is not possible"),
        ({"cluster.workers": "3"}, "train.batch_size: 64 is not possible; it must be a multiple of"),
        ({"cluster.device": "gpu"}, "cluster.device: 'gpu' is not possible; it must be auto, cpu, cuda or"),
        ({"cluster.device": "cpu", "cluster.gpus_per_worker": "1"}, "cluster.gpus_per_worker: 1.0 is not"),
        ({"cluster.threads": "0"}, "cluster.threads: 0 is not possible; it must be at least 1"),
        (
            {"cluster.engine": "local", "cluster.workers": "2"},
            "cluster.workers: 2 is not possible with engine local; set 1",
        ),
        (
            {"data_pruning.policy": "sdap"},
            "data_pruning.policy: 'sdap' is unknown; choose one of",
        ),
    ],
)
def test_mistakes_name_field_value_and_what_is_allowed(overrides: dict[str, Any], line: str) -> None:
    with pytest.raises(UserError) as caught:
        load_config(None, overrides)
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("train: [", "is not valid YAML"),
        ("- 1", "must hold fields"),
        ("sede: 1", "did you mean seed?"),
        ("train: 3", "train: '3' is not possible; it must hold fields"),
        ("train:\n  lr: 0.1\n  lr: 0.2\n", "'lr' is there twice, again in"),
        ("train:\n  lr: 0.1\n  lr: 0.2\n", "line 3"),
        ("data_pruning: {policy: }", "data_pruning.policy: has no value"),
        ("model: {name: }", "model.name: has no value"),
        ("weight_pruning: {criterion: }", "weight_pruning.criterion: has no value"),
        ("train: {epochs: 010x}", "train.epochs: '010x' is not possible"),
        ("train: {epochs: !!int abc}", "is not valid YAML"),
        ("model: {options: &a {x: *a}}", "aliases (*name) are not read"),
        ("a: " + "[" * 2000, "nested too deeply"),
        ("name: " + "x" * 2**20, "is larger than 1 MiB"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, text: str, line: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        load_config(path)
    assert line in str(caught.value)


def test_text_stays_as_it_is_written(tmp_path: Path) -> None:
    """YAML reads 0123 as 83, 2026-11-28 as a date and no as false."""
    for name in ("0123", "007", "1_000", "2026-11-28", "no", "1e3"):
        assert load_config(None, {"name": name}).name == name
        assert load_config(None, split_overrides(["--name", name])[0]).name == name
        (tmp_path / "c.yaml").write_text(f"name: {name}\n")
        config = load_config(tmp_path / "c.yaml")
        assert config.name == name
        (tmp_path / "d.yaml").write_text(dump_config(config))
        assert load_config(tmp_path / "d.yaml") == config


def test_options_of_the_model_have_the_types_that_yaml_gives_them(tmp_path: Path) -> None:
    expected = {"width": 64, "slope": 1e-3, "deep": True, "kind": "07"}
    text = '{width: 64, slope: 1e-3, deep: true, kind: "07"}'
    (tmp_path / "c.yaml").write_text(f"model: {{options: {text}}}\n")
    assert load_config(tmp_path / "c.yaml").model.options == expected
    assert load_config(None, {"model.options": text}).model.options == expected
    config = load_config(None, {"model.options": expected})
    assert config.model.options == expected
    (tmp_path / "d.yaml").write_text(dump_config(config))
    assert load_config(tmp_path / "d.yaml") == config
    (tmp_path / "e.yaml").write_text('model: {options: {kind: "07", slope: 1e-3, deep: true, width: 64}}')
    assert dump_config(load_config(tmp_path / "e.yaml")) == dump_config(config), "whatever their order"


def test_a_file_of_an_earlier_version_is_read_by_the_names_of_today(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("weights: {response_examples: 77}\n")
    assert load_config(path).weight_pruning.measure_examples == 77
    path.write_text(f"schema_version: {VERSION}\nweights: {{response_examples: 77}}\n")
    with pytest.raises(UserError, match=r"weights: is not a field; it is called weight_pruning now"):
        load_config(path)
    path.write_text("weights: {response_examples: 77, measure_examples: 78}\n")
    with pytest.raises(UserError, match=r"has weights\.response_examples and weights\.measure_examples"):
        load_config(path)
    path.write_text("weights: {synops: 0.2}\nweight_pruning: {synops: 0.3}\n")
    with pytest.raises(UserError, match=r"has weights\.synops and weight_pruning\.synops, which are one"):
        load_config(path)


def test_a_file_of_version_1_is_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(
        "train: {clip_norm: 1, accumulate: 2, norm_examples: 99}\nexamples: {ratio: 0.7}\n"
        "weights: {synops: 0.2}\ntrack: {tensorboard: true}\n"
    )
    config = load_config(path)
    train = config.train
    assert (train.max_grad_norm, train.grad_accum_steps, train.bn_examples) == (1, 2, 99)
    assert (config.data_pruning.ratio, config.weight_pruning.synops) == (0.7, 0.2)
    assert config.tracking.tensorboard


def test_a_field_that_is_gone_may_have_had_no_effect(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("train: {ema_decay: null, epochs: 5}\ndata_pruning: {overlap: false}\n")
    assert load_config(path).train.epochs == 5
    path.write_text("train: {ema: 0.99}\n")
    with pytest.raises(UserError, match=r"c\.yaml: has train\.ema_decay '0\.99', which this version"):
        load_config(path)


def test_groups_move_as_fields_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """Through several versions, also into a group that is there."""
    renamed = {2: {"a": "b", "c.x": "d", "gone": None}, 3: {"b": "e.f", "d": "e.f.y"}}
    monkeypatch.setattr(migration, "RENAMED", renamed)
    monkeypatch.setattr(migration, "VERSION", 3)
    assert migration.today("c.x") == ("e.f.y", True)
    assert migration.today("a.z") == ("e.f.z", True)
    assert migration.today("a.z", since=2) == ("a.z", True)
    assert migration.today("b.z", since=2) == ("e.f.z", True)
    assert migration.today("gone") == ("gone", False)
    assert migration.today("gone", since=2) == ("gone", True)
    assert migration.today("other") == ("other", True)


def test_a_file_of_a_later_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(dump_config(Config()).replace(f"{VERSION}", f"{VERSION + 1}", 1))
    with pytest.raises(UserError, match=rf"c\.yaml: is of schema_version {VERSION + 1}, written by a later"):
        load_config(path)
    path.write_text("schema_version: new\n")
    with pytest.raises(UserError, match=r"its schema_version 'new' is not possible"):
        load_config(path)


def test_what_is_no_file_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "c.yaml")
    with pytest.raises(UserError, match=r"c\.yaml: is not a file"):
        load_config(tmp_path / "c.yaml")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such config file"):
        load_config(tmp_path / "none.yaml")


def test_split_overrides_keeps_other_words() -> None:
    overrides, rest = split_overrides(
        [
            "c.yaml",
            "--train.lr=0.1",
            "--resume",
            "--model.hidden",
            "3",
            "4",
            "--no-model.detach-reset",
            "--seed",
            "7",
        ]
    )
    assert rest == ["c.yaml", "--resume"]
    assert overrides == {
        "train.lr": "0.1",
        "model.hidden": ("3", "4"),
        "model.detach_reset": "false",
        "seed": "7",
    }


def test_a_flag_takes_no_word(tmp_path: Path) -> None:
    words = ["--data.augment.flip", "my.yaml", "--tracking.tensorboard=true", "--model.detach-reset=false"]
    overrides, rest = split_overrides(words)
    assert rest == ["my.yaml"]
    assert overrides == {
        "data.augment.flip": "true",
        "tracking.tensorboard": "true",
        "model.detach_reset": "false",
    }


def test_an_override_without_a_value_is_refused() -> None:
    with pytest.raises(UserError, match=r"train\.lr: needs a value"):
        split_overrides(["--train.lr"])


def test_registered_names_are_those_of_the_registries() -> None:
    from pruning.examples.policies import POLICIES
    from pruning.weights.criteria import CRITERIA
    from snn.losses import LOSSES
    from snn.models import MODELS
    from snn.surrogate import SURROGATES

    for names, registry in (
        (tree.PolicyName, POLICIES),
        (tree.CriterionName, CRITERIA),
        (tree.LossName, LOSSES),
        (tree.ModelName, MODELS),
        (tree.SurrogateName, SURROGATES),
    ):
        assert set(get_args(names)) == set(registry)


def test_the_defaults_are_a_config() -> None:
    assert load_config(None) == Config()


def test_a_file_builds_on_another(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "a.yaml").write_text(
        "train: {lr: 0.3, epochs: 9}\nweight_pruning: {sparsity: 0.7, retrain_epochs: 3}\n"
    )
    (tmp_path / "b.yaml").write_text("base: a.yaml\nname: b\ntrain: {epochs: 5}\n")
    (tmp_path / "deep" / "c.yaml").write_text("base: ../b.yaml\nweight_pruning: {synops: 0.2}\n")
    config = load_config(tmp_path / "deep" / "c.yaml", {"train.batch_size": "8"})
    assert (config.name, config.train.lr, config.train.epochs) == ("b", 0.3, 5)
    assert (config.train.batch_size, config.weight_pruning.retrain_epochs) == (8, 3)
    assert (config.weight_pruning.synops, config.weight_pruning.sparsity) == (
        0.2,
        None,
    )  # one target replaces another
    assert "\nbase:" not in dump_config(config)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("base: gone.yaml", "its base gone.yaml does not exist"),
        ("base: mine.yaml", "its base mine.yaml leads back to itself"),
        ("base: [3]", "base: ['3'] is not possible; it must be the path of a config file"),
    ],
)
def test_a_bad_base_is_named(tmp_path: Path, text: str, line: str) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(UserError) as caught:
        load_config(tmp_path / "mine.yaml")
    assert line in str(caught.value)


def test_a_training_without_a_pruned_epoch_is_warned_of() -> None:
    def warning(epochs: int) -> str | None:
        return advice(load_config(None, {"train.epochs": epochs}))  # of which a warm-up and an anneal epoch

    assert warning(3) is None
    assert "leave no epoch to prune" in (warning(1) or "")


@pytest.mark.parametrize(
    ("settings", "warned"),
    [
        ({"ratio": 0.5}, False),  # scores from training steps
        ({"ratio": 0.5, "rescore_every": 1}, True),
        ({"ratio": 0.9, "rescore_every": 1}, False),
        ({"ratio": 0.5, "rescore_every": 2}, False),
        ({"ratio": 0.3, "rescore_every": 2}, True),
        ({"ratio": 0.3, "rescore_every": 2, "score_timesteps": 2}, False),
        ({"ratio": 0.3, "rescore_every": 2, "rescore_who": "unselected"}, False),
        ({"ratio": 0.5, "rescore_every": 1, "policy": "random"}, False),
    ],
)
def test_passes_that_cost_more_than_half_of_what_they_save_are_warned_of(settings, warned):
    warning = advice(Config(data_pruning=DataPruningConfig(**settings)))
    assert (warning is not None) == warned
    if warning:
        assert warning.startswith(f"data_pruning.rescore_every {settings['rescore_every']}: ")


def test_a_dotted_key_in_a_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("train: {epochs: 5}\ntrain.epochs: 3\n")
    with pytest.raises(UserError, match=r"train\.epochs: has a dot; in a file, fields stand below"):
        load_config(path)
