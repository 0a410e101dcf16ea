"""The example configs: each fits its dataset, tells its time, and runs for real in small."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from rich.console import Console

from benchmarks import expected_time
from pipelines.config import Config
from pipelines.config.load import config_files, load_config
from pipelines.data.dataset import DatasetInfo
from pipelines.data.ingest import ingest
from pipelines.networks import make_network
from pipelines.report.summary import summarise
from pipelines.runs.run import run
from pipelines.training.phases import phases_of
from tests.pipelines.data import writers

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
SHAPES = {  # of one example at one timestep, and classes, as docs/datasets.md describes the datasets
    **{name: of[:2] for name, of in expected_time.DATA.items()},
    "mnist": ((1, 28, 28), 10),
    "fashion-mnist": ((1, 28, 28), 10),
    "dvs-gesture": ((2, 64, 64), 11),
    "shd": ((1, 1, 700), 20),
}
EXPERIMENTS = tuple(expected_time.DATA)
"""Those with a small variant."""
SHARED = {  # the shared folder that stands for each dataset, and its files
    "cifar10-vgg6": ("cifar10/small", "train", "test"),
    "cifar10-vgg11": ("cifar10/small", "train", "test"),
    "cifar10-sew18": ("cifar10/small", "train", "test"),
    "tiny-imagenet": ("tiny-imagenet", "train-00000", "train-00001"),
    "imagenet": ("tiny-imagenet", "train-00000", "train-00001"),
    "nmnist": ("nmnist-small", "train", "test"),
    "cifar10-dvs": ("cifar10-dvs-sim", "train", "test"),
    "dvs-objects": ("dvs128-objects", "train", "val"),
}
ROWS = 160
"""Of each split that the small variants are given."""


@pytest.mark.parametrize("name", SHAPES)
def test_an_example_fits_its_dataset(name: str) -> None:
    config = load_config(EXAMPLES / f"{name}.yaml")
    shape, classes = SHAPES[name]
    assert config.data.path == f"data/{name.split('-vgg')[0].split('-sew')[0]}"
    size = config.data.frames.size
    assert size is None or shape[1:] == (size[0], size[-1])
    names = tuple(str(k) for k in range(classes))
    mean = (0.0,) * shape[0]
    info = DatasetInfo(input_shape=shape, num_classes=classes, class_names=names, mean=mean, std=mean)
    assert make_network(config.model, info, 0).synapses()


def test_every_example_is_on_the_datasets_page() -> None:
    page = (EXAMPLES.parent / "docs" / "datasets.md").read_text()
    for name in SHAPES:
        assert f"examples/{name}.yaml" in page


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_head_tells_hardware_and_expected_time(name: str) -> None:
    text = (EXAMPLES / f"{name}.yaml").read_text()
    head = text[: text.index("\nname:")]
    assert "# Hardware: " in head
    assert f"# Expected: {expected_time.of_example(name).text} " in head


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_small_variant_is_the_experiment_in_small(name: str) -> None:
    file = EXAMPLES / "small" / f"{name}.yaml"
    assert [f.resolve() for f in config_files(file)] == [file, EXAMPLES / f"{name}.yaml"]
    small, full = load_config(file), load_config(EXAMPLES / f"{name}.yaml")
    assert (small.model.name, small.data.path, small.train.loss) == (
        full.model.name,
        full.data.path,
        full.train.loss,
    )
    assert (small.data.augment, small.data.frames.by) == (full.data.augment, full.data.frames.by)
    assert (small.data_pruning.policy, small.weight_pruning.criterion) == (
        full.data_pruning.policy,
        full.weight_pruning.criterion,
    )


@pytest.mark.parametrize("name", ["cifar10-sew18", "cifar10-dvs"])
def test_a_laptop_variant_compares_with_full_data(name: str) -> None:
    file = EXAMPLES / "laptop" / f"{name}.yaml"
    assert [f.resolve() for f in config_files(file)] == [file, EXAMPLES / f"{name}.yaml"]
    config = load_config(file)
    assert (config.baseline, config.model.name, config.model.options) == (
        "full",
        "sew_resnet18",
        {"width": 16},
    )
    assert [p.name for p in phases_of(config, "run")] == ["baseline", "train", "prune", "retrain"]
    side = config.data.frames.size[0] if config.data.frames.size else 16
    channels = SHAPES[name][0][0]
    zeros, names = (0.0,) * channels, tuple("0123456789")
    info = DatasetInfo(
        input_shape=(channels, side, side), num_classes=10, class_names=names, mean=zeros, std=zeros
    )
    weights = sum(s.layer.weight.numel() for s in make_network(config.model, info, 0).synapses())
    assert weights < 1_000_000  # trained on two cores


@pytest.fixture(scope="session")
def cifar100(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real photographs in CIFAR-100's original files: Tiny-ImageNet's first 100 classes at 32x32."""
    source = tmp_path_factory.mktemp("cifar-100")
    rows = pq.read_table(shared_data / "tiny-imagenet" / "train-00000-of-00010.parquet").slice(0, 1600)
    images, labels = [], []
    for image, label in zip(rows["image"].to_pylist(), rows["label"].to_pylist(), strict=True):
        if label < 100:
            pixels = Image.open(io.BytesIO(image["bytes"])).convert("RGB").resize((32, 32))
            images.append(np.asarray(pixels).transpose(2, 0, 1).reshape(-1))
            labels.append(label)
    x, y = np.stack(images), np.array(labels)
    batches = {"train": (x[:512], y[:512]), "test": (x[512:768], y[512:768])}
    with pytest.MonkeyPatch.context() as patch:
        writers.cifar(source / "in", patch, "CIFAR100", batches, [f"class{k}" for k in range(100)])
        ingest("cifar100", source / "data", input=str(source / "in"))
    return source / "data"


def ingested(folder: Path, output: Path, files: dict[str, str]) -> Path:
    """The first rows of real files, ingested as a user would."""
    (output / "source").mkdir(parents=True)
    for split, prefix in files.items():
        file = min(folder.glob(f"{prefix}*.parquet"))
        table = pa.Table.from_batches([next(pq.ParquetFile(file).iter_batches(ROWS))])
        pq.write_table(table, output / "source" / f"{split}.parquet")
    ingest("parquet", output / "data", input=output / "source")
    return output / "data"


def run_small(name: str, data: Path, storage: Path, others: dict[str, str]) -> Config:
    overrides = {"storage": str(storage), "data.path": str(data), **others}
    config = load_config(EXAMPLES / "small" / f"{name}.yaml", overrides)
    folder = run(config, console=Console(quiet=True))
    summary = summarise(folder)
    assert [p.phase for p in summary.phases] == ["train", "prune", "retrain"]
    train, _, retrained = summary.phases
    rows = config.data.train_rows
    assert rows is not None
    assert train.examples == 2 * rows + rows // 2  # first and last epoch whole, half in between
    assert retrained.density == pytest.approx(0.1, abs=0.02)
    losses = [r["train_loss"] for r in summary.records if "train_loss" in r]
    assert np.isfinite(losses).all()
    return config


@pytest.mark.parametrize("name", SHARED)
def test_a_small_variant_runs(name: str, shared_data: Path, tmp_path: Path) -> None:
    folder, train, test = SHARED[name]
    data = ingested(shared_data / folder, tmp_path / "ingested", {"train": train, "test": test})
    run_small(name, data, tmp_path, {})


def test_the_small_cifar100_runs(cifar100: Path, tmp_path: Path) -> None:
    run_small("cifar100", cifar100, tmp_path, {})
