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
of entries stalls on most problems. (2) `anneal`: the two stages are repeated along decreasing entropies t = reg_k, with
loose tolerances before the last. As t falls, potentials t u(t) tend to a straight line exponentially fast (Cominetti
and San Martin, Math. Programming 67, 1994, for linear programs), so that each entropy starts on the line through the
last two. (3) `damping`: a multiple of the diagonal that vanishes with the error; and, where a full step gains little,
the path is curved along the strongest links of the plan (``_curve``) and ends in one sweep. (4) Where conjugate
gradients do not converge the system is factored, and, with `damping`, parts of the plan that weak links connect are
shifted to their best places before each step (``_parts``): a small problem that reads the plan once. The paper's
method, without all these, is ``anneal=None, adaptive=False, damping=0.0, linear_solver="cg"``.
(5) Conjugate gradients run on the system without its longer block, which halves their number.
(6) At reg itself the swept potentials are absorbed into C, so that the marginals are exact beyond the rounding of
M / reg.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from steepest.core.parallel import ordered_map
from steepest.transport._arguments import Options, Reduced
from steepest.transport._callers import solve_all
from steepest.transport._curve import Curve
from steepest.transport._dual import Dual, Point
from steepest.transport._kernel import sinkhorn_sweeps
from steepest.transport._newton_system import Entries, largest_entries, newton_direction
from steepest.transport._parts import Parts, strongest_links

__all__ = ["sinkhorn_newton_sparse", "sinkhorn_newton_sparse_many"]

Array = NDArray[np.float64]
Log = dict[str, Any]

N_SINKHORN = 20  # Sec. 6
N_ANNEALED, STAGE_STOP = 10, 1e-3  # ours, chosen on other seeds than the study's: docs/methods/sinkhorn-newton.md
FACTORED = 1e-4  # a factorization costs as much with more entries, and links that weak decide the last digits
PARTS = 32, 128  # ours, chosen on seeds 11, 12 and 14 of the study's densities under plain distance
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
        Sweeps at each entropy, at most: 10 along a path of entropies, 20 without (the paper's; 700 there for cityblock
        costs), 0 with `warmstart`.
    anneal : float > 1, or None
        The path takes reg_k = (max M - min M) / anneal^k until reg, each to an error of 1e-3. None: reg alone, as in
        the paper. Ours: chosen by experiment. Ignored with `warmstart`.
    sparsity : float in (0, 1], optional
        Share of the entries kept in the Hessian, 2 / max(n, m) by default (Sec. 6; 15 / n there for cityblock costs).
    adaptive : bool
        Keep more until the mass left out is at most `forcing` times the error; all of them beyond 20 %.
    forcing : float
        See `adaptive`; times 1e-4 where the system is factored.
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
        ``err`` after every sweep and Newton step (each at its entropy), ``err_newton`` before the first Newton step at
        reg itself and after every one, ``niter`` = ``n_sinkhorn`` + ``n_newton``, ``n_safeguard``, ``n_direct``,
        ``n_parts`` (Newton steps on the shifts of some 128 parts, which `niter` does not count); for every Newton step
        ``cg_iterations``, ``sparsity`` (share kept), ``step_size`` (0: safeguarded); ``log_u, log_v`` (double
        precision, -inf at zero weights), ``u``, ``v`` (their exponentials, may overflow), ``cost`` = <P, M>, ``dual`` =
        reg D, ``converged``, ``warn``. For a batch every entry is a list.

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
    return solve_all(a, b, M, options, warmstart, _solve)


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


def _solve(problem: Reduced, options: Options, start: tuple[Array, Array] | None) -> tuple[Array, Array, Array, Log]:
    run = _Run(problem, options, start)
    return (*run.solve(), run.log)


