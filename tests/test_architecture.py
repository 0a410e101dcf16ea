"""docs/architecture.md tells of the tree as it is."""

import ast
import re
from pathlib import Path

import pytest

from tests.test_imports import _file_graph

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "architecture.md").read_text()


def rooms(floor: str) -> list[set[str]]:
    """Rooms of a floor's table, row by row."""
    table = PAGE[PAGE.index(f"| {floor} | what it holds |") :].split("\n\n")[0]
    rows = [line.split("|")[1] for line in table.splitlines()[2:]]
    return [set(re.findall(r"`(\w+)`", row)) for row in rows]


@pytest.mark.parametrize("floor", ["snn", "pruning", "pipelines"])
def test_every_room_is_listed(floor: str) -> None:
    there = {p.stem for p in (ROOT / floor).iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()}
    assert set().union(*rooms(floor)) == there - {"__init__"}


def test_rooms_import_from_those_above_them_alone() -> None:
    """In snn a row is many files, which import each other as they like but in circles."""
    height = {
        room: (floor, i)
        for floor in ("snn", "pruning", "pipelines")
        for i, row in enumerate(rooms(floor))
        for room in row
    }
    for name, imports in _file_graph().items():
        for other in imports:
            a, b = name.split("."), other.split(".")
            if a[0] != b[0] or a[0] not in ("snn", "pruning", "pipelines") or min(len(a), len(b)) < 2:
                continue
            if a[1] != b[1]:
                assert height[a[1]][1] >= height[b[1]][1], f"{name} imports {other}"


def test_the_ways_name_files_that_exist() -> None:
    for path in re.findall(r"`((?:snn|pruning|pipelines|tests)/[\w/.]+)`", PAGE):
        assert (ROOT / path).exists(), path


FLOORS = ("snn", "pruning", "pipelines", "cluster", "spikeprune")
MOST_LINES, MOST_OF_A_FUNCTION = 400, 60


def test_a_file_is_one_idea_and_a_function_fits_a_screen() -> None:
    """Docstrings of functions are not counted: those of public ones list arguments and errors."""
    long = []
    for path in (path for floor in FLOORS for path in (ROOT / floor).rglob("*.py")):
        text = path.read_text()
        if text.count("\n") > MOST_LINES:
            long.append(str(path))
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                said = node.body[0] if ast.get_docstring(node) else None
                lines = _lines(node) - (_lines(said) if said is not None else 0)
                if lines > MOST_OF_A_FUNCTION:
                    long.append(f"{path}: {node.name}, {lines} lines")
    assert long == []


def _lines(node: ast.stmt) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1
