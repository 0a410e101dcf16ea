"""Each layer pruned alone: measured change of the scores against the predicted one, and the certificate.

python -m benchmarks.slamp_quality --distortion-only --output FILE.json
python -m benchmarks.slamp_distortion FILE.json
"""

import copy
import json
import statistics
import sys
from collections.abc import Callable
from math import exp, log
from pathlib import Path
from typing import Any

import torch

from benchmarks.slamp_certificate import certify
from benchmarks.slamp_tasks import STEPS, Task, scores
from pruning.weights.allocation import allocate
from pruning.weights.calibration import Calibration
from pruning.weights.masks import Masks
from snn.models import SpikingNetwork

Row = dict[str, Any]


def distortion_rows(task: Task, dense: SpikingNetwork, calibration: Calibration) -> list[Row]:
    """Every layer alone, at several levels: measured on the test examples, and the certificate on 20."""
    reference = scores(task, dense)
    sample = task.inputs(task.x_test[:20]).double()
    exact = copy.deepcopy(dense).double()
    before = _means(exact, sample)
    keep = Masks.of(dense)
    rows = []
    for density in (0.7, 0.5, 0.3, 0.15, 0.05):
        uniform = allocate(dense, criterion="uniform", sparsity=1 - density)
        for layer in uniform.layers:
            masks = Masks({n: uniform.masks[n] if n == layer.name else keep[n] for n in keep})
            model = copy.deepcopy(dense)
            masks.apply_(model)
            measured = float((scores(task, model) - reference).square().sum(1).mean())
            changed = (_means(model.double(), sample) - before).abs()
            certificate = certify(dense, masks, sample)
            known = calibration[layer.name]
            rows.append(
                {
                    "layer": layer.name,
                    "density": layer.density,
                    "removed_energy": layer.removed_energy,
                    "measured": measured,
                    "tau": known.tau,
                    "sigma": known.sigma,
                    "rho": known.rho,
                    "violations": int((changed > certificate.bound).sum()),
                    "bound_over_change": float(
                        (certificate.bound.mean() / changed.mean().clamp(min=1e-12)).clamp(max=1e12)
                    ),
                }
            )
    return rows


@torch.no_grad()
def _means(model: SpikingNetwork, x_TB: torch.Tensor) -> torch.Tensor:
    return model.eval()(x_TB).mean(0)


def coefficients_of(row: Row, T: int) -> dict[str, float]:
    """``c`` of every criterion that predicts distortion."""
    tau, rho = row["tau"], row.get("rho")
    membrane = tau * row["sigma"] ** (1 - 1 / T)
    found = {
        "lamp": 1.0,
        "slamp_time": tau,
        "slamp_membrane": membrane,
        "slamp_local": tau * row["sigma"],
        "slamp_root": membrane**0.5,
    }
    if rho is not None:  # results before this criterion have none
        found["slamp_response"] = tau * (rho / tau) ** (1 - 1 / T)
    return found


def spread_of_logs(rows: list[Row], T: int) -> dict[str, dict[str, float]]:
    """Standard deviation of log(measured / predicted) by criterion.

    ``c z``: the prediction is c times the removed share of the energy; ``c phi``: c times -log of the kept
    share, which is what allocation adds up.
    """
    usable = [r for r in rows if r["measured"] > 0 and 0 < r["removed_energy"] < 1]
    return {
        name: {
            form: statistics.stdev(
                log(r["measured"] / (coefficients_of(r, T)[name] * loss(r["removed_energy"]))) for r in usable
            )
            for form, loss in _LOSSES.items()
        }
        for name in coefficients_of(usable[0], T)
    }


_LOSSES: dict[str, Callable[[float], float]] = {"c z": lambda z: z, "c phi": lambda z: -log(1 - z)}


SHOWN = ("lamp", "slamp_root", "slamp_response")


def tables(result: dict[str, Any]) -> str:
    """Markdown of a stored result of `benchmarks.slamp_quality`: spreads, then every layer and level.

    Geometric means over the seeds. A coefficient predicts up to a constant factor: each prediction is
    scaled so that the mean of log(measured / predicted) over its network is 0.
    """
    runs = result["runs"]
    tasks = list(dict.fromkeys(run["task"] for run in runs))
    of = {task: [run for run in runs if run["task"] == task] for task in tasks}
    spreads = {task: [spread_of_logs(run["distortion"], STEPS[task]) for run in of[task]] for task in tasks}
    names = list(spreads[tasks[0]][0])
    lines = [f"| sd of log(measured / (c z)) | {' | '.join(tasks)} |", "|---|" + "---|" * len(tasks)]
    for name in names:
        cells = (f"{statistics.mean(s[name]['c z'] for s in spreads[task]):.2f}" for task in tasks)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    violations = (str(sum(run["certificate_violations"] for run in of[task])) for task in tasks)
    lines.append(f"| violations of the certificate | {' | '.join(violations)} |")
    for task in tasks:
        lines += ["", *_layers(task, of[task])]
    return "\n".join(lines)


def _layers(task: str, runs: list[dict[str, Any]]) -> list[str]:
    head = " | ".join(f"predicted, {name}" for name in SHOWN)
    lines = [
        f"| {task}: layer | density | removed energy z | measured | {head} | certificate / change |",
        "|---|---|---|---|" + "---|" * len(SHOWN) + "---|",
    ]
    logs: dict[tuple[str, float], list[dict[str, float]]] = {}
    for run in runs:
        usable = [r for r in run["distortion"] if r["measured"] > 0 and 0 < r["removed_energy"] < 1]
        predicted = {
            name: [log(coefficients_of(r, STEPS[task])[name] * r["removed_energy"]) for r in usable]
            for name in SHOWN
        }
        mean = statistics.mean(log(r["measured"]) for r in usable)
        for i, r in enumerate(usable):
            values = {"measured": log(r["measured"]), "z": log(r["removed_energy"])}
            values |= {name: p[i] - statistics.mean(p) + mean for name, p in predicted.items()}
            values["bound"] = log(r["bound_over_change"])
            logs.setdefault((r["layer"], round(r["density"], 2)), []).append(values)
    for (layer, density), seeds in logs.items():
        shown = (
            f"{exp(statistics.mean(v[key] for v in seeds)):.3g}" for key in ("z", "measured", *SHOWN, "bound")
        )
        lines.append(f"| {layer} | {density} | {' | '.join(shown)} |")
    return lines


def main() -> None:
    """Print the tables of a stored result."""
    print(tables(json.loads(Path(sys.argv[1]).read_text())))


if __name__ == "__main__":
    main()
