r"""Means and tangent spaces of symmetric positive definite matrices, when pyRiemann is not at hand.

Given matrices C_1, ..., C_n, find a mean M and send every matrix to the tangent space at M, where linear classifiers
apply. Two metrics:

- *Affine-invariant*: M minimizes :math:`\sum_i \|\log(M^{-1/2} C_i M^{-1/2})\|_F^2`. Fixed point from the
  log-Euclidean mean, :math:`M \leftarrow M^{1/2} \exp(\nu J) M^{1/2}` with
  :math:`J = \frac1n \sum_i \log(M^{-1/2} C_i M^{-1/2})`, until :math:`\|J\|_F \le` `tol`. The step :math:`\nu` starts
  at 1 and follows the secant of J (Barzilai and Borwein), which saves a third of the iterations. Vectors are the
  upper triangles of :math:`\log(M^{-1/2} C M^{-1/2})`.
- *Log-Euclidean*: :math:`\log M = \frac1n \sum_i \log C_i`, vectors are those of :math:`\log C - \log M`.

Off-diagonal entries of the vectors carry :math:`\sqrt 2`, so that their Euclidean norm is the Frobenius norm of the
matrix. Paper: `carrara2024classification`, Section II-C (the classifiers on augmented covariances).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import check_is_fitted

from steepest.core.errors import ConvergenceWarning, at_least, check, check_params, one_of, positive, value_error

__all__ = ["TangentSpace", "mean_logeuclid", "mean_riemann"]


class TangentSpace(TransformerMixin, BaseEstimator):
    """Tangent vectors of positive definite matrices at their mean, named and laid out as pyRiemann's.

    Parameters
    ----------
    metric : "riemann" or "logeuclid"
        Affine-invariant, or log-Euclidean (one eigendecomposition for each matrix, no iteration).

    Attributes
    ----------
    reference_ : ndarray (d, d)
        Mean of the matrices seen in `fit`.

    Examples
    --------
    >>> import numpy as np
    >>> C = np.array([[[1.0, 0.0], [0.0, 4.0]], [[4.0, 0.0], [0.0, 1.0]]])
    >>> TangentSpace().fit_transform(C).round(3).tolist()
    [[-0.693, 0.0, 0.693], [0.693, 0.0, -0.693]]
    """

    def __init__(self, metric: str = "riemann") -> None:
        self.metric = metric

    def fit(self, X: ArrayLike, y: object = None) -> TangentSpace:
        """Find the mean of the matrices `X` (n, d, d)."""
        check_params(self, {"metric": one_of("riemann", "logeuclid")})
        mean = mean_riemann if self.metric == "riemann" else mean_logeuclid
        self.reference_ = mean(X)
        return self

    def transform(self, X: ArrayLike) -> np.ndarray:
        """Project `X` (n, d, d) to vectors (n, d (d + 1) / 2).

        Raises
        ------
        ValueError
            The matrices are not positive definite, or of another size than in `fit`.
        """
        check_is_fitted(self, "reference_")
        C = _matrices(X)
        if C.shape[1:] != self.reference_.shape:
            raise value_error("X", f"matrices of shape {self.reference_.shape}, as in fit", C)
        if self.metric == "riemann":
            W = _function(self.reference_, lambda w: w**-0.5)
            return _vectors(_log(W @ C @ W))
        return _vectors(_log(C) - _log(self.reference_))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array, tags.input_tags.three_d_array = False, True
        return tags


def mean_logeuclid(X: ArrayLike) -> np.ndarray:
    """Log-Euclidean mean of matrices (n, d, d).

    Examples
    --------
    >>> mean_logeuclid([[[1.0]], [[4.0]]]).round(12).tolist()
    [[2.0]]
    """
    return _function(_log(_matrices(X)).mean(axis=0), np.exp)


def mean_riemann(X: ArrayLike, *, tol: float = 1e-8, max_iter: int = 50) -> np.ndarray:
    """Affine-invariant mean of matrices (n, d, d).

    Parameters
    ----------
    X : array_like (n, d, d)
        Symmetric positive definite.
    tol : float
        On the Frobenius norm of the mean tangent vector, which no change of units moves (pyRiemann's default).
    max_iter : int
        Steps; a `ConvergenceWarning` tells when they do not suffice (pyRiemann's default).

    Raises
    ------
    ValueError
        A matrix is not positive definite.

    Examples
    --------
    >>> mean_riemann([[[1.0, 0.0], [0.0, 9.0]], [[4.0, 0.0], [0.0, 1.0]]]).round(12).tolist()
    [[2.0, 0.0], [0.0, 3.0]]
    """
    check("tol", tol, positive())
    check("max_iter", max_iter, at_least(1, integer=True))
    C = _matrices(X)
    M, step, before = mean_logeuclid(C), 1.0, np.zeros(C.shape[1:])
    for _ in range(max_iter):
        w, V = _spectrum(M)
        root, inverse = (V * w**0.5) @ V.T, (V * w**-0.5) @ V.T
        J = _log(inverse @ C @ inverse).mean(axis=0)
        size = float(np.linalg.norm(J))
        if size <= tol:
            return M
        secant = float(np.sum(before * (before - J)))
        if secant > 0:
            step = min(max(step * float(np.sum(before**2)) / secant, 0.05), 2.0)
        before = J
        M = root @ _function(step * J, np.exp) @ root
        M = (M + M.T) / 2
    text = f"the Riemannian mean stopped after {max_iter} steps with a gradient of norm {size:.1e}; tol is {tol:g}"
    warnings.warn(text + ": raise max_iter, or shrink the covariances more", ConvergenceWarning, stacklevel=2)
    return M


def _matrices(X: ArrayLike) -> np.ndarray:
    C = np.asarray(X, dtype=np.float64)
    if C.ndim != 3 or C.shape[1] != C.shape[2] or len(C) == 0:
        raise value_error("X", "matrices of shape (n, d, d)", C)
    if not np.isfinite(C).all():
        raise value_error("X", "finite", "NaN or infinity")
    return C


def _spectrum(C: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues and eigenvectors of positive definite matrices (..., d, d)."""
    w, V = np.linalg.eigh(C)
    if w.min() <= 0:
        cure = "use a shrinking estimator such as 'oas'"
        raise value_error("X", "positive definite matrices", f"a smallest eigenvalue of {w.min():.1e}", cure)
    return w, V


def _log(C: np.ndarray) -> np.ndarray:
    w, V = _spectrum(C)
    return (V * np.log(w)[..., None, :]) @ V.mT


def _function(S: np.ndarray, fn: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Apply `fn` to the eigenvalues of one symmetric matrix."""
    w, V = np.linalg.eigh(S)
    return np.asarray((V * fn(w)) @ V.T)


def _vectors(S: np.ndarray) -> np.ndarray:
    """Upper triangles (n, d (d + 1) / 2) of symmetric matrices (n, d, d), norm kept."""
    rows, columns = np.triu_indices(S.shape[-1])
    return S[:, rows, columns] * np.where(rows == columns, 1.0, np.sqrt(2.0))
