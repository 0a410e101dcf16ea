"""What a search found: its trials as Tune has them, Optuna's front, the best configs, a table and a page."""

import shlex
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from html import escape
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console

from cluster.errors import UserError
from pipelines.config.load import dump_config
from pipelines.console import table
from pipelines.report.page import DEFINITIONS, html_details, html_figure, html_list, html_page, html_table
from pipelines.report.plots import to_svg
from pipelines.search.plan import OBJECTIVES, Objective, Plan, as_yaml, read_plan
from pipelines.search.trial import TRAINING, Trial, read_trials, study_of, trial_of
from pipelines.storage.atomic import write_beside

LEAST_TRIALS = 4  # of which to tell what matters
_EXPLAINED = (
    (
        "Pareto front",
        "finished trials that no other trial equals or beats in every objective while beating it in one",
    ),
    (
        "balanced",
        "the trial on the front nearest to the best of every objective, each scaled by the front's extent",
    ),
    (
        "importance",
        "how much being among the best in an objective depends on a field (Optuna's PED-ANOVA), in shares of "
        "all fields",
    ),
)
FEW = 40  # trials that the terminal's table shows


@dataclass(frozen=True, kw_only=True)
class Found:
    """A search's trials and what stands out among them."""

    plan: Plan
    trials: list[Trial]
    study: Any
    """Optuna's study of the finished trials, in order."""
    front: set[int]
    """Numbers of the trials on the Pareto front."""
    best: dict[str, int]
    """Number of the best trial of each kind: an objective's name, or balanced."""

    @property
    def finished(self) -> list[Trial]:
        """The trials that can be compared."""
        return [t for t in self.trials if t.status == "finished"]


def read_results(folder: Path) -> Found:
    """What a search's folder holds by now."""
    plan = read_plan(folder)
    trials = read_trials(plan)
    if all(t.status == "open" for t in trials):
        raise UserError(str(folder), "has no trial that ended yet; --resume goes on with it")
    finished = [t for t in trials if t.status == "finished"]
    study = study_of(plan, finished)
    front = [t.number for t in study.best_trials]
    best = _best(study, front, plan.objectives) if finished else {}
    return Found(
        plan=plan,
        trials=trials,
        study=study,
        front={finished[i].number for i in front},
        best={kind: finished[i].number for kind, i in best.items()},
    )


def _best(study: Any, front: list[int], objectives: tuple[Objective, ...]) -> dict[str, int]:
    """The best of each objective and, of several, ``balanced``: the trial of the front that is nearest to
    the best of every objective, each scaled by the front's extent."""
    costs = np.array([study.trials[i].values for i in front]) * [o.sign for o in objectives]
    low, high = costs.min(axis=0), costs.max(axis=0)
    distance = np.linalg.norm((costs - low) / np.where(high > low, high - low, 1.0), axis=1)
    best = {o.name: front[np.lexsort((distance, costs[:, i]))[0]] for i, o in enumerate(objectives)}
    return best | ({"balanced": front[int(distance.argmin())]} if len(objectives) > 1 else {})


def write_results(found: Found) -> None:
    """Write search.parquet, the best configs and report.html into the search's folder."""
    _write_table(found)
    for kind in found.best:
        text = best_config(found, kind)
        write_beside(best_path(found, kind), lambda p, text=text: p.write_text(text))  # type: ignore[misc]
    write_beside(found.plan.folder / "report.html", lambda p: p.write_text(_page(found)))


def _write_table(found: Found) -> None:
    """A row per trial with its values, metrics, place on the front and config."""
    trials, space = found.trials, found.plan.space
    columns: dict[str, Any] = {
        "trial": [t.number for t in trials],
        "status": [t.status for t in trials],
        "on_front": [t.number in found.front for t in trials],
        "reason": pa.array([t.reason for t in trials], pa.string()),
        "wall_seconds": pa.array([t.metrics.get("time_total_s") for t in trials], pa.float64()),
        "training": pa.array([t.metrics.get(TRAINING) for t in trials], pa.string()),
    }
    for name in (*OBJECTIVES, "scored"):
        columns[name] = pa.array([t.metrics.get(name) for t in trials], pa.float64())
    for path in space.distributions:
        columns[path] = _column([t.value(path) for t in trials])
    columns["config"] = pa.array([_config_text(found.plan, t) for t in trials], pa.string())
    file = found.plan.folder / "search.parquet"
    write_beside(file, lambda p: pq.write_table(pa.table(columns), p, compression="zstd"))


def _config_text(plan: Plan, trial: Trial) -> str | None:
    try:
        return dump_config(plan.space.config_of(trial.suggested))
    except UserError:
        return None


def _column(values: list[Any]) -> pa.Array:
    if all(type(v) in (int, float) for v in values):
        return pa.array(values)
    return pa.array([value_text(v) for v in values], pa.string())


def value_text(value: Any) -> str:
    """A field's value as tables show it."""
    return f"{value:.4g}" if isinstance(value, float) else as_yaml(value)


def best_path(found: Found, kind: str) -> Path:
    """Where the best config of a kind is written."""
    return found.plan.folder / "best" / f"{kind}.yaml"


def best_config(found: Found, kind: str) -> str:
    """The best trial's config as YAML that runs as it is, in a folder of its own beside the search's."""
    plan, number = found.plan, found.best[kind]
    trial = next(t for t in found.trials if t.number == number)
    config = plan.space.config_of(trial.suggested)
    config = replace(config, name=f"{plan.tree.name}-{kind}", storage=plan.tree.storage)
    reached = ", ".join(f"{o.title} {o.text(trial.metrics[o.name])}" for o in plan.objectives)
    head = f"# Trial {number} of search {plan.tree.name}: {reached}.\n"
    path = shlex.quote(str(best_path(found, kind)))
    return head + f"# spikeprune {plan.stages} {path}\n" + dump_config(config)


