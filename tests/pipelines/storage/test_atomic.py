"""Files that are read back name themselves when they are not what they should be."""

import os
from pathlib import Path

import pytest

from cluster.errors import UserError
from pipelines.storage.atomic import read_json, read_json_below, well_formed


def test_what_is_missing_or_of_another_kind_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"phase": 1}')
    stored = read_json(tmp_path / "a.json")
    line = r"a\.json: is damaged.*KeyError: 'epoch'.*from a copy"
    with pytest.raises(UserError, match=line), well_formed(tmp_path / "a.json"):
        stored["epoch"]


def test_a_users_mistake_passes_through() -> None:
    with pytest.raises(UserError, match="x: y"), well_formed("a.json"):
        raise UserError("x", "y")


def test_a_reader_that_has_seen_enough_is_no_damage() -> None:
    with pytest.raises(BrokenPipeError), well_formed("a.json"):
        raise BrokenPipeError


def test_a_pipe_is_refused_rather_than_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.json")
    with pytest.raises(UserError, match="not a file"):
        read_json(tmp_path / "a.json")
    with pytest.raises(UserError, match="not a file"):
        read_json_below(tmp_path, "a.json")
