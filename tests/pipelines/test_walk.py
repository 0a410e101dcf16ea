"""How far it is from the command to the gradient, in files."""

import traceback
from pathlib import Path

import pytest
import torch

from pipelines import cli

ROOT = Path(__file__).resolve().parents[2]
FLOORS = ("snn", "pruning", "pipelines", "cluster")


def test_from_the_command_to_the_gradient_in_at_most_ten_files(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stacks: list[list[str]] = []
    backward = torch.Tensor.backward

    def traced(tensor: torch.Tensor, *args: object, **options: object) -> None:
        stacks.append([frame.filename for frame in traceback.extract_stack()])
        backward(tensor, *args, **options)

    monkeypatch.setattr(torch.Tensor, "backward", traced)
    words = ["--data.path", str(digits), "--storage", str(tmp_path), "--train.epochs", "2"]
    local = ["--cluster.engine", "local", "--cluster.workers", "1"]
    assert cli.main(["train", *words, *local]) == 0
    assert stacks
    for stack in stacks:
        ours = [Path(f).relative_to(ROOT) for f in stack if Path(f).is_relative_to(ROOT)]
        files = list(dict.fromkeys(f for f in ours if f.parts[0] in FLOORS))
        assert files[0].parts[:2] == ("pipelines", "cli.py") or files[0].parts[:2] == ("pipelines", "cli")
        assert len(files) <= 10, files
