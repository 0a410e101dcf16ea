"""Inputs: normalisation; what augmentation may do to an image; that (seed, epoch, id) alone decides it."""

import numpy as np
import pytest
import torch

from pipelines.config import AugmentConfig
from pipelines.data.inputs import Augmentation, Inputs

IDS = np.array([3, 9, 4, 100_000, 7, 65_536])


def images(n: int = len(IDS), channels: int = 3, size: int = 12) -> np.ndarray:
    return np.random.default_rng(0).integers(1, 255, (n, channels, size, size)).astype(np.uint8)


def shifted(image: np.ndarray, dy: int, dx: int) -> np.ndarray:
    """Zero padding and a crop, as torchvision's RandomCrop does it, in plain slices."""
    pad = max(abs(dy), abs(dx))
    padded = np.pad(image, [(0, 0)] * (image.ndim - 2) + [(pad, pad)] * 2)
    h, w = image.shape[-2:]
    return padded[..., pad + dy : pad + dy + h, pad + dx : pad + dx + w]


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("kind", ["crop", "roll"])
def test_moves_are_a_shift_and_a_flip(kind: str, flip: bool) -> None:
    x = images(200)
    settings = AugmentConfig(**{kind: 2}, flip=flip)
    found = Augmentation(settings, 0).move(torch.from_numpy(x).float(), np.arange(200), 1).numpy()
    seen = set()
    for before, after in zip(x, found, strict=True):
        shift = shifted if kind == "crop" else lambda i, dy, dx: np.roll(i, (-dy, -dx), (-2, -1))
        fitting = [
            (dy, dx, mirrored)
            for dy in range(-2, 3)
            for dx in range(-2, 3)
            for mirrored in (False, True)
            if np.array_equal(after, shift(before, dy, dx)[..., :: -1 if mirrored else 1])
        ]
        assert len(fitting) == 1
        seen.add(fitting[0])
    assert {s[:2] for s in seen} == {(dy, dx) for dy in range(-2, 3) for dx in range(-2, 3)}
    assert {s[2] for s in seen} == ({False, True} if flip else {False})


def test_cutout_blanks_one_clipped_square() -> None:
    x = torch.from_numpy(images(300)).float()
    found = Augmentation(AugmentConfig(cutout=5), 0).erase(x, np.arange(300), 0)
    changed = (found != x).any(1)
    assert torch.equal(found[~changed[:, None].expand_as(x)], x[~changed[:, None].expand_as(x)])
    assert (found[changed[:, None].expand_as(x)] == 0).all()
    heights, widths = changed.any(2).sum(1), changed.any(1).sum(1)
    assert torch.equal(changed.sum((1, 2)), heights * widths)  # full rectangles
    assert (heights.max(), widths.max()) == (5, 5)
    assert heights.min() >= 3


def test_dropped_time_is_one_run_of_frames() -> None:
    x = torch.ones(400, 10, 2, 4, 4)
    found = Augmentation(AugmentConfig(drop_time=0.35), 0).erase(x, np.arange(400), 0)
    kept = found.mean((2, 3, 4))
    assert set(kept.unique().tolist()) == {0.0, 1.0}
    lengths = (1 - kept).sum(1)
    assert set(lengths.tolist()) == {0.0, 1.0, 2.0, 3.0}
    starts = (kept[:, 1:] < kept[:, :-1]).sum(1) + (kept[:, 0] == 0)
    assert (starts == (lengths > 0)).all()


ALL = AugmentConfig(crop=2, flip=True, cutout=4, roll=1)


def inputs(augmentation: Augmentation | None) -> Inputs:
    return Inputs(mean=(1.0, 2.0, 3.0), std=(2.0, 3.0, 4.0), T=3, augmentation=augmentation)


def test_only_seed_epoch_and_id_decide() -> None:
    x, augmented = images(), inputs(Augmentation(ALL, 5))
    whole = augmented.training(x, IDS, 2)
    for order in ([5, 0, 3], [1], [2, 4]):  # other batches, other orders
        assert torch.equal(augmented.training(x[order], IDS[order], 2), whole[:, order])
    assert not torch.equal(augmented.training(x, IDS, 3), whole)
    assert not torch.equal(inputs(Augmentation(ALL, 6)).training(x, IDS, 2), whole)
    assert not torch.equal(augmented.training(x, IDS + 1, 2), whole)


def test_scoring_sees_the_image_as_it_is() -> None:
    x = images()
    plain = inputs(None)
    assert torch.equal(inputs(Augmentation(ALL, 5))(x), plain(x))
    assert torch.equal(plain.training(x, IDS, 2), plain(x))
    assert torch.equal(inputs(Augmentation(AugmentConfig(), 0)).training(x, IDS, 2), plain(x))


def test_frames_move_together_over_time() -> None:
    x = np.zeros((1, 6, 2, 8, 8), np.uint16)
    x[:, :, :, 3, 4] = 300
    augmented = Inputs(mean=(0.0, 0.0), std=(1.0, 1.0), T=6, augmentation=Augmentation(ALL, 1))
    found = augmented.training(x, np.array([11]), 0)
    assert found.shape == (6, 1, 2, 8, 8)
    assert torch.equal(found, found[:1].expand_as(found))
    assert augmented(x).sum() == 6 * 2 * 300


def test_inputs_are_normalised_per_channel_and_static() -> None:
    x = np.random.default_rng(0).integers(0, 255, (2, 3, 4, 4)).astype(np.uint8)
    currents = Inputs(mean=(1.0, 2.0, 3.0), std=(4.0, 5.0, 6.0), T=5)(x)
    assert currents.shape == (5, 2, 3, 4, 4)
    assert currents.stride(0) == 0
    for c in range(3):
        expected = (torch.from_numpy(x[:, c]).float() - (c + 1)) / (c + 4)
        assert torch.equal(currents[3, :, c], expected)


def test_features_are_normalised_together() -> None:
    currents = Inputs(mean=(2.0,), std=(4.0,), T=2)(np.array([[2.0, 6.0]], np.float32))
    assert torch.equal(currents, torch.tensor([[[0.0, 1.0]], [[0.0, 1.0]]]))
