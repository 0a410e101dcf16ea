"""How near to the oracle is each score? Variances and rank correlations on real data at four stages.

    python -m benchmarks.sadp_quality --data cifar10 nmnist dvs128

A small network is trained on the data; at each stage the exact gradient norms of a probe (one backward pass
per example) are compared with every score: single-draw variance over the oracle's (1 is optimal), Spearman,
and the variance of the design that would be used (r, alpha) over uniform sampling. InfoBatch is its two-level
design at the same size. Passes with fewer timesteps are rated too, beside the variance of uniform sampling
that spends the pass on more data. Prints Markdown; ``--out`` writes JSON.
"""

import argparse
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from benchmarks.about import about
from benchmarks.real_data import load
from pruning.examples.diagnostics import (
    diagnose,
    example_gradients,
    rank_correlation,
    single_draw_variance,
    variance,
)
from pruning.examples.policies import make_policy
from pruning.examples.policies.settings import FORWARD_COST
from pruning.examples.scores import SCORES, ExampleScorer, LossName
from snn.losses import LOSSES
from snn.models import SpikingNetwork, build
from snn.neurons import NeuronParameters
from snn.surrogate import Surrogate


@dataclass(frozen=True)
class Setup:
    """One data set's network and schedule."""

    rows: int
    T: int
    side: int | None
    channels: tuple[int, ...]
    hidden: int
    stages: tuple[int, ...]
    batch: int = 50


Row = dict[str, Any]

SETUPS = {
    "cifar10": Setup(4000, 4, 16, (24, 48), 128, (0, 1, 5, 12)),
    "nmnist": Setup(1000, 5, None, (8, 16), 64, (0, 1, 3, 7)),
    "dvs128": Setup(1631, 5, 32, (8, 16), 64, (0, 1, 3, 7)),
}


def network(setup: Setup, shape: tuple[int, ...], K: int, pooled: bool) -> SpikingNetwork:
    """Convolutions and a hidden linear layer; or, pooled, a head on their rates' means over positions."""
    neuron = NeuronParameters(surrogate=Surrogate("triangle"))
    hidden = () if pooled else (setup.hidden,)
    net = build(
        "convnet", input_shape=shape, num_classes=K, neuron=neuron, channels=setup.channels, hidden=hidden
    )
    if not pooled:
        return net
    head = nn.Linear(setup.channels[-1], K)
    return SpikingNetwork(net.features[:-1], nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), head))


def train_epoch(
    net: SpikingNetwork, optimiser: Optimizer, x: Tensor, y: Tensor, batch: int, loss: LossName
) -> None:
    net.train()
    for rows in torch.randperm(len(y)).split(batch):
        optimiser.zero_grad()
        LOSSES[loss](net(x[:, rows]), y[rows]).mean().backward()
        optimiser.step()