def print_trial(plan: Plan, trial: Any, before: int, console: Console) -> None:
    """A line for one of Tune's trials that has just ended; ``before`` is its launch's first number."""
    done = trial_of(trial, before, ended=True)
    values = ", ".join(f"{path} {value_text(done.value(path))}" for path in plan.space.distributions)
    if done.status == "finished":
        told = ", ".join(f"{o.name} {o.text(done.metrics[o.name])}" for o in plan.objectives)
    else:
        told = done.status + (f" ({done.reason})" if done.reason else "")
    console.print(f"trial {done.number}: {values}: {told}", highlight=False, soft_wrap=True)


def print_results(found: Found, console: Console) -> None:
    """The front as a table, how the trials ended, and where everything lies."""
    plan = found.plan
    headings, rows = _listed(found, front=True)
    console.print(table(f"search {plan.tree.name}: Pareto front", headings, rows[:FEW], left=0))
    if len(rows) > FEW:
        console.print(f"and {len(rows) - FEW} more on the front; search.parquet has all")
    console.print(_counts(found), highlight=False)
    for trial in found.trials:
        if trial.status == "failed":
            console.print(f"trial {trial.number} failed: {trial.reason}", highlight=False, soft_wrap=True)
    for kind in found.best:
        console.print(f"best by {kind}: {best_path(found, kind)}", highlight=False, soft_wrap=True)
    console.print(f"report: {plan.folder / 'report.html'}", highlight=False, soft_wrap=True)


def _listed(found: Found, *, front: bool) -> tuple[list[str], list[list[str]]]:
    """Headings and rows: of the trials on the front, the best first, or of all others, by number."""
    paths, objectives = list(found.plan.space.distributions), found.plan.objectives
    first, rows = objectives[0], []
    trials = [t for t in found.trials if (t.number in found.front) == front]
    for t in sorted(trials, key=lambda t: first.sign * t.metrics[first.name] if front else t.number):
        values = [value_text(t.value(path)) for path in paths]
        reached = [o.text(t.metrics[o.name]) if o.name in t.metrics else "" for o in objectives]
        best = ", ".join(kind for kind, number in found.best.items() if number == t.number)
        rows.append([str(t.number), *values, *reached, best if front else t.reason or t.status])
    return ["trial", *paths, *(o.title for o in objectives), "best" if front else "status"], rows


def _counts(found: Found) -> str:
    counts = Counter(t.status for t in found.trials)
    names = {"finished": "finished", "stopped": "stopped early", "failed": "failed", "open": "left to do"}
    parts = [f"{counts[status]} {name}" for status, name in names.items() if counts[status]]  # type: ignore[index]
    trained = len({t.metrics[TRAINING] for t in found.finished})
    trainings = "one training" if trained == 1 else f"{trained} different trainings"
    return f"{len(found.trials)} trials: {', '.join(parts)}; {trainings} before pruning"


def _page(found: Found) -> str:
    plan = found.plan
    parts = [f"<p>{escape(_counts(found))}.</p>"]
    for title, front in (("Pareto front", True), ("Other trials", False)):
        headings, rows = _listed(found, front=front)
        if rows:
            parts.append(f'<h2>{title}</h2><div class="wide">{html_table(headings, rows)}</div>')
        if rows and front:
            parts += [html_figure(name, svg) for name, svg in figures(found.study, plan.objectives)]
    parts += [html_details(f"Best by {kind}", best_config(found, kind)) for kind in found.best]
    parts.append(f"<h2>Definitions</h2>{html_list((*DEFINITIONS.items(), *_EXPLAINED))}")
    parts.append(html_details("Settings", dump_config(plan.tree)))
    return html_page(f"spikeprune search: {plan.tree.name}", "\n".join(parts))


def figures(study: Any, objectives: Sequence[Objective]) -> list[tuple[str, str]]:
    """Titles and SVGs."""
    import matplotlib.pyplot as plt
    import optuna
    import optuna.visualization.matplotlib as draw

    drawn: list[tuple[str, Any]] = []
    with warnings.catch_warnings(), plt.rc_context():  # Optuna sets a style for the whole process
        warnings.simplefilter("ignore")
        study.set_metric_names([o.title for o in objectives])
        for (i, a), (j, b) in combinations(enumerate(objectives), 2):
            axes = draw.plot_pareto_front(
                study,
                targets=lambda t, i=i, j=j: (t.values[j], t.values[i]),  # type: ignore[misc]
                target_names=[b.title, a.title],
            )
            drawn.append((f"{a.title[0].upper()}{a.title[1:]} and {b.title}", axes))
        share = min(0.5, max(0.1, 5 / len(study.trials)))  # the best: a tenth, or five (Optuna's advice)
        best = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=share)
        only = objectives[0].title
        if len(objectives) == 1:
            drawn.append((f"Trials by {only}", draw.plot_optimization_history(study, target_name=only)))
        drawn.append(("Parallel coordinates", draw.plot_parallel_coordinate(study, target_name=only)))
        for i, o in enumerate(objectives if len(study.trials) >= LEAST_TRIALS else ()):
            axes = draw.plot_param_importances(
                study,
                evaluator=best,
                target=lambda t, i=i, sign=o.sign: sign * t.values[i],  # type: ignore[misc]
                target_name=o.title,
            )
            drawn.append((f"Importance of each field for {o.title}", axes))
        for _, axes in drawn:
            axes.set_title("")
            axes.figure.set_size_inches(9, 4.5)
            axes.figure.tight_layout()
        svgs = [(title, to_svg(axes.figure)) for title, axes in drawn]
        plt.close("all")
    return svgs
