r"""Prepare ``e^{-tL}`` once and use it at many times: the engine under `heat_apply` and `heat_kernel`.

`HeatFlow` holds the bound of the spectrum, or the eigenpairs, and the Laplacian in a numbering (reverse Cuthill-McKee)
in which neighbors are close in memory. See ``heat`` for the mathematics and the notation.
"""

from __future__ import annotations

import copy
import math
import os
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import scipy.linalg
import scipy.sparse
import scipy.sparse.linalg
from scipy.linalg.blas import daxpy
from scipy.sparse import _sparsetools
from scipy.sparse.csgraph import reverse_cuthill_mckee
from scipy.special import ive
from threadpoolctl import threadpool_limits

from steepest.core.errors import (
    at_least,
    check,
    check_params,
    interval,
    nonnegative,
    one_of,
    optional,
    positive,
    value_error,
)
from steepest.core.parallel import ordered_map
from steepest.geometry.eigenpairs import lowest_eigenpairs

__all__ = ["EULER_STEPS", "HeatFlow", "as_times", "chebyshev_order", "spectral_upper_bound"]

Array = np.ndarray
BLOCK = 64  # columns at a time: the three working arrays stay in the cache
EULER_STEPS = 32  # official code
RANK = 200
SQUARING_SPEED = 6.0  # times as fast as a sparse product, by flops (measured)
LIMITS = {
    "method": one_of("chebyshev", "euler", "exact", "lowrank"),
    "order": optional(at_least(1, integer=True)),
    "tol": interval(0, 1, low_open=True, high_open=True),
    "lmax": optional(positive()),
    "rank": optional(at_least(1, integer=True)),
    "n_jobs": interval(integer=True),
}


