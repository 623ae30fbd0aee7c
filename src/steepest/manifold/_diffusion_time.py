r"""Choose how long heat diffuses: the knee of the entropy, then longer until little is at the floor of the logarithm.

    S(t) = -Σ_xy H_t(x,y) ln(H_t(x,y) + 1e-10)

rises from 0 to n ln n and bends where the heat has filled the neighborhoods (the paper's time). There, on a larger
sample of a thin manifold, most pairs have not been reached at all and are at one and the same distance. So t is raised
by factors 1.5 until at most a given share of pairs lie under 1e-9, ten times the tolerance of the Chebyshev series.

Paper: huguet2023heat, section 4 and official code; the raised time is ours.

Departures: entropy and share come from 64 columns of the kernel, all when n <= 500; the paper builds
every kernel whole.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import scipy.sparse

from steepest.geometry._heat_flow import HeatFlow
from steepest.geometry.graph import GeometryWarning

__all__ = ["FLOOR", "DiffusionTime", "choose_time", "default_grid", "entropy", "floored_share", "unit_columns"]

Array = np.ndarray
FLOOR = 1e-9  # heat below it is round-off and truncation
FACTOR = 1.5
SAMPLED = 64
ALL = 500  # points up to which every column is used


@dataclass(frozen=True)
class DiffusionTime:
    """The time, the share of sampled entries under the floor there, and the entropies it was read from."""

    t: float
    floored_share: float
    grid: Array
    entropy: Array


def default_grid() -> Array:
    """Official code: 20 times up to 50."""
    return np.linspace(0.05, 50.0, 20)


def choose_time(
    flow: HeatFlow,
    labels: Array,
    grid: Array,
    rng: np.random.Generator,
    *,
    max_floored: float,
    t_max: float,
    least: float = FLOOR,
) -> DiffusionTime:
    """Find the knee of the entropy on `grid` and raise it; `labels` are the components, `least` the floor of heat."""
    n = flow.n
    sampled = np.arange(n) if n <= ALL else np.sort(rng.choice(n, SAMPLED, replace=False))
    columns = unit_columns(sampled, n)
    scale = n / len(sampled)
    if flow.method in ("exact", "lowrank"):
        diffuse = flow
    else:
        diffuse = HeatFlow(flow.L, lmax=flow.lmax if flow.method == "chebyshev" else None, n_jobs=flow.n_jobs)
    kernels = diffuse(columns, grid)  # (n_times, n, s)
    values = dict(zip(grid, [scale * entropy(H) for H in kernels]))
    knee = _knee(grid, np.array(list(values.values())))
    if knee in (0, len(grid) - 1):
        end = "first" if knee == 0 else "last"
        warnings.warn(
            f"the entropy bends at the {end} time of t_grid, {grid[knee]:g}; give a t_grid that reaches further",
            GeometryWarning,
            stacklevel=4,
        )

    reachable = labels[:, None] == labels[sampled]  # (n, s)
    t, H = float(grid[knee]), kernels[knee]
    share = floored_share(H, reachable, least)
    while share > max_floored and t < t_max:
        longer = min(FACTOR * t, t_max)
        H = diffuse(H, longer - t)
        t, share = longer, floored_share(H, reachable, least)
        values[t] = scale * entropy(H)
    if t >= max(values):  # one beyond, so that t is never the last
        values[FACTOR * t] = scale * entropy(diffuse(H, (FACTOR - 1) * t))
    times = np.array(sorted(values))
    return DiffusionTime(t, share, times, np.array([values[s] for s in times]))


def entropy(H: Array) -> float:
    """``-Σ H ln(H + 1e-10)`` of the positive entries.

    Examples
    --------
    >>> round(entropy(np.full((2, 2), 0.5)), 6)  # 2 ln 2
    1.386294
    """
    heat = np.maximum(H, 0.0)
    return -float(np.vdot(heat, np.log(heat + 1e-10)))


def floored_share(H: Array, reachable: Array | None, least: float = FLOOR) -> float:
    """Share of the pairs of one component (None: there is one only) whose heat lies under the floor `least`."""
    below = np.less(H, least)
    return float(below.mean() if reachable is None else below[reachable].mean())


def unit_columns(indices: Array, n: int) -> scipy.sparse.csc_array:
    """Columns of the n x n identity."""
    count = len(indices)
    return scipy.sparse.csc_array((np.ones(count), indices, np.arange(count + 1)), shape=(n, count))


def _knee(grid: Array, values: Array) -> int:
    """Where the normalized entropy is farthest above the normalized time (Kneedle, a concave rising curve)."""
    span = float(np.ptp(values))
    risen = (values - values.min()) / span if span else np.zeros_like(values)
    return int(np.argmax(risen - (grid - grid[0]) / (grid[-1] - grid[0])))
