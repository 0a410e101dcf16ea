"""The report: what it says is what the run recorded, and the page stands alone."""

import html
import json
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from statistics import median
from xml.etree import ElementTree

import pytest
from rich.console import Console

from cluster.errors import UserError
from pipelines import cli
from pipelines.config.load import load_config
from pipelines.report.page import STYLE, html_figure, write_comparison, write_page
from pipelines.report.plots import COLOURS, new_figure, to_svg
from pipelines.report.summary import PhaseSummary, phase_rows, summarise
from pipelines.runs.run import run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, digits: Path) -> Path:
    config = load_config(
        None,
        {
            "storage": str(tmp_path_factory.mktemp("runs")),
            "data.path": str(digits),
            "baseline": "full",
            "cluster.engine": "local",
            "cluster.workers": "1",
            "model.hidden": "[32]",
            "train.epochs": "4",
            "weight_pruning.retrain_epochs": "1",
            "data_pruning.diagnose_every": "1",
            "data_pruning.diagnose_examples": "32",
        },
    )
    return run(config, console=Console(quiet=True))


def test_the_summary_adds_up_the_records(folder: Path) -> None:
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    summary = summarise(folder)
    assert [p.phase for p in summary.phases] == ["baseline", "train", "prune", "retrain"]
    for p in summary.phases:
        of = [r for r in records if r["phase"] == p.phase]
        assert p.test_accuracy == of[-1]["test_accuracy"]
        assert p.examples == sum(r.get("examples", 0) for r in of)
        assert p.synops == of[-1]["activity"]["synops"]
    train = summary.of("train")
    assert train is not None
    headings, rows = phase_rows([summary])
    row = dict(zip(headings, rows[1], strict=True))
    assert row[""] == "SADP at ratio 0.5"
    assert row["examples processed"] == f"{1437 + 718 + 718 + 1437:,}"


def test_diagnoses_are_recorded_for_pruned_epochs(folder: Path) -> None:
    records = [r for r in summarise(folder).records if r["phase"] == "train"]
    assert ["diagnosis" in r for r in records] == [False, True, True, False]
    assert ["diagnose" in r["seconds"] for r in records] == [False, True, True, False]
    for r in records[1:3]:
        assert r["diagnosis"]["probe_size"] == 32
        assert r["diagnosis"]["variance_to_oracle"] >= 1 - 1e-9


