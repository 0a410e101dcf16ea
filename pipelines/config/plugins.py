"""A user's own models, policies and criteria: ``module:attribute`` in the config, wherever they are needed.

Modules are looked for beside the config file (or in the folder ``code``), then in the environment. The
folder's Python files travel: into the run's folder, from which later commands rebuild the network, and
to every worker. Only names in a config are ever imported, never one that a checkpoint brings along.
"""

import atexit
import difflib
import importlib
import inspect
import re
import shutil
import sys
import tempfile
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from cluster.submit import shadows
from pipelines.config import Config, is_own
from pipelines.errors import UserError

OURS = ("spikeprune", "snn", "pruning", "pipelines", "cluster")
_LEANED_ON = ("torch", "ray", "numpy", "pyarrow", "yaml", "rich", "safetensors")
MOST_BYTES = 16 << 20
_FRAME = re.compile(r'File "([^"]+)", line (\d+)')


@dataclass(frozen=True, kw_only=True)
class OwnCode:
    """What a run needs of its user's code; plain values that travel to workers."""

    names: Mapping[str, str]
    """``module:attribute`` by the field: model.name, data_pruning.policy, weight_pruning.criterion."""
    folder: str | None
    """Where the modules are on the machine that started the run; ``None`` when installed ones are used."""
    files: Mapping[str, bytes]
    """Sources by path below the folder."""


_active: OwnCode | None = None
"""The code that this process uses."""
_place: tuple[str, frozenset[str]] | None = None
"""The folder that is on the path for own code, and its files, also where their import failed."""


def active() -> OwnCode | None:
    """The code that this process uses."""
    return _active


def use_own_code(config: Config) -> OwnCode | None:
    """Import and register the model, policy and criterion that a config names by ``module:attribute``."""
    fields = {
        "model.name": config.model.name,
        "data_pruning.policy": config.data_pruning.policy,
        "weight_pruning.criterion": config.weight_pruning.criterion,
    }
    names = {field: name for field, name in fields.items() if is_own(name)}
    if not names:
        return None
    folder = Path(config.code or ".").absolute()
    if not folder.is_dir():
        raise UserError("code", f"{folder} is not a folder")
    files: dict[str, bytes] = {}
    tops = {name.split(":")[0].split(".")[0] for name in names.values()}
    if any((folder / f"{top}.py").exists() or (folder / top).is_dir() for top in tops):
        refuse_shadowing(folder, (*OURS, *_LEANED_ON), "code")
        files = _sources(folder, tops)
    code = OwnCode(names=names, folder=str(folder) if files else None, files=files)
    activate(code, folder)
    return code


def activate(code: OwnCode | None, folder: Path | None = None) -> None:
    """Make what `use_own_code` gave, here or on another machine, usable in this process.

    Its sources are in ``folder``, or are unpacked into a temporary one. A second time this does nothing.
    """
    global _active
    if code is None or (_active is not None and replace(_active, folder=code.folder) == code):
        return
    if code.files:
        if folder is None:
            folder = Path(tempfile.mkdtemp(prefix="spikeprune-code-"))
            atexit.register(shutil.rmtree, folder, ignore_errors=True)
            keep_copy(code, folder)
        _look_in(str(folder), frozenset(code.files))
    _register(code)
    _active = code


@contextmanager
def own_failures_named() -> Iterator[None]:
    """What a user's own code raises within, on any process, becomes one line that names file and line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if (place := _own_line(error)) is None:
            raise
        cause: BaseException = error
        while isinstance(deeper := getattr(cause, "cause", None), BaseException):  # as Ray wraps it
            cause = deeper
        told = f"{type(cause).__name__}: {' '.join(str(cause).split())[:300]}"
        raise UserError(place[0], f"{place[1]} failed: {told} ({place[2]})") from error


def line_in_own_code(error: BaseException) -> str:
    """Where in own code an error was raised: `` (my_net.py, line 3)``; empty where nowhere there."""
    place = _own_line(error)
    return "" if place is None else f" ({place[2]})"


def _own_line(error: BaseException) -> tuple[str, str, str] | None:
    """Field, name, and file with line of the innermost frame in own code, on any machine."""
    if _active is None:
        return None
    installed = {n.split(":")[0] for n in _active.names.values()} if not _active.files else set()
    files = {str(getattr(sys.modules.get(m), "__file__", None)): m for m in installed}
    files |= {f"/{name}": name.removesuffix(".py").replace("/", ".") for name in _active.files}
    for path, line in reversed(_FRAME.findall("".join(traceback.format_exception(error)))):
        for ending, module in files.items():
            if path.endswith(ending):
                of = {n.split(":")[0]: (field, n) for field, n in _active.names.items()}
                field, name = of.get(module) or next(iter(_active.names.items()))
                return field, name, f"{Path(path).name}, line {line}"
    return None


def refuse_shadowing(folder: Path, names: tuple[str, ...], where: str) -> None:
    """Raise where ``folder``, if it is not our own, holds a module or package called like one we import."""
    hiding = shadows(folder, names) if folder.resolve() != Path(__file__).resolve().parents[2] else []
    if hiding:
        raise UserError(
            where,
            f"{hiding[0]} would be imported instead of the package {hiding[0].stem!r}, which spikeprune "
            "needs; rename it or start from another folder",
        )


def keep_copy(code: OwnCode | None, folder: Path) -> None:
    """Write the sources below a run's folder."""
    for name, content in (code.files if code is not None else {}).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def check_unchanged(code: OwnCode | None, folder: Path, kind: Literal["run", "search"] = "run") -> None:
    """That a run or search resumes with the sources it started with."""
    if code is None or not folder.is_dir():
        return
    kept = {str(p.relative_to(folder)): p.read_bytes() for p in _python_files(folder)}
    for name in sorted({*kept, *code.files}):
        if kept.get(name) != code.files.get(name):
            how = "is new" if name not in kept else "is gone" if name not in code.files else "has changed"
            raise UserError(
                "code",
                f"{name} {how} since the {kind} started; resume with --code {folder}, "
                "or choose another --name",
            )


