"""Consensus as a gradient step: hops beside gradients and proximal steps, with the exact laws where they are known."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from steepest.particles import consensus_hopping, minimize_cbo
from steepest.particles.test_functions import make_canyon
from steepest.studies.claim import bootstrap_interval, slope_fit
from steepest.studies.context import Context

__all__ = ["averaged_step", "measure", "proximal_step", "sampling_error"]

Array = NDArray[np.float64]
CURVATURES = np.array([1.0, 10.0])  # of the quadratic E(x) = sum h x^2 / 2


def measure(ctx: Context) -> None:
    """All claims of the chain from CBO to the gradient step."""
    cosines(ctx)
    sampling(ctx)
    temperature(ctx)
    drift(ctx)


def proximal_step(
    fun: Callable[[Any], float], x: Any, tau: float, jac: Callable[[Any], Any] | None = None
) -> NDArray[np.float64]:
    """Return the minimizer y of ``fun(y) + |y - x|^2 / (2 tau)`` near x, by BFGS to a gradient of 1e-10."""
    from scipy.optimize import minimize

    x = np.asarray(x, float)

    def value(y: Array) -> float:
        return tau * float(fun(y)) + float((y - x) @ (y - x)) / 2

    gradient = None if jac is None else lambda y: tau * np.asarray(jac(y)) + (y - x)
    found: Array = minimize(value, x, jac=gradient, method="BFGS", options={"gtol": 1e-10}).x
    return found


def quadratic(x: Any) -> Any:
    """Half of x' H x."""
    return (x * x * CURVATURES).sum(-1) / 2


def wells(x: Any) -> Any:
    """A quartic: in every coordinate two wells, at -1 and 1."""
    return ((x * x - 1) ** 2).sum(-1) / 4


def wells_gradient(x: Any) -> Any:
    """Its gradient."""
    return x * (x * x - 1)


def hop(fun: Callable[[Any], Any], c: Array, n: int, alpha: float, s: float, seed: int) -> Array:
    """One hop from c."""
    found = consensus_hopping(fun, c, n_particles=n, alpha=alpha, sigma=s, maxiter=1, vectorized=True, seed=seed)
    return np.asarray(found.x)


def cosines(ctx: Context) -> None:
    """Cosine of hops with the negative gradient at random points, s = 0.05 and tau = 0.02."""
    s, tau = 0.05, 0.02
    n, points = ctx.pick(tiny=(10_000, 5), quick=(100_000, 50), full=(100_000, 50), paper=(100_000, 50))
    for name, fun, low, high in (("quadratic", quadratic, -1.0, 1.0), ("canyon", make_canyon(0.0), -4.0, 10.0)):
        rng = np.random.default_rng(ctx.seed)
        found: list[float] = []
        while len(found) < points:
            c = torch.tensor(rng.uniform(low, high, 2), requires_grad=True)
            value = fun(c) if name == "canyon" else (c * c * torch.as_tensor(CURVATURES)).sum() / 2
            g = torch.autograd.grad(value, c)[0].numpy()
            if tau * np.linalg.norm(g) > 2 * s:
                continue  # farther than the samples reach
            x = c.detach().numpy()
            step = hop(fun, x, n, tau / s**2, s, ctx.seed + len(found)) - x
            found.append(float(-step @ g / np.linalg.norm(step) / np.linalg.norm(g)))
        ctx.measured(f"cosine-{name}", float(np.mean(found)), bootstrap_interval(found, level=0.95))


def sampling_error(c: Array, alpha: float, s: float) -> float:
    """Root mean square of a hop's error times sqrt(N), for many particles: the delta method, exact on the quadratic."""

    def law(beta: float) -> tuple[float, Array, Array]:
        """Mass, mean and variance of exp(-beta E) N(c, s^2)."""
        shrink = 1 + beta * CURVATURES * s**2
        mass = float(np.prod(shrink**-0.5 * np.exp(-beta * CURVATURES * c**2 / 2 / shrink)))
        return mass, c / shrink, s**2 / shrink

    (z, mean, _), (z2, mean2, variance2) = law(alpha), law(2 * alpha)
    return math.sqrt(z2 / z**2 * float((variance2 + (mean2 - mean) ** 2).sum()))


