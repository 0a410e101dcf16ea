"""A node without this software can be asked what it sees."""

import subprocess
import sys
from pathlib import Path

import ray

from cluster.nodes import _probe, travelling

BARE = """
import sys
for name in ("cluster", "pipelines", "pruning", "snn"):
    sys.modules[name] = None  # as if it were not installed
from pathlib import Path
import ray
probe = ray.cloudpickle.loads(Path(sys.argv[1]).read_bytes())
for storage in (sys.argv[2], "file://" + sys.argv[2]):
    seen = probe(storage, "mark", "node", "127.0.0.1", ("/none", storage + "/mark"))
    assert seen["unwritable"] is None, seen
    assert seen["sees_driver"], seen
    assert seen["unreadable"] == ("/none",), seen
    assert (Path(sys.argv[2]) / "mark-node").read_text() == "node"
    (Path(sys.argv[2]) / "mark-node").unlink()
print(probe("nosuch://x", "mark", "node", "127.0.0.1", ())["unwritable"])
"""


def test_code_goes_along(tmp_path: Path) -> None:
    (tmp_path / "storage").mkdir()
    (tmp_path / "storage" / "mark").write_text("mark")
    with travelling():
        (tmp_path / "code").write_bytes(ray.cloudpickle.dumps(_probe))
    done = subprocess.run(
        [sys.executable, "-c", BARE, str(tmp_path / "code"), str(tmp_path / "storage")],
        capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "nosuch://x is not a folder that can be opened" in done.stdout
