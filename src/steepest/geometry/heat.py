r"""Diffuse columns by a graph Laplacian, ``e^{-tL} B``, and read geodesic distances off the heat kernel.

With spectrum in ``[0, lmax]`` and ``φ = lmax/2`` the Chebyshev series of the exponential is

    e^{-tL} = Σ'_j 2 (-1)^j e^{-tφ} I_j(tφ) T_j(L/φ - I),        T_{j+1} = 2 (L/φ - I) T_j - T_{j-1},

(the prime halves j = 0), one recurrence for all times, and since ``|T_j| <= 1`` the terms left out after order K are
together at most ``Σ_{j>K} 2 e^{-tφ} I_j(tφ)`` in operator norm: K is the least order that makes this `tol`.
``euler`` is ``(I + (t/K) L)^{-K}`` by one sparse factorization, ``exact`` a dense eigendecomposition, ``lowrank`` the
lowest eigenpairs alone. The heat-geodesic distance between x and y is, with ``H = e^{-tL}``,

    d² = -4t ln H_xy + σ 4t ln(½ (H_xx + H_yy)),

Varadhan's formula at finite time (σ = 0) and its parabolic Harnack correction by the volume of a ball (σ = 1).

Paper: huguet2023heat, eq. (4) and section 4.

=================  =====================================
the formulas       here
=================  =====================================
``e^{-z} I_j(z)``  ``scipy.special.ive``, which underflows where ``iv`` would overflow
``σ``              ``harnack_regul``
``K``              ``order``
=================  =====================================

Departures: (1) the order follows from `tol`; the official code fixes it at 30, wrong by orders of magnitude once
``tφ > order²/2``. (2) `lmax` is an upper bound; half the largest Ritz value, from below, makes the recurrence diverge.
(3) `heat_kernel` squares: ``H_t = (H_{t/2^s})^{2^s}`` with an error below `tol`, where that costs less.
(4) Points are renumbered by reverse Cuthill-McKee inside, so that neighbors lie close in memory.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from steepest.core.errors import boolean, check, nonnegative, positive, value_error
from steepest.geometry._heat_flow import HeatFlow, as_times, chebyshev_order, spectral_upper_bound
from steepest.geometry.graph import GeometryWarning

__all__ = ["chebyshev_order", "heat_apply", "heat_geodesic_distance", "heat_kernel", "spectral_upper_bound"]

Array = np.ndarray


def heat_apply(
    L: Any,
    B: Any,
    t: Any,
    *,
    method: str = "chebyshev",
    order: int | None = None,
    tol: float = 1e-10,
    lmax: float | None = None,
    rank: int | None = None,
    return_info: bool = False,
    n_jobs: int = 1,
) -> Any:
    r"""Diffuse the columns of `B` for time `t`: ``e^{-tL} B``.

    Parameters
    ----------
    L : sparse or dense array of shape (n, n)
        Symmetric positive semi-definite, such as `laplacian(W)` or a connection Laplacian.
    B : array of shape (n,) or (n, m), or sparse array of shape (n, m)
        Columns; a sparse one (unit vectors) is made dense block by block only.
    t : float or sequence of float
        Time, >= 0, in units of 1 / L. All times of a sequence come from one recurrence.
    method : "chebyshev", "euler", "exact" or "lowrank"
        See the module.
    order : int, optional
        Order of the polynomial (`chebyshev`; by default what `tol` asks for) or number of implicit steps
        (`euler`; 32, official code; error O(t²/order)).
    tol : float
        Bound on the truncation error of `chebyshev` in operator norm.
    lmax : float, optional
        An upper bound on the spectrum; `spectral_upper_bound` by default (2 for a normalized Laplacian).
    rank : int, optional
        Number of lowest eigenpairs of `lowrank`; 200 by default, never more than n.
    return_info : bool
        Return ``(result, info)`` too.
    n_jobs : int
        Processes that share the columns, -1 for all cores; on an initialized Ray cluster, its tasks. The result is
        the same for any number.

    Returns
    -------
    ndarray
        float64, shaped as `B`, with a leading axis of times where `t` is a sequence.
    info : dict
        Only with `return_info`: ``method``, ``order`` (or rank), ``lmax`` (chebyshev) and ``tail``: the bound on the
        operator norm of what was left out, for each time (None for `euler`).

    Raises
    ------
    ValueError, TypeError
        An asymmetric or non-finite `L`, shapes that do not fit, a negative or non-finite time, unknown `method`.

    References
    ----------
    huguet2023heat, section 4.

    Examples
    --------
    >>> L = np.array([[1.0, -1.0], [-1.0, 1.0]])
    >>> heat_apply(L, np.array([1.0, 0.0]), 0.5).round(6).tolist()  # (1 ± e^{-2t}) / 2
    [0.68394, 0.31606]
    """
    check("return_info", return_info, boolean())
    flow = HeatFlow(L, method, order=order, tol=tol, lmax=lmax, rank=rank, n_jobs=n_jobs)
    result = flow(B, t)
    return (result, flow.info(t)) if return_info else result


def heat_kernel(
    L: Any,
    t: Any,
    *,
    method: str = "chebyshev",
    order: int | None = None,
    tol: float = 1e-10,
    lmax: float | None = None,
    rank: int | None = None,
    return_info: bool = False,
    n_jobs: int = 1,
) -> Any:
    r"""Compute the whole heat kernel ``H_t = e^{-tL}``, symmetric to the last bit.

    Parameters
    ----------
    L, t, method, order, tol, lmax, rank, return_info, n_jobs
        As in `heat_apply`.

    Returns
    -------
    ndarray of shape (n, n), or (n_t, n, n) for a sequence of times
        Entries may be negative by round-off and truncation, down to -`tol`.
    info : dict
        Only with `return_info`, as in `heat_apply`; ``squarings`` says how often ``H_{t/2^s}`` was squared.

    Raises
    ------
    ValueError, TypeError
        As in `heat_apply`.

    Examples
    --------
    >>> H = heat_kernel(np.array([[1.0, -1.0], [-1.0, 1.0]]), 0.5)
    >>> H.sum(axis=1).round(9).tolist()  # heat is conserved
    [1.0, 1.0]
    """
    check("return_info", return_info, boolean())
    flow = HeatFlow(L, method, order=order, tol=tol, lmax=lmax, rank=rank, n_jobs=n_jobs)
    times, scalar = as_times(t)
    H = flow.kernel(times[0]) if scalar else np.stack([flow.kernel(s) for s in times])
    return (H, flow.info(t, kernel=True)) if return_info else H


def heat_geodesic_distance(H: Any, t: float, *, harnack_regul: float = 1.0, floor: float = 1e-16) -> Array:
    r"""Turn a heat kernel into distances: ``d² = -4t ln H_xy + σ 4t ln(½ (H_xx + H_yy))``.

    Parameters
    ----------
    H : array of shape (n, n)
        ``e^{-tL}``; negative entries count as 0.
    t : float
        The time of `H`, > 0.
    harnack_regul : float
        σ >= 0: 0 is Varadhan's formula at finite time, 1 (our default, by study) the full volume correction, with which
        ``d² >= 0`` by Cauchy-Schwarz. Larger values drive pairs to 0.
    floor : float
        Added to what is under a logarithm (official code: 1e-16).

    Returns
    -------
    ndarray of shape (n, n)
        d, in the units of the graph; negative squares count as 0, the diagonal is exactly 0.

    Warns
    -----
    GeometryWarning
        Pairs whose heat does not exceed the floor: their distance is only a lower bound.

    Raises
    ------
    ValueError, TypeError
        `H` not square or not finite, `t` <= 0, σ < 0, `floor` <= 0.

    References
    ----------
    huguet2023heat, eq. (4).

    Examples
    --------
    >>> H = np.array([[0.5, 0.25], [0.25, 0.5]])
    >>> float((heat_geodesic_distance(H, 1.0) ** 2)[0, 1].round(6))  # 4 ln 2
    2.772589
    """
    H = np.asarray(H, dtype=np.float64)
    if H.ndim != 2 or H.shape[0] != H.shape[1] or H.size == 0:
        raise value_error("H", "a square 2-D array", H)
    if not np.isfinite(H).all():
        raise value_error("H", "finite", "NaN or infinity")
    check("t", t, positive())
    check("harnack_regul", harnack_regul, nonnegative())
    check("floor", floor, positive())
    diagonal = H.diagonal()
    d = distance_from_heat(H.copy(), diagonal, diagonal, float(t), harnack_regul=harnack_regul, floor=floor)
    np.fill_diagonal(d, 0.0)
    floored = int(np.less_equal(H, floor).sum())
    if floored:
        warnings.warn(
            f"{floored} of {H.size} entries of H do not exceed the floor {floor:g}: those distances are only lower "
            "bounds; raise t",
            GeometryWarning,
            stacklevel=2,
        )
    return d


def distance_from_heat(
    H: Array,  # (l, m), overwritten with d
    row_diagonal: Array,  # (l,) H_t(x, x) of the rows' points
    column_diagonal: Array,  # (m,)
    t: float,
    *,
    harnack_regul: float,
    floor: float = 1e-16,
) -> Array:
    """Overwrite rows of the heat kernel with distances."""
    np.maximum(H, 0.0, out=H)
    H += floor
    np.log(H, out=H)
    np.negative(H, out=H)
    if harnack_regul:
        volume = 0.5 * np.add.outer(np.maximum(row_diagonal, 0.0), np.maximum(column_diagonal, 0.0))
        volume += floor
        np.log(volume, out=volume)
        volume *= harnack_regul
        H += volume
    H *= 4 * t
    np.maximum(H, 0.0, out=H)
    np.sqrt(H, out=H)
    return H
