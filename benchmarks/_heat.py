"""Heat on 64 columns beside SciPy's exponential at equal error, and the error of a fixed Chebyshev order.

``rows()`` gives the rows of both, in the form of ``steepest.bench``. CPU seconds, median over pairs measured in turns.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.linalg
import scipy.sparse
import scipy.sparse.linalg

from steepest.core.extras import installed
from steepest.geometry import alpha_decay_graph, heat_apply, laplacian
from steepest.studies.claim import bootstrap_interval

Row = dict[str, Any]
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
    mine, peer = [], []
    for _ in range(pairs):
        mine.append(seconds(lambda: heat_apply(L, B, T, tol=tol)))
        peer.append(seconds(lambda: scipy.sparse.linalg.expm_multiply(A, B)))
    ratios = np.array(mine) / np.array(peer)
    return {
        "name": f"heat n={n}",
        "what": f"{COLUMNS} columns at t={T:g}, both to a relative error of {tol:.0e}",
        "unit": "s",
        "ours": float(np.median(mine)),
        "peer": "SciPy expm_multiply",
        "ratio": float(np.median(ratios)),
        "interval": bootstrap_interval(ratios, level=0.9),
        "bound": "<= 0.5",
        "better": "lower",
    }


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
    return [
        {
            "name": f"order n={n}",
            "what": f"largest error of the heat kernel at t={t:g}",
            "unit": "",
            "ours": ours,
            "peer": "PyGSP, order 30",
            "ratio": ours / peer,
            "interval": None,
            "bound": None,
            "better": "lower",
        }
    ]


def seconds(fn: Callable[[], Any]) -> float:
    """CPU seconds of one call."""
    start = time.process_time()
    fn()
    return time.process_time() - start
