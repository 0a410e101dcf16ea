"""The search space: what it may hold, what it draws, and one line for every mistake in it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.errors import UserError
from pipelines import cli
from pipelines.config import field_paths
from pipelines.config.load import dump_config, load_config, load_tree, with_values
from pipelines.config.schema import SearchTree
from pipelines.search.plan import READY_MADE, Space, make_plan, make_space
from pipelines.search.trial import stages_of


def tree(search: dict[str, Any], **rest: Any) -> SearchTree:
    return load_tree(SearchTree, None, {f"search.{k}": v for k, v in search.items()} | rest)


def space(search: dict[str, Any], **rest: Any) -> Space:
    return make_space(tree(search, **rest))


@pytest.mark.parametrize(
    ("search", "line"),
    [
        (
            {"space": {"data_pruning.ration": [0.1]}},
            "data_pruning.ration: is not a field; did you mean data_pruning.ratio?",
        ),
        (
            {"space": {"train.lr": {"low": 0.5, "high": 0.1}}},
            "search.space.train.lr: low <= high must hold, but got (low=0.5, high=0.1).",
        ),
        (
            {"space": {"data_pruning.ratio": {"low": 0.1, "high": 1.5}}},
            "search.space.data_pruning.ratio: 1.5 is not possible; it must be in [0, 1)",
        ),
        (
            {"space": {"train.lr": {"low": 0, "high": 1, "log": True}}},
            "search.space.train.lr: low > 0 must hold for log=True, but got (low=0.0, high=1.0)",
        ),
        ({"space": {"train.lr": {"low": 0.1}}}, "is not possible; give {low: , high: }, or step or log too"),
        ({"space": {"train.lr": {"low": "a", "high": 1}}}, "search.space.train.lr.low: 'a' is not possible"),
        (
            {"space": {"train.lr": {"lo": 0.1, "high": 1}}},
            "is not possible; give {low: , high: }, or step or log too",
        ),
        ({"space": {"model.T": {"low": 1.5, "high": 4}}}, "it must be whole numbers"),
        (
            {"space": {"train.lr": {"low": 0.1, "high": 1, "step": 0.1, "log": True}}},
            "search.space.train.lr: The parameter step is not supported when log is true.",
        ),
        ({"space": {"train.lr": {"low": 0.1, "high": 1, "step": 2}}}, "'step': 2} holds a single value"),
        ({"space": {"data_pruning.policy": {"low": 0, "high": 1}}}, "is no number and has no range; list"),
        ({"space": {"model.hidden": {"low": 16, "high": 32}}}, "is no number and has no range; list"),
        ({"space": {"data_pruning.policy": ["sadp", "sapd"]}}, "'sapd' is unknown; choose one of"),
        ({"space": {"data_pruning.policy": []}}, "The choices must contain one or more elements."),
        ({"space": {"train.lr": [0.1, 0.1]}}, "lists a value twice"),
        ({"space": {"train.lr": 0.1}}, "list values, or give {low: , high: }"),
        ({"space": {"cluster.workers": [1, 2]}}, "search.space.cluster.workers: cannot be searched"),
        ({"space": {"name": ["a", "b"]}}, "search.space.name: cannot be searched"),
        ({"space": {"data.train_rows": [64, 128]}}, "search.space.data.train_rows: cannot be searched"),
        (
            {"space": {"weight_pruning.sparsity": [0.5], "weight_pruning.budget": [0.1]}},
            "which is searched too; keep one",
        ),
        ({"space": ["data_pruning.ratio"]}, "search.space: ['data_pruning.ratio'] is not possible"),
        (
            {"space": {"weight_pruning.budget": [0.1]}, "stages": "train"},
            "weight_pruning.budget: changes nothing in the stage train; set search.stages to run",
        ),
        (
            {"question": "data", "stages": "train", "objectives": ["accuracy", "density"]},
            "search.objectives: density is not produced by the stage train",
        ),
        ({"objectives": ["accuracy", "accuracy"]}, "search.objectives: ('accuracy', 'accuracy') is not"),
        ({"objectives": ["acuracy"]}, "search.objectives: 'acuracy' is unknown"),
        (
            {"scheduler": "asha", "objectives": ["accuracy", "synops"]},
            "search.scheduler: asha compares trials by accuracy alone, not by accuracy, synops",
        ),
        (
            {"scheduler": "asha", "objectives": ["synops"]},
            "search.scheduler: asha compares trials by accuracy alone, not by synops",
        ),
        (
            {"space": {"train.lr": {"low": 0.1, "high": 1, "step": -0.1}}},
            "search.space.train.lr: step > 0 must hold, but got step=-0.1.",
        ),
        (
            {"scheduler": "asha", "objectives": ["accuracy"], "grace_epochs": 99},
            "search.grace_epochs: 99 is more than a trial's 21 epochs",
        ),
        ({"trials": 0}, "search.trials: 0 is not possible; it must be at least 1"),
        ({"minutes": -1}, "search.minutes: -1.0 is not possible; it must be positive"),
        ({"trails": 3}, "search.trails: is not a field"),
        ({"concurrent": 99}, "search.concurrent: 99 trials at once do not fit; set it to "),
    ],
)
def test_mistakes_are_one_line(
    search: dict[str, Any], line: str, tmp_path: Path, digits: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "search.yaml"
    path.write_text(yaml.safe_dump({"search": search, "cluster": {"workers": 1}}))
    args = ["search", str(path), "--data.path", str(digits), "--storage", str(tmp_path / "runs")]
    assert cli.main(args) == 2
    error = capsys.readouterr().err
    assert error.startswith("spikeprune: ")
    assert error.count("\n") == 1, error
    assert line in error
    assert not (tmp_path / "runs" / "search").exists()


def test_plot_needs_a_search_and_nothing_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["search", "--plot", str(tmp_path)]) == 2
    assert "is not a search: it has no search.yaml" in capsys.readouterr().err
    assert cli.main(["search", "--plot", str(tmp_path), "--search.trials", "3"]) == 2
    assert "redraws a search as it is" in capsys.readouterr().err


@pytest.mark.parametrize("question", ["data", "network", "both"])
def test_ready_made_spaces_are_possible(question: Any) -> None:
    plan = make_plan(tree({"question": question}))
    assert set(plan.space.distributions) == set(READY_MADE[question])
    assert plan.stages == ("train" if question == "data" else "run")
    for values in plan.space.grid(3):
        plan.space.config_of(values)


def test_a_space_beside_a_question_adds_to_it() -> None:
    both = space({"question": "data", "space": {"train.lr": [0.1, 0.2], "data_pruning.policy": ["sadp"]}})
    assert set(both.distributions) == {"data_pruning.ratio", "data_pruning.policy", "train.lr"}
    assert {p["data_pruning.policy"] for p in both.grid(2)} == {"sadp"}


def test_a_searched_target_replaces_the_configs() -> None:
    found = space({"space": {"weight_pruning.budget": [0.1, 0.2]}}, **{"weight_pruning.sparsity": 0.8})
    config = found.config_of({"weight_pruning.budget": 0.2})
    assert (config.weight_pruning.budget, config.weight_pruning.sparsity) == (0.2, None)


def test_the_grid_is_whole_and_varies_the_training_fastest() -> None:
    s = space(
        {
            "space": {
                "data_pruning.ratio": [0.1, 0.5],
                "weight_pruning.budget": {"low": 0.1, "high": 10, "log": True},
            }
        }
    )
    points = s.grid(3)
    assert len(points) == 6
    assert {p["weight_pruning.budget"] for p in points} == {0.1, 1.0, 10.0}
    assert [p["data_pruning.ratio"] for p in points[:2]] == [0.1, 0.5]


def test_the_grid_of_a_range_takes_its_steps_or_so_many_values() -> None:
    def values(path: str, given: dict[str, Any], points: int) -> list[Any]:
        return [p[path] for p in space({"space": {path: given}}).grid(points)]

    assert values("data_pruning.ratio", {"low": 0.1, "high": 0.9, "step": 0.2}, 3) == [
        0.1,
        0.3,
        0.5,
        0.7,
        0.9,
    ]
    assert values("data_pruning.ratio", {"low": 0.1, "high": 0.45, "step": 0.2}, 3) == [0.1, 0.3]
    assert values("model.T", {"low": 2, "high": 10, "step": 4}, 2) == [2, 6, 10]
    assert values("model.T", {"low": 1, "high": 8, "step": 1}, 5) == [1, 2, 3, 4, 5, 6, 7, 8]
    assert values("model.T", {"low": 2, "high": 4}, 9) == [2, 3, 4]
    assert values("model.T", {"low": 2, "high": 32, "log": True}, 3) == [2, 8, 32]
    assert values("train.lr", {"low": "1e-3", "high": 1e-1, "log": True}, 3) == [0.001, 0.01, 0.1]


def test_what_samplers_suggest_is_what_the_config_takes() -> None:
    """Lists, which are no choices of Optuna's, and steps without their rounding errors."""
    import optuna

    s = space(
        {
            "space": {
                "model.hidden": [[16], [32, 32]],
                "data_pruning.ratio": {"low": 0.1, "high": 0.9, "step": 0.1},
                "model.T": {"low": 2, "high": 16, "log": True},
                "data_pruning.policy": ["sadp", "random"],
            }
        }
    )
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    configs = [s.config_of(study.ask(s.distributions).params) for _ in range(60)]
    assert {c.model.hidden for c in configs} == {(16,), (32, 32)}
    assert {c.data_pruning.ratio for c in configs} == {round(0.1 * k, 1) for k in range(1, 10)}
    assert {c.data_pruning.policy for c in configs} == {"sadp", "random"}
    assert {c.model.T for c in configs} >= {2, 3, 4}


