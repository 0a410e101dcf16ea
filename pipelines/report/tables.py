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
    """A phase as text: title, accuracy, examples, seconds, density, SynOps."""
    return (
        p.title,
        f"{p.accuracy:.2%}",
        f"{p.examples:,}" if p.examples else "-",
        f"{p.seconds:.1f}" if p.examples else "-",
        f"{p.density:.1%}" if p.density is not None else "-",
        f"{p.synops:,.0f}" if p.synops is not None else "-",
    )


HEADINGS = ("", "test accuracy", "examples processed", "training seconds", "density", "SynOps per inference")


def phase_table(name: str, phases: Sequence[PhaseSummary]) -> RenderableType:
    """One row per phase."""
    table = Table(title=f"run {name}", title_justify="left")
    for i, heading in enumerate(HEADINGS):
        table.add_column(heading, justify="left" if i == 0 else "right")
    for p in phases:
        table.add_row(*phase_cells(p))
    return table


def pruned_rows(phases: Sequence[PhaseSummary]) -> list[tuple[str, ...]]:
    """Pruned networks in the field's units, under ``("", *pruned_figures.HEADINGS)``."""
    return [(p.title, *figure_cells(p.figures)) for p in phases if p.figures is not None]


def print_comparison(runs: Sequence[RunSummary], page: Path, console: Console) -> None:
    """One row per run and phase, and where the page lies."""
    table = Table(title_justify="left")
    for i, heading in enumerate(("run", "phase", *HEADINGS[1:])):
        table.add_column(heading, justify="left" if i < 2 else "right")
    for run in runs:
        for p in run.phases:
            table.add_row(run.config.name, *phase_cells(p))
    console.print(table)
    console.print(f"report: {named(page)}", highlight=False, soft_wrap=True)


def print_report(run: RunSummary, page: Path, console: Console) -> None:
    """The table and where everything lies."""
    console.print(phase_table(run.config.name, run.phases))
    if rows := pruned_rows(run.phases):
        table = Table(title="pruned network, beside its dense one", title_justify="left")
        for i, heading in enumerate(("", *pruned_figures.HEADINGS)):
            table.add_column(heading, justify="left" if i == 0 else "right")
        for row in rows:
            table.add_row(*row)
        console.print(table)
    console.print(f"report: {named(page)}", highlight=False, soft_wrap=True)
