"""Singular values and errors of low-rank matrices, from products and factors alone; NumPy and torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from steepest.core.random import numpy_generator, torch_generator
from steepest.landscape._measurements import Array, _ScatteredMatrix

__all__ = ["gaussian", "numerical_rank", "product_error", "svd", "symmetrized", "top_svd"]

POWERS = 12  # of D D^T: 24 products with D, after which directions 10 places further on are gone
ROWS = 1024  # of the product at a time, where it is compared with a matrix that is given


def generator_like(seed: Any, like: Array) -> Any:
    """Make the generator of the array's own library."""
    return numpy_generator(seed) if isinstance(like, np.ndarray) else torch_generator(seed, like.device)


def gaussian(generator: Any, like: Array, *shape: int) -> Array:
    """Draw standard normal numbers of the kind, type and device of `like`."""
    if isinstance(like, np.ndarray):
        return generator.standard_normal(shape).astype(like.dtype)
    return torch.randn(shape, generator=generator, dtype=like.dtype, device=like.device)


def svd(D: Array) -> tuple[Array, Array, Array]:
    """Thin singular value decomposition ``U, S, V``: D = U diag(S) V^T."""
    linalg: Any = np.linalg if isinstance(D, np.ndarray) else torch.linalg
    U, S, Vt = linalg.svd(D, full_matrices=False)
    return U, S, Vt.T


def qr(D: Array) -> tuple[Array, Array]:
    """Thin QR factors."""
    linalg: Any = np.linalg if isinstance(D, np.ndarray) else torch.linalg
    Q, R = linalg.qr(D)
    return Q, R


def top_svd(D: Any, k: int, like: Array, generator: Any) -> tuple[Array, Array, Array]:
    """First k singular triples: exact for a dense D, by subspace iteration (products only) for a sparse one."""
    if isinstance(D, np.ndarray | Tensor):
        U, S, V = svd(D)
    else:
        Q, _ = qr(D @ gaussian(generator, like, D.shape[1], min(k + 10, *D.shape)))
        for _ in range(POWERS):
            Q, _ = qr(D @ qr(D.T @ Q)[0])
        V, S, small = svd(D.T @ Q)
        U = Q @ small
    return U[:, :k], S[:k], V[:, :k]


def symmetrized(D: Any) -> Any:
    """Give ``(D + D^T) / 2``."""
    if isinstance(D, _ScatteredMatrix):
        rows, cols, values = (torch.cat(pair) for pair in ((D.rows, D.cols), (D.cols, D.rows), (D.values, D.values)))
        return _ScatteredMatrix(rows, cols, values / 2, D.shape)
    return (D + D.T) / 2


def numerical_rank(F: Array, G: Array, residual: float) -> int:
    """Count the singular values of ``F G^T`` that a relative residual (and rounding) cannot account for."""
    S = svd(qr(F)[1] @ qr(G)[1].T)[1]
    rounding = float((np.finfo if isinstance(F, np.ndarray) else torch.finfo)(F.dtype).eps) * max(len(F), len(G))
    norm = float((S * S).sum() ** 0.5)
    return int((max(10 * residual, rounding) * norm < S).sum())


def product_error(F: Array, G: Array, truth: Array) -> float:
    """Frobenius norm of ``F G^T - truth``, some rows at a time."""
    total = 0.0
    for start in range(0, len(F), ROWS):
        at = slice(start, start + ROWS)
        total += float(((F[at] @ G.T - truth[at]) ** 2).sum())
    return total**0.5
