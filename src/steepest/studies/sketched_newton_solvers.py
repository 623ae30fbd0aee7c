"""The solvers that the study of sketched Newton runs side by side, one door for all, failures included.

`gmres_l1_sqp` is the baseline of the paper, written out: sequential quadratic programming, its linear systems solved by
GMRES to the same accuracy, with the nonsmooth penalty f + mu ||c||_1 as merit function.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import LinearConstraint, minimize
from scipy.sparse.linalg import gmres

from steepest.constrained import sketched_newton
from steepest.core.extras import installed, require
from steepest.studies.test_problems import PROBLEMS, TestProblem

__all__ = [
    "BASELINE", "PEERS", "Outcome", "gmres_l1_sqp", "ipopt_quadratic", "solve", "solve_named", "trust_constr_quadratic",
]  # fmt: skip

Vector = NDArray[np.float64]
BASELINE = "GMRES-L1-SQP"
PEERS = {"trust-constr": "scipy", "SLSQP": "scipy", "Ipopt": "casadi", BASELINE: "scipy"}
TOL, MAXITER = 1e-6, 1000


@dataclass(frozen=True)
class Outcome:
    """What came of a run: feasible and optimal to 1e-4, evaluations of f and gradient, seconds."""

    solved: bool
    evaluations: int
    seconds: float
    result: Any = None

    @property
    def cost(self) -> float:
        """Evaluations, infinite for a failure."""
        return float(self.evaluations) if self.solved else float("inf")


def solve(solver: str, p: TestProblem, seed: int, **options: Any) -> Outcome:
    """Run a solver from the standard start with tolerance 1e-6 and 1,000 iterations; ours by a sketch's name."""
    start = time.process_time()
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # peers warn of their own difficulties; the outcome says it
        if solver in ("gaussian", "kaczmarz", "sparse", "srht"):
            found: Any = sketched_newton(
                p.fun, p.x0, jac=p.jac, hess=p.hess, constraints=p.constraints, sketch=solver, random_state=seed,
                tol=TOL, maxiter=MAXITER, **options,
            )  # fmt: skip
        else:
            found = _PEER_CALLS[solver](p)
    solved = p.solved(found.x) and (found.success if solver in ("gaussian", "kaczmarz", "sparse", "srht") else True)
    return Outcome(solved, int(found.nfev + found.njev), time.process_time() - start, found)


def _trust_constr(p: TestProblem) -> Any:
    return minimize(
        p.fun, np.asarray(p.x0, float), method="trust-constr", jac=p.jac, hess=p.hess, constraints=p.constraints,
        options={"gtol": TOL, "xtol": 1e-12, "maxiter": MAXITER},
    )  # fmt: skip


def _slsqp(p: TestProblem) -> Any:
    constraint = {"type": "eq", "fun": p.constraint, "jac": p.constraint_jac}
    options = {"ftol": TOL**2, "maxiter": MAXITER}
    return minimize(p.fun, np.asarray(p.x0, float), method="SLSQP", jac=p.jac, constraints=constraint, options=options)


@dataclass
class _Found:
    x: Vector
    nfev: int
    njev: int
    success: bool = True


def _ipopt(p: TestProblem) -> _Found:
    casadi: Any = require("casadi", what="the row of Ipopt")
    x = casadi.SX.sym("x", p.n)
    parts = casadi.vertsplit(x)
    nlp = {"x": x, "f": p.objective(*parts), "g": casadi.vertcat(*p.residuals(*parts))}
    solver = casadi.nlpsol("solver", "ipopt", nlp, _ipopt_options(tol=TOL, max_iter=MAXITER))
    found = solver(x0=list(p.x0), lbg=0, ubg=0)
    stats = solver.stats()
    return _Found(np.array(found["x"]).ravel(), stats["n_call_nlp_f"], stats["n_call_nlp_grad_f"], stats["success"])


def _ipopt_options(**options: Any) -> dict[str, Any]:
    return {"print_time": False, "ipopt": {"print_level": 0, "sb": "yes"} | options}


