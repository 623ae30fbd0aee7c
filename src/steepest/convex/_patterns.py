r"""Activation patterns of a ReLU layer: all of them, or a sample.

A direction h activates the samples with :math:`x_k^T h \ge 0`. The hyperplanes :math:`x_k^T h = 0` cut the space of
directions into cells, one pattern each: at most :math:`2 \sum_{k<r} \binom{n-1}{k}` for n samples of rank r.
"""

from __future__ import annotations

import math
import warnings

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import linprog

from steepest.core.errors import SteepestWarning, at_least, check, interval, nonnegative, value_error
from steepest.core.random import numpy_generator

__all__ = ["enumerate_patterns", "required_patterns", "sample_patterns"]

OPEN = 1e-9
"""A cell is open when a direction of the unit cube clears its (normalized) hyperplanes by more than this."""


def enumerate_patterns(X: ArrayLike, max_patterns: int = 20_000) -> np.ndarray:
    r"""Find the pattern of every open cell of the arrangement, by one linear program for each cell and hyperplane.

    Parameters
    ----------
    X : (n, d) array
        As given: append a column of ones yourself where the network has intercepts. Rows that are multiples of one
        another share a hyperplane; rows of zeros belong to every pattern.
    max_patterns : int
        Largest acceptable bound on their number.

    Returns
    -------
    (P, n) bool array
        Sorted, no two equal.

    Raises
    ------
    ValueError
        X is not a finite matrix, or the bound :math:`2 \sum_{k<r} \binom{n-1}{k}` is above `max_patterns`.

    Examples
    --------
    >>> enumerate_patterns([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]).shape
    (6, 3)
    """
    check("max_patterns", max_patterns, at_least(1, integer=True))
    rows = _matrix(X)
    lines, owner, side = _hyperplanes(rows)
    if not len(lines):
        return np.ones((1, len(rows)), dtype=bool)
    r = np.linalg.matrix_rank(lines)
    bound = 2 * sum(math.comb(len(lines) - 1, k) for k in range(r))
    if bound > max_patterns:
        cure = 'raise max_patterns, or take patterns="sample"'
        raise value_error("max_patterns", f"at least the bound {bound} on the number of patterns", max_patterns, cure)
    lines = lines @ np.linalg.svd(lines, full_matrices=False)[2][:r].T  # only the row space matters
    signs, witnesses = np.array([[1.0], [-1.0]]), np.stack([lines[0], -lines[0]])
    for k in range(1, len(lines)):
        signs, witnesses = _cut(signs, witnesses, lines[: k + 1])
    cells = np.where(side == 0, True, signs[:, owner] * side > 0)
    return np.unique(cells, axis=0)


def sample_patterns(
    X: ArrayLike,
    n_patterns: int,
    *,
    perturbation: float = 0.0,
    random_state: int | np.random.Generator | np.random.RandomState | None = None,
) -> np.ndarray:
    """Collect the patterns of standard normal directions, without repetition.

    Parameters
    ----------
    X : (n, d) array
    n_patterns : int
        How many different ones; after 50 times as many draws there is a warning, and those found are returned.
    perturbation : float
        With a value > 0, each direction also gives the patterns of four copies of X whose entries are moved by this
        much, up or down at random.
    random_state : int, generator, RandomState or None

    Returns
    -------
    (P, n) bool array
        In the order of their discovery.

    Warns
    -----
    SteepestWarning
        Fewer than `n_patterns` were found.

    Examples
    --------
    >>> sample_patterns([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], 6, random_state=0).shape
    (6, 3)
    """
    rows = _matrix(X)
    check("n_patterns", n_patterns, at_least(1, integer=True))
    check("perturbation", perturbation, nonnegative())
    rng = numpy_generator(random_state, name="random_state")
    return draw_patterns(rows, n_patterns, np.full(rows.shape[1], float(perturbation)), 4, rng)


