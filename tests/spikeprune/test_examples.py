"""The scripts for networks of other libraries run to their end, and differ in as few lines as we say."""

import difflib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"


def added(before: str, after: str) -> list[str]:
    """Lines that a script has and the one before it has not."""
    a, b = ((EXAMPLES / name).read_text().splitlines() for name in (before, after))
    return [line for line in difflib.ndiff(a, b) if line.startswith("+ ")]


def test_few_lines_make_the_difference() -> None:
    assert 0 < len(added("plain_spikingjelly.py", "spikingjelly_sadp.py")) <= 5
    assert 0 < len(added("spikingjelly_sadp.py", "spikingjelly_slamp.py")) <= 5


def printed_by(name: str, library: str) -> str:
    """By a script, in a process of its own."""
    pytest.importorskip(library, reason=f"{library} is not installed (extra peers)")
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / f"{name}.py")],
        capture_output=True,
        text=True,
        timeout=500,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["plain_spikingjelly", "spikingjelly_sadp", "spikingjelly_slamp", "snntorch_prune"]
)
def test_a_script_runs_to_its_end(name: str) -> None:
    library = "snntorch" if name.startswith("snntorch") else "spikingjelly"
    printed = printed_by(name, library)
    accuracy, synops = re.findall(r"accuracy (0\.\d+).*?([\d,]+) SynOps an image", printed)[-1]
    assert float(accuracy) > 0.75
    assert int(synops.replace(",", "")) > 0


@pytest.mark.slow
@pytest.mark.parametrize("framework", ["lightning", "accelerate"])
def test_a_script_for_a_framework_runs_to_its_end(framework: str) -> None:
    printed = printed_by(f"{framework}_sadp", framework)
    steps, accuracy = re.findall(r"^(\d+) steps, accuracy (0\.\d+)$", printed, re.MULTILINE)[-1]
    # Two full epochs and three of half as many: of 2,048 images, or of 1,437 digits.
    assert int(steps) in (2 * 64 + 3 * 32, 2 * 45 + 3 * 23)
    assert float(accuracy) > 0.7