def gmres_l1_sqp(p: TestProblem, accuracy: float = 0.1, armijo: float = 0.1, shift: float = 0.1) -> _Found:
    """Inexact sequential quadratic programming with the merit function ``f + mu ||c||_1``.

    The system, its shift and the accuracy ``||r|| <= 0.1 ||b||`` are those of sketched Newton's first iteration. mu
    exceeds the largest new multiplier; where the step is no descent direction all the same, GMRES is run ten times as
    exactly, to the end.
    """
    x, lam, mu = np.asarray(p.x0, dtype=float), np.zeros(p.m), 1.0
    n, nfev, njev = p.n, 1, 0
    for _ in range(MAXITER):
        f, g, c, G = p.fun(x), p.jac(x), p.constraint(x), p.constraint_jac(x)
        njev += 1
        b = -np.r_[g + G.T @ lam, c]
        if np.linalg.norm(b) <= TOL:
            return _Found(x, nfev, njev)
        H = p.hess(x) + p.constraint_hess(x, lam)
        Z = np.linalg.qr(G.T, mode="complete")[0][:, p.m :]
        if Z.size and np.linalg.eigvalsh(Z.T @ H @ Z)[0] < 1e-6:
            H = H + (shift + np.linalg.norm(H)) * np.eye(n)
        K = np.block([[H, G.T], [G, np.zeros((p.m, p.m))]])
        rtol = accuracy
        while True:
            z = gmres(K, b, rtol=rtol, atol=0, restart=len(b), maxiter=10)[0]
            d, linear = z[:n], c + G @ z[:n]
            mu = max(mu, 1.1 * float(np.abs(lam + z[n:]).max()) + 1e-3)
            # directional derivative of the penalty function, bounded through the linearized constraints
            slope = g @ d + mu * (np.abs(linear).sum() - np.abs(c).sum())
            if slope < 0 or rtol < 1e-12:
                break
            rtol /= 10
        if slope >= 0:
            break
        phi, alpha = f + mu * np.abs(c).sum(), 1.0
        while alpha > 1e-14:
            nfev += 1
            trial = x + alpha * d
            if p.fun(trial) + mu * np.abs(p.constraint(trial)).sum() <= phi + armijo * alpha * slope + 1e-14 * abs(phi):
                break
            alpha /= 2
        else:
            break
        x, lam = trial, lam + alpha * z[n:]
    return _Found(x, nfev, njev, success=False)


_PEER_CALLS: dict[str, Callable[[TestProblem], Any]] = {
    "trust-constr": _trust_constr,
    "SLSQP": _slsqp,
    "Ipopt": _ipopt,
    BASELINE: gmres_l1_sqp,
}


def solve_named(job: tuple[str, str, int]) -> Outcome:
    """`solve` of a solver, the name of a problem and a seed, which other processes can be given."""
    solver, name, seed = job
    return solve(solver, next(p for p in PROBLEMS if p.name == name), seed)


def available(solver: str) -> bool:
    """Whether the package of a peer is installed."""
    return installed(PEERS[solver])


# -------------------------------------------------------------------------------------- peers on large sparse programs


def trust_constr_quadratic(H: Any, G: Any, g: Vector, c: Vector, tol: float, limit_s: float) -> tuple[float, float]:
    """CPU seconds and KKT residual of trust-constr, stopped after the first iteration past `limit_s`."""
    start = time.process_time()
    last: list[float] = [float("inf")]

    def watch(x: Vector, state: Any) -> bool:
        last[0] = float(np.linalg.norm(np.r_[state.lagrangian_grad, G @ x - c]))
        return last[0] <= tol or time.process_time() - start > limit_s

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        minimize(
            lambda x: float(x @ (H @ x) / 2 + g @ x), np.zeros(len(g)), method="trust-constr", jac=lambda x: H @ x + g,
            hess=lambda x: H, constraints=LinearConstraint(G, c, c), callback=watch,
            options={"gtol": tol / 10, "xtol": 1e-14, "maxiter": 200, "sparse_jacobian": True},
        )  # fmt: skip
    return time.process_time() - start, last[0]


def ipopt_quadratic(H: Any, G: Any, g: Vector, c: Vector, tol: float, limit_s: float) -> tuple[float, float]:
    """CPU seconds and KKT residual of Ipopt (with MUMPS, as its wheel comes), limited to `limit_s`."""
    casadi: Any = require("casadi", what="the row of Ipopt")
    x = casadi.SX.sym("x", len(g))
    diagonal = casadi.DM(H.diagonal())
    nlp = {
        "x": x,
        "f": casadi.dot(diagonal * x, x) / 2 + casadi.dot(casadi.DM(g), x),
        "g": casadi.mtimes(casadi.DM(G.tocsc()), x),
    }
    start = time.process_time()
    solver = casadi.nlpsol("solver", "ipopt", nlp, _ipopt_options(tol=tol / 100, max_cpu_time=limit_s))
    found = solver(x0=0, lbg=c, ubg=c)
    seconds = time.process_time() - start
    y, lam = np.array(found["x"]).ravel(), np.array(found["lam_g"]).ravel()
    return seconds, float(np.linalg.norm(np.r_[H @ y + g + G.T @ lam, G @ y - c]))
