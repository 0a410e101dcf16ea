"""What a source of examples is: splits whose rows can be read from any place on, by any process."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol

import numpy as np

from pipelines.data.events import Recording, Sensor

Value = bytes | np.ndarray | Recording
"""An encoded image, raw pixels ``[C, H, W]`` uint8 (or features ``[N]`` float32), or a recording."""


class Example(NamedTuple):
    """A row to be written."""

    value: Value
    label: int
    path: str
    """Where it comes from, for humans."""
    source_id: int | str | None = None
    """Its id in the original, where that has ids of its own."""


class Bad(NamedTuple):
    """A row that cannot be written."""

    path: str
    what: str


class Split(Protocol):
    """Rows in the order of their future ids. Travels to other processes."""

    @property
    def rows(self) -> int:
        """How many."""
        ...

    def read(self, start: int, stop: int) -> Iterator[Example | Bad]:
        """Rows ``start`` to ``stop``, each once, in order."""
        ...


@dataclass(frozen=True, kw_only=True)
class Source:
    """An opened source."""

    splits: dict[str, Split]
    class_names: tuple[str, ...]
    fingerprint: str
    """Changes when what would be read changes: a started ingestion goes on only with the same."""
    sensor: Sensor | None = None
    """For recordings."""
    source_id: Literal["int64", "string"] | None = None
    """Type of the originals' own ids, where they have any: kept in a column of that name."""
    bad: tuple[Bad, ...] = ()
    """What opening the source found amiss."""
    notes: dict[str, object] = field(default_factory=dict)
    """For the manifest: how splits and order came about."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What users may say about a source."""

    input: str | None = None
    """Folder or URI to read."""
    download: bool = False
    """Fetch the dataset into ``input`` first, as torchvision does."""
    test_share: float = 0.1
    """Share of every class that is held out where the source has no test split."""
    split_seed: int = 0
    """Draws that share, and the order of class folders' files."""
    sensor: tuple[int, ...] | None = None
    """Width and height, for recordings that do not tell."""
    columns: str | None = None
    """Order of the columns of event arrays ``[E, 4]``, such as txyp."""
    time_unit: str = "us"
    """Of recorded times that carry no unit: us, ms, s or ns."""
