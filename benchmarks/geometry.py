"""What graphs, frames and eigenpairs cost beside a bare tree query, eigsh and multigrid, and how they grow.

``bench()`` returns one dict a row (the form is in `steepest.bench`). One thread, CPU seconds; the largest sizes are
measured once.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.sparse.linalg
from scipy.sparse.linalg import LinearOperator
from scipy.spatial import cKDTree
from threadpoolctl import threadpool_limits

from steepest.core.extras import installed
from steepest.geometry.connection import connection_laplacian, tangent_frames
from steepest.geometry.eigenpairs import lowest_eigenpairs
from steepest.geometry.graph import knn_graph
from steepest.studies.claim import bootstrap_interval, slope_fit

Row = dict[str, Any]
Timed = dict[str, list[float]]
GRAPH_SIZES = (10_000, 20_000, 40_000, 80_000, 160_000)
PAIR_SIZES = (4_000, 8_000, 16_000, 32_000)
LARGE = 100_000


def bench(progress: Callable[[float], None] | None = None) -> list[Row]:
    """Measure every row; `progress` is told the share that is done."""
    parts = [tree_query, graph_exponents, small_eigenpairs, default_ordering, multigrid, large_eigenpairs]
    if importlib.util.find_spec("_heat") is not None:
        import _heat

        parts.append(_heat.rows)
    rows: list[Row] = []
    with threadpool_limits(limits=1):
        for i, part in enumerate(parts):
            rows += part()
            if progress is not None:
                progress((i + 1) / len(parts))
    return rows


def tree_query() -> list[Row]:
    """The graph against the query that it cannot do without."""
    rows = []
    for n in (4_000, LARGE):
        X = random_sphere(n)
        seconds = take_turns({"ours": lambda X=X: knn_graph(X, 10), "cKDTree": lambda X=X: cKDTree(X).query(X, 11)}, 5)
        rows.append(compared(f"knn_graph n={n}", seconds, "cKDTree", "<= 1.3", "graph of 10 neighbors on a sphere"))
    return rows


def graph_exponents() -> list[Row]:
    """Growth of the graph and of frames with Laplacian."""
    graph, rest = [], []
    for n in GRAPH_SIZES:
        X = random_sphere(n)
        W = knn_graph(X, 10)
        graph.append(min(take_turns({"": lambda X=X: knn_graph(X, 10)}, 3)[""]))
        rest.append(min(take_turns({"": lambda X=X, W=W: connection(X, W)}, 2)[""]))
    return [
        fitted("graph-in-n", GRAPH_SIZES, graph, "<= 1.15", "graph of 10 neighbors, n = 1e4 to 1.6e5"),
        fitted("frames-in-n", GRAPH_SIZES, rest, "<= 1.05", "frames along the graph and connection Laplacian"),
    ]


def small_eigenpairs(n: int = 4_000, k: int = 16) -> list[Row]:
    """Against Lanczos on the matrix itself."""
    X, L = problem(n)
    seconds = take_turns({"ours": lambda: lowest_eigenpairs(L, k, points=X)}, 3)
    seconds |= take_turns({"eigsh SM": lambda: scipy.sparse.linalg.eigsh(L, k, which="SM", maxiter=10**6)}, 1)
    return [compared(f"eigenpairs n={n} SM", seconds, "eigsh SM", "<= 0.2", f"{k} lowest pairs of {2 * n} unknowns")]


def default_ordering(n: int = 20_000, k: int = 16) -> list[Row]:
    """Against shift-invert as SciPy does it."""
    X, L = problem(n)
    A, shift = L.tocsc(), -1e-6 * float(abs(L).sum(axis=0).max())
    seconds = take_turns({"ours": lambda: lowest_eigenpairs(L, k, points=X)}, 2)
    seconds |= take_turns({"eigsh sigma": lambda: scipy.sparse.linalg.eigsh(A, k, sigma=shift)}, 1)
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

    seconds = take_turns({"ours": lambda: lowest_eigenpairs(L, k, points=X), "pyamg lobpcg": peer}, 1)
    what = f"{k} lowest pairs of {2 * n} unknowns; the peer stops at 1e-4 lambda_k"
    return [compared(f"eigenpairs n={n} lobpcg", seconds, "pyamg lobpcg", None, what)]


def large_eigenpairs() -> list[Row]:
    """At 1e5 points each in a process of its own, whose peak memory is read; and the growth up to there."""
    rows, largest = [], 0.0
    for shape, k, bound in (("fibonacci", 16, "<= 60"), ("fibonacci", 50, "<= 100"), ("random", 50, "<= 60")):
        call = f"from geometry import measure; measure({shape!r}, {LARGE}, {k})"
        folder = str(__file__).rsplit("/", 1)[0]
        found = subprocess.run([sys.executable, "-c", call], cwd=folder, capture_output=True, text=True, check=True)
        seconds, gib, residual = map(float, found.stdout.split())
        name = f"eigenpairs n={LARGE} k={k} {shape}"
        rows += [
            single(f"{name} time", seconds, "s", bound, f"{k} lowest pairs of {2 * LARGE} unknowns, {shape} sphere"),
            single(f"{name} memory", gib, "GiB", "<= 3", "peak of the process"),
            single(f"{name} residual", residual, "lambda_k", "<= 1e-8", "largest residual by the largest eigenvalue"),
        ]
        if k == 16:
            largest = seconds
    seconds_of = []
    for n in PAIR_SIZES:
        X, L = problem(n)
        seconds_of.append(min(take_turns({"": lambda X=X, L=L: lowest_eigenpairs(L, 16, points=X)}, 2)[""]))
    sizes = (*PAIR_SIZES, LARGE)
    return [*rows, fitted("eigenpairs-in-n", sizes, [*seconds_of, largest], "<= 1.5", "16 pairs, n = 4e3 to 1e5")]


def measure(shape: str, n: int, k: int) -> None:
    """Write CPU seconds, peak GiB and residual by lambda_k of one run to standard output."""
    import resource

    with threadpool_limits(limits=1):
        X, L = problem(n, shape)
        before = time.process_time()
        w, V = lowest_eigenpairs(L, k, points=X)
        seconds = time.process_time() - before
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    residual = float(np.linalg.norm(L @ V - V * w, axis=0).max() / w[-1])
    sys.stdout.write(f"{seconds} {peak} {residual}\n")


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


def take_turns(calls: dict[str, Callable[[], object]], repeats: int) -> Timed:
    """CPU seconds of each call, measured in turns."""
    seconds: Timed = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            before = time.process_time()
            call()
            seconds[name].append(time.process_time() - before)
    return seconds


def compared(name: str, seconds: Timed, peer: str, bound: str | None, what: str) -> Row:
    ours, theirs = np.array(seconds["ours"]), np.array(seconds[peer])
    pairs = ours / (theirs if len(theirs) == len(ours) else np.median(theirs))
    return {
        "name": name,
        "ours": float(np.median(ours)),
        "peer": f"{peer} ({float(np.median(theirs)):.3g} s)",
        "ratio": float(np.median(pairs)),
        "interval": bootstrap_interval(pairs, statistic=np.median) if len(pairs) > 1 else None,
        "bound": bound,
        "unit": "s",
        "what": what,
        "better": "lower",
    }


def fitted(name: str, sizes: tuple[int, ...], seconds: list[float], bound: str, what: str) -> Row:
    slope, interval = slope_fit(sizes, seconds)
    return single(name, slope, "exponent", bound, what) | {"interval": interval}


def single(name: str, value: float, unit: str, bound: str, what: str) -> Row:
    empty = {"peer": None, "ratio": None, "interval": None, "better": "lower"}
    return {"name": name, "ours": value, "bound": bound, "unit": unit, "what": what} | empty
