"""A config over several seeds: its runs, and their mean, spread and paired differences."""

from collections.abc import Sequence
from dataclasses import replace
from math import sqrt
from pathlib import Path
from statistics import mean, stdev
from typing import Any, Literal

import numpy as np
from rich.console import Console

from pipelines.config import Config
from pipelines.config.load import dump_config
from pipelines.console import table
from pipelines.errors import UserError
from pipelines.report.page import (
    DEFINITIONS,
    html_details,
    html_figure,
    html_links,
    html_list,
    html_page,
    html_table,
)
from pipelines.report.plots import seeds_plot
from pipelines.report.summary import RunSummary, summarise
from pipelines.runs.run import run
from pipelines.storage.atomic import write_beside, write_json
from pipelines.storage.paths import below

BRACKETS = "in brackets: 95 % t-interval of the mean difference, paired by seed"
DRAWN = (
    "Mean over the seeds, in a band from the lowest to the highest, after every epoch: on validation "
    "examples, or on test examples where there are none. Every line is a phase, which starts from nothing "
    "or from the pruned network."
)
FIGURES = ("test_accuracy", "val_accuracy", "examples", "seconds", "density", "synops")
"""Of a phase's summary, shown over the seeds."""


def run_seeds(config: Config, command: Literal["run", "train"], seeds: int, *, profile: bool) -> list[Path]:
    """Run a config with the seeds from its own on, one after the other, or what is left of them.

    Returns:
        the runs' folders: the config's name with ``-seed-0``, ...
    """
    if seeds < 2:
        raise UserError("--seeds", f"{seeds} is not possible; it must be at least 2, to tell a spread")
    configs = [
        replace(config, seed=seed, name=f"{config.name}-seed-{seed}")
        for seed in range(config.seed, config.seed + seeds)
    ]
    return [run(one, command, resume=True, profile=profile) for one in configs]


def over_seeds(folders: Sequence[Path]) -> dict[str, Any]:
    """Figures of every phase over runs that differ in their seed, for JSON.

    ``phases`` have ``values`` (in the runs' order), ``mean`` and ``sd`` (of a sample) of each figure;
    ``differences`` have those of each later phase's test accuracy less the first phase's of the same seed,
    with the 95 % t-interval of their mean (``low``, ``high``).
    """
    runs = [summarise(folder) for folder in folders]
    first = runs[0].phases[0].phase
    return {
        "runs": [run.config.name for run in runs],
        "seeds": [run.config.seed for run in runs],
        "phases": [_phase(runs, p.phase, p.title) for p in runs[0].phases],
        "differences": [_difference(runs, p.phase, first) for p in runs[0].phases[1:]],
    }


def t_quantile(df: int, share: float = 0.95) -> float:
    """The t below which ``share`` of Student's distribution lies in absolute value."""
    theta = np.linspace(0, np.pi / 2, 100_001)  # t = sqrt(df) tan(theta) has a density of cos^(df - 1)
    density = np.cos(theta) ** (df - 1)
    within = np.cumsum(density[1:] + density[:-1])
    return sqrt(df) * float(np.tan(np.interp(share, within / within[-1], theta[1:])))


def write_seeds(folders: Sequence[Path], found: dict[str, Any], config: Config) -> Path:
    """Write ``NAME-seeds.json`` and a page, ``NAME-seeds.html``, beside the runs; the page's path."""
    write_json(Path(below(config.storage, f"{config.name}-seeds.json")), found)
    page = Path(below(config.storage, f"{config.name}-seeds.html"))
    text = _page([summarise(folder) for folder in folders], found, config)
    write_beside(page, lambda path: path.write_text(text))
    return page


def print_seeds(found: dict[str, Any], name: str, console: Console) -> None:
    """A row per phase: mean and sd, and what differs from the first phase."""
    console.print(table(_title(found, name), *_rows(found)))
    if found["differences"]:
        console.print(BRACKETS, highlight=False)


def _page(runs: Sequence[RunSummary], found: dict[str, Any], config: Config) -> str:
    plot = seeds_plot(runs)
    names = [(f"seed {run.config.seed}", f"{run.config.name}/report.html") for run in runs]
    body = f"""<div class="wide">{html_table(*_rows(found))}</div>
<p>Mean ± standard deviation over the seeds{f"; {BRACKETS}" if found["differences"] else ""}.</p>
{html_figure("Accuracy over examples processed", plot, DRAWN) if plot else ""}
<p>Reports of the runs: {html_links(names)}.</p>
<h2>Definitions</h2>{html_list(DEFINITIONS)}
{html_details("Config", dump_config(config))}"""
    return html_page(f"spikeprune: {config.name} over {len(runs)} seeds", body)


def _title(found: dict[str, Any], name: str) -> str:
    return f"{name} over {len(found['seeds'])} seeds: mean ± sd"


def _rows(found: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Headings, and a row of texts per phase."""
    phases, differences = found["phases"], {d["phase"]: d for d in found["differences"]}
    shown = [f for f in FIGURES if any(f in p for p in phases)]
    headings = ["", *(f.replace("_", " ").replace("val ", "validation ") for f in shown)]
    if differences:
        headings.append(f"points from {phases[0]['title']}")
    rows = []
    for p in phases:
        cells = [p["title"], *(_text(figure, p[figure]) if figure in p else "-" for figure in shown)]
        if differences:
            d = differences.get(p["phase"])
            cells.append(
                f"{100 * d['mean']:+.2f} [{100 * d['low']:+.2f}, {100 * d['high']:+.2f}]" if d else "-"
            )
        rows.append(cells)
    return headings, rows


def _phase(runs: Sequence[RunSummary], phase: str, title: str) -> dict[str, Any]:
    told: dict[str, Any] = {"phase": phase, "title": title}
    for figure in FIGURES:
        values = _values(runs, phase, figure)
        if None not in values:
            told[figure] = {"values": values, "mean": mean(values), "sd": stdev(values)}
    return told


def _difference(runs: Sequence[RunSummary], phase: str, first: str) -> dict[str, Any]:
    pairs = zip(_values(runs, phase, "test_accuracy"), _values(runs, first, "test_accuracy"), strict=True)
    values = [a - b for a, b in pairs]
    half = t_quantile(len(values) - 1) * stdev(values) / sqrt(len(values))
    told = {"phase": phase, "less": first, "values": values, "mean": mean(values), "sd": stdev(values)}
    return {**told, "low": mean(values) - half, "high": mean(values) + half}


def _values(runs: Sequence[RunSummary], phase: str, figure: str) -> list[Any]:
    return [getattr(run.of(phase), figure) for run in runs]


def _text(figure: str, of: dict[str, Any]) -> str:
    if figure in ("test_accuracy", "val_accuracy", "density"):
        return f"{of['mean']:.2%} ± {100 * of['sd']:.2f}"
    digits = 1 if figure == "seconds" else 0
    return f"{of['mean']:,.{digits}f} ± {of['sd']:,.{digits}f}"