def scores_of(net: SpikingNetwork, x: Tensor, y: Tensor, loss: LossName) -> dict[str, np.ndarray]:
    """Every score of the probe, the readout alone, and passes with fewer timesteps."""
    T = x.shape[0]
    found = {k: v.numpy() for k, v in ExampleScorer(net, list(SCORES), loss=loss).score(x, y).items()}
    found["sadp, readout only"] = ExampleScorer(net, loss=loss, tail_depth=0).score(x, y)["sadp"].numpy()
    for steps in sorted({max(1, T // 2), 1}, reverse=True):
        found[f"sadp, T={steps}"] = ExampleScorer(net, loss=loss, timesteps=steps).score(x, y)["sadp"].numpy()
        found[f"el2n, T={steps}"] = (
            ExampleScorer(net, ["el2n"], loss=loss, timesteps=steps).score(x, y)["el2n"].numpy()
        )
    return found


def infobatch_probabilities(losses: np.ndarray, ratio: float) -> np.ndarray:
    """InfoBatch's two levels at the budget of the others."""
    policy = make_policy("infobatch_matched", num_examples=len(losses), ratio=ratio, seed=0, epochs=3)
    policy.observe(np.arange(len(losses)), losses, 1, "pass")
    return policy.inclusion(1)[0]


def row(score: str, to_oracle: float | None, spearman: float | None, to_uniform: float) -> Row:
    return {
        "score": score,
        "single_draw_to_oracle": to_oracle,
        "spearman": spearman,
        "variance_to_uniform": to_uniform,
    }


def judge(net: SpikingNetwork, x: Tensor, y: Tensor, loss: LossName, ratio: float, alpha: float) -> list[Row]:
    """One row per score on the probe."""
    norms, norm_of_mean = example_gradients(net, x, y, loss=loss)
    scores = scores_of(net, x, y, loss)
    oracle = single_draw_variance(norms, norm_of_mean, norms)
    flat = variance(norms, np.full(len(norms), 1 - ratio))
    pi = infobatch_probabilities(scores["loss"], ratio)
    best = diagnose(norms, norms, norm_of_mean, ratio=ratio, alpha=alpha)
    even = single_draw_variance(norms, norm_of_mean, np.ones(len(norms)))
    two_level = single_draw_variance(norms, norm_of_mean, pi)
    rows = [
        row("uniform", even / oracle, None, 1.0),
        row("oracle", 1.0, 1.0, best.variance_to_uniform),
        row("infobatch", two_level / oracle, rank_correlation(pi, norms), variance(norms, pi) / flat),
    ]
    for name, score in scores.items():
        d = diagnose(score, norms, norm_of_mean, ratio=ratio, alpha=alpha)
        rows.append(row(name, d.single_draw_to_oracle, d.rank_correlation, d.variance_to_uniform))
    rivals = {"full pass": FORWARD_COST, "half the timesteps": FORWARD_COST / 2}
    for label, cost in rivals.items():
        keep = min(1.0, 1 - ratio + cost)
        more = variance(norms, np.full(len(norms), keep)) / flat
        rows.append(row(f"uniform, keep {keep:.2f} ({label})", None, None, more))
    return rows


def run(name: str, args: argparse.Namespace) -> list[Row]:
    setup = SETUPS[name]
    torch.manual_seed(args.seed)
    x, y, K = load(name, args.rows or setup.rows, setup.T, setup.side)
    net = network(setup, tuple(x.shape[2:]), K, args.pooled)
    optimiser = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
    probe = torch.randperm(len(y))[: args.probe]
    out: list[Row] = []
    done = 0
    stages = [s for s in setup.stages if args.stages is None or s in args.stages]
    for stage in stages:
        while done < stage:
            train_epoch(net, optimiser, x, y, setup.batch, args.loss)
            done += 1
        if stage == 0:  # statistics of the data instead of the initial zeros and ones
            net.train()
            with torch.no_grad():
                for rows in torch.arange(len(y)).split(200)[:5]:
                    net(x[:, rows])
        net.eval()
        with torch.no_grad():
            accuracy = float((net(x[:, probe]).mean(0).argmax(-1) == y[probe]).float().mean())
        start = time.perf_counter()
        found = judge(net, x[:, probe], y[probe], args.loss, args.ratio, args.alpha)
        seconds = time.perf_counter() - start
        print(f"{name}, {args.loss}, epoch {stage}: accuracy {accuracy:.2f}, {seconds:.0f} s", flush=True)
        out += [
            {"data": name, "loss": args.loss, "epoch": stage, "accuracy": accuracy, **line} for line in found
        ]
    return out


TABLES = {
    "single_draw_to_oracle": "variance of a single draw / that of the exact norms",
    "variance_to_uniform": "variance of the design at r = 0.5 / uniform sampling's",
}


def table(rows: list[Row]) -> str:
    """Two tables: a line per score, a column per dataset and trained epoch."""
    trained = [row for row in rows if row["epoch"]]
    columns = list(dict.fromkeys((row["data"], row["epoch"]) for row in trained))
    lines = []
    for key, title in TABLES.items():
        found = {(row["score"], row["data"], row["epoch"]): row[key] for row in trained}
        scores = [s for s in dict.fromkeys(row["score"] for row in trained) if found[s, *columns[0]]]
        lines += [f"\n| {title} | {' | '.join(f'{data} {epoch}' for data, epoch in columns)} |"]
        lines += ["|" + "---|" * (len(columns) + 1)]
        for score in scores:
            cells = (found.get((score, *column)) for column in columns)
            lines.append(f"| {score} | {' | '.join('' if c is None else f'{c:.2f}' for c in cells)} |")
    return "\n".join(lines)


def verdict(rows: list[Row]) -> list[str]:
    """The issue's two demands at every trained stage: at most 1.04 of the oracle, below the rivals."""
    lines = []
    for key in sorted({(r["data"], r["epoch"]) for r in rows if r["epoch"]}, key=str):
        at = {r["score"]: r for r in rows if (r["data"], r["epoch"]) == key}
        sadp = at["sadp"]["single_draw_to_oracle"]
        worse = [k for k in ("el2n", "loss", "infobatch") if at[k]["single_draw_to_oracle"] <= sadp]
        lines.append(
            f"{key[0]} epoch {key[1]}: sadp {sadp:.3f} of the oracle "
            f"({'within' if sadp <= 1.04 else 'ABOVE'} 1.04), "
            + (f"NOT below {', '.join(worse)}" if worse else "below el2n, loss, infobatch")
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", nargs="+", default=list(SETUPS), choices=list(SETUPS))
    parser.add_argument("--loss", default="rate_ce", choices=list(LOSSES))
    parser.add_argument(
        "--pooled", action="store_true", help="a globally pooled head, no hidden linear layer"
    )
    parser.add_argument("--rows", type=int, help="training rows (each data set's own when not given)")
    parser.add_argument("--probe", type=int, default=512)
    parser.add_argument("--stages", type=int, nargs="+", help="only these epochs of the schedule")
    parser.add_argument("--ratio", type=float, default=0.5)
    parser.add_argument("--alpha", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="JSON file")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = [row for name in args.data for row in run(name, args)]
    print(table(rows) + "\n\n" + "\n".join(verdict(rows)))
    if args.out:
        told = about("benchmarks.sadp_quality", sys.argv[1:])
        given = vars(args) | {"out": args.out.name}
        args.out.write_text(json.dumps({"about": told, "arguments": given, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
