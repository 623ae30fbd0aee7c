"""Heat on 64 columns beside SciPy's exponential at equal error, and the error of a fixed Chebyshev order.

``rows()`` gives the rows of both; CPU seconds.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import scipy.linalg
import scipy.sparse
import scipy.sparse.linalg

from _rows import Row, alone, compared, interleaved
from steepest.core.extras import installed
from steepest.geometry import alpha_decay_graph, heat_apply, laplacian

T = 10.0
COLUMNS = 64


def rows(n: int = 4000, pairs: int = 7) -> list[Row]:
    """Measure every row."""
    return [against_expm_multiply(n, pairs), *against_fixed_order()]


def roll(n: int) -> Any:
    """Laplacian of a noisy Swiss roll."""
    rng = np.random.default_rng(0)
    t = 1.5 * np.pi * (1 + 2 * rng.random(n))
    X = np.column_stack([t * np.cos(t), 5 * rng.random(n), t * np.sin(t)]) + 0.1 * rng.standard_normal((n, 3))
    return laplacian(alpha_decay_graph(X, 10))


def against_expm_multiply(n: int, pairs: int) -> Row:
    """At equal error: our tolerance is the error that SciPy's result has, measured against a tighter series."""
    L = roll(n)
    B = np.random.default_rng(1).standard_normal((n, COLUMNS))
    A = scipy.sparse.csr_array(-T * L)
    reference = heat_apply(L, B, T, tol=1e-15)
    theirs = np.linalg.norm(scipy.sparse.linalg.expm_multiply(A, B) - reference) / np.linalg.norm(B)
    tol = max(float(theirs), 1e-14)
    ours = np.linalg.norm(heat_apply(L, B, T, tol=tol) - reference) / np.linalg.norm(B)
    if ours > 2 * tol:
        raise AssertionError(f"the errors are not equal: {ours:.1e} and {theirs:.1e}")
    peer = "SciPy expm_multiply"
    tasks = {"ours": lambda: heat_apply(L, B, T, tol=tol), peer: lambda: scipy.sparse.linalg.expm_multiply(A, B)}
    what = f"{COLUMNS} columns at t={T:g}, both to a relative error of {tol:.0e}"
    return compared(f"heat n={n}", interleaved(tasks, pairs, time.process_time), peer, "<= 0.5", what)


def against_fixed_order(n: int = 500) -> list[Row]:
    """Largest error of an entry of the kernel at t = 50; PyGSP's filter has order 30 whatever the time."""
    if not installed("pygsp"):
        return []
    import pygsp

    t, L = 50.0, roll(n)
    exact = scipy.linalg.expm(-t * L.toarray())
    W = scipy.sparse.csr_matrix(scipy.sparse.diags_array(L.diagonal()) - L)
    W.eliminate_zeros()
    graph = pygsp.graphs.Graph(W)
    graph.estimate_lmax()
    signal = np.eye(n)
    # their kernel is exp(-scale x / lmax)
    theirs = pygsp.filters.Heat(graph, t * graph.lmax).filter(signal, method="chebyshev", order=30).reshape(n, n)
    ours, peer = (float(np.abs(H - exact).max()) for H in (heat_apply(L, signal, t), theirs))
    row = alone(f"order n={n}", ours, "", None, f"largest error of the heat kernel at t={t:g}")
    return [row | {"peer": "PyGSP, order 30", "ratio": ours / peer}]
