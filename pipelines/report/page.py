"""One HTML file that needs nothing else: table, plots, definitions, config."""

import re
import shlex
from collections.abc import Iterable, Sequence
from html import escape
from math import ceil
from pathlib import Path
from statistics import median

from pipelines.config.load import dump_config
from pipelines.report.plots import (
    accuracy_plot,
    inclusion_plot,
    layers_plot,
    loss_plot,
    variance_plot,
)
from pipelines.report.summary import RunSummary, different_settings, phase_rows, pruned_rows
from pipelines.runs.run_folder import read_provenance
from pipelines.storage.atomic import write_beside
from pipelines.training.evaluation import FIGURE_HEADINGS
from snn.activity import AC_PICOJOULES, MAC_PICOJOULES

STYLE = """
:root { color-scheme: light dark; --ink: #1b1b1b; --paper: #fff; --line: #d0d0d0 }
@media (prefers-color-scheme: dark) { :root { --ink: #e8e8e8; --paper: #181818; --line: #444 } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
       max-width: 46rem; margin: 2rem auto; padding: 0 1rem }
a { color: inherit }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums }
th, td { border-bottom: 1px solid var(--line); padding: .35rem .5rem; text-align: right }
th:first-child, td:first-child { text-align: left }
.wide { overflow-x: auto }
th button { all: unset; cursor: pointer; font-weight: bold } th button:focus-visible { outline: 2px solid }
th[aria-sort=ascending] button::after { content: " \\2191" }
th[aria-sort=descending] button::after { content: " \\2193" }
figure { margin: 2rem 0 } figcaption { font-size: .9rem }
svg { width: 100%; height: auto }
svg text { fill: var(--ink) !important } svg path[style*="stroke: #000000"] { stroke: var(--ink) !important }
svg use[style*="stroke: #000000"] { stroke: var(--ink) !important; fill: var(--ink) !important }
dd { overflow-wrap: anywhere }
pre { overflow-x: auto; border: 1px solid var(--line); padding: .75rem; font-size: .85rem }
@media (max-width: 40rem) { /* on a phone every row is a card, whose lines name their column */
  thead { display: none }
  tr { display: block; border-bottom: 1px solid var(--line); padding: .35rem 0 }
  td { display: flex; justify-content: space-between; gap: 1rem; border: 0; padding: 0;
       overflow-wrap: anywhere }
  td::before { content: attr(data-column); text-align: left }
  td:first-child { font-weight: bold } td:first-child::before { content: none }
}
@media print { body { max-width: none } details { display: none } }
"""

# Click or Enter on a heading sorts by it: as numbers where a cell begins with one.
SCRIPT = """
for (const table of document.querySelectorAll("table")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent || "name";
    if (!head.textContent) button.setAttribute("aria-label", "name");
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      heads.forEach(h => h.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const key = row => {
        const text = row.cells[column].textContent, number = parseFloat(text.replaceAll(",", ""));
        return isNaN(number) ? text : number;
      };
      const rows = [...table.tBodies[0].rows].sort((a, b) => {
        const x = key(a), y = key(b);
        if (typeof x !== typeof y) return typeof x === "number" ? -1 : 1;
        return (x < y ? -1 : x > y ? 1 : 0) * (down ? -1 : 1);
      });
      table.tBodies[0].append(...rows);
    });
  });
}
"""

DEFINITIONS = {
    "test accuracy": "share of test examples whose time-averaged logits peak at their label, at the phase's "
    "end; with validation, nothing before it has seen them",
    "validation accuracy": "as test accuracy, of the validation examples, by which every choice is made",
    "examples processed": "examples trained on, summed over epochs; scoring passes are listed below the "
    "table",
    "training seconds": "wall time of scoring, selecting, optimiser steps and batch norm re-estimation, "
    "without evaluation",
    "density": "surviving weights / all weights of the weight layers; also called connectivity",
    "SynOps per inference": "nonzero inputs times the surviving weights they meet, over all timesteps, mean "
    "over held-out examples; a first layer on analog pixels counts multiply-accumulates",
    "energy": f"{AC_PICOJOULES} pJ an accumulate and {MAC_PICOJOULES} pJ a multiply-accumulate (45 nm CMOS, "
    "Horowitz 2014); memory traffic is left out",
}

TEXT_PIXELS = 11
"""Size of a plot's smallest text on the narrowest screen, where the plot scrolls sideways instead."""

ABOUT = {"started": "started", "hardware": "hardware", "platform": "platform", "commit": "git_commit"}
"""Of a run's provenance, by what the page calls it."""

FIGURES = {
    "Accuracy over examples processed": "Accuracy on validation examples, or on test examples where there "
    "are none, after every epoch, over the examples trained on until then; every line is a phase, which "
    "starts from nothing (full data, data pruned) or from the pruned network.",
    "Loss": "Mean loss of an epoch's training examples, weighted as they are trained on (dotted), and of "
    "validation examples, or test examples where there are none, after the epoch (solid).",
    "Inclusion probabilities in the last pruned epoch": "How many examples had which chance of being drawn; "
    "the dashed line is the mean, the share that is kept.",
    "Variance and bias of the gradient on a probe": "Left: variance of the gradient estimate with fixed norm "
    "statistics, from exact gradients of a few hundred examples: below 1 (dashed) beats uniform sampling, 1 "
    "over the best design is the best possible. Right: bias of the mean gradient over the full gradient's "
    "norm as training computes it, with batch statistics and weights to their power.",
    "Density and SynOps per layer": "Surviving weights over all weights, and mean synaptic operations per "
    "held-out example, before and after weight pruning and retraining.",
}
"""What each plot of a run shows, by its title, in the page's order; several runs have the first alone."""


