"""A run's folder as it is found."""

import os
from pathlib import Path

import pytest

from pipelines.config import Config
from pipelines.errors import UserError
from pipelines.runs.run_folder import read_config, read_metrics, run_path


def test_pipes_and_links_to_nothing_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("name: a\n")
    (tmp_path / "checkpoints").mkdir()
    (link := tmp_path / "checkpoints" / "train.safetensors").symlink_to("absent")
    with pytest.raises(UserError, match=r"train\.safetensors: is no file or folder"):
        read_config(tmp_path)
    link.unlink()
    os.mkfifo(link)
    with pytest.raises(UserError, match=r"train\.safetensors: is no file or folder"):
        read_config(tmp_path)


def test_an_unknown_users_folder_is_no_storage() -> None:
    with pytest.raises(UserError, match="storage: ~nobody-here/runs names an unknown user"):
        run_path(Config(storage="~nobody-here/runs"))


@pytest.mark.parametrize("line", ["", "{", "3", "{}", '{"phase": 1}', "\udcff"])
def test_records_of_another_kind_name_their_file(line: str, tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(f"{line}\n", errors="surrogateescape")
    with pytest.raises(UserError, match=r"metrics\.jsonl: is damaged"):
        read_metrics(tmp_path)
