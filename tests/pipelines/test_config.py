"""The config tree: every way in gives the same checked values or the same one line."""

from pathlib import Path
from typing import Any, get_args

import pytest

from pipelines import config as tree
from pipelines.config import Config, ExamplesConfig
from pipelines.config_io import dump_config, load_config, split_overrides
from pipelines.errors import UserError
from pipelines.preflight import costly_passes


def test_dump_and_load_round_trip(tmp_path: Path) -> None:
    config = load_config(
        None,
        {"train.lr": "1e-3", "model.hidden": "[64, 32]", "weights.exclude": "[readout.0]", "name": "a.b"},
    )
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(config))
    assert load_config(path) == config
    assert config.train.lr == 0.001
    assert config.model.hidden == (64, 32)


def test_overrides_win_over_the_file(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("train: {epochs: 3, lr: 0.5}\nweights: {sparsity: 0.8}\n")
    config = load_config(path, {"train.epochs": "4", "weights.budget": "0.2"})
    assert (config.train.epochs, config.train.lr) == (4, 0.5)
    assert (config.weights.budget, config.weights.sparsity) == (0.2, None)


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        ({"train.lrr": "1"}, "train.lrr: is not a field; did you mean train.lr?"),
        ({"train.epochs": "many"}, "train.epochs: 'many' is not possible; it must be a whole number"),
        ({"train.epochs": "true"}, "train.epochs: True is not possible; it must be a whole number"),
        ({"train.epochs": "0"}, "train.epochs: 0 is not possible; it must be at least 1"),
        ({"examples.ratio": "1"}, "examples.ratio: 1.0 is not possible; it must be in [0, 1)"),
        ({"examples.ratio": "-0.1"}, "examples.ratio: -0.1 is not possible; it must be in [0, 1)"),
        ({"examples.ratio": ".nan"}, "examples.ratio: nan is not possible; it must be in [0, 1)"),
        ({"weights.sparsity": "1"}, "weights.sparsity: 1.0 is not possible; it must be in (0, 1)"),
        ({"train": "3"}, "train: 3 is not possible; it must hold fields"),
        (
            {"examples.score_from": "13"},
            "examples.score_from: 13 is not possible; it must be at most train.epochs (12)",
        ),
        ({"name": "../up"}, "name: '../up' is not possible"),
        ({"cluster.workers": "3"}, "train.batch_size: 64 is not possible; it must be a multiple of"),
        ({"cluster.engine": "local"}, "cluster.workers: 2 is not possible with engine local; set 1"),
        (
            {"examples.policy": "sdap"},
            "examples.policy: 'sdap' is unknown; choose one of",
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
    [("train: [", "is not valid YAML"), ("- 1", "must hold fields"), ("sede: 1", "did you mean seed?")],
)
def test_bad_files_are_named(tmp_path: Path, text: str, line: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        load_config(path)
    assert line in str(caught.value)


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
        "model.hidden": "[3, 4]",
        "model.detach_reset": "false",
        "seed": "7",
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
        "train: {lr: 0.3, epochs: 9}\nweights: {sparsity: 0.7, retrain_epochs: 3}\n"
    )
    (tmp_path / "b.yaml").write_text("base: a.yaml\nname: b\ntrain: {epochs: 5}\n")
    (tmp_path / "deep" / "c.yaml").write_text("base: ../b.yaml\nweights: {synops: 0.2}\n")
    config = load_config(tmp_path / "deep" / "c.yaml", {"train.batch_size": "8"})
    assert (config.name, config.train.lr, config.train.epochs) == ("b", 0.3, 5)
    assert (config.train.batch_size, config.weights.retrain_epochs) == (8, 3)
    assert (config.weights.synops, config.weights.sparsity) == (0.2, None)  # one target replaces another
    assert "\nbase:" not in dump_config(config)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("base: gone.yaml", "its base gone.yaml does not exist"),
        ("base: mine.yaml", "its base mine.yaml leads back to itself"),
        ("base: 3", "base: 3 is not possible; it must be the path of a config file"),
    ],
)
def test_a_bad_base_is_named(tmp_path: Path, text: str, line: str) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(UserError) as caught:
        load_config(tmp_path / "mine.yaml")
    assert line in str(caught.value)


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
        ({"ratio": 0.5, "rescore_every": 1, "overlap": True}, False),
        ({"ratio": 0.5, "rescore_every": 1, "policy": "random"}, False),
    ],
)
def test_passes_that_cost_more_than_half_of_what_they_save_are_warned_of(settings, warned):
    warning = costly_passes(Config(examples=ExamplesConfig(**settings)))
    assert (warning is not None) == warned
    if warning:
        assert warning.startswith(f"examples.rescore_every {settings['rescore_every']}: ")
