"""What a dataset was made of and how, kept beside it: the same request finds it there, any other is refused.

Not in the manifest: the same data written from other places have the same manifest.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pipelines.data.sources.base import Options, Source
from pipelines.errors import UserError
from pipelines.storage.atomic import read_json_below, write_json
from pipelines.storage.paths import name_of, uri_of

REQUEST = "ingested.json"


def request_of(options: Options) -> dict[str, Any]:
    """What a user said about the source, for JSON; of the input the name alone: it goes with the dataset."""
    told = {name: value for name, value in vars(options).items() if name != "download"}
    return _plain(_with_name(told))


def write_request(
    folder: Path, fingerprint: str, settings: Mapping[str, Any], request: Mapping[str, Any], complete: bool
) -> None:
    """Keep a request in a dataset's folder.

    Args:
        folder: of the dataset.
        fingerprint: of the source.
        settings: of the writing.
        request: of `request_of`.
        complete: no row was left out, so that ``on_bad`` skip gave what refuse would have given.
    """
    on_bad = "refuse" if complete and settings["on_bad"] == "skip" else settings["on_bad"]
    kept = {"fingerprint": fingerprint, **settings, "on_bad": on_bad, "options": request}
    write_json(folder / REQUEST, kept)


def check_request(
    folder: str, settings: Mapping[str, Any], request: Mapping[str, Any], opened: Callable[[], Source]
) -> None:
    """Refuse a request that would have made another dataset than the one that is there.

    Datasets that are older than such records pass. Where the originals are gone, the same words as before
    are taken for the same request.

    Args:
        folder: of the dataset.
        settings: of the writing; ``None`` rows of shards and groups are as they may be.
        request: of `request_of`.
        opened: opens the source.

    Raises:
        UserError: settings, options or originals differ; or originals other than before cannot be opened.
    """
    before = read_json_below(folder, REQUEST)
    if before is None:
        return
    may_be = {"shard_rows": None, "group_rows": None}
    if before["on_bad"] == "refuse":  # nothing was bad
        may_be["on_bad"] = settings["on_bad"]
    asked = {name: value for name, value in settings.items() if (name, value) not in may_be.items()}
    differ = _differences(before, _plain(asked))
    told = _differences(_with_name(before["options"]), request)  # older records hold whole paths
    try:
        if opened().fingerprint != before["fingerprint"]:
            differ += told or ["its originals are other files now, or newer ones"]
    except UserError:
        if told:
            raise
    if differ:
        raise UserError(
            folder,
            f"holds a dataset that was made otherwise ({'; '.join(differ)}); choose another --output, "
            "or remove the folder",
        )


def _with_name(options: Mapping[str, Any]) -> dict[str, Any]:
    path = options.get("input")
    if path is None:
        return dict(options)
    return {**options, "input": name_of(uri_of(path) or Path(path).absolute())}


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    return [
        f"--{name.replace('_', '-')} was {_said(before.get(name))}, is {_said(value)}"
        for name, value in now.items()
        if before.get(name) != value
    ]


def _said(value: Any) -> str:
    if value is None:
        return "not given"
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """As they come back from JSON."""
    return json.loads(json.dumps(dict(values)))
