r"""Spectra of symmetric matrices from products: Lanczos and stochastic Lanczos quadrature.

Lanczos, from q_1 = v_0 / ||v_0||:

    w = A q_j - beta_{j-1} q_{j-1},  alpha_j = q_j^T w,  w <- w - alpha_j q_j,  beta_j = ||w||,  q_{j+1} = w / beta_j

with T = tridiag(beta, alpha, beta) = Q^T A Q. Quadrature: for u = z / ||z|| the eigenvalues theta_k of T and the
squared first components tau_k^2 of its eigenvectors give u^T f(A) u ~ sum_k tau_k^2 f(theta_k), exact for polynomials
of degree 2 m - 1, and tr f(A) ~ n mean_u sum_k tau_k^2 f(theta_k).

Papers: golub1969calculation; ubaru2017fast, Alg. 1 (quadrature); parlett1998symmetric (reorthogonalization, twice).
Notation: n order, m steps, Q basis, theta Ritz values.
Departures: reorthogonalization is full unless switched off; all probes of the quadrature advance together.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from steepest.core.errors import (
    at_least,
    boolean,
    check,
    interval,
    one_of,
    optional,
    positive,
    value_error,
)
from steepest.core.random import torch_generator
from steepest.curvature._trace import TraceEstimate, standard_error
from steepest.curvature.operators import CurvatureOperator, aslinearoperator, check_square, check_symmetric
from steepest.curvature.vectors import DISTRIBUTIONS, accumulation_dtype, probes

__all__ = ["LanczosResult", "SpectralDensity", "lanczos", "slq"]

Seed = int | torch.Generator | None
BASIS_ELEMENTS = 2**28  # probes advance together while their bases hold at most so many numbers (1 GiB of float32)


@dataclass(frozen=True)
class LanczosResult:
    """What m Lanczos steps found.

    Attributes
    ----------
    alpha : Tensor of shape (m,), float64
        Diagonal of T.
    beta : Tensor of shape (m - 1,), float64
        Its off-diagonal.
    Q : Tensor of shape (n, m) or None
        Orthonormal basis in the operator's dtype; None without reorthogonalization.
    invariant : bool
        The basis spans an invariant subspace: the Ritz values are eigenvalues.
    num_steps : int
        m, less than asked for after a breakdown.
    last_beta : float
        beta_m; times the last component of T's eigenvector, the residual of a Ritz pair.
    """

    alpha: Tensor
    beta: Tensor
    Q: Tensor | None
    invariant: bool
    num_steps: int
    last_beta: float

    def ritz_values(self) -> Tensor:  # (m,)
        """Eigenvalues of T, ascending, in float64."""
        return self._eigh()[0]

    def ritz_pairs(self) -> tuple[Tensor, Tensor]:  # (m,), (n, m)
        """Ritz values, ascending, and Ritz vectors, one a column, in the dtype of `Q`.

        Raises
        ------
        RuntimeError
            There is no basis (``reorthogonalize="none"``).
        """
        if self.Q is None:
            raise RuntimeError("no Ritz vectors without a basis: run lanczos with reorthogonalize='full'")
        theta, S = self._eigh()
        return theta, self.Q @ S.to(self.Q.device, self.Q.dtype)

    def residuals(self) -> Tensor:  # (m,)
        """``||A y - theta y||`` of every Ritz pair in exact arithmetic: ``beta_m`` times the last components."""
        return self.last_beta * self._eigh()[1][-1].abs()

    def _eigh(self) -> tuple[Tensor, Tensor]:
        return _eigh_tridiagonal(self.alpha, self.beta)


def lanczos(
    A: Any,
    num_steps: int,
    v0: Tensor | None = None,
    *,
    reorthogonalize: str = "full",
    check_symmetric: bool = True,
    seed: Seed = None,
) -> LanczosResult:
    """Tridiagonalize a symmetric matrix on a Krylov space.

    Parameters
    ----------
    A : operator, Tensor, ndarray, sparse matrix
        Symmetric; see `aslinearoperator`.
    num_steps : int
        m, cut to n.
    v0 : Tensor of shape (n,), optional
        Start, in the dtype of `A`; Gaussian by default. A zero start gives the single Ritz value 0.
    reorthogonalize : "full" or "none"
        "full" keeps the basis (memory n m) and subtracts ``Q (Q^T w)`` twice at every step. "none" keeps two vectors;
        rounding then brings back directions that have converged, and their eigenvalues appear several times (ghosts).
    check_symmetric : bool
        Two products with random vectors.
    seed : int, torch.Generator or None
        Of the start and the check.

    Returns
    -------
    LanczosResult

    Raises
    ------
    ValueError
        ``num_steps < 1``, a matrix that is not square, real and symmetric, or a `v0` that does not fit.
    FloatingPointError
        A product is not finite; the text names the step.

    Examples
    --------
    >>> A = torch.diag(torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64))
    >>> [round(t, 9) for t in lanczos(A, 3, seed=0).ritz_values().tolist()]
    [1.0, 2.0, 3.0]
    """
    A = aslinearoperator(A)
    n = check_square(A)
    check("num_steps", num_steps, at_least(1, integer=True))
    check("reorthogonalize", reorthogonalize, one_of("full", "none"))
    generator = torch_generator(seed, A.device)
    work = accumulation_dtype(A.dtype)
    if v0 is None:
        v0 = probes(n, 1, distribution="gaussian", generator=generator, dtype=work, device=A.device)[:, 0]
    elif v0.shape != (n,) or v0.dtype not in (A.dtype, work):
        raise value_error("v0", f"of shape {(n,)} and dtype {A.dtype}", v0)
    require_symmetric(A, check_symmetric, generator)
    process = _Lanczos(A, v0.unsqueeze(1), min(num_steps, n), keep_basis=reorthogonalize == "full").run()
    m = int(process.steps[0])
    return LanczosResult(
        process.alpha[0, :m].clone(),
        process.beta[0, : m - 1].clone(),
        process.Q[0, :m].T if process.Q is not None else None,
        bool(process.invariant[0]),
        m,
        0.0 if process.invariant[0] else float(process.beta[0, m - 1]),
    )


@dataclass(frozen=True)
class SpectralDensity:
    """A spectral density as the mean, over v probes, of weighted nodes.

    Attributes
    ----------
    nodes : Tensor of shape (v, m), float64
        Ritz values of every probe, ascending; the last is repeated past a breakdown.
    weights : Tensor of shape (v, m), float64
        They sum to 1 for every probe; 0 past a breakdown.
    residuals : Tensor of shape (v, m), float64
        ``||A y - theta y||`` of every Ritz pair.
    n : int
        Order of the matrix.
    num_matvecs : int
        Products spent, the check of symmetry not counted.
    """

    nodes: Tensor
    weights: Tensor
    residuals: Tensor
    n: int
    num_matvecs: int

    def density(self, grid: Tensor, sigma: float | None = None) -> Tensor:
        """Smooth the density by a Gaussian and normalize it to integrate to 1 over `grid` (trapezoidal rule).

        Parameters
        ----------
        grid : Tensor of shape (g,)
            Ascending.
        sigma : float, optional
            Width; 1 % of the range of the nodes by default.

        Raises
        ------
        ValueError
            A grid that is not ascending or that misses the spectrum, or ``sigma <= 0``.
        """
        x = torch.as_tensor(grid, dtype=torch.float64).cpu()
        if x.ndim != 1 or len(x) < 2 or not bool((x.diff() > 0).all()):
            raise value_error("grid", "one-dimensional, ascending, of two points or more", grid)
        check("sigma", sigma, optional(positive()))
        low, high = self.extreme()
        if sigma is None:
            sigma = 0.01 * (high - low or max(abs(high), 1.0))
        total = torch.zeros_like(x)
        for theta, tau2 in zip(self.nodes, self.weights, strict=True):
            total += torch.exp(-0.5 * ((x.unsqueeze(1) - theta) / sigma) ** 2) @ tau2
        area = float(torch.trapezoid(total, x))
        if not area > 0:
            raise value_error("grid", f"over the spectrum, [{low:.4g}, {high:.4g}], and finer than sigma", grid)
        return (total / area).to(grid.device)

    def cdf(self, x: Tensor) -> Tensor:
        """Share of eigenvalues at or below `x`, for a tensor of any shape."""
        theta, cumulative = self._sorted()
        x = torch.as_tensor(x, dtype=torch.float64)
        index = torch.searchsorted(theta, x.cpu().contiguous(), right=True)
        return torch.cat([cumulative.new_zeros(1), cumulative])[index].to(x.device)

    def quantile(self, q: float) -> float:
        """Smallest node with a share of at least `q` of the eigenvalues at or below it."""
        check("q", q, interval(0, 1))
        theta, cumulative = self._sorted()
        index = int(torch.searchsorted(cumulative, min(q, float(cumulative[-1]))))
        return float(theta[index])

    def moment(self, k: int) -> float:
        """``tr(A^k) / n``; unbiased, and exact for every probe up to k = 2 m - 1."""
        check("k", k, at_least(0, integer=True))
        return float((self.weights * self.nodes**k).sum(1).mean())

    def trace_of(self, f: Callable[[Tensor], Tensor]) -> TraceEstimate:
        """Estimate ``tr f(A)``; `f` maps a tensor of eigenvalues to their values.

        Raises
        ------
        FloatingPointError
            `f` is not finite at a node with weight.
        """
        values = f(self.nodes)
        values = torch.where(self.weights > 0, values.to(torch.float64), 0.0)
        if not bool(torch.isfinite(values).all()):
            raise FloatingPointError("f is not finite at a Ritz value; restrict it to the spectrum")
        samples = self.n * (self.weights * values).sum(1)
        return TraceEstimate(float(samples.mean()), standard_error(samples), self.num_matvecs)

    def extreme(self) -> tuple[float, float]:
        """Smallest and largest node."""
        return float(self.nodes.min()), float(self.nodes.max())

    def _sorted(self) -> tuple[Tensor, Tensor]:
        theta, order = self.nodes.reshape(-1).sort()
        cumulative = (self.weights / len(self.weights)).reshape(-1)[order].cumsum(0)
        cumulative /= cumulative[-1].clone()
        used = self.weights.reshape(-1)[order] > 0
        return theta[used], cumulative[used]


def slq(
    A: Any,
    num_steps: int = 80,
    num_probes: int = 10,
    *,
    check_symmetric: bool = True,
    seed: Seed = None,
    distribution: str = "rademacher",
) -> SpectralDensity:
    """Estimate the spectral density of a symmetric matrix by stochastic Lanczos quadrature.

    Parameters
    ----------
    A : operator, Tensor, ndarray, sparse matrix
        Symmetric; see `aslinearoperator`.
    num_steps : int
        Lanczos steps for every probe, cut to n; moments up to degree ``2 num_steps - 1`` are exact for every probe.
    num_probes : int
        Probes; they depend on the seed alone. All advance together, a block product a step.
    check_symmetric : bool
        Two products with random vectors.
    seed : int, torch.Generator or None
    distribution : "rademacher" or "gaussian"

    Returns
    -------
    SpectralDensity

    Raises
    ------
    ValueError
        ``num_steps < 1``, ``num_probes < 1``, or a matrix that is not square, real and symmetric.
    FloatingPointError
        A product is not finite; the text names the step.

    References
    ----------
    Ubaru, Chen and Saad, Fast estimation of tr(f(A)) via stochastic Lanczos quadrature, SIMAX 38(4), 2017.

    Examples
    --------
    >>> A = torch.diag(torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64))
    >>> s = slq(A, 4, 2, seed=0)
    >>> round(s.trace_of(torch.log).value, 6), round(s.moment(2), 6)             # log 24, 30 / 4
    (3.178054, 7.5)
    """
    A = aslinearoperator(A)
    n = check_square(A)
    check("num_steps", num_steps, at_least(1, integer=True))
    check("num_probes", num_probes, at_least(1, integer=True))
    check("distribution", distribution, DISTRIBUTIONS)
    generator = torch_generator(seed, A.device)
    work = accumulation_dtype(A.dtype)
    Z = probes(n, num_probes, distribution=distribution, generator=generator, dtype=work, device=A.device)
    require_symmetric(A, check_symmetric, generator)
    m = min(num_steps, n)
    before = A.n_products
    nodes, weights, residuals = (torch.zeros(num_probes, m, dtype=torch.float64) for _ in range(3))
    together = max(1, BASIS_ELEMENTS // (n * m))
    for start in range(0, num_probes, together):
        process = _Lanczos(A, Z[:, start : start + together], m, keep_basis=True).run()
        for i in range(len(process.steps)):
            k = int(process.steps[i])
            theta, S = _eigh_tridiagonal(process.alpha[i, :k], process.beta[i, : k - 1])
            nodes[start + i] = theta[-1]
            nodes[start + i, :k] = theta
            weights[start + i, :k] = S[0] ** 2
            if not process.invariant[i]:
                residuals[start + i, :k] = process.beta[i, k - 1] * S[-1].abs()
    return SpectralDensity(nodes, weights, residuals, n, A.n_products - before)


class _Lanczos:
    """Independent Lanczos processes, one for every column of the start, that share the products with A."""

    def __init__(self, A: CurvatureOperator, V0: Tensor, m: int, *, keep_basis: bool) -> None:  # V0: (n, v)
        n, v = V0.shape
        self.A, self.m, self.work = A, m, accumulation_dtype(A.dtype)
        self.start = V0.T.to(self.work)
        self.alpha, self.beta = (torch.zeros(v, m, dtype=torch.float64) for _ in range(2))
        self.Q = torch.zeros(v, m, n, dtype=self.work, device=A.device) if keep_basis else None
        self.steps = torch.zeros(v, dtype=torch.long)
        self.invariant = torch.zeros(v, dtype=torch.bool)

    def run(self) -> _Lanczos:
        n = self.start.shape[1]
        size = torch.linalg.vector_norm(self.start, dim=1, keepdim=True)
        q = self.start / torch.where(size > 0, size, 1)  # (active, n)
        q_old = torch.zeros_like(q)
        active = torch.arange(len(q))
        beta_old = torch.zeros(len(q), dtype=torch.float64)
        norm_T = torch.zeros(len(q), dtype=torch.float64)
        for j in range(self.m):
            w = self.A.matmat(q.T.to(self.A.dtype)).T.to(self.work)
            alpha = (w * q).sum(1, dtype=torch.float64).cpu()
            if not bool(torch.isfinite(alpha).all()):
                raise FloatingPointError(f"the product with A is not finite at step {j}")
            w = w - _column(alpha, w) * q - _column(beta_old, w) * q_old
            if self.Q is not None:
                for i, probe in enumerate(active.tolist()):
                    self.Q[probe, j] = q[i]
                    w[i], _ = orthogonalize(w[i], self.Q[probe, : j + 1])
            beta = torch.linalg.vector_norm(w, dim=1, dtype=torch.float64).cpu()
            norm_T = torch.maximum(norm_T, alpha.abs() + beta_old)
            self.alpha[active, j], self.beta[active, j], self.steps[active] = alpha, beta, j + 1
            broken = torch.tensor([is_breakdown(float(b), float(t), n, self.A.dtype) for b, t in zip(beta, norm_T)])
            if self.Q is not None and j == n - 1:
                broken[:] = True  # the basis spans the whole space
            self.invariant[active[broken]] = True
            go = ~broken
            if not bool(go.any()):
                break
            active, beta_old, norm_T = active[go], beta[go], (norm_T.maximum(alpha.abs() + beta_old + beta))[go]
            q_old, q = q[go.to(q.device)], w[go.to(q.device)]
            q = q / _column(beta_old, q)
        return self


def _column(x: Tensor, like: Tensor) -> Tensor:
    return x.to(like.device, like.dtype).unsqueeze(1)


def orthogonalize(w: Tensor, Q: Tensor) -> tuple[Tensor, Tensor]:  # (n,), rows of Q: (j, n)
    """Subtract from `w` its part along the rows of `Q`, twice; return the rest and the coefficients."""
    h = Q @ w
    w = torch.addmv(w, Q.T, h, alpha=-1)
    again = Q @ w
    return torch.addmv(w, Q.T, again, alpha=-1), h + again


def is_breakdown(beta: float, norm_T: float, n: int, dtype: torch.dtype) -> bool:
    """Tell whether `beta` is rounding: the basis spans an invariant subspace."""
    return beta <= torch.finfo(dtype).eps * max(norm_T, torch.finfo(dtype).tiny) * math.sqrt(n)


def _eigh_tridiagonal(alpha: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
    T = torch.diag(alpha)
    if len(beta):
        T += torch.diag(beta, 1) + torch.diag(beta, -1)
    theta, S = torch.linalg.eigh(T)
    return theta, S


def require_symmetric(A: CurvatureOperator, wanted: bool, generator: torch.Generator) -> None:
    """Check symmetry with two random vectors, if `wanted`."""
    check("check_symmetric", wanted, boolean())
    if wanted:
        x = probes(A.shape[0], 2, distribution="gaussian", generator=generator, dtype=A.dtype, device=A.device)
        check_symmetric(A, x)
