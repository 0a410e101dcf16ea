import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.compare import compare, moved
from benchmarks.suite import CASES, markdown

ROOT = Path(__file__).resolve().parents[2]


def ratio(median: float, low: float, high: float) -> dict[str, float]:
    return {"median": median, "low": low, "high": high}


def result(**ratios: dict[str, float]) -> dict:
    case = {"command": "python -m x", "wall_seconds": 1.0, "cpu_seconds": 1.0, "ratios": ratios}
    about = {"command": "c", "date": "d", "commit": "e", "machine": "m", "versions": {"torch": "1"}}
    return {"about": about, "cases": {"a": case}}


@pytest.mark.parametrize(
    ("before", "after", "verdict"),
    [
        (ratio(1.0, 0.9, 1.1), ratio(1.15, 1.05, 1.2), ""),  # ranges touch
        (ratio(1.0, 0.99, 1.0), ratio(1.01, 1.005, 1.02), ""),  # too small to matter
        (ratio(1.0, 0.9, 1.1), ratio(1.3, 1.2, 1.4), "worse"),
        (ratio(1.0, 0.9, 1.1), ratio(0.7, 0.6, 0.8), "better"),
    ],
)
def test_a_ratio_moves_only_beyond_its_spread(before: dict, after: dict, verdict: str) -> None:
    assert moved(before, after) == verdict


def test_ratios_of_one_result_alone_are_said() -> None:
    rows = compare(result(x=ratio(1, 1, 1)), result(y=ratio(1, 1, 1)))
    assert [(row[0], row[3]) for row in rows] == [("a: x", "only in one"), ("a: y", "only in one")]


def test_the_command_fails_on_a_regression_and_names_it(tmp_path: Path) -> None:
    for name, value in (("before", 1.0), ("after", 1.5)):
        (tmp_path / f"{name}.json").write_text(json.dumps(result(slow=ratio(value, value, value))))
    command = [sys.executable, "-m", "benchmarks.compare", tmp_path / "before.json", tmp_path / "after.json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "1 worse\n  a: slow" in done.stdout
    same = subprocess.run(
        [*command[:3], command[3], command[3]], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert same.returncode == 0


def test_the_page_has_every_ratio_and_the_commands() -> None:
    page = markdown(result(x=ratio(1.25, 1.2, 1.3)))
    assert "| a | x | 1.250 | 1.200 to 1.300 |" in page
    assert "python -m x" in page


def test_the_cases_name_modules_that_exist() -> None:
    for case in CASES.values():
        assert (ROOT / f"{case.command[0].replace('.', '/')}.py").exists()
