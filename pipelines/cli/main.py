"""The verbs of ``spikeprune``, and what becomes of their mistakes. Loads neither torch nor Ray by itself."""

import os
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import get_type_hints

from cluster.errors import UserError
from cluster.manifest import RESUMABLE
from pipelines.cli import cluster, data, runs
from pipelines.config.checks import closest, shown, shown_word
from pipelines.config.load import read_command
from pipelines.config.parser import parse
from pipelines.console import say, write
from pipelines.runs.interrupts import TERMINATED, end_on_sigterm, was_terminated

ABOUT = "Train spiking neural networks on fewer examples per epoch, and prune their synapses.\n\n"
VERBS: dict[str, Callable[..., int | None]] = {
    "data ingest": data.ingest,
    "data verify": data.verify,
    "data show": data.show,
    "data select": data.select,
    "score": runs.score,
    "train": runs.train,
    "prune": runs.prune,
    "compare": runs.compare,
    "run": runs.run,
    "evaluate": runs.evaluate,
    "search": runs.search,
    "export": runs.export,
    "report": runs.report,
    "bench": runs.bench,
    "submit": cluster.submit,
    "jobs list": cluster.jobs_list,
    "jobs status": cluster.jobs_status,
    "jobs logs": cluster.jobs_logs,
    "jobs stop": cluster.jobs_stop,
    "doctor": cluster.doctor,
    "cluster manifest": cluster.manifest,
}
"""Every verb, with its function; the first line of what it says is its help.

A function takes its options, a dataclass; where these hold a config, the fields that were set as well.
``submit`` takes its words, which are those of another command too. It gives the exit code, if not 0.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the exit code is 0, 2 for a user's mistake, 3 where Ray has ended under it, 130 after
    Ctrl-C, 143 after SIGTERM.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    if argv is None:
        end_on_sigterm()
    try:
        try:
            return _dispatch(args)
        finally:
            sys.stdout.flush()
    except KeyboardInterrupt:
        word, code = ("terminated", TERMINATED) if was_terminated() else ("interrupted", 130)
        again = [*args, *([] if "--resume" in args else ["--resume"])]
        hint = f"; go on with: spikeprune {shlex.join(again)}" if args[:1] and args[0] in RESUMABLE else ""
        say(word + hint)
        return code
    except BrokenPipeError:  # whoever read the output has seen enough, as head does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except UserError as error:
        say(f"spikeprune: {error}")
        return 2


def usage(group: str = "") -> str:
    """The verbs, or those of a group, with a line each."""
    prog = f"spikeprune {group}".strip()
    lines = {v.removeprefix(f"{group} "): f for v, f in VERBS.items() if v.startswith(f"{group} ".lstrip())}
    shown = "\n".join(f"  {verb:<17}{str(f.__doc__).splitlines()[0]}" for verb, f in lines.items())
    return (
        f"usage: {prog} VERB [options]\n\n{'' if group else ABOUT}verbs:\n{shown}\n\n"
        f"{prog} VERB --help explains a verb and every field of its config.\n"
    )


def _dispatch(args: list[str]) -> int:
    if not args or args[0] in ("-h", "--help"):
        write(usage(), end="")
        return 0 if args else 2
    if args[0] == "--version":
        from importlib.metadata import version

        write(version("spikeprune"))
        return 0
    verb, rest = args[0], args[1:]
    if seconds := [v.split()[1] for v in VERBS if v.startswith(f"{verb} ")]:
        if rest[:1] in (["-h"], ["--help"]):
            write(usage(verb), end="")
            return 0
        if not rest or rest[0] not in seconds:
            given = shown(" ".join(rest[:1]) or "nothing")
            raise UserError(verb, f"{given} is not one of its verbs; use {', '.join(seconds)}")
        verb, rest = f"{verb} {rest[0]}", rest[1:]
    if verb not in VERBS:
        hint = closest(verb, VERBS) or f"; verbs are {', '.join(VERBS)}"
        raise UserError(shown_word(verb), f"is not a verb{hint}")
    return _call(verb, rest) or 0


def _call(verb: str, args: list[str]) -> int | None:
    function = VERBS[verb]
    how = {"prog": f"spikeprune {verb}", "description": function.__doc__}
    options = get_type_hints(function).get("o")
    if options is None:
        return function(args)
    if any(f.name == "settings" for f in fields(options)):
        return function(*read_command(options, args, **how))
    return function(parse(options, args, **how))
