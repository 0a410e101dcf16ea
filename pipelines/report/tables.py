"""The run's tables in the terminal."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console, RenderableType
from rich.table import Table

from pipelines.report.summary import PhaseSummary, RunSummary
from pipelines.storage.sync import named
from pipelines.training import pruned_figures
from pipelines.training.pruned_figures import figure_cells


def phase_cells(p: PhaseSummary) -> tuple[str, ...]:
    """A phase as text, under `HEADINGS`."""
    return (
        p.title,
        f"{p.test_accuracy:.2%}" if p.test_accuracy is not None else "-",
        f"{p.val_accuracy:.2%}" if p.val_accuracy is not None else "-",
        f"{p.examples:,}" if p.examples else "-",
        f"{p.seconds:.1f}" if p.examples else "-",
        f"{p.density:.1%}" if p.density is not None else "-",
        f"{p.synops:,.0f}" if p.synops is not None else "-",
    )


VALIDATION = "validation accuracy"
HEADINGS = (
    "",
    "test accuracy",
    VALIDATION,
    "examples processed",
    "training seconds",
    "density",
    "SynOps per inference",
)


def phase_rows(runs: Sequence[RunSummary]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Headings, and a row per phase of each run, after its run's name where there are several.

    Without validation in any of them its column is left out.
    """
    validated = any(p.val_accuracy is not None for run in runs for p in run.phases)
    shown = [i for i, heading in enumerate(HEADINGS) if heading != VALIDATION or validated]
    rows = [(run.config.name, phase_cells(p)) for run in runs for p in run.phases]
    several = len(runs) > 1
    return (
        (*(("run", "phase") if several else ("",)), *(HEADINGS[i] for i in shown[1:])),
        [(*((name,) if several else ()), *(cells[i] for i in shown)) for name, cells in rows],
    )


def phase_table(runs: Sequence[RunSummary]) -> RenderableType:
    """One row per run and phase."""
    headings, rows = phase_rows(runs)
    table = Table(title=f"run {runs[0].config.name}" if len(runs) == 1 else None, title_justify="left")
    for heading in headings:
        table.add_column(heading, justify="left" if heading in ("", "run", "phase") else "right")
    for row in rows:
        table.add_row(*row)
    return table


def pruned_rows(phases: Sequence[PhaseSummary]) -> list[tuple[str, ...]]:
    """Pruned networks in the field's units, under ``("", *pruned_figures.HEADINGS)``."""
    return [(p.title, *figure_cells(p.figures)) for p in phases if p.figures is not None]


def print_comparison(runs: Sequence[RunSummary], page: Path, console: Console) -> None:
    """One row per run and phase, and where the page lies."""
    console.print(phase_table(runs))
    console.print(f"report: {named(page)}", highlight=False, soft_wrap=True)


def print_report(run: RunSummary, page: Path, console: Console) -> None:
    """The table and where everything lies."""
    console.print(phase_table([run]))
    if rows := pruned_rows(run.phases):
        table = Table(title="pruned network, beside its dense one", title_justify="left")
        for i, heading in enumerate(("", *pruned_figures.HEADINGS)):
            table.add_column(heading, justify="left" if i == 0 else "right")
        for row in rows:
            table.add_row(*row)
        console.print(table)
    console.print(f"report: {named(page)}", highlight=False, soft_wrap=True)
