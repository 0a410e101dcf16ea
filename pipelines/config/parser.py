"""Values of config files and of the command line, read by the types of their fields; options of commands.

tyro splits a command's words and writes its help; it reports a mistake through the hook in its module
``_errors``, for which pyproject.toml pins it.
"""

import re
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import tyro
import yaml
from tyro import _errors
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from cluster.errors import UserError
from pipelines.config.checks import closest, is_own, shown, shown_word
from pipelines.config.migration import today
from pipelines.config.schema import Config, field_paths

C = TypeVar("C")
SHORT = {
    "--address": "--cluster.address",
    "--no-retrain": "--weight_pruning.retrain_epochs=0",
    **{f"--{n}": f"--weight_pruning.{n}" for n in ("sparsity", "budget", "synops", "criterion")},
}
"""Options that stand for a field without its path, for every verb that takes the fields."""
_MOST = 2**63
_LONGEST = 4096
_RULES = ConstructorRegistry()
_SHOW = (tyro.conf.PositionalMetavarFromFieldName,)


def parse(command: Callable[..., C], args: Sequence[str], **how: Any) -> C:
    """The options of a command from words.

    Args:
        command: a dataclass; a field ``settings`` of it is a config, whose fields `split_overrides` has taken
            out of the words, and which the help shows.
        args: words; of an option that occurs twice the last counts.
        how: ``prog``, ``description`` and ``default`` for the help; SystemExit once that has been printed.
    """
    with _errors.on_parse_error(lambda event: _reword(event, command)):
        return tyro.cli(command, args=list(args), registry=_RULES, config=_SHOW, **how)


def split_overrides(args: Sequence[str], cls: type[Config] = Config) -> tuple[dict[str, Any], list[str]]:
    """Command-line words that set config fields, as text by path, and all others."""
    overrides: dict[str, Any] = {}
    rest, waiting = [], list(args)
    while waiting:
        word = waiting.pop(0)
        name, equals, value = word.partition("=")
        name, equals, value = f"{SHORT.get(name, name)}{equals}{value}".partition("=")
        path = name.removeprefix("--").replace("-", "_")
        negated = _negated(path, cls) if word.startswith("--") else None
        hint = _optional(leaf_hint(negated or path, cls))[0]
        if not word.startswith("--") or hint is None or is_dataclass(hint):
            rest.append(word)
        elif hint is bool:
            overrides[negated or path] = "false" if negated else value if equals else "true"
        elif equals:
            overrides[path] = value
        else:
            count = next((i for i, w in enumerate(waiting) if w.startswith("--")), len(waiting))
            many = get_origin(hint) is tuple and count != 1
            if count == 0 and not many:
                raise UserError(path, "needs a value")
            overrides[path] = tuple(waiting[:count]) if many else waiting[0]
            del waiting[: count if many else 1]
    return overrides, rest


def _negated(path: str, cls: type[Config]) -> str | None:
    """The flag that --no-model.detach-reset or --model.no-detach-reset sets to false."""
    head, dot, leaf = path.removeprefix("no_").rpartition(".")
    flag = f"{head}{dot}{leaf.removeprefix('no_')}"
    return flag if flag != path and leaf_hint(flag, cls) is bool else None


def group_of(values: Mapping[str, Any], cls: Any, prefix: str = "") -> Any:
    """A checked config, or a group of it, of values by dotted path."""
    given = {}
    for name, hint in _hints(cls).items():
        path = f"{prefix}{name}"
        if is_dataclass(hint):
            given[name] = group_of(values, hint, f"{path}.")
        elif path in values:
            given[name] = values[path]
    return cls(**given)


def read_field(path: str, value: Any, cls: type[Config]) -> Any:
    """The value of a field from its text, or as Python and YAML give it."""
    hint = leaf_hint(path, cls)
    if is_dataclass(hint):
        raise UserError(path, f"{shown(value)} is not possible; it must hold fields")
    if hint is None:
        raise no_field(path, cls)
    try:
        return _read(value, hint)
    except ValueError as error:
        raise UserError(path, str(error)) from None


def _read(value: Any, hint: Any) -> Any:
    inner, optional = _optional(hint)
    if value is None and not optional:
        raise ValueError("has no value; give one or leave it out")
    if optional and is_null(value):
        return None
    kind = get_origin(inner)
    if kind is dict:
        return _mapping(value, inner)
    if isinstance(value, dict if kind is tuple else dict | list | tuple):
        what = {int: "a whole number", float: "a number", bool: "true or false"}.get(inner, "text")
        raise ValueError(f"{shown(value)} is not possible; it must be {what}")
    if kind is tuple:
        return tuple(_read(item, get_args(inner)[0]) for item in _items(value))
    reader = _reader(inner)
    assert reader is not None, hint
    return reader[0](str(value))


