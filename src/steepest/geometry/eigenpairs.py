r"""Lowest eigenpairs of a sparse graph or connection Laplacian.

    L v = lambda v,   L symmetric positive semi-definite, N x N, the k smallest lambda

Three ways. `dense`: LAPACK. `shift-invert`: Lanczos on (L + eps I)^-1, eps = 1e-6 ||L||_1, whose factor is sparse when
the unknowns are ordered by nested dissection of the points they sit at. `lobpcg`: locally optimal block preconditioned
conjugate gradients on k + max(5, k / 4) vectors, preconditioned by smoothed-aggregation multigrid, for matrices whose
factor would not fit. What is returned was measured: max_i ||L v_i - lambda_i v_i|| <= max(tol lambda_k, 100 u ||L||_1),
u the unit of rounding.

Papers: lehoucq1998arpack, george1973nested, knyazev2001toward, vanek1996algebraic.
Departures: none in the algorithms; a Rayleigh-Ritz step on the converged space follows, so that eigenvalues near zero
keep their relative accuracy and vectors of a cluster are orthonormal.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.linalg
from numpy.typing import ArrayLike, NDArray
from scipy import sparse
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh, lobpcg, splu

from steepest.core.errors import check, interval, one_of, optional, positive, value_error
from steepest.core.extras import require
from steepest.core.random import numpy_generator
from steepest.geometry._dissection import nested_dissection
from steepest.geometry._matrices import as_points, as_square, asymmetry_of
from steepest.geometry.graph import GeometryWarning

__all__ = ["lowest_eigenpairs"]

Floats = NDArray[np.float64]
Integers = NDArray[np.integer[Any]]

DENSE = 600  # unknowns up to which LAPACK is the fastest
FACTOR_LIMIT = {1: 45_000, 2: 400_000, 3: 45_000}  # unknowns whose factor fits, by block size
SHIFT = 1e-6  # of ||L||_1
RESOLVED = 1e-6  # of lambda_k: eigenvalues that differ by less need not be told apart
LANCZOS_TOL = 1e-12
SHIFT_INVERT_TOL, LOBPCG_TOL = 1e-8, 1e-4  # of lambda_k
LOBPCG_ROUND = 20  # iterations between two looks at the residuals


def lowest_eigenpairs(
    L: Any,
    k: int,
    *,
    method: str = "auto",
    points: ArrayLike | None = None,
    near_kernel: ArrayLike | None = None,
    tol: float | None = None,
    maxiter: int | None = None,
    random_state: int | np.random.Generator | np.random.RandomState | None = 0,
) -> tuple[Floats, Floats]:
    """Compute the k lowest eigenpairs of a symmetric positive semi-definite sparse matrix.

    Parameters
    ----------
    L : sparse matrix or array, shape (N, N)
        Symmetric; a Laplacian (`laplacian`, `connection_laplacian`).
    k : int
        In [1, N].
    method : "auto", "dense", "shift-invert" or "lobpcg"
        "auto" is dense up to 600 unknowns or for ``k >= N / 4``; else shift-invert while the factor is expected to
        fit (blocks of 2: 4e5 unknowns; blocks of 3 and scalar matrices: 4.5e4); else lobpcg.
    points : array_like, shape (n, D), or None
        Where the unknowns sit, ``N / n`` consecutive ones at each point: the order of the factorization comes from
        them. Without them the factorization takes 2 to 4 times as long.
    near_kernel : array_like, shape (N, m), or None
        For lobpcg: vectors that L nearly annihilates. For a connection Laplacian the D constant fields in the frames,
        ``frames.transpose(0, 2, 1).reshape(-1, D)``. None takes the constants of each component of a block.
    tol : float or None
        See the module; None is 1e-8, and 1e-4 for lobpcg.
    maxiter : int or None
        Restarts of the Lanczos method (None: 10 N, SciPy's default) or iterations of lobpcg (None: 500).
    random_state : int, Generator, RandomState or None
        For the start vectors.

    Returns
    -------
    values : ndarray, shape (k,)
        Ascending.
    vectors : ndarray, shape (N, k)
        Orthonormal columns; the entry of largest magnitude of each is positive.

    Raises
    ------
    ValueError
        `L` is not square, finite and symmetric, `k` is outside its range, or `points` or `near_kernel` of another size.
    RuntimeError
        Not converged; the text gives the residuals.
    ImportError
        lobpcg without pyamg.

    Warns
    -----
    GeometryWarning
        The factorization ran out of memory and lobpcg took over.

    Examples
    --------
    >>> from steepest.geometry.graph import laplacian
    >>> path = sparse.diags_array([[1.0, 1.0], [1.0, 1.0]], offsets=[-1, 1])
    >>> values, vectors = lowest_eigenpairs(laplacian(path), 2)
    >>> [round(abs(float(x)), 6) for x in values], vectors.shape
    ([0.0, 1.0], (3, 2))
    """
    d = _block_size(L)
    A = as_square(L, "L")
    N = A.shape[0]
    check("k", k, interval(1, N, integer=True))
    check("method", method, one_of("auto", "dense", "shift-invert", "lobpcg"))
    check("tol", tol, optional(positive()))
    check("maxiter", maxiter, optional(positive(integer=True)))
    norm = float(np.abs(A).sum(axis=0).max())
    if (asymmetry := asymmetry_of(A)) > 1e-10 * norm:
        raise value_error("L", "symmetric (relative 1e-10)", f"|L - L^T| up to {asymmetry:g}")
    places = None
    if points is not None:
        places = as_points(points, "points")
        if N % len(places):
            raise value_error("points", f"of a number that divides the {N} unknowns", len(places))
        d = N // len(places)
    if near_kernel is not None:
        near_kernel = as_points(near_kernel, "near_kernel")
        if len(near_kernel) != N:
            raise value_error("near_kernel", f"of {N} rows", near_kernel)
    rng = numpy_generator(random_state, name="random_state")
    if method == "auto":
        method = _choice(N, k, d)
    if method == "shift-invert" and k >= N:
        raise value_error("k", f"less than the {N} unknowns for method 'shift-invert'", k)
    if method == "dense":
        return _finished(A, *_dense(A, k), k, norm, tol or SHIFT_INVERT_TOL)
    if method == "shift-invert":
        try:
            accuracy = tol or SHIFT_INVERT_TOL
            found = _shift_invert(A, k, d, places, norm, accuracy, maxiter, rng)
            return _finished(A, *found, k, norm, accuracy)
        except MemoryError:
            warnings.warn(
                f"no memory for the factor of {N} unknowns; LOBPCG takes over (residual {tol or LOBPCG_TOL:g} of the "
                "largest wanted eigenvalue)",
                GeometryWarning,
                stacklevel=2,
            )
    found = _lobpcg(A, k, d, near_kernel, norm, tol or LOBPCG_TOL, maxiter or 500, rng)
    return _finished(A, *found, k, norm, tol or LOBPCG_TOL)


def _block_size(L: Any) -> int:
    """Unknowns that sit together, as far as the matrix tells: the block size of a BSR matrix, else 1."""
    size = getattr(L, "blocksize", (1, 1)) if sparse.issparse(L) and L.format == "bsr" else (1, 1)
    return int(size[0]) if size[0] == size[1] else 1


def _choice(N: int, k: int, d: int) -> str:
    if N <= DENSE or k >= N / 4:
        return "dense"
    return "shift-invert" if FACTOR_LIMIT.get(d, 0) >= N else "lobpcg"


def _dense(A: sparse.csr_array, k: int) -> tuple[Floats, Floats]:
    values, vectors = scipy.linalg.eigh(A.toarray(), subset_by_index=(0, k - 1))
    return values, vectors


def _shift_invert(
    A: sparse.csr_array,
    k: int,
    d: int,
    places: Floats | None,
    norm: float,
    tol: float,
    maxiter: int | None,
    rng: np.random.Generator,
) -> tuple[Floats, Floats]:
    """Lanczos on the inverse of L + eps I: a basis of the k lowest eigenvectors, several copies of a value included."""
    N = A.shape[0]
    order = _elimination_order(A, d, places)
    permuted = A[order][:, order].tocsc()
    shift = SHIFT * norm if norm > 0 else 1.0
    natural = places is not None
    factor = _factor(permuted, shift, natural)
    values, basis = _rayleigh_ritz(permuted, _lanczos(factor.solve, np.empty((N, 0)), k, maxiter, rng))
    if _residuals(permuted, values, basis).max() > _allowed(values[-1], norm, tol):  # among values next to zero
        values, basis = _rayleigh_ritz(permuted, factor.solve(basis))
    del factor
    boundary = (1 - RESOLVED) * values[-1]
    n_below = _count_below(permuted, boundary, natural) if boundary > RESOLVED * shift else 0
    if n_below > np.count_nonzero(values < boundary):  # one vector sees one copy of a value, but for round-off
        factor = _factor(permuted, shift, natural)
        while (n_missing := n_below - int(np.count_nonzero(values < boundary))) > 0:
            more = _lanczos(factor.solve, basis, n_missing, maxiter, rng)
            before, n_kept = n_missing, basis.shape[1]
            values, basis = _rayleigh_ritz(permuted, np.concatenate((basis, more), axis=1))
            if n_below - np.count_nonzero(values < boundary) >= before:
                raise RuntimeError(
                    f"{n_below} eigenvalues lie below {boundary:g} and {n_kept - np.count_nonzero(values >= boundary)} "
                    "were found; try method='lobpcg'"
                )
    out = np.empty((N, k))
    out[order] = basis[:, :k]
    return values[:k], out


def _factor(A: sparse.csc_array, shift: float, natural: bool) -> Any:
    """Factor A + shift I with pivots from the diagonal, in its own order or in one of minimum degree."""
    return splu(
        (A + shift * sparse.eye_array(A.shape[0], format="csc")).tocsc(),
        permc_spec="NATURAL" if natural else "MMD_AT_PLUS_A",
        diag_pivot_thresh=0.0,
        options={"SymmetricMode": True},
    )


def _count_below(A: sparse.csc_array, boundary: float, natural: bool) -> int:
    """Count the eigenvalues below a number: by Sylvester's law, the negative pivots of A - boundary I."""
    factor = _factor(A, -boundary, natural)
    if not np.array_equal(factor.perm_r, factor.perm_c):
        raise RuntimeError(f"a pivot of L - {boundary:g} I vanished; try another k")
    return int(np.count_nonzero(factor.U.diagonal() < 0))


def _lanczos(
    solve: Callable[[Floats], Floats], known: Floats, k: int, maxiter: int | None, rng: np.random.Generator
) -> Floats:
    """Eigenvectors of the k largest eigenvalues of an inverse on the complement of known orthonormal vectors."""

    def inverse(x: Floats) -> Floats:
        y = solve(x - known @ (known.T @ x))
        return y - known @ (known.T @ y)

    N = len(known)
    start = rng.standard_normal(N)
    operator = LinearOperator((N, N), matvec=inverse if known.shape[1] else solve, dtype=np.float64)
    try:
        return np.asarray(
            eigsh(
                operator,
                k,
                which="LA",
                tol=LANCZOS_TOL,
                ncv=min(N, max(2 * k + 1, 20)),
                v0=start - known @ (known.T @ start),
                maxiter=maxiter,
            )[1]
        )
    except ArpackNoConvergence as error:
        raise RuntimeError(f"the Lanczos method found {len(error.eigenvalues)} of {k} pairs; raise maxiter") from None


def _elimination_order(A: sparse.csr_array, d: int, places: Floats | None) -> Integers:
    """Order of the unknowns, the d of a point together: nested dissection, or at random for minimum degree to mend."""
    n = A.shape[0] // d
    if places is None:
        order = np.random.default_rng(0).permutation(n)
    else:
        coupled = sparse.bsr_array(A, blocksize=(d, d))
        order = nested_dissection(
            places, sparse.csr_array((np.ones(len(coupled.indices)), coupled.indices, coupled.indptr))
        )
    return (order[:, None] * d + np.arange(d)).ravel()


def _lobpcg(
    A: sparse.csr_array,
    k: int,
    d: int,
    near_kernel: Floats | None,
    norm: float,
    tol: float,
    maxiter: int,
    rng: np.random.Generator,
) -> tuple[Floats, Floats]:
    """Block conjugate gradients with multigrid; looks at the residuals of the wanted pairs every few iterations."""
    pyamg = require("pyamg", "physics", what="lowest_eigenpairs(method='lobpcg')")
    N = A.shape[0]
    size = k + max(5, k // 4)
    if 5 * size >= N:
        raise value_error("k", f"at most about {N // 6} of {N} unknowns for method 'lobpcg'", k)
    B = np.kron(np.ones((N // d, 1)), np.eye(d)) if near_kernel is None else near_kernel
    shifted = sparse.bsr_matrix(A + sparse.eye_array(N) * (SHIFT * norm), blocksize=(d, d))
    multigrid = pyamg.smoothed_aggregation_solver(shifted, B=B)
    preconditioner = multigrid.aspreconditioner()
    vectors = rng.standard_normal((N, size))
    vectors[:, : min(B.shape[1], size)] = B[:, :size]
    spent = 0
    while spent < maxiter:
        steps = min(LOBPCG_ROUND, maxiter - spent)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # SciPy's word on what has not converged: we look ourselves
            values, vectors = lobpcg(A, vectors, M=preconditioner, tol=1e-14 * norm, maxiter=steps, largest=False)
        spent += steps
        residuals = np.linalg.norm(A @ vectors - vectors * values, axis=0)
        if residuals[:k].max() <= _allowed(values[k - 1], norm, tol):
            break
    return _rayleigh_ritz(A, vectors)


def _allowed(largest: float, norm: float, tol: float) -> float:
    return float(max(tol * largest, 100 * np.finfo(np.float64).eps * norm))


def _rayleigh_ritz(A: Any, basis: Floats) -> tuple[Floats, Floats]:
    """Ascending Ritz values of A on the span of a basis, and the Ritz vectors."""
    Q = np.linalg.qr(basis)[0]
    H = Q.T @ (A @ Q)
    values, rotation = np.linalg.eigh((H + H.T) / 2)
    return values, Q @ rotation


def _residuals(A: Any, values: Floats, vectors: Floats) -> Floats:
    return np.asarray(np.linalg.norm(A @ vectors - vectors * values, axis=0))


def _finished(
    A: sparse.csr_array, values: Floats, vectors: Floats, k: int, norm: float, tol: float
) -> tuple[Floats, Floats]:
    """Give the k lowest pairs, signed, if their residuals are small enough."""
    values, vectors = values[:k], vectors[:, :k]
    residuals = _residuals(A, values, vectors)
    allowed = _allowed(values[-1], norm, tol)
    if not residuals.max() <= allowed:
        shown = ", ".join(f"{r:.1e}" for r in residuals[:10]) + (", …" if k > 10 else "")
        raise RuntimeError(
            f"{int((residuals > allowed).sum())} of {k} eigenpairs have not converged: residuals {shown}, allowed "
            f"{allowed:.1e}; raise maxiter or tol"
        )
    peak = vectors[np.argmax(np.abs(vectors), axis=0), np.arange(k)]
    return values, vectors * np.where(peak < 0, -1.0, 1.0)
