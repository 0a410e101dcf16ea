"""One parser for config files and the command line: tyro, with our wording of what is wrong.

A file's values become options (`option`), so that both are read by the same rules and refused in the same
words. tyro reports a mistake through the hook in its module ``_errors``; pyproject.toml pins tyro for it.
"""

import difflib
import re
import sys
import types
from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import tyro
import yaml
from tyro import _errors
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from cluster.errors import UserError
from pipelines.config.checks import is_own, shown, shown_word
from pipelines.config.migration import new_name
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


def parse(command: Callable[..., C], args: Sequence[str], *, default: C | None = None, **how: Any) -> C:
    """The options of a command, or a config, from words.

    Args:
        command: a dataclass; a field ``settings`` of it is a config whose fields are options by their path.
        args: words; of an option that occurs twice the last counts.
        default: for what the words leave out; the dataclass's own when not given.
        how: ``prog`` and ``description`` for the help; SystemExit once that has been printed.
    """
    if default is not None:
        how["default"] = default
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
            overrides[negated or path] = False if negated else _is_true(path, value if equals else "true")
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


def option(path: str, value: Any, cls: type[Config]) -> str:
    """The word of the command line that gives a field this value."""
    hint = leaf_hint(path, cls)
    if is_dataclass(hint):
        raise UserError(path, f"{shown(value)} is not possible; it must hold fields")
    if hint is None:
        raise no_field(path, cls)
    inner, optional = _optional(hint)
    if value is None and not optional:
        raise UserError(path, "has no value; give one or leave it out")
    if inner is bool:
        head, dot, leaf = path.rpartition(".")
        return f"--{path}" if _is_true(path, value) else f"--{head}{dot}no-{leaf}"
    if (_is_free(inner) and not isinstance(value, str)) or isinstance(value, list | tuple | dict):
        if not _is_free(inner) and not (get_origin(inner) is tuple and not isinstance(value, dict)):
            kind = {int: "a whole number", float: "a number"}.get(inner, "text")
            raise UserError(path, f"{shown(value)} is not possible; it must be {kind}")
        found = typed(value) if _is_free(inner) else [str(v) for v in value]
        text = yaml.safe_dump(found, default_flow_style=True)
        return f"--{path}={text.removesuffix('...' + chr(10)).strip()}"
    return f"--{path}={'null' if value is None else value}"


def _is_true(path: str, value: Any) -> bool:
    if str(value).lower() not in ("true", "false"):
        raise UserError(path, f"{shown(value)} is not possible; it must be true or false")
    return str(value).lower() == "true"


def leaf_hint(path: str, cls: Any = Config) -> Any:
    """The type of a field by its path; ``None`` where there is none."""
    for key in path.split("."):
        hint: Any = cls
        cls = _hints(hint).get(key) if is_dataclass(cls) else None
    return cls


@cache
def _hints(cls: Any) -> dict[str, Any]:
    return get_type_hints(cls)


def no_field(path: str, cls: type[Config] = Config) -> UserError:
    """That there is no field of this path, and what may be meant."""
    if path == "search":
        return UserError(path, "is not a field; `spikeprune search` reads it")
    if is_dataclass(leaf_hint(path, cls)):
        return UserError(path, "holds fields; set one of them")
    if (new := new_name(path)) is not None:
        return UserError(path, f"is not a field; it is called {new} now")
    if close := difflib.get_close_matches(path, field_paths(cls), n=1):
        return UserError(path, f"is not a field; did you mean {close[0]}?")
    parent = path.rpartition(".")[0]
    group = leaf_hint(parent, cls) if parent else cls
    if is_dataclass(group):
        names = ", ".join(f.name for f in fields(group))
        return UserError(path, f"is not a field; {parent or 'the config'} has {names}")
    return UserError(path, "is not a field")


class Plain(str):
    """An unquoted scalar of a YAML file as it is written, to be read by the type of its field."""


def typed(value: Any) -> Any:
    """A tree with its `Plain` scalars as YAML reads them, where fields have no type of their own."""
    if isinstance(value, dict):
        return {str(k): typed(v) for k, v in value.items()}
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


def _is_free(hint: Any) -> bool:
    """Whether a value is a mapping of names, written as YAML."""
    return get_origin(hint) is dict


