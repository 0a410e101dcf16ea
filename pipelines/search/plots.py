"""A search's plots, as SVG text."""

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np

from pipelines.report.plots import COLOURS, new_figure, to_svg
from pipelines.search.journal import Record, value_text
from pipelines.search.objectives import Objective
from pipelines.search.space import Choice, Dimension, Range, Space

WIDE = 20  # times from the lowest to the highest value, beyond which an axis is logarithmic
FRONT, OTHERS = COLOURS["train"], "#8a8a8a"


def front_plots(
    records: Sequence[Record], front: set[int], objectives: Sequence[Objective]
) -> list[tuple[str, str]]:
    """Finished trials by every two objectives, those on the front marked: titles and SVGs."""
    return [
        (f"{a.title[0].upper()}{a.title[1:]} and {b.title}", _front_plot(records, front, a, b))
        for a, b in combinations(objectives, 2)
    ]


def _front_plot(records: Sequence[Record], front: set[int], a: Objective, b: Objective) -> str:
    figure, (axes,) = new_figure(1, 3.6)
    for on_front in (False, True):
        chosen = [r for r in records if (r.number in front) == on_front]
        axes.plot(
            [r.metrics[b.name] for r in chosen],
            [r.metrics[a.name] for r in chosen],
            linestyle="none",
            marker="o",
            markersize=6 if on_front else 4,
            color=FRONT if on_front else OTHERS,
            label="on the front" if on_front else "beaten by another trial",
        )
    for r in records:
        if r.number in front:
            place = (r.metrics[b.name], r.metrics[a.name])
            axes.annotate(str(r.number), place, xytext=(5, 4), textcoords="offset points", fontsize=8)
    across = [r.metrics[b.name] for r in records]
    if 0 < WIDE * min(across) < max(across):
        axes.set_xscale("log")
    axes.set_xlabel(f"{b.title} ({_better(b)})")
    axes.set_ylabel(f"{a.title} ({_better(a)})")
    axes.legend(frameon=False)
    return to_svg(figure)


def parallel_plot(
    records: Sequence[Record], front: set[int], space: Space, objectives: Sequence[Objective]
) -> str:
    """Parallel coordinates: a line per finished trial through its values and objectives."""
    columns = [_value_axis(d, records) for d in space.dimensions]
    columns += [_objective_axis(o, records) for o in objectives]
    figure, (axes,) = new_figure(1, 4.2)
    for order, on_front in enumerate((False, True)):
        for i, record in enumerate(records):
            if (record.number in front) == on_front:
                axes.plot(
                    range(len(columns)),
                    [column["positions"][i] for column in columns],
                    color=FRONT if on_front else OTHERS,
                    linewidth=1.6 if on_front else 0.8,
                    alpha=0.9 if on_front else 0.5,
                    zorder=2 + order,
                )
    for x, column in enumerate(columns):
        axes.axvline(x, color="gray", linewidth=0.8, zorder=1)
        for position, text in column["ticks"]:
            axes.annotate(text, (x, position), xytext=(4, 0), textcoords="offset points", fontsize=8)
    names = [c["name"].replace(".", ".\n") for c in columns]
    axes.set_xticks(range(len(columns)), names, fontsize=8)
    axes.set_xlim(-0.2, len(columns) - 0.4)
    axes.set_yticks([])
    axes.grid(False)
    axes.spines[["left", "bottom"]].set_visible(False)
    return to_svg(figure)


def importance_plot(shares: Sequence[tuple[str, Sequence[float | None]]], names: Sequence[str]) -> str:
    """A bar per field and objective: the share of the objective's variance that the field explains.

    Args:
        shares: by objective's title, a share per field; ``None`` where it cannot be told.
        names: of the fields.
    """
    figure, panels = new_figure(len(shares), max(1.6, 0.35 * len(names) + 0.9))
    y = np.arange(len(names))[::-1]
    for i, ((title, values), axes) in enumerate(zip(shares, panels, strict=True)):
        axes.barh(y, [v or 0.0 for v in values], color=COLOURS["retrain"])
        for place, value in zip(y, values, strict=True):
            text = "too few trials" if value is None else f"{value:.0%}"
            axes.annotate(text, (value or 0.0, place), xytext=(3, 0), textcoords="offset points", va="center")
        axes.set_yticks(y, list(names) if i == 0 else [""] * len(names))
        axes.set_xlim(0, 1.2)
        axes.set_xticks([0, 0.5, 1.0])
        axes.set_xlabel(title)
    return to_svg(figure)


def _value_axis(d: Dimension, records: Sequence[Record]) -> dict[str, Any]:
    ticks = [(d.position(v), value_text(v)) for v in (d.values if isinstance(d, Choice) else d.bounds())]
    if isinstance(d, Range) and d.log:
        ticks.insert(1, (0.5, value_text(float(np.sqrt(d.low * d.high)))))
    return {"name": d.path, "positions": [d.position(r.values[d.path]) for r in records], "ticks": ticks}


def _objective_axis(o: Objective, records: Sequence[Record]) -> dict[str, Any]:
    """Better is higher."""
    costs = np.array([o.cost(r.metrics[o.name]) for r in records])
    low, high = costs.min(), costs.max()
    positions = (high - costs) / (high - low) if high > low else np.full(len(costs), 0.5)
    ends = [(1.0, low), (0.0, high)] if high > low else [(0.5, low)]
    return {
        "name": o.title,
        "positions": positions.tolist(),
        "ticks": [(p, o.text(abs(float(c)))) for p, c in ends],
    }


def _better(o: Objective) -> str:
    return "higher is better" if o.mode == "max" else "lower is better"
