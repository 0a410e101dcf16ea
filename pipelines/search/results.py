"""What a search found: the front, the best config of each kind as YAML, a table and one HTML page."""

from collections import Counter
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from pipelines.config_io import dump_config
from pipelines.errors import UserError
from pipelines.report.page import DEFINITIONS, html_figure, html_page, html_table
from pipelines.search.config import SearchTree, Stages
from pipelines.search.front import best_of, costs_of
from pipelines.search.importance import importance
from pipelines.search.journal import Journal, Record, front_numbers, value_text, write_table
from pipelines.search.plots import front_plots, importance_plot, parallel_plot
from pipelines.search.search import open_search, read_search
from pipelines.storage.atomic import write_beside

FEW = 40  # trials that the terminal's table shows


@dataclass(frozen=True, kw_only=True)
class Found:
    """A search's trials and what stands out among them."""

    tree: SearchTree
    journal: Journal
    stages: Stages
    records: list[Record]
    front: set[int]
    """Numbers of the trials on the Pareto front."""
    best: dict[str, int]
    """Number of the best trial of each kind: an objective's name, or balanced."""

    @property
    def finished(self) -> list[Record]:
        """The trials that can be compared."""
        return [r for r in self.records if r.status == "finished"]


def read_results(folder: Path) -> Found:
    """What a search's folder holds by now.

    Raises:
        UserError: it is not a search's folder, or no trial has ended yet.
    """
    tree = read_search(folder)
    journal, stages = open_search(tree)
    records = journal.records()
    if all(r.status == "open" for r in records):
        raise UserError(str(folder), "has no trial that ended yet; --resume goes on with it")
    finished = [r for r in records if r.status == "finished"]
    best = {}
    if finished:
        picks = best_of(costs_of([r.metrics for r in finished], journal.objectives), journal.objectives)
        best = {kind: finished[i].number for kind, i in picks.items()}
    front = front_numbers(records, journal.objectives)
    return Found(tree=tree, journal=journal, stages=stages, records=records, front=front, best=best)


def write_results(found: Found) -> None:
    """Write search.parquet, the best configs and report.html into the search's folder."""
    write_table(found.journal, found.records)
    for kind, number in found.best.items():
        text = best_config(found, kind, number)
        write_beside(best_path(found, kind), lambda p, text=text: p.write_text(text))  # type: ignore[misc]
    write_beside(found.journal.folder / "report.html", lambda p: p.write_text(_page(found)))


def best_path(found: Found, kind: str) -> Path:
    """Where the best config of a kind is written."""
    return found.journal.folder / "best" / f"{kind}.yaml"


def best_config(found: Found, kind: str, number: int) -> str:
    """A trial's config as YAML that runs as it is, in a folder of its own beside the search's."""
    record = next(r for r in found.records if r.number == number)
    config = replace(
        found.journal.space.config_of(record.values),
        name=f"{found.tree.name}-{kind}",
        storage=found.tree.storage,
    )
    reached = ", ".join(f"{o.title} {o.text(record.metrics[o.name])}" for o in found.journal.objectives)
    command = f"spikeprune {found.stages} {best_path(found, kind)}"
    head = f"# Trial {number} of search {found.tree.name}: {reached}.\n# {command}\n"
    return head + dump_config(config)


def print_results(found: Found, console: Console) -> None:
    """The front as a table, how the trials ended, and where everything lies."""
    objectives, paths = found.journal.objectives, found.journal.space.paths
    table = Table(title=f"search {found.tree.name}: Pareto front", title_justify="left")
    for heading in ("trial", *paths, *(o.title for o in objectives), "best"):
        table.add_column(heading, justify="left" if heading == "best" else "right")
    shown = _ordered(found, on_front=True)
    for record in shown[:FEW]:
        table.add_row(*_cells(found, record), _kinds(found, record))
    console.print(table)
    if len(shown) > FEW:
        console.print(f"and {len(shown) - FEW} more on the front; search.parquet has all")
    console.print(_counts(found), highlight=False)
    for record in found.records:
        if record.status == "failed":
            console.print(f"trial {record.number} failed: {record.reason}", highlight=False, soft_wrap=True)
    for kind in found.best:
        console.print(f"best by {kind}: {best_path(found, kind)}", highlight=False, soft_wrap=True)
    console.print(f"report: {found.journal.folder / 'report.html'}", highlight=False, soft_wrap=True)


