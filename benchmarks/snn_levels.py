"""Tables of `benchmarks.snn_speed`'s rows, and the levels that the project holds itself to on a CPU."""

from typing import Any

Row = dict[str, Any]
Key = tuple[str, str, str, str]


def key(row: Row) -> Key:
    """What the rows of one table have in common."""
    return row["case"], row.get("network", ""), str(row.get("batch", "")), str(row.get("shape", ""))


def grouped(rows: list[Row]) -> dict[Key, dict[str, Row]]:
    """Rows by table and variant."""
    groups: dict[Key, dict[str, Row]] = {}
    for row in rows:
        groups.setdefault(key(row), {})[row["variant"]] = row
    return groups


def show(rows: list[Row]) -> None:
    """Tables of ratios, and the levels that the project holds itself to on a CPU."""
    for name_of_table, by_name in grouped(rows).items():
        print(" ".join(k for k in name_of_table if k))
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
                taken = row.get("seconds", {}).items()
                cells = [f"{step} {s['median'] * 1e3:9.1f} ms" for step, s in taken]
                cells.append(f"{row['mebibytes']:7.1f} MiB")
            print(f"  {name:28s}" + "   ".join(cells))
        for text in levels(by_name):
            print("  " + text)


def levels(by_name: dict[str, Row]) -> list[str]:
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
    elif ours["case"] == "B4" and peer:
        least = min(row["mebibytes"] for name, row in by_name.items() if name.startswith("spikingjelly"))
        ratio = by_name["ours, recompute"]["mebibytes"] / least
        found.append(("MiB kept, recomputing, over spikingjelly's least", ratio, 1.0, False))
    return [
        f"{what}: {value:.2f} ({'at least' if more else 'at most'} {level:g}:"
        f" {'met' if (value >= level if more else value <= level) else 'MISSED'})"
        for what, value, level, more in found
    ]


def page(source: str, about: Row, rows: list[Row]) -> str:
    """A Markdown page of the tables and levels."""
    peers = "".join(f", {name} {found}" for name, found in about["peers"].items() if found)
    lines = [
        "# Speed of neurons and networks",
        "",
        f"`python -m benchmarks.snn_speed`, {about['date']}, {about['machine']}, device {about['device']},"
        f" {about['dtype']}, torch {about['torch']}{peers}. One thread; medians of {about['rounds']}"
        " interleaved rounds; spread in brackets. What the variants are: the benchmark's help. Rows:"
        f" [{source}]({source}).",
    ]
    for (case, *names), by_name in grouped(rows).items():
        lines += ["", f"## {case}: " + ", ".join(n for n in names if n), ""]
        header, cells = _table(case, by_name)
        lines += [f"| variant | {' | '.join(header)} |", "|---" * (len(header) + 1) + "|"]
        lines += [f"| {name} | {' | '.join(row)} |" for name, row in cells.items()]
        found = levels(by_name)
        if found:
            lines += ["", *[f"- {text}" for text in found]]
    return "\n".join(lines) + "\n"


def _table(case: str, by_name: dict[str, Row]) -> tuple[list[str], dict[str, list[str]]]:
    if case == "B3":
        return ["MiB kept for backward"], {n: [f"{row['mebibytes']:.0f}"] for n, row in by_name.items()}
    steps = list(next(iter(by_name.values()))["seconds"])
    header = [f"{step}, ms" for step in steps]
    if case == "B1":
        header += [f"{step} / limit" for step in steps]
    elif case == "B4":
        header += [f"{step} / ours" for step in steps] + ["MiB kept for backward"]
    else:
        header += ["ns per neuron and timestep", "share of copy bandwidth"]
    cells = {}
    for name, row in by_name.items():
        taken = row["seconds"]
        line = [
            f"{1e3 * s['median']:.1f} [{1e3 * s['min']:.1f}, {1e3 * s['max']:.1f}]" for s in taken.values()
        ]
        if case == "B1":
            limit = by_name["limit"]["seconds"]
            line += [f"{s['median'] / limit[step]['median']:.2f}" for step, s in taken.items()]
        elif case == "B4":
            ours = by_name["ours"]["seconds"]
            line += [f"{s['median'] / ours[step]['median']:.2f}" for step, s in taken.items()]
            line.append(f"{row['mebibytes']:.1f}")
        else:
            line += [f"{row['ns_per_element_step']:.2f}", f"{row['share_of_copy_bandwidth']:.0%}"]
        cells[name] = line
    return header, cells
