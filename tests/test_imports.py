"""The floors of the house, and what may be imported where."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ALLOWED = {  # which of our floors and which third-party packages a floor may import at module level
    "snn": {"snn", "torch", "numpy"},
    "pruning": {"snn", "pruning", "torch", "numpy"},
}
LAZY = {
    "snn": {"safetensors", "nir", "nirtorch", "triton", "spikingjelly", "snntorch", "norse"},
    "pruning": {"safetensors"},
}


def _imports(file: Path) -> list[tuple[str, bool]]:
    """Roots of absolute imports, and whether they run on import of the file."""
    tree = ast.parse(file.read_text())
    nested = {
        id(node)
        for outer in ast.walk(tree)
        if isinstance(outer, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(outer)
    }
    found = []
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            names = [node.module or ""]
        found += [(name.split(".")[0], id(node) not in nested) for name in names]
    return found


@pytest.mark.parametrize("floor", ["snn", "pruning"])
def test_lower_floors_import_torch_and_numpy_only(floor: str) -> None:
    files = list((ROOT / floor).rglob("*.py"))
    assert files
    for file in files:
        for root, at_import in _imports(file):
            if root in sys.stdlib_module_names or root in ALLOWED[floor]:
                continue
            # A file named after a package is itself imported lazily; the test below holds it to that.
            lazily = root in LAZY[floor] and (not at_import or root in file.name)
            assert lazily, f"{file.relative_to(ROOT)} imports {root}"


def test_cluster_imports_no_other_floor() -> None:
    for file in (ROOT / "cluster").rglob("*.py"):
        roots = {root for root, _ in _imports(file)}
        assert not roots & {"snn", "pruning", "pipelines"}, file


def _file_graph() -> dict[str, set[str]]:
    """Which of our files imports which, imports inside functions included; by dotted name."""
    files = {
        ".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p
        for floor in (*ALLOWED, "spikeprune", "pipelines", "cluster")
        for p in (ROOT / floor).rglob("*.py")
    }
    graph: dict[str, set[str]] = {}
    for name, path in files.items():
        found = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                members = {f"{node.module}.{alias.name}" for alias in node.names}
                found |= {m if m in files else str(node.module) for m in members}
        graph[name] = {f for f in found if f in files and f != name}
    return graph


def _circles(graph: dict[str, set[str]]) -> dict[str, list[str]]:
    """What is left of a graph when all that leads into no circle is taken away."""
    while leaves := {name for name, imports in graph.items() if not imports & graph.keys()}:
        graph = {name: imports for name, imports in graph.items() if name not in leaves}
    return {name: sorted(imports & graph.keys()) for name, imports in graph.items()}


def test_no_circle_of_files() -> None:
    graph = _file_graph()
    assert len(graph) > 100
    assert not _circles(graph)


def test_no_circle_of_folders_in_pipelines() -> None:
    """A folder, or a file beside the folders, counts as one room."""
    rooms: dict[str, set[str]] = {}
    for name, imports in _file_graph().items():
        if name.startswith("pipelines."):
            room = name.split(".")[1]
            others = {i.split(".")[1] for i in imports if i.startswith("pipelines.")}
            rooms.setdefault(room, set()).update(others - {room})
    assert {"data", "training", "search", "report"} < rooms.keys()
    assert not _circles(rooms)


def test_no_import_against_the_floors() -> None:
    height = {"snn": 0, "pruning": 1, "pipelines": 2, "spikeprune": 2}
    for name, imports in _file_graph().items():
        for other in imports:
            floor, below = name.split(".")[0], other.split(".")[0]
            if name == "spikeprune.__main__":  # the command, which stands on all floors
                continue
            if floor == below or (floor, below) == ("pipelines", "cluster"):
                continue
            assert height.get(floor, -1) > height.get(below, 9), f"{name} imports {other}"


def _modules_after(code: str) -> set[str]:
    env = {k: v for k, v in os.environ.items() if not k.startswith("COV")}
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\n{code}\nprint(*sys.modules, sep='\\n')"],
        capture_output=True,
        text=True,
        check=True,
        env=env,
    )
    return set(done.stdout.split())


def test_library_floors_load_nothing_heavy() -> None:
    loaded = _modules_after(
        "import snn.models, snn.losses, snn.coding, snn.activity, snn.interchange\n"
        "import pruning.examples.policies, pruning.examples.scores\n"
        "import pruning.weights.allocation, pruning.weights.calibration, pruning.weights.masks"
    )
    heavy = {"ray", "torchvision", "pandas", "matplotlib", "pyarrow", "rich", "tyro", "yaml", "PIL", "scipy"}
    assert not loaded & heavy


def test_the_package_of_names_loads_nothing_until_a_name_is_used() -> None:
    loaded = _modules_after("import spikeprune\ndir(spikeprune)")
    assert not loaded & {"torch", "numpy", "snn", "pruning", "pipelines", "cluster"}
    loaded = _modules_after("from spikeprune import *")
    assert {"snn.neurons", "pruning.weights.recipe"} <= loaded
    assert not loaded & {"ray", "pyarrow", "torchvision", "pipelines", "spikingjelly", "snntorch", "norse"}


def test_the_score_tables_process_loads_no_torch() -> None:
    assert not _modules_after("from pipelines.training.score_table import TableActor") & {"torch"}


def test_workers_do_not_load_torchvision() -> None:
    assert "torchvision" not in _modules_after("import pipelines.training.distributed")


@pytest.mark.parametrize(
    "argv", [["--help"], ["train", "--train.lrr", "1"], ["run", "--data-pruning.ratio", "1"]]
)
def test_help_and_config_errors_load_neither_torch_nor_ray(argv: list[str]) -> None:
    loaded = _modules_after(f"from pipelines.cli import main\nmain({argv!r})")
    assert not loaded & {"torch", "ray", "numpy", "pyarrow"}


PRIVATE_OF_TORCH = re.compile(
    r"\btorch\._(?!_)|\btorch\.(?:\w+\.)+_(?!_)|from torch[\w.]* import .*\b_\w|super\(\)\._(?!_)"
    r"|\b\w+\._(?:(?:forward|backward)_(?:pre_)?hooks|parameters|buffers|modules)\b"
)


def test_no_private_names_of_torch() -> None:
    floors = ("snn", "pruning", "pipelines", "spikeprune")
    files = [path for floor in floors for path in (ROOT / floor).rglob("*.py")]
    assert files
    assert not [path.name for path in files if PRIVATE_OF_TORCH.search(path.read_text())]
