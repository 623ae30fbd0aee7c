"""Speed of consensus-based optimization: iterations beside cbx, growth with the swarm, memory, and two Ray workers."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from _rows import Row, alone, compared, cost, fastest, fitted, in_child, interleaved, rows_of
from steepest.core.extras import installed
from steepest.core.parallel import joined_ray
from steepest.particles import minimize_cbo
from steepest.particles.test_functions import FUNCTIONS, ackley

SIZES = ((20, 1000), (100, 4000), (1000, 2000))
OPTIONS: dict[str, Any] = {"sigma": 5.0, "dt": 0.01, "tol": 0.0, "vectorized": True, "seed": 0}


def bench(progress: Callable[[float], None] | None = None) -> list[Row]:
    """Measure all rows."""
    return rows_of([iterations, growth, memory, workers], progress)


def swarm(n: int, d: int, dtype: type = np.float64) -> np.ndarray:
    return np.random.default_rng(0).uniform(-3, 3, (n, d)).astype(dtype)


def ours(name: str, x: np.ndarray, steps: int, **options: Any) -> Callable[[], object]:
    """Ours computes on tensors, the others on arrays; the objective too, whose cosines are half of a run in NumPy."""
    particles = torch.from_numpy(x)
    return lambda: minimize_cbo(FUNCTIONS[name], particles, maxiter=steps, **(OPTIONS | options))


def naive(name: str, x: np.ndarray, steps: int) -> Callable[[], object]:
    """The update as one writes it down first."""

    def run() -> None:
        particles, rng = x.copy(), np.random.default_rng(0)
        for _ in range(steps):
            f = FUNCTIONS[name](particles)
            w = np.exp(-1e5 * (f - f.min()))
            D = particles - w / w.sum() @ particles
            particles = particles - 0.01 * D + 5.0 * 0.1 * np.abs(D) * rng.standard_normal(D.shape)

    return run


def theirs(name: str, x: np.ndarray, steps: int) -> Callable[[], object]:
    from cbx.dynamics import CBO

    def run() -> None:
        made = CBO(FUNCTIONS[name], f_dim="2D", x=x[None].copy(), noise="anisotropic", check_f_dims=False, alpha=1e5,
                   lamda=1.0, dt=0.01, sigma=5.0, verbosity=0)  # fmt: skip
        for _ in range(steps + 1):  # the final swarm is evaluated by ours too
            made.step()

    return run


def iterations() -> list[Row]:
    """CPU time of a run beside cbx, one thread, in turns."""
    if not installed("cbx"):
        return []
    rows = []
    for d, n in SIZES:
        steps = max(8, 2_000_000 // (n * d) * 4)
        for name in ("rastrigin", "ackley"):
            wide, narrow = swarm(n, d), swarm(n, d, np.float32)
            seconds = interleaved(
                {"ours": ours(name, wide, steps), "cbx": theirs(name, wide, steps), "native": ours(
                    name, wide, steps, draw="native"), "float32": ours(name, narrow, steps),
                 "cbx float32": theirs(name, narrow, steps), "naive loop": naive(name, wide, steps)},
                5, time.process_time)  # fmt: skip
            what = f"{name}, d = {d}, N = {n}, {steps} iterations, CPU time; ours on tensors, the peer on arrays"
            label = f"{name} {d} x {n}"
            rows.append(compared(f"{label}", seconds, "cbx", "<= 0.5", what))
            rows.append(compared(f"{label}, float32", seconds, "cbx float32", "<= 0.45", what, ours="float32"))
            rows.append(compared(f"{label}, native draws", seconds, "cbx", "<= 0.8", what, ours="native"))
            rows.append(compared(f"{label}, naive", seconds, "naive loop", None, what))
    return rows


def growth() -> list[Row]:
    """Exponents of an iteration's CPU time in N and in d, above 1e5 numbers."""

    def seconds(n: int, d: int) -> float:
        return fastest(ours("rastrigin", swarm(n, d), 10), 5, time.process_time)

    numbers = (2000, 8000, 32000)
    dims = (100, 400, 1600)
    return [
        fitted("iteration against N", numbers, [seconds(n, 100) for n in numbers], "<= 1.1", "d = 100, CPU time"),
        fitted("iteration against d", dims, [seconds(2000, d) for d in dims], "<= 1.1", "N = 2000, CPU time"),
    ]


def peak(n: int, d: int) -> float:
    """Peak memory (GiB) of a process that runs two iterations of a float32 swarm on a function without arrays."""
    x = torch.empty(n, d).uniform_(generator=torch.Generator().manual_seed(0))
    norms = torch.empty(n)

    def squares(points: torch.Tensor) -> torch.Tensor:
        return torch.linalg.vector_norm(points, dim=1, out=norms)

    return cost(lambda: minimize_cbo(squares, x, maxiter=2, **OPTIONS))[1]


def memory() -> list[Row]:
    """Peak memory at a million particles of a hundred coordinates, and in arrays of N d numbers."""
    n, d = 1_000_000, 100
    base, large = in_child(peak, 1000, d), in_child(peak, n, d)
    arrays = (large - base) * 2**30 / (4 * n * d) - 1
    return [
        alone("memory", large, "GiB", "<= 1.8626", "N = 1e6, d = 100, float32, the caller's swarm included (2 GB)"),
        alone("arrays", arrays, "arrays of N d", "<= 3", "the same, less a small swarm's and the caller's own array"),
    ]


def slow(x: np.ndarray) -> float:
    end = time.thread_time() + 0.02
    while time.thread_time() < end:
        pass
    return float(ackley(x))


def workers() -> list[Row]:
    """Wall time of a 20 ms objective on two Ray workers beside one process."""
    if not installed("ray"):
        return []
    import ray

    options: dict[str, Any] = {"n_particles": 40, "maxiter": 3, "tol": 0.0, "seed": 0}
    with joined_ray(ray, 2):
        minimize_cbo(slow, np.ones(5), workers="ray", **(options | {"maxiter": 1}))
        seconds = interleaved(
            {"ours": lambda: minimize_cbo(slow, np.ones(5), workers="ray", **options),
             "one process": lambda: minimize_cbo(slow, np.ones(5), **options)}, 3)  # fmt: skip
    return [compared("two Ray workers", seconds, "one process", "<= 0.5882", "161 evaluations of 20 ms, wall time")]
