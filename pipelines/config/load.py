"""Configs from YAML files and overrides, and back to YAML.

A file may name another as its ``base``; what is said last counts. Scalars stay the text that is written
until the field's type reads them (`pipelines.config.parser`), so a run called 0123 keeps its name.
"""

import json
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import yaml

from cluster.errors import UserError
from pipelines.config.checks import is_own, shown
from pipelines.config.migration import FIELD, VERSION, check_unused, today, version_of
from pipelines.config.parser import Plain, group_of, is_null, leaf_hint, parse, read_field, split_overrides
from pipelines.config.schema import Config, field_paths
from pipelines.storage.paths import real_path

TARGETS = ("weight_pruning.sparsity", "weight_pruning.budget", "weight_pruning.synops")
"""Fields of which one at most has a value."""
_MOST_BYTES = 1 << 20
C = TypeVar("C")
Tree = TypeVar("Tree", bound=Config)


def load_config(path: Path | str | None, overrides: Mapping[str, Any] | None = None) -> Config:
    """A checked config from a YAML file (or the defaults) and dotted overrides.

    Args:
        path: YAML file with any part of the tree; ``None`` starts from the defaults.
        overrides: values by dotted path; text is read as on the command line.

    Raises:
        UserError: unreadable file, unknown field, wrong type or impossible value.
    """
    return load_tree(Config, path, overrides)


def load_tree(cls: type[Tree], path: Path | str | None, overrides: Mapping[str, Any] | None = None) -> Tree:
    """As `load_config`, for a tree with more branches than a run's."""
    values: dict[str, Any] = {}
    for file in reversed(config_files(path) if path is not None else []):
        _put_over(values, _own_fields(file, cls))
    _put_over(values, dict(overrides or {}))
    return _made(cls, values, Path(path).absolute().parent if path is not None else Path.cwd())


def with_values(config: Tree, values: Mapping[str, Any]) -> Tree:
    """A copy of a config with other values by dotted path.

    Raises:
        UserError: unknown field, wrong type or impossible value.
    """
    changed = values_of(config)
    _put_over(changed, values)
    return _made(type(config), changed, Path.cwd())


def values_of(config: Config) -> dict[str, Any]:
    """Every field's value by its dotted path."""
    return {path: attrgetter(path)(config) for path in field_paths(type(config))}


def dump_config(config: Config) -> str:
    """The complete config as YAML that `load_config` reads back to an equal one."""
    return yaml.safe_dump({FIELD: VERSION, **json.loads(json.dumps(asdict(config)))}, sort_keys=False)


def config_files(path: Path | str) -> list[Path]:
    """A config file, the one that its ``base`` names, the one that this one's names, and so on."""
    files = [Path(path)]
    while (base := read_yaml(files[-1]).get("base")) is not None:
        if not isinstance(base, str):
            raise UserError("base", f"{shown(base)} is not possible; it must be the path of a config file")
        file = files[-1].parent / base
        if real_path(file) in [real_path(f) for f in files]:
            raise UserError(str(files[-1]), f"its base {base} leads back to itself")
        if not file.exists():
            raise UserError(str(files[-1]), f"its base {base} does not exist")
        files.append(file)
    return files


