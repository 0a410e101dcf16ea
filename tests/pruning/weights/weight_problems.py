"""Small networks and made-up calibrations for the allocation tests."""

from collections.abc import Sequence
from math import inf, log

import numpy as np
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from torch import nn

from pruning.weights.calibration import Calibration, LayerCalibration
from pruning.weights.curves import DENSITIES, Curve
from pruning.weights.masks import Masks
from snn.layers import Synapses

relaxed = settings(suppress_health_check=[HealthCheck.filter_too_much])
weight = st.floats(0.01, 10).map(lambda w: round(w, 4))
rows = st.lists(st.lists(weight, min_size=1, max_size=5), min_size=1, max_size=4)
tiny_rows = st.lists(st.lists(weight, min_size=1, max_size=4), min_size=1, max_size=3)
coefficient = st.floats(0.05, 20).map(lambda c: round(c, 3))


class Weights(nn.Module):
    """Nothing but weight layers, of one row each."""

    def __init__(self, values: Sequence[Sequence[float]]) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        for row in values:
            layer = nn.Linear(len(row), 1, bias=False, dtype=torch.float64)
            layer.weight.data = torch.tensor([row], dtype=torch.float64)
            self.layers.append(layer)

    def synapses(self) -> list[Synapses]:
        return [Synapses(f"layers.{i}", layer, None, None) for i, layer in enumerate(self.layers)]


def curve_of(scale: float, T: int) -> Curve:
    """``scale (1 - density)^2``, in equal parts for all timesteps."""
    return Curve(tuple((scale * (1 - d) ** 2 / T,) * T for d in DENSITIES))


def calibration_of(
    model: Weights,
    *,
    c: Sequence[float] | None = None,
    price: Sequence[float] | None = None,
    curves: Sequence[Curve] | None = None,
    T: int = 4,
) -> Calibration:
    """Coefficients of ``slamp`` are ``c``, up to rounding."""
    layers = []
    for i, s in enumerate(model.synapses()):
        own = c[i] if c else 1.0
        layers.append(
            LayerCalibration(
                name=s.name,
                numel=s.layer.weight.numel(),
                rate_t=None,
                price=price[i] if price else 1.0,
                channels=(1.0,) * s.layer.in_features,
                sensitivity=own ** (1 / (1 - 1 / T)) if T > 1 else own,
                curve=curves[i] if curves else curve_of(own, T),
                fisher=torch.ones_like(s.layer.weight, dtype=torch.float64),
            )
        )
    return Calibration(tuple(layers), T, 1)


def phi(w: np.ndarray, keep: np.ndarray) -> float:
    total, kept = (w**2).sum(), (w[keep] ** 2).sum()
    return 0.0 if total == 0 else -log(kept / total) if kept else inf


def spent(model, masks: Masks, c) -> float:
    return sum(
        ci * phi(s.layer.weight.detach().numpy().ravel(), masks[s.name].numpy().ravel())
        for ci, s in zip(c, model.synapses(), strict=True)
    )
