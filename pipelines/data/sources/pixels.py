"""CIFAR-10, CIFAR-100, MNIST and Fashion-MNIST as torchvision lays them out on disk.

CIFAR's Python release is a set of pickles; they are read by an unpickler that knows NumPy arrays and
nothing else, so a file from elsewhere cannot run code. The binary release is read where it is present.
"""

import io
import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipelines.data.sources.base import Bad, Example, Options, Source
from pipelines.data.sources.originals import fingerprint_of, first_existing, open_originals, reading
from pipelines.data.sources.untrusted import decompress
from pipelines.errors import UserError
from pipelines.storage.paths import Folder

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
_FASHION = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)


@dataclass(frozen=True)
class Arrays:
    """A split of equally shaped examples that come as arrays, file by file."""

    folder: Folder
    files: tuple[str, ...]
    sizes: tuple[int, ...]
    """Rows of each file."""
    name: str
    """Of the source."""

    @property
    def rows(self) -> int:
        """See `Split`."""
        return sum(self.sizes)

    def read(self, start: int, stop: int) -> Iterator[Example | Bad]:
        """See `Split`."""
        first = 0
        for file, size in zip(self.files, self.sizes, strict=True):
            span = slice(max(start - first, 0), min(stop - first, size))
            if span.start < span.stop:
                with reading(self.folder.at(file)):
                    pixels, labels = _LOADERS[self.name](self.folder, file)
                for row in range(span.start, span.stop):
                    yield Example(pixels[row], int(labels[row]), f"{file}#{row}")
            first += size


def cifar(name: str, options: Options) -> Source:
    """CIFAR-10 or CIFAR-100 (fine labels), official split, in its files' order."""
    if options.download:
        _download_cifar(name, options)
    folder = open_originals(options.input)
    for layout, kind in ((_BINARY[name], "bin"), (_PYTHON[name], "py")):
        for place in (folder.below(layout[0]), folder):
            if place.exists(layout[1][0]):
                return _open(place, f"{name}-{kind}", layout[1], layout[2], _cifar_names(place, name, kind))
    raise UserError("--input", f"{folder} holds no {_PYTHON[name][0]} or {_BINARY[name][0]}{_hint(name)}")


def mnist(name: str, options: Options) -> Source:
    """MNIST or Fashion-MNIST from its IDX files, packed or not; official split, in the files' order."""
    if options.download:
        _download_mnist(name, options)
    folder = open_originals(options.input)
    below = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST"}[name]
    for place in (folder.below(f"{below}/raw"), folder.below("raw"), folder):
        if any(place.exists(f"train-images-idx3-ubyte{gz}") for gz in ("", ".gz")):
            break
    else:
        raise UserError("--input", f"{folder} holds no {below}/raw/train-images-idx3-ubyte{_hint(name)}")
    files = {
        part: first_existing(place, [f"{part}-images-idx3-ubyte{gz}" for gz in ("", ".gz")], f"{part} images")
        for part in ("train", "t10k")
    }
    names = _FASHION if name == "fashion-mnist" else tuple(str(k) for k in range(10))
    return _open(place, name, [files["train"]], [files["t10k"]], names)


def _open(folder: Folder, name: str, train: list[str], test: list[str], classes: tuple[str, ...]) -> Source:
    splits = {}
    for split, files in (("train", train), ("test", test)):
        sizes = []
        for file in files:
            first_existing(folder, [file], file)
            pixels, labels = _LOADERS[name](folder, file)
            if labels.max(initial=0) >= len(classes) or labels.min(initial=0) < 0:
                raise UserError(folder.at(file), f"label {labels.max()} is out of range")
            sizes.append(len(pixels))
        splits[split] = Arrays(folder, tuple(files), tuple(sizes), name)
    return Source(
        splits=dict(splits),
        class_names=classes,
        fingerprint=fingerprint_of(folder, [*train, *test], name, classes),
        notes={"split": "official", "order": "as in the files"},
    )


def _cifar_python(folder: Folder, file: str) -> tuple[np.ndarray, np.ndarray]:
    batch = _unpickle(folder, file)
    data = batch.get("data")
    labels = batch.get("labels", batch.get("fine_labels"))
    if not isinstance(data, np.ndarray) or data.ndim != 2 or data.shape[1] != 3072 or data.dtype != np.uint8:
        raise UserError(folder.at(file), "is not a CIFAR batch: it has no uint8 data of 3,072 values a row")
    if labels is None or len(labels) != len(data):
        raise UserError(folder.at(file), f"has {len(labels or [])} labels for {len(data)} images")
    return data.reshape(-1, 3, 32, 32), np.asarray(labels, np.int64)


def _cifar_binary(label_bytes: int) -> Any:
    def load(folder: Folder, file: str) -> tuple[np.ndarray, np.ndarray]:
        data = np.frombuffer(folder.read(file), np.uint8)
        size = label_bytes + 3072
        if len(data) == 0 or len(data) % size:
            raise UserError(folder.at(file), f"has {len(data)} bytes, no multiple of {size}; it is cut short")
        rows = data.reshape(-1, size)
        return rows[:, label_bytes:].reshape(-1, 3, 32, 32), rows[:, label_bytes - 1].astype(np.int64)

    return load


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
        raise UserError(
            folder.at(file), f"has {len(values)} values, its header says {np.prod(shape)}; it is cut short"
        )
    return values.reshape(shape)


_LOADERS = {
    "cifar10-py": _cifar_python,
    "cifar100-py": _cifar_python,
    "cifar10-bin": _cifar_binary(1),
    "cifar100-bin": _cifar_binary(2),
    "mnist": _idx_pair,
    "fashion-mnist": _idx_pair,
}


class _ArraysOnly(pickle.Unpickler):
    """Knows what a pickled NumPy array consists of, and refuses everything else."""

    _ALLOWED = frozenset(
        {
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "_reconstruct"),
            ("_codecs", "encode"),
        }
    )

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


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
        return tuple(_unpickle(folder, first_existing(folder, [pickled], "class names"))[key])
    lines = folder.read(first_existing(folder, [text], "class names")).decode().split("\n")
    return tuple(line.strip() for line in lines if line.strip())


def _hint(name: str) -> str:
    return f"; --download fetches it, or see docs/datasets.md for the layout of {name}"


def _download_cifar(name: str, options: Options) -> None:
    from torchvision.datasets import CIFAR10, CIFAR100
    from torchvision.datasets.utils import download_and_extract_archive

    spec = {"cifar10": CIFAR10, "cifar100": CIFAR100}[name]
    _fetch(
        name,
        options,
        lambda root: download_and_extract_archive(spec.url, root, filename=spec.filename, md5=spec.tgz_md5),
    )


def _download_mnist(name: str, options: Options) -> None:
    from torchvision.datasets import MNIST, FashionMNIST

    spec = {"mnist": MNIST, "fashion-mnist": FashionMNIST}[name]
    _fetch(name, options, lambda root: spec(root, download=True))


def _fetch(name: str, options: Options, fetch: Any) -> None:
    if options.input is None or "://" in options.input:
        raise UserError("--input", "is needed with --download: the local folder to download to")
    try:
        fetch(options.input)
    except (OSError, RuntimeError) as error:
        line = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError("--download", f"{name} could not be fetched ({line})") from None
