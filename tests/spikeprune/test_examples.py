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


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["plain_spikingjelly", "spikingjelly_sadp", "spikingjelly_slamp", "snntorch_prune"]
)
def test_a_script_runs_to_its_end(name: str) -> None:
    library = "snntorch" if name.startswith("snntorch") else "spikingjelly"
    pytest.importorskip(library, reason=f"{library} is not installed (extra peers)")
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / f"{name}.py")],
        capture_output=True,
        text=True,
        timeout=500,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    accuracy, synops = re.findall(r"accuracy (0\.\d+).*?([\d,]+) SynOps an image", done.stdout)[-1]
    assert float(accuracy) > 0.75
    assert int(synops.replace(",", "")) > 0
