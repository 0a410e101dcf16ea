"""The plots of docs/results, drawn from the stored results beside them.

    python -m benchmarks.figures [--only sadp-training ...]

Writes docs/results/images/NAME.svg. The same JSON draws the same file.
"""

import argparse
import io
import json
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import sadp_tables
from benchmarks.slamp_tasks import DEEP
from pipelines.storage.atomic import write_beside

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RESULTS = Path(__file__).resolve().parents[1] / "docs" / "results"
TASKS = {"digits": "digits", "nmnist": "N-MNIST", "cifar10": "CIFAR-10", "dvs128": "DVS128 objects"}
TITLES = {
    "sew18": "SEW-ResNet-18", "vgg9": "VGG-9", "ms18": "MS-ResNet-18", **TASKS, "cifar-dvs": "simulated DVS"
}  # fmt: skip
RETRAINED = 2
"""Epochs, in the plot of weight criteria."""
CRITERIA = ("uniform", "lamp", "slamp", "slamp_curve", "response", "membrane", "root", "gradient_root")
# Okabe and Ito's palette: told apart by colour-blind readers.
PALETTE = ("#000000", "#E69F00", "#56B4E9", "#009E73", "#CC79A7", "#0072B2", "#D55E00", "#999999")
MARKERS = "os^vDP*X"
SADP_METHODS = (
    "random", "sadp", "el2n", "infobatch matched", "repb matched", "orderdp", "seta matched",
    "full, fewer epochs",
)  # fmt: skip
SADP_TASKS = {
    "fashion": "Fashion-MNIST, r = 0.9, 0.7, 0.5",
    "fashion-wrong": "20 % wrong labels",
    "cifar": "CIFAR-10, small net",
    "cifar-sew": "CIFAR-10, SEW-ResNet",
    "nmnist": "N-MNIST",
}
SCALED = {"driver_mb": "driver", "worker_mb": "largest worker", "table_mb": "score table"}
Result = dict[str, Any]
Row = dict[str, Any]


def sadp_training() -> "Figure":
    """Accuracy over training time at the ratios of each task; means and 95 % intervals over seeds."""
    rows = _stored("sadp_training")["rows"]
    tasks = list(dict.fromkeys(r["task"] for r in rows if r["method"] == "full"))
    methods = [m for m in SADP_METHODS if any(r["method"] == m for r in rows)]
    first, *others = tasks
    figure, axes = _mosaic([[first] * len(others), others])
    figure.supxlabel("training time over that of all data (CPU seconds)", fontsize=9)
    for a in (axes[0], axes[1]):
        a.set_ylabel("test accuracy, %")
    for a, task in zip(axes, tasks, strict=True):
        of = [r for r in rows if r["task"] == task]
        full = [r for r in of if r["method"] == "full"]
        unit = statistics.mean(r["cpu_s"] for r in full)
        _level(a, [100 * r["accuracy"] for r in full], "all data")
        for i, method in enumerate(methods):
            groups = list(_grouped((r for r in of if r["method"] == method), "ratio").values())
            xs = [statistics.median(r["cpu_s"] for r in g) / unit for g in groups]
            means = [100 * statistics.mean(r["accuracy"] for r in g) for g in groups]
            bars = [100 * sadp_tables.half_interval([r["accuracy"] for r in g]) for g in groups]
            a.errorbar(xs, means, yerr=bars, label=method, elinewidth=0.7, capsize=2, **_style(i))
        a.set_title(SADP_TASKS[task])
    return _keyed(figure, axes)


