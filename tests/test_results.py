"""Every figure in a table of README and docs/results comes from a JSON file that a benchmark wrote."""

import io
import json
import re
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from benchmarks import (
    data_pruner_overhead,
    demo_accuracy,
    end_to_end,
    figures,
    pipeline_overhead,
    sadp_quality,
    sadp_tables,
    scale,
    search_front,
    slamp_retraining,
    slamp_schedules,
    slamp_tables,
    snn_levels,
    sparse_inference,
    startup,
)
from pipelines.config.load import load_config
from pipelines.report.summary import PhaseSummary, RunSummary, phase_table

RESULTS = Path(__file__).resolve().parents[1] / "docs" / "results"
Result = dict[str, Any]


Tables = tuple[Callable[[Result], str], tuple[str, ...]]
PRINTED: dict[str, tuple[Tables, ...]] = {
    "sadp-training.md": (
        (sadp_tables.tables, ("sadp_training.json",)),
        (lambda result: sadp_quality.table(result["rows"]), ("sadp_quality_rate_ce.json",)),
    ),
    "slamp-quality.md": (
        (lambda result: slamp_tables.tables(result["rows"]), ("slamp_quality.json",)),
        (slamp_schedules.tables, ("slamp_schedules.json",)),
        (slamp_retraining.tables, ("slamp_retraining.json",)),
    ),
    "search.md": (
        (search_front.tables, ("search_front.json",)),
        (end_to_end.tables, ("end_to_end.json",)),
        (demo_accuracy.tables, ("demo_seeds.json",)),
    ),
    "speed.md": (
        (
            lambda result: snn_levels.page("snn-speed-cpu.json", result["about"], result["rows"]),
            ("snn-speed-cpu.json", "snn-speed-sew.json"),
        ),
        (
            lambda result: pipeline_overhead.tables(result["rows"]),
            ("pipeline_speedup.json", "pipeline_engines.json", "pipeline_steps.json"),
        ),
        (data_pruner_overhead.tables, ("data_pruner_overhead.json",)),
        (lambda result: startup.tables(result["rows"]), ("startup.json",)),
        (sparse_inference.tables, ("sparse_inference.json",)),
    ),
    "scale.md": ((scale.tables, ("scale.json",)),),
}
"""How a page's tables are printed from which files."""


def table_lines(text: str) -> list[str]:
    """Lines of tables with figures: Markdown's, and those of a printed block that begin with a method."""
    blocks = "\n".join(re.findall(r"```\n\$ .*?\n(.*?)```", text, re.DOTALL))
    lines = [line for line in text.splitlines() if line.startswith("|")] + blocks.splitlines()
    return [line.rstrip() for line in lines if re.search(r"\d", line)]


@pytest.mark.parametrize("page", PRINTED)
def test_tables_are_what_the_stored_result_prints(page: str) -> None:
    printed = {
        line.rstrip()
        for tables, files in PRINTED[page]
        for name in files
        for line in tables(json.loads((RESULTS / name).read_text())).splitlines()
    }
    lines = table_lines((RESULTS / page).read_text())
    assert lines
    assert [line for line in lines if line not in printed] == []


def test_every_page_is_listed_and_every_stored_result_is_named() -> None:
    pages = {page.name: page.read_text() for page in RESULTS.glob("*.md")}
    listed = re.findall(r"\]\(([\w-]+\.(?:md|json))\)", "".join(pages.values()))
    assert all(f"({name})" in pages["README.md"] for name in pages if name != "README.md")
    assert {name for name in listed if not (RESULTS / name).exists()} == set()
    assert {path.name for path in RESULTS.glob("*.json")} - set(listed) == set()


def test_the_readme_shows_the_stored_demo() -> None:
    stored = json.loads((RESULTS / "demo.json").read_text())
    console = Console(file=io.StringIO(), width=120)
    config = load_config(RESULTS.parents[1] / "examples" / "demo.yaml")
    phases = [PhaseSummary(**p) for p in stored["phases"]]
    console.print(phase_table([RunSummary(folder=RESULTS, config=config, records=[], phases=phases)]))
    printed = [line.rstrip() for line in console.file.getvalue().splitlines()]  # type: ignore[attr-defined]
    readme = (RESULTS.parents[1] / "README.md").read_text().splitlines()
    assert len(printed) > 5
    assert [line for line in printed if line not in readme] == []
    assert stored["about"]["git_commit"]


