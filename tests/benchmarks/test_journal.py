"""Rows of a long benchmark: kept as they come, gone on with after a kill."""

import json
from pathlib import Path

from benchmarks.journal import Journal

KEY = ("task", "seed")


def test_a_row_that_a_kill_cut_short_is_made_again(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    journal = Journal(path, KEY)
    journal.add({"task": "a", "seed": 0, "accuracy": 0.5})
    journal.add({"task": "a", "seed": 1, "accuracy": 0.6})
    path.write_text(path.read_text()[:-5])  # the kill came while the second row was written
    again = Journal(path, KEY)
    assert {"task": "a", "seed": 0} in again
    assert {"task": "a", "seed": 1} not in again
    again.add({"task": "a", "seed": 1, "accuracy": 0.7})
    assert [json.loads(line)["accuracy"] for line in path.read_text().splitlines()] == [0.5, 0.7]


def test_a_new_journal_begins_where_a_stored_result_ends(tmp_path: Path) -> None:
    result = tmp_path / "result.json"
    journal = Journal(tmp_path / "old.jsonl", KEY)
    journal.add({"task": "a", "seed": 0})
    journal.store(result, {"command": "x"})
    new = Journal(tmp_path / "new.jsonl", KEY, result)
    new.add({"task": "b", "seed": 0})
    assert new.rows == [{"task": "a", "seed": 0}, {"task": "b", "seed": 0}]
    kept = Journal(tmp_path / "new.jsonl", KEY, result)  # its own rows, not the result's once more
    assert kept.rows == new.rows