def write_page(run: RunSummary, path: Path | None = None) -> Path:
    """Write a run's page, ``report.html`` in its folder unless told otherwise; its path."""
    to = path or run.folder / "report.html"
    write_beside(to, lambda p: p.write_text(_page(run)))
    return to


def html_page(title: str, body: str) -> str:
    """A whole HTML document that fetches nothing; ``title`` is text, ``body`` is HTML."""
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">
<style>{STYLE}</style></head><body>
<h1>{escape(title)}</h1>
{body}
<script>{SCRIPT}</script></body></html>
"""


def html_figure(title: str, svg: str, definition: str = "") -> str:
    """A plot with its caption: the title, and what is drawn."""
    caption = f"<b>{escape(title)}.</b> {escape(definition)}" if definition else escape(title)
    return (
        f'<figure><div class="wide" role="img" aria-label="{escape(title)}">'
        f'<div style="min-width: {_legible_width(svg)}px">{svg}</div></div>'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _legible_width(svg: str) -> int:
    """Pixels across at which the smallest text of a plot of matplotlib is `TEXT_PIXELS` high."""
    width = float(re.search(r'viewBox="0 0 ([\d.]+)', svg)[1])  # type: ignore[index]
    return ceil(TEXT_PIXELS * width / min(map(float, re.findall(r"\bfont(?:-size)?: ([\d.]+)px", svg))))


def write_comparison(runs: Sequence[RunSummary], path: Path) -> Path:
    """Write one page of several runs side by side; its path."""
    write_beside(path, lambda p: p.write_text(_comparison(runs)))
    return path


def _comparison(runs: Sequence[RunSummary]) -> str:
    settings = different_settings([run.config for run in runs])
    table = html_table(
        ("field", *(run.config.name for run in runs)), [(field, *values) for field, values in settings]
    )
    body = f"""<div class="wide">{html_table(*phase_rows(runs))}</div>
{_figures([accuracy_plot(runs)])}
<h2>What differs</h2><div class="wide">{table}</div>
{_definitions()}"""
    return html_page(f"spikeprune: {', '.join(run.config.name for run in runs)}", body)


def _page(run: RunSummary) -> str:
    plots = [accuracy_plot([run]), loss_plot(run), inclusion_plot(run), variance_plot(run), layers_plot(run)]
    body = f"""<div class="wide">{html_table(*phase_rows([run]))}</div>
{_pruned(run)}{"".join(f"<p>{escape(line)}</p>" for line in _costs(run))}
{_figures(plots)}
{_definitions()}
{_about(run)}
{html_details("Config", dump_config(run.config))}"""
    return html_page(f"spikeprune: {run.config.name}", body)


def _pruned(run: RunSummary) -> str:
    rows = pruned_rows(run.phases)
    if not rows:
        return ""
    table = html_table(("", *FIGURE_HEADINGS), rows)
    return f'<h2>Pruned network</h2><div class="wide">{table}</div>'


def _figures(plots: Sequence[str | None]) -> str:
    """Those that there are, of plots in the order of `FIGURES`."""
    drawn = zip(FIGURES.items(), plots, strict=False)
    return "".join(html_figure(title, svg, what) for (title, what), svg in drawn if svg is not None)


def _definitions() -> str:
    return f"<h2>Definitions</h2>{html_list(DEFINITIONS.items())}"


def _about(run: RunSummary) -> str:
    """When, where and by what the run was made."""
    told = read_provenance(run.folder)
    rows = [(name, str(told[key])) for name, key in ABOUT.items() if told.get(key) is not None]
    rows += [(package, number) for package, number in told.get("versions", {}).items() if number]
    if told.get("command"):
        rows.insert(0, ("command", shlex.join(told["command"])))
    return f"<h2>About this run</h2>{html_list(rows)}" if rows else ""


def _costs(run: RunSummary) -> list[str]:
    """What data pruning cost and saved, beside what theory allows and what uniform sampling could do."""
    lines = []
    scored = [f"{p.scored:,} ({p.title})" for p in run.phases if p.scored]
    if scored:
        lines.append(f"Examples scored in passes of their own: {', '.join(scored)}.")
    epochs = []
    for p in run.phases:
        if seconds := [r["seconds"]["total"] for r in run.records_of(p.phase) if "seconds" in r]:
            epochs.append(f"{median(seconds):.1f} ({p.title})")
    if epochs:
        lines.append(f"Median seconds of an epoch, evaluation included: {', '.join(epochs)}.")
    full, pruned = run.of("baseline"), run.of("train")
    costs = next((r for r in run.records_of("train") if "theoretical_speedup" in r), None)
    if full is not None and pruned is not None and costs is not None and pruned.seconds > 0:
        lines.append(
            f"{pruned.title}: trained {full.seconds / pruned.seconds:.2f} times as fast as on full data; "
            f"examples and scoring passes alone would make it {costs['theoretical_speedup']:.2f}. "
            f"Uniform sampling without scores costs as much at ratio {costs['equal_compute_ratio']:.2f}."
        )
    return lines


def html_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of texts."""
    head = "".join(f"<th scope=col>{escape(h)}</th>" for h in headings)
    body = ""
    for row in rows:
        cells = zip(headings, row, strict=True)
        line = "".join(f'<td data-column="{escape(h)}">{escape(cell)}</td>' for h, cell in cells)
        body += f"<tr>{line}</tr>"
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def html_list(items: Iterable[tuple[str, str]]) -> str:
    """Words with what they mean."""
    cells = "".join(f"<dt><b>{escape(word)}</b></dt><dd>{escape(text)}</dd>" for word, text in items)
    return f"<dl>{cells}</dl>"


def html_details(title: str, text: str) -> str:
    """A text that is shown on demand."""
    return f"<details><summary>{escape(title)}</summary><pre>{escape(text)}</pre></details>"
