"""The example configs: each loads, and its network fits the dataset that it names."""

from pathlib import Path

import pytest

from pipelines.config_io import load_config
from pipelines.data.dataset import DatasetInfo
from pipelines.networks import make_network

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
SHAPES = {  # of one example at one timestep, and classes, as docs/datasets.md describes the datasets
    "cifar10": ((3, 32, 32), 10),
    "cifar100": ((3, 32, 32), 100),
    "mnist": ((1, 28, 28), 10),
    "fashion-mnist": ((1, 28, 28), 10),
    "imagenet": ((3, 224, 224), 1000),
    "nmnist": ((2, 34, 34), 10),
    "cifar10-dvs": ((2, 48, 48), 10),
    "dvs-gesture": ((2, 64, 64), 11),
    "shd": ((1, 1, 700), 20),
}


@pytest.mark.parametrize("name", SHAPES)
def test_an_example_fits_its_dataset(name: str) -> None:
    config = load_config(EXAMPLES / f"{name}.yaml")
    shape, classes = SHAPES[name]
    assert config.data.path == f"data/{name}"
    size = config.data.frames.size
    assert size is None or shape[1:] == (size[0], size[-1])
    names = tuple(str(k) for k in range(classes))
    mean = (0.0,) * shape[0]
    info = DatasetInfo(input_shape=shape, num_classes=classes, class_names=names, mean=mean, std=mean)
    assert make_network(config.model, info, 0).synapses()


def test_every_dataset_on_the_page_has_an_example() -> None:
    page = (EXAMPLES.parent / "docs" / "datasets.md").read_text()
    for name in SHAPES:
        assert f"examples/{name}.yaml" in page
