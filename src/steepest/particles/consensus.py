r"""Global minimization without gradients: a swarm is drawn to the mean of its best, or hops to it.

Consensus-based optimization (CBO) moves N particles X_i in R^d for an objective E:

    w_i = exp(-alpha E(X_i)) / sum_j exp(-alpha E(X_j)),    c = sum_i w_i X_i           the consensus point
    D_i = X_i - c
    X_i <- X_i - lam dt D_i + sigma sqrt(dt) |D_i| * xi_i,  xi_i ~ N(0, I)              anisotropic
    X_i <- X_i - lam dt D_i + sigma sqrt(dt) ||D_i|| xi_i                               isotropic

Consensus hopping (CH) draws the swarm afresh around its consensus, and is what CBO becomes at lam = 1/dt:

    X_i = c_k + s xi_i,    c_{k+1} = consensus of X

By Stein's identity its step with infinitely many particles is c_{k+1} = c_k - tau E_nu[grad E] with tau = alpha s^2 and
nu ~ exp(-alpha E) N(c_k, s^2 I): a gradient step, its gradient averaged near c_k where E is low, though no gradient is
ever computed. For quadratic E = (x - x*)' H (x - x*) / 2 it is the proximal step (I + tau H)^-1 (c_k + tau H x*).

Paper: riedl2023gradient.
Notation: `sigma` is the paper's noise sigma in CBO and the sampling width s in CH; `step` is tau.
Stability: the mean square of D shrinks only where 2 lam > sigma^2 + lam^2 dt (isotropic: d sigma^2). The usual
anisotropic sigma = 5 breaks that and still contracts almost surely, coordinate by coordinate; with particle batches it
flies apart.
Departures: (1) The noise is scaled by D from before the drift, as in the Euler scheme of the paper; the official code
scales it by what the drift has left, (1 - lam dt) D. (2) D_i * xi_i stands for \|D_i\| * xi_i, which has the same law.
(3) Weights are computed in float64 after the least value is subtracted. (4) The best point ever evaluated is kept.
(5) Values that are NaN or -inf raise; a swarm that flies apart ends the run with a status. (6) The first consensus is
never taken for a standing one; the official code compares it with 0. (7) A box reflects.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import torch

from steepest.core.errors import (
    SteepestWarning,
    at_least,
    boolean,
    check,
    check_params,
    interval,
    nonnegative,
    one_of,
    optional,
    positive,
    value_error,
)
from steepest.core.random import torch_generator
from steepest.particles._arguments import Normals, check_functions, first_swarm, point_of
from steepest.particles._hopping import Hopping
from steepest.particles._objective import Objective, check_workers, row_mapper
from steepest.particles._swarm import Settings, Swarm
from steepest.particles._weights import check_alpha

if TYPE_CHECKING:
    from scipy.optimize import OptimizeResult

__all__ = ["consensus_hopping", "minimize_cbo"]

Draw = Literal["float32", "native"] | None

COMMON = {
    "maxiter": at_least(0, integer=True),
    "tol": nonnegative(),
    "vectorized": boolean(),
    "return_all": boolean(),
    "draw": optional(one_of("float32", "native")),
    "n_particles": at_least(2, integer=True),
    "sigma": optional(nonnegative()),
}
CBO_LIMITS = COMMON | {
    "init_std": nonnegative(),
    "lam": positive(),
    "dt": positive(),
    "noise": one_of("anisotropic", "isotropic"),
    "maxfev": optional(at_least(1, integer=True)),
    "batch_size": optional(at_least(1, integer=True)),
    "batch_update": one_of("full", "partial"),
    "stagnation_tol": nonnegative(),
    "ess_fraction": interval(0, 1, low_open=True),
    "sigma_schedule": optional(one_of("log")),
    "steps_per_epoch": at_least(1, integer=True),
    "particle_reduction": interval(0, 1, high_open=True),
    "n_particles_min": at_least(2, integer=True),
    "gradient_weight": nonnegative(),
    "gradient_lr": nonnegative(),
}
CH_LIMITS = COMMON | {
    "step": optional(positive()),
    "sigma_factor": positive(),
    "sigma_every": at_least(1, integer=True),
}
SIGMA_ANISOTROPIC = 5.0  # usual for global search; cbx has 5.1
SIGMA_ISOTROPIC = 1.6  # riedl2023gradient's figures, d = 2; scaled so that d sigma^2 stays
SIGMA_HOPPING = 0.7  # riedl2023gradient's figures


def minimize_cbo(
    fun: Callable[..., Any],
    x0: Any = None,
    args: Any = (),
    *,
    bounds: Any = None,
    n_particles: int = 200,
    init_std: float = 1.0,
    alpha: float = 1e5,
    lam: float = 1.0,
    sigma: float | None = None,
    dt: float = 0.01,
    noise: Literal["anisotropic", "isotropic"] = "anisotropic",
    maxiter: int = 1000,
    tol: float = 1e-12,
    maxfev: int | None = None,
    batch_size: int | None = None,
    batch_update: Literal["full", "partial"] = "full",
    stagnation_tol: float = 0.0,
    alpha_schedule: float | Literal["effective"] | None = None,
    alpha_max: float = 1e15,
    ess_fraction: float = 0.5,
    sigma_schedule: Literal["log"] | None = None,
    steps_per_epoch: int = 1,
    particle_reduction: float = 0.0,
    n_particles_min: int = 10,
    jac: Any = None,
    gradient_weight: float = 0.0,
    gradient_lr: float = 0.01,
    resample: Callable[[int], Any] | None = None,
    vectorized: bool = False,
    workers: Any = None,
    draw: Draw = None,
    callback: Callable[..., Any] | None = None,
    seed: int | torch.Generator | None = None,
    return_all: bool = False,
    hess: Any = None,
    hessp: Any = None,
    constraints: Any = (),
) -> OptimizeResult:
    """Minimize by a swarm that is drawn to its consensus point (riedl2023gradient).

    Call it directly, or as ``scipy.optimize.minimize(fun, x0, method=minimize_cbo, options={...})``.

    Parameters
    ----------
    fun : callable
        ``fun(x, *args) -> float`` for x of shape (d,); with ``vectorized=True`` it takes (m, d) and returns (m,). It
        is given tensors when `x0` is one, else arrays; the (m, d) one is overwritten after the call. ``inf`` marks an
        infeasible point.
    x0 : array or tensor of shape (d,) or (N, d), optional
        A center, around which the swarm is drawn, or the swarm itself (`n_particles` is ignored then). Not needed with
        `bounds`. Tensors keep dtype and device; arrays are computed in float64 unless they are float32.
    args : tuple
    bounds : sequence of (low, high), scipy.optimize.Bounds, or tensor of shape (d, 2), optional
        Finite. Particles that leave the box are reflected into it. Without `x0` the swarm is uniform in the box.
    n_particles : int
        N, at least 2. 200 as in the paper's figures.
    init_std : float
        The swarm is ``x0 + init_std * N(0, I)``; 1 as in the official network code.
    alpha : float
        Weight exponent, in units of 1/E; inf allowed. The larger, the nearer the consensus is to the best particle.
    lam, dt : float
        Drift and time step. lam = 1, dt = 0.01 as in the paper's figures.
    sigma : float, optional
        Noise. 5 for anisotropic noise (usual for global search), ``1.6 sqrt(2 / d)`` for isotropic noise (the paper's
        1.6 at d = 2, with the same d sigma^2). A start, not a law.
    noise : "anisotropic" or "isotropic"
        Scaled by each coordinate's distance from the consensus, or by the whole distance.
    maxiter : int
    tol : float
        Stop when ``spread = mean ||X_i - c||^2 < tol``.
    maxfev : int, optional
        Evaluations at most, at least N + 1; the last N + 1 are kept for the final swarm and its consensus. The
        trajectory of `return_all` comes on top.
    batch_size : int, optional
        Particles per consensus. Every iteration cuts a random permutation into batches; None or N: no batches.
    batch_update : "full" or "partial"
        Whether each batch's consensus moves everybody, or its batch only.
    stagnation_tol : float
        Shake everybody by ``sigma sqrt(dt) N(0, I)`` when no coordinate of the consensus moved by as much (officially
        1e-5 for networks); 0: never.
    alpha_schedule : None, "effective" or float
        A factor multiplies `alpha` after every epoch (officially 2). ``"effective"`` chooses it at every iteration, so
        that the effective sample size ``1 / sum w_i^2`` is `ess_fraction` times the number of particles.
    alpha_max : float
        Alpha is never raised above it; 1e15 as officially.
    ess_fraction : float
        In (0, 1].
    sigma_schedule : None or "log"
        ``sigma *= log2(e + 1) / log2(e + 2)`` after epoch e = 1, 2, ... (official network code).
    steps_per_epoch : int
    particle_reduction : float
        p in [0, 1): after an epoch keep the share ``clip((p v + (1 - p) v0) / v0, 1 - p, 1)`` of the particles, in
        whole batches, where v0 and v are the variances' lengths before and after it. 0.2 officially; 0: keep all.
    n_particles_min : int
        Never fewer than these (or than there were).
    jac : callable, optional
        ``jac(x, *args)``, (m, d) to (m, d) if vectorized; read only with a positive `gradient_weight`.
    gradient_weight, gradient_lr : float
        Moved particles also make the step ``-gradient_weight * gradient_lr * dt * jac``, as in the official code; off
        in the paper's figures.
    resample : callable, optional
        ``resample(k)`` is called before iteration k = 0, 1, ...: a stochastic `fun` may move on to its next data batch.
    vectorized : bool
    workers : int, "ray" or map-like callable, optional
        Who evaluates a scalar `fun`: processes (-1: as many as cores; `fun` must be picklable), Ray tasks, or
        ``workers(function, points)``. The numbers are those of the serial run.
    draw : "float32" or "native", optional
        Precision of the normal draws, not of the particles: 24-bit normals, several times faster to draw (default on
        CPUs), or the particles' dtype (default elsewhere).
    callback : callable, optional
        ``callback(xk)`` or ``callback(intermediate_result)`` with ``x, fun, nit, nfev, consensus, spread``. A true
        answer or StopIteration ends the run.
    seed : int, torch.Generator or None
    return_all : bool
        Also return the trajectory of the consensus, with its values, at the price of nit evaluations.
    hess, hessp
        Ignored: SciPy passes them.
    constraints
        Must be empty.

    Returns
    -------
    scipy.optimize.OptimizeResult
        ``x, fun``: the best point ever evaluated; ``consensus, fun_consensus``: of the final swarm; ``population``
        (N, d), ``population_fun``; ``spread, nit, nfev, njev, success, status, message``; ``alpha, sigma`` in force at
        the end; ``history`` with ``fun, spread, seconds``; with `return_all` also ``allvecs`` (nit, d) and ``allfuns``.
        Status 0: spread < tol, the only success; 1: maxiter; 2: maxfev; 3: the particles flew apart (consensus and
        population are the last finite ones, ``fun_consensus`` is inf); 99: callback. With sigma = 5, status 1 is usual
        on rough functions although x is right: judge by fun.

    Raises
    ------
    FloatingPointError
        `fun` returned NaN or -inf, or inf for all particles that form a consensus.
    ValueError, TypeError
        Arguments outside their limits, constraints, wrong shapes, `fun` returning the wrong shape.

    Notes
    -----
    Whatever is raised while the swarm moves, by `fun` too, carries what was found until then as ``error.result``
    (status 4). A run goes on bit by bit from ``x0=result.population`` with the same `torch.Generator`, as long as
    neither alpha nor sigma nor N change with the epochs, and there is no stagnation test.

    Examples
    --------
    >>> from steepest.particles.test_functions import rastrigin
    >>> result = minimize_cbo(rastrigin, bounds=[(-3, 3)] * 4, vectorized=True, seed=0)
    >>> result.fun < 1e-6, result.x.shape
    (True, (4,))
    """
    check_params(locals(), CBO_LIMITS)
    check_alpha("alpha", alpha)
    check_alpha("alpha_max", alpha_max)
    if alpha_schedule != "effective":
        if isinstance(alpha_schedule, str):
            raise value_error("alpha_schedule", "None, 'effective' or a factor", alpha_schedule)
        check("alpha_schedule", alpha_schedule, optional(positive()))
    if _is_given(constraints):
        raise value_error("constraints", "empty", constraints, "use sketched_newton, or return inf where infeasible")
    if gradient_weight > 0 and not callable(jac):
        raise value_error("jac", "callable with gradient_weight > 0", jac)
    check_functions(fun=fun, callback=callback, resample=resample)
    check_workers(workers, vectorized)

    x, box, generator, normals, as_array = first_swarm(x0, bounds, n_particles, init_std, seed, draw)
    n, d = x.shape
    if batch_size is not None and batch_size > n:
        raise value_error("batch_size", f"<= {n}, the number of particles", batch_size)
    if maxfev is not None and maxfev < n + 1:
        raise value_error("maxfev", f">= {n + 1}, one evaluation of the swarm and its consensus", maxfev)
    if sigma is None:
        sigma = SIGMA_ANISOTROPIC if noise == "anisotropic" else SIGMA_ISOTROPIC * math.sqrt(2 / d)
    if batch_size is not None and batch_size < n and 2 * lam < (d if noise == "isotropic" else 1) * sigma**2:
        warnings.warn(
            f"particle batches with sigma = {sigma:g} and lam = {lam:g} may fly apart: mean squares are not stable",
            SteepestWarning,
            stacklevel=2,
        )
    settings = Settings(**{name: value for name, value in locals().items() if name in Settings.__dataclass_fields__})
    args = args if isinstance(args, tuple) else (args,)
    with row_mapper(fun, args, workers) as rows:
        objective = Objective(fun, args, as_array, vectorized, rows, jac)
        run = Swarm(objective, x, normals, box, settings, resample, return_all)
        return run.result(maxiter, callback)


def consensus_hopping(
    fun: Callable[..., Any],
    x0: Any,
    args: Any = (),
    *,
    n_particles: int = 200,
    alpha: float = 100.0,
    sigma: float | None = None,
    step: float | None = None,
    sigma_factor: float = 1.0,
    sigma_every: int = 100,
    maxiter: int = 250,
    tol: float = 0.0,
    vectorized: bool = False,
    workers: Any = None,
    draw: Draw = None,
    callback: Callable[..., Any] | None = None,
    seed: int | torch.Generator | None = None,
    return_all: bool = False,
) -> OptimizeResult:
    """Hop from consensus to consensus of fresh Gaussian samples (riedl2023gradient, consensus hopping).

    Parameters
    ----------
    fun, args, vectorized, workers, draw, seed
        See `minimize_cbo`.
    x0 : array or tensor of shape (d,)
        The first consensus.
    n_particles, alpha, maxiter : int, float, int
        200, 100 and 250 as in the paper's figures.
    sigma : float, optional
        Sampling width s, in units of x; 0.7 when neither it nor `step` is given (paper's figures).
    step : float, optional
        The length tau = alpha s^2 of the gradient step that a hop makes: ``s = sqrt(step / alpha)``.
    sigma_factor, sigma_every : float, int
        ``s *= sigma_factor`` after every `sigma_every` hops (officially 0.98 and 100, where it is on).
    tol : float
        Stop when a hop is shorter.
    callback : callable, optional
        As in `minimize_cbo`; its x is the best point, ``consensus`` the current one.
    return_all : bool
        Also return the hops: nit + 1 rows, the first `x0`, and their values, at the price of as many evaluations.

    Returns
    -------
    scipy.optimize.OptimizeResult
        ``x, fun``: the last consensus (also ``consensus, fun_consensus``); ``best_x, best_fun``: the best point
        evaluated; ``step``: alpha s^2 in force at the end; ``sigma``: s; ``population, population_fun``: the last
        sample; ``spread, nit, nfev, success, status, message, history, allvecs, allfuns`` as in `minimize_cbo`.
        Success is False only for status 3.

    Raises
    ------
    FloatingPointError, ValueError, TypeError
        As `minimize_cbo`; both `sigma` and `step` are an error.

    Examples
    --------
    >>> result = consensus_hopping(lambda x: (x**2).sum(-1), [2.0, -1.0], step=0.5, vectorized=True, seed=0)
    >>> bool(abs(result.x).max() < 0.1), round(result.step, 6)
    (True, 0.5)
    """
    check_params(locals(), CH_LIMITS)
    check_alpha("alpha", alpha)
    check_functions(fun=fun, callback=callback)
    check_workers(workers, vectorized)
    if sigma is not None and step is not None:
        raise value_error("sigma", "None when step is given", sigma)
    if step is not None:
        if not math.isfinite(alpha):
            raise value_error("alpha", "finite when step is given", alpha)
        sigma = math.sqrt(step / alpha)
    c, as_array = point_of("x0", x0, (1,))
    normals = Normals(c.expand(n_particles, -1), torch_generator(seed, c.device), draw)
    s = SIGMA_HOPPING if sigma is None else float(sigma)
    args = args if isinstance(args, tuple) else (args,)
    with row_mapper(fun, args, workers) as rows:
        objective = Objective(fun, args, as_array, vectorized, rows)
        run = Hopping(objective, c, n_particles, normals, float(alpha), s, sigma_factor, sigma_every, tol, return_all)
        return run.result(maxiter, callback)


def _is_given(constraints: Any) -> bool:
    if constraints is None:
        return False
    return len(constraints) > 0 if hasattr(constraints, "__len__") else True