def slamp_quality() -> "Figure":
    """Accuracy over the SynOps left and over the weights left, after the same retraining: deep networks."""
    stored = [r for r in _stored("slamp_quality")["rows"] if r["task"] in DEEP]
    short = [r for r in stored if r["part"] in ("synops", "weights") and r["retrain_epochs"] == RETRAINED]
    rows = [*(r for r in stored if r["part"] == "dense"), *short]
    shown = [
        (part, task)
        for part in ("synops", "weights")
        for task in TITLES
        if any((r["part"], r["task"]) == (part, task) for r in rows)
    ]
    columns = 2 if len(shown) % 2 == 0 else 3
    figure, grid = _grid(-(-len(shown) // columns), columns)
    axes = [a for row in grid for a in row]
    for a, (part, task) in zip(axes, shown, strict=False):
        own = [r for r in rows if r["task"] == task]
        _level(a, [r["accuracy"] for r in own if r["part"] == "dense"], "dense")
        mine = [r for r in own if r["part"] == part and r["objective"] == part]
        for criterion, of in _grouped(mine, "criterion").items():
            levels = _grouped(of, "level")
            if criterion not in CRITERIA or len(levels) < 2:  # candidates at one level are in a table
                continue
            xs = [level if part == "synops" else 1 - level for level in levels]
            _with_spread(a, xs, _accuracies(levels), _named(criterion), CRITERIA.index(criterion))
        a.set_xscale("log")
        ticks = (0.2, 0.1, 0.05) if part == "synops" else (0.1, 0.05, 0.02)
        a.set_xticks(ticks, [f"{100 * t:g} %" for t in ticks])
        a.minorticks_off()
        a.set_xlabel("SynOps left" if part == "synops" else "weights left")
        a.set_title(TITLES[task])
    for a in axes[len(shown) :]:
        a.set_visible(False)
    for row in grid:
        row[0].set_ylabel("test accuracy")
    return _keyed(figure, axes)


def speed() -> "Figure":
    """Time of a training step over that of the same network without neurons, beside other libraries."""
    cases = {
        "VGG-6, batch 8": ("snn-speed-cpu", "vgg6", 8),
        "VGG-6, batch 32": ("snn-speed-cpu", "vgg6", 32),
        "SEW-ResNet-18, batch 4": ("snn-speed-sew", "sew_resnet18", 4),
    }
    variants = {"ours": "spikeprune", "spikingjelly": "spikingjelly",
                "snntorch": "snntorch", "norse": "norse"}  # fmt: skip
    figure, (a,) = _panels(1, "", "training step over that without neurons")
    width = 0.8 / len(variants)
    for i, (variant, label) in enumerate(variants.items()):
        ratios = [_over_limit(*case, variant) for case in cases.values()]
        at = [k + (i - (len(variants) - 1) / 2) * width for k in range(len(cases))]
        a.bar(at, ratios, width, label=label, color=PALETTE[(6, 5, 2, 7)[i]])
    a.axhline(1, color="gray", linestyle="--", linewidth=1)
    a.set_xticks(range(len(cases)), list(cases))
    return _keyed(figure, [a])


def scale() -> "Figure":
    """Peak memory of a run's processes over the rows of its dataset."""
    runs = _stored("scale")["runs"]
    figure, (a,) = _panels(1, "rows of the dataset", "peak memory of a process, MB")
    for i, (field, label) in enumerate(SCALED.items()):
        a.plot([r["rows"] for r in runs], [r[field] for r in runs], label=label, **_style(i))
    a.set_xscale("log")
    a.set_ylim(0)
    return _keyed(figure, [a])


def search_front() -> "Figure":
    """Accuracy over SynOps and over examples: trials as the search saw them, the front under other seeds."""
    stored = _stored("search_front")
    trials = {r["trial"]: r for r in stored["rows"]}
    full, *front = stored["again"]
    figure, axes = _panels(2, "", "accuracy")
    axes_of = {"synops": "SynOps of an inference", "examples": "examples processed"}
    for a, (objective, title) in zip(axes, axes_of.items(), strict=True):
        beaten = [r["metrics"] for r in trials.values() if not r["on_front"]]
        dots = {"linestyle": "none", "marker": "o", "markersize": 3, "color": PALETTE[7]}
        a.plot(
            [m[objective] for m in beaten],
            [m["accuracy"] for m in beaten],
            label="beaten trials, validation",
            **dots,
        )
        _level(a, [r["test_accuracy"] for r in full["runs"]], "all data, all weights")
        for i, criterion in ((5, "lamp"), (6, "slamp")):
            of = [t for t in front if trials[t["trial"]]["values"]["weight_pruning.criterion"] == criterion]
            xs = [statistics.mean(r[objective] for r in t["runs"]) for t in of]
            accuracies = [[r["test_accuracy"] for r in t["runs"]] for t in of]
            _with_spread(a, xs, accuracies, f"front, {criterion.upper()}, test", i, "none")
        a.axvline(full["runs"][0][objective], color="gray", linestyle=":", linewidth=1)
        a.set_xlabel(title)
        a.set_ylim(0.75, 1)
    axes[0].set_xscale("log")
    axes[0].set_xlim(900, 60_000)
    return _keyed(figure, axes)


FIGURES: dict[str, Callable[[], "Figure"]] = {
    "sadp-training": sadp_training,
    "slamp-quality": slamp_quality,
    "search": search_front,
    "speed": speed,
    "scale": scale,
}


def svg(name: str) -> str:
    """A page's plot on a white ground, the same text for the same results."""
    from matplotlib import rc_context

    with rc_context({"svg.hashsalt": name, "svg.fonttype": "none", "font.size": 9, "axes.titlesize": 9}):
        figure = FIGURES[name]()
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return "\n".join(line.rstrip() for line in text[text.index("<svg") :].splitlines()) + "\n"


# Parts of plots.


def _stored(name: str) -> Result:
    result: Result = json.loads((RESULTS / f"{name}.json").read_text())
    return result


def _grouped(rows: Iterable[Row], key: str) -> dict[Any, list[Row]]:
    groups: dict[Any, list[Row]] = defaultdict(list)
    for row in rows:
        groups[row[key]].append(row)
    return dict(groups)


def _over_limit(file: str, network: str, batch: int, variant: str) -> float:
    """Of forward and backward, medians, in each library's faster memory format."""
    seconds = {
        r["variant"]: r["seconds"]["forward+backward"]["median"]
        for r in _stored(file)["rows"]
        if (r["case"], r.get("network"), r.get("batch")) == ("B1", network, batch)
    }
    taken, limit = (
        min(s for name, s in seconds.items() if name in (own, f"{own}, channels_last"))
        for own in (variant, "limit")
    )
    return float(taken / limit)


def _accuracies(groups: dict[Any, list[Row]]) -> list[list[float]]:
    return [[r["accuracy"] for r in g] for g in groups.values()]


def _named(criterion: str) -> str:
    names = {
        "slamp_curve": "SLAMP, curves",
        "gradient_root": "gradient, root",
        "response": "measured response",
    }
    return names.get(criterion, criterion.upper())


def _style(i: int, line: str = "-") -> dict[str, Any]:
    return {
        "color": PALETTE[i % 8],
        "marker": MARKERS[i % 8],
        "markersize": 4,
        "linestyle": line,
        "linewidth": 1.2,
    }


def _level(axes: Any, values: list[float], label: str) -> None:
    """A level with its spread as a band."""
    mean = statistics.mean(values)
    axes.axhline(mean, color="gray", linestyle="--", linewidth=1, label=label)
    if len(values) > 1:
        spread = statistics.stdev(values)
        axes.axhspan(mean - spread, mean + spread, color="gray", alpha=0.15, linewidth=0)


def _with_spread(
    axes: Any, xs: list[float], values: list[list[float]], label: str, i: int, line: str = "-"
) -> None:
    """Means over seeds, with bars of one standard deviation."""
    means = [statistics.mean(v) for v in values]
    spreads = [statistics.stdev(v) if len(v) > 1 else 0.0 for v in values]
    axes.errorbar(xs, means, yerr=spreads, label=label, elinewidth=0.7, capsize=2, **_style(i, line))


def _panels(n: int, x: str, y: str) -> tuple["Figure", list[Any]]:
    figure, (row,) = _grid(1, n)
    figure.supxlabel(x, fontsize=9)
    row[0].set_ylabel(y)
    return figure, row


def _grid(rows: int, columns: int) -> tuple["Figure", list[list[Any]]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(5.0, 2.9 * columns), 2.9 * rows + 0.7), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    _plain(grid.flat)
    return figure, [list(row) for row in grid]


def _mosaic(names: list[list[Any]]) -> tuple["Figure", list[Any]]:
    """Panels by name, of which a wide one has its name in several columns."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3 * len(names) + 0.7), layout="constrained")
    axes = list(figure.subplot_mosaic(names).values())
    _plain(axes)
    return figure, axes


def _plain(axes: Iterable[Any]) -> None:
    for a in axes:
        a.spines[["top", "right"]].set_visible(False)
        a.grid(alpha=0.25)


def _keyed(figure: "Figure", axes: Sequence[Any]) -> "Figure":
    """One legend for all panels."""
    columns = {1: 2, 2: 3}.get(len(axes), 4)
    entries = {label: mark for a in axes for mark, label in zip(*a.get_legend_handles_labels(), strict=True)}
    figure.legend(entries.values(), entries.keys(), loc="outside upper center", ncols=columns, frameon=False)
    return figure


def _write(name: str) -> Path:
    target, text = RESULTS / "images" / f"{name}.svg", svg(name)
    target.parent.mkdir(exist_ok=True)
    write_beside(target, lambda p: p.write_text(text))
    return target


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=list(FIGURES), default=list(FIGURES))
    for name in parser.parse_args().only:
        print(_write(name).relative_to(RESULTS.parents[1]))


if __name__ == "__main__":
    main()
