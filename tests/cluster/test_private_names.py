"""Ray's private names: all in one module, and each still is and does what we use it for.

If an update of Ray fails here, `cluster/ray_private.py` is the place to mend.
"""

import os
import re
from pathlib import Path
from unittest import mock

from cluster import connect, ray_private

ROOT = Path(connect.__file__).parents[1]
PRIVATE = re.compile(
    r"\bray\._(?!_)|\bray\.core\.generated|\bray\.(?:\w+\.)+_(?!_)|from ray[\w.]* import .*\b_\w"
)
NAMES = {
    "ray._raylet": "GcsClient",
    "ray._private": "ray_constants",
    "ray._private.authentication_test_utils": "reset_auth_token_state",
}


def test_they_are_three_and_in_one_module() -> None:
    files = [p for floor in ("snn", "pruning", "pipelines", "cluster") for p in (ROOT / floor).rglob("*.py")]
    assert [p.name for p in files if PRIVATE.search(p.read_text())] == ["ray_private.py"]
    text = (ROOT / "cluster" / "ray_private.py").read_text()
    modules = set(
        re.findall(r"from (ray\.[\w.]*\b_\w+[\w.]*) import|import (ray\._\w+)$", text, re.MULTILINE)
    )
    assert {a or b for a, b in modules} == set(NAMES)
    assert all(name in text for name in NAMES.values())


def test_ray_has_them() -> None:
    import importlib

    for module, name in NAMES.items():
        assert hasattr(importlib.import_module(module), name), f"{module}.{name}"


def test_authentication_follows_the_environment() -> None:
    from ray._raylet import AuthenticationMode, get_authentication_mode  # type: ignore[attr-defined]

    for mode, expected in (("token", AuthenticationMode.TOKEN), ("disabled", AuthenticationMode.DISABLED)):
        with mock.patch.dict(os.environ, RAY_AUTH_MODE=mode, RAY_AUTH_TOKEN="0" * 64):
            ray_private.refresh()
            assert get_authentication_mode() == expected
    ray_private.refresh()
