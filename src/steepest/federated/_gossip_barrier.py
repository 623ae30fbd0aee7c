r"""Gossip rates by an interior-point method: Newton's steps on a barrier, and a proof of how good the rates are.

    minimize  sum_e lambda_e / t - log det M - sum_e log(s - R_e) - sum_e log lambda_e      over lambda, s, as t -> 0

    M = Lam - s (I - 11^T / n) on vectors of mean 0,   R_e = b_e^T Lam^+ b_e

which is the convex program of `_gossip_rates`. With ``D = B Lam^+ B^T`` (m, m), B the rows b_e, all derivatives are
entrywise products: ``R_e = D_ee``, ``dR_e / dlambda_f = -D_ef^2``, ``d2R_e / dlambda_f dlambda_g = 2 D_ef D_fg D_ge``.

Proof: for any U >= 0, w >= 0 and vectors v_e with ``tr U >= sum w`` every admissible lambda, s has
``s tr U <= <U, Lam>`` and ``s >= R_e >= 2 b_e^T v_e - v_e^T Lam v_e``, and therefore

    2 sum_e w_e b_e^T v_e  <=  <V, Lam>  <=  sum lambda * max_f b_f^T V b_f,      V = U + sum_e w_e v_e v_e^T

Near the barrier's minimum, ``U = t M^-1``, ``w_e = t / (s - R_e)`` and ``v_e = Lam^+ b_e``, each led along the Newton
step to first order, leave a gap of about ``t (n + 2 m)``.

Paper: nabli2023dadao, Sec. 4, for the program; the method is that of textbooks (Boyd and Vandenberghe, Convex
Optimization, Ch. 11).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import linalg

from steepest.federated._gossip_graph import Array, Graph, resistances, scaled

__all__ = ["by_barrier"]

SHRINK, CENTERED = 0.1, 0.25  # ours: of t, once the squared Newton decrement is below this
STEPS, HALVINGS = 300, 40  # ours: at most
ENOUGH, INSIDE = 0.1, 0.99  # ours: of the promised decrease, of the way to a rate of zero
ROUND = 1e-14  # relative, added to the Hessian's diagonal


def by_barrier(graph: Graph, uniform: Array, tol: float) -> tuple[Array, float, int]:
    """Rates (m,) that are within `tol` of the least total, relatively, a lower bound that proves it, and the steps."""
    rates = 2 * uniform  # strictly inside, with s as follows
    point = _Point.at(graph, rates, float(np.linalg.eigvalsh(graph.laplacian(rates).toarray())[1]) / 2)
    assert point is not None
    t = rates.sum() / (graph.n + 2 * len(rates))
    best, bound, step = rates, 0.0, 0
    while step < STEPS:
        step += 1
        best = min(best, scaled(graph, point.rates)[0], key=np.sum)
        try:
            model = _Model.of(point)
        except linalg.LinAlgError:
            break
        way, decrement = model.newton(t)
        if decrement < 1:
            bound = max(bound, model.proved(way))
        if best.sum() <= bound * (1 + tol):
            break
        if decrement < CENTERED:
            t *= SHRINK
            way, decrement = model.newton(t)
        moved = _search(point, t, way, decrement)
        if moved is None:
            break
        point = moved
    return best, bound, step


@dataclass
class _Point:
    """Rates and s inside, the barrier there, and what it was made from."""

    graph: Graph
    rates: Array
    s: float
    barrier: float
    factor: Array
    """Of M, completed by a multiple of 11^T."""
    R: Array

    @classmethod
    def at(cls, graph: Graph, rates: Array, s: float) -> _Point | None:
        """None if it is not inside."""
        if s <= 0 or rates.min() <= 0:
            return None
        Lam = graph.laplacian(rates).toarray()
        try:
            factor = linalg.cholesky(_completed(Lam - s * _centering(graph.n), np.trace(Lam)), lower=True)
        except linalg.LinAlgError:
            return None
        R = resistances(graph, Lam)
        if R.max() >= s:
            return None
        constant = np.log(np.trace(Lam) / graph.n)  # of the completion
        barrier = constant - 2 * np.log(np.diag(factor)).sum() - np.log(s - R).sum() - np.log(rates).sum()
        return cls(graph, rates, s, float(barrier), factor, R)

    def value(self, t: float) -> float:
        """The function that is minimized."""
        return float(self.rates.sum()) / t + self.barrier


def _completed(A: Array, trace: float) -> Array:
    """A, plus a multiple of 11^T that gives constant vectors a share as large as the mean of the others."""
    return np.asarray(A + trace / len(A) ** 2)


def _centering(n: int) -> Array:
    """``I - 11^T / n``."""
    return np.asarray(np.eye(n) - 1 / n)


def _between(graph: Graph, A: Array) -> Array:
    """``B A B^T`` (m, m)."""
    return graph.differences(graph.differences(A).T)


@dataclass
class _Model:
    """Derivatives of the barrier at a point."""

    point: _Point
    inverse: Array
    """Of M, on vectors of mean 0."""
    D: Array
    w: Array
    hessian: tuple[Array, bool]
    """Cholesky factor, in units that keep it well conditioned: of (lambda / rates, s / point.s)."""
    gradient: Array
    """Of the barrier alone, in plain units."""

    @classmethod
    def of(cls, point: _Point) -> _Model:
        """All of it, in O(m^3); raises `LinAlgError` where rounding leaves no convexity."""
        graph, rates, s = point.graph, point.rates, point.s
        inverse = linalg.cho_solve((point.factor, True), _centering(graph.n))
        inverse -= inverse.mean(axis=0)
        Lam = graph.laplacian(rates).toarray()
        D = _between(graph, linalg.inv(_completed(Lam, np.trace(Lam))))
        w, squares, G = 1 / (s - point.R), D**2, _between(graph, inverse)
        weighed = w[:, None] * squares
        m = len(rates)
        H = np.empty((m + 1, m + 1))
        H[:m, :m] = G**2 + weighed.T @ weighed + 2 * D * (D @ (w[:, None] * D))
        H[:m, m] = H[m, :m] = w @ weighed - (graph.differences(inverse) ** 2).sum(axis=1)
        H[m, m] = (inverse**2).sum() + (w**2).sum()
        units = np.r_[rates, s]
        H *= units * units[:, None]
        H[np.arange(m), np.arange(m)] += 1
        H[np.diag_indices(m + 1)] *= 1 + ROUND
        gradient = np.r_[-np.diagonal(G) - w @ squares - 1 / rates, np.trace(inverse) - w.sum()]
        return cls(point, inverse, D, w, linalg.cho_factor(H), gradient)

    def newton(self, t: float) -> tuple[Array, float]:
        """The step, and the squared decrement."""
        units = np.r_[self.point.rates, self.point.s]
        g = units * (self.gradient + np.r_[np.full(len(self.w), 1 / t), 0.0])
        step = linalg.cho_solve(self.hessian, -g)
        return units * step, float(-g @ step)

    def proved(self, way: Array) -> float:
        """The lower bound of weights that were led along the step; 0 if they left where they prove something."""
        graph, more, ds = self.point.graph, way[:-1], way[-1]
        D = self.D - self.D @ (more[:, None] * self.D)
        w = self.w * (1 - self.w * (ds + self.D**2 @ more))
        M = graph.laplacian(more).toarray() - ds * _centering(graph.n)
        U = self.inverse - self.inverse @ M @ self.inverse
        trace = float(np.trace(U))
        if w.min() < 0 or np.linalg.eigvalsh(U)[0] < -ROUND * graph.n * trace:
            return 0.0
        w = w * min(1.0, trace / w.sum())
        i, j = graph.edges.T
        return float(2 * w @ np.diagonal(D)) / float((U[i, i] + U[j, j] - 2 * U[i, j] + w @ D**2).max())


def _search(point: _Point, t: float, way: Array, decrement: float) -> _Point | None:
    """The first of halved steps that is inside and decreases enough; None where rounding lets none do so."""
    more, before = way[:-1], point.value(t)
    shrinking = more < 0
    length = min(1.0, INSIDE * float((-point.rates[shrinking] / more[shrinking]).min(initial=np.inf)))
    for _ in range(HALVINGS):
        found = _Point.at(point.graph, point.rates + length * more, point.s + length * way[-1])
        if found is not None and found.value(t) <= before - ENOUGH * length * decrement + ROUND * abs(before):
            return found
        length /= 2
    return None