class HeatFlow:
    """``e^{-tL}`` by one method, prepared once (bound of the spectrum or eigenpairs) and used at many times.

    Parameters are those of `heat_apply`. ``flow(B, t)`` diffuses columns, ``flow.kernel(t)`` is the whole kernel.
    """

    def __init__(
        self,
        L: Any,
        method: str = "chebyshev",
        *,
        order: int | None = None,
        tol: float = 1e-10,
        lmax: float | None = None,
        rank: int | None = None,
        n_jobs: int = 1,
    ) -> None:
        check_params(locals(), LIMITS)
        if n_jobs == 0:
            raise value_error("n_jobs", "an integer other than 0", n_jobs)
        self.L = _symmetric(L)
        self.n = self.L.shape[0]
        self.method, self.order, self.tol, self.n_jobs = method, order, float(tol), n_jobs
        self.norm = float(abs(self.L).sum(axis=0).max())
        self.lmax = self.norm
        self.eigenpairs: tuple[Array, Array] | None = None
        if method == "chebyshev":
            self.lmax = spectral_upper_bound(self.L) if lmax is None else float(lmax)
        elif method == "exact":
            self.eigenpairs = scipy.linalg.eigh(self.L.toarray(), driver="evd")
        elif method == "lowrank":
            self.eigenpairs = lowest_eigenpairs(self.L, min(rank or RANK, self.n))
        # numbering in which neighbors are close in memory
        self.renumbered = reverse_cuthill_mckee(scipy.sparse.csr_matrix(self.L), symmetric_mode=True)
        self.place = np.argsort(self.renumbered)  # where point i of the caller went
        self.A = self.L[self.renumbered][:, self.renumbered].tocsr()
        self.A.sort_indices()

    def __call__(self, B: Any, t: Any) -> Array:
        """Diffuse the columns of `B`."""
        times, scalar = as_times(t)
        columns, one_dimensional = _columns(B, self.n)
        out = np.empty((len(times), self.n, columns.shape[1]))
        for span, block in zip(_spans(columns.shape[1]), self._blocks(columns, times)):
            out[:, :, span] = block
        result = out[..., 0] if one_dimensional else out
        return result[0] if scalar else result

    def kernel(self, t: float) -> Array:
        """Compute ``e^{-tL}`` whole."""
        s = self.squarings(t)
        if self.eigenpairs is not None:
            w, V = self.eigenpairs
            half = V * np.exp(-0.5 * t * w)
            return half @ half.T  # one triangle, mirrored
        tol, self.tol = self.tol, self.tol / 2**s
        try:
            H = self(scipy.sparse.eye_array(self.n, format="csc"), t / 2**s)
        finally:
            self.tol = tol
        H += H.T.copy()
        H *= 0.5
        for _ in range(s):
            H = H @ H.T
        return H

    def half(self) -> HeatFlow:
        """Give the flow whose ``H_{t/2}`` squares to this one's ``H_t``; for `euler` by half as many steps (up)."""
        if self.method != "euler":
            return self
        flow = copy.copy(self)
        flow.order = ((self.order or EULER_STEPS) + 1) // 2
        return flow

    def squarings(self, t: float) -> int:
        """Choose s of ``H_t = (H_{t/2^s})^{2^s}`` by counting flops; 0 with a given order or another method."""
        if self.method != "chebyshev" or self.order is not None:
            return 0
        step = (2.0 * self.L.nnz + 4.0 * self.n) * self.n * SQUARING_SPEED

        def cost(s: int) -> float:
            return chebyshev_order(t / 2**s, self.lmax, self.tol / 2**s) * step + s * float(self.n) ** 3

        return min(range(12), key=cost)

    def info(self, t: Any, *, kernel: bool = False) -> dict[str, Any]:
        """Say what was done for time(s) `t`: order, bounds."""
        times, scalar = as_times(t)
        told: dict[str, Any] = {"method": self.method}
        if self.method == "chebyshev":
            squarings = [self.squarings(s) if kernel else 0 for s in times]
            scaled = [s / 2**q for s, q in zip(times, squarings)]
            orders = [self._order(s, self.tol / 2**q) for s, q in zip(scaled, squarings)]
            tails = [_tail(s * self.lmax / 2, k) * 2**q for s, k, q in zip(scaled, orders, squarings)]
            told |= {"order": max(orders), "lmax": self.lmax, "tail": tails[0] if scalar else np.array(tails)}
            if kernel:
                told["squarings"] = squarings[0] if scalar else squarings
        elif self.method == "euler":
            told |= {"order": self.order or EULER_STEPS, "tail": None}
        else:
            w = self.eigenpairs[0] if self.eigenpairs is not None else np.zeros(1)
            cut = np.exp(-np.array(times) * w[-1]) if len(w) < self.n else np.zeros(len(times))
            told |= {"order": len(w), "tail": float(cut[0]) if scalar else cut}
        return told

    def _order(self, t: float, tol: float) -> int:
        return chebyshev_order(t, self.lmax, tol) if self.order is None else self.order

    def _blocks(self, columns: Any, times: list[float]) -> Iterator[Array]:
        """Give the diffused columns, BLOCK at a time and in the caller's numbering, each (n_t, n, b)."""
        spans = _spans(columns.shape[1])
        if self.eigenpairs is not None:
            w, V = self.eigenpairs
            for span in spans:
                C = V.T @ _dense(columns[:, span])
                yield np.stack([V @ (np.exp(-s * w)[:, None] * C) for s in times])
            return
        if self.method == "euler":
            coefficients = np.array(times) / (self.order or EULER_STEPS)
            job: tuple[Any, ...] = ("euler", self.A, coefficients, self.order or EULER_STEPS)
        else:
            weights = [_coefficients(s * self.lmax / 2, self._order(s, self.tol)) for s in times]
            safe = [_coefficients(s * self.norm / 2, self._safe_order(s)) for s in times]
            job = ("chebyshev", self.A, (self.lmax, weights), (self.norm, safe))
        renumbered = columns[self.renumbered]
        backend, workers = _workers(self.n_jobs)
        if backend == "serial":
            with threadpool_limits(limits=1, user_api="blas"):  # blocks are too small to share among threads
                for span in spans:
                    yield _diffused(job, _dense(renumbered[:, span]))[:, self.place]
            return
        share = math.ceil(len(spans) / (4 * workers))  # blocks a task, so that L travels seldom
        tasks = [(job, renumbered[:, _joined(spans[i : i + share])]) for i in range(0, len(spans), share)]
        for part in ordered_map(_diffused_task, tasks, backend=backend, n_workers=workers):
            for block in part:
                yield block[:, self.place]

    def _safe_order(self, t: float) -> int:
        return chebyshev_order(t, self.norm, self.tol) if self.order is None else self.order


