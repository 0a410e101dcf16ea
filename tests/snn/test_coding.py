"""Coding."""

import pytest
import torch

from snn.coding import direct


def test_direct_coding_repeats_images_without_a_copy():
    x_B = torch.rand(3, 4)
    x_TB = direct(x_B, 5)
    assert torch.equal(x_TB, x_B.repeat(5, 1, 1))
    assert x_TB.data_ptr() == x_B.data_ptr()
    assert x_TB.stride(0) == 0


def test_no_timestep_is_refused():
    with pytest.raises(ValueError, match="T: 0 must be at least 1"):
        direct(torch.zeros(2), 0)
