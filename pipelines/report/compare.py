"""Criteria side by side: one trained network pruned by each at several levels, without retraining."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby, product
from pathlib import Path
from typing import Any, get_args

from rich.console import Console
from rich.progress import TimeRemainingColumn

from cluster.errors import UserError
from pipelines.config import Config, CriterionName
from pipelines.config.load import dump_config, load_config
from pipelines.config.plugins import own_failures_named
from pipelines.console import bars, messages, table
from pipelines.report.network import LOCAL, local_worker
from pipelines.report.page import DEFINITIONS, html_details, html_figure, html_list, html_page, html_table
from pipelines.report.plots import SPLITS, new_figure, to_svg
from pipelines.runs.preflight import check_data, check_same_validation
from pipelines.runs.run import checkpoint_of
from pipelines.runs.run_folder import CONFIG, read_config
from pipelines.storage.atomic import write_beside, write_json
from pipelines.storage.sync import named
from pipelines.training.evaluation import (
    FIGURE_HEADINGS,
    evaluate,
    figure_cells,
    measure_activity,
    pruned_figures,
    reestimate_norm,
)
from pipelines.training.phases import HeldOut
from pipelines.training.prune import Calibrated, Sample, allocate_weights, calibrate, draw_sample
from pipelines.training.worker import Worker
from pruning.weights.criteria import Objective, needs

LEVELS: dict[Objective, tuple[float, ...]] = {"weights": (0.8, 0.9, 0.95), "synops": (0.5, 0.2, 0.1)}
"""By default: sparsities, or shares of the SynOps to keep."""

# Okabe and Ito's palette, and markers that tell apart what repeats a colour.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_MARKERS = ("o", "s", "^")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What one criterion made of the network at one level."""

    criterion: str
    level: float
    """Share of weights removed, or of SynOps kept at the calibrated activity, as asked for."""
    loss: float
    """Loss per example of the split that is measured, batch norm re-estimated."""
    figures: dict[str, float]
    """Accuracy, connectivity, SynOps and energy (`pipelines.training.evaluation.pruned_figures`)."""
    budget: float
    """Distortion spent, in the criterion's own units."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """All outcomes of one network."""

    checkpoint: Path
    config: Config
    objective: Objective
    split: HeldOut
    """What accuracy is measured on: validation, if the config has any."""
    dense: dict[str, float]
    """Figures of the network as it was, as an `Outcome`'s."""
    calibration_spread: dict[str, float] | None
    """By layer, relative standard error of the coefficients (see `pipelines.training.prune.Calibrated`)."""
    outcomes: tuple[Outcome, ...]
    """By level, and by criterion in the order that was asked for."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "checkpoint": self.checkpoint.name,
            "objective": self.objective,
            "split": self.split,
            "dense": {name: self.dense[name] for name in ("accuracy", "synops", "macs", "energy_nj")},
            "calibration_spread": self.calibration_spread,
            "outcomes": [asdict(o) for o in self.outcomes],
        }


@own_failures_named()
def compare(
    source: Path,
    *,
    criteria: Sequence[str],
    levels: Sequence[float] = (),
    objective: Objective = "weights",
    overrides: Mapping[str, str] | None = None,
    console: Console | None = None,
) -> Comparison:
    """Prune a trained network by every criterion at every level, in this process, without retraining.

    One calibration serves all; each starts from the dense network and has its batch norm re-estimated.

    Args:
        source: a run's folder, or a checkpoint file below one.
        criteria: names of criteria.
        levels: for ``weights`` sparsities, for ``synops`` shares of the SynOps to keep, in (0, 1);
            `LEVELS` when there are none.
        objective: what is saved.
        overrides: config fields that differ from the run's.
        console: where progress is shown.

    Raises:
        UserError: not a run or checkpoint, an unknown criterion, a level that cannot be reached, or bad data.
    """
    criteria, levels = list(dict.fromkeys(criteria)), sorted(set(levels or LEVELS[objective]))
    _check(criteria, levels)
    checkpoint, folder = checkpoint_of(source)
    config = load_config(folder / CONFIG, {**LOCAL, **(overrides or {})})
    check_same_validation(read_config(folder), config)
    worker = local_worker(config, checkpoint, check_data(config))
    split = worker.spec.watched
    with bars(console or messages(), "{task.completed}/{task.total}", TimeRemainingColumn()) as bar:
        task = bar.add_task("calibrating", total=1 + len(levels) * len(criteria))
        sample = draw_sample(worker)
        calibrated = calibrate(worker, sample, needs(*criteria))
        dense = evaluate(worker, split)
        activity = measure_activity(worker, split)
        of_dense: dict[str, Any] = {"dense_accuracy": dense[f"{split}_accuracy"], "dense_activity": activity}
        weights = {name: value.clone() for name, value in worker.model.state_dict().items()}
        bar.advance(task)
        outcomes = []
        for level, criterion in product(levels, criteria):
            bar.update(task, description=f"{criterion} at {level:g}")
            worker.model.load_state_dict(weights)
            outcomes.append(_outcome(worker, sample, calibrated, criterion, level, objective, of_dense))
            bar.advance(task)
    return Comparison(
        checkpoint=checkpoint,
        config=config,
        objective=objective,
        split=split,
        dense=pruned_figures(dense[f"{split}_accuracy"], activity, **of_dense),
        calibration_spread=calibrated.spread,
        outcomes=tuple(outcomes),
    )


def write_comparison(comparison: Comparison, folder: Path) -> tuple[Path, Path]:
    """Write ``compare.json`` and ``compare.html`` (``compare-synops`` for that objective) into ``folder``;
    their paths."""
    name = "compare" if comparison.objective == "weights" else f"compare-{comparison.objective}"
    values, page = folder / f"{name}.json", folder / f"{name}.html"
    write_json(values, comparison.to_dict())
    write_beside(page, lambda p: p.write_text(_page(comparison)))
    return values, page


def print_comparison(comparison: Comparison, values: Path, page: Path, console: Console) -> None:
    """A row per level and criterion, the dense network first, and where the files lie."""
    made = table(_title(comparison), _headings(comparison))
    for _, rows in groupby(_rows(comparison), key=lambda cells: cells[1]):
        made.add_section()
        for cells in rows:
            made.add_row(*cells)
    console.print(made)
    console.print(f"values: {named(values)}\nplot: {named(page)}", highlight=False, soft_wrap=True)


def _check(criteria: Sequence[str], levels: Sequence[float]) -> None:
    known = get_args(CriterionName)
    if not criteria:
        raise UserError("--criteria", f"needs at least one of {', '.join(known)}")
    for name in criteria:
        if name not in known:
            raise UserError("--criteria", f"{name!r} is unknown; choose from {', '.join(known)}")
    for level in levels:
        if not 0 < level < 1:
            raise UserError("--levels", f"{level:g} is not possible; each must be in (0, 1)")


def _outcome(
    worker: Worker,
    sample: Sample,
    calibrated: Calibrated,
    criterion: str,
    level: float,
    objective: Objective,
    of_dense: Mapping[str, Any],
) -> Outcome:
    split = worker.spec.watched
    target = {"sparsity" if objective == "weights" else "synops_fraction": level}
    other = {"criterion": criterion, "objective": objective}
    try:
        allocation = allocate_weights(worker, calibrated.calibration, target, **other)
    except ValueError as error:
        raise UserError("--levels", f"{criterion} at {level:g}: {error}") from None
    allocation.masks.apply_(worker.model)
    reestimate_norm(worker, sample.rows, sample.norm_ids)
    tested = evaluate(worker, split)
    activity = measure_activity(worker, split)
    return Outcome(
        criterion=criterion,
        level=level,
        loss=tested[f"{split}_loss"],
        figures=pruned_figures(tested[f"{split}_accuracy"], activity, **of_dense),
        budget=allocation.budget,
    )


def _title(comparison: Comparison) -> str:
    name = SPLITS[comparison.split]
    return f"{comparison.config.name}: criteria compared by {name} accuracy, one-shot, not retrained"


def _headings(comparison: Comparison) -> tuple[str, ...]:
    level = "sparsity" if comparison.objective == "weights" else "SynOps left"
    return ("criterion", level, *FIGURE_HEADINGS)


def _rows(comparison: Comparison) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [("dense", "-", *figure_cells(comparison.dense))]
    return rows + [(o.criterion, f"{o.level:.4g}", *figure_cells(o.figures)) for o in comparison.outcomes]


def _page(comparison: Comparison) -> str:
    names = (f"{SPLITS[comparison.split]} accuracy", "density", "SynOps per inference", "energy")
    return html_page(
        f"spikeprune: {_title(comparison)}",
        f"""<div class="wide">{html_table(_headings(comparison), _rows(comparison))}</div>