def read_yaml(path: Path) -> dict[str, Any]:
    """The tree of a YAML file; unquoted scalars are `Plain` text.

    Raises:
        UserError: the file cannot be read, is no YAML, has a key twice, or holds no fields.
    """
    try:
        if path.exists() and not path.is_file():
            raise UserError(str(path), "is not a file")
        if path.is_file() and path.stat().st_size > _MOST_BYTES:
            raise UserError(str(path), "is larger than 1 MiB; that is no config file")
        tree = yaml.load(path.read_text(), _Loader)
    except FileNotFoundError:
        raise UserError(str(path), "no such config file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(shown(str(path)), f"cannot be read ({error})") from None
    except RecursionError:
        raise UserError(str(path), "is not a config file: it is nested too deeply") from None
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(str(path), f"is not valid YAML ({' '.join(str(error).split())[:300]})") from None
    if tree is not None and not isinstance(tree, dict):
        raise UserError(str(path), f"must hold fields of the config, not {shown(tree)}")
    return tree or {}


class _Loader(yaml.SafeLoader):
    """Leaves unquoted scalars as they are written; refuses a key that occurs twice, and aliases."""

    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [(tag, pattern) for tag, pattern in resolvers if tag.endswith(":null")]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def _plain(self, node: yaml.ScalarNode) -> str:
        return Plain(node.value) if node.style is None else str(node.value)

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):  # a few lines of them can stand for any amount of memory
            mark = self.peek_event().start_mark
            raise yaml.composer.ComposerError(None, None, "aliases (*name) are not read", mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key, _ in node.value:
            if key.value in seen if isinstance(key, yaml.ScalarNode) else False:
                raise yaml.constructor.ConstructorError(
                    None, None, f"{key.value!r} is there twice, again", key.start_mark
                )
            seen.add(str(key.value))
        return super().construct_mapping(node, deep=True)


_Loader.add_constructor("tag:yaml.org,2002:str", _Loader._plain)


def _own_fields(file: Path, cls: type[Config]) -> dict[str, Any]:
    """What a file itself says, by today's paths; its folder of own modules is beside it."""
    tree = read_yaml(file)
    tree.pop("base", None)
    written = version_of(tree, str(file))
    found: dict[str, Any] = {}
    named: dict[str, str] = {}
    for old, value in _leaves(tree, cls, written):
        path, there = today(old, written)
        if not there:
            check_unused(path, value, str(file))
            continue
        if path in named:
            names = " and ".join((named[path], old))
            raise UserError(str(file), f"has {names}, which are one field; keep {path}")
        found[path], named[path] = value, old
    if isinstance(found.get("code"), str):
        found["code"] = str(file.absolute().parent / found["code"])
    return found


def _leaves(
    tree: Mapping[str, Any], cls: type[Config], written: int, prefix: str = ""
) -> Iterator[tuple[str, Any]]:
    """The values of a tree by dotted path, as the file names them."""
    for key, value in tree.items():
        if "." in str(key):
            raise UserError(f"{prefix}{key}", "has a dot; in a file, fields stand below their group's name")
        is_group = is_dataclass(leaf_hint(today(f"{prefix}{key}", written)[0], cls))
        if is_group and isinstance(value, Mapping):
            yield from _leaves(value, cls, written, f"{prefix}{key}.")
        elif value is not None or not is_group:
            yield f"{prefix}{key}", value


def _put_over(values: dict[str, Any], above: Mapping[str, Any]) -> None:
    """Set values; a target of weight pruning among them replaces the one that is there."""
    if any(name in TARGETS and not is_null(value) for name, value in above.items()):
        values.update(dict.fromkeys(TARGETS))
    values.update(above)


def _made(cls: type[Tree], values: Mapping[str, Any], beside: Path) -> Tree:
    """A checked config of these values; it says where own modules are, if it names any."""
    read = {path: read_field(path, value, cls) for path, value in values.items()}
    config: Tree = group_of(read, cls)
    if any(map(is_own, (config.model.name, config.data_pruning.policy, config.weight_pruning.criterion))):
        config.code = str(Path(config.code).absolute() if config.code else beside)
    return config


def read_command(command: type[C], args: Sequence[str], **how: Any) -> tuple[C, dict[str, Any]]:
    """The options of a command and the config fields that its words set, to be given to `load_tree`.

    All is as for `parse`; the help shows the values of the config file.
    """
    hints = get_type_hints(command)
    overrides, words = split_overrides(args, hints["settings"])
    asked = [word for word in words if word in ("-h", "--help")]
    if asked and "config" in hints:
        options: Any = parse(command, [word for word in words if word not in asked])
        options.settings = load_tree(hints["settings"], options.config, overrides)
        parse(command, asked, default=options, **how)
    return parse(command, words, **how), overrides
