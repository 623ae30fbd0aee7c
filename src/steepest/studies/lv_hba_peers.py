"""What else takes a lower level with constraints: the KKT form, one program, handed to general solvers.

    minimize F(x, y) over (x, y, lam)   with   grad_y f(x, y) + B' lam = 0,   g = A x + B y + c <= 0,   lam >= 0,
                                               -lam . g <= 1e-6

It needs the second derivatives of f that LV-HBA does without, and its complementarity has no interior; solvers are
given the relaxed one. Functions come from autograd for scipy's solvers; Ipopt wants expressions, so it gets the program
below, whose parts are written out for it.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, NonlinearConstraint, minimize
from torch import Tensor

from steepest.bilevel import BilevelProblem
from steepest.core.extras import require

__all__ = ["KKT", "CoupledProgram", "ipopt", "scipy_kkt"]

Vector = NDArray[np.float64]
SLACK = 1e-6  # of complementarity
IPOPT = "pip install casadi (it holds Ipopt)"


class OutOfBudget(Exception):
    """Seconds or calls are used up."""


class KKT:
    """The KKT form of a problem with affine inequality rows, on u = (x, y, lam); calls are counted as the methods' are.

    Attributes
    ----------
    calls : int
        First derivatives and products with second ones, d of each for a Jacobian of the stationarity.
    """

    def __init__(self, problem: BilevelProblem, *, calls: float = np.inf, seconds: float = np.inf) -> None:
        assert problem.affine is not None
        self.problem = problem
        A, B, c = (M.to_dense() if M.layout is not torch.strided else M for M in problem.affine)
        self.A, self.B, self.c = A.numpy(), B.numpy(), c.numpy()
        self.p, self.n = self.A.shape
        self.d = self.B.shape[1]
        self.calls, self._most, self._until = 0, calls, time.process_time() + seconds
        self.last = self.start()

    def start(self) -> Vector:
        """The problem's start, lam = 0."""
        x, y = self.problem.pack_x(self.problem.x0), self.problem.pack_y(self.problem.y0)
        return np.concatenate([x.numpy(), y.numpy(), np.zeros(self.p)])

    def split(self, u: Vector) -> tuple[Vector, Vector, Vector]:
        """Give (x, y, lam)."""
        return u[: self.n], u[self.n : self.n + self.d], u[self.n + self.d :]

    def rows(self, u: Vector) -> Vector:
        """Evaluate g."""
        x, y, _ = self.split(u)
        return np.asarray(self.A @ x + self.B @ y + self.c)

    def upper(self, u: Vector) -> tuple[float, Vector]:
        """F and its gradient in u."""
        self._spend(1, u)
        w = torch.tensor(u[: self.n + self.d], requires_grad=True)
        value = self._on(self.problem.upper, w)
        (g,) = torch.autograd.grad(value, w)
        return float(value.detach()), np.concatenate([g.numpy(), np.zeros(self.p)])

    def stationarity(self, u: Vector) -> Vector:
        """grad_y f + B' lam."""
        self._spend(1, u)
        return np.asarray(self._lower_grad(torch.tensor(u[: self.n + self.d])).numpy() + self.B.T @ self.split(u)[2])

    def stationarity_jac(self, u: Vector) -> Vector:
        """Its Jacobian, (d, n + d + p)."""
        self._spend(2 * self.d, u)
        J = torch.func.jacrev(self._lower_grad)(torch.tensor(u[: self.n + self.d]))
        return np.hstack([J.numpy(), self.B.T])

    def slack(self, u: Vector) -> float:
        """1e-6 + lam . g, to be >= 0."""
        return float(SLACK + self.split(u)[2] @ self.rows(u))

    def slack_jac(self, u: Vector) -> Vector:
        """Its gradient."""
        lam = self.split(u)[2]
        return np.concatenate([self.A.T @ lam, self.B.T @ lam, self.rows(u)])

    def bounds(self) -> Bounds:
        """X, found by projecting far points (a box, or all), and lam >= 0."""
        x = self.problem.pack_x(self.problem.x0)
        low, high = torch.full_like(x, -np.inf), torch.full_like(x, np.inf)
        if self.problem.project_x is not None:
            low, high = (self.problem.project_x(self.problem.unpack_x(x + s * 1e6)).reshape(-1) for s in (-1, 1))
        free = np.full(self.d, np.inf)
        return Bounds(np.r_[low.numpy(), -free, np.zeros(self.p)], np.r_[high.numpy(), free, np.full(self.p, np.inf)])

    def point(self, u: Vector) -> tuple[Any, Any]:
        """(x, y) in the problem's form."""
        x, y, _ = self.split(np.asarray(u))
        return self.problem.unpack_x(torch.tensor(x)), self.problem.unpack_y(torch.tensor(y))

    def _lower_grad(self, w: Tensor) -> Tensor:
        return torch.func.grad(lambda w: self._on(self.problem.lower, w))(w)[self.n :]

    def _on(self, function: Callable[..., Tensor], w: Tensor) -> Tensor:
        return function(self.problem.unpack_x(w[: self.n]), self.problem.unpack_y(w[self.n :]), None)

    def _spend(self, calls: int, u: Vector) -> None:
        self.calls += calls
        if self.calls > self._most or time.process_time() > self._until:
            raise OutOfBudget
        self.last = u.copy()


