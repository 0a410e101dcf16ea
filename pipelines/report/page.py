"""One HTML file that needs nothing else: table, plots, definitions, config."""

from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.config_io import dump_config
from pipelines.data.files import write_beside
from pipelines.report.plots import accuracy_plot, inclusion_plot, layers_plot, variance_plot
from pipelines.report.summary import RunSummary
from pipelines.report.tables import HEADINGS, phase_cells

if TYPE_CHECKING:
    from collections.abc import Sequence

STYLE = """
:root { color-scheme: light dark; --ink: #1b1b1b; --paper: #fff; --line: #d0d0d0 }
@media (prefers-color-scheme: dark) { :root { --ink: #e8e8e8; --paper: #181818; --line: #444 } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
       max-width: 46rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums }
th, td { border-bottom: 1px solid var(--line); padding: .35rem .5rem; text-align: right }
th:first-child, td:first-child { text-align: left }
.wide { overflow-x: auto }
figure { margin: 2rem 0 } figcaption { font-size: .9rem; opacity: .8 }
svg { width: 100%; height: auto }
svg text { fill: var(--ink) !important } svg path[style*="stroke: #000000"] { stroke: var(--ink) !important }
svg use[style*="stroke: #000000"] { stroke: var(--ink) !important; fill: var(--ink) !important }
pre { overflow-x: auto; border: 1px solid var(--line); padding: .75rem; font-size: .85rem }
@media print { body { max-width: none } details { display: none } }
"""

DEFINITIONS = (
    (
        "test accuracy",
        "share of held-out examples whose time-averaged logits peak at their label, at the phase's end",
    ),
    (
        "examples processed",
        "examples trained on, summed over epochs; scoring passes are listed below the table",
    ),
    (
        "training seconds",
        "wall time of scoring, selecting, optimiser steps and batch norm re-estimation, without evaluation",
    ),
    ("density", "surviving weights / all weights of the weight layers"),
    (
        "SynOps per inference",
        "nonzero inputs times the surviving weights they meet, over all timesteps, mean over test examples; "
        "a first layer on analog pixels counts multiply-accumulates",
    ),
)


def write_page(run: RunSummary) -> Path:
    """Write ``report.html`` into the run's folder.

    Returns:
        its path.
    """
    path = run.folder / "report.html"
    write_beside(path, lambda p: p.write_text(_page(run)))
    return path


def html_page(title: str, body: str) -> str:
    """A whole HTML document that fetches nothing; ``title`` is text, ``body`` is HTML."""
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">
<style>{STYLE}</style></head><body>
<h1>{escape(title)}</h1>
{body}
</body></html>
"""


def html_figure(title: str, svg: str) -> str:
    """A plot with its caption."""
    return (
        f'<figure role="img" aria-label="{escape(title)}">{svg}'
        f"<figcaption>{escape(title)}</figcaption></figure>"
    )


def _page(run: RunSummary) -> str:
    plots = (
        ("Accuracy over examples processed", accuracy_plot(run)),
        ("Inclusion probabilities in the last pruned epoch", inclusion_plot(run)),
        ("Gradient variance of the design on a probe", variance_plot(run)),
        ("Density and SynOps per layer", layers_plot(run)),
    )
    figures = "".join(html_figure(title, svg) for title, svg in plots if svg is not None)
    definitions = "".join(f"<dt><b>{escape(k)}</b></dt><dd>{escape(v)}</dd>" for k, v in DEFINITIONS)
    body = f"""<div class="wide">{html_table(HEADINGS, [phase_cells(p) for p in run.phases])}</div>
{"".join(f"<p>{escape(line)}</p>" for line in _costs(run))}
{figures}
<h2>Definitions</h2><dl>{definitions}</dl>
<details><summary>Config</summary><pre>{escape(dump_config(run.config))}</pre></details>"""
    return html_page(f"spikeprune: {run.config.name}", body)


def _costs(run: RunSummary) -> list[str]:
    """What data pruning cost and saved, beside what theory allows and what uniform sampling could do."""
    lines = []
    scored = [f"{p.scored:,} ({p.title})" for p in run.phases if p.scored]
    if scored:
        lines.append(f"Examples scored in passes of their own: {', '.join(scored)}.")
    full, pruned = run.of("baseline"), run.of("train")
    costs = next((r for r in run.records if r["phase"] == "train" and "theoretical_speedup" in r), None)
    if full is not None and pruned is not None and costs is not None and pruned.seconds > 0:
        lines.append(
            f"{pruned.title}: trained {full.seconds / pruned.seconds:.2f} times as fast as on full data; "
            "examples and "
            f"scoring passes alone would make it {costs['theoretical_speedup']:.2f}. "
            f"Uniform sampling without scores costs as much at ratio {costs['equal_compute_ratio']:.2f}."
        )
    return lines


def html_table(headings: "Sequence[str]", rows: "Sequence[Sequence[str]]") -> str:
    """A table of texts."""
    head = "".join(f"<th scope=col>{escape(h)}</th>" for h in headings)
    body = "".join("<tr>" + "".join(f"<td>{escape(c)}</td>" for c in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