def _sources(folder: Path, tops: set[str]) -> dict[str, bytes]:
    """The folder's modules and packages, and the packages without ``__init__`` that are named."""
    files = [*folder.glob("*.py")]
    for package in sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")):
        if package.name in OURS:
            continue
        if package.name in tops or (package / "__init__.py").exists():
            files += _python_files(package)
    size = sum(f.stat().st_size for f in files)
    if size > MOST_BYTES:
        raise UserError(
            "code",
            f"{folder} holds {size >> 20} MiB of Python files, more than can travel with a run; "
            "keep your modules in a folder of their own",
        )
    return {f.relative_to(folder).as_posix(): f.read_bytes() for f in sorted(files)}


def _python_files(folder: Path) -> Iterator[Path]:
    """Those below a folder that are not hidden in it."""
    found = ((p, p.relative_to(folder).parts) for p in folder.rglob("*.py"))
    return (p for p, parts in found if not any(part.startswith(".") for part in parts))


def _look_in(folder: str, files: frozenset[str]) -> None:
    """Put a folder first on the path in place of the one before, and import modules of own code again.

    Only modules of these files are forgotten: a virtual environment below the folder holds torch and
    numpy, which a process can import only once.
    """
    global _place
    places = [(folder, files), *([_place] if _place is not None else [])]
    own = {str(Path(place, file)) for place, names in places for file in names}
    for name, module in list(sys.modules.items()):
        if name != "__main__" and getattr(module, "__file__", None) in own:
            del sys.modules[name]
    if _place is not None and _place[0] in sys.path:
        sys.path.remove(_place[0])
    sys.path.insert(0, folder)
    _place = folder, files
    importlib.invalidate_caches()


def _register(code: OwnCode) -> None:
    from pruning.examples import policies
    from pruning.weights import criteria
    from snn import models

    rooms = {"model.name": models, "data_pruning.policy": policies, "weight_pruning.criterion": criteria}
    for field, name in code.names.items():
        made = _load(name, field, code)
        if (fault := _fault(field, made)) is not None:
            raise UserError(field, f"{name} {fault}")
        if field == "data_pruning.policy" and "name" not in vars(made):
            made.name = name
        register: Any = rooms[field].register
        register(name, made)


def _fault(field: str, made: Any) -> str | None:
    """Why an object cannot be what the field names."""
    if field == "data_pruning.policy":
        from pruning.examples.policies import Policy
        from pruning.examples.scores import SCORES

        if not (isinstance(made, type) and issubclass(made, Policy)):
            return "must be a subclass of pruning.examples.policies.base.Policy"
        if made.score is not None and made.score not in SCORES:
            return f"wants the score {made.score!r}; choose one of {', '.join(SCORES)}, or None"
        return None
    if not callable(made):
        kind = "a function or class" if field == "model.name" else "a function"
        return f"is of type {type(made).__name__}; it must be {kind}"
    try:
        taken = inspect.signature(made).parameters
    except ValueError:  # of some functions written in C
        return "does not tell its arguments; wrap it in a function of Python"
    if field == "weight_pruning.criterion":
        wrong = f"takes {len(taken)} arguments; it must take synapses, calibration, objective"
        return wrong if len(taken) != 3 else None
    missing = [n for n in ("input_shape", "num_classes", "neuron") if n not in taken]
    if not missing or any(p.kind is p.VAR_KEYWORD for p in taken.values()):
        return None
    return f"must take input_shape, num_classes, neuron; {missing[0]} is missing"


def _load(name: str, where: str, code: OwnCode) -> Any:
    module_name, _, attribute = name.partition(":")
    looked = f"{code.folder} and the environment" if code.folder else "the environment"
    try:
        found = find_spec(module_name)
    except ModuleNotFoundError:
        found = None
    except Exception as error:  # a parent package that cannot be imported
        raise UserError(where, _told(error, module_name)) from error
    if found is None:
        raise UserError(
            where,
            f"there is no module {module_name!r} in {looked}; modules are looked for beside the config file, "
            "or in the folder that --code names",
        )
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise UserError(where, _told(error, module_name)) from error
    value: Any = module
    for part in attribute.split("."):
        if not hasattr(value, part):
            close = difflib.get_close_matches(part, dir(value), n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise UserError(where, f"{getattr(module, '__file__', module_name)} has no {attribute!r}{hint}")
        value = getattr(value, part)
    return value


def _told(error: BaseException, module: str) -> str:
    """An exception in a user's module as one line that says where it was raised."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "importlib" not in f.filename]
    at = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    if isinstance(error, SyntaxError):
        at = f" ({Path(error.filename or module).name}, line {error.lineno})"
        return f"importing {module} failed: {error.msg}{at}"
    return f"importing {module} failed: {type(error).__name__}: {' '.join(str(error).split())}{at}"
