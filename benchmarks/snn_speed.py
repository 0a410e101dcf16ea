"""What spiking costs: our networks beside the same networks without neurons, and beside other libraries.

    python -m benchmarks.snn_speed [--cases B1 B2 B3] [--rounds 9] [--device cpu] [--output FILE.json]

B1: forward and forward+backward of whole networks; B2: the LIF layer alone; B3: bytes of activations
kept for the backward pass. All variants of a case run in one process, in turn, round after round, on
one thread; a figure is the median over rounds (CPU: of CPU time, which waiting does not enter; CUDA:
of wall time with synchronisation) beside its spread. Ratios of one run are what may be compared.

Every variant has the same weights, folded convolutions and input; only the neurons differ:

- ``ours``: this package's engine, static first layer computed once; ``ours, channels_last`` the same;
- ``limit``: no neurons (identity), on T copies of the images;
- ``spikingjelly``: its multi-step LIFNode (2.0.0);
- ``snntorch``, ``norse``: one call of the whole network per timestep, their idiom (1.0.0, 1.1.0).

Libraries that are not installed are left out and said so.
"""

import argparse
import copy
import json
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from snn.coding import direct
from snn.kernels import choose
from snn.kernels.allocator import tune_allocator
from snn.losses import rate_cross_entropy
from snn.models import build
from snn.neurons import LIF, NeuronParameters, lif

T = 4
NEURON = NeuronParameters(beta=0.5, decay_input=True)
LAYERS = ((4, 32, 256, 8, 8), (4, 32, 64, 32, 32), (8, 16, 64, 32, 32))
NETWORKS = (("vgg6", 8), ("vgg6", 32), ("sew_resnet18", 4))
NETWORKS_CUDA = (("vgg6", 128), ("sew_resnet18", 128))


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


class Stepwise(nn.Module):
    """A network called once per timestep, its neurons' state cleared at the start."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x_TB: Tensor) -> Tensor:
        for module in self.model.modules():
            if isinstance(module, StepNeuron):
                module.state = None
        return torch.cat([self.model(x_TB[t : t + 1]) for t in range(len(x_TB))])


class StepNeuron(nn.Module):
    """One timestep of another library's neuron, with the state it wants back."""

    def __init__(self, step: Callable[[Tensor, Any], tuple[Tensor, Any]]) -> None:
        super().__init__()
        self.step = step
        self.state: Any = None

    def forward(self, current_TB: Tensor) -> Tensor:
        spikes, self.state = self.step(current_TB[0], self.state)
        return spikes[None]


class SpikingJellyNeuron(nn.Module):
    """Its multi-step LIF, reset before every sequence."""

    def __init__(self) -> None:
        super().__init__()
        from spikingjelly.activation_based import neuron, surrogate

        self.node = neuron.LIFNode(
            tau=2.0, v_reset=0.0, detach_reset=True, surrogate_function=surrogate.ATan(), step_mode="m"
        )

    def forward(self, current_TB: Tensor) -> Tensor:
        self.node.reset()
        return self.node(current_TB)


def snntorch_step() -> Callable[[Tensor, Any], tuple[Tensor, Any]]:
    import snntorch
    from snntorch import surrogate

    leaky = snntorch.Leaky(beta=0.5, spike_grad=surrogate.atan(alpha=2.0), reset_mechanism="zero")

    def step(current: Tensor, state: Any) -> tuple[Tensor, Any]:
        return leaky(current * 0.5, leaky.init_leaky() if state is None else state)

    return step


def norse_step() -> Callable[[Tensor, Any], tuple[Tensor, Any]]:
    import norse.torch as norse

    cell = norse.LIFBoxCell(norse.LIFBoxParameters(tau_mem_inv=torch.tensor(500.0)), dt=0.001)
    return lambda current, state: cell(current, state)


def installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def with_neurons(model: nn.Module, make: Callable[[], nn.Module]) -> nn.Module:
    """A copy of the network with other neurons."""
    model = copy.deepcopy(model)
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, LIF):
                setattr(module, name, make())
    return model


def network_variants(model: nn.Module) -> dict[str, tuple[nn.Module, bool]]:
    """Networks by name, and whether each is given the static view (else T copies of the images)."""
    variants = {
        "limit": (with_neurons(model, nn.Identity), False),
        "ours": (copy.deepcopy(model), True),
        "ours, channels_last": (copy.deepcopy(model).to(memory_format=torch.channels_last), True),
    }
    if installed("spikingjelly"):
        variants["spikingjelly"] = (with_neurons(model, SpikingJellyNeuron), False)
    if installed("snntorch"):
        variants["snntorch"] = (Stepwise(with_neurons(model, lambda: StepNeuron(snntorch_step()))), False)
    if installed("norse"):
        variants["norse"] = (Stepwise(with_neurons(model, lambda: StepNeuron(norse_step()))), False)
    return variants


def prepared(name: str, batch: int, machine: Machine) -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    model = build(name, input_shape=(3, 32, 32), num_classes=10, neuron=NEURON).to(machine.device)
    x_B = torch.rand(batch, 3, 32, 32, device=machine.device)
    return model, x_B, torch.arange(batch, device=machine.device) % 10


def networks(machine: Machine) -> list[dict[str, Any]]:
    """B1."""
    rows = []
    for name, batch in NETWORKS_CUDA if machine.device.type == "cuda" else NETWORKS:
        model, x_B, labels = prepared(name, batch, machine)
        steps = {}
        for variant, (net, static) in network_variants(model).items():
            steps[variant] = network_steps(net.train(), x_B, labels, static, variant, machine)
        seconds = machine.time(steps)
        for variant, measured in seconds.items():
            rows.append(
                {"case": "B1", "network": name, "batch": batch, "variant": variant, "seconds": measured}
            )
    return rows


