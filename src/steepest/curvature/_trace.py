r"""Traces and Frobenius norms from products with random probes, with error bars.

Hutchinson: tr A ~ (1/m) sum_j z_j^T A z_j, error falling as 1 / sqrt(m).
Hutch++ with m products, k = floor(m / 3): Q = orth(A S) for a random S (n, k), and

    tr A ~ tr(Q^T A Q) + 1/k' sum_j z_j^T (I - Q Q^T) A (I - Q Q^T) z_j,        k' = m - 2 k fresh probes,

error falling as 1 / m where the spectrum decays; exact when rank A <= k. A need not be positive semi-definite.
Frobenius: ||A||_F^2 ~ (1/m) sum_j ||A z_j||^2.

Papers: hutchinson1989trace; meyer2021hutch, Alg. 1.   Notation: n order, m products, S, z probes, Q basis of A S.
Departures: the m products are split k, k, m - 2k, so that none is lost when m is not a multiple of 3.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from steepest.core.errors import at_least, check, one_of
from steepest.core.random import torch_generator
from steepest.curvature.operators import (
    CurvatureOperator,
    aslinearoperator,
    check_square,
    column_blocks,
    identity_blocks,
)
from steepest.curvature.vectors import accumulation_dtype, probes

__all__ = ["NormEstimate", "TraceEstimate", "frobenius_norm", "trace"]


@dataclass(frozen=True)
class TraceEstimate:
    """An estimated trace: `value`, its standard error (nan with one probe, 0 if exact), products spent."""

    value: float
    std_error: float
    num_matvecs: int


@dataclass(frozen=True)
class NormEstimate:
    """An estimated Frobenius norm: `value`, its standard error (nan with one probe, 0 if exact), products spent."""

    value: float
    std_error: float
    num_matvecs: int


def trace(
    A: Any,
    num_matvecs: int = 99,
    *,
    method: str = "hutch++",
    distribution: str = "rademacher",
    seed: int | torch.Generator | None = None,
) -> TraceEstimate:
    """Estimate the trace of a square matrix.

    Parameters
    ----------
    A : operator, Tensor, ndarray, sparse matrix
        See `aslinearoperator`.
    num_matvecs : int
        Budget of products (without effect on "exact").
    method : "hutch++", "hutchinson" or "exact"
        Hutch++ for decaying spectra (memory n * num_matvecs / 3), Hutchinson for flat ones and for little memory;
        "exact" takes n products.
    distribution : "rademacher" or "gaussian"
    seed : int, torch.Generator or None

    Returns
    -------
    TraceEstimate
        The standard error of Hutch++ comes from its probe part.

    Raises
    ------
    ValueError
        ``num_matvecs < 3`` for Hutch++, ``< 1`` for Hutchinson; a matrix that is not square or not real.
    FloatingPointError
        A product is not finite; the text says which.

    References
    ----------
    Meyer, Musco, Musco and Woodruff, Hutch++: optimal stochastic trace estimation, SOSA 2021.

    Examples
    --------
    >>> A = torch.ones(50, 50, dtype=torch.float64)              # rank one: exact
    >>> round(trace(A, 6, seed=0).value, 9)
    50.0
    """
    A = aslinearoperator(A)
    n = check_square(A)
    check("method", method, one_of("hutch++", "hutchinson", "exact"))
    if method == "exact":
        diagonal = torch.cat([(A.matmat(E) * E).sum(0, dtype=torch.float64) for E in identity_blocks(A)])
        return TraceEstimate(_finite(diagonal, 0), 0.0, n)
    check("num_matvecs", num_matvecs, at_least(3 if method == "hutch++" else 1, integer=True))
    generator = torch_generator(seed, A.device)
    captured, spent, Q = 0.0, 0, None
    if method == "hutch++":
        k = min(num_matvecs // 3, n)
        work = accumulation_dtype(A.dtype)
        S = probes(n, k, distribution=distribution, generator=generator, dtype=A.dtype, device=A.device)
        AS = A.matmat(S)
        _finite(AS.sum(0, dtype=torch.float64), 0)
        Q = torch.linalg.qr(AS.to(work)).Q
        captured = _finite((Q * A.matmat(Q.to(A.dtype))).sum(0, dtype=torch.float64), k)
        spent = 2 * k
    samples = _quadratic_forms(A, num_matvecs - spent, distribution, generator, Q, spent)
    return TraceEstimate(captured + float(samples.mean()), standard_error(samples), num_matvecs)


def frobenius_norm(
    A: Any, num_matvecs: int = 100, *, method: str = "hutchinson", seed: int | torch.Generator | None = None
) -> NormEstimate:
    """Estimate the Frobenius norm of a matrix, square or not.

    Parameters
    ----------
    A : operator, Tensor, ndarray, sparse matrix
        See `aslinearoperator`.
    num_matvecs : int
        Number of Rademacher probes (without effect on "exact").
    method : "hutchinson" or "exact"
        "exact" takes as many products as `A` has columns.
    seed : int, torch.Generator or None

    Returns
    -------
    NormEstimate
        `value` is ||A||_F, the root of an unbiased estimate of its square; `std_error` by the delta method.

    Raises
    ------
    ValueError
        ``num_matvecs < 1``, or a complex matrix.
    FloatingPointError
        A product is not finite.

    Examples
    --------
    >>> frobenius_norm(torch.diag(torch.tensor([3.0, 4.0])), 5, seed=0).value
    5.0
    """
    A = aslinearoperator(A)
    check("method", method, one_of("hutchinson", "exact"))
    check("num_matvecs", num_matvecs, at_least(1, integer=True))
    if method == "exact":
        blocks: Iterator[Tensor] = identity_blocks(A)
    else:
        generator = torch_generator(seed, A.device)
        blocks = (
            probes(A.shape[1], width, generator=generator, dtype=A.dtype, device=A.device)
            for _, width in column_blocks(A.shape[1], num_matvecs)
        )
    squares = torch.cat([A.matmat(V).to(torch.float64).square().sum(0).cpu() for V in blocks])
    total = _finite(squares, 0)
    if method == "exact":
        return NormEstimate(math.sqrt(total), 0.0, A.shape[1])
    value = math.sqrt(total / num_matvecs)
    error = standard_error(squares)
    return NormEstimate(value, error / (2 * value) if value > 0 else error, num_matvecs)


def standard_error(samples: Tensor) -> float:
    """Return the standard error of the samples' mean, nan for one sample, 0 for none."""
    if len(samples) < 2:
        return math.nan if len(samples) else 0.0
    return float(samples.std()) / math.sqrt(len(samples))


def _quadratic_forms(
    A: CurvatureOperator, m: int, distribution: str, generator: torch.Generator, Q: Tensor | None, spent: int
) -> Tensor:  # (m,) float64
    """Return z^T P A P z for m probes, P = I - Q Q^T (P = I without Q)."""
    n = A.shape[0]
    values = []
    for start, width in column_blocks(n, m):
        Z = probes(n, width, distribution=distribution, generator=generator, dtype=A.dtype, device=A.device)
        if Q is not None:
            W = Z.to(Q.dtype)
            Z = (W - Q @ (Q.mT @ W)).to(A.dtype)
        forms = (Z * A.matmat(Z)).sum(0, dtype=torch.float64)
        _finite(forms, spent + start)
        values.append(forms)
    return torch.cat(values).cpu()


def _finite(values: Tensor, first: int) -> float:
    """Return the sum of one number for every product, after checking that all are finite."""
    finite = torch.isfinite(values)
    if not bool(finite.all()):
        step = first + int(torch.nonzero(~finite)[0])
        raise FloatingPointError(f"the product with A is not finite at product {step}")
    return float(values.sum())
