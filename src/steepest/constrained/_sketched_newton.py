r"""Newton's method for equality constraints, its linear systems sketched and only as exact as descent needs.

    minimize f(x)  subject to  c(x) = 0,          L(x, lam) = f + lam' c,   gL = grad f + G' lam,   G = Jacobian of c

    b     = -(gL, c)                                                          ||b|| is the KKT residual
    B     = Hessian of L + t I,    Gamma = [[B, G'], [G, 0]]                  t > 0 where B is not positive on null(G)
    z     ~ solves Gamma z = b,    ||Gamma z - b|| <= theta_k delta ||b||     by sketching and projecting, from z = 0
    until grad M(x, lam)' z <= -eta2/2 ||b||^2:   eta1 *= nu^2, eta2 /= nu, delta /= nu^4, and sketch on
    (x, lam) <- (x, lam) + alpha z                alpha by halves, Armijo's condition on
    M     = f + lam' c + eta1/2 ||c||^2 + eta2/2 ||gL||^2                     the exact augmented Lagrangian

Near a solution the penalties and delta no longer change, alpha = 1, and the KKT residual falls by about theta_k delta
an iteration: linearly for a constant theta, superlinearly for theta_k -> 0.

Paper: hong2023constrained, Alg. 1.
Notation: sketches are those of ``_sketch_and_project``; r = Gamma z - b; `kkt` is ||b||; beta is `armijo`;
xi_G = smallest eigenvalue of G G'; Psi, Upsilon are the paper's, with ||.||_F for its norms.
Departures: (1) The gradient of M holds the Hessian of the Lagrangian; the published code has that of f there, which is
wrong for curved constraints. (2) ``accuracy="residual"`` compares the residual with ||b|| itself; the paper's condition
(``accuracy="paper"``) divides by ||Gamma||_F Psi, so that a solve is nearly exact from the first iteration on. Global
descent is the next line's in both. (3) Sketches grow where they stall, and end in one direct solve, which is counted.
(4) Diverging penalties, dependent constraints and numbers that are not finite end the run with a status; the published
code goes on. (5) Where the decrease of M that a full step must bring is below ten of its rounding errors, a rise by
one counts as none. (6) Rows of Gamma are scaled to length 1 before they are sketched.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from steepest.constrained._kkt import alike, equilibrated, kkt_matrix, solve
from steepest.constrained._merit import (
    frobenius,
    lagrangian_gradient,
    merit,
    merit_floor,
    merit_gradient,
    reduced_smallest,
    singular_values,
)
from steepest.constrained._problem import Matrix, Point, Problem
from steepest.constrained._sketch_and_project import ACCELERATIONS, SKETCHES, make_solver
from steepest.core.driver import Progress, Stop, drive, told
from steepest.core.errors import (
    at_least,
    boolean,
    check,
    interval,
    kind_error,
    nonnegative,
    one_of,
    optional,
    positive,
    value_error,
)
from steepest.core.random import numpy_generator

if TYPE_CHECKING:
    from scipy.optimize import OptimizeResult

__all__ = ["sketched_newton"]

Vector = NDArray[np.float64]
Theta = float | Callable[[int], float]
_log = logging.getLogger("steepest.constrained")

LIMITS = {
    "tol": nonnegative(),
    "maxiter": at_least(0, integer=True),
    "sketch": one_of(*SKETCHES),
    "sketch_size": optional(at_least(1, integer=True)),
    "accuracy": one_of("residual", "paper"),
    "eta1": positive(),
    "eta2": positive(),
    "delta": interval(0, 1, low_open=True, high_open=True),
    "xi_B": positive(),
    "armijo": interval(0, 0.5, low_open=True, high_open=True),
    "nu": interval(1, low_open=True),
    "grow": boolean(),
    "acceleration": one_of(*ACCELERATIONS),
    "inner_maxiter": at_least(1, integer=True),
    "disp": boolean(),
}
THETA = interval(0, 1, low_open=True)
POSITIVE = 1e-6  # smallest reduced curvature that needs no shift
DELTA_FLOOR = 1e-6  # of the paper's condition (official parameter file)
ETA1_MAX, ETA2_MIN = 1e12, 1e-14
ALPHA_MIN = 1e-14
ROUNDING = 1e-14  # a residual below this part of ||b|| is not asked for
PER_STEP = (
    "alpha", "inner", "residual", "eta1", "eta2", "delta", "slope", "merit", "merit_new", "shift", "sketch_size",
    "exact_fallback",
)  # fmt: skip


class Status(IntEnum):
    """Why a run ended; 0 is the only success."""

    CONVERGED = 0
    MAXITER = 1
    RANK = 2
    NONFINITE = 3
    PENALTIES = 4
    LINE_SEARCH = 5
    CALLBACK = 6


MESSAGES = {
    Status.CONVERGED: "The KKT residual is at most tol.",
    Status.MAXITER: "The budget ran out before the KKT residual was at most tol; raise maxiter or loosen tol.",
    Status.RANK: "The Jacobian of the constraints lost rank: its rows are linearly dependent at x. Drop redundant "
    "constraints or start elsewhere.",
    Status.NONFINITE: "A value or derivative is not finite; the last finite iterate is returned. Start elsewhere.",
    Status.PENALTIES: "The penalties diverged before the step was one of descent; start elsewhere or scale it.",
    Status.LINE_SEARCH: "The line search found no decrease: derivatives may be wrong, or tol is below rounding.",
    Status.CALLBACK: "The callback asked to stop.",
}


def sketched_newton(
    fun: Callable[..., Any],
    x0: Any,
    args: Any = (),
    jac: Any = None,
    hess: Any = None,
    hessp: Any = None,
    bounds: Any = None,
    constraints: Any = (),
    callback: Callable[..., Any] | None = None,
    *,
    tol: float = 1e-6,
    maxiter: int = 1000,
    sketch: str = "gaussian",
    sketch_size: int | None = None,
    accuracy: str = "residual",
    theta: Theta = 1.0,
    eta1: float = 1.0,
    eta2: float = 0.1,
    delta: float = 0.1,
    xi_B: float = 0.1,
    armijo: float = 0.1,
    nu: float = 1.5,
    lam0: Any = None,
    grow: bool = True,
    acceleration: str = "none",
    inner_maxiter: int = 100_000,
    random_state: int | np.random.Generator | np.random.RandomState | None = None,
    disp: bool = False,
) -> OptimizeResult:
    """Minimize a smooth function under smooth equality constraints (hong2023constrained, Alg. 1).

    Call it directly, or as ``scipy.optimize.minimize(fun, x0, method=sketched_newton, options={...}, ...)``.

    Parameters
    ----------
    fun : callable
        ``fun(x, *args) -> float``; with ``jac=True`` it returns value and gradient.
    x0 : array of shape (n,)
    args : tuple
    jac, hess, hessp : callable, optional
        Gradient (n,), Hessian (n, n) of `fun`, dense or sparse, or its product ``hessp(x, p, *args)``, which is taken
        with the n unit vectors. What is missing (or no callable) is replaced by central differences.
    bounds
        Must be None.
    constraints : LinearConstraint, NonlinearConstraint, dict, or a sequence of them
        m <= n equalities: ``lb == ub``, or ``{"type": "eq", "fun": c, "jac": J}``. Jacobians may be dense, sparse, or
        LinearOperators, which are multiplied out. ``hess(x, v)`` of a NonlinearConstraint is the Hessian of ``v' c``;
        without a callable one, ``J(x)' v`` is differenced.
    callback : callable, optional
        ``callback(xk)``, or ``callback(intermediate_result)`` with ``x, fun, lam, nit``. StopIteration ends the run.
    tol : float
        Stop when ``||(grad L, c)|| <= tol``. Ours; the official value is 1e-4.
    maxiter : int
        Ours; officially 10,000.
    sketch : "gaussian", "kaczmarz", "sparse" or "srht"
        See `sketch_and_project`. With a sparse Hessian or Jacobian, and with ``acceleration="cg"``, equations are taken
        in blocks instead, and nothing of size d x d, d = n + m, is formed.
    sketch_size : int, optional
        Equations a sketch: by default ``ceil(d / 4)``, 256 in a block.
    accuracy : "residual" or "paper"
        The test of the inner solve: ``||r|| <= theta_k delta ||b||``, or with the paper's constants
        ``||Gamma||_F Psi ||r|| <= theta_k delta ||b||`` and its bound on delta.
    theta : float in (0, 1] or callable
        ``theta(k)`` of iteration k = 0, 1, ...: constant for linear, falling to 0 for superlinear convergence.
    eta1, eta2, delta, xi_B, armijo, nu : float
        First penalties, first accuracy, size of the shift, Armijo's constant in (0, 1/2), factor of the updates
        (official parameter file).
    lam0 : array of shape (m,), optional
        First multipliers; zeros by default. The official logistic and PDE runs start at ones.
    grow : bool
        Double the sketch where ``4 ceil(d / s)`` sketches (25 accelerated double passes) did not halve the residual; at
        d equations (past 1,024 in a block) solve directly. False: never.
    acceleration : "none" or "cg"
        See `sketch_and_project`; ours.
    inner_maxiter : int
        Most sketches in one iteration (official).
    random_state : int, Generator, RandomState or None
    disp : bool
        Log each iteration at level INFO to ``logging.getLogger("steepest.constrained")``.

    Returns
    -------
    scipy.optimize.OptimizeResult
        ``x, fun, jac`` (gradient of `fun`), ``lam`` (m,) with ``L = fun + lam' c``, ``kkt, constr_violation``,
        ``nit, nfev, njev, nhev, success, message, history`` and ``status``: 0 converged, 1 maxiter, 2 rank of the
        Jacobian, 3 not finite, 4 penalties diverged, 5 line search, 6 callback. ``history`` maps ``kkt`` to nit + 1
        numbers and, for every accepted step, ``alpha, inner`` (sketches), ``residual`` (``||Gamma z - b|| / ||b||``),
        ``eta1, eta2, delta, slope, merit, merit_new`` (same penalties), ``shift, sketch_size, exact_fallback``.

    Raises
    ------
    ValueError, TypeError
        Inequalities, no constraint, more constraints than variables, bounds, wrong shapes, `x0` not finite, options
        outside their limits.

    Examples
    --------
    >>> from scipy.optimize import minimize
    >>> circle = {"type": "eq", "fun": lambda x: x @ x - 1, "jac": lambda x: 2 * x[None]}
    >>> options = {"random_state": 0}
    >>> result = minimize(sum, [-1.0, 0.3], method=sketched_newton, constraints=circle, options=options)
    >>> result.success, result.x.round(4).tolist(), result.lam.round(4).tolist()
    (True, [-0.7071, -0.7071], [0.7071])
    """
    settings = {name: value for name, value in locals().items() if name in LIMITS}
    for name, value in settings.items():
        check(name, value, LIMITS[name])
    if not callable(theta):
        check("theta", theta, THETA)
    if bounds is not None:
        raise value_error("bounds", "None", bounds, "write active bounds as equalities")
    if callback is not None and not callable(callback):
        raise kind_error("callback", "callable", callback)
    x = _vector("x0", x0)
    problem = Problem(fun, x, args if isinstance(args, tuple) else (args,), jac, hess, hessp, constraints)
    lam = np.zeros(problem.m) if lam0 is None else _vector("lam0", lam0)
    if len(lam) != problem.m:
        raise value_error("lam0", f"of shape ({problem.m},)", lam)
    rng = numpy_generator(random_state, name="random_state")
    run = _Run(problem, problem.point(problem.values(x)), lam, theta, rng, **settings)
    return run.result(callback)


@dataclass
class _Run:
    """The state of one run, and its iteration."""

    problem: Problem
    point: Point
    lam: Vector
    theta: Theta
    rng: np.random.Generator
    tol: float
    maxiter: int
    sketch: str
    sketch_size: int | None
    accuracy: str
    eta1: float
    eta2: float
    delta: float
    xi_B: float
    armijo: float
    nu: float
    grow: bool
    acceleration: str
    inner_maxiter: int
    disp: bool
    k: int = 0
    stopped: Status | None = None
    detail: str = ""
    geometry: tuple[Matrix, tuple[float, float, bool]] | None = field(default=None, repr=False)

    def result(self, callback: Callable[..., Any] | None) -> OptimizeResult:
        """Iterate; report."""
        kkt = self._kkt()
        start = Progress(self.point.x, self.point.f, numbers={"kkt": kkt})
        first = Status.NONFINITE if not self.point.finite else Status.CONVERGED if kkt <= self.tol else None
        budget = self.maxiter if first is None else 0
        seen = None if callback is None else self._telling(callback)
        found = drive(
            lambda run: (run, run.step()), self, maxiter=budget, callback=seen, keep=("kkt", *PER_STEP), start=start
        )
        by_driver = {Stop.CONVERGED: Status.CONVERGED, Stop.CALLBACK: Status.CALLBACK, Stop.NONFINITE: Status.NONFINITE}
        status = first if first is not None else self.stopped
        if status is None:
            status = by_driver.get(Stop(found.status), Status.MAXITER)
        found.history = {"kkt": found.history["kkt"]} | {key: found.history[key][1:] for key in PER_STEP}
        found.update(
            x=self.point.x.copy(), fun=self.point.f, jac=self.point.g, lam=self.lam.copy(),
            kkt=found.history["kkt"][-1],
            constr_violation=float(np.abs(self.point.c).max()), status=int(status), success=status is Status.CONVERGED,
            message=self.detail or MESSAGES[status], nfev=self.problem.nfev, njev=self.problem.njev,
            nhev=self.problem.nhev,
        )  # fmt: skip
        return found

    def step(self) -> Progress:
        """One iteration; one that cannot be made reports a value that the driver does not keep."""
        p, lam = self.point, self.lam
        n = self.problem.n
        H = self.problem.hessian(p.x, lam)
        if not np.isfinite(H.data if sparse.issparse(H) else H).all():
            return self._stop(Status.NONFINITE)
        H, G = alike(H, p.G)
        sigma_min, _, dependent = self._singular_values(G)
        if dependent:
            return self._stop(Status.RANK)
        B, shift = self._shifted(H, G)

        b = -np.concatenate([lagrangian_gradient(p, lam), p.c])
        norm_b = float(np.linalg.norm(b))
        Gamma = kkt_matrix(B, G)
        A, D = equilibrated(Gamma)
        solver = make_solver(
            A, D * b, np.zeros(len(b)), self.sketch, self.sketch_size, self.acceleration, self.rng, grow=self.grow
        )
        theta, factor = self._theta(), 1.0
        Psi = 20 * max(frobenius(B) ** 2, 1) / (min(sigma_min**2, 1) * min(self.xi_B, 1))
        Upsilon = max(frobenius(G), frobenius(H), 1)
        if self.accuracy == "paper":
            factor = frobenius(Gamma) * Psi
            self._cap_delta(Psi, Upsilon)

        while True:
            target = max(theta * self.delta / factor, ROUNDING) * norm_b
            try:
                residual = solve(solver, Gamma, b, D, target, self.inner_maxiter)
            except RuntimeError:  # the sparse factorization met a pivot of zero
                return self._stop(Status.RANK)
            if residual > target and not solver.exact:
                return self._stop(
                    Status.MAXITER,
                    "The sketches of one iteration ran out; raise inner_maxiter or sketch_size.",
                )
            z = D * solver.z
            slope = float(merit_gradient(p, lam, H, self.eta1, self.eta2) @ z)
            if slope <= -self.eta2 / 2 * norm_b**2:
                break
            self.eta1, self.eta2, self.delta = (
                self.eta1 * self.nu**2, self.eta2 / self.nu, self.delta / self.nu**4,
            )  # fmt: skip
            if self.accuracy == "paper":
                self._cap_delta(Psi, Upsilon)
            if not np.isfinite(slope) or self.eta1 > ETA1_MAX or self.eta2 < ETA2_MIN:
                return self._stop(Status.PENALTIES)

        before = merit(p, lam, self.eta1, self.eta2)
        rounding = self._rounding(p, lam)
        slack = rounding if -self.armijo * slope <= 10 * rounding else 0.0
        alpha, any_finite = 1.0, False
        while True:
            values, trial_lam = self.problem.values(p.x + alpha * z[:n]), lam + alpha * z[n:]
            bound = before + self.armijo * alpha * slope + slack
            after = merit_floor(values.f, values.c, trial_lam, self.eta1)
            if after <= bound:  # otherwise rejected without derivatives
                trial = self.problem.point(values)
                after = merit(trial, trial_lam, self.eta1, self.eta2) if trial.finite else math.nan
            any_finite = any_finite or math.isfinite(after)
            if after <= bound:
                break
            alpha /= 2
            if alpha < ALPHA_MIN:
                return self._stop(Status.LINE_SEARCH if any_finite else Status.NONFINITE)
        self.point, self.lam, self.k = trial, trial_lam, self.k + 1
        kkt = self._kkt()
        if self.disp:
            _log.info(
                "iteration %d: fun %.6g, kkt %.2e, step %.2g, %d sketches", self.k, trial.f, kkt, alpha, solver.steps
            )
        return Progress(
            trial.x, trial.f, Stop.CONVERGED if kkt <= self.tol else None,
            {
                "kkt": kkt, "alpha": alpha, "inner": solver.steps, "residual": residual / norm_b, "eta1": self.eta1,
                "eta2": self.eta2, "delta": self.delta, "slope": slope, "merit": before, "merit_new": after,
                "shift": shift, "sketch_size": solver.size, "exact_fallback": int(solver.exact),
            },
        )  # fmt: skip

    def _stop(self, status: Status, detail: str = "") -> Progress:
        self.stopped, self.detail = status, detail
        return Progress(self.point.x, math.nan)

    def _kkt(self) -> float:
        return float(np.linalg.norm(np.concatenate([lagrangian_gradient(self.point, self.lam), self.point.c])))

    def _singular_values(self, G: Matrix) -> tuple[float, float, bool]:
        """Singular values of G, kept while the Jacobian is the same object (linear constraints)."""
        if self.geometry is None or self.geometry[0] is not self.point.G:
            self.geometry = (self.point.G, singular_values(G, int(self.rng.integers(2**31))))
        return self.geometry[1]

    def _shifted(self, H: Matrix, G: Matrix) -> tuple[Matrix, float]:
        """Shift H until it is positive definite on the null space of G."""
        if reduced_smallest(H, G, int(self.rng.integers(2**31))) >= POSITIVE:
            return H, 0.0
        shift = self.xi_B + frobenius(H)
        eye = sparse.eye_array(H.shape[0], format="csr") if sparse.issparse(H) else np.eye(H.shape[0])
        return H + shift * eye, shift

    def _theta(self) -> float:
        if not callable(self.theta):
            return self.theta
        value = self.theta(self.k)
        check("theta", value, THETA)
        return float(value)

    def _cap_delta(self, Psi: float, Upsilon: float) -> None:
        """Bound delta as the paper's analysis does (its Eq. for delta_k), with the official floor."""
        cap = (0.5 - self.armijo) * self.eta2 / ((1 + self.eta1 + self.eta2) * Upsilon**2 * Psi**2)
        self.delta = max(min(self.delta, cap), DELTA_FLOOR)

    def _rounding(self, p: Point, lam: Vector) -> float:
        """Estimate the rounding error of M: 100 units in the last place of the sum of its terms."""
        gL = lagrangian_gradient(p, lam)
        terms = abs(p.f) + np.abs(lam) @ np.abs(p.c) + self.eta1 / 2 * (p.c @ p.c) + self.eta2 / 2 * (gL @ gL)
        return 100 * float(np.finfo(float).eps * terms)

    def _telling(self, callback: Callable[..., Any]) -> Callable[..., Any]:
        """Add the multipliers to what the callback is told."""
        tell = told(callback)

        def tell_step(intermediate_result: OptimizeResult) -> None:
            intermediate_result.x = intermediate_result.x.copy()
            intermediate_result.lam = self.lam.copy()
            tell(intermediate_result)

        return tell_step


def _vector(name: str, value: Any) -> Vector:
    found = np.array(value, dtype=float)
    found = found.reshape(1) if found.ndim == 0 else found
    if found.ndim != 1 or found.size == 0:
        raise value_error(name, "a vector", found)
    if not np.isfinite(found).all():
        raise value_error(name, "finite", value)
    return found
