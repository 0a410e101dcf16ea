"""The verb ``search``: options, and what the command does with them. Imports no torch and no Ray."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from pipelines.config.load import load_tree, read_command
from pipelines.console import results
from pipelines.errors import UserError
from pipelines.search.config import SearchTree


@dataclass(kw_only=True)
class SearchCommand:
    """Options of ``search``; every config field can be set here by its path."""

    config: Annotated[Path | None, tyro.conf.Positional] = None
    """YAML file with any part of the config, and the search below `search:`."""
    address: str | None = None
    """Ray cluster to search on; the same as cluster.address."""
    resume: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Go on with the search of that name where it stopped."""
    plot: Path | None = None
    """Folder of a search whose table, configs and report are made again; nothing runs."""
    settings: Annotated[SearchTree, tyro.conf.arg(name="")] = field(default_factory=SearchTree)
    """Config."""


def main(args: list[str]) -> int:
    """Search a config's fields for the best trade-offs between accuracy, cost, density and SynOps."""
    options, overrides = read_command(SearchCommand, args, prog="spikeprune search", description=main.__doc__)
    if options.address is not None:
        overrides["cluster.address"] = options.address
    if options.plot is not None:
        if options.config is not None or overrides or options.resume:
            raise UserError(
                "--plot", "redraws a search as it is; leave out the config, --resume and settings"
            )
        return _show(options.plot, write=True)
    from pipelines.search.study import search

    folder = search(load_tree(SearchTree, options.config, overrides), resume=options.resume)
    return _show(folder, write=False)


def _show(folder: Path, *, write: bool) -> int:
    from pipelines.search.results import print_results, read_results, write_results

    found = read_results(folder)
    if write:
        write_results(found)
    print_results(found, results())
    return 0 if found.finished else 1
