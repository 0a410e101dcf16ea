"""Memory or shards: a matter of config and dataset, never of the machine."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.config.load import load_config
from pipelines.data.dataset import read_split
from pipelines.runs.reading import settle_reading


@pytest.mark.parametrize(
    ("gb", "memory_gb", "reading"), [(1.9, None, "memory"), (2.1, None, "shards"), (2.1, 3, "memory")]
)
def test_the_machine_has_no_say(
    gb: float, memory_gb: float | None, reading: str, digits: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    train = replace(read_split(digits, "train"), num_bytes=int(gb * 1e9))
    config = load_config(None, {"data.memory_gb": memory_gb})
    for pages in (1, 10**12):
        monkeypatch.setattr(os, "sysconf", lambda name, pages=pages: pages)
        assert settle_reading(config, train, tmp_path).data.reading == reading
