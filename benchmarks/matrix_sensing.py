"""Low-rank recovery against what else recovers low-rank matrices, to one residual; completion; cost of an iteration.

Recovery: n = 50, rank 3, bound k = 10, 5 000 Gaussian measurements, relative residual 1e-6, CPU seconds of one core.
The descents share start, operators and stopping, so that the ratios are those of the algorithms. Where a row says
*tuned*, every method tried nine settings: ours three steps and three beta, ScaledGD three steps and three dampings,
plain descent nine steps; a setting is given up once it has taken as many iterations as the best so far. Settings are
counted on the triangular factor of the measurements, 2 500 equations that give the same iterates, and so is the convex
program solved; what is timed of the descents reads all 5 000.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import numpy as np

from _rows import Row, alone, compared, fastest, fitted, in_child, interleaved, rows_of
from steepest.core.extras import installed
from steepest.landscape import factored_descent
from steepest.landscape._measurements import DenseMeasurements
from steepest.studies import matrix_sensing_peers as peers
from steepest.studies.matrix_sensing_rates import compressed

N, R, K, M_COUNT, TOL = 50, 3, 10, 5000, 1e-6
MOST = 1500  # iterations
STEPS, BETAS, DAMPINGS = (0.25, 0.5, 0.75), (None, 0.85, 0.7), (0.0, 0.01, 0.1)
REPEATS = 2  # an iteration reads 100 MB: the CPU seconds of two turns agree within some per cent


def bench(progress: Callable[[float], None] | None = None) -> list[Row]:
    """Measure all rows."""
    return rows_of([descents, others, convex_program, completion, exponent, reading_the_data], progress)


# ------------------------------------------------------------------------------------------------------------ recovery


def recovery_problem() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    U, V = (np.linalg.qr(rng.standard_normal((N, R)))[0] for _ in range(2))
    A = rng.standard_normal((M_COUNT, N, N))
    M = (U * [1.0, 0.8, 0.6]) @ V.T
    return A, A.reshape(M_COUNT, -1) @ M.ravel(), M


def fewer_equations() -> tuple[np.ndarray, np.ndarray]:
    """Half as many measurements of the same normal matrix."""
    A, _, M = recovery_problem()
    A = compressed(A)
    return A, A.reshape(len(A), -1) @ M.ravel()


def start_of(alpha: float) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    return alpha * rng.standard_normal((N, K)), alpha / 3 * rng.standard_normal((N, K))


def ours(A: Any, y: Any, start: Any, *, maxiter: int = MOST, **options: Any) -> Any:
    return factored_descent(A, y, rank=K, x0=start, tol=TOL, maxiter=maxiter, **options)


def own(data: Any, start: Any, step: float, beta: float | None, maxiter: int = MOST) -> Any:
    return ours(*data, start, step_size=step, beta=beta, maxiter=maxiter)


def plain(data: Any, start: Any, step: float, maxiter: int = MOST) -> Any:
    return ours(*data, start, step_size=step, method="gd", maxiter=maxiter)


def scaled(data: Any, start: Any, step: float, damping: float, maxiter: int = MOST) -> Any:
    return peers.scaled_gd(*data, (N, N), start, step_size=step, damping=damping, tol=TOL, maxiter=maxiter)


def tuned(make: Callable[..., Any], grid: Iterable[tuple[Any, ...]]) -> tuple[Any, ...]:
    """The setting that needs fewest iterations; the cost of one is the same for all of a kind."""
    best, fewest = None, MOST + 1
    for setting in grid:
        found = make(*setting, maxiter=fewest - 1)
        if found.residual <= TOL:
            best, fewest = setting, found.nit if hasattr(found, "nit") else found.n_iter
    if best is None:
        raise RuntimeError(f"no setting reaches {TOL:g} within {MOST} iterations")
    return best


def descents() -> list[Row]:
    """Ours, plain descent and ScaledGD from the same start, as they come and tuned."""
    A, y, _ = recovery_problem()
    rows = []
    for alpha in (0.1, 0.05, 0.01):
        start = start_of(alpha)
        tasks = {"ours": partial(ours, A, y, start), "plain descent": partial(ours, A, y, start, method="gd")}
        seconds = interleaved(tasks, REPEATS if alpha > 0.01 else 1, time.process_time)
        what = f"start {alpha:g}, default settings, CPU seconds to a residual of 1e-6"
        if alpha == 0.01:
            what += f", plain descent stopped after {MOST} updates"
        rows.append(compared(f"plain descent, start {alpha:g}", seconds, "plain descent", "<= 0.5", what))

    start = start_of(0.1)
    few = fewer_equations()
    best_own = tuned(partial(own, few, start), [(s, b) for s in STEPS for b in BETAS])
    best_plain = tuned(partial(plain, few, start), [(s,) for s in np.linspace(0.2, 1.0, 9)])
    best_scaled = tuned(partial(scaled, few, start), [(s, d) for s in STEPS for d in DAMPINGS])
    tasks = {
        "ours": partial(own, (A, y), start, *best_own),
        "plain descent": partial(plain, (A, y), start, *best_plain),
        "ScaledGD": partial(scaled, (A, y), start, *best_scaled),
        "ScaledGD, as it comes": partial(scaled, (A, y), start, 0.5, 0.0),
        "ours, as it comes": partial(ours, A, y, start),
    }
    seconds = interleaved(tasks, REPEATS, time.process_time)
    setting = f"start 0.1, tuned (step {best_own[0]}, beta {best_own[1] or 'default'}), CPU seconds"
    rows.append(compared("plain descent, tuned", seconds, "plain descent", "<= 0.5", setting))
    rows.append(compared("ScaledGD, tuned", seconds, "ScaledGD", "<= 1.5", setting))
    rows.append(
        compared("ScaledGD, defaults", seconds, "ScaledGD, as it comes", "<= 1.5",
                 "start 0.1, our defaults against step 0.5 without damping, CPU seconds", ours="ours, as it comes")
    )  # fmt: skip
    return rows


def others() -> list[Row]:
    """Singular-value projection and Gauss-Newton on the factors."""
    A, y, _ = recovery_problem()
    start = start_of(0.1)
    tasks = {
        "ours": partial(ours, A, y, start),
        "singular-value projection": partial(peers.svd_projection, A, y, (N, N), K, step_size=0.75, tol=TOL),
        "least squares": partial(peers.least_squares_on_factors, A, y, (N, N), start, tol=TOL),
    }
    seconds = interleaved(tasks, REPEATS, time.process_time)
    what = "CPU seconds to a residual of 1e-6, our defaults, start 0.1"
    return [
        compared("singular-value projection", seconds, "singular-value projection", None, what + "; its step 0.75"),
        compared("scipy least_squares", seconds, "least squares", None, what + "; trust region, lsmr"),
    ]


def convex_program() -> list[Row]:
    """Nuclear norm by cvxpy and SCS, once: it takes a minute or more."""
    if not installed("cvxpy"):
        return []
    A, y, _ = recovery_problem()
    few = fewer_equations()
    begin = time.process_time()
    found = peers.nuclear_norm(*few, (N, N), eps=1e-5)
    convex = time.process_time() - begin
    if found.residual > TOL:
        raise RuntimeError(f"SCS left a residual of {found.residual:g}")
    start = start_of(0.1)
    seconds = {"ours": [], "cvxpy + SCS": [convex] * REPEATS}
    seconds["ours"] = interleaved({"ours": partial(ours, A, y, start)}, REPEATS, time.process_time)["ours"]
    what = f"CPU seconds to a residual of 1e-6 (SCS ends at {found.residual:.0e})"
    return [compared("cvxpy + SCS", seconds, "cvxpy + SCS", "<= 0.05", what)]


# ---------------------------------------------------------------------------------------------------------- completion


def entries_problem(n: int, rank: int, count: int, seed: int = 0) -> tuple[Any, np.ndarray]:
    rng = np.random.default_rng(seed)
    U, V = rng.standard_normal((2, n, rank))
    rows, cols = np.divmod(rng.choice(n * n, count, replace=False), n)
    return (rows, cols), np.einsum("ij,ij->i", U[rows], V[cols])


def complete(n: int, rank: int, count: int, init: str) -> list[float]:
    """CPU seconds, relative residual and traced peak in n^2 doubles, in a process of its own."""
    import tracemalloc

    index, y = entries_problem(n, rank, count)
    begin = time.process_time()
    found = factored_descent(index, y, shape=(n, n), rank=rank, init=init, tol=TOL, seed=0)
    seconds = time.process_time() - begin
    tracemalloc.start()
    factored_descent(index, y, shape=(n, n), rank=rank, init="random", maxiter=3, seed=0, truth=None)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return [seconds, found.residual, peak / (8 * n * n)]


def completion() -> list[Row]:
    """1 000 x 1 000, rank 10, a tenth seen."""
    rows = []
    for init in ("spectral", "random"):
        seconds, residual, _ = in_child(complete, 1000, 10, 100_000, init)
        what = f"CPU seconds, 1 000 x 1 000, rank 10, 10 % seen, {init} start, ends at residual {residual:.1e}"
        rows.append(alone(f"completion, {init}", seconds, "s", "<= 10", what))
    _, _, peak = in_child(complete, 2500, 3, 40_000, "random")
    rows.append(
        alone("completion, memory", peak, "n x n matrices", "<= 2.5",
              "peak, 2 500 x 2 500, 40 000 entries seen; the answer itself, formed below 2e7 numbers, is 1")
    )  # fmt: skip
    return rows


def exponent() -> list[Row]:
    """Cost of an iteration against the number of seen entries."""
    counts, seconds = (50_000, 100_000, 200_000, 400_000), []
    for count in counts:
        index, y = entries_problem(2000, 5, count)
        run = partial(factored_descent, index, y, shape=(2000, 2000), rank=5, seed=0, tol=0.0, step_size=1e-6)
        long, short = (
            fastest(partial(run, maxiter=n, init_scale=0.1, switch_iter=10_000), 3, time.process_time) for n in (21, 1)
        )
        seconds.append((long - short) / 20)
    return [fitted("iteration against entries", counts, seconds, "<= 1.1", "completion, 2 000 x 2 000, k = 5")]


def reading_the_data() -> list[Row]:
    """One reading of a dense stack gives residuals and gradient; the limit is reading it twice."""
    A, y, _ = recovery_problem()
    F, G = start_of(0.1)
    flat = A.reshape(M_COUNT, -1)
    measurements = DenseMeasurements(A, (N, N), None)
    tasks = {
        "ours": lambda: measurements.misfit(F, G, y),
        "two readings alone": lambda: (float(flat.sum()), float(flat.sum())),
    }
    seconds = interleaved(tasks, 15, time.process_time)
    what = f"residuals and gradient of {M_COUNT} dense measurements, 50 x 50, against summing all numbers twice"
    return [compared("memory", seconds, "two readings alone", "<= 1.5", what)]