def draw_patterns(
    X: np.ndarray, n_patterns: int, radius: np.ndarray, copies: int, rng: np.random.Generator, *, tell: bool = True
) -> np.ndarray:
    """Do the work of `sample_patterns`; `radius` (d,) is the perturbation of each column, `copies` how many."""
    found: dict[bytes, np.ndarray] = {}
    copies = copies if radius.any() else 0
    left = 50 * n_patterns
    while len(found) < n_patterns and left > 0:
        h = rng.standard_normal((min(left, n_patterns), X.shape[1]))
        left -= len(h)
        batches = [X @ h.T >= 0]
        for _ in range(copies):
            moved = radius * np.sign(rng.standard_normal((len(h), *X.shape)))
            batches.append(np.einsum("hnd,hd->nh", X + moved, h) >= 0)
        for pattern in np.stack(batches, axis=-1).transpose(1, 2, 0).reshape(-1, len(X)):
            found.setdefault(pattern.tobytes(), pattern)
    if len(found) < n_patterns and tell:
        warnings.warn(
            f"{len(found)} different patterns were found in {50 * n_patterns} draws, n_patterns={n_patterns} asked for",
            SteepestWarning,
            stacklevel=3,
        )
    return np.array(list(found.values())[:n_patterns])


def required_patterns(n: int, psi: float, xi: float) -> int:
    r"""Give a number of sampled patterns that suffices for n samples.

    With probability at least 1 - xi over the sample, one more random pattern lowers the optimum with probability at
    most psi. The dual has n variables, so on average this happens with probability at most (n+1)/(P+1): Markov's
    inequality gives :math:`P \ge (n+1)/(\psi\xi) - 1`, the binomial tail
    :math:`P \ge \frac{2}{\psi} (n + 1 - \log \xi)`. The smaller one is returned.

    Examples
    --------
    >>> required_patterns(20, psi=0.2, xi=0.1)
    234
    """
    check("n", n, at_least(1, integer=True))
    for name, value in (("psi", psi), ("xi", xi)):
        check(name, value, interval(0, 1, low_open=True, high_open=True))
    return math.ceil(min((n + 1) / (psi * xi) - 1, 2 / psi * (n + 1 - math.log(xi))))


# -------------------------------------------------------------------------------------------------------- enumeration


def _matrix(X: ArrayLike) -> np.ndarray:
    rows = np.asarray(X, dtype=np.float64)
    if rows.ndim != 2 or 0 in rows.shape:
        raise value_error("X", "a matrix (n, d) with n, d >= 1", rows)
    if not np.isfinite(rows).all():
        raise ValueError("X must be finite, got NaN or infinity")
    return rows


def _hyperplanes(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Merge rows that are multiples of one another: unit normals, whose each row is, and on which side (0: no row)."""
    norms = np.linalg.norm(rows, axis=1)
    side = np.zeros(len(rows))
    owner = np.zeros(len(rows), dtype=int)
    lines: list[np.ndarray] = []
    for k in np.flatnonzero(norms > 0):
        unit = rows[k] / norms[k]
        cosines = np.array([line @ unit for line in lines])
        apart = [np.linalg.norm(unit - np.sign(c) * line) for c, line in zip(cosines, lines, strict=True)]
        if apart and min(apart) < 1e-12:
            owner[k] = int(np.argmin(apart))
            side[k] = np.sign(cosines[owner[k]])
        else:
            owner[k], side[k] = len(lines), 1.0
            lines.append(unit)
    return np.array(lines), owner, side


def _cut(signs: np.ndarray, witnesses: np.ndarray, lines: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Split every cell that the last hyperplane meets; a witness already tells one side."""
    new_signs, new_witnesses = [], []
    for cell, h in zip(signs, witnesses, strict=True):
        value = lines[-1] @ h
        for sign in (1.0, -1.0):
            inside = h if sign * value > OPEN else _interior_point(np.append(cell, sign)[:, None] * lines)
            if inside is not None:
                new_signs.append(np.append(cell, sign))
                new_witnesses.append(inside)
    return np.array(new_signs), np.array(new_witnesses)


def _interior_point(normals: np.ndarray) -> np.ndarray | None:
    """Give the direction of the unit cube that is farthest inside all half-spaces ``normals h > 0``, if any."""
    d = normals.shape[1]
    cost = np.append(np.zeros(d), -1.0)
    rows = np.column_stack([-normals, np.ones(len(normals))])  # depth <= normals h
    bounds = [(-1.0, 1.0)] * d + [(None, 1.0)]
    solution = linprog(cost, A_ub=rows, b_ub=np.zeros(len(rows)), bounds=bounds, method="highs")
    if solution.status != 0:
        raise RuntimeError(f"the linear program of a cell was not solved: {solution.message}")
    return solution.x[:d] if solution.x[d] > 1e3 * OPEN else None
