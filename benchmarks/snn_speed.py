"""What spiking costs: our networks beside the same networks without neurons, and beside other libraries.

    python -m benchmarks.snn_speed [--cases B1 B2 B3 B4] [--networks vgg6:8 ...] [--output FILE.json]

B1: forward and forward+backward of whole networks; B2: the LIF layer alone; B3: bytes of activations
kept for the backward pass; B4: those of `snn.activations` and of spikingjelly's memory optimisation, by
what the allocator holds after a forward pass, and what they cost in time. All variants of a case run in
one process, in turn, round after round, on one thread; a figure is the median over rounds (CPU: of CPU
time, which waiting does not enter; CUDA: of wall time with synchronisation) beside its spread. Ratios of
one run are what may be compared.

Every variant has the same weights, folded convolutions and input; the neurons differ:

- ``ours``: this package's engine as the model comes (VGG in channels_last), static first layer computed
  once; ``ours, NCHW`` or ``ours, channels_last``: the other memory format; ``ours, weighted``: batch
  norms with example weights;
- ``limit``: no neurons (identity), on T copies of the images, in NCHW;
- ``spikingjelly``, ``snntorch``, ``norse``: `benchmarks.snn_peers`; those not installed are left out;
- with ``--compile`` also ``ours, compiled`` (torch.compile, whose neurons are the eager loop) and on CUDA
  ``ours, CUDA graphs`` (the same with mode "reduce-overhead"). They compile before the first round.

With ``--output`` the rows also go to FILE.json, in place of earlier ones of the same case there, and as
tables to FILE.md.
"""

import argparse
import copy
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.about import about
from benchmarks.snn_levels import key, page, show
from benchmarks.snn_peers import (
    NEURON,
    PEERS,
    installed,
    layer_variants,
    memory_variants,
    network_variants,
)
from snn.coding import direct
from snn.kernels import choose
from snn.kernels.allocator import tune_allocator
from snn.losses import rate_cross_entropy
from snn.models import build
from snn.models.base import SpikingNetwork

T = 4
LAYERS = ((4, 32, 256, 8, 8), (4, 32, 64, 32, 32), (8, 16, 64, 32, 32))
NETWORKS = (("vgg6", 8), ("vgg6", 32), ("sew_resnet18", 4))
NETWORKS_CUDA = (("vgg6", 128), ("sew_resnet18", 128))
Row = dict[str, Any]