def leaf_hint(path: str, cls: Any = Config) -> Any:
    """The type of a field by its path; ``None`` where there is none."""
    for key in path.split("."):
        cls = _hints(cls).get(key)
    return cls


@cache
def _hints(cls: Any) -> dict[str, Any]:
    """The types of a dataclass's fields."""
    hints = get_type_hints(cls) if is_dataclass(cls) else {}
    return {name: hint for name, hint in hints.items() if get_origin(hint) is not ClassVar}


def no_field(path: str, cls: type[Config] = Config) -> UserError:
    """That there is no field of this path, and what may be meant."""
    if path == "search":
        return UserError(path, "is not a field; `spikeprune search` reads it")
    if is_dataclass(leaf_hint(path, cls)):
        return UserError(path, "holds fields; set one of them")
    new, there = today(path)
    if there and new != path:
        return UserError(path, f"is not a field; it is called {new} now")
    if hint := closest(path, field_paths(cls)):
        return UserError(path, f"is not a field{hint}")
    parent = path.rpartition(".")[0]
    group = leaf_hint(parent, cls) if parent else cls
    if is_dataclass(group):
        names = ", ".join(f.name for f in fields(group))
        return UserError(path, f"is not a field; {parent or 'the config'} has {names}")
    return UserError(path, "is not a field")


class Plain(str):
    """An unquoted scalar of a YAML file as it is written, to be read by the type of its field."""


def typed(value: Any) -> Any:
    """A tree with its `Plain` scalars as YAML reads them, where fields have no type of their own.

    Names are sorted: neither trials nor the names of their folders depend on the order in a file.
    """
    if isinstance(value, dict):
        return {str(k): typed(v) for k, v in sorted(value.items(), key=lambda item: str(item[0]))}
    if isinstance(value, list | tuple):
        return [typed(v) for v in value]
    try:
        return yaml.safe_load(value) if isinstance(value, Plain) else value
    except (yaml.YAMLError, ValueError):  # = and 2026-13-45 look like values and are none
        return str(value)


