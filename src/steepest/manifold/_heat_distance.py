r"""From heat to distances, over one or several times, and to the weights of the stress.

Rows are the points that carry the heat (all, or landmarks), columns any points; see ``heat_geodesic`` for the formulas.

Paper: huguet2023heat, section 4 and official code.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from steepest.geometry.heat import distance_from_heat

__all__ = ["HeatDistance", "denoised", "stress_weights"]

Array = np.ndarray
ROWS = 64  # at a time: what is between heat and distance stays in the cache
LEAST_WEIGHT = 1e-5  # official code, for the heat weights
REACHED = 0.05


@dataclass(frozen=True)
class HeatDistance:
    """``d^p`` averaged over `times` with weights ``1 - t_i / Σ t``, before denoising.

    `log_times` (for ``log_normalize``) asks for ``|ln(H + floor) / ln t|`` in place of d.
    """

    times: Array
    harnack_regul: float
    power: float
    log_times: Array | None = None
    floor: float = 1e-16

    def __call__(self, heat: Array, row_diagonal: Array, column_diagonal: Array) -> Array:
        """Distances (l, n) from heat (n_t, l, n) and the heat that stayed, (n_t, l) and (n_t, n)."""
        weights = np.ones(1) if len(self.times) == 1 else 1.0 - self.times / self.times.sum()
        weights = weights / weights.sum()
        D = np.zeros(heat.shape[1:])
        for first in range(0, len(D), ROWS):
            rows = slice(first, first + ROWS)
            for i, t in enumerate(self.times):
                H = heat[i, rows].astype(np.float64)
                if self.log_times is None:
                    d = distance_from_heat(
                        H,
                        row_diagonal[i, rows],
                        column_diagonal[i],
                        float(t),
                        harnack_regul=self.harnack_regul,
                        floor=self.floor,
                    )
                else:
                    d = np.abs(np.log(H + self.floor) / np.log(self.log_times[i]))
                if self.power != 1:
                    np.power(d, self.power, out=d)
                d *= weights[i]
                D[rows] += d
        return D


def denoised(D: Array, profile: Array, share: float) -> Array:
    """``(1-ρ) D + ρ ‖D(x,·) - D(l,·)‖`` for D (l, n); `profile` (l, l) has the rows' points as columns.

    Examples
    --------
    >>> D = np.array([[0.0, 3.0], [3.0, 0.0]])
    >>> denoised(D, D, 1.0).round(6).tolist()  # sqrt(3² + 3²)
    [[0.0, 4.242641], [4.242641, 0.0]]
    """
    square = np.square(D).sum(axis=0) + np.square(profile).sum(axis=0)[:, None] - 2.0 * (profile.T @ D)
    triplets = np.sqrt(np.maximum(square, 0.0, out=square), out=square)
    triplets *= share
    return triplets if share == 1 else (1.0 - share) * D + triplets


def stress_weights(
    kind: str | None, D: Array, heat: Array, scale: float, span: tuple[float, float], least: float
) -> Array | None:
    """Weights of the stress, shaped as D and heat; `span` is the range of all distances, `least` the floor of heat."""
    if kind is None:
        return None
    if kind == "heat":
        return np.asarray(heat, dtype=np.float64) + LEAST_WEIGHT
    if kind == "reached":
        return np.where(heat < least, REACHED, 1.0)
    if kind == "inverse":
        smallest = D[D > 0].min(initial=np.inf)
        return np.maximum(D, smallest if np.isfinite(smallest) else 1.0) ** -scale
    low, high = span
    scaled = (D - low) / ((high - low) or 1.0)
    return np.maximum(np.exp(-np.square(scaled) / scale), LEAST_WEIGHT)
