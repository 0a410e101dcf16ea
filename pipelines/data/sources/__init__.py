"""Readers of datasets by name: one file a family, every one a function from `Options` to a `Source`."""

from collections.abc import Callable
from functools import partial

from pipelines.data.sources.arrays import arrays, digits, mnist_sample, torchvision_set
from pipelines.data.sources.base import Options, Source
from pipelines.data.sources.folders import EVENT_SUFFIXES, event_folder, image_folder
from pipelines.data.sources.recordings import dvs_gesture, shd
from pipelines.data.sources.tables import parquet

SOURCES: dict[str, Callable[[Options], Source]] = {
    "digits": digits,
    "mnist-sample": mnist_sample,
    **{name: partial(torchvision_set, name) for name in ("cifar10", "cifar100", "mnist", "fashion-mnist")},
    "imagefolder": image_folder,
    "parquet": parquet,
    "huggingface": parquet,
    "numpy": arrays,
    "dvs-gesture": dvs_gesture,
    "shd": shd,
    **{name: partial(event_folder, name) for name in EVENT_SUFFIXES},
}
"""What ``spikeprune data ingest SOURCE`` names."""
