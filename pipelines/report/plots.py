"""The report's plots, as SVG text."""

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.report.summary import RunSummary, kind_of
from pipelines.training.worker import accuracies

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SPLITS = {"val": "validation", "test": "test"}
"""What a split is called."""

# Okabe and Ito's palette: told apart by colour-blind readers, on light and dark grounds.
COLOURS = {"baseline": "#0072B2", "train": "#D55E00", "retrain": "#009E73", "prune": "#CC79A7"}


def accuracy_plot(runs: Sequence[RunSummary]) -> str | None:
    """Accuracy over examples processed, a line per phase that trains; ``None`` without one.

    The phases of one run have a colour each, its rounds before the last dots; several runs have a colour
    each, their phases a dash.
    """
    from matplotlib import colormaps

    if not any(p.examples for run in runs for p in run.phases):  # runs that prune alone
        return None
    splits = sorted({next(iter(accuracies(run.records[0]))) for run in runs})  # that every epoch measures
    figure, axes = _figure("examples processed", f"{' or '.join(SPLITS[s] for s in splits)} accuracy")
    dashes = {"baseline": "--", "train": "-", "retrain": ":"}
    for i, run in enumerate(runs):
        for p in (p for p in run.phases if p.examples):
            records = run.records_of(p.phase)
            kind, several = kind_of(p.phase), len(runs) > 1
            axes.plot(
                np.cumsum([r.get("examples", 0) for r in records]),
                [next(iter(accuracies(r).values())) for r in records],
                dashes[kind] if several else "-" if p.phase == kind else ":",
                marker="o",
                markersize=3,
                label=f"{run.config.name}: {p.title}" if several else p.title,
                color=colormaps["tab10"](i % 10) if several else COLOURS[kind],
            )
    axes.legend(frameon=False, fontsize="small" if len(runs) > 1 else None)
    return to_svg(figure)


def loss_plot(run: RunSummary) -> str | None:
    """Loss of training and of held-out examples after every epoch, phase by phase; ``None`` untrained."""
    records = [r for r in run.records if "train_loss" in r]
    if not records:
        return None
    split = next(iter(accuracies(records[0])))
    figure, axes = _figure("epoch, over all phases", "loss")
    for name, style in (("train_loss", ":"), (f"{split}_loss", "-")):
        for p in run.phases:
            at = [(i, r[name]) for i, r in enumerate(records, 1) if r["phase"] == p.phase]
            label = f"{p.title}, {'training' if style == ':' else SPLITS[split]}"
            colour = COLOURS[kind_of(p.phase)]
            if at:
                axes.plot(*zip(*at, strict=True), style, marker="o", markersize=3, label=label, color=colour)
    axes.legend(frameon=False, fontsize="small")
    return to_svg(figure)


def inclusion_plot(run: RunSummary) -> str | None:
    """Distribution of the inclusion probabilities of the last pruned epoch; ``None`` without scores."""
    path = run.folder / "scores.parquet"
    if not path.exists():
        return None
    column = pq.read_table(path, columns=["probability"]).column("probability")
    probability = column.cast(pa.float64()).to_numpy()
    figure, axes = _figure("inclusion probability", "examples")
    axes.hist(probability, bins=np.linspace(0, 1, 41).tolist(), color=COLOURS["train"])
    axes.axvline(probability.mean(), color="gray", linestyle="--", linewidth=1)
    axes.annotate(
        f"mean {probability.mean():.2f}",
        (probability.mean(), 1),
        xycoords=("data", "axes fraction"),
        xytext=(4, -12),
        textcoords="offset points",
        color="gray",
    )
    return to_svg(figure)


def variance_plot(run: RunSummary) -> str | None:
    """Variance of the gradient (fixed norm statistics) and its bias in training; ``None`` undiagnosed."""
    diagnosed = [r for r in run.records_of("train") if r.get("diagnosis")]
    if not diagnosed:
        return None
    figure, (variance, bias) = new_figure(2, 2.6)
    epochs = [r["epoch"] for r in diagnosed]
    for axes, key, label, colour in (
        (variance, "variance_to_uniform", "over uniform sampling", COLOURS["train"]),
        (variance, "variance_to_oracle", "over the best design", COLOURS["baseline"]),
        (bias, "training_bias", "policy", COLOURS["train"]),
        (bias, "training_bias_uniform", "uniform sampling", COLOURS["baseline"]),
    ):
        values = [r["diagnosis"].get(key) for r in diagnosed]  # records before 0.2 have no bias
        axes.plot(epochs, values, marker="o", markersize=3, label=label, color=colour)
        axes.set_xlabel("epoch")
        axes.legend(frameon=False)
    variance.axhline(1, color="gray", linestyle="--", linewidth=1)
    variance.set_yscale("log")
    variance.set_ylabel("variance ratio, norm frozen")
    bias.set_ylabel("bias of the gradient in training")
    return to_svg(figure)


def layers_plot(run: RunSummary) -> str | None:
    """Density and SynOps per layer, before and after weight pruning; ``None`` without pruning."""
    before = next((r["dense_activity"] for r in run.records if "dense_activity" in r), None)
    measured = [r for r in run.records if "activity" in r and kind_of(r["phase"]) in ("retrain", "prune")]
    if not measured:
        return None
    layers = measured[-1]["activity"]["layers"]
    y = np.arange(len(layers))[::-1]
    figure, (left, right) = new_figure(2, max(1.6, 0.5 * len(layers) + 0.9))
    left.barh(y, [layer["density"] for layer in layers], color=COLOURS["retrain"])
    left.set_yticks(y, [layer["name"] for layer in layers])
    left.set_xlim(0, 1)
    left.set_xlabel("density")
    if before:
        dense = [layer["synops"] for layer in before["layers"]]
        right.barh(y + 0.2, dense, 0.4, color=COLOURS["train"], label="before")
    synops = [layer["synops"] for layer in layers]
    right.barh(y - 0.2 if before else y, synops, 0.4, color=COLOURS["retrain"], label="after")
    right.set_yticks(y, [""] * len(layers))
    right.set_xlabel("SynOps per inference")
    right.legend(frameon=False)
    return to_svg(figure)


def _figure(x: str, y: str):  # type: ignore[no-untyped-def]
    figure, axes = new_figure(1, 3.2)
    axes[0].set_xlabel(x)
    axes[0].set_ylabel(y)
    return figure, axes[0]


def new_figure(n: int, height: float):  # type: ignore[no-untyped-def]
    """A figure of ``n`` plots side by side, and their axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, height), layout="constrained")
    axes = figure.subplots(1, n, squeeze=False)[0]
    for a in axes:
        a.spines[["top", "right"]].set_visible(False)
        a.grid(alpha=0.25)
    return figure, axes


def to_svg(figure: "Figure") -> str:
    """The figure as SVG text to stand in HTML."""
    from matplotlib import rc_context

    buffer = io.StringIO()
    with rc_context({"svg.fonttype": "none"}):  # text stays text: found by a search, in the page's colour
        figure.savefig(buffer, format="svg", transparent=True)
    text = buffer.getvalue()
    return text[text.index("<svg") :]
