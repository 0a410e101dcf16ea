"""How much of an objective each searched field explains."""

import numpy as np

from pipelines.search.space import Choice, Dimension


def importance(dimension: Dimension, values: list[object], y: np.ndarray) -> float | None:
    """Share of an objective's variance over the trials that this field alone explains, in [0, 1].

    Adjusted R squared of a fit on the field: a quadratic in a range's position, a mean per value of a
    choice. Adjusting takes off what as many free parameters would explain by chance, so a field without
    influence is near 0; shares need not add up to 1, for fields act together.

    Args:
        dimension: the field.
        values: its value in each trial.
        y: the objective in each trial, ``[trials]``.

    Returns:
        ``None`` where there are too few trials to tell, or all have the same objective.
    """
    if isinstance(dimension, Choice):
        used = [v for v in dimension.values if v in values]
        design = np.array([[float(v == u) for u in used] for v in values])
    else:
        x = np.array([dimension.position(float(str(v))) for v in values])
        degree = min(2, len(np.unique(x)) - 1)
        design = np.vander(x, degree + 1)
    n, parameters = design.shape
    total = float(((y - y.mean()) ** 2).sum())
    if n <= parameters + 1 or total <= 1e-12 * max(float((y**2).sum()), 1e-300):
        return None
    fit = design @ np.linalg.lstsq(design, y, rcond=None)[0]
    unexplained = float(((y - fit) ** 2).sum()) / (n - parameters)
    return float(np.clip(1 - unexplained / (total / (n - 1)), 0.0, 1.0))
