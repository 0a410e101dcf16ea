"""Config files of earlier versions: old names become new ones, files of later versions are refused."""

from typing import Any

from cluster.errors import UserError
from pipelines.config.checks import shown

VERSION = 4
"""Of the config's fields; `pipelines.config.load.dump_config` writes it into every run's config."""
FIELD = "schema_version"
RENAMED: dict[int, dict[str, str | None]] = {
    2: {"weights.response_examples": "weights.measure_examples", "cluster.ids_per_book": None},
    3: {
        "examples": "data_pruning",
        "weights": "weight_pruning",
        "track": "tracking",
        "train.accumulate": "train.grad_accum_steps",
        "train.clip_norm": "train.max_grad_norm",
        "train.ema": "train.ema_decay",
        "train.norm_examples": "train.bn_examples",
    },
    4: {
        "data.on_bad_row": None,
        "data_pruning.overlap": None,
        "train.ema_decay": None,
        "weight_pruning.diagnose_examples": None,
        "weight_pruning.schedule": None,
    },
}
"""By the version that renamed them: the old path of a field or group, and the new one; ``None`` for what
is gone."""
UNUSED = {"data.on_bad_row": "stop", "data_pruning.overlap": "false", "train.ema_decay": "none"}
"""Values of fields that are gone and did change what a run does: with any other a file is refused."""


def migrate(tree: dict[str, Any], file: str) -> dict[str, Any]:
    """A file's tree with the names of today; a file without a version may have any earlier name."""
    written = tree.pop(FIELD, 1)
    if not str(written).isdigit():
        raise UserError(file, f"its {FIELD} {shown(written)} is not possible; it must be a whole number")
    if int(written) > VERSION:
        what = f"is of {FIELD} {written}, written by a later spikeprune; this one reads up to {VERSION}"
        raise UserError(file, what)
    for version in range(int(written) + 1, VERSION + 1):
        for old, new in RENAMED.get(version, {}).items():
            _move(tree, old, new, file)
    return tree


def new_name(path: str) -> str | None:
    """What a field of an earlier version is called today; ``None`` where nothing is known of it."""
    name: str | None = path
    for version in sorted(RENAMED):
        for old, new in RENAMED[version].items():
            if name is not None and f"{name}.".startswith(f"{old}."):
                name = None if new is None else new + name[len(old) :]
    return None if name == path else name


def _move(tree: dict[str, Any], old: str, new: str | None, file: str) -> None:
    *branches, leaf = old.split(".")
    node: Any = tree
    for branch in branches:
        node = node.get(branch) if isinstance(node, dict) else None
    if not isinstance(node, dict) or leaf not in node:
        return
    value = node.pop(leaf)
    if new is None:
        if str(value).lower() != UNUSED.get(old, str(value).lower()):
            raise UserError(file, f"has {old} {shown(value)}, which this version no longer offers; remove it")
        return
    *branches, leaf = new.split(".")
    node = tree
    for branch in branches:
        node = node.setdefault(branch, {})
    there = node.get(leaf)
    if isinstance(value, dict) and isinstance(there, dict):
        if both := sorted(value.keys() & there.keys()):
            raise UserError(file, f"has {old}.{both[0]} and {new}.{both[0]}, which are one field; keep {new}")
        value = there | value
    elif leaf in node:
        raise UserError(file, f"has {old} and {new}, which are one field; keep {new}")
    node[leaf] = value
