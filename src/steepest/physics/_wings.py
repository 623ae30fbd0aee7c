"""Wings with NACA four-digit sections: their surface, random ones, and pressures on them for learning.

Section at chord 1, thickness t, camber m at p, with x = ½(1 + cos 2πu) from the lower trailing edge (u = 0) about the
leading edge (u = ½) to the upper trailing edge (u = 1):

    y_t = 5t (0.2969 √x - 0.1260 x - 0.3516 x² + 0.2843 x³ - 0.1036 x⁴)                      (closed trailing edge)
    z_c = m/p² (2px - x²) for x < p,  m/(1-p)² (1 - 2p + 2px - x²) behind
    (x ∓ y_t sin θ, z_c ± y_t cos θ),  tan θ = z_c',  the upper sign on the upper side

Along the span, y/b = sin(½πv) with the half span b: chord, thickness and twist (about the quarter chord, nose up) are
linear in y/b, and the leading edge runs back by y tan(sweep) and up by y tan(dihedral). The tip is open.

Wings and flows stand in for the DLR-F11 data of hu2024incorporating; the ranges they are drawn from are ours.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from steepest.core.errors import at_least, check, check_params, interval, kind_error, positive, value_error
from steepest.core.parallel import ordered_map
from steepest.core.random import child_seeds, numpy_generator
from steepest.physics._panel_method import panel_method

__all__ = ["WingData", "WingParameters", "make_wing_dataset", "sample_wings", "wing_surface"]

Array = NDArray[np.float64]

LIMITS = {
    "half_span": positive(),
    "root_chord": positive(),
    "taper": interval(0, 2, low_open=True),
    "sweep": interval(-80, 80),
    "dihedral": interval(-80, 80),
    "twist": interval(-45, 45),
    "camber": interval(0, 0.2),
    "camber_pos": interval(0, 1, low_open=True, high_open=True),
    "thickness_root": interval(0, 0.5, low_open=True),
    "thickness_tip": interval(0, 0.5, low_open=True),
}

RANGES = {
    "half_span": (2.0, 5.0),
    "taper": (0.3, 1.0),
    "sweep": (0.0, 35.0),
    "dihedral": (0.0, 6.0),
    "twist": (-5.0, 0.0),
    "camber": (0.0, 0.04),
    "camber_pos": (0.3, 0.5),
    "thickness_root": (0.10, 0.16),
    "thickness_tip": (0.08, 0.12),
}


@dataclass(frozen=True)
class WingParameters:
    """Shape of a wing with straight edges; lengths in one unit, angles in degrees, camber and thickness over the chord.

    Attributes
    ----------
    half_span : float
        From the plane of symmetry to the tip, > 0.
    root_chord : float
        > 0.
    taper : float
        Tip chord over root chord, in (0, 2].
    sweep, dihedral : float
        Of the leading edge: backwards and upwards, in [-80, 80].
    twist : float
        Of the tip against the root about the quarter chord, nose up, in [-45, 45].
    camber, camber_pos : float
        Greatest height of the camber line, in [0, 0.2], and where, in (0, 1).
    thickness_root, thickness_tip : float
        In (0, 0.5].

    Examples
    --------
    >>> WingParameters(sweep=0.0).taper
    0.5
    """

    half_span: float = 3.0
    root_chord: float = 1.0
    taper: float = 0.5
    sweep: float = 20.0
    dihedral: float = 3.0
    twist: float = -2.0
    camber: float = 0.02
    camber_pos: float = 0.4
    thickness_root: float = 0.12
    thickness_tip: float = 0.10


@dataclass(frozen=True)
class WingData:
    """Samples of flow about wings, one per row; those with the same `wing` share their points.

    Attributes
    ----------
    points : torch.Tensor (N, n_u, n_v, 3)
        Centers of the panels.
    conditions : torch.Tensor (N, 2)
        Angle of attack in degrees, Mach number.
    cp : torch.Tensor (N, n_u, n_v)
    wing : torch.Tensor (N,) of int64
        Which wing: split by it, never by condition.
    params : tuple of WingParameters
        ``params[wing[i]]`` is the shape of sample i; empty for wings that have none.
    """

    points: torch.Tensor
    conditions: torch.Tensor
    cp: torch.Tensor
    wing: torch.Tensor
    params: tuple[WingParameters, ...] = ()

    def __len__(self) -> int:
        return len(self.cp)

    def of_wings(self, wings: Sequence[int]) -> WingData:
        """Keep the samples of these wings (their numbers stay).

        Examples
        --------
        >>> data = make_wing_dataset(3, n_u=9, n_v=5, conditions_per_wing=2)
        >>> train, test = data.of_wings([0, 1]), data.of_wings([2])
        >>> len(train), len(test)
        (4, 2)
        """
        rows = torch.isin(self.wing, torch.as_tensor(wings, dtype=self.wing.dtype, device=self.wing.device))
        return WingData(self.points[rows], self.conditions[rows], self.cp[rows], self.wing[rows], self.params)


def wing_surface(params: WingParameters, n_u: int = 33, n_v: int = 11) -> Array:
    """Corners of the panels on one half of a wing.

    Parameters
    ----------
    params : WingParameters
    n_u, n_v : int
        Points about the section (an odd number puts one on the leading edge) and along the span, each at least 4.

    Returns
    -------
    array (n_u, n_v, 3)
        x downstream, y along the span, z up; first and last row are the trailing edge and equal.

    Raises
    ------
    TypeError, ValueError
        A parameter of the wrong kind or outside its limits.

    Examples
    --------
    >>> P = wing_surface(WingParameters(), n_u=17, n_v=6)
    >>> P.shape, P[:, -1, 1].max().item()
    ((17, 6, 3), 3.0)
    """
    if not isinstance(params, WingParameters):
        raise kind_error("params", "WingParameters", params)
    check_params(params, LIMITS)
    check("n_u", n_u, at_least(4, integer=True))
    check("n_v", n_v, at_least(4, integer=True))
    u = np.linspace(0, 1, n_u)[:, None]
    eta = np.sin(np.pi / 2 * np.linspace(0, 1, n_v))[None, :]
    x, z = _section(u, params, (1 - eta) * params.thickness_root + eta * params.thickness_tip)
    twist = np.radians(params.twist * eta)
    back, up = (x - 0.25) * np.cos(twist) + z * np.sin(twist) + 0.25, z * np.cos(twist) - (x - 0.25) * np.sin(twist)
    chord = params.root_chord * (1 - (1 - params.taper) * eta)
    y = params.half_span * eta
    sweep, dihedral = np.tan(np.radians((params.sweep, params.dihedral)))
    P = np.stack((chord * back + y * sweep, np.broadcast_to(y, x.shape), chord * up + y * dihedral), -1)
    P[-1] = P[0]  # the same up to round-off
    return np.asarray(P)


def sample_wings(n: int, seed: int = 0) -> list[WingParameters]:
    """Draw wings of root chord 1, evenly from ranges of transport and light aircraft.

    Half span 2 to 5, taper 0.3 to 1, sweep 0 to 35°, dihedral 0 to 6°, twist -5 to 0°, camber 0 to 0.04 at 0.3 to 0.5,
    thickness 0.10 to 0.16 at the root and 0.08 to 0.12 at the tip.

    Parameters
    ----------
    n : int
        At least 1.
    seed : int
        Every wing has a seed of its own: the first k wings are the same for every n.

    Examples
    --------
    >>> sample_wings(2, seed=3) == sample_wings(5, seed=3)[:2]
    True
    """
    check("n", n, at_least(1, integer=True))
    return [_draw_wing(wing_seed) for wing_seed in child_seeds(seed, n)]


def make_wing_dataset(
    n_wings: int,
    seed: int = 0,
    *,
    n_u: int = 33,
    n_v: int = 9,
    conditions_per_wing: int = 4,
    alpha_range: tuple[float, float] = (0.0, 9.0),
    mach_range: tuple[float, float] = (0.1, 0.5),
    n_jobs: int = 1,
) -> WingData:
    """Draw wings and flows, and compute the pressures by `panel_method`.

    What was computed for a wing and its flows is kept in the process and not computed again.

    Parameters
    ----------
    n_wings : int
        At least 1; the wings are those of ``sample_wings(n_wings, seed)``.
    seed : int
        Wing k and its flows depend on `seed` and k alone.
    n_u, n_v : int
        Corners of the panels about the section and along the span.
    conditions_per_wing : int
        Flows (angle, Mach) per wing, drawn evenly from `alpha_range` (degrees) and `mach_range`.
    n_jobs : int
        Processes; the data are the same for any number.

    Returns
    -------
    WingData
        In float32: points (N, n_u - 1, n_v - 1, 3), conditions (N, 2), cp (N, n_u - 1, n_v - 1) with
        N = n_wings · conditions_per_wing.

    Raises
    ------
    TypeError, ValueError
        Counts below 1 (grids below 4), ranges that are no ascending pairs, Mach numbers outside [0, 1).

    Examples
    --------
    >>> data = make_wing_dataset(2, n_u=9, n_v=5, conditions_per_wing=3)
    >>> data.cp.shape, data.wing.tolist()
    (torch.Size([6, 8, 4]), [0, 0, 0, 1, 1, 1])
    """
    check("n_wings", n_wings, at_least(1, integer=True))
    check("conditions_per_wing", conditions_per_wing, at_least(1, integer=True))
    check("n_jobs", n_jobs, at_least(1, integer=True))
    for name, n in (("n_u", n_u), ("n_v", n_v)):
        check(name, n, at_least(4, integer=True))
    ranges = (_checked_range("alpha_range", alpha_range, -90, 90), _checked_range("mach_range", mach_range, 0, 1))
    work = [_Work(wing_seed, n_u, n_v, conditions_per_wing, *ranges) for wing_seed in child_seeds(seed, n_wings)]
    found = ordered_map(_samples, work, backend="processes" if n_jobs > 1 else "serial", n_workers=n_jobs)
    points, conditions, cp = (torch.tensor(np.stack(a), dtype=torch.float32) for a in zip(*found, strict=True))
    return WingData(
        points[:, None].expand(-1, conditions_per_wing, -1, -1, -1).flatten(0, 1),
        conditions.flatten(0, 1),
        cp.flatten(0, 1),
        torch.arange(n_wings).repeat_interleave(conditions_per_wing),
        tuple(_draw_wing(w.seed) for w in work),
    )


def _section(u: Array, params: WingParameters, thickness: Array) -> tuple[Array, Array]:
    """Section with chord 1, (n_u, n_v)."""
    x = (1 + np.cos(2 * np.pi * u)) / 2
    half = 5 * thickness * (0.2969 * np.sqrt(x) - 0.1260 * x - 0.3516 * x**2 + 0.2843 * x**3 - 0.1036 * x**4)
    m, p = params.camber, params.camber_pos
    scale = np.where(x < p, m / p**2, m / (1 - p) ** 2)
    line = np.where(x < p, m / p**2 * (2 * p * x - x**2), m / (1 - p) ** 2 * (1 - 2 * p + 2 * p * x - x**2))
    angle = np.arctan(2 * scale * (p - x))
    side = np.where(u < 0.5, -1.0, 1.0)
    return x - side * half * np.sin(angle), line + side * half * np.cos(angle)


def _draw_wing(seed: int) -> WingParameters:
    rng = numpy_generator(seed)
    return WingParameters(**{name: float(rng.uniform(*limits)) for name, limits in RANGES.items()})


@dataclass(frozen=True)
class _Work:
    seed: int
    n_u: int
    n_v: int
    n_conditions: int
    alpha_range: tuple[float, float]
    mach_range: tuple[float, float]


@functools.lru_cache(maxsize=1024)
def _samples(work: _Work) -> tuple[Array, Array, Array]:
    """Centers, conditions and CP of one wing; the flows have a stream of their own."""
    P = wing_surface(_draw_wing(work.seed), work.n_u, work.n_v)
    rng = numpy_generator(child_seeds(work.seed, 1)[0])
    low, high = np.transpose((work.alpha_range, work.mach_range))
    conditions = low + (high - low) * rng.random((work.n_conditions, 2))
    solved = [panel_method(P, float(alpha), float(mach), return_info=True) for alpha, mach in conditions]
    return solved[0][1]["centers"], conditions, np.stack([cp for cp, _ in solved])


def _checked_range(name: str, values: tuple[float, float], low: float, high: float) -> tuple[float, float]:
    if isinstance(values, str) or not hasattr(values, "__len__") or len(values) != 2:
        raise value_error(name, "a pair (low, high)", values)
    for value in values:
        check(name, value, interval(low, high, high_open=True))
    if values[0] > values[1]:
        raise value_error(name, "a pair (low, high) with low <= high", values)
    return float(values[0]), float(values[1])
