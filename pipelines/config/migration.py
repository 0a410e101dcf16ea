"""Config files of earlier versions: what old names are today; files of later versions are refused."""

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


def version_of(tree: dict[str, Any], file: str) -> int:
    """The version that a file was written by; without one it may have any earlier name."""
    written = tree.pop(FIELD, 1)
    if not str(written).isdigit():
        raise UserError(file, f"its {FIELD} {shown(written)} is not possible; it must be a whole number")
    if int(written) > VERSION:
        what = f"is of {FIELD} {written}, written by a later spikeprune; this one reads up to {VERSION}"
        raise UserError(file, what)
    return int(written)


def today(path: str, since: int = 1) -> tuple[str, bool]:
    """What a field or group of a version is called in the latest one that has it; whether that is today's."""
    for version in range(since + 1, VERSION + 1):
        for old, new in RENAMED.get(version, {}).items():
            if f"{path}.".startswith(f"{old}."):
                if new is None:
                    return path, False
                path = new + path[len(old) :]
    return path, True


def check_unused(path: str, value: Any, file: str) -> None:
    """That a field that is gone has the value with which it did nothing."""
    if str(value).lower() != UNUSED.get(path, str(value).lower()):
        raise UserError(file, f"has {path} {shown(value)}, which this version no longer offers; remove it")