class _Run:
    """The method on one problem of mass one; `log` is filled on the way."""

    def __init__(self, problem: Reduced, options: Options, start: tuple[Array, Array] | None) -> None:
        self.options, self.start = options, start
        self.dual = Dual(problem.a, problem.b, problem.C)
        self.sweeps = self.steps = 0
        self.path: list[tuple[float, Array, Array]] = []  # entropy in units of reg, potentials in its units
        lists = ("err", "err_newton", "cg_iterations", "sparsity", "step_size")
        self.log: Log = {name: [] for name in lists} | {"n_safeguard": 0, "n_direct": 0, "n_parts": 0}

    def solve(self) -> tuple[Array, Array, Array]:
        """Plan and potentials: at every entropy of the path some sweeps, then Newton steps."""
        o, log, dual = self.options, self.log, self.dual
        n_sinkhorn = self._n_sinkhorn() if o.n_sinkhorn is None else o.n_sinkhorn
        u, v = (np.log(dual.a), np.log(dual.b)) if self.start is None else self.start
        for t in self._entropies():
            stop = max(o.stopThr, STAGE_STOP) if t > 1 else o.stopThr
            dual.scale = 1 / t
            if self.path:
                u, v = self._predicted(t)
            u, v = self._swept_up(u, v, n_sinkhorn, stop)
            if t == 1:
                dual.kernel.shift(u, v)
                absorbed_u, absorbed_v, u, v = u, v, np.zeros_like(u), np.zeros_like(v)
            point = self._descend(u, v, stop)
            self.path.append((t, t * point.u, t * point.v))
        log["n_sinkhorn"], log["n_newton"] = self.sweeps, self.steps
        log["niter"] = self.sweeps + self.steps
        log["converged"] = bool(point.err < o.stopThr)
        log["warn"] = not log["converged"]
        return dual.kernel.P, absorbed_u + point.u, absorbed_v + point.v

    @property
    def left(self) -> int:
        """Sweeps and steps that the budget still allows."""
        return self.options.numItermax - self.sweeps - self.steps

    # --------------------------------------------------------------------------------------------------- along the path

    def _n_sinkhorn(self) -> int:
        if self.start is not None:
            return 0
        return N_SINKHORN if self.options.anneal is None else N_ANNEALED

    def _entropies(self) -> list[float]:
        """In units of reg: from the range of the costs down to 1, none within sqrt(anneal) of it."""
        factor, top = self.options.anneal, float(self.dual.kernel.C.max())
        if factor is None or self.start is not None or top <= 1:
            return [1.0]
        count = int(np.ceil(np.log(top) / np.log(factor) - 0.5))
        return [*(top / factor**k for k in range(count)), 1.0]

    def _predicted(self, t: float) -> tuple[Array, Array]:
        """Potentials on the line through the last two: as the entropy falls they tend to one, exponentially fast."""
        t1, f, g = self.path[-1]
        if len(self.path) > 1 and self.left > 0:
            t0, f0, g0 = self.path[-2]
            share = (t1 - t) / (t0 - t1)
            f, g = f + share * (f - f0), g + share * (g - g0)
        return f / t, g / t

    def _swept_up(self, u: Array, v: Array, n: int, stop: float) -> tuple[Array, Array]:
        """Sweep `n` times, at reg itself on where the rate promises the tolerance within twice as many again."""
        n = min(n, self.left)
        if n > 0:
            u, v = self._sweep(v, n, stop)
        more, err = min(2 * n, self.left), self.log["err"]
        if self.options.anneal is None or self.dual.scale < 1 or n < 2 or more < 1 or not err[-1] > stop > 0:
            return u, v
        if err[-1] * (err[-1] / err[-2]) ** more < stop:
            u, v = self._sweep(v, more, 0.9 * stop)
        return u, v

    def _sweep(self, v: Array, n: int, stop: float) -> tuple[Array, Array]:
        dual = self.dual
        u, v, errors = sinkhorn_sweeps(dual.kernel, dual.a, dual.b, v, n, dual.scale, stop)
        self.sweeps += len(errors)
        self.log["err"] += errors
        return u, v

    # ----------------------------------------------------------------------------------------------------- Newton steps

    def _descend(self, u: Array, v: Array, stop: float) -> Point:
        """Newton steps until err < stop; the best point, whose plan the kernel holds."""
        o, log, dual = self.options, self.log, self.dual
        point = dual.at(u, v)
        if point is None:  # a start so far off that exp overflows
            point = self._swept(v, 1)
            log["err"].append(point.err)
        best, mu = point, o.damping
        log["err_newton"] = [point.err]
        while point.err >= stop and self.left > 0:
            point, mu = self._step(point, mu)
            log["err"].append(point.err)
            log["err_newton"].append(point.err)
            best = point if point.err < best.err else best
            if o.verbose:
                last = [log[name][-1] for name in ("sparsity", "cg_iterations", "step_size")]
                print(f"{self.steps:4d}  err {point.err:.2e}  kept {last[0]:.4f}  cg {last[1]}  step {last[2]:.3g}")
        if best is not point:
            dual.fill(best)
            log["err_newton"][-1] = best.err
        return best

    def _step(self, point: Point, mu: float) -> tuple[Point, float]:
        """One Newton step from `point`, whose plan the kernel holds."""
        o, log, dual = self.options, self.log, self.dual
        self.steps += 1
        kept = self._kept(point)
        B = kept.matrix()
        if log["n_direct"] and o.damping > 0 and sparse.issparse(B):
            point = self._shifted(point, B)
            kept = self._kept(point)
            B = kept.matrix()
        g, h = dual.a - point.r, dual.b - point.c
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
            found = self._swept(point.v, max(min(SAFEGUARD_SWEEPS, self.left), 1))
            return found, min(max(mu, 1e-12) * 100, 100.0) if o.damping else 0.0
        if found.before is not None:
            self.sweeps += 1
            log["err"].append(found.before)
        if t == 1:
            mu /= 10
        elif t < 0.1:
            mu = min(10 * mu, 10.0)
        return found, mu

    def _kept(self, point: Point) -> Entries:
        """The large entries of the plan at `point`, which the kernel holds."""
        o, P = self.options, self.dual.kernel.P
        sparsity = 2 / max(P.shape) if o.sparsity is None else o.sparsity
        forcing = o.forcing * (FACTORED if self.log["n_direct"] else 1.0)
        return largest_entries(P, min(sparsity, 1.0), forcing * point.err if o.adaptive else None)

    def _shifted(self, point: Point, B: Any) -> Point:
        """Parts that weak links connect find their place before the step; the kernel holds the plan."""
        dual, tree = self.dual, strongest_links(B)
        for count in PARTS:
            du, dv, steps = Parts(tree, len(dual.a), count).shifts(dual.kernel.P, dual.a, dual.b)
            self.log["n_parts"] += steps
            trial = dual.at(point.u + du, point.v + dv, point)
            if trial is not None and trial.gain >= 0:
                point = replace(trial, gain=0.0)
            else:
                dual.fill(point)
        return point

    def _search(self, point: Point, B: Any, du: Array, dv: Array, slope: float) -> tuple[Point | None, float]:
        """Backtrack on D: the straight step where it is good, else along the curve; the kernel holds what is found."""
        dual, is_curved = self.dual, self.options.damping > 0
        full = dual.at(point.u + du, point.v + dv, point)
        if full is not None and dual.accepted(full, point, slope, GOOD if is_curved else ARMIJO):
            return full, 1.0
        if full is not None and not dual.accepted(full, point, slope, ARMIJO):
            full = None
        curve = Curve(B, du, dv) if is_curved and sparse.issparse(B) else None
        for k in range(HALVINGS + 1) if curve is not None else range(1, HALVINGS + 1):
            t = 0.5**k
            pu, pv = (t * du, t * dv) if curve is None else curve(t)
            trial = dual.at(point.u + pu, point.v + pv, point, sweep=curve is not None)
            if trial is not None and dual.accepted(trial, point, t * slope, ARMIJO):
                if full is None or trial.gain > full.gain:
                    return trial, t
                break
        dual.fill(point if full is None else full)
        return full, float(full is not None)

    def _swept(self, v: Array, n: int) -> Point:
        found, errors = self.dual.swept(v, n)
        self.sweeps += len(errors)
        self.log["err"] += errors[:-1]
        return found
