import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from pruning.examples.scores import ExampleScorer, score_dataset
from snn.coding import direct
from tests.pruning.examples.oracles import mlp


def dataset(n: int = 23) -> TensorDataset:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(n, 9, generator=generator, dtype=torch.float64)
    return TensorDataset(x, torch.randint(0, 4, (n,), generator=generator))


def test_scores_of_a_loader_are_those_of_one_batch() -> None:
    data, scorer = dataset(), ExampleScorer(mlp(), ("sadp", "loss"))
    found = score_dataset(scorer, DataLoader(data, batch_size=8), encode=lambda x: direct(x, 4))
    expected = scorer.score(direct(data.tensors[0], 4), data.tensors[1])
    assert set(found) == {"sadp", "loss"}
    for name, scores in found.items():
        assert scores.dtype == torch.float32
        torch.testing.assert_close(scores, expected[name], rtol=1e-6, atol=1e-7)


def test_what_lies_behind_inputs_and_labels_is_left_alone() -> None:
    x, y = dataset().tensors
    scorer = ExampleScorer(mlp())
    found = score_dataset(scorer, [(direct(x, 2), y, torch.arange(23))])
    assert torch.equal(found["sadp"], scorer.score(direct(x, 2), y)["sadp"])


@pytest.mark.parametrize(
    ("loader", "message"),
    [
        (DataLoader(dataset(), shuffle=True), "loader: shuffles"),
        ([], "loader: gives no batch"),
        ([torch.zeros(2, 3, 9)], r"loader: a batch must be \(inputs, labels\), not Tensor"),
        ([(torch.zeros(2, 3, 9), torch.zeros(3))], r"labels must be int64 \[B\], not torch.float32 \(3,\)"),
        ([(torch.zeros(2, 3, 9), "abc")], r"labels must be int64 \[B\], not <class 'str'>"),
    ],
)
def test_bad_loaders(loader: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        score_dataset(ExampleScorer(mlp()), loader)  # type: ignore[arg-type]
