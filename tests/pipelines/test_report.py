"""The report: what it says is what the run recorded, and the page stands alone."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console

from pipelines import cli
from pipelines.config_io import load_config
from pipelines.errors import UserError
from pipelines.report.page import write_page
from pipelines.report.summary import summarise
from pipelines.report.tables import phase_cells
from pipelines.run import run


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
            "weights.retrain_epochs": "1",
            "examples.diagnose_every": "1",
            "examples.diagnose_examples": "32",
        },
    )
    return run(config, console=Console(quiet=True))


def test_the_summary_adds_up_the_records(folder: Path) -> None:
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    summary = summarise(folder)
    assert [p.phase for p in summary.phases] == ["baseline", "train", "prune", "retrain"]
    for p in summary.phases:
        of = [r for r in records if r["phase"] == p.phase]
        assert p.accuracy == of[-1]["test_accuracy"]
        assert p.examples == sum(r.get("examples", 0) for r in of)
        assert p.synops == of[-1]["activity"]["synops"]
    train = summary.of("train")
    assert train is not None
    assert phase_cells(train)[0] == "SADP at ratio 0.5"
    assert phase_cells(train)[2] == f"{1437 + 718 + 718 + 1437:,}"


def test_diagnoses_are_recorded_for_pruned_epochs(folder: Path) -> None:
    records = [r for r in summarise(folder).records if r["phase"] == "train"]
    assert ["diagnosis" in r for r in records] == [False, True, True, False]
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
    assert "script" not in page.tags
    assert page.tags.count("figure") == page.tags.count("svg") == 4
    assert not re.search(r"url\(\s*['\"]?https?:", text)
    for p in summarise(folder).phases:
        assert f"<td>{phase_cells(p)[1]}</td>" in text


def test_report_verb_prints_the_table(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "report.html").unlink(missing_ok=True)
    assert cli.main(["report", str(folder)]) == 0
    printed = capsys.readouterr().out
    assert "SADP at ratio 0.5" in printed
    assert (folder / "report.html").exists()


def test_a_run_without_epochs_has_nothing_to_report(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text((folder / "config.yaml").read_text())
    with pytest.raises(UserError, match="no finished epoch yet"):
        summarise(tmp_path)
