"""A user's own models, policies and criteria: ``module:attribute`` in the config, wherever they are needed.

Modules are looked for beside the config file (or in the folder ``code``), then in the environment. The
folder's Python files travel: into the run's folder, from which later commands rebuild the network, and
to every worker. Only names in a config are ever imported, never one that a checkpoint brings along.
"""

import atexit
import importlib
import inspect
import re
import shutil
import sys
import tempfile
import traceback
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal

from cluster.errors import UserError
from cluster.submit import shadows
from pipelines.config import Config, is_own
from pipelines.config.checks import closest

OURS = ("spikeprune", "snn", "pruning", "pipelines", "cluster")
_LEANED_ON = ("torch", "ray", "numpy", "pyarrow", "yaml", "rich", "safetensors")
MOST_BYTES = 16 << 20


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
_looked_in: list[str] = []  # folders of own code in this process
"""The code that this process uses."""


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
        _look_in(str(folder), code.files)
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
        if not (line := line_in_own_code(error)):
            raise
        cause: BaseException = error
        while isinstance(deeper := getattr(cause, "cause", None), BaseException):  # as Ray wraps it
            cause = deeper
        told = " ".join(str(cause).split())[:300]
        raise UserError("code", f"{type(cause).__name__}: {told}{line}") from error


def line_in_own_code(error: BaseException) -> str:
    """Where in own code an error was raised: `` (my_net.py, line 3)``; empty where nowhere there."""
    if _active is None:
        return ""
    modules = (sys.modules.get(name.partition(":")[0]) for name in _active.names.values())
    installed = {str(getattr(module, "__file__", None)) for module in modules} if not _active.files else ()
    names = (*(f"/{name}" for name in _active.files), *installed)
    trace = "".join(traceback.format_exception(error))  # one from another process is text
    for path, line in reversed(re.findall(r'File "([^"]+)", line (\d+)', trace)):
        if path.endswith(names):
            return f" ({Path(path).name}, line {line})"
    return ""


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
            remedy = f"resume with --code {folder}, or choose another --name"
            raise UserError("code", f"{name} is not what it was when the {kind} started; {remedy}")


def _sources(folder: Path, tops: set[str]) -> dict[str, bytes]:
    """The folder's modules and packages, and the packages without ``__init__`` that are named."""
    files = [*folder.glob("*.py")]
    for package in (p for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")):
        if package.name not in OURS and (package.name in tops or (package / "__init__.py").exists()):
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


def _look_in(folder: str, files: Iterable[str]) -> None:
    """Put a folder first on the path, and import the modules of these files of it again."""
    _looked_in.append(folder)
    for file in {*files} - {"__main__.py"}:
        name = file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        module = sys.modules.get(name)
        where = Path(getattr(module, "__file__", None) or next(iter(getattr(module, "__path__", [""]))))
        if any(where.is_relative_to(own) for own in _looked_in):  # no module of somebody else's
            del sys.modules[name]
    sys.path.insert(0, folder)
    importlib.invalidate_caches()


def _register(code: OwnCode) -> None:
    from pruning.examples.policies import POLICIES
    from pruning.weights.criteria import CRITERIA
    from snn.models import MODELS

    rooms: dict[str, Any] = {
        "model.name": MODELS,
        "data_pruning.policy": POLICIES,
        "weight_pruning.criterion": CRITERIA,
    }
    for field, name in code.names.items():
        made = _load(name, field, code)
        if (fault := _fault(field, made)) is not None:
            raise UserError(field, f"{name} {fault}")
        if field == "data_pruning.policy" and "name" not in vars(made):
            made.name = name
        rooms[field].register(name, made)


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
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and f"{module_name}.".startswith(f"{error.name}."):
            looked = f"{code.folder} and the environment" if code.folder else "the environment"
            what = "modules are looked for beside the config file, or in the folder that --code names"
            raise UserError(where, f"there is no module {module_name!r} in {looked}; {what}") from None
        raise UserError(where, _told(error, module_name)) from error
    try:
        return attrgetter(attribute)(module)
    except AttributeError:
        file = getattr(module, "__file__", module_name)
        raise UserError(where, f"{file} has no {attribute!r}{closest(attribute, dir(module))}") from None


def _told(error: BaseException, module: str) -> str:
    """An exception in a user's module as one line that says where it was raised."""
    frame = [f for f in traceback.extract_tb(error.__traceback__) if "importlib" not in f.filename][-1]
    file, line, what = frame.filename, frame.lineno, f"{type(error).__name__}: {' '.join(str(error).split())}"
    if isinstance(error, SyntaxError):
        file, line, what = error.filename or module, error.lineno, error.msg
    return f"importing {module} failed: {what} ({Path(file).name}, line {line})"