def _exponent(value: Any) -> Any:
    """1e-3 as a number, which YAML reads as text."""
    if isinstance(value, str) and re.fullmatch(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+", value):
        return float(value)
    return value


def _optional(hint: Any) -> tuple[Any, bool]:
    """A type without ``None``, and whether it had it."""
    inner = [a for a in get_args(hint) if a is not type(None)]
    if get_origin(hint) in (Union, types.UnionType) and len(inner) == 1:
        return inner[0], True
    return hint, False


def is_null(value: Any) -> bool:
    """Whether a value, or a word of the command line, clears an optional field."""
    return value is None or str(value).lower() in ("null", "none")


@_RULES.primitive_rule
def _rule(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
    """How a field's words are read, by its type; flags and pairs are tyro's own."""
    hint, optional = _optional(info.type)
    is_tuple = get_origin(hint) is tuple and get_args(hint)[1:] == (...,)
    reader = _reader(get_args(hint)[0] if is_tuple else hint)
    if reader is None or hint is bool:
        return None
    metavar = f"[{reader[1]} ...]" if is_tuple else reader[1]
    return PrimitiveConstructorSpec(
        nargs="*" if is_tuple else 1,
        metavar=f"{metavar}|null" if optional else metavar,
        instance_from_str=lambda words: _read(words[0] if len(words) == 1 else words, info.type),
        is_instance=lambda value: True,
        str_from_instance=lambda value: (
            ["null"] if value is None else [str(v) for v in (value if is_tuple else [value])]
        ),
    )


def _reader(hint: Any) -> tuple[Callable[[str], Any], str] | None:
    """How a text of this type is read, and what the help calls it."""
    if hint in _READERS:
        return _READERS[hint]
    if get_origin(hint) is dict:
        return lambda text: _mapping(text, hint), "YAML"
    own = str in get_args(hint)  # names of a user's own beside ours
    choice = next((a for a in get_args(hint) if get_origin(a) is Literal), None) if own else hint
    if get_origin(choice) is not Literal:
        return None
    names = get_args(choice)
    metavar = f"{{{','.join(names)}}}" + ("|MODULE:ATTRIBUTE" if own else "")
    return lambda text: _name(text, names, own), metavar


def _flag(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError(f"{shown(text)} is not possible; it must be true or false")
    return text.lower() == "true"


def _whole(text: str) -> int:
    try:
        value = int(text) if len(text) < 100 else _MOST
    except ValueError:
        raise ValueError(f"{shown(text)} is not possible; it must be a whole number") from None
    if abs(value) >= _MOST:
        raise ValueError(f"{shown(text)} is not possible; it must be a whole number below 2^63")
    return value


def _number(text: str) -> float:
    try:
        return float(re.sub(r"^([+-]?)\.(inf|nan)$", r"\1\2", text, flags=re.IGNORECASE))
    except ValueError:
        raise ValueError(f"{shown(text)} is not possible; it must be a number") from None


def _text(text: str) -> str:
    if len(text) > _LONGEST or "\0" in text:
        raise ValueError(
            f"{shown(text)} is not possible; it must be text of at most {_LONGEST:,} characters without NUL"
        )
    return text


_READERS: dict[Any, tuple[Callable[[str], Any], str]] = {
    bool: (_flag, "BOOL"),
    int: (_whole, "INT"),
    float: (_number, "FLOAT"),
    str: (_text, "TEXT"),
    Path: (lambda text: Path(_text(text)), "PATH"),
}


def _name(text: str, names: tuple[str, ...], own: bool) -> str:
    if own and is_own(text):
        module, _, attribute = text.partition(":")
        if not all(part.isidentifier() for part in (*module.split("."), *attribute.split("."))):
            raise ValueError(f"{shown(text)} is not possible; one of your own is package.module:attribute")
        return text
    if text not in names:
        choice = f"choose one of {', '.join(names)}{closest(text, names)}"
        raise ValueError(f"{shown(text)} is unknown; {choice}")
    return text


def _items(given: Any) -> list[str]:
    """The items of a sequence, of a text in brackets, or of a text that is the only one."""
    if not isinstance(given, list | tuple):
        if not str(given).startswith("["):
            return [str(given)]
        try:
            given = yaml.load(given, yaml.BaseLoader)
        except yaml.YAMLError:
            raise ValueError(f"{shown(given)} is not possible; it must be a list, as [1, 2]") from None
    return [str(item) for item in given]


def _mapping(given: Any, hint: Any) -> Any:
    try:
        value = yaml.safe_load(given) if isinstance(given, str) else typed(given)
    except (yaml.YAMLError, ValueError, RecursionError):
        raise ValueError(f"{shown(given)} cannot be read as YAML") from None
    if get_args(hint)[1] is Any:  # whoever reads it checks it
        return value
    kinds = get_args(get_args(hint)[1])
    if not isinstance(value, dict) or not all(
        isinstance(k, str) and k.isidentifier() and isinstance(v, kinds) for k, v in value.items()
    ):
        raise ValueError(f"{shown(given)} is not possible; it must be names with values, as {{width: 64}}")
    return {k: _exponent(v) for k, v in value.items()}


def _reword(event: "_errors.ParseErrorEvent", command: Any) -> None:
    """Raise what tyro would tell in a box as one line; what it does not know is left to tyro."""
    if isinstance(event, _errors.InstantiationFailure) and event.argument is not None:
        raise UserError(_where(event.argument), event.message)
    if isinstance(event, _errors.BadValue):
        raise UserError(_where(event.argument), "needs a value")
    if isinstance(event, _errors.MissingArgs):
        raise UserError(_where(event.missing_arguments[0].arg), "is needed; --help explains it")
    if isinstance(event, _errors.UnrecognizedArgs):
        raise _unknown(event.tokens, command)


def _unknown(tokens: list[str], command: Any) -> UserError:
    tree = _hints(command).get("settings")
    word = next((t for t in tokens if t.startswith("-")), tokens[0])
    if not word.startswith("-"):
        return UserError(shown_word(word), "is one word too many; flags take no value, other options one")
    name = word.partition("=")[0]
    path = name.removeprefix("--").replace("-", "_")
    if "." in path and (tree is not None or path not in field_paths()):
        return no_field(path, tree or Config)
    if tree is None and path in field_paths():
        return UserError(name, "is a field of a run's config; this verb reads none")
    paths = (*field_paths(tree), *(n.removeprefix("--") for n in SHORT)) if tree is not None else ()
    names = [f"--{n.replace('_', '-')}" for n in (*_hints(command), *paths)]
    return UserError(name, f"is not an option{closest(name, names)}")


def _where(argument: Any) -> str:
    """An option as it is written."""
    name: str = argument.field.intern_name.upper()
    return name if argument.is_positional() else argument.lowered.name_or_flags[0]
