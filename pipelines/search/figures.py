"""A search's figures, drawn by Optuna: the front, parallel coordinates, and what each field matters."""

import warnings
from collections.abc import Sequence
from itertools import combinations
from typing import Any

from pipelines.report.plots import to_svg
from pipelines.search.objectives import Objective

LEAST_TRIALS = 4  # of which to tell what matters


def figures(study: Any, objectives: Sequence[Objective]) -> list[tuple[str, str]]:
    """Titles and SVGs.

    Args:
        study: Optuna's, of the finished trials.
        objectives: in the order of the study's values.
    """
    import matplotlib.pyplot as plt
    import optuna
    import optuna.visualization.matplotlib as draw

    drawn: list[tuple[str, Any]] = []
    with warnings.catch_warnings(), plt.rc_context():  # Optuna sets a style for the whole process
        warnings.simplefilter("ignore")
        for (i, a), (j, b) in combinations(enumerate(objectives), 2):
            axes = draw.plot_pareto_front(
                study,
                targets=lambda t, i=i, j=j: (t.values[j], t.values[i]),  # type: ignore[misc]
                target_names=[b.title, a.title],
            )
            drawn.append((f"{a.title[0].upper()}{a.title[1:]} and {b.title}", axes))
        best = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=_share(len(study.trials)))
        for i, o in enumerate(objectives):
            alone = _alone(study, i, o)
            if len(objectives) == 1:
                drawn.append(
                    (f"Trials by {o.title}", draw.plot_optimization_history(alone, target_name=o.title))
                )
            axes = draw.plot_parallel_coordinate(alone, target_name=o.title)
            drawn.append((f"Parallel coordinates by {o.title}", axes))
            if len(study.trials) >= LEAST_TRIALS:
                axes = draw.plot_param_importances(alone, evaluator=best, target_name=o.title)
                drawn.append((f"Importance of each field for {o.title}", axes))
        for _, axes in drawn:
            axes.set_title("")
            axes.figure.set_size_inches(9, 4.5)
            axes.figure.tight_layout()
        svgs = [(title, to_svg(axes.figure)) for title, axes in drawn]
        plt.close("all")
    return svgs


def _alone(study: Any, index: int, objective: Objective) -> Any:
    """The study with one of its objectives."""
    import optuna

    alone = optuna.create_study(direction=objective.direction)
    alone.add_trials(
        optuna.trial.create_trial(value=t.values[index], params=t.params, distributions=t.distributions)
        for t in study.trials
    )
    return alone


def _share(trials: int) -> float:
    """Which trials count as the best: a tenth, or five (Optuna's advice), at most half."""
    return min(0.5, max(0.1, 5 / max(trials, 1)))
