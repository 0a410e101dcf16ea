"""Torch's private names: all in one module, and each still does what we use it for."""

import re
from pathlib import Path

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook

from snn import torch_private

ROOT = Path(torch_private.__file__).parents[1]
PRIVATE = re.compile(
    r"\btorch\._(?!_)|\btorch\.(?:\w+\.)+_(?!_)|from torch[\w.]* import .*\b_\w|super\(\)\._(?!_)"
    r"|\b\w+\._(?:(?:forward|backward)_(?:pre_)?hooks|parameters|buffers|modules)\b"
)


def test_they_are_in_one_module() -> None:
    files = [
        p for floor in ("snn", "pruning", "pipelines", "spikeprune") for p in (ROOT / floor).rglob("*.py")
    ]
    assert [p.name for p in files if PRIVATE.search(p.read_text())] == ["torch_private.py"]


def test_a_transform_is_seen_and_gone_after_it() -> None:
    seen = []
    torch.func.vmap(lambda x: seen.append(torch_private.transforms_active()) or x)(torch.ones(2))  # type: ignore[func-returns-value]
    assert seen == [True]
    assert not torch_private.transforms_active()


def test_hooks_of_every_kind_are_seen() -> None:
    register = ("forward_hook", "forward_pre_hook", "full_backward_hook", "full_backward_pre_hook")
    for kind in register:
        module = nn.Linear(1, 1)
        assert not torch_private.has_hooks(module)
        handle = getattr(module, f"register_{kind}")(lambda *_: None)
        assert torch_private.has_hooks(module), kind
        handle.remove()
        assert not torch_private.has_hooks(module)
    handle = register_module_forward_hook(lambda *_: None)
    assert torch_private.has_hooks(nn.Linear(1, 1))
    handle.remove()
