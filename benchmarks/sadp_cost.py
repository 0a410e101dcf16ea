"""What SADP costs: beside a training step, as a scoring pass, and as a draw from many examples.

    python -m benchmarks.sadp_cost [--models c16 vgg6 c32-wide sew18] [--draw 10000000]

Step and pass: CPU time (one thread) of interleaved repetitions, the minimum, in units of a plain training
step (forward, loss, backward) on the same batch. Draw: CPU time and peak memory of probabilities and
systematic draw from N lognormal scores.
"""

import argparse
import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.about import about
from pruning.examples.inclusion import inclusion_probabilities
from pruning.examples.sampling import draw, shuffled
from pruning.examples.scores import ExampleScorer
from snn.coding import direct
from snn.losses import rate_cross_entropy
from snn.models import build

MODELS: dict[str, tuple[str, int, int, dict[str, Any]]] = {
    "c16": ("convnet", 16, 50, {}),
    "vgg6": ("vgg6", 32, 16, {}),
    "c32-wide": ("convnet", 32, 25, {"channels": (96, 192), "hidden": (256,)}),
    "sew18": ("sew_resnet18", 16, 16, {}),
}


def cheapest(variants: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Minimum CPU seconds of each, interleaved, after one call to warm up."""
    for f in variants.values():
        f()
    best = dict.fromkeys(variants, float("inf"))
    for _ in range(repeats):
        for name, f in variants.items():
            start = time.process_time()
            f()
            best[name] = min(best[name], time.process_time() - start)
    return best


def steps(name: str, repeats: int) -> dict[str, float]:
    architecture, side, B, options = MODELS[name]
    torch.manual_seed(0)
    net = build(architecture, input_shape=(3, side, side), num_classes=10, **options)
    x, y = direct(torch.randn(B, 3, side, side), 4), torch.randint(0, 10, (B,))

    def step(scorer: ExampleScorer | None) -> None:
        net.train()
        if scorer is None:
            logits = net(x)
        else:
            with scorer.recording():
                logits = net(x)
        losses = rate_cross_entropy(logits, y)
        if scorer is not None:
            scorer.from_losses(losses, logits, y)
        net.zero_grad()
        losses.mean().backward()

    variants: dict[str, Callable[[], object]] = {
        "step": lambda: step(None),
        "step + el2n": lambda: step(ExampleScorer(net, ["el2n"])),
        "step + sadp": lambda: step(ExampleScorer(net)),
        "pass": lambda: ExampleScorer(net).score(x, y),
        "pass, half the timesteps": lambda: ExampleScorer(net, timesteps=2).score(x, y),
    }
    found = cheapest(variants, repeats)
    print(step_table(name, found), flush=True)
    return found


def step_table(name: str, found: dict[str, float]) -> str:
    """What everything costs in training steps."""
    lines = [f"\n### {name}: batch {MODELS[name][2]}, T = 4, step {found['step'] * 1e3:.1f} ms\n"]
    lines += ["| what | training steps |", "|---|---|"]
    lines += [f"| {key} | {seconds / found['step']:.3f} |" for key, seconds in found.items()]
    return "\n".join(lines)


def draw_table(found: dict[str, float]) -> str:
    """CPU seconds and memory of a draw."""
    n = int(found["n"])
    return "\n".join(
        [
            f"\n### draw: N = {n:,}, m = {n // 2:,}\n",
            "| probabilities, CPU s | draw, CPU s | peak memory, GB "
            "| training order, CPU s | peak memory, GB |",
            "|---|---|---|---|---|",
            f"| {found['probabilities_s']:.2f} | {found['draw_s']:.2f} | {found['peak_gb']:.2f} "
            f"| {found['order_s']:.2f} | {found['peak_with_order_gb']:.2f} |",
        ]
    )


def tables(result: dict[str, Any]) -> str:
    """Of a stored result."""
    parts = [draw_table(result["draw"])] if result["draw"] else []
    return "\n".join([*parts, *(step_table(name, found) for name, found in result["steps"].items())])


def draws(n: int) -> dict[str, float]:
    scores = np.concatenate(
        [
            np.random.default_rng(i).lognormal(size=min(1 << 20, n - i)).astype(np.float32)
            for i in range(0, n, 1 << 20)
        ]
    )
    m = n // 2
    clock = [time.process_time()]
    pi = inclusion_probabilities(scores, m, alpha=0.1)
    clock.append(time.process_time())
    subset = draw(pi, size=m, seed=0, epoch=0)
    clock.append(time.process_time())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    del pi, scores
    shuffled(subset.ids, seed=0, epoch=0)
    clock.append(time.process_time())
    seconds = np.diff(clock)
    peak_order = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    found = {
        "n": n,
        "probabilities_s": seconds[0],
        "draw_s": seconds[1],
        "order_s": seconds[2],
        "peak_gb": peak,
        "peak_with_order_gb": peak_order,
    }
    print(draw_table(found))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--models", nargs="*", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--repeats", type=int, default=8)
    parser.add_argument("--draw", type=int, default=100_000_000, help="examples to draw from; 0 for none")
    parser.add_argument("--out", type=Path, help="JSON file")
    args = parser.parse_args()
    torch.set_num_threads(1)
    # The draw first: the peak memory is the process's.
    drawn = draws(args.draw) if args.draw else None
    found = {name: steps(name, args.repeats) for name in args.models}
    if args.out:
        told = about("benchmarks.sadp_cost", sys.argv[1:])
        args.out.write_text(json.dumps({"about": told, "steps": found, "draw": drawn}, indent=1))


if __name__ == "__main__":
    main()