def sampling(ctx: Context) -> None:
    """Error of hops against the closed-form proximal point, in the number of particles."""
    alpha, s, c = 5.0, 0.3, np.array([0.5, 0.1])
    target = c / (1 + alpha * s**2 * CURVATURES)
    sizes, repeats = (100, 400, 1600, 6400, 25600), ctx.pick(tiny=10, quick=40, full=40, paper=40)
    errors = [
        math.sqrt(np.mean([((hop(quadratic, c, n, alpha, s, 1000 + k) - target) ** 2).sum() for k in range(repeats)]))
        for n in sizes
    ]
    ctx.series("sampling", list(zip(sizes, errors, strict=True)), method="hop")
    theory = [sampling_error(c, alpha, s) / math.sqrt(n) for n in sizes]
    ctx.series("sampling", list(zip(sizes, theory, strict=True)), method="theory")
    ctx.measured("sampling-slope", *slope_fit(sizes, errors))


def averaged_step(c: Array, alpha: float, s: float) -> Array:
    """The hop of infinitely many particles on the wells, by quadrature: their coordinates are independent."""
    nodes, masses = np.polynomial.hermite_e.hermegauss(120)
    x = c[:, None] + s * nodes
    logs = np.log(np.maximum(masses, 1e-300)) - alpha * (x * x - 1) ** 2 / 4
    w = np.exp(logs - logs.max(1, keepdims=True))
    return np.asarray((w * x).sum(1) / w.sum(1))


def temperature(ctx: Context) -> None:
    """Distance of hops from the proximal point of the wells as alpha grows and tau stays 1."""
    tau, c = 1.0, np.array([1.01, 0.99])
    alphas = (10.0, 100.0, 1e3, 1e4)
    n, repeats = ctx.pick(tiny=(20_000, 2), quick=(200_000, 5), full=(200_000, 20), paper=(200_000, 20))
    target = proximal_step(wells, c, tau, wells_gradient)
    errors, theory = [], []
    for alpha in alphas:
        s = math.sqrt(tau / alpha)
        found = [((hop(wells, c, n, alpha, s, 1000 + k) - target) ** 2).sum() for k in range(repeats)]
        errors.append(math.sqrt(np.mean(found)))
        theory.append(float(np.linalg.norm(averaged_step(c, alpha, s) - target)))
    ctx.series("temperature", list(zip(alphas, errors, strict=True)), method="hop")
    ctx.series("temperature", list(zip(alphas, theory, strict=True)), method="theory")
    ctx.measured("alpha-slope", *slope_fit(alphas, errors))


def drift(ctx: Context) -> None:
    """Distance of CBO's second consensus from the proximal step of its first, as lam dt goes to 1.

    The noise keeps the swarm's width s: sigma sqrt(dt) = sqrt(1 - (1 - lam dt)^2).
    """
    alpha, s, dt, h = 5.0, 0.1, 0.01, np.array([1.0, 2.0])
    n, repeats = ctx.pick(tiny=(20_000, 2), quick=(200_000, 3), full=(200_000, 10), paper=(200_000, 10))
    shares, errors = (0.25, 0.5, 1.0), []
    for share in shares:
        found = []
        for k in range(repeats):
            run = minimize_cbo(
                lambda x: (x * x * h).sum(-1) / 2, [0.4, 0.3], n_particles=n, init_std=s, alpha=alpha, lam=share / dt,
                sigma=math.sqrt((1 - (1 - share) ** 2) / dt), dt=dt, maxiter=2, tol=0.0, vectorized=True,
                seed=ctx.seed + 1 + k, return_all=True,
            )  # fmt: skip
            first, second = run.allvecs
            found.append(float(np.linalg.norm(second - first / (1 + alpha * s**2 * h))))
        errors.append(found)
    ctx.series("drift", list(zip(shares, np.mean(errors, axis=1), strict=True)), method="measured")
    ratios = np.divide(errors[-1], np.minimum(errors[0], errors[1]))
    ctx.measured("drift", float(np.mean(ratios)), bootstrap_interval(ratios, level=0.95))
