"""Large sparse systems of the sketched-Newton study: inner solves beside LU and MINRES, cost, whole runs."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.optimize import LinearConstraint
from scipy.sparse.linalg import minres, splu

from steepest.constrained import sketch_and_project, sketched_newton
from steepest.constrained._sketch_and_project import Blocks
from steepest.core.extras import installed
from steepest.studies.claim import slope_fit
from steepest.studies.context import Context
from steepest.studies.sketched_newton_solvers import ipopt_quadratic, trust_constr_quadratic
from steepest.studies.test_problems import quadratic_program

__all__ = ["cost_of_a_sweep", "inner_solves", "kkt_system", "minres_to", "whole_programs"]

Vector = NDArray[np.float64]
LIMIT_S = 20.0  # CPU seconds of a peer on the large program; the bound is decided long before


def kkt_system(n: int, seed: int) -> tuple[Any, Vector]:
    """The KKT matrix of a quadratic program with n variables and n / 2 constraints, and -(gradient, violation) at 0."""
    H, G, g, c = quadratic_program(n, n // 2, np.random.default_rng(seed))
    return sparse.csr_array(sparse.block_array([[H, G.T], [G, None]])), np.r_[-g, c]


def _seconds(work: Callable[[], Any], repeats: int = 1) -> float:
    """CPU seconds, the least of some repeats: they do not depend on what else the machine does."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return min(times)


def minres_to(K: Any, b: Vector, rtol: float, watch: Callable[[Vector], None] | None = None) -> Vector:
    """MINRES until ``||K z - b|| <= rtol ||b||``, which its own test estimates."""
    z = np.zeros_like(b)
    for shrink in (1.0, 0.3, 0.1, 0.03, 0.01, 1e-3):
        z = minres(K, b, rtol=rtol * shrink, maxiter=5000, callback=watch)[0]
        if np.linalg.norm(K @ z - b) <= rtol * np.linalg.norm(b):
            break
    return z


def inner_solves(ctx: Context) -> None:
    """One inner solve: block Kaczmarz with and without acceleration, MINRES, a sparse factorization."""
    n = ctx.pick(tiny=200, quick=2000, full=10_000, paper=10_000)
    K, b = kkt_system(n, ctx.seed)
    norm = float(np.linalg.norm(b))

    def accelerated(rtol: float) -> Vector:
        return sketch_and_project(K, b, rtol=rtol, acceleration="cg", random_state=ctx.seed)[0]

    z = accelerated(1e-1)
    error = float(np.linalg.norm(K @ z - b)) / norm
    if error > 1e-1:
        raise RuntimeError(f"the sketched solve stopped at {error:g}")
    ours = _seconds(lambda: accelerated(1e-1), 3)
    plain = _seconds(lambda: sketch_and_project(K, b, rtol=1e-1, random_state=ctx.seed), 3)
    krylov = _seconds(lambda: minres_to(K, b, 1e-1), 3)
    factored = _seconds(lambda: splu(K.tocsc()).solve(b))
    ordered = _seconds(lambda: splu(K.tocsc(), permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.01).solve(b))
    ctx.measured("inner-minres", krylov / ours)
    ctx.measured("inner-splu-ordered", ordered / ours)
    ctx.measured("inner-plain", factored / plain)
    claim = "inner-splu" if ctx.wants("inner-splu") else "inner-splu-small"
    ctx.measured(claim, factored / ours)
    if ctx.scale == "tiny":
        ctx.measured("inner-splu-small", factored / ours)
    elif claim == "inner-splu":
        ctx.skipped("inner-splu-small", "measured at the full size instead")
    ctx.note(
        f"inner solve to 1e-1, d = {len(b)}: accelerated blocks {ours:.3g} s, plain blocks {plain:.3g} s, "
        f"MINRES {krylov:.3g} s, sparse LU {factored:.3g} s, with a minimum-degree ordering {ordered:.3g} s (CPU time)."
    )
    _convergence(ctx, K, b)
    best = min(factored, ordered)
    ctx.series("inner", [(best, 1e-1), (best * 1.0001, 1e-8)], method="sparse LU")


