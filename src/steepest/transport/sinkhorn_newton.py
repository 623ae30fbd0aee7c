"""Entropic optimal transport to machine precision: Sinkhorn sweeps first, then Newton steps on a sparse Hessian.

    min_P <P, M> + reg sum P (log P - 1)   subject to   P 1 = a,  P' 1 = b

With potentials u, v (logarithms of Sinkhorn's scalings) and C = M / reg the plan is P = exp(u + v' - C). It maximizes

    D(u, v) = a'u + b'v - sum P,      gradient (a - P 1, b - P' 1),      -Hessian H = [[diag(P 1), P], [P', diag(P' 1)]]

    1. n_sinkhorn sweeps  u <- log a - LSE_j(v_j - C_ij),  v <- log b - LSE_i(u_i - C_ij)
    2. repeat  B = P without its small entries;   A = [[diag(P 1), B], [B', diag(P' 1)]]
               A dz = (a - P 1, b - P' 1) by conjugate gradients;   z <- z + t dz, t by backtracking on D

The diagonal blocks of A keep the full marginals, so that A is diagonally dominant whatever was left out. Near a
solution P is nearly sparse for small reg, and a step costs O(n m) as a sweep does.

Paper: Tang et al. [tang2024accelerating]_, Algorithm 1.

========================= ==========================================================================================
eta                       1 / reg
x, y                      u, v times reg (f, g); the paper's "-1" in the exponent shifts them by a constant
lambda                    `sparsity`, counted over the n x m block
N1                        `n_sinkhorn`
========================= ==========================================================================================

Departures. (1) `adaptive`: the threshold falls until the mass that is left out is a share of the error; a fixed number
of entries stalls on most problems. (2) `anneal`: the sweeps go through decreasing entropies, and go on where they
converge fast. (3) `damping`: a multiple of the diagonal that vanishes with the error; and, where a full step gains
little, the path is curved along the strongest links of the plan (``_curve``) and ends in one sweep. (4) Where conjugate
gradients do not converge the system is factored. The paper's method, without all these, is
``anneal=None, adaptive=False, damping=0.0, linear_solver="cg"``.
(5) Conjugate gradients run on the system without its longer block, which halves their number.
(6) After the sweeps the potentials are absorbed into C, so that the marginals are exact beyond the rounding of M / reg.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse

from steepest.core.errors import ConvergenceWarning, value_error
from steepest.core.parallel import ordered_map
from steepest.transport._arguments import Options, Reduced, as_problems, double, reduce_problem
from steepest.transport._curve import Curve
from steepest.transport._implicit import differentiable_plan
from steepest.transport._kernel import LARGEST, Kernel, sinkhorn_sweeps
from steepest.transport._newton_system import largest_entries, newton_direction

__all__ = ["sinkhorn_newton_sparse", "sinkhorn_newton_sparse_many"]

Array = NDArray[np.float64]

N_SINKHORN = 20  # Sec. 6
SAFEGUARD_SWEEPS = 10
ARMIJO, HALVINGS, GOOD = 1e-4, 40, 0.25  # a quadratic gains half the slope


def sinkhorn_newton_sparse(
    a: Any,
    b: Any,
    M: Any,
    reg: float,
    *,
    n_sinkhorn: int | None = None,
    anneal: float | Literal[False] | None = 4.0,
    sparsity: float | None = None,
    adaptive: bool = True,
    forcing: float = 0.1,
    damping: float = 1e-3,
    linear_solver: Literal["auto", "cg", "direct"] = "auto",
    cg_tol: float = 1e-6,
    cg_maxiter: int | None = None,
    numItermax: int = 1000,
    stopThr: float = 1e-9,
    warmstart: tuple[Any, Any] | None = None,
    verbose: bool = False,
    log: bool = False,
    warn: bool = True,
) -> Any:
    """Solve an entropic transport problem by Sinkhorn sweeps and sparse Newton steps.

    Arguments and result are those of ``ot.sinkhorn``; NumPy in, NumPy out, and the same for tensors. The plan can be
    differentiated: where `a`, `b` or `M` is a tensor that requires a gradient, the backward pass solves one system.

    Parameters
    ----------
    a, b : array or tensor (n,), (m,) or (B, n), (B, m); or [] or None
        Weights >= 0 of equal total mass (to 1e-6; `b` is rescaled to the mass of `a`). [] or None: uniform, mass 1.
    M : array or tensor (n, m) or (B, n, m)
        Costs. A tensor must lie on the CPU. The computation is in double precision; the plan is rounded to M's dtype.
    reg : float
        Weight of the entropy, in units of `M`.
    n_sinkhorn : int, optional
        Sweeps at each entropy of the warm-up: 20 (the paper's; 700 there for cityblock costs), 0 with `warmstart`.
    anneal : float > 1, or None
        The warm-up takes reg_k = (max M - min M) / anneal^k until reg. None: reg alone, as in the paper. Ours: chosen
        by the study. Ignored with `warmstart`.
    sparsity : float in (0, 1], optional
        Share of the entries kept in the Hessian, 2 / max(n, m) by default (Sec. 6; 15 / n there for cityblock costs).
    adaptive : bool
        Keep more until the mass left out is at most `forcing` times the error; all of them beyond 20 %.
    forcing : float
        See `adaptive`.
    damping : float
        The diagonal is multiplied by 1 + mu min(1, err), mu = `damping` at first; mu falls after full steps and grows
        after short ones. 0: none, and straight Newton steps only, as in the paper.
    linear_solver : "auto", "cg" or "direct"
        Conjugate gradients, factored where they do not converge (and from then on, for this problem); or one of both.
    cg_tol : float
        Relative residual, preconditioned by the diagonal.
    cg_maxiter : int, optional
        Iterations for each step. For "cg" 20 (n + m); for "auto" about what a factorization costs, at most
        max(500, n + m).
    numItermax : int
        Budget of sweeps and Newton steps together.
    stopThr : float
        On err = (sum |P 1 - a| + sum |P' 1 - b|) / mass.
    warmstart : (log_u, log_v), optional
        Potentials to start from, as in the log of an earlier solve (batches: of the first axis).
    verbose : bool
        Print a line for each Newton step.
    log : bool
        Also return a dict.
    warn : bool
        Warn where the tolerance was not met.

    Returns
    -------
    plan : array or tensor (n, m) or (B, n, m)
        Of M's kind and dtype. Rows and columns of zero weight are zero.
    log : dict
        ``err`` after every sweep and Newton step (during the warm-up at its entropies), ``err_newton`` before the first
        and after every Newton step, ``niter`` = ``n_sinkhorn`` + ``n_newton``, ``n_safeguard``, ``n_direct``; for every
        Newton step ``cg_iterations``, ``sparsity`` (share kept), ``step_size`` (0: safeguarded); ``log_u``, ``log_v``
        (double precision, -inf at zero weights), ``u``, ``v`` (their exponentials, may overflow), ``cost`` = <P, M>,
        ``dual`` = reg D, ``converged``, ``warn``. For a batch every entry is a list.

    Raises
    ------
    ValueError
        A value that is not allowed; the message names it.
    TypeError
        Arrays mixed with tensors, tensors that are not on the CPU.

    Warns
    -----
    ConvergenceWarning
        The budget ended before the tolerance was met; the best iterate is returned.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.linspace(0, 1, 50)
    >>> plan, log = sinkhorn_newton_sparse([], [], (x[:, None] - x**2) ** 2, reg=1e-3, stopThr=1e-12, log=True)
    >>> bool(np.abs(plan.sum(axis=1) - 1 / 50).sum() < 1e-12), log["n_newton"] < 10
    (True, True)
    """
    options = Options.checked(
        reg=reg, n_sinkhorn=n_sinkhorn, anneal=anneal, sparsity=sparsity, adaptive=adaptive, forcing=forcing,
        damping=damping, linear_solver=linear_solver, cg_tol=cg_tol, cg_maxiter=cg_maxiter, numItermax=numItermax,
        stopThr=stopThr, verbose=verbose, log=log, warn=warn,
    )  # fmt: skip
    problems, is_batch = as_problems(a, b, M)
    starts: list[Any] = [warmstart] * len(problems)
    if warmstart is not None:
        if not (isinstance(warmstart, tuple | list) and len(warmstart) == 2):
            raise value_error("warmstart", "a pair (log_u, log_v)", warmstart)
        if is_batch:
            starts = list(zip(*warmstart, strict=True))
            if len(starts) != len(problems):
                raise value_error("warmstart", f"for {len(problems)} problems", len(starts))
    plans, logs = [], []
    for problem, start in zip(problems, starts, strict=True):
        plan, record = _solve_one(*problem, options, start)
        plans.append(plan)
        logs.append(record)
    if not is_batch:
        return (plans[0], logs[0]) if log else plans[0]
    stacked = torch.stack(plans) if isinstance(plans[0], torch.Tensor) else np.stack(plans)
    return (stacked, {key: [record[key] for record in logs] for key in logs[0]}) if log else stacked


def sinkhorn_newton_sparse_many(
    problems: Iterable[tuple[Any, Any, Any]],
    reg: float,
    *,
    backend: Literal["serial", "processes", "ray"] = "serial",
    num_workers: int | None = None,
    **options: Any,
) -> list[tuple[Any, dict[str, Any]]]:
    """Solve many problems of any sizes, spread over workers; the numbers do not depend on the backend.

    Parameters
    ----------
    problems : iterable of (a, b, M)
        As for `sinkhorn_newton_sparse`. Tensors that require gradients only with ``backend="serial"``.
    reg : float
    backend : "serial", "processes" or "ray"
    num_workers : int, optional
        The number of cores by default.
    **options
        Those of `sinkhorn_newton_sparse`, except `log`.

    Returns
    -------
    list of (plan, log)
        In the order of the problems.

    Raises
    ------
    MissingExtra
        ``backend="ray"`` without Ray.

    Examples
    --------
    >>> import numpy as np
    >>> M = np.array([[0.0, 1.0], [1.0, 0.0]])
    >>> [log["converged"] for _, log in sinkhorn_newton_sparse_many([([], [], M), ([], [], M)], 0.1)]
    [True, True]
    """
    if "log" in options:
        raise TypeError("log is not an option here: a log is returned for every problem")
    items = [(problem, reg, options) for problem in problems]
    return ordered_map(_solve_item, items, backend=backend, n_workers=num_workers)


def _solve_item(item: tuple[tuple[Any, Any, Any], float, dict[str, Any]]) -> tuple[Any, dict[str, Any]]:
    problem, reg, options = item
    plan, log = sinkhorn_newton_sparse(*problem, reg, log=True, **options)
    return plan, log


# ---------------------------------------------------------------------------------------------------------- one problem


def _solve_one(a: Any, b: Any, M: Any, options: Options, warmstart: Any) -> tuple[Any, dict[str, Any]]:
    """Solve in double precision, hand back in the caller's kind."""
    reduced = reduce_problem(a, b, M, options.reg)
    n, m = reduced.shape
    record: dict[str, Any] = {}

    def solve() -> tuple[Array, Array, Array]:
        run = _Run(reduced, options, _start(reduced, warmstart))
        inner, u, v = run.solve()
        inner *= reduced.mass
        plan = inner if inner.shape == (n, m) else np.zeros((n, m))
        if plan is not inner:
            plan[np.ix_(reduced.rows, reduced.columns)] = inner
        log_u, log_v = np.full(n, -np.inf), np.full(m, -np.inf)
        log_u[reduced.rows] = u + (np.log(reduced.mass) + reduced.offset)
        log_v[reduced.columns] = v
        record.update(run.log)
        dual = reduced.mass * (reduced.a @ log_u[reduced.rows] + reduced.b @ v) - plan.sum()
        record["cost"] = float(np.vdot(plan, double(M)))
        record["dual"] = float(options.reg * dual)
        return plan, log_u, log_v

    if isinstance(M, torch.Tensor) and any(x.requires_grad for x in (a, b, M)) and torch.is_grad_enabled():
        kept: list[Array] = []

        def solve_and_keep() -> tuple[Array, Array, Array]:
            found = solve()
            kept.extend(found[1:])
            return found

        result: Any = differentiable_plan(a, b, M, options.reg, solve_and_keep)
        log_u, log_v = kept
    else:
        plan, log_u, log_v = solve()
        result = torch.from_numpy(plan).to(M.dtype) if isinstance(M, torch.Tensor) else plan.astype(M.dtype, copy=False)
    record["log_u"], record["log_v"] = log_u, log_v
    with np.errstate(over="ignore"):
        record["u"], record["v"] = np.exp(log_u), np.exp(log_v)
    if isinstance(M, torch.Tensor):
        record.update((key, torch.from_numpy(record[key])) for key in ("log_u", "log_v", "u", "v"))
    if options.warn and not record["converged"]:
        warnings.warn(
            f"err is {record['err_newton'][-1]:.2e} after numItermax={options.numItermax} sweeps and steps, "
            f"stopThr={options.stopThr:g} was not met; raise numItermax, stopThr or reg",
            ConvergenceWarning,
            stacklevel=4,
        )
    return result, record


def _start(problem: Reduced, warmstart: Any) -> tuple[Array, Array] | None:
    """The caller's potentials, for the problem of mass one and least cost zero."""
    if warmstart is None:
        return None
    found = []
    for name, x, size, kept in (
        ("log_u", warmstart[0], problem.shape[0], problem.rows),
        ("log_v", warmstart[1], problem.shape[1], problem.columns),
    ):
        values = double(x)
        if values.shape != (size,):
            raise value_error(f"warmstart's {name}", f"of shape ({size},)", values)
        if not np.isfinite(values[kept]).all():
            raise value_error(f"warmstart's {name}", "finite where weights are positive", values)
        found.append(values[kept])
    return found[0] - (np.log(problem.mass) + problem.offset), found[1]


@dataclass
class _Point:
    """A pair of potentials (less those absorbed in C) with the marginals of its plan."""

    u: Array
    v: Array
    r: Array
    c: Array
    err: float
    gain: float = 0.0  # of D over the point it was tried from
    before: float | None = None  # err before the sweep that ended here


@dataclass
class _Run:
    """The method on one problem of mass one; `log` is filled on the way."""

    problem: Reduced
    options: Options
    start: tuple[Array, Array] | None
    log: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.a, self.b = self.problem.a, self.problem.b
        self.kernel = Kernel(self.problem.C)
        self.sweeps = self.steps = 0
        lists = ("err", "err_newton", "cg_iterations", "sparsity", "step_size")
        self.log.update({name: [] for name in lists} | {"n_safeguard": 0, "n_direct": 0})

    def solve(self) -> tuple[Array, Array, Array]:
        """Plan and potentials."""
        o, log = self.options, self.log
        absorbed_u, absorbed_v = self._warm_up()
        self.kernel.shift(absorbed_u, absorbed_v)
        point = self._point(np.zeros_like(self.a), np.zeros_like(self.b))
        if point is None:  # a start so far off that exp overflows
            point = self._swept(np.zeros_like(self.b), 1)
            log["err"].append(point.err)
        best, mu = point, o.damping
        log["err_newton"].append(point.err)
        while point.err >= o.stopThr and self.sweeps + self.steps < o.numItermax:
            point, mu = self._step(point, mu)
            log["err"].append(point.err)
            log["err_newton"].append(point.err)
            best = point if point.err < best.err else best
            if o.verbose:
                last = [log[name][-1] for name in ("sparsity", "cg_iterations", "step_size")]
                print(f"{self.steps:4d}  err {point.err:.2e}  kept {last[0]:.4f}  cg {last[1]}  step {last[2]:.3g}")
        if best is not point:
            self.kernel.fill(best.u, best.v)
            log["err_newton"][-1] = best.err
        log["n_sinkhorn"], log["n_newton"] = self.sweeps, self.steps
        log["niter"] = self.sweeps + self.steps
        log["converged"] = bool(best.err < o.stopThr)
        log["warn"] = not log["converged"]
        return self.kernel.P, absorbed_u + best.u, absorbed_v + best.v

    # --------------------------------------------------------------------------------------------------- the two stages

    def _warm_up(self) -> tuple[Array, Array]:
        """Sweeps at decreasing entropies, reg / scale; the potentials f = u reg are passed on."""
        o = self.options
        u, v = (np.log(self.a), np.log(self.b)) if self.start is None else self.start
        n_sinkhorn = (N_SINKHORN if self.start is None else 0) if o.n_sinkhorn is None else o.n_sinkhorn
        scales, top = [1.0], float(self.problem.C.max())
        if o.anneal is not None and self.start is None and top > 1:
            count = int(np.ceil(np.log(top) / np.log(o.anneal) - 0.5))  # none within sqrt(anneal) of reg itself
            scales = [o.anneal**k / top for k in range(count)] + scales
        for k, scale in enumerate(scales):
            n = min(n_sinkhorn, o.numItermax - self.sweeps)
            if n < 1:
                break
            if k:
                v = v * (scale / scales[k - 1])
            u, v, errors = sinkhorn_sweeps(self.kernel, self.a, self.b, v, n, scale, o.stopThr)
            self.sweeps += len(errors)
            self.log["err"] += errors
        else:
            scale = 1.0
            if o.anneal is not None and n_sinkhorn > 1 and self.start is None:
                u, v = self._go_on(u, v, n_sinkhorn)
        return u / scale, v / scale

    def _go_on(self, u: Array, v: Array, n: int) -> tuple[Array, Array]:
        """Sweep on where the rate of the last sweeps promises the tolerance within twice as many again."""
        o, err = self.options, self.log["err"]
        budget = min(2 * n, o.numItermax - self.sweeps)
        if err[-1] > o.stopThr > 0 and budget > 0 and err[-1] * (err[-1] / err[-2]) ** budget < o.stopThr:
            u, v, errors = sinkhorn_sweeps(self.kernel, self.a, self.b, v, budget, stop=0.9 * o.stopThr)
            self.sweeps += len(errors)
            err += errors
        return u, v

    def _step(self, point: _Point, mu: float) -> tuple[_Point, float]:
        """One Newton step from `point`, whose plan the kernel holds."""
        o, log = self.options, self.log
        self.steps += 1
        sparsity = 2 / max(self.kernel.P.shape) if o.sparsity is None else o.sparsity
        kept = largest_entries(self.kernel.P, min(sparsity, 1.0), o.forcing * point.err if o.adaptive else None)
        B = kept.matrix()
        g, h = self.a - point.r, self.b - point.c
        solver = "direct" if o.linear_solver == "auto" and log["n_direct"] else o.linear_solver
        du, dv, n_cg, direct = newton_direction(
            B, point.r, point.c, g, h, damping=mu * min(1.0, point.err), solver=solver, cg_tol=o.cg_tol,
            cg_maxiter=o.cg_maxiter,
        )  # fmt: skip
        log["sparsity"].append(kept.density)
        log["cg_iterations"].append(n_cg)
        log["n_direct"] += direct
        slope = float(g @ du + h @ dv)
        found, t = self._search(point, B, du, dv, slope) if slope > 0 else (None, 0.0)
        log["step_size"].append(t)
        if found is None:
            log["n_safeguard"] += 1
            n = min(SAFEGUARD_SWEEPS, o.numItermax - self.sweeps - self.steps)
            found = self._swept(point.v, max(n, 1))
            return found, min(max(mu, 1e-12) * 100, 100.0) if o.damping else 0.0
        if found.before is not None:
            self.sweeps += 1
            log["err"].append(found.before)
        if t == 1:
            mu /= 10
        elif t < 0.1:
            mu = min(10 * mu, 10.0)
        return found, mu

    def _search(self, point: _Point, B: Any, du: Array, dv: Array, slope: float) -> tuple[_Point | None, float]:
        """Backtrack on D: the straight step where it is good, else along the curve; the kernel holds what is found."""
        full = self._point(point.u + du, point.v + dv, point)
        if full is not None and self._accepted(full, point, slope, ARMIJO if self.options.damping == 0 else GOOD):
            return full, 1.0
        if full is not None and not self._accepted(full, point, slope):
            full = None
        curve = Curve(B, du, dv) if self.options.damping > 0 and sparse.issparse(B) else None
        for k in range(HALVINGS + 1) if curve is not None else range(1, HALVINGS + 1):
            t = 0.5**k
            pu, pv = (t * du, t * dv) if curve is None else curve(t)
            trial = self._point(point.u + pu, point.v + pv, point, sweep=curve is not None)
            if trial is not None and self._accepted(trial, point, t * slope):
                if full is None or trial.gain > full.gain:
                    return trial, t
                break
        self.kernel.fill(point.u + du if full is not None else point.u, point.v + dv if full is not None else point.v)
        return full, float(full is not None)

    def _accepted(self, trial: _Point, point: _Point, slope: float, share: float = ARMIJO) -> bool:
        """Armijo's condition; below the rounding error of D, a smaller error without a smaller D."""
        rounding = 1e-12 * abs(float(self.a @ point.u + self.b @ point.v - point.r.sum()))
        return trial.gain >= share * slope or (trial.err <= 0.9 * point.err and trial.gain >= -rounding)

    # ------------------------------------------------------------------------------------------------------ evaluations

    def _point(self, u: Array, v: Array, origin: _Point | None = None, sweep: bool = False) -> _Point | None:
        """Evaluate the plan at (u, v), after one more sweep if asked; None where it is not finite or overflows."""
        if not (np.isfinite(u).all() and np.isfinite(v).all()):
            return None
        if not self.kernel.fill(u, v, limit=LARGEST):
            return None
        r, c = self.kernel.marginals()
        before = float(np.abs(self.a - r).sum() + np.abs(self.b - c).sum()) if sweep else None
        if sweep:
            with np.errstate(all="ignore"):
                x = self.a / r
                y = self.b / (x @ self.kernel.P)
            if not (np.isfinite(x).all() and np.isfinite(y).all()):
                return None
            u, v = u + np.log(x), v + np.log(y)
            if not (np.isfinite(u).all() and np.isfinite(v).all() and self.kernel.fill(u, v, limit=LARGEST)):
                return None
            r, c = self.kernel.marginals()
        err = float(np.abs(self.a - r).sum() + np.abs(self.b - c).sum())
        gain = 0.0
        if origin is not None:  # differences of sums lose fewer digits than the difference of two values of D
            moved = float(self.a @ (u - origin.u) + self.b @ (v - origin.v))
            gain = moved - float(r.sum() - origin.r.sum())
        return _Point(u, v, r, c, err, gain, before) if np.isfinite(err) else None

    def _swept(self, v: Array, n: int) -> _Point:
        """The point after `n` sweeps from `v`; the exponents of a swept plan are at most log(b)."""
        u, v, errors = sinkhorn_sweeps(self.kernel, self.a, self.b, v, n)
        self.sweeps += len(errors)
        self.log["err"] += errors[:-1]
        self.kernel.fill(u, v)
        r, c = self.kernel.marginals()
        return _Point(u, v, r, c, float(np.abs(self.a - r).sum() + np.abs(self.b - c).sum()))