class Page(HTMLParser):
    """Counts elements and collects what a page would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.fetched: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "xlink:href") and value and not value.startswith(("#", "data:")):
                self.fetched.append(value)


def test_the_page_stands_alone_and_draws_all_plots(folder: Path) -> None:
    text = write_page(summarise(folder)).read_text()
    page = Page()
    page.feed(text)
    assert page.fetched == []
    assert page.tags.count("script") == 1
    assert page.tags.count("figure") == page.tags.count("svg") == 5
    assert not re.search(r"url\(\s*['\"]?https?:", text)
    for row in phase_rows([summarise(folder)])[1]:
        assert f">{row[1]}</td>" in text


def test_the_page_says_where_the_run_comes_from_and_what_an_epoch_took(folder: Path) -> None:
    text = html.unescape(write_page(summarise(folder)).read_text())
    told = json.loads((folder / "provenance.json").read_text())
    for value in (told["started"], told["hardware"], told["platform"], told["versions"]["torch"]):
        assert f"<dd>{value}</dd>" in text
    assert f"{os.cpu_count()} CPUs (" in told["hardware"]
    totals = [r["seconds"]["total"] for r in summarise(folder).records if r["phase"] == "train"]
    assert "Median seconds of an epoch, evaluation included: " in text
    assert f", {median(totals):.1f} (SADP at ratio 0.5)" in text


def test_report_verb_prints_the_table(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "report.html").unlink(missing_ok=True)
    assert cli.main(["report", str(folder)]) == 0
    printed = capsys.readouterr().out
    assert "SADP at ratio 0.5" in printed
    assert (folder / "report.html").exists()
    stored = json.loads((folder / "report.json").read_text())
    assert [PhaseSummary(**p) for p in stored["phases"]] == summarise(folder).phases
    assert stored["about"]["seed"] == 0


def test_a_run_without_epochs_has_nothing_to_report(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text((folder / "config.yaml").read_text())
    with pytest.raises(UserError, match="no finished epoch yet"):
        summarise(tmp_path)


@pytest.mark.filterwarnings("error")
def test_a_run_that_prunes_alone_has_no_accuracy_over_examples(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "pruned")
    metrics = tmp_path / "pruned" / "metrics.jsonl"
    lines = [line for line in metrics.read_text().splitlines() if json.loads(line)["phase"] == "prune"]
    metrics.write_text("\n".join(lines) + "\n")
    run = summarise(tmp_path / "pruned")
    page = write_page(run, tmp_path / "alone.html").read_text()
    assert "Density and SynOps per layer" in page
    assert "Accuracy over examples processed" not in page
    assert "Accuracy over" not in write_comparison([run, run], tmp_path / "two.html").read_text()


def test_runs_side_by_side(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    text = (other / "config.yaml").read_text()
    changed = text.replace("name: run", "name: other", 1).replace("ratio: 0.5", "ratio: 0.25")
    (other / "config.yaml").write_text(changed)
    assert cli.main(["report", str(folder), str(other), "--output", str(tmp_path / "both.html")]) == 0
    assert "SADP at ratio 0.25" in capsys.readouterr().out
    page = (tmp_path / "both.html").read_text()
    assert page.count("SADP at ratio 0.25") >= 2  # table and legend
    differing = re.search(r">data_pruning.ratio</td><td[^>]*>0.5</td><td[^>]*>0.25</td>", page)
    assert differing


def relative_luminance(colour: str) -> float:
    """WCAG 2.2, of #rgb or #rrggbb."""
    digits = colour.lstrip("#")
    digits = "".join(c * 2 for c in digits) if len(digits) == 3 else digits
    parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a: str, b: str) -> float:
    high, low = sorted((relative_luminance(a), relative_luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_text_and_lines_stand_out_in_light_and_dark() -> None:
    inks, papers = (re.findall(rf"--{name}: (#[0-9a-f]+)", STYLE) for name in ("ink", "paper"))
    assert len(inks) == len(papers) == 2
    for ink, paper in zip(inks, papers, strict=True):
        assert contrast(ink, paper) >= 7  # WCAG AAA for text
        for colour in COLOURS.values():
            assert contrast(colour, paper) >= 3  # WCAG AA for graphics


def test_the_smallest_text_of_a_plot_is_legible_on_a_phone() -> None:
    figure, (left, right) = new_figure(2, 3)
    left.set_title("small", fontsize=6)
    right.set_yscale("log")  # exponents are smaller than other text
    svg = to_svg(figure)
    shown = html_figure("title", svg)
    pixels = float(re.search(r"min-width: (\d+)px", shown)[1])  # type: ignore[index]
    box = ElementTree.fromstring(svg).attrib["viewBox"]
    sizes = [float(s) for s in re.findall(r"([\d.]+)px", " ".join(re.findall('style="font[^"]*"', svg)))]
    assert min(sizes) < 7
    assert min(sizes) * pixels / float(box.split()[2]) >= 11


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PROBE = """
<iframe id=page width=360 height=800 style="border: 0"></iframe><script>
const page = document.getElementById("page");
page.onload = () => {
  const inner = page.contentDocument, errors = page.contentWindow.errors;
  const head = inner.querySelectorAll("th button")[1];
  head.click();
  const sorted = [...inner.querySelector("tbody").rows].map(r => parseFloat(r.cells[1].textContent));
  document.body.dataset.found = JSON.stringify({
    errors, sorted, width: inner.documentElement.scrollWidth,
    font: parseFloat(inner.defaultView.getComputedStyle(inner.body).fontSize),
    plots: [...inner.querySelectorAll("figure svg")].map(s => [
      Math.min(...[...s.querySelectorAll("text, tspan")].map(t => parseFloat(getComputedStyle(t).fontSize)))
        * s.getBoundingClientRect().width / s.viewBox.baseVal.width,
      s.querySelectorAll("path").length]),
    cells: [...inner.querySelectorAll("td")].map(cell => [
      cell.getBoundingClientRect().right, getComputedStyle(cell, "::before").content]),
    unnamed: [...inner.querySelectorAll("[role=img]")].filter(e => !e.getAttribute("aria-label")).length,
  });
};
page.srcdoc = SOURCE;
</script>"""


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here (Debian's package chromium)")
def test_a_browser_shows_the_page_on_a_phone(folder: Path, tmp_path: Path) -> None:
    watch = "<script>window.errors = []; onerror = m => { errors.push(m) }; const was = console.error;"
    watch += " console.error = m => { errors.push(m); was(m) }</script>"
    source = write_page(summarise(folder)).read_text().replace("<head>", f"<head>{watch}", 1)
    probe = tmp_path / "probe.html"
    quoted = json.dumps(source).replace("</", "<\\/")
    probe.write_text(f"<!doctype html><body>{PROBE.replace('SOURCE', quoted)}</body>")
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=5000"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", probe.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    told = re.search(r'data-found="([^"]*)"', done.stdout)
    assert told, done.stderr[-2000:]
    found = json.loads(html.unescape(told[1]))
    assert found["errors"] == []
    assert found["width"] <= 360  # plots and code scroll sideways, the page does not
    assert found["font"] >= 16
    assert all(right <= 360 for right, _ in found["cells"])
    columns = [content for _, content in found["cells"]]
    assert {'"test accuracy"', '"density"', '"SynOps of dense"'} < set(columns)
    assert found["unnamed"] == 0
    assert len(found["plots"]) == 5
    for text, paths in found["plots"]:
        assert text >= 11
        assert paths > 5
    assert found["sorted"] == sorted(found["sorted"])