def _convergence(ctx: Context, K: Any, b: Vector) -> None:
    """Residuals against CPU seconds, to 1e-6."""
    norm = float(np.linalg.norm(b))
    deadline = ctx.pick(tiny=0.3, quick=2.0, full=15.0, paper=15.0)

    def recorded(solve: Callable[[Callable[[Vector], Any]], Any]) -> list[tuple[float, float]]:
        points: list[tuple[float, float]] = []
        start = time.process_time()

        def watch(z: Vector) -> None:
            points.append((time.process_time() - start, float(np.linalg.norm(K @ z - b)) / norm))
            if points[-1][0] > deadline or points[-1][1] < 1e-6:
                raise TimeoutError

        with suppress(TimeoutError):
            solve(watch)
        keep = np.unique(np.geomspace(1, len(points), 80).astype(int) - 1)
        return [points[i] for i in keep]

    options = {"rtol": 1e-6, "random_state": ctx.seed}
    ctx.series("inner", recorded(lambda w: sketch_and_project(K, b, acceleration="cg", callback=w, **options)),
               method="blocks, accelerated")  # fmt: skip
    ctx.series("inner", recorded(lambda w: sketch_and_project(K, b, callback=w, **options)), method="blocks")
    ctx.series("inner", recorded(lambda w: minres(K, b, rtol=1e-9, callback=w)), method="MINRES")


def cost_of_a_sweep(ctx: Context) -> None:
    """Time of one pass over all blocks against d, at four nonzeros a row of the Jacobian."""
    sizes = ctx.pick(tiny=(200, 400), quick=(8000, 16000, 32000, 64000), full=(8000, 16000, 32000, 64000),
                     paper=(4000, 8000))  # fmt: skip
    order, seconds = [], []
    for n in sizes:
        K, b = kkt_system(n, ctx.seed)
        blocks = Blocks(K, b, np.zeros(len(b)), 256, "none", np.random.default_rng(ctx.seed), grow=False)

        def sweep(blocks: Blocks = blocks, z: Vector = np.zeros(len(b)), b: Vector = b) -> None:  # noqa: B008
            for block in blocks.blocks:
                block.project(z, b)

        order.append(len(b))
        seconds.append(_seconds(sweep, 15))
    slope, interval = slope_fit(order, seconds)
    ctx.measured("sweep-exponent", slope, interval if len(sizes) > 2 else None)
    ctx.series("sweep", zip(order, np.multiply(seconds, 1e3), strict=True), method="measured")
    line = [(d, 1e3 * seconds[0] * d / order[0]) for d in order]
    ctx.series("sweep", line, method="in proportion to d")


def whole_programs(ctx: Context) -> None:
    """The quadratic program itself, to a KKT residual of 1e-6."""
    n = ctx.pick(tiny=200, quick=1000, full=10_000, paper=10_000)
    H, G, g, c = quadratic_program(n, n // 2, np.random.default_rng(ctx.seed))
    result: Any = None

    def run() -> None:
        nonlocal result
        result = sketched_newton(
            lambda x: float(x @ (H @ x) / 2 + g @ x), np.zeros(n), jac=lambda x: H @ x + g, hess=lambda x: H,
            constraints=LinearConstraint(G, c, c), acceleration="cg", random_state=ctx.seed,
        )  # fmt: skip

    ours = _seconds(run)
    ctx.note(f"program with n = {n}: ours {ours:.3g} CPU seconds, KKT {result.kkt:.1e}, {result.nit} iterations.")
    if not result.success:
        ctx.measured("scale-peers", 0.0)
        return
    limit = LIMIT_S if ctx.scale == "full" else 20.0
    times = {"trust-constr": trust_constr_quadratic(H, G, g, c, 1e-6, limit)}
    if installed("casadi"):
        times["Ipopt"] = ipopt_quadratic(H, G, g, c, 1e-6, limit)
    for peer, (seconds, kkt) in times.items():
        end = "" if kkt <= 1e-6 else f", stopped at its limit of {limit:g} s"
        ctx.note(f"program with n = {n}: {peer} {seconds:.3g} CPU seconds, KKT {kkt:.1e}{end}.")
    ctx.note("SLSQP keeps dense matrices of n x n and was not run on this program.")
    # a peer that did not get there within its limit needs at least that long
    best = min(times, key=lambda p: times[p][0])
    ctx.measured("scale-peers", times[best][0] / ours)
    if ctx.scale == "full":
        ctx.against(best, times[best][0] / ours, ahead="faster", behind="slower",
                    what=f"a sparse quadratic program with {n} variables, to a KKT residual of 1e-6")  # fmt: skip