@pytest.mark.parametrize("file", sorted(p.name for p in RESULTS.glob("*.json")))
def test_a_stored_result_tells_where_it_is_from(file: str) -> None:
    text = (RESULTS / file).read_text()
    assert not re.search(r'[ "](/|~/)\w', text), "no paths of a machine"
    about = json.loads(text)["about"]
    command = about["command"]
    assert ("benchmarks." in command) if isinstance(command, str) else command[0].endswith("spikeprune")
    assert re.fullmatch(r"[0-9a-f]{7,40}", about.get("commit") or about["git_commit"])
    assert re.match(r"20\d\d-\d\d-\d\d", about.get("date") or about["started"])
    versions = about.get("versions", about)
    assert versions["torch"].startswith("2.")
    assert re.match(r"3\.\d+", versions.get("python") or about["python"])


def test_what_the_readme_says_of_three_seeds_is_stored() -> None:
    """Accuracies beside full data: of SADP, and of SLAMP after retraining."""
    rows = json.loads((RESULTS / "demo_seeds.json").read_text())["rows"]
    accuracy = {
        method: 100 * statistics.mean(r["accuracy"] for r in rows if r["method"] == method)
        for method in ("full", "sadp train", "sadp retrain")
    }
    assert len({r["seed"] for r in rows}) == 3
    readme = (RESULTS.parents[1] / "README.md").read_text()
    found = re.search(
        r"ended ([\d.]+) points (above|below) full data; SLAMP .* after retraining, ended ([\d.]+) below",
        readme,
    )
    assert found
    gain = accuracy["sadp train"] - accuracy["full"]
    assert (float(found[1]), found[2]) == (round(abs(gain), 2), "above" if gain > 0 else "below")
    assert float(found[3]) == round(accuracy["full"] - accuracy["sadp retrain"], 2)


def test_what_the_readme_says_of_sparse_inference_is_stored() -> None:
    rows = json.loads((RESULTS / "sparse_inference.json").read_text())["networks"]
    gain = {
        (row["batch"], round(row["sparsity"], 2)): min(
            s for name, s in row["seconds"].items() if name != "ours"
        )
        / row["seconds"]["ours"]
        for row in rows
        if row["network"] == "vgg6"
    }
    readme = (RESULTS.parents[1] / "README.md").read_text()
    found = re.search(
        r"VGG-6 runs ([\d.]+) times as fast at 90 % sparsity and ([\d.]+) times at 98 % with batches of 16,"
        r" and ([\d.]+) and ([\d.]+) times on single images",
        readme,
    )
    assert found
    assert [float(v) for v in found.groups()] == [
        round(gain[batch, sparsity], 1) for batch in (16, 1) for sparsity in (0.9, 0.98)
    ]


NUMBER = re.compile(r"(?<![\w#])-?\d+(?:\.\d+)?(?:e[+-]?\d+)?")


def drawing(svg: str) -> tuple[str, list[float]]:
    """What a plot shows: its text with the numbers taken out, and the numbers.

    Identifiers hash coordinates to their last bits, which differ between processors: they are renamed in
    the order in which they appear.
    """
    names: dict[str, str] = {}
    for name in re.findall(r'id="([^"]+)"', svg):
        names.setdefault(name, f"id{len(names)}")
    svg = re.sub(r'(?<=id=")[^"]+|(?<=#)[\w-]+(?=["\)])', lambda m: names.get(m[0], m[0]), svg)
    return NUMBER.sub("0", svg), [float(n) for n in NUMBER.findall(svg)]


@pytest.mark.parametrize("name", figures.FIGURES)
def test_a_plot_is_what_the_stored_result_draws(name: str) -> None:
    text, numbers = drawing((RESULTS / "images" / f"{name}.svg").read_text())
    drawn_text, drawn_numbers = drawing(figures.svg(name))
    assert text == drawn_text
    assert numbers == pytest.approx(drawn_numbers, abs=0.01)  # hundredths of a point
    assert f"](images/{name}.svg)" in (RESULTS / f"{name}.md").read_text()


def test_a_plot_of_other_values_is_another_drawing() -> None:
    text, numbers = drawing((RESULTS / "images" / "search.svg").read_text())
    moved = [n + (0.5 if i == len(numbers) // 2 else 0) for i, n in enumerate(numbers)]
    assert len(numbers) > 100
    assert numbers != pytest.approx(moved, abs=0.01)
    assert "SynOps of an inference" in text