def scipy_kkt(
    problem: BilevelProblem, method: str, *, calls: float = np.inf, seconds: float = np.inf
) -> tuple[Any, Any, int]:
    """Run SLSQP or trust-constr on the KKT form within a budget; (x, y) of the last point, and its calls."""
    kkt = KKT(problem, calls=calls, seconds=seconds)
    joint = np.hstack([kkt.A, kkt.B, np.zeros((kkt.p, kkt.p))])
    constraints: list[Any]
    if method == "SLSQP":
        constraints = [
            {"type": "eq", "fun": kkt.stationarity, "jac": kkt.stationarity_jac},
            {"type": "ineq", "fun": lambda u: -kkt.rows(u), "jac": lambda u: -joint},
            {"type": "ineq", "fun": kkt.slack, "jac": kkt.slack_jac},
        ]
        options: dict[str, Any] = {"maxiter": 1000, "ftol": 1e-9}
    else:
        constraints = [
            NonlinearConstraint(kkt.stationarity, 0, 0, jac=kkt.stationarity_jac),
            LinearConstraint(joint, -np.inf, -kkt.c),
            NonlinearConstraint(kkt.slack, 0, np.inf, jac=kkt.slack_jac),
        ]
        options = {"maxiter": 3000, "gtol": 1e-6}
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # the peers warn of their own difficulties; the outcome says it
        try:
            found = minimize(
                kkt.upper, kkt.start(), jac=True, method=method, bounds=kkt.bounds(), constraints=constraints,
                options=options,
            ).x  # fmt: skip
        except OutOfBudget:
            found = kkt.last
    return *kkt.point(found), kkt.calls


# ------------------------------------------------------------------------------------------------- a program for Ipopt


@dataclass(frozen=True)
class CoupledProgram:
    """F = |y - t|^2 / 2 + |x|^2 / 20,  f = |y|^2 / 2 - y . P x,  A x + B y <= 1, rows of norm 1 with six entries.

    A row holds two entries of A and four of B, all of the same size; P has four entries a row.
    """

    A: Any  # scipy sparse (p, n)
    B: Any  # (p, d)
    P: Any  # (d, n)
    t: Vector  # (d,)

    @classmethod
    def drawn(cls, p: int, n: int, d: int, seed: int) -> CoupledProgram:
        """Draw one with p rows."""
        import scipy.sparse as sp

        rng = np.random.default_rng(seed)

        def sparse(rows: int, columns: int, each: int, size: float) -> Any:
            at = np.concatenate([rng.choice(columns, each, replace=False) for _ in range(rows)])
            entries = size * rng.choice([-1.0, 1.0], len(at))
            return sp.csr_array((entries, (np.repeat(np.arange(rows), each), at)), (rows, columns))

        size = 6**-0.5
        A, B = sparse(p, n, 2, size), sparse(p, d, 4, size)
        return cls(A, B, sparse(d, n, 4, 0.5), 2 * rng.standard_normal(d))

    def problem(self, *, dense: bool = False) -> BilevelProblem:
        """State it for the methods, its rows sparse or dense."""
        A, B, P = (_torch_sparse(M) for M in (self.A, self.B, self.P))
        if dense:
            A, B = A.to_dense(), B.to_dense()
        t = torch.tensor(self.t)
        n, d = self.A.shape[1], self.B.shape[1]
        return BilevelProblem(
            lambda x, y, batch: (y - t).square().sum() / 2 + x.square().sum() / 20,
            lambda x, y, batch: y.square().sum() / 2 - y @ (P @ x),
            torch.zeros(n, dtype=torch.float64),
            torch.zeros(d, dtype=torch.float64),
            affine=(A, B, -torch.ones(self.A.shape[0], dtype=torch.float64)),
            name="coupled program",
        )


def ipopt(program: CoupledProgram, *, limit_s: float = 300.0, slack: float = SLACK) -> tuple[float, Vector, Vector]:
    """Seconds, x and y of Ipopt (as casadi's wheel comes) on the KKT form, exact second derivatives, from zero."""
    casadi: Any = require("casadi", what="the row of Ipopt")
    p, n = program.A.shape
    d = program.B.shape[1]
    A, B, P = (casadi.DM(M.tocsc()) for M in (program.A, program.B, program.P))
    x, y, lam = casadi.SX.sym("x", n), casadi.SX.sym("y", d), casadi.SX.sym("lam", p)
    g = casadi.mtimes(A, x) + casadi.mtimes(B, y) - 1
    nlp = {
        "x": casadi.vertcat(x, y, lam),
        "f": casadi.sumsqr(y - program.t) / 2 + casadi.sumsqr(x) / 20,
        "g": casadi.vertcat(y - casadi.mtimes(P, x) + casadi.mtimes(B.T, lam), g, lam * g + slack),
    }
    low = np.r_[np.zeros(d), np.full(p, -np.inf), np.zeros(p)]
    high = np.r_[np.zeros(d), np.zeros(p), np.full(p, np.inf)]
    options = {"print_time": False, "ipopt": {"print_level": 0, "sb": "yes", "tol": 1e-6, "max_cpu_time": limit_s}}
    start = time.process_time()
    solver = casadi.nlpsol("solver", "ipopt", nlp, options)
    found = solver(x0=0, lbx=np.r_[np.full(n + d, -np.inf), np.zeros(p)], ubx=np.inf, lbg=low, ubg=high)
    seconds = time.process_time() - start
    u = np.array(found["x"]).ravel()
    return seconds, u[:n], u[n : n + d]


def _torch_sparse(M: Any) -> Tensor:
    M = M.tocoo()
    at = torch.tensor(np.stack(M.coords).astype(np.int64))
    return torch.sparse_coo_tensor(at, torch.tensor(M.data), M.shape, check_invariants=True).coalesce()
