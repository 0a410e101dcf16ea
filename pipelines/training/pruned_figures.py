"""A pruned network in the field's units, beside the dense network that it came from."""

from collections.abc import Mapping
from typing import Any

HEADINGS = (
    "connectivity",
    "SynOps of dense",
    "SynOps",
    "MACs",
    "energy, nJ",
    "accuracy",
    "drop, points",
)
"""Of `figure_cells`."""


def pruned_figures(
    accuracy: float,
    activity: Mapping[str, Any],
    *,
    dense_accuracy: float,
    dense_activity: Mapping[str, Any],
) -> dict[str, float]:
    """Figures for JSON, of measured activities (`pipelines.training.evaluation.measure_activity`).

    Returns:
        ``connectivity`` (weights left), ``synops_of_dense`` and ``energy_of_dense`` as shares; ``synops`` per
        inference, of which ``macs`` are multiply-accumulates; ``energy_nj`` by the constants of
        `snn.activity`; ``accuracy`` and ``accuracy_drop`` from the dense network, in [0, 1].
    """
    return {
        "connectivity": activity["density"],
        "synops": activity["synops"],
        "synops_of_dense": activity["synops"] / max(dense_activity["synops"], 1e-300),
        "macs": activity["macs"],
        "energy_nj": activity["energy_pj"] / 1000,
        "energy_of_dense": activity["energy_pj"] / max(dense_activity["energy_pj"], 1e-300),
        "accuracy": accuracy,
        "accuracy_drop": dense_accuracy - accuracy,
    }


def figure_cells(figures: Mapping[str, float]) -> tuple[str, ...]:
    """As text, in the order of `HEADINGS`."""
    return (
        f"{figures['connectivity']:.2%}",
        f"{figures['synops_of_dense']:.1%}",
        f"{figures['synops']:,.0f}",
        f"{figures['macs']:,.0f}",
        f"{figures['energy_nj']:,.1f}",
        f"{figures['accuracy']:.2%}",
        f"{100 * figures['accuracy_drop']:+.2f}",
    )
