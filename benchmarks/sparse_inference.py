"""Inference of pruned networks on a CPU: over surviving weights, beside dense layers and torch's CSR.

    python -m benchmarks.sparse_inference [--cases layers networks] [--networks vgg6:16 ...] [--output FILE]

One thread; medians of CPU time, all variants of a table in one process, in turn. Layers: a 3x3 convolution
of 64 images (T = 4 x 16 examples) whose inputs spike at the given rate, weights masked at random: dense in
both memory formats, ``unfold`` and a product with a torch CSR matrix, and ours. Networks: T = 4, 32x32
images, masks by SLAMP at the given sparsity, one shot; weights are not trained, which no variant's speed
depends on. Dense: as the network comes and in the other memory format, the faster of them compared. Ours:
`pruning.weights.inference.for_inference`; logits are held against the dense ones in float64.
"""

import argparse
import copy
import json
import statistics
import sys
import time
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.about import about
from pruning.weights.allocation import allocate
from pruning.weights.calibration import calibrate
from pruning.weights.inference import for_inference
from snn.batchnorm import reestimate
from snn.coding import direct
from snn.kernels.allocator import tune_allocator
from snn.models import SpikingNetwork, build
from snn.sparse import SparseConv2d

T = 4
SPARSITIES = (0.9, 0.95, 0.98)
LAYERS = ((128, 16, 0.1), (256, 8, 0.1))
"""Channels, side, spikes per input and timestep."""
IMAGES = 64
NETWORKS = (("vgg6", 16), ("sew_resnet18", 8), ("vgg6", 1), ("sew_resnet18", 1))
Row = dict[str, Any]


