"""Run benchmarks one after the other: ``python -m benchmarks [NAME ...]`` (``make bench``).

Without names the suite of key ratios runs (about ten minutes); the others say their time in their own help.
Each is also a command of its own with options: ``python -m benchmarks.NAME --help``.
"""

import subprocess
import sys
from pathlib import Path

SHORT = ("suite",)
HELPERS = {"__init__", "__main__", "about", "cifar16", "compare", "real_data", "snn_levels", "snn_peers"}


def main() -> int:
    here = Path(__file__).parent
    known = sorted(p.stem for p in here.glob("*.py") if p.stem not in HELPERS)
    names = sys.argv[1:] or list(SHORT)
    for name in names:
        if name not in known:
            print(f"benchmark {name!r} is unknown; choose from {', '.join(known)}", file=sys.stderr)
            return 2
    for name in names:
        print(f"\n== {name} ==", flush=True)
        done = subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], cwd=here.parent, check=False)
        if done.returncode:
            return done.returncode
    return 0


if __name__ == "__main__":
    sys.exit(main())