def network_steps(
    net: nn.Module, x_B: Tensor, labels: Tensor, static: bool, variant: str, machine: Machine
) -> dict[str, Callable[[], Any]]:
    if "channels_last" in variant:
        x_B = x_B.to(memory_format=torch.channels_last)
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


def layers(machine: Machine) -> list[dict[str, Any]]:
    """B2, with the copy bandwidth of the same run."""
    rows = []
    for shape in LAYERS:
        x = torch.randn(shape, device=machine.device, dtype=machine.dtype).requires_grad_()
        steps = {name: layer_steps(run, x) for name, run in layer_variants(shape[0]).items()}
        out = torch.empty_like(x)
        steps["copy"] = {"copy": lambda out=out, x=x: out.copy_(x.detach())}
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


def layer_variants(steps: int) -> dict[str, Callable[[Tensor], Tensor]]:
    variants: dict[str, Callable[[Tensor], Tensor]] = {
        "ours": LIF(NEURON),
        "ours, eager": lambda x: lif(x, NEURON, engine="eager")[0],
    }
    if installed("spikingjelly"):
        variants["spikingjelly"] = SpikingJellyNeuron()

    def looped(make: Callable[[], Callable[[Tensor, Any], tuple[Tensor, Any]]]) -> Callable[[Tensor], Tensor]:
        step = make()

        def run(x: Tensor) -> Tensor:
            state, spikes = None, []
            for t in range(steps):
                s, state = step(x[t], state)
                spikes.append(s)
            return torch.stack(spikes)

        return run

    if installed("snntorch"):
        variants["snntorch"] = looped(snntorch_step)
    if installed("norse"):
        variants["norse"] = looped(norse_step)
    return variants


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


def kept_bytes(machine: Machine) -> list[dict[str, Any]]:
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

        x = x_B.to(memory_format=torch.channels_last) if "channels_last" in variant else x_B
        x_TB = direct(x, T) if static else direct(x, T).contiguous()
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


def show(rows: list[dict[str, Any]]) -> None:
    """Tables of ratios, and the levels that the project holds itself to on a CPU."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        key = (row["case"], row.get("network"), row.get("batch"), str(row.get("shape", "")))
        groups.setdefault(key, []).append(row)
    for key, group in groups.items():
        print(" ".join(str(k) for k in key if k))
        by_name = {row["variant"]: row for row in group}
        for name, row in by_name.items():
            if row["case"] == "B1":
                limit = by_name["limit"]["seconds"]
                cells = [
                    f"{step} {s['median'] * 1e3:9.1f} ms [{s['min'] * 1e3:.1f}..{s['max'] * 1e3:.1f}]"
                    f" = {s['median'] / limit[step]['median']:.2f} x limit"
                    for step, s in row["seconds"].items()
                ]
            elif row["case"] == "B2":
                cells = [f"{step} {s['median'] * 1e3:7.2f} ms" for step, s in row["seconds"].items()]
                cells.append(f"{row['ns_per_element_step']:6.2f} ns/element-step")
                cells.append(f"{row['share_of_copy_bandwidth']:.0%} of copy bandwidth")
            else:
                cells = [f"{row['mebibytes']:7.1f} MiB"]
            print(f"  {name:22s}" + "   ".join(cells))
        for text in levels(by_name):
            print("  " + text)


def levels(by_name: dict[str, dict[str, Any]]) -> list[str]:
    """Each level with what was measured."""
    ours, peer = by_name["ours"], by_name.get("spikingjelly")
    found: list[tuple[str, float, float, bool]] = []
    if ours["case"] == "B1":
        step = "forward+backward"
        limit = by_name["limit"]["seconds"][step]["median"]
        mine = ours["seconds"][step]["median"]
        found.append(("forward+backward over the limit", mine / limit, 1.10, False))
        if peer:
            wanted = 1.3 if ours["network"] == "vgg6" else 1.2
            found.append(
                ("throughput over spikingjelly", peer["seconds"][step]["median"] / mine, wanted, True)
            )
    elif ours["case"] == "B2" and peer:
        ratio = peer["ns_per_element_step"] / ours["ns_per_element_step"]
        found.append(("LIF layer over spikingjelly", ratio, 5.0, True))
    elif ours["case"] == "B3":
        found.append(("MiB kept", ours["mebibytes"], 350.0, False))
    return [
        f"{what}: {value:.2f} ({'at least' if more else 'at most'} {level:g}:"
        f" {'met' if (value >= level if more else value <= level) else 'MISSED'})"
        for what, value, level, more in found
    ]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", nargs="+", choices=["B1", "B2", "B3"], default=["B1", "B2", "B3"])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    tuned = tune_allocator()
    machine = Machine(torch.device(args.device), getattr(torch, args.dtype), args.rounds)
    cases = {"B1": networks, "B2": layers, "B3": kept_bytes}
    peers = {name: installed(name) for name in ("spikingjelly", "snntorch", "norse")}
    for name, found in peers.items():
        if found is None:
            print(f"{name} is not installed: left out")
    rows = [row for case in args.cases for row in cases[case](machine)]
    show(rows)
    if args.output:
        about = {
            "machine": platform.processor() or platform.machine(),
            "device": args.device if args.device == "cpu" else torch.cuda.get_device_name(),
            "dtype": args.dtype,
            "torch": torch.__version__,
            "peers": peers,
            "allocator_tuned": tuned,
            "rounds": args.rounds,
        }
        args.output.write_text(json.dumps({"about": about, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
