r"""Place points in a few dimensions so that their distances are the given ones: metric multidimensional scaling.

    stress(Y) = Σ_{i<j} w_ij (‖y_i - y_j‖ - D_ij)²

`classic` takes the top eigenpairs of ``-½ J D² J`` (Torgerson), the exact answer where D is Euclidean. `smacof` goes
down by the Guttman transform ``G(Y) = V⁺ B(Y) Y``, with ``V = Σ w_ij A_ij``, ``B(Y)_ij = -w_ij D_ij / ‖y_i - y_j‖`` off
the diagonal (0 where points coincide) and rows that add up to zero. The quadratic that majorizes the stress at Y takes
its value at Y again at ``2 G(Y) - Y``, so this over-relaxed step, every second one here, does not raise the stress
either, and about halves the number of steps. The stress comes free with the transform:

    stress(Y) = Σ_{i<j} w_ij D_ij² + tr Yᵀ V Y - 2 tr Yᵀ V G(Y).

`sgd` moves one pair at a time by ``μ (‖y_i - y_j‖ - D_ij) / 2`` towards its distance, ``μ = min(w_ij η, 1)``. All pairs
come once an epoch, in rounds of disjoint pairs ``i + j = r (mod n)`` of freshly numbered points: a round is one vector
operation and does what its pairs would do one after the other.

Papers: deleeuw1988convergence (SMACOF); zheng2019graph (pairwise steps and their schedule).

Departures: (1) the stress is looked at after every step, since it is free; a rise (round-off, coincident points) undoes
an over-relaxed step. (2) The order of pairs is random among the orders made of such rounds.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import scipy.linalg
import scipy.sparse.linalg
from scipy.spatial.distance import cdist

__all__ = ["Configuration", "classic", "sgd", "smacof", "stress", "upright"]

Array = np.ndarray
DENSE = 400  # points up to which all eigenpairs cost no more than a few
EPOCHS = 30  # zheng2019graph, section 4.1
LAST_STEP = 0.1  # ε of zheng2019graph: the schedule ends at ε / w_max
TILE = 512  # a tile of distances stays in the cache


@dataclass(frozen=True)
class Configuration:
    """Points (n, m) with their stress, its history, the steps made and whether they were enough."""

    points: Array
    stress: float
    history: Array
    n_iter: int
    converged: bool


def classic(D: Array, n_components: int) -> Array:
    """Take the top eigenpairs of ``-½ J D² J``; coordinates of negative eigenvalues are 0.

    Examples
    --------
    >>> x = np.array([0.0, 1.0, 3.0])
    >>> Y = classic(np.abs(x[:, None] - x), 1)
    >>> np.abs(Y - Y.T).round(6).tolist()
    [[0.0, 1.0, 3.0], [1.0, 0.0, 2.0], [3.0, 2.0, 0.0]]
    """
    n = len(D)
    B = D * D
    means = B.mean(axis=0)
    B -= means
    B -= means[:, None]
    B += means.mean()
    B *= -0.5
    if n <= DENSE or 4 * n_components >= n:
        first = max(0, n - n_components)
        w, V = scipy.linalg.eigh(B, subset_by_index=(first, n - 1))
    else:
        w, V = scipy.sparse.linalg.eigsh(B, n_components, which="LA", v0=np.random.default_rng(0).standard_normal(n))
    order = np.argsort(w)[::-1]
    Y = np.zeros((n, n_components))
    Y[:, : len(w)] = V[:, order] * np.sqrt(np.maximum(w[order], 0.0))
    return Y


def smacof(
    D: Array, start: Array, *, weights: Array | None = None, max_iter: int = 300, tol: float = 1e-6
) -> Configuration:
    """Minimize the stress from `start` by Guttman transforms until a step lowers it by less than `tol` of itself.

    `weights` (n, n) are symmetric and positive off the diagonal; None weighs all pairs alike.

    Examples
    --------
    >>> D = np.array([[0.0, 3.0, 4.0], [3.0, 0.0, 5.0], [4.0, 5.0, 0.0]])
    >>> result = smacof(D, classic(D, 2))
    >>> bool(result.stress < 1e-12)
    True
    """
    pulls = D if weights is None else weights * D
    metric = _UniformMetric(len(D)) if weights is None else _WeightedMetric(weights)
    constant = 0.5 * float(np.vdot(pulls, D))
    Y = start - start.mean(axis=0)
    G = Y
    before: tuple[Array, Array] | None = None  # the last point that counted, and its transform
    history = list[float]()
    relaxed, may_relax, converged = False, True, False
    n_iter = 0
    while n_iter < max_iter:
        n_iter += 1
        BY = _pull(pulls, Y)  # (n, m), V G(Y)
        value = max(constant + metric.square(Y) - 2 * float(np.vdot(Y, BY)), 0.0)
        if before is not None and value > history[-1]:
            if not relaxed:  # a plain step rises by round-off only
                Y, converged = before[0], True
                break
            Y, relaxed, may_relax = before[1], False, False
            continue
        history.append(value)
        # a pair of steps, one plain and one over-relaxed, is judged together
        calm = len(history) > 2 and history[-3] - value <= 2 * tol * history[-3]
        if calm or value <= 1e-14 * constant:
            converged = True
            break
        G = metric.solve(BY)
        before = (Y, G)
        relaxed = may_relax and len(history) % 2 == 0
        Y = 2 * G - Y if relaxed else G
    else:
        Y = before[0] if before is not None else Y
    return Configuration(Y, history[-1], np.array(history), n_iter, converged)


def sgd(
    D: Array,
    start: Array,
    rng: np.random.Generator,
    *,
    weights: Array | None = None,
    max_iter: int = 300,
    tol: float = 1e-3,
) -> Configuration:
    """Minimize the stress by pairwise stochastic steps, whose size falls from ``1/w_min`` to ``ε/w_max`` in 30 epochs.

    Then the size falls as one over the epoch, until an epoch changes the stress by less than `tol` of itself.

    Examples
    --------
    >>> D = np.array([[0.0, 3.0, 4.0], [3.0, 0.0, 5.0], [4.0, 5.0, 0.0]])
    >>> result = sgd(D, classic(D, 2) + 0.1, np.random.default_rng(0))
    >>> bool(result.stress < 1e-6)
    True
    """
    n = len(D)
    off = None if weights is None else weights[~np.eye(n, dtype=bool)]
    largest, smallest = (1.0, 1.0) if off is None else (float(off.max()), float(off.min()))
    rate = math.log(largest / smallest / LAST_STEP) / (EPOCHS - 1)
    Y = np.ascontiguousarray(start.T)  # (m, n): a coordinate is contiguous
    history = [stress(D, start, weights)]
    floor = 1e-14 * 0.5 * float(np.vdot(D, D) if weights is None else np.vdot(weights * D, D))
    n_iter, converged = 0, history[0] <= floor
    while n_iter < max_iter and not converged:
        late = n_iter - (EPOCHS - 1)
        step = math.exp(-rate * n_iter) / smallest if late <= 0 else LAST_STEP / largest / (1 + late)
        order = rng.permutation(n)
        Y = Y[:, order]
        _epoch(Y, D[np.ix_(order, order)], None if weights is None else weights[np.ix_(order, order)], step, rng)
        Y = Y[:, np.argsort(order)]
        n_iter += 1
        history.append(stress(D, Y.T, weights))
        converged = history[-1] <= floor or (late > 0 and abs(history[-2] - history[-1]) <= tol * history[-1])
    return Configuration(np.ascontiguousarray(Y.T), history[-1], np.array(history), n_iter, converged)


def stress(D: Array, Y: Array, weights: Array | None = None) -> float:
    """Sum ``w_ij (‖y_i - y_j‖ - D_ij)²`` over pairs i < j."""
    total = 0.0
    for rows, cols in _tiles(len(D)):
        residual = cdist(Y[rows], Y[cols])
        residual -= D[rows, cols]
        weighted = residual if weights is None else weights[rows, cols] * residual
        total += (0.5 if rows == cols else 1.0) * float(np.vdot(residual, weighted))
    return total


def upright(Y: Array) -> Array:
    """Flip axes so that the coordinate of largest magnitude is positive in each."""
    largest = Y[np.argmax(np.abs(Y), axis=0), np.arange(Y.shape[1])]
    return Y * np.where(largest < 0, -1.0, 1.0)


class _UniformMetric:
    """``V = n J`` of equal weights, on centered points."""

    def __init__(self, n: int) -> None:
        self.n = n

    def square(self, Y: Array) -> float:
        return self.n * float(np.vdot(Y, Y))

    def solve(self, BY: Array) -> Array:
        return BY / self.n


class _WeightedMetric:
    """``V = Σ w_ij A_ij`` by one Cholesky factorization of ``V + 11ᵀ s``, whose inverse is V⁺ on centered columns."""

    def __init__(self, weights: Array) -> None:
        n = len(weights)
        V = -weights
        V[np.diag_indices(n)] = 0.0
        V[np.diag_indices(n)] = -V.sum(axis=1)
        self.V = V
        self.factor = scipy.linalg.cho_factor(V + np.trace(V) / n**2, lower=True, overwrite_a=True)

    def square(self, Y: Array) -> float:
        return float(np.vdot(Y, self.V @ Y))

    def solve(self, BY: Array) -> Array:
        G = scipy.linalg.cho_solve(self.factor, BY)
        return G - G.mean(axis=0)


def _tiles(n: int) -> Iterator[tuple[slice, slice]]:
    """Tiles on and above the diagonal."""
    spans = [slice(i, min(i + TILE, n)) for i in range(0, n, TILE)]
    return ((rows, cols) for k, rows in enumerate(spans) for cols in spans[k:])


def _pull(pulls: Array, Y: Array) -> Array:
    """``B(Y) Y`` with the symmetric ``pulls = w D``."""
    out = np.zeros_like(Y)
    for rows, cols in _tiles(len(Y)):
        d = cdist(Y[rows], Y[cols])
        if rows == cols or not d.all():
            d[d == 0.0] = np.inf  # coincident points do not pull
        ratio = np.divide(pulls[rows, cols], d, out=d)
        out[rows] += ratio.sum(axis=1)[:, None] * Y[rows] - ratio @ Y[cols]
        if rows != cols:
            out[cols] += ratio.sum(axis=0)[:, None] * Y[cols] - ratio.T @ Y[rows]
    return out


def _epoch(Y: Array, D: Array, weights: Array | None, step: float, rng: np.random.Generator) -> None:
    """Move every pair once, in place; `Y` (m, n), D and weights in the order of this epoch."""
    n = Y.shape[1]
    distances = D.ravel()
    share = np.minimum(0.5, 0.5 * step) if weights is None else np.minimum(0.5, 0.5 * step * weights.ravel())
    for r in rng.permutation(n):
        # i + j = r, then i + j = r + n, i < j: in the flattened matrix a step to the next pair is n - 1
        for i, count, first in ((0, (r + 1) // 2, r), (r + 1, (n - 1 - r) // 2, (r + 2) * n - 1)):
            if count == 0:
                continue
            last = n - 1 if i else r
            left, right = Y[:, i : i + count], Y[:, last - count + 1 : last + 1][:, ::-1]
            pairs = slice(first, first + (count - 1) * (n - 1) + 1, n - 1)
            apart = left - right
            d = np.sqrt(np.einsum("ij,ij->j", apart, apart))
            d[d == 0.0] = np.inf
            push = 1.0 - distances[pairs] / d
            push *= share if weights is None else share[pairs]
            apart *= push
            left -= apart
            right += apart