@dataclass
class Machine:
    """Where a case runs and how it is timed."""

    device: torch.device
    dtype: torch.dtype
    rounds: int

    def clock(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
            return time.perf_counter()
        return time.process_time()

    def time(
        self, variants: dict[str, dict[str, Callable[[], Any]]]
    ) -> dict[str, dict[str, dict[str, float]]]:
        """Seconds of every step of every variant; a step may use what the one before it returned."""
        seconds: dict[str, dict[str, list[float]]] = {
            v: {s: [] for s in steps} for v, steps in variants.items()
        }
        for r in range(self.rounds + 1):
            for name, steps in variants.items():
                for step, run in steps.items():
                    began = self.clock()
                    run()
                    if r:  # the first round warms up
                        seconds[name][step].append(self.clock() - began)
        return {
            name: {
                step: {"median": statistics.median(s), "min": min(s), "max": max(s)}
                for step, s in steps.items()
            }
            for name, steps in seconds.items()
        }


def prepared(name: str, batch: int, machine: Machine) -> tuple[SpikingNetwork, Tensor, Tensor]:
    torch.manual_seed(0)
    model = build(name, input_shape=(3, 32, 32), num_classes=10, neuron=NEURON).to(machine.device)
    x_B = torch.rand(batch, 3, 32, 32, device=machine.device)
    return model, x_B, torch.arange(batch, device=machine.device) % 10


def networks(machine: Machine, chosen: list[str] | None, compiled: bool) -> list[Row]:
    """B1."""
    rows = []
    for name, batch in NETWORKS_CUDA if machine.device.type == "cuda" else NETWORKS:
        if chosen and f"{name}:{batch}" not in chosen:
            continue
        model, x_B, labels = prepared(name, batch, machine)
        steps = {}
        variants = network_variants(model)
        if compiled:
            variants |= compiled_variants(model, machine)
        for variant, (net, static) in variants.items():
            steps[variant] = network_steps(net.train(), x_B, labels, static, machine)
        seconds = machine.time(steps)
        for variant, measured in seconds.items():
            rows.append(
                {"case": "B1", "network": name, "batch": batch, "variant": variant, "seconds": measured}
            )
    return rows


def compiled_variants(model: SpikingNetwork, machine: Machine) -> dict[str, tuple[nn.Module, bool]]:
    """The network as torch compiles it, and with CUDA graphs where there are any."""
    modes = {"ours, compiled": "default"}
    if machine.device.type == "cuda":
        modes["ours, CUDA graphs"] = "reduce-overhead"
    found: dict[str, tuple[nn.Module, bool]] = {}
    for name, mode in modes.items():
        network: Any = torch.compile(copy.deepcopy(model), mode=mode)
        found[name] = (network, True)
    return found


def network_steps(
    net: nn.Module, x_B: Tensor, labels: Tensor, static: bool, machine: Machine
) -> dict[str, Callable[[], Any]]:
    x_TB = direct(x_B, T) if static else direct(x_B, T).contiguous()
    autocast = machine.dtype != torch.float32

    def loss() -> Tensor:
        with torch.autocast(machine.device.type, machine.dtype, enabled=autocast):
            return rate_cross_entropy(net(x_TB).float(), labels).mean()

    def forward() -> None:
        with torch.no_grad():
            loss()

    def train() -> None:
        net.zero_grad(set_to_none=True)
        loss().backward()

    return {"forward": forward, "forward+backward": train}


def layers(machine: Machine) -> list[Row]:
    """B2, with the copy bandwidth of the same run."""
    rows = []
    for shape in LAYERS:
        x = torch.randn(shape, device=machine.device, dtype=machine.dtype).requires_grad_()
        steps = {name: layer_steps(run, x) for name, run in layer_variants(shape[0]).items()}
        out = torch.empty_like(x)
        steps["copy"] = {"copy": partial(out.copy_, x.detach())}
        seconds = machine.time(steps)
        bandwidth = 2 * x.numel() * x.element_size() / seconds["copy"]["copy"]["median"]
        for variant, measured in seconds.items():
            if variant != "copy":
                rows.append(
                    {
                        "case": "B2",
                        "shape": list(shape),
                        "variant": variant,
                        "engine": choose(x) if variant == "ours" else None,
                        "seconds": measured,
                        "ns_per_element_step": 1e9
                        * (measured["forward"]["median"] + measured["backward"]["median"])
                        / x.numel(),
                        "share_of_copy_bandwidth": 5
                        * x.numel()
                        * x.element_size()
                        / (measured["forward"]["median"] + measured["backward"]["median"])
                        / bandwidth,
                        "copy_bytes_per_second": bandwidth,
                    }
                )
    return rows


def layer_steps(run: Callable[[Tensor], Tensor], x: Tensor) -> dict[str, Callable[[], Any]]:
    grad = torch.randn_like(x)
    kept: list[Tensor] = []

    def infer() -> None:
        with torch.no_grad():
            run(x)

    def forward() -> None:
        kept.append(run(x))

    def backward() -> None:
        torch.autograd.grad(kept.pop(), x, grad)

    return {"inference": infer, "forward": forward, "backward": backward}


def kept_bytes(machine: Machine) -> list[Row]:
    """B3: storages that the graph of one forward keeps, parameters not counted."""
    rows = []
    model, x_B, labels = prepared("vgg6", 32, machine)
    for variant, (net, static) in network_variants(model).items():
        own = {p.untyped_storage().data_ptr() for p in [*net.parameters(), *net.buffers()]}
        storages: dict[int, int] = {}

        def keep(t: Tensor, own: set[int] = own, storages: dict[int, int] = storages) -> Tensor:
            storage = t.untyped_storage()
            if storage.data_ptr() not in own:
                storages[storage.data_ptr()] = storage.nbytes()
            return t

        x_TB = direct(x_B, T) if static else direct(x_B, T).contiguous()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            loss = rate_cross_entropy(net.train()(x_TB), labels).mean()
        rows.append(
            {
                "case": "B3",
                "network": "vgg6",
                "batch": 32,
                "variant": variant,
                "mebibytes": sum(storages.values()) / 2**20,
            }
        )
        del loss
    return rows


def memory_modes(machine: Machine, chosen: list[str] | None) -> list[Row]:
    """B4."""
    rows = []
    for name, batch in NETWORKS_CUDA if machine.device.type == "cuda" else NETWORKS[1:]:
        if chosen and f"{name}:{batch}" not in chosen:
            continue
        model, x_B, labels = prepared(name, batch, machine)
        x_TB = direct(x_B, T)
        steps, kept = {}, {}
        for variant, (net, static) in memory_variants(model, x_TB.contiguous()).items():
            x = x_TB if static else x_TB.contiguous()
            kept[variant] = _held_after_forward(net.train(), x, labels)
            steps[variant] = network_steps(net, x_B, labels, static, machine)
        for variant, measured in machine.time(steps).items():
            row = {"case": "B4", "network": name, "batch": batch, "variant": variant, "seconds": measured}
            rows.append(row | {"mebibytes": kept[variant] / 2**20})
    return rows


def _held_after_forward(net: nn.Module, x_TB: Tensor, labels: Tensor) -> int:
    """Bytes that a forward pass leaves allocated."""
    rate_cross_entropy(net(x_TB), labels).mean()  # what is made once
    if x_TB.device.type == "cuda":
        before = torch.cuda.memory_allocated()
        loss = rate_cross_entropy(net(x_TB), labels).mean()
        held = torch.cuda.memory_allocated() - before
    else:
        activities = [torch.profiler.ProfilerActivity.CPU]
        with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
            loss = rate_cross_entropy(net(x_TB), labels).mean()
        events = profile.profiler.kineto_results.events()
        held = sum(e.nbytes() for e in events if e.name() == "[memory]")
    del loss
    return held


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--cases", nargs="+", choices=["B1", "B2", "B3", "B4"], default=["B1", "B2", "B3", "B4"]
    )
    parser.add_argument(
        "--networks", nargs="+", metavar="NAME:BATCH", help="of B1 and B4; all when not given"
    )
    parser.add_argument("--compile", action="store_true", help="B1 also as torch compiles it")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    tuned = tune_allocator()
    machine = Machine(torch.device(args.device), getattr(torch, args.dtype), args.rounds)
    peers = {name: installed(name) for name in PEERS}
    for name, found in peers.items():
        if found is None:
            print(f"{name} is not installed: left out")
    cases: dict[str, Callable[[], list[Row]]] = {
        "B1": lambda: networks(machine, args.networks, args.compile),
        "B2": lambda: layers(machine),
        "B3": lambda: kept_bytes(machine),
        "B4": lambda: memory_modes(machine, args.networks),
    }
    rows = [row for case in args.cases for row in cases[case]()]
    show(rows)
    if args.output:
        told = about("benchmarks.snn_speed", sys.argv[1:]) | {
            "machine": processor(),
            "device": args.device if args.device == "cpu" else torch.cuda.get_device_name(),
            "dtype": args.dtype,
            "torch": torch.__version__,
            "peers": peers,
            "allocator_tuned": tuned,
            "rounds": args.rounds,
        }
        write(args.output, told, rows)


def write(path: Path, about: dict[str, Any], rows: list[Row]) -> None:
    """Rows to the JSON file, in place of earlier ones of their cases, and the tables of all beside it."""
    if path.exists():
        new = {key(row) for row in rows}
        rows = [row for row in json.loads(path.read_text())["rows"] if key(row) not in new] + rows
    rows.sort(key=lambda row: row["case"])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"about": about, "rows": rows}, indent=1) + "\n")
    path.with_suffix(".md").write_text(page(path.name, about, rows))


def processor() -> str:
    """Its name and widest vectors, where the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    told = dict(line.replace("\t", "").split(":", 1) for line in lines if ":" in line)
    vectors = [name for name in ("avx512f", "avx2") if name in told.get("flags", "").split()]
    return " ".join([told.get("model name", platform.machine()).strip(), *vectors[:1]])


if __name__ == "__main__":
    main()
