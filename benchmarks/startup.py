"""What starting costs: the demo's job under Ray beside the same work in one plain process, and where it goes.

    python -m benchmarks.startup [--repeats 3] [--output FILE.json]

The job of `make demo` (examples/demo.yaml: four stages) as its own command, alternately
with two Ray workers, with one, and without Ray; wall seconds from the command's start to its end. About six
minutes.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.about import about
from pipelines.storage.atomic import write_json

ROOT = Path(__file__).resolve().parents[1]
Row = dict[str, Any]
MODES = {
    "Ray, 2 workers": ("--cluster.engine", "ray", "--cluster.workers", "2"),
    "Ray, 1 worker": ("--cluster.engine", "ray", "--cluster.workers", "1"),
    "one process": ("--cluster.engine", "local", "--cluster.workers", "1"),
}


def execute(mode: str, folder: Path) -> Row:
    """Run the job once."""
    words = ["--storage", str(folder), "--data.path", str(folder / "data"), "--name", "run"]
    begun = time.perf_counter()
    done = spikeprune("run", "examples/demo.yaml", *words, *MODES[mode])
    seconds = time.perf_counter() - begun
    if done.returncode:
        sys.exit(done.stderr)
    subprocess.run(["rm", "-r", str(folder / "run")], check=True)
    return {"mode": mode, "seconds": seconds}


def spikeprune(*words: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own."""
    command = [sys.executable, "-m", "spikeprune", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def tables(rows: list[Row]) -> str:
    """Markdown: seconds of every mode; the first run of each compiles what is cached."""
    plain = rows[len(MODES) :]
    median = {m: statistics.median(r["seconds"] for r in plain if r["mode"] == m) for m in MODES}
    alone = median["one process"]
    lines = [
        "| job of `make demo` | wall s, median | range | more than one process, s |",
        "|---|---|---|---|",
    ]
    for mode in MODES:
        found = [r["seconds"] for r in plain if r["mode"] == mode]
        span, extra = f"{min(found):.1f} to {max(found):.1f}", median[mode] - alone
        lines.append(f"| {mode} | {median[mode]:.1f} | {span} | {extra:+.1f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path("runs/startup.json"))
    parser.add_argument("--summary", type=Path, metavar="FILE", help="print a result's tables and stop")
    options = parser.parse_args()
    if options.summary:
        print(tables(json.loads(options.summary.read_text())["rows"]))
        return
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        done = spikeprune("data", "ingest", "mnist-sample", "--output", str(folder / "data"))
        if done.returncode:
            sys.exit(done.stderr)
        for _ in range(options.repeats + 1):  # the first compiles what is cached
            for mode in MODES:
                rows.append(execute(mode, folder))
                print(f"{mode}: {rows[-1]['seconds']:.1f} s", flush=True)
    write_json(options.output, {"about": about("benchmarks.startup", sys.argv[1:]), "rows": rows})
    print(tables(rows))


if __name__ == "__main__":
    main()
