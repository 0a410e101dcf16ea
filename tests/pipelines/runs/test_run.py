"""Where a run's network lies."""

from pathlib import Path

import pytest

from pipelines.config import Config
from pipelines.config.load import dump_config
from pipelines.runs.run import checkpoint_of


def test_a_network_named_by_a_relative_path_is_found_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = tmp_path / "runs" / "mine" / "checkpoints" / "train.safetensors"
    network.parent.mkdir(parents=True)
    network.touch()
    (tmp_path / "runs" / "mine" / "config.yaml").write_text(dump_config(Config()))
    monkeypatch.chdir(tmp_path)
    for source in (Path("runs/mine"), network.relative_to(tmp_path)):
        assert checkpoint_of(source) == (network, tmp_path / "runs" / "mine")
