"""Configs from YAML and dotted overrides, checked field by field; and back to YAML.

One builder serves files and the command line, so both refuse a mistake with the same one line.
"""

import difflib
import types
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from pipelines.config import Config, field_paths, is_own
from pipelines.errors import UserError

SHORT = {"on-bad-row": "data.on_bad_row"}
"""Options that stand for a field without its path."""
_TARGETS = ("weights.sparsity", "weights.budget", "weights.synops")
Tree = TypeVar("Tree", bound=Config)


def load_config(path: Path | str | None, overrides: Mapping[str, Any] | None = None) -> Config:
    """A checked config from a YAML file (or the defaults) and dotted overrides.

    Args:
        path: YAML file with any part of the tree; ``None`` starts from the defaults.
        overrides: values by dotted path; strings are read as YAML.

    Raises:
        UserError: unreadable file, unknown field, wrong type or impossible value.
    """
    return load_tree(Config, path, overrides)


def load_tree(cls: type[Tree], path: Path | str | None, overrides: Mapping[str, Any] | None = None) -> Tree:
    """As `load_config`, for a tree with more branches than a run's."""
    tree: dict[str, Any] = {}
    for file in reversed(config_files(path) if path is not None else []):
        fields = _own_fields(file)
        weights = fields.get("weights")
        _make_room(tree, [f"weights.{name}" for name in weights] if isinstance(weights, dict) else [])
        tree = _over(tree, fields)
    beside = Path(path).absolute().parent if path is not None else Path.cwd()
    parsed = {k: _parse(k, v) if isinstance(v, str) else v for k, v in (overrides or {}).items()}
    _override(tree, parsed)
    return _with_code(_build(cls, tree, ""), beside)


def with_values(config: Tree, values: Mapping[str, Any]) -> Tree:
    """A copy of a config with other values by dotted path.

    Raises:
        UserError: unknown field, wrong type or impossible value.
    """
    tree = _plain(asdict(config))
    _override(tree, values)
    return _with_code(_build(type(config), tree, ""), Path.cwd())


def _with_code(config: Tree, beside: Path) -> Tree:
    """Say where own modules are, if there are any, so that another current folder changes nothing."""
    if any(map(is_own, (config.model.name, config.examples.policy, config.weights.criterion))):
        config.code = str(Path(config.code).absolute() if config.code else beside)
    return config


def dump_config(config: Config) -> str:
    """The complete config as YAML that `load_config` reads back to an equal one."""
    return yaml.safe_dump(_plain(asdict(config)), sort_keys=False)


def split_overrides(args: Sequence[str], cls: type[Config] = Config) -> tuple[dict[str, str], list[str]]:
    """Command-line words that set config fields, and all others.

    ``--train.lr 0.1``, ``--train.lr=0.1`` and, for flags, ``--model.detach-reset`` or
    ``--no-model.detach-reset`` are overrides; so is any dotted option, whose path is checked later.

    Raises:
        UserError: an override without a value.
    """
    known = set(field_paths(cls))
    overrides: dict[str, str] = {}
    rest: list[str] = []
    words = list(args)
    while words:
        word = words.pop(0)
        option, equals, value = word.removeprefix("--").partition("=")
        option = SHORT.get(option, option)
        negated = option.startswith("no-")
        dotted = option.removeprefix("no-").replace("-", "_")
        if not word.startswith("--") or not (dotted in known or "." in dotted):
            rest.append(word)
        elif negated:
            overrides[dotted] = "false"
        elif equals:
            overrides[dotted] = value
        else:
            values = []
            while words and not words[0].startswith("--"):
                values.append(words.pop(0))
                if not _is_sequence(dotted, cls):
                    break
            if not values and not _is_bool(dotted, cls):
                raise UserError(dotted, "needs a value")
            overrides[dotted] = (
                "true" if not values else values[0] if len(values) == 1 else f"[{', '.join(values)}]"
            )
    return overrides, rest


