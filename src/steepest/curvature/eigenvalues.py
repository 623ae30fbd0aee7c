r"""Extreme eigenvalues of a symmetric matrix from products: Lanczos with thick restarts.

A basis V (at most max(2 k + 10, 20) vectors) grows by v_{j+1} = w / beta, w = A v_j orthogonalized against V, and
H = V^T A V is filled from the coefficients. With H s = theta s the pair (theta, V s) has the residual beta |s_last|. A
full basis is replaced by the Ritz vectors of the wanted values and about half of the others, and the next vector.

Paper: wu2000thick.   Notation: n order, V basis (rows), H its Rayleigh quotient, theta, s Ritz values and vectors of H.
Departures: H is filled from inner products instead of the arrow form, so that restarts need no bookkeeping.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from steepest.core.errors import ConvergenceWarning, at_least, check, interval, one_of, positive
from steepest.core.random import torch_generator
from steepest.curvature.operators import aslinearoperator, check_square
from steepest.curvature.spectrum import Seed, is_breakdown, orthogonalize, require_symmetric
from steepest.curvature.vectors import accumulation_dtype

__all__ = ["EigenResult", "extreme_eigenvalues"]


@dataclass(frozen=True)
class EigenResult:
    """Extreme eigenvalues, descending, with vectors (n, k) and ``residuals = ||A v - lambda v||`` (k,)."""

    values: Tensor
    vectors: Tensor
    residuals: Tensor
    converged: bool
    num_matvecs: int


def extreme_eigenvalues(
    A: Any,
    k: int = 1,
    *,
    which: str = "LA",
    tol: float = 1e-6,
    max_matvecs: int = 1000,
    check_symmetric: bool = True,
    seed: Seed = None,
) -> EigenResult:
    """Compute k extreme eigenvalues of a symmetric matrix by Lanczos with thick restarts.

    Parameters
    ----------
    A : operator, Tensor, ndarray, sparse matrix
        Symmetric; see `aslinearoperator`.
    k : int
        How many.
    which : "LA", "SA", "LM" or "BE"
        Largest, smallest, largest in magnitude, or half from each end (one more from the high end if k is odd).
    tol : float
        Stop when ``||A v - lambda v|| <= tol max|lambda|`` for all; 50 units of rounding of the operator's dtype at
        the least.
    max_matvecs : int
        Budget of products, the k that verify the residuals included, the check of symmetry not.
    check_symmetric : bool
        Two products with random vectors.
    seed : int, torch.Generator or None

    Returns
    -------
    EigenResult
        `values` float64, `vectors` in the operator's dtype; `residuals` from k products of their own.

    Raises
    ------
    ValueError
        ``k`` outside [1, n], ``max_matvecs < 2 k``, or a matrix that is not square, real and symmetric.
    FloatingPointError
        A product is not finite; the text names the step.

    Warns
    -----
    ConvergenceWarning
        The budget was spent; the residuals are returned with ``converged=False``.

    Examples
    --------
    >>> A = torch.diag(torch.arange(1.0, 101.0, dtype=torch.float64))
    >>> result = extreme_eigenvalues(A, 2, seed=0)
    >>> [round(x, 5) for x in result.values.tolist()], result.converged
    ([100.0, 99.0], True)
    """
    A = aslinearoperator(A)
    n = check_square(A)
    check("k", k, interval(1, n, integer=True))
    check("which", which, one_of("LA", "SA", "LM", "BE"))
    check("tol", tol, positive())
    check("max_matvecs", max_matvecs, at_least(2 * k, integer=True))
    generator = torch_generator(seed, A.device)
    work = accumulation_dtype(A.dtype)
    q = torch.randn(n, generator=generator, dtype=work, device=A.device)
    require_symmetric(A, check_symmetric, generator)
    before = A.n_products
    threshold = max(tol, 50 * torch.finfo(A.dtype).eps)
    size = min(n, max(2 * k + 10, 20))
    V = torch.zeros(size + 1, n, dtype=work, device=A.device)  # rows: the basis and the next vector
    H = torch.zeros(size, size, dtype=torch.float64)  # V A V^T
    V[0] = q / torch.linalg.vector_norm(q)
    kept = 0
    while True:
        j, done = kept, False
        while j < size and not done and A.n_products - before < max_matvecs - k:
            w, h = orthogonalize(A.matmat(V[j : j + 1].T.to(A.dtype))[:, 0].to(work), V[: j + 1])
            if not bool(torch.isfinite(h).all()):
                raise FloatingPointError(f"the product with A is not finite at step {A.n_products - before}")
            H[: j + 1, j] = H[j, : j + 1] = h.to(torch.float64).cpu()
            beta = float(torch.linalg.vector_norm(w, dtype=torch.float64))
            j += 1
            broken = is_breakdown(beta, float(H[:j, :j].abs().sum(0).max()), n, A.dtype)
            if broken and j < n:  # the rest of the space holds the other copies of multiple eigenvalues
                w, _ = orthogonalize(torch.randn(n, generator=generator, dtype=work, device=A.device), V[:j])
            V[j] = w / torch.linalg.vector_norm(w).clamp(min=torch.finfo(work).tiny)
            if j >= k:
                theta, S = torch.linalg.eigh(H[:j, :j])
                order, scale = _wanted(theta, k, which), float(theta.abs().max())
                error = 0.0 if broken else beta * float(S[-1, order].abs().max())
                done = error <= threshold * scale and (not broken or j == size)
        if done or j < size:
            break
        kept = min(k + (size - k) // 2, size - 1)
        keep = _wanted(theta, kept, which)
        V[:kept], V[kept] = S[:, keep].T.to(V.device, work) @ V[:j], V[j].clone()
        H.zero_()
        H[:kept, :kept] = torch.diag(theta[keep])
    values, descending = theta[order].sort(descending=True)
    vectors = (S[:, order[descending]].T.to(V.device, work) @ V[:j]).T.to(A.dtype)
    defect = A.matmat(vectors).to(torch.float64) - vectors.to(torch.float64) * values.to(V.device)
    residuals = torch.linalg.vector_norm(defect, dim=0).cpu()
    converged = bool((residuals <= threshold * max(scale, torch.finfo(work).tiny)).all())
    if not converged:
        warnings.warn(
            f"extreme_eigenvalues stopped at max_matvecs={max_matvecs} with residual {float(residuals.max()):.1e} "
            f"(wanted {threshold * scale:.1e}); raise max_matvecs or tol",
            ConvergenceWarning,
            stacklevel=2,
        )
    return EigenResult(values, vectors, residuals, converged, A.n_products - before)


def _wanted(theta: Tensor, k: int, which: str) -> Tensor:
    """Return the indices of k Ritz values, `theta` ascending."""
    j = len(theta)
    if which == "LA":
        return torch.arange(j - k, j)
    if which == "SA":
        return torch.arange(k)
    if which == "LM":
        return theta.abs().argsort(descending=True)[:k].sort().values
    low = k // 2
    return torch.cat([torch.arange(low), torch.arange(j - (k - low), j)])
