"""What graphs, frames and eigenpairs cost beside a bare tree query, eigsh and multigrid, and how they grow.

CPU seconds; the largest sizes are measured once.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import scipy.sparse.linalg
from scipy.sparse.linalg import LinearOperator
from scipy.spatial import cKDTree

import _heat
from _rows import Row, alone, compared, cost, fastest, fitted, in_child, interleaved, rows_of
from steepest.core.extras import installed
from steepest.geometry.connection import connection_laplacian, tangent_frames
from steepest.geometry.eigenpairs import lowest_eigenpairs
from steepest.geometry.graph import knn_graph

GRAPH_SIZES = (10_000, 20_000, 40_000, 80_000, 160_000)
PAIR_SIZES = (4_000, 8_000, 16_000, 32_000)
LARGE, MILLION = 100_000, 1_000_000
cpu_seconds = partial(interleaved, clock=time.process_time)
fastest_cpu = partial(fastest, clock=time.process_time)


def bench(progress: Callable[[float], None] | None = None) -> list[Row]:
    """Measure every row; `progress` is told the share that is done."""
    parts = [
        tree_query,
        graph_exponents,
        small_eigenpairs,
        default_ordering,
        multigrid,
        large_eigenpairs,
        million_points,
    ]
    parts.append(_heat.rows)
    return rows_of(parts, progress)


def tree_query() -> list[Row]:
    """The graph against the query that it cannot do without."""
    rows = []
    for n in (4_000, LARGE):
        X = random_sphere(n)
        seconds = cpu_seconds({"ours": lambda X=X: knn_graph(X, 10), "cKDTree": lambda X=X: cKDTree(X).query(X, 11)}, 5)
        rows.append(compared(f"knn_graph n={n}", seconds, "cKDTree", "<= 1.3", "graph of 10 neighbors on a sphere"))
    return rows


def graph_exponents() -> list[Row]:
    """Growth of the graph and of frames with Laplacian."""
    graph, rest = [], []
    for n in GRAPH_SIZES:
        X = random_sphere(n)
        W = knn_graph(X, 10)
        graph.append(fastest_cpu(lambda X=X: knn_graph(X, 10), 3))
        rest.append(fastest_cpu(lambda X=X, W=W: connection(X, W), 2))
    return [
        fitted("graph-in-n", GRAPH_SIZES, graph, "<= 1.15", "graph of 10 neighbors, n = 1e4 to 1.6e5"),
        fitted("frames-in-n", GRAPH_SIZES, rest, "<= 1.05", "frames along the graph and connection Laplacian"),
    ]


def small_eigenpairs(n: int = 4_000, k: int = 16) -> list[Row]:
    """Against Lanczos on the matrix itself."""
    X, L = problem(n)
    seconds = cpu_seconds({"ours": lambda: lowest_eigenpairs(L, k, points=X)}, 3)
    seconds |= cpu_seconds({"eigsh SM": lambda: scipy.sparse.linalg.eigsh(L, k, which="SM", maxiter=10**6)}, 1)
    return [compared(f"eigenpairs n={n} SM", seconds, "eigsh SM", "<= 0.2", f"{k} lowest pairs of {2 * n} unknowns")]


def default_ordering(n: int = 20_000, k: int = 16) -> list[Row]:
    """Against shift-invert as SciPy does it."""
    X, L = problem(n)
    A, shift = L.tocsc(), -1e-6 * float(abs(L).sum(axis=0).max())
    seconds = cpu_seconds({"ours": lambda: lowest_eigenpairs(L, k, points=X)}, 2)
    seconds |= cpu_seconds({"eigsh sigma": lambda: scipy.sparse.linalg.eigsh(A, k, sigma=shift)}, 1)
    what = f"{k} lowest pairs of {2 * n} unknowns, eigsh with its default ordering"
    return [compared(f"eigenpairs n={n} sigma", seconds, "eigsh sigma", "< 1", what)]


def multigrid(n: int = 4_000, k: int = 16) -> list[Row]:
    """Against lobpcg on pyamg with the projected constants, to 1e-4 of the largest wanted eigenvalue."""
    if not installed("pyamg"):
        return []
    import pyamg

    X, L = problem(n)
    T = tangent_frames(X, graph=knn_graph(X, 10)).frames
    B = T.transpose(0, 2, 1).reshape(-1, 3)
    target = 1e-4 * lowest_eigenpairs(L, k, points=X)[0][-1]

    def peer() -> None:
        M: LinearOperator = pyamg.smoothed_aggregation_solver(L.tobsr((2, 2)), B=B).aspreconditioner()
        start = np.random.default_rng(0).standard_normal((2 * n, k + 5))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            scipy.sparse.linalg.lobpcg(L, start, M=M, tol=target, maxiter=100, largest=False)

    seconds = cpu_seconds({"ours": lambda: lowest_eigenpairs(L, k, points=X), "pyamg lobpcg": peer}, 1)
    what = f"{k} lowest pairs of {2 * n} unknowns; the peer stops at 1e-4 lambda_k"
    return [compared(f"eigenpairs n={n} lobpcg", seconds, "pyamg lobpcg", None, what)]


def large_eigenpairs() -> list[Row]:
    """At 1e5 points each in a process of its own, whose peak memory is read; and the growth up to there."""
    rows, largest = [], 0.0
    for shape, k, bound in (("fibonacci", 16, "<= 60"), ("fibonacci", 50, "<= 100"), ("random", 50, "<= 60")):
        seconds, gib, residual = in_child(measure, shape, LARGE, k)
        name = f"eigenpairs n={LARGE} k={k} {shape}"
        rows += [
            alone(f"{name} time", seconds, "s", bound, f"{k} lowest pairs of {2 * LARGE} unknowns, {shape} sphere"),
            alone(f"{name} memory", gib, "GiB", "<= 3", "peak of the process"),
            alone(f"{name} residual", residual, "lambda_k", "<= 1e-8", "largest residual by the largest eigenvalue"),
        ]
        if k == 16:
            largest = seconds
    seconds_of = []
    for n in PAIR_SIZES:
        X, L = problem(n)
        seconds_of.append(fastest_cpu(lambda X=X, L=L: lowest_eigenpairs(L, 16, points=X), 2))
    sizes = (*PAIR_SIZES, LARGE)
    return [*rows, fitted("eigenpairs-in-n", sizes, [*seconds_of, largest], "<= 1.5", "16 pairs, n = 4e3 to 1e5")]


def measure(shape: str, n: int, k: int) -> tuple[float, float, float]:
    """CPU seconds, peak GiB and residual by lambda_k of one run."""
    X, L = problem(n, shape)
    seconds, gib, (w, V) = cost(lambda: lowest_eigenpairs(L, k, points=X))
    return seconds, gib, float(np.linalg.norm(L @ V - V * w, axis=0).max() / w[-1])


def million_points() -> list[Row]:
    """Graph, frames and Laplacian of a million points on one thread, in a process of its own."""
    seconds, gib = in_child(build, MILLION)
    what = "graph, frames and connection Laplacian of a million points, one thread"
    return [
        alone(f"connection n={MILLION} time", seconds, "s", "<= 60", what),
        alone(f"connection n={MILLION} memory", gib, "GiB", "<= 4", "peak of the process"),
    ]


def build(n: int) -> tuple[float, float]:
    """CPU seconds and peak GiB of `problem`."""
    return cost(lambda: problem(n, "random"))[:2]


def problem(n: int, shape: str = "fibonacci") -> tuple[np.ndarray, Any]:
    """Points and the connection Laplacian of their 10 neighbors."""
    X = fibonacci_sphere(n) if shape == "fibonacci" else random_sphere(n)
    return X, connection(X, knn_graph(X, 10))


def connection(X: np.ndarray, W: Any) -> Any:
    return connection_laplacian(W, tangent_frames(X, dim=2, graph=W))


def fibonacci_sphere(n: int) -> np.ndarray:
    i = np.arange(n) + 0.5
    z, angle = 1 - 2 * i / n, np.pi * (3 - np.sqrt(5)) * i
    return np.stack([np.sqrt(1 - z**2) * np.cos(angle), np.sqrt(1 - z**2) * np.sin(angle), z], axis=1)


def random_sphere(n: int) -> np.ndarray:
    X = np.random.default_rng(0).standard_normal((n, 3))
    return X / np.linalg.norm(X, axis=1, keepdims=True)