def _ordered(found: Found, on_front: bool) -> list[Record]:
    first = found.journal.objectives[0]
    chosen = [r for r in found.finished if (r.number in found.front) == on_front]
    return sorted(chosen, key=lambda r: first.cost(r.metrics[first.name]))


def _cells(found: Found, record: Record) -> list[str]:
    values = [value_text(record.values[path]) for path in found.journal.space.paths]
    return [str(record.number), *values, *(o.text(record.metrics[o.name]) for o in found.journal.objectives)]


def _kinds(found: Found, record: Record) -> str:
    return ", ".join(kind for kind, number in found.best.items() if number == record.number)


def _counts(found: Found) -> str:
    counts: Counter[str] = Counter(r.status for r in found.records)
    names = {"finished": "finished", "stopped": "stopped early", "failed": "failed", "open": "left to do"}
    parts = [f"{counts[status]} {name}" for status, name in names.items() if counts[status]]
    trained = len({name for r in found.records for name in r.stages if name.startswith("train-")})
    trainings = "one training" if trained == 1 else f"{trained} different trainings"
    return f"{len(found.records)} trials: {', '.join(parts)}; {trainings} before pruning"


def _page(found: Found) -> str:
    journal = found.journal
    space, objectives, finished = journal.space, journal.objectives, found.finished
    headings = ("trial", *space.paths, *(o.title for o in objectives))
    parts = [f"<p>{escape(_counts(found))}.</p>"]
    if finished:
        rows = [[*_cells(found, r), _kinds(found, r)] for r in _ordered(found, on_front=True)]
        parts.append(f'<h2>Pareto front</h2><div class="wide">{html_table((*headings, "best"), rows)}</div>')
        parts += [html_figure(t, svg) for t, svg in front_plots(finished, found.front, objectives)]
        title = (
            "Parallel coordinates: searched fields, then objectives (better is higher); the front in colour"
        )
        parts.append(html_figure(title, parallel_plot(finished, found.front, space, objectives)))
        parts.append(html_figure("Share of an objective explained by each field alone", _importance(found)))
    if rows := [_cells(found, r) for r in _ordered(found, on_front=False)]:
        parts.append(f'<h2>Other trials</h2><div class="wide">{html_table(headings, rows)}</div>')
    if others := [r for r in found.records if r.status != "finished"]:
        rows = [
            [
                str(r.number),
                *(value_text(r.values[path]) for path in space.paths),
                r.status if r.status != "open" else "left to do",
                r.reason or "",
            ]
            for r in others
        ]
        table = html_table(("trial", *space.paths, "status", "reason"), rows)
        parts.append(f'<h2>Trials without a result</h2><div class="wide">{table}</div>')
    for kind, number in found.best.items():
        text = escape(best_config(found, kind, number))
        parts.append(f"<details><summary>Best by {escape(kind)}</summary><pre>{text}</pre></details>")
    definitions = "".join(f"<dt><b>{escape(k)}</b></dt><dd>{escape(v)}</dd>" for k, v in DEFINITIONS)
    settings = escape(dump_config(found.tree))
    parts.append(f"<h2>Definitions</h2><dl>{definitions}{_EXPLAINED}</dl>")
    parts.append(f"<details><summary>Settings</summary><pre>{settings}</pre></details>")
    return html_page(f"spikeprune search: {found.tree.name}", "\n".join(parts))


_EXPLAINED = (
    "<dt><b>Pareto front</b></dt><dd>finished trials that no other trial equals or beats in every objective "
    "while beating it in one</dd>"
    "<dt><b>balanced</b></dt><dd>the trial on the front nearest to the best of every objective, each scaled "
    "by the front's extent</dd>"
    "<dt><b>share explained</b></dt><dd>adjusted R&sup2; of a fit of the objective on that field alone "
    "(quadratic, or a mean per listed value); fields can act together, so shares need not add up</dd>"
)


def _importance(found: Found) -> str:
    finished = found.finished
    shares = [
        (
            o.title,
            [
                importance(
                    d,
                    [r.values[d.path] for r in finished],
                    np.array([r.metrics[o.name] for r in finished]),
                )
                for d in found.journal.space.dimensions
            ],
        )
        for o in found.journal.objectives
    ]
    return importance_plot(shares, found.journal.space.paths)
