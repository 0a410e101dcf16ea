"""2,500 bad inputs: each ends in success or in one clear line, soon, and leaves nothing half-done.

A case is made from a seed, a kind and a number alone. To run some again and see what they say:
``FUZZ=0:run:17,18 pytest -m slow -s tests/test_fuzz.py``.
"""

import io
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from multiprocessing import get_context
from pathlib import Path

import pytest

from pipelines import cli
from tests.fuzzing import MARKER, Case, make, make_base

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
COUNTS = {"config": 700, "words": 700, "manifest": 200, "run": 450, "data": 450}
SEED, ONLY, NUMBERS = os.environ.get("FUZZ", "0::").split(":")
LIMIT_S = 20
STOPPED_S = 120  # the same on a busy machine, where waiting for a processor does not count
MEMORY = 16 << 30
OUTPUTS = ("out", "out.parquet", "out.png", "out.html")


class HangError(BaseException):
    """No error that the product would catch."""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with whatever the commands name."""
    folder, before = tmp_path_factory.mktemp("base"), Path.cwd()
    os.chdir(folder)
    make_base(folder, cli.main)
    yield folder
    os.chdir(before)


@contextmanager
def a_case(kind: str, number: int, base: Path, tmp_path: Path) -> Iterator[tuple[Case, Path]]:
    """A case in the current folder, deep enough that ``..`` leads nowhere else."""
    folder = tmp_path / "a" / "b" / "case"
    shutil.copytree(base, folder, symlinks=True)
    os.chdir(folder)
    try:
        yield make(kind, number, int(SEED), folder), folder
    finally:
        os.chdir(base)
        shutil.rmtree(tmp_path / "a")


def fault(code: object, out: str, err: str, folder: Path) -> str | None:
    """What is wrong with the end of a command."""
    told = [line for line in err.splitlines() if line.startswith("spikeprune: ")]
    left = [p.name for p in folder.rglob(".*") if not p.name.endswith(".ingest")]
    if "Traceback" in out + err or "Warning: " in err:
        return "traceback or a warning of Python's"
    if code not in (0, 1, 2) or (code == 2 and "usage:" not in out) != bool(told):
        return f"exit {code}"
    if told and (len(told) > 1 or err.splitlines()[-1] != told[0] or len(told[0]) > 1500):
        return "not one short line at the end"
    if told and not told[0].isprintable():
        return "control characters in the error"
    if told and (half := [o for o in OUTPUTS if os.path.lexists(folder / o)]):
        return f"{half} is left"
    if (folder / "runs/n").exists() and not (folder / "runs/n/config.yaml").exists():
        return "half a run is left"
    if left or list(folder.parents[2].rglob(MARKER)):
        return f"unpickled, or left {left}"
    return None


def in_process(words: list[str]) -> tuple[object, str, str]:
    """Exit code, stdout and stderr of a command; what it raises is shown as Python would."""

    def stop(*_: object) -> None:
        raise HangError(f"more than {STOPPED_S} s")

    out, err, before = io.StringIO(), io.StringIO(), signal.signal(signal.SIGUSR1, stop)
    timer = threading.Timer(STOPPED_S, signal.pthread_kill, (threading.get_ident(), signal.SIGUSR1))
    timer.start()
    begun = time.monotonic() - _waited()
    try:
        with redirect_stdout(out), redirect_stderr(err):
            code: object = cli.main(words)
    except SystemExit as end:
        code = end.code
    except BaseException as error:
        code = None
        err.write("".join(traceback.format_exception(error)))
    finally:
        timer.cancel()
        signal.signal(signal.SIGUSR1, before)
    took = time.monotonic() - _waited() - begun
    return (f"after {took:.0f} s" if took > LIMIT_S else code), out.getvalue(), err.getvalue()


def _waited() -> float:
    """Seconds for which this process has waited for a processor."""
    told = Path("/proc/self/schedstat")
    return int(told.read_text().split()[1]) / 1e9 if told.exists() else 0.0


def run_cases(kind: str, base: Path, tmp_path: Path) -> tuple[list[str], dict[str, list[int]]]:
    """What is wrong, and the numbers of the cases that are accepted by what they do."""
    # No case gets all of the machine's memory.
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))
    faults, accepted = [], defaultdict(list)
    for number in [int(n) for n in NUMBERS.split(",")] if NUMBERS else range(COUNTS[kind]):
        with a_case(kind, number, base, tmp_path) as (case, folder):
            code, out, err = in_process(case.words)
            wrong = fault(code, out, err, folder)
            if NUMBERS:
                print(f"{number}: {case}\nexit {code}\n{out}{err}")
        if wrong is not None:
            last = (err.strip().splitlines() or [""])[-1]
            faults.append(f"{SEED}:{kind}:{number}: {case.what}: {wrong}: {last[:300]}")
        elif code == 0:
            accepted[case.what].append(number)
    return faults, accepted


@pytest.mark.parametrize("kind", COUNTS)
def test_bad_input_ends_in_one_line(kind: str, base: Path, tmp_path: Path) -> None:
    """In a process of its own, which no other test has left a Ray or its threads in."""
    if ONLY not in ("", kind):
        pytest.skip("another kind")
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        faults, accepted = pool.submit(run_cases, kind, base, tmp_path).result()
    print(f"{kind}: {sum(map(len, accepted.values()))} are accepted:")
    print("\n".join(f"  {what} ({', '.join(map(str, of))})" for what, of in sorted(accepted.items())))
    assert not faults, "\n" + "\n".join(faults)


def test_so_do_processes(base: Path, tmp_path: Path) -> None:
    """A few dozen of the cases, as a user would meet them."""
    if ONLY:
        pytest.skip("some are run again")
    faults = []
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    for kind, number in ((k, n) for k in COUNTS for n in range(6)):
        with a_case(kind, number, base, tmp_path) as (case, folder):
            if any("\0" in word for word in case.words):  # no process can be given it
                continue
            command = [sys.executable, "-m", "spikeprune", *case.words]
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=STOPPED_S, env=environment, check=False
            )
            if (wrong := fault(done.returncode, done.stdout, done.stderr, folder)) is not None:
                faults.append(f"{SEED}:{kind}:{number}: {case.what}: {wrong}: {done.stderr[-300:]}")
    assert not faults, "\n" + "\n".join(faults)
