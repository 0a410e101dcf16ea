"""Files that are either whole or absent, here or on other filesystems."""

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.errors import UserError
from pipelines.storage.paths import Folder, below, parent, real_path, short, uri_of, whole_file

if TYPE_CHECKING:
    import pyarrow as pa


def write_beside(path: Path | str, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a file next to ``path``, then rename it, so that no reader sees half of it.

    For a URI the file is written here and uploaded.
    """
    if uri_of(path) is not None:
        there, name = Folder.holding(path)
        with tempfile.TemporaryDirectory(prefix="spikeprune-") as here:
            write(Path(here) / name)
            return upload_folder(Path(here), there)
    try:
        with whole_file(Path(path)) as partial:
            write(partial)
    except OSError as error:
        raise UserError(str(path), f"cannot be written ({error.strerror or error})") from error


@contextmanager
def filled_folder(output: Path | str, where: str) -> Iterator[Path]:
    """A local folder to fill: ``output``, or one whose files are uploaded to that URI at the end."""
    check_storage(output, where)
    if uri_of(output) is None:
        yield Path(output)
        return
    there = Folder.of(output, where)
    with tempfile.TemporaryDirectory(prefix="spikeprune-") as here:
        yield Path(here)
        upload_folder(Path(here), there)


def upload_folder(here: Path, there: Folder, last: str = "") -> None:
    """Upload all files below a folder, the one named ``last`` after all others."""
    files = [p for p in here.rglob("*") if p.is_file()]
    for path in sorted(files, key=lambda p: (p.name == last, p)):
        name = path.relative_to(here).as_posix()
        try:
            there.upload(name, path)
        except Exception as error:  # fsspec's filesystems raise what they like
            raise UserError(below(there.uri, name), f"cannot be written ({short(error)})") from error


def check_storage(folder: Path | str, where: str = "storage") -> None:
    """That files can be written below ``folder``; a local one is made."""
    if (reason := Folder.of(folder, where).why_unwritable()) is not None:
        raise UserError(where, f"{uri_of(folder) or folder} cannot be written ({reason})")


def check_new_folder(where: str, folder: Path | str) -> None:
    """Refuse a folder to write that holds anything, or is no folder."""
    uri = uri_of(folder)
    if uri is not None:
        taken = bool(Folder.of(folder, where).files())
    else:
        there = real_path(folder)  # a .. behind a folder yet to be made leads where writing would
        taken = there.exists() and (not there.is_dir() or any(there.iterdir()))
    if taken:
        raise UserError(where, f"{uri or folder} holds other files, or is no folder; name a new or empty one")


def check_beside(where: str, output: Path | str, dataset: Path | str) -> None:
    """Refuse a file that would become, or replace, one of a dataset's."""
    if _place(parent(output)) == _place(dataset):
        shown = uri_of(output) or output
        raise UserError(where, f"{shown} lies among the dataset's own files; write it elsewhere")


def check_outside(where: str, output: Path | str, read: Path | str) -> None:
    """Refuse a folder to write that is, or lies in, one that is read."""
    if f"{_place(output)}/".startswith(f"{_place(read).rstrip('/')}/"):
        raise UserError(where, "is, or lies in, the folder that is read; name one beside it")


def _place(path: Path | str) -> str:
    """The same for all names of a folder."""
    uri = uri_of(path)
    return str(real_path(path)) if uri is None else uri.partition("?")[0].rstrip("/")


def write_parquet(
    path: Path | str,
    tables: "Iterable[pa.Table]",
    row_group_size: int | None = None,
    encodings: "Callable[[pa.Schema], dict[str, Any]]" = lambda schema: {},
) -> None:
    """Tables of one schema, one after the other as they come; an empty file where there is none.

    ``encodings`` are further arguments of pyarrow's writer.
    """
    import pyarrow.parquet as pq

    def write(partial: Path) -> None:
        parts = iter(tables)
        if (first := next(parts, None)) is None:
            partial.touch()
            return
        with pq.ParquetWriter(partial, first.schema, compression="zstd", **encodings(first.schema)) as writer:
            for table in chain([first], parts):
                writer.write_table(table, row_group_size=row_group_size)

    write_beside(path, write)


def write_json(path: Path | str, value: Any) -> None:
    """Indented."""
    write_beside(path, lambda p: p.write_text(json.dumps(value, indent=2) + "\n"))


@contextmanager
def well_formed(path: Path | str) -> Iterator[None]:
    """What a file of ours holds is used within; one that holds anything else, or cannot be read, is named."""
    try:
        yield
    except BrokenPipeError:  # whoever reads what is shown has seen enough
        raise
    except (OSError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as error:
        reason = f"{type(error).__name__}: {short(error)}"
        what = f"is damaged, or not what belongs there ({reason}); bring it back from a copy"
        raise UserError(str(path), what) from error


def sha256_of(path: Path) -> str:
    """Of a local file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json(path: Path) -> Any:
    """JSON from a local file."""
    found = read_json_below(path.parent, path.name)
    if found is None and not path.exists():
        raise UserError(str(path), "no such file")
    return found


def read_json_below(folder: Path | str, name: str) -> Any:
    """JSON from a file of a folder, named by a path or a URI; ``None`` where there is none."""
    opened, file = Folder.holding(below(folder, name))
    try:
        return json.loads(opened.read(file)) if opened.exists(file) else None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(below(folder, name), f"is not readable JSON ({short(error)})") from None