def test_a_trial_of_one_worker_needs_no_address(tmp_path: Path) -> None:
    """It trains in a process of the search's cluster; of several workers it connects."""
    for workers, address in ((1, None), (2, "far:6379")):
        settings = {"cluster.address": "far:6379", "cluster.workers": workers, "storage": str(tmp_path)}
        plan = make_plan(tree({"space": {"train.lr": [0.1, 0.2]}}, **settings))
        assert {s.config.cluster.address for s in stages_of(plan, {"train.lr": 0.1})} == {address}


def test_trials_that_differ_in_pruning_alone_share_the_training(tmp_path: Path) -> None:
    plan = make_plan(
        tree({"space": {"weight_pruning.budget": [0.1, 0.2], "train.lr": [0.1, 0.2]}}, storage=str(tmp_path))
    )

    def names(values: dict[str, Any], **rest: Any) -> list[str]:
        base = replace(plan.space, config=with_values(plan.space.config, rest))
        return [s.config.name for s in stages_of(replace(plan, space=base), values)]

    first = names({"weight_pruning.budget": 0.1})
    assert names({"weight_pruning.budget": 0.2})[0] == first[0]
    assert names({"weight_pruning.budget": 0.2, "weight_pruning.criterion": "lamp"})[0] == first[0]
    assert len({names({"weight_pruning.budget": b})[1] for b in (0.1, 0.2, 0.3)}) == 3
    for path, value in (("train.lr", 0.2), ("seed", 1), ("data_pruning.ratio", 0.1), ("model.T", 2)):
        assert names({"weight_pruning.budget": 0.1, path: value})[0] != first[0], path
    assert names({"weight_pruning.budget": 0.1}, **{"cluster.address": "auto", "name": "other"}) == first


def test_search_settings_survive_yaml(tmp_path: Path) -> None:
    path = tmp_path / "search.yaml"
    given = tree({"space": {"train.lr": {"low": 0.1, "high": 0.2}}, "objectives": ["accuracy"], "trials": 3})
    path.write_text(dump_config(given))
    assert load_tree(SearchTree, path) == given
    assert "search.trials" in field_paths(SearchTree)
    with pytest.raises(UserError, match="search: is not a field"):
        load_config(path)