def chebyshev_order(t: float, lmax: float, tol: float = 1e-10) -> int:
    """Find the least order K with ``Σ_{j>K} 2 e^{-z} I_j(z) <= tol``, ``z = t lmax / 2``.

    It grows as ``sqrt(2 z ln(1/tol)) + ln(1/tol)``.

    Examples
    --------
    >>> chebyshev_order(10.0, 2.0)
    23
    """
    check("t", t, nonnegative())
    check("lmax", lmax, nonnegative())
    check("tol", tol, LIMITS["tol"])
    tails = _tails(float(t) * float(lmax) / 2, float(tol))
    return int(np.argmax(tails <= tol))


def spectral_upper_bound(L: Any) -> float:
    """Bound the largest eigenvalue of a symmetric matrix from above.

    The smaller of ``‖L‖_1`` and 1.02 times the largest Ritz value, the latter once its residual is below a thousandth
    of it (Lanczos from a fixed start vector, at most 100 steps).

    Examples
    --------
    >>> bound = spectral_upper_bound(np.diag([1.0, 2.0, 3.0]))
    >>> 3.0 <= bound <= 3.06
    True
    """
    A = _symmetric(L)
    norm = float(abs(A).sum(axis=0).max())
    ritz = _largest_ritz_value(A)
    return norm if ritz is None else min(norm, 1.02 * ritz)


def _symmetric(L: Any) -> Any:
    """Check a Laplacian and bring it to CSR in float64."""
    if scipy.sparse.issparse(L):
        A = scipy.sparse.csr_array(L, dtype=np.float64)
    else:
        dense = np.asarray(L, dtype=np.float64)
        if dense.ndim != 2:
            raise value_error("L", "a square 2-D array", L)
        A = scipy.sparse.csr_array(dense)
    if A.shape[0] != A.shape[1] or A.shape[0] == 0:
        raise value_error("L", "a square 2-D array", L)
    if not np.isfinite(A.data).all():
        raise value_error("L", "finite", "NaN or infinity")
    off = abs(A - A.T)
    if off.nnz and float(off.max()) > 1e-10 * float(abs(A).max()):
        cure = "for kind 'random_walk' diffuse with 'normalized' and rescale by D^(1/2)"
        raise value_error("L", "symmetric", f"an asymmetry of {float(off.max()):.3g}", cure)
    return A


def as_times(t: Any) -> tuple[list[float], bool]:
    if np.ndim(t) == 0:
        check("t", t, nonnegative())
        return [float(t)], True
    times = np.asarray(t, dtype=np.float64)
    if times.ndim != 1 or times.size == 0:
        raise value_error("t", "a number or a non-empty 1-D sequence", t)
    if not np.isfinite(times).all() or times.min() < 0:
        raise value_error("t", ">= 0 and finite", t)
    return [float(s) for s in times], False


def _columns(B: Any, n: int) -> tuple[Any, bool]:
    if scipy.sparse.issparse(B):
        columns, one_dimensional = scipy.sparse.csc_array(B, dtype=np.float64), False
        values = columns.data
    else:
        columns = np.asarray(B, dtype=np.float64)
        one_dimensional = columns.ndim == 1
        columns = columns[:, None] if one_dimensional else columns
        values = columns
    if columns.ndim != 2 or columns.shape[0] != n:
        raise value_error("B", f"of shape ({n},) or ({n}, m)", B)
    if not np.isfinite(values).all():
        raise value_error("B", "finite", "NaN or infinity")
    return columns, one_dimensional


def _spans(m: int) -> list[slice]:
    return [slice(i, min(i + BLOCK, m)) for i in range(0, m, BLOCK)]


def _joined(spans: list[slice]) -> slice:
    return slice(spans[0].start, spans[-1].stop)


def _dense(block: Any) -> Array:
    return np.array(block.toarray() if scipy.sparse.issparse(block) else block, order="C")


def _workers(n_jobs: int) -> tuple[Any, int]:
    cores = os.cpu_count() or 1
    workers = n_jobs if n_jobs > 0 else max(1, cores + 1 + n_jobs)
    if workers == 1:
        return "serial", 1
    ray = sys.modules.get("ray")  # never imported for its own sake
    return ("ray" if ray is not None and ray.is_initialized() else "processes"), workers


def _diffused_task(task: tuple[Any, Any]) -> list[Array]:
    job, columns = task
    with threadpool_limits(limits=1, user_api="blas"):
        return [_diffused(job, _dense(columns[:, span])) for span in _spans(columns.shape[1])]


