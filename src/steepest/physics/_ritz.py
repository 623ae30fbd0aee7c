r"""Training right-hand sides for a linear solver: random mixtures of Ritz vectors, the lower spectrum weighted up.

    Lanczos from A z, z Gaussian, m steps;  Ritz pairs (theta_j, v_j), ascending, those with theta_j < 1e-8 max left out
    b = sum_j w_j xi_j v_j / ||.||,         xi_j ~ N(0, 1),   w_j = 9 for j < m/2 + theta, else 1

Paper: kaneda2023deep, section on training data. The start lies in the range of a singular A, and with it all of b.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from steepest.core.errors import at_least, check, kind_error, nonnegative, optional, positive
from steepest.core.random import Seed, torch_generator
from steepest.curvature.operators import CurvatureOperator, aslinearoperator, check_square
from steepest.curvature.spectrum import lanczos
from steepest.curvature.vectors import accumulation_dtype

__all__ = ["LOW_FACTOR", "RitzMixtures", "matrix_operator", "ritz_mixtures", "ritz_right_hand_sides"]

LOW_FACTOR = 9.0  # official code
THETA = 0.05  # of m; official code: 500 of 10000
TILTED = 0.5  # of the mixtures, where some are made smoother
NULL = 1e-8  # Ritz values below this part of the largest are those of null vectors


@dataclass(frozen=True)
class RitzMixtures:
    """Ritz values (k,), Ritz vectors as rows (k, n), and the weight (k,) of each in a mixture."""

    values: Tensor
    vectors: Tensor
    weights: Tensor

    def coefficients(self, n_vectors: int, generator: torch.Generator, tilt: float = 0.0) -> Tensor:  # (n_vectors, k)
        """Draw xi on the CPU, whatever the device of the vectors is, so that a seed means one set.

        With `tilt`, every second mixture, at random, is made smoother: xi_j (theta_j / max)^-s, s uniform on [0, tilt].
        """
        xi = torch.randn(n_vectors, len(self.values), generator=generator, dtype=torch.float64)
        if tilt == 0:
            return xi
        drawn, chosen = torch.rand(2, n_vectors, 1, generator=generator, dtype=torch.float64)
        values = self.values.to("cpu", torch.float64)
        return xi * (values / values.max()) ** (-tilt * drawn * (chosen < TILTED))

    def mix(self, coefficients: Tensor) -> Tensor:  # (b, k) -> (b, n)
        """Mix unit vectors, in the dtype and on the device of `vectors`."""
        rows = (coefficients.to(self.weights) * self.weights) @ self.vectors
        return rows / torch.linalg.vector_norm(rows, dim=1, keepdim=True)

    def to(self, dtype: torch.dtype, device: torch.device | None = None) -> RitzMixtures:
        """Convert vectors and weights."""
        return RitzMixtures(self.values, self.vectors.to(device, dtype), self.weights.to(device, dtype))


def ritz_right_hand_sides(
    A: Any,
    n_vectors: int,
    n_lanczos: int,
    theta: int | None = None,
    seed: Seed = 0,
    low_factor: float = LOW_FACTOR,
) -> NDArray[np.float64]:
    """Draw unit right-hand sides whose spectra look like those of residuals (kaneda2023deep).

    Parameters
    ----------
    A : sparse or dense matrix, Tensor, LinearOperator or CurvatureOperator (n, n)
        Symmetric positive semidefinite.
    n_vectors : int
    n_lanczos : int
        m, Lanczos steps with full reorthogonalization; cut to n, and at an invariant subspace.
    theta : int, optional
        How far the weighted part reaches beyond the lower half; ``round(0.05 m)`` by default, the official ratio.
    seed : int, torch.Generator or None
    low_factor : float
        The weight there; 9 in the official code.

    Returns
    -------
    (n_vectors, n) array of float64

    Raises
    ------
    TypeError
        A bare callable: wrap it in a `LinearOperator`.
    ValueError
        Settings out of range, an operator that is not square and symmetric.

    Examples
    --------
    >>> from steepest.physics import poisson_matrix
    >>> b = ritz_right_hand_sides(poisson_matrix((8, 8)), 5, 20)
    >>> b.shape, np.linalg.norm(b, axis=1).round(12).tolist()
    ((5, 64), [1.0, 1.0, 1.0, 1.0, 1.0])
    """
    check("n_vectors", n_vectors, at_least(1, integer=True))
    generator = torch_generator(seed)
    mixtures = ritz_mixtures(matrix_operator(A), n_lanczos, theta=theta, low_factor=low_factor, generator=generator)
    mixed = mixtures.to(torch.float64).mix(mixtures.coefficients(n_vectors, generator))
    return mixed.cpu().numpy()


def matrix_operator(A: Any) -> CurvatureOperator:
    """Make the operator of something with a shape."""
    if getattr(A, "shape", None) is None:
        raise kind_error(
            "A", "a matrix or a linear operator", A, "wrap a callable in scipy.sparse.linalg.LinearOperator"
        )
    operator = aslinearoperator(A)
    check_square(operator)
    return operator


def ritz_mixtures(
    A: CurvatureOperator,
    n_lanczos: int,
    *,
    generator: torch.Generator,
    theta: int | None = None,
    low_factor: float = LOW_FACTOR,
) -> RitzMixtures:
    """Compute Ritz vectors and their weights; `generator` lives on the CPU."""
    check("n_lanczos", n_lanczos, at_least(1, integer=True))
    check("theta", theta, optional(nonnegative(integer=True)))
    check("low_factor", low_factor, positive())
    z = torch.randn(A.shape[0], generator=generator, dtype=torch.float64).to(A.device, A.dtype)
    found = lanczos(A, n_lanczos, A.matvec(z).to(accumulation_dtype(A.dtype)), seed=0)
    values, vectors = found.ritz_pairs()
    kept = values >= NULL * values.abs().max()
    values, vectors = values[kept], vectors[:, kept.to(vectors.device)].T.contiguous()
    weights = torch.ones_like(values)
    m = found.num_steps
    weights[: m // 2 + (round(THETA * m) if theta is None else theta)] = low_factor
    return RitzMixtures(values, vectors, weights.to(vectors))