<p>Each row prunes the same trained network anew and re-estimates its batch norm statistics; retraining
changes the accuracies, and often their order.</p>
{html_figure("Accuracy over surviving weights, and over SynOps; dashed: dense", _plot(comparison))}
<h2>Definitions</h2>{html_list((name, DEFINITIONS[name]) for name in names)}
{html_details("Config", dump_config(comparison.config))}""",
    )


def _plot(comparison: Comparison) -> str:
    figure, axes = new_figure(2, 3.4)
    for i, criterion in enumerate(dict.fromkeys(o.criterion for o in comparison.outcomes)):
        of = [o for o in comparison.outcomes if o.criterion == criterion]
        style = {"color": _COLOURS[i % len(_COLOURS)], "marker": _MARKERS[i // len(_COLOURS) % 3]}
        for a, field in zip(axes, ("connectivity", "synops_of_dense"), strict=True):
            xs, ys = ([o.figures[name] for o in of] for name in (field, "accuracy"))
            a.plot(xs, ys, markersize=4, label=criterion, **style)
    for a, label in zip(axes, ("density", "SynOps over dense"), strict=True):
        a.set_xlabel(label)
        a.axhline(comparison.dense["accuracy"], color="gray", linestyle="--", linewidth=1)
    axes[0].set_ylabel(f"{SPLITS[comparison.split]} accuracy")
    axes[0].legend(frameon=False)
    return to_svg(figure)