@_RULES.primitive_rule
def _rule(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
    """How a field's words are read, by its type; flags are tyro's own."""
    hint, optional = _optional(info.type)
    is_tuple = get_origin(hint) is tuple and get_args(hint)[1:] == (...,)
    if (found := _reader(get_args(hint)[0] if is_tuple else hint)) is None:
        return None
    read, metavar = found

    def read_words(words: list[str]) -> Any:
        if optional and len(words) == 1 and is_null(words[0]):
            return None
        return tuple(map(read, _items(words))) if is_tuple else read(words[0])

    metavar = f"[{metavar} ...]" if is_tuple else metavar
    return PrimitiveConstructorSpec(
        nargs="*" if is_tuple else 1,
        metavar=f"{metavar}|null" if optional else metavar,
        instance_from_str=read_words,
        is_instance=lambda value: True,
        str_from_instance=lambda value: (
            ["null"] if value is None else [str(v) for v in (value if is_tuple else [value])]
        ),
    )


def _reader(hint: Any) -> tuple[Callable[[str], Any], str] | None:
    """How one word of this type is read, and what the help calls it."""
    if hint in _READERS:
        return _READERS[hint]
    if _is_free(hint):
        return lambda text: _yaml(text, hint), "YAML"
    own = str in get_args(hint)  # names of a user's own beside ours
    choice = next((a for a in get_args(hint) if get_origin(a) is Literal), None) if own else hint
    if get_origin(choice) is not Literal:
        return None
    names = get_args(choice)
    metavar = f"{{{','.join(names)}}}" + ("|MODULE:ATTRIBUTE" if own else "")
    return lambda text: _name(text, names, own), metavar


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
        close = difflib.get_close_matches(text, names, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise ValueError(f"{shown(text)} is unknown; choose one of {', '.join(names)}{hint}")
    return text


def _items(words: list[str]) -> list[str]:
    """The items of a sequence: one word each, or all in one word in brackets."""
    if len(words) != 1 or not words[0].startswith("["):
        return words
    try:
        found = yaml.load(words[0], yaml.BaseLoader)
    except yaml.YAMLError:
        found = None
    if not isinstance(found, list):
        raise ValueError(f"{shown(words[0])} is not possible; it must be a list, as [1, 2]")
    return [str(item) for item in found]


def _yaml(text: str, hint: Any) -> Any:
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        raise ValueError(f"{shown(text)} cannot be read as YAML") from None
    if get_args(hint)[1] is Any:  # whoever reads it checks it
        return value
    kinds = get_args(get_args(hint)[1])
    if not isinstance(value, dict) or not all(
        isinstance(k, str) and k.isidentifier() and isinstance(v, kinds) for k, v in value.items()
    ):
        raise ValueError(f"{shown(text)} is not possible; it must be names with values, as {{width: 64}}")
    return {k: _exponent(v) for k, v in value.items()}


def _reword(event: "_errors.ParseErrorEvent", command: Any) -> None:
    """Raise what tyro would tell in a box as one line; what it does not know is left to tyro."""
    tree = command if issubclass(command, Config) else _hints(command).get("settings")
    if isinstance(event, _errors.InstantiationFailure):
        cause: BaseException | None = sys.exception()
        while cause is not None:  # a check of the config itself
            if isinstance(cause, UserError):
                raise cause
            cause = cause.__context__
        if event.argument is not None:
            raise UserError(_where(event.argument, tree), event.message)
    elif isinstance(event, _errors.BadValue):
        raise UserError(_where(event.argument, tree), "needs a value")
    elif isinstance(event, _errors.MissingArgs):
        raise UserError(_where(event.missing_arguments[0].arg, tree), "is needed; --help explains it")
    elif isinstance(event, _errors.UnrecognizedArgs):
        raise _unknown(event.tokens, command, tree)


def _unknown(tokens: list[str], command: Any, tree: type[Config] | None) -> UserError:
    word = next((t for t in tokens if t.startswith("-")), tokens[0])
    if not word.startswith("-"):
        return UserError(shown_word(word), "is one word too many; flags take no value, other options one")
    name = word.partition("=")[0]
    path = name.removeprefix("--").replace("-", "_")
    if command is tree or ("." in path and (tree is not None or path not in field_paths())):
        return no_field(path, tree or Config)
    if tree is None and path in field_paths():
        return UserError(name, "is a field of a run's config; this verb reads none")
    paths = (*field_paths(tree), *(n.removeprefix("--") for n in SHORT)) if tree is not None else ()
    names = [f"--{n.replace('_', '-')}" for n in (*_hints(command), *paths)]
    close = difflib.get_close_matches(name, names, n=1)
    return UserError(name, "is not an option" + (f"; did you mean {close[0]}?" if close else ""))


def _where(argument: Any, tree: type[Config] | None) -> str:
    """A config field by its path, any other option as it is written."""
    path = f"{argument.intern_prefix}.{argument.field.intern_name}".replace("-", "_").strip(".")
    path = path.removeprefix("settings.")
    if tree is not None and path in field_paths(tree):
        return path
    return (
        argument.field.intern_name.upper() if argument.is_positional() else argument.lowered.name_or_flags[0]
    )
