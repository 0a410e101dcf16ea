"""Words of a command in a form that no shell, nor any number of them, can change.

Some ways to a cluster hand a command through two or three shells with their own ideas of quoting. Words
that are plain stay as they are; others travel encoded and are put back here, in the job.
"""

import base64
import json
import os
import re
import sys
from collections.abc import Sequence

MODULE = "cluster.launch"


def command_line(words: Sequence[str]) -> str:
    """One line that runs ``spikeprune`` with these words, in any POSIX shell."""
    if all(re.fullmatch(r"[A-Za-z0-9_./:@%+=,-]+", w, re.ASCII) for w in words):
        return " ".join(["python", "-m", "pipelines.cli", *words])
    encoded = base64.urlsafe_b64encode(json.dumps(list(words)).encode()).decode()
    return f"python -m {MODULE} {encoded}"


def decode(encoded: str) -> list[str]:
    """The words of `command_line`."""
    return [str(w) for w in json.loads(base64.urlsafe_b64decode(encoded))]


if __name__ == "__main__":
    os.execv(sys.executable, [sys.executable, "-m", "pipelines.cli", *decode(sys.argv[1])])