def _read(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise UserError(str(path), "no such config file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(str(path), f"cannot be read ({error})") from None
    except yaml.YAMLError as error:
        raise UserError(str(path), f"is not valid YAML ({' '.join(str(error).split())})") from None
    if tree is not None and not isinstance(tree, dict):
        raise UserError(str(path), f"must hold fields of the config, not {type(tree).__name__}")
    return tree or {}


def config_files(path: Path | str) -> list[Path]:
    """A config file, the one that its ``base`` names, the one that this one's names, and so on.

    Raises:
        UserError: an unreadable file, or one that is its own base.
    """
    files = [Path(path)]
    while (base := _read(files[-1]).get("base")) is not None:
        if not isinstance(base, str):
            raise UserError("base", f"{base!r} is not possible; it must be the path of a config file")
        file = files[-1].parent / base
        if file.resolve() in [f.resolve() for f in files]:
            raise UserError(str(files[-1]), f"its base {base} leads back to itself")
        if not file.exists():
            raise UserError(str(files[-1]), f"its base {base} does not exist")
        files.append(file)
    return files


def _own_fields(file: Path) -> dict[str, Any]:
    """What a file itself says; its folder of own modules is beside it."""
    tree = _read(file)
    tree.pop("base", None)
    if isinstance(tree.get("code"), str):
        tree["code"] = str(file.absolute().parent / tree["code"])
    return tree


def _over(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Fields of two trees; where both have one, the second's."""
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        merged[key] = _over(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def _parse(dotted: str, text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        raise UserError(dotted, f"{text!r} cannot be read") from None


def _override(tree: dict[str, Any], values: Mapping[str, Any]) -> None:
    _make_room(tree, values)
    for dotted, value in values.items():
        _place(tree, dotted, value)


def _make_room(tree: dict[str, Any], fields: Iterable[str]) -> None:
    """A target of weight pruning among ``fields`` replaces the one that is there."""
    if any(dotted in _TARGETS for dotted in fields):
        for dotted in _TARGETS:
            _place(tree, dotted, None)


def _place(tree: dict[str, Any], dotted: str, value: Any) -> None:
    *path, leaf = dotted.split(".")
    for key in path:
        branch = tree.setdefault(key, {})
        if not isinstance(branch, dict):
            raise UserError(key, f"must hold fields, not {branch!r}")
        tree = branch
    tree[leaf] = value


def _build(cls: type, tree: Any, prefix: str) -> Any:
    if tree is None:
        tree = {}
    if not isinstance(tree, dict):
        raise UserError(prefix.rstrip(".") or "config", f"{tree!r} is not possible; it must hold fields")
    hints = get_type_hints(cls)
    for key in tree:
        if key not in hints:
            raise UserError(f"{prefix}{key}", f"is not a field{_suggestion(f'{prefix}{key}', hints, prefix)}")
    values = {
        key: _build(hints[key], value, f"{prefix}{key}.")
        if is_dataclass(hints[key])
        else _convert(hints[key], value, f"{prefix}{key}")
        for key, value in tree.items()
    }
    return cls(**values)


def _suggestion(path: str, hints: Mapping[str, Any], prefix: str) -> str:
    if path == "search":
        return "; `spikeprune search` reads it"
    close = difflib.get_close_matches(path, field_paths(), n=1)
    if close:
        return f"; did you mean {close[0]}?"
    return f"; {prefix.rstrip('.') or 'the config'} has {', '.join(hints)}"


def _convert(hint: Any, value: Any, where: str) -> Any:
    if hint is Any:  # whoever reads it checks it
        return value
    origin, args = get_origin(hint), get_args(hint)
    if str in args and any(get_origin(a) is Literal for a in args) and isinstance(value, str):
        if is_own(value):
            return _own_name(value, where)
        return _convert(next(a for a in args if get_origin(a) is Literal), value, where)
    if origin in (Union, types.UnionType):
        inner = next(a for a in args if a is not type(None))
        return None if value is None else _convert(inner, value, where)
    if origin is Literal:
        if value not in args:
            close = difflib.get_close_matches(str(value), [str(a) for a in args], n=1)
            hint_text = f"; did you mean {close[0]}?" if close else ""
            raise UserError(
                where, f"{value!r} is unknown; choose one of {', '.join(map(str, args))}{hint_text}"
            )
        return value
    if origin is dict:
        if not isinstance(value, dict) or not all(isinstance(k, str) and k.isidentifier() for k in value):
            raise UserError(
                where, f"{value!r} is not possible; it must be names with values, as {{width: 64}}"
            )
        return {k: _plain(v) for k, v in value.items()}
    if origin is tuple:
        items = value if isinstance(value, list | tuple) else [value]
        return tuple(_convert(args[0], item, where) for item in items)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is float and isinstance(value, str):  # YAML reads 1e-3 as text
        try:
            return float(value)
        except ValueError:
            pass
    if hint is str and isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise UserError(where, f"{value!r} is not possible; it must be {_TYPE_NAMES[hint]}")
    return value


def _own_name(value: str, where: str) -> str:
    module, _, attribute = value.partition(":")
    if not all(part.isidentifier() for part in (*module.split("."), *attribute.split("."))):
        raise UserError(where, f"{value!r} is not possible; one of your own is package.module:attribute")
    return value


_TYPE_NAMES = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}


def leaf_hint(dotted: str, cls: Any = Config) -> Any:
    """The type of a field by its path; ``None`` where there is none."""
    for key in dotted.split("."):
        cls = get_type_hints(cls).get(key) if is_dataclass(cls) else None
    return cls


def _is_sequence(dotted: str, cls: type[Config]) -> bool:
    hint = leaf_hint(dotted, cls)
    return any(get_origin(h) is tuple for h in (hint, *get_args(hint)))


def _is_bool(dotted: str, cls: type[Config]) -> bool:
    return leaf_hint(dotted, cls) is bool


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return list(value) if isinstance(value, tuple) else value