def _diffused(job: tuple[Any, ...], B: Array) -> Array:
    """Diffuse one block (n, b): (n_t, n, b)."""
    if job[0] == "euler":
        return _euler(job[1], B, job[2], job[3])
    _, A, usual, safe = job
    result, contained = _chebyshev(A, B, *usual)
    return result if contained else _chebyshev(A, B, *safe)[0]


def _euler(A: Any, B: Array, steps: Array, count: int) -> Array:
    out = np.empty((len(steps), *B.shape))
    for i, h in enumerate(steps):
        system = scipy.sparse.csc_matrix(scipy.sparse.eye_array(A.shape[0]) + h * A)
        factor = scipy.sparse.linalg.splu(
            system, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options={"SymmetricMode": True}
        )
        x = B
        for _ in range(count):
            x = factor.solve(x)
        out[i] = x
    return out


def _chebyshev(A: Any, B: Array, lmax: float, weights: list[Array]) -> tuple[Array, bool]:
    """Sum the series for all times; also whether ``‖T_K B‖ <= ‖B‖``, which a too small `lmax` breaks.

    The recurrence runs on ``S_j = ± T_j`` with signs + + - - in turn: ``S_{j+1} = ± M S_j + S_{j-1}``, one product
    that adds in place, ``M = 2 (L/φ - I)``.
    """
    out = np.zeros((len(weights), *B.shape))
    n, b = B.shape
    order = max(len(c) for c in weights) - 1
    M = ((4.0 / lmax) * A - 2.0 * scipy.sparse.eye_array(n)).tocsr() if lmax else scipy.sparse.csr_array((n, n))
    signed = (M.data, -M.data)
    previous, current = np.zeros_like(B), B.copy()  # (n, b) S_{-1}, unused, and S_0
    for j in range(order + 1):
        sign = 1.0 if j % 4 < 2 else -1.0
        for i, c in enumerate(weights):
            if j < len(c):
                daxpy(current.reshape(-1), out[i].reshape(-1), a=sign * c[j])
        if j == order:
            break
        data = signed[j % 2] if j else 0.5 * M.data
        _sparsetools.csr_matvecs(n, n, b, M.indptr, M.indices, data, current.reshape(-1), previous.reshape(-1))
        previous, current = current, previous
    return out, bool(np.linalg.norm(current) <= (1 + 1e-6) * np.linalg.norm(B))


def _coefficients(z: float, order: int) -> Array:
    """Chebyshev coefficients of ``x -> e^{-z (x + 1)}`` on [-1, 1]."""
    j = np.arange(order + 1)
    c = 2.0 * (-1.0) ** j * ive(j, z)
    c[0] *= 0.5
    return c


def _tail(z: float, order: int) -> float:
    tails = _tails(z, 1e-16)
    return float(tails[order]) if order < len(tails) else 0.0


def _tails(z: float, tol: float) -> Array:
    """``Σ_{j>K} 2 e^{-z} I_j(z)`` for K = 0, 1, ... up to a K whose tail is far below `tol`."""
    log = math.log(1 / tol) + 10
    last = math.ceil(math.sqrt(2 * z * log) + 2 * log)
    terms = 2 * ive(np.arange(1, last + 1), z)
    ratio = z / (last + 0.5 + math.hypot(last + 0.5, z))  # I_{j+1}/I_j <= ratio for j >= last (Amos 1974)
    rest = terms[-1] * ratio / (1 - ratio)
    return np.append(np.cumsum(terms[::-1])[::-1], 0.0) + rest


def _largest_ritz_value(A: Any, steps: int = 100) -> float | None:
    """Run Lanczos until the residual of the top pair is below a thousandth of it; None if it never is."""
    n = A.shape[0]
    v = np.random.default_rng(0).standard_normal(n)
    v /= np.linalg.norm(v)
    before, alphas, betas = np.zeros(n), list[float](), list[float]()
    for k in range(min(steps, n)):
        w = A @ v - (betas[-1] * before if betas else 0.0)
        alphas.append(float(v @ w))
        w -= alphas[-1] * v
        beta = float(np.linalg.norm(w))
        if k % 5 == 4 or k == n - 1 or beta == 0.0:
            theta, s = scipy.linalg.eigh_tridiagonal(alphas, betas, select="i", select_range=(k, k))
            if beta * abs(float(s[-1, 0])) <= 1e-3 * float(theta[0]):
                return float(theta[0])
            if beta == 0.0:
                return None
        betas.append(beta)
        before, v = v, w / beta
    return None