def medians(variants: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """CPU seconds of each, in turn, after a round to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for r in range(rounds + 1):
        for name, run in variants.items():
            began = time.process_time()
            run()
            if r:
                seconds[name].append(time.process_time() - began)
    return {name: statistics.median(taken) for name, taken in seconds.items()}


def by_csr(weight: Tensor, x: Tensor) -> Callable[[], Tensor]:
    """A 3x3 convolution as the product of a CSR matrix and unfolded images."""
    matrix = weight.flatten(1).to_sparse_csr()
    N, _, H, W = x.shape

    def run() -> Tensor:
        columns = F.unfold(x, 3, padding=1).transpose(0, 1).flatten(1)
        return (matrix @ columns).view(len(weight), N, H, W).transpose(0, 1)

    return run


def layers(rounds: int) -> list[Row]:
    """B5: one row a layer and sparsity."""
    rows = []
    for channels, side, rate in LAYERS:
        torch.manual_seed(0)
        spikes = (torch.rand(IMAGES, channels, side, side) < rate).float()
        turned = spikes.contiguous(memory_format=torch.channels_last)
        variants: dict[str, Callable[[], Tensor]] = {}
        for sparsity in SPARSITIES:
            conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False).eval().requires_grad_(False)
            conv.weight.mul_(torch.rand(conv.weight.shape) >= sparsity)
            ours, wanted = SparseConv2d(conv), conv(spikes)
            of_sparsity: dict[str, Callable[[], Tensor]] = {
                "dense": partial(conv, spikes),
                "dense, channels_last": partial(conv, turned),
                "torch CSR": by_csr(conv.weight, spikes),
                "ours": partial(ours, spikes),
                "ours, channels_last": partial(ours, turned),
            }
            for name, run in of_sparsity.items():
                if not torch.allclose(run(), wanted, atol=1e-4):
                    raise RuntimeError(f"{name} computes something else")
                variants[f"{sparsity} {name}"] = run
        seconds = medians(variants, rounds)
        for sparsity in SPARSITIES:
            own = {n.partition(" ")[2]: s for n, s in seconds.items() if n.startswith(f"{sparsity} ")}
            rows.append({"channels": channels, "side": side, "sparsity": sparsity, "seconds": own})
    return rows


@cache
def pruned(name: str, sparsity: float) -> SpikingNetwork:
    """A network with SLAMP's masks, and with batch norm statistics under which it spikes."""
    torch.manual_seed(0)
    model = build(name, input_shape=(3, 32, 32), num_classes=10)
    x_TB = direct(torch.rand(4, 3, 32, 32), T)
    reestimate(model, [x_TB])
    allocate(model, calibrate(model, [x_TB]), sparsity=sparsity).masks.apply_(model)
    reestimate(model, [x_TB])
    return model.eval().requires_grad_(False)


def networks(chosen: list[tuple[str, int]], rounds: int) -> list[Row]:
    """One row a network, batch and sparsity."""
    rows = []
    for name, batch in chosen:
        x = torch.rand(batch + 2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
        x_TB, two_TB = direct(x[:batch], T), direct(x[batch:], T)
        variants: dict[str, Callable[[], Tensor]] = {}
        found: list[Row] = []
        for sparsity in SPARSITIES:
            dense = pruned(name, sparsity)
            inference = for_inference(dense, x_TB, rounds=3)
            if not variants:
                other = copy.deepcopy(dense)
                other.channels_last = not dense.channels_last
                variants["dense"] = partial(dense, x_TB)
                variants["dense, other memory format"] = partial(other, x_TB)
            variants[f"ours {sparsity}"] = partial(inference.model, x_TB)
            found.append(
                {
                    "network": name,
                    "batch": batch,
                    "sparsity": sparsity,
                    "layers": len(inference.layers),
                    "sparse_layers": sum(layer.sparse for layer in inference.layers),
                    "largest_difference": difference(dense, inference.model, two_TB),
                }
            )
        with torch.no_grad():
            seconds = medians(variants, rounds)
        for row in found:
            row["seconds"] = {n: s for n, s in seconds.items() if n.startswith("dense")}
            row["seconds"]["ours"] = seconds[f"ours {row['sparsity']}"]
        rows += found
    return rows


@torch.no_grad()
def difference(dense: nn.Module, ours: nn.Module, x_TB: Tensor) -> float:
    """Largest difference of logits, in float64."""
    wanted, logits = (copy.deepcopy(net).double()(x_TB.double()) for net in (dense, ours))
    if not wanted.std(1).max() > 0:
        raise RuntimeError("a silent network shows nothing")
    return float((logits - wanted).abs().max())


def fastest(seconds: dict[str, float], kind: str) -> float:
    """Of the memory formats."""
    return min(s for name, s in seconds.items() if name.startswith(kind))


def tables(result: dict[str, Any]) -> str:
    """Of a stored result: milliseconds, and how many times faster ours is than dense, both at their best."""
    lines: list[str] = []
    if result["layers"]:
        names = list(result["layers"][0]["seconds"])
        lines += ["", "| layer | weights left | " + " | ".join(names) + " | dense / ours |"]
        lines.append("|---" * (len(names) + 3) + "|")
        for row in result["layers"]:
            s = row["seconds"]
            figures = [f"{1e3 * s[name]:.1f}" for name in names]
            ratio = fastest(s, "dense") / fastest(s, "ours")
            layer = f"{row['channels']} channels, {row['side']}x{row['side']}"
            lines.append(f"| {layer} | {1 - row['sparsity']:.0%} | {' | '.join(figures)} | {ratio:.2f} |")
    if result["networks"]:
        names = list(result["networks"][0]["seconds"])
        lines += ["", "| network | batch | weights left | sparse layers | " + " | ".join(names)]
        lines[-1] += " | dense / ours | logits, float64 |"
        lines.append("|---" * (len(names) + 6) + "|")
        for row in result["networks"]:
            s = row["seconds"]
            figures = [f"{1e3 * s[name]:.1f}" for name in names]
            ratio = fastest(s, "dense") / s["ours"]
            lines.append(
                f"| {row['network']} | {row['batch']} | {1 - row['sparsity']:.0%} "
                f"| {row['sparse_layers']} of {row['layers']} | {' | '.join(figures)} | {ratio:.2f} "
                f"| {row['largest_difference']:.0e} |"
            )
    return "\n".join(lines[1:]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", nargs="+", choices=["layers", "networks"], default=["layers", "networks"])
    parser.add_argument("--networks", nargs="+", metavar="NAME:BATCH", help="all when not given")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    tune_allocator()
    named = [(name, int(batch)) for name, _, batch in (n.partition(":") for n in options.networks or ())]
    result = {
        "about": about("benchmarks.sparse_inference", sys.argv[1:]),
        "layers": layers(options.rounds) if "layers" in options.cases else [],
        "networks": networks(named or list(NETWORKS), options.rounds) if "networks" in options.cases else [],
    }
    print(tables(result))
    if options.output:
        options.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
