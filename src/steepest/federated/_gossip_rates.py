r"""How often each link of a network should talk.   minimize sum of lambda_ij over rates with 2 chi1 chi2 <= 1

    Lam = sum_ij lambda_ij b_ij b_ij^T with b_ij = e_i - e_j,   chi1 = 1 / lambda_2(Lam),   chi2 = 1/2 max b^T Lam^+ b

With a number s, the product's bound is ``chi1 <= 1 / s`` and ``chi2 <= s / 2``, and so the problem is a convex program:

    Lam - s (I - 11^T / n) >= 0,    W >= (Lam + 11^T / n)^-1,    b^T W b <= s for every edge

``"sdp"`` gives it to a solver as it stands, with one matrix W for all edges; ``"barrier"`` is an interior-point method
of its own (`_gossip_barrier`). ``"cutting-plane"`` replaces both constraints by the linear ones that they imply, of
which v is a parameter, and adds those that are violated:

    v^T Lam v >= s  for unit v,       v^T Lam v + s >= 2 b^T v  for any v; it is tight at v = Lam^+ b

Weights of linear constraints, rounded so that they are feasible for the dual, prove a lower bound on every total.

Paper: nabli2023dadao, Sec. 4 (which calls its own program a relaxation; the form here is lossless).
Departures: the bound on chi2 is imposed on all edges, also those whose rate becomes zero (the paper's definition leaves
those out), and the result is scaled to ``2 chi1 chi2 = 1`` with the constants of its own edges.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import linalg, sparse

from steepest.core.errors import SteepestWarning, check, interval, kind_error, one_of
from steepest.core.extras import require
from steepest.federated._gossip_barrier import by_barrier
from steepest.federated._gossip_graph import (
    Array,
    Graph,
    as_graph,
    checked_rates,
    constants_of,
    scaled,
    uniform_rates,
)

if TYPE_CHECKING:
    from scipy.optimize import OptimizeResult

__all__ = ["gossip_constants", "optimal_gossip_rates", "uniform_gossip_rates"]

SDP_NODES, SDP_EDGES = 64, 256  # beyond, an interior-point solver takes minutes
CLIP = 1e-7  # of the largest rate; smaller ones are zero
GAP = 1e-4  # of the certificate, for success
ROUNDS, INSIDE, IDLE = 300, 0.5, 3  # ours: of cutting planes; their place; rounds after which idle ones are dropped
NEAR, MOST = 1.5, 20  # ours: what counts as nearly tight; spectral ones a round
FLOOR = 1e-6  # gap that the tolerances of HiGHS allow


def gossip_constants(graph: Any, rates: Any) -> tuple[float, float]:
    """Give ``chi1 = 1 / lambda_2`` and ``chi2``, half the largest effective resistance of an edge in use.

    Parameters
    ----------
    graph : networkx.Graph, adjacency matrix or (n, edges)
        As in `dadao`.
    rates : array_like (m,)
        Expected gossips of each edge in a unit of time; edges at zero are out of use.

    Returns
    -------
    chi1, chi2 : float
        In units of time; ``chi2 <= chi1``. Above 2 000 nodes by sparse solves.

    Examples
    --------
    >>> chi1, chi2 = gossip_constants((2, [(0, 1)]), [0.5])
    >>> round(chi1, 9), round(chi2, 9)
    (1.0, 1.0)
    """
    checked = as_graph(graph)
    return constants_of(checked, checked_rates(checked, rates))


def uniform_gossip_rates(graph: Any) -> OptimizeResult:
    """Equal rates on all edges, as small as ``2 chi1 chi2 <= 1`` allows.

    Parameters
    ----------
    graph : networkx.Graph, adjacency matrix or (n, edges)
        As in `dadao`.

    Returns
    -------
    scipy.optimize.OptimizeResult
        ``rates`` (m,), ``edges`` (m, 2), ``total`` (their sum), ``chi1``, ``chi2``.

    Examples
    --------
    >>> result = uniform_gossip_rates((4, [(0, 1), (0, 2), (0, 3)]))
    >>> round(result.total, 6), round(2 * result.chi1 * result.chi2, 6)
    (3.0, 1.0)
    """
    from scipy.optimize import OptimizeResult

    checked = as_graph(graph)
    rates, chi1, chi2 = uniform_rates(checked)
    return OptimizeResult(rates=rates, edges=checked.edges, total=float(rates.sum()), chi1=chi1, chi2=chi2)


def optimal_gossip_rates(
    graph: Any, *, method: str = "sdp", tol: float = 1e-7, solver: str | None = None
) -> OptimizeResult:
    """Rates with the smallest sum at which accelerated gossip keeps its speed, ``2 chi1 chi2 = 1``.

    Parameters
    ----------
    graph : networkx.Graph, adjacency matrix or (n, edges)
        As in `dadao`; any finite symmetric matrix, of which the zeros count.
    method : "sdp", "barrier" or "cutting-plane"
        A semidefinite program by cvxpy; Newton's method on a barrier, which needs no package and is the way to go
        beyond 64 nodes or 256 edges; or a sequence of linear programs by HiGHS. All have the same optimum.
    tol : float
        Of the solver; the barrier ends at this certified gap, cutting planes too (or at 1e-6, which HiGHS's own
        tolerances allow).
    solver : str, optional
        cvxpy's name of a solver for ``"sdp"``; ``"CLARABEL"`` by default.

    Returns
    -------
    scipy.optimize.OptimizeResult
        ``rates`` (m,), ``edges`` (m, 2), ``total``, ``chi1``, ``chi2``; ``uniform_total`` and ``gain``, how many times
        more equal rates talk; ``lower_bound``, proved by a rounded dual point: no rates have a smaller sum;
        ``foster_bound``, ``(n - 1) / (2 chi2)``, which Foster's theorem gives for every total with this chi2;
        ``success``: the total is within 1e-4 of ``lower_bound``; ``status``, ``message``, ``nit``.

    Raises
    ------
    ImportError
        ``"sdp"`` without cvxpy.
    ValueError
        A graph that is not connected, has self-loops, is asymmetric; a solver that found nothing.

    Warns
    -----
    SteepestWarning
        ``"sdp"`` on more than 64 nodes or 256 edges: it may take very long.

    Examples
    --------
    Two triangles and a bridge: the bridge must talk more than the rest.

    >>> edges = [(0, 1), (0, 2), (1, 2), (2, 3), (3, 4), (3, 5), (4, 5)]
    >>> result = optimal_gossip_rates((6, edges), method="barrier")
    >>> result.success, round(result.gain, 2), int(result.rates.argmax())
    (True, 1.29, 3)
    """
    from scipy.optimize import OptimizeResult

    checked = as_graph(graph)
    check("method", method, one_of("sdp", "barrier", "cutting-plane"))
    check("tol", tol, interval(0, 1, low_open=True, high_open=True))
    if solver is not None and not isinstance(solver, str):
        raise kind_error("solver", "None or the name of a cvxpy solver", solver)
    uniform, *_ = uniform_rates(checked)
    if method == "sdp":
        found = _by_sdp(checked, tol, solver)
    elif method == "barrier":
        best, bound, steps = by_barrier(checked, uniform, tol)
        found = _Found(best, bound, f"{steps} steps of Newton's method", steps)
    else:
        found = _by_cutting_planes(checked, uniform, tol)
    rates, chi1, chi2 = scaled(checked, np.where(found.rates > CLIP * found.rates.max(), found.rates, 0.0))
    total, uniform_total = float(rates.sum()), float(uniform.sum())
    gap = total / found.bound - 1 if found.bound > 0 else np.inf
    return OptimizeResult(
        rates=rates,
        edges=checked.edges,
        total=total,
        chi1=chi1,
        chi2=chi2,
        uniform_total=uniform_total,
        gain=uniform_total / total,
        lower_bound=found.bound,
        foster_bound=(checked.n - 1) / (2 * chi2),
        success=gap <= GAP,
        status=0 if gap <= GAP else 1,
        message=f"{found.said}; the total is at most {max(gap, 0.0):.2g} above the optimum, relatively",
        nit=found.nit,
    )


@dataclass
class _Found:
    """What a method returns: rates, the lower bound that it proves, what to say."""

    rates: Array
    bound: float
    said: str
    nit: int


# -------------------------------------------------------------------------------------------- the semidefinite program


def _by_sdp(graph: Graph, tol: float, solver: str | None) -> _Found:
    cp: Any = require("cvxpy", "federated", what="optimal_gossip_rates(method='sdp')")
    n, m = graph.n, len(graph.edges)
    if n > SDP_NODES or m > SDP_EDGES:
        text = f"{n} nodes and {m} edges are many for a semidefinite program; use method='barrier'"
        warnings.warn(text, SteepestWarning, stacklevel=3)
    B = sparse.csr_array(
        (np.tile([1.0, -1.0], m), (np.repeat(np.arange(m), 2), graph.edges.ravel())), shape=(m, n)
    )  # rows e_i - e_j
    rates, s, W = cp.Variable(m, nonneg=True), cp.Variable(), cp.Variable((n, n), symmetric=True)
    Lam, one, eye = B.T @ cp.diag(rates) @ B, np.ones((n, n)) / n, np.eye(n)
    spread = Lam - s * (eye - one) >> 0
    apart = s - cp.sum(cp.multiply(B @ W, B.toarray()), axis=1) >= 0
    problem = cp.Problem(cp.Minimize(cp.sum(rates)), [spread, cp.bmat([[Lam + one, eye], [eye, W]]) >> 0, apart])
    solver = solver or "CLARABEL"
    options = {
        "CLARABEL": {"tol_gap_abs": tol, "tol_gap_rel": tol, "tol_feas": tol},
        "SCS": {"eps": tol, "max_iters": 20_000},
    }.get(solver, {})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "inaccurate" is judged by the certificate below
        problem.solve(solver=solver, **options)
    if rates.value is None or not np.isfinite(rates.value).all() or rates.value.max() <= 0:
        raise ValueError(f"solver {solver} found no rates: {problem.status}")
    found = np.maximum(rates.value, 0.0)
    U = spread.dual_value - spread.dual_value.mean(axis=0)
    U = U - U.mean(axis=1, keepdims=True)
    u, v = np.linalg.eigh((U + U.T) / 2)
    cuts = _spectral(graph, v[:, u > CLIP * u.max()]) + _resistive(graph, graph.laplacian(found).toarray())
    *_, bound = cuts.solve()
    return _Found(found, bound, f"{solver} says {problem.status}", int(problem.solver_stats.num_iters or 0))


# ------------------------------------------------------------------------------------------------------- cutting planes


@dataclass
class _Cuts:
    """Linear constraints ``rows @ lambda + sign * s >= values``; sign is -1 for spectral ones, 1 for resistive ones."""

    rows: Array
    sign: Array
    values: Array

    def __add__(self, other: _Cuts) -> _Cuts:
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return _Cuts(*(np.concatenate(pair) for pair in pairs))

    def __getitem__(self, kept: Array) -> _Cuts:
        return _Cuts(self.rows[kept], self.sign[kept], self.values[kept])

    def solve(self) -> tuple[Array, Array, float]:
        """Cheapest rates, how much each constraint weighs, and the lower bound that these weights prove."""
        from scipy.optimize import linprog

        cost = np.r_[np.ones(self.rows.shape[1]), 0.0]
        found = linprog(cost, A_ub=-np.c_[self.rows, self.sign], b_ub=-self.values, bounds=(0, None), method="highs")
        if found.x is None:
            raise ValueError(f"HiGHS found no rates: {found.message}")
        weights = np.maximum(-found.ineqlin.marginals, 0.0)
        u, w = (np.where(self.sign == sign, weights, 0.0) for sign in (-1, 1))
        if u.sum() <= 0 or w.sum() <= 0:
            return found.x[:-1], weights, 0.0
        w = w * min(1.0, u.sum() / w.sum())  # s is free to be 0
        return found.x[:-1], weights, float(w @ self.values) / float(((u + w) @ self.rows).max())


def _spectral(graph: Graph, v: Array) -> _Cuts:
    """``v^T Lam v >= s`` for unit columns of v (n, k)."""
    rows = graph.differences(v).T ** 2
    return _Cuts(rows, -np.ones(len(rows)), np.zeros(len(rows)))


def _resistive(graph: Graph, L: Array) -> _Cuts:
    """The bounds on resistances that are tight at the Laplacian L."""
    K = linalg.inv(L + np.trace(L) / graph.n**2, check_finite=False)
    D = graph.differences(graph.differences(K).T)  # (m, m), (e_f)^T L^+ (e_e)
    return _Cuts(D**2, np.ones(len(D)), 2 * np.diagonal(D))


def _by_cutting_planes(graph: Graph, uniform: Array, tol: float) -> _Found:
    """Linear programs with more and more constraints, found halfway between their solutions and the best rates."""
    best, bound, query = uniform, 0.0, uniform
    cuts = _Cuts(np.zeros((0, len(uniform))), np.zeros(0), np.zeros(0))
    idle = np.zeros(0)  # rounds that a constraint has been without weight
    nit = 0
    while best.sum() > bound * (1 + max(tol, FLOOR)) and nit < ROUNDS:
        nit += 1
        new = _violated(graph, query)
        cuts, idle = cuts + new, np.r_[idle, np.zeros(len(new.sign))]
        rates, weights, proved = cuts.solve()
        bound = max(bound, proved)
        query = INSIDE * best + (1 - INSIDE) * rates
        candidate, *_ = scaled(graph, query)
        best = min(best, candidate, key=np.sum)
        idle = np.where(weights > 0, 0, idle + 1)
        cuts, idle = cuts[idle <= IDLE], idle[idle <= IDLE]
    return _Found(best, bound, f"{nit} rounds of cutting planes", nit)


def _violated(graph: Graph, rates: Array) -> _Cuts:
    """The constraints that are tight, or nearly, when the rates are scaled to just meet them."""
    L = graph.laplacian(rates).toarray()
    eigenvalues, v = np.linalg.eigh(L)
    near = 1 + np.flatnonzero(eigenvalues[1:] < NEAR * eigenvalues[1])[:MOST]
    resistive = _resistive(graph, L)
    return _spectral(graph, v[:, near]) + resistive[resistive.values > resistive.values.max() / NEAR]
