"""Gaussian process for a vector field on a manifold that only the data know: denoise, super-resolve, inpaint.

The K lowest eigenpairs (λ_l, U_l) of the connection Laplacian of points X (n×D) are vector fields, the smoothest first;
``E_i = T_i U_i`` (D×K), T_i (D×d) the tangent frame and U_i the d rows of point i, is its positional encoding. Then::

    f(x_i) = E_i W,  W ~ N(0, diag S),        cov(f(x_i), f(x_j)) = E_i diag(S) E_jᵀ          (Sec. 3.3)
    S_l = σ_f² n d s_l / Σ_m s_m,   s_l = (λ_l + 2ν/κ²)^(-ν)   or   exp(-½ κ² λ_l)
    T_iᵀ y_i = U_i W + ε_i,  ε_i ~ N(0, s² I)                           at the labelled points

Evidence, its gradient and the posterior of the K weights are those of `_evidence`: K×K algebra after one pass over the
data.
Graph, frames, eigenpairs and the encoding of new points are those of `_eigenfields`.

Paper: peach2024implicit.

=====================  =========================================
the paper              here
=====================  =========================================
``Φ`` (eigenvectors)   ``eigenvectors_`` U, unit columns
``T`` (tangent bases)  ``frames_``
``Λ_c``                ``eigenvalues_``
``α`` (kernel weights) ``spectral_density_`` S
=====================  =========================================

Departures: (1) the weight-space form, equal to the official dense Cholesky of an (nD)×(nD) matrix in every step of the
optimizer. (2) Only the tangential components of the data are modelled; the official code regresses all D with the same
features, which makes noise along the normal noise in the tangent plane. (3) σ_f² is the mean prior variance per tangent
direction; the official scaling differs by a constant. (4) Hyper-parameters start from three length scales of
the spectrum in place of κ = 5; both mostly end in the same maximum. (5) New points have an encoding.
(6) A graph in several pieces has its eigenpairs computed piece by piece, which no degenerate eigenvalue can then mix.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from steepest.core.errors import (
    ConvergenceWarning,
    at_least,
    boolean,
    check,
    check_params,
    interval,
    one_of,
    optional,
    positive,
    value_error,
)
from steepest.core.parallel import ordered_map
from steepest.core.random import numpy_generator
from steepest.geometry.graph import GeometryWarning, connected_components
from steepest.manifold._eigenfields import lowest_eigenfields
from steepest.manifold._evidence import (
    Hyperparameters,
    Moments,
    evidence,
    maximize_evidence,
    posterior,
    prior_variances,
)
from steepest.manifold._vector_fields import vectors_with_gaps

__all__ = ["VectorFieldGP"]

Floats = NDArray[np.float64]

LIMITS = {
    "n_eigenpairs": at_least(1, integer=True),
    "n_neighbors": at_least(1, integer=True),
    "kernel": one_of("matern", "se"),
    "nu": positive(),
    "kappa": positive(),
    "sigma_f": positive(),
    "noise_variance": positive(),
    "dim": optional(at_least(1, integer=True)),
    "explained_variance": interval(0, 1, low_open=True),
    "laplacian": one_of("combinatorial", "normalized", "random_walk"),
    "optimise": boolean(),
    "optimise_nu": boolean(),
    "complete_clusters": boolean(),
    "max_iter": at_least(1, integer=True),
}
NORMAL_SHARE = 0.1
QUERY_BATCH = 100_000
FRAME_BLOCK = 64  # right-hand sides a task


class VectorFieldGP(RegressorMixin, BaseEstimator):
    """Gaussian process regression of tangent vector fields, with uncertainty and without a mesh.

    Semi-supervised: all points go into `X`, the rows of `y` that are unknown are NaN.

    Parameters
    ----------
    n_eigenpairs : int
        K, the number of eigenfields. The official examples take 100 for meshes, 10 for EEG, the README 50.
    n_neighbors : int
        k of the graph; frames come from the 1.5 k nearest in the graph.
    kernel : "matern" or "se"
        Spectral density; the squared exponential has no `nu`.
    nu, kappa, sigma_f, noise_variance : float
        Smoothness, length (in units of eigenvalue^-½), prior standard deviation per tangent direction, variance of the
        noise per component. Used as they are with ``optimise=False`` (official initial values); otherwise only `nu` is
        (as the start, or as it is with ``optimise_nu=False``) and the rest starts from the data.
    dim : int or None
        d, the manifold's dimension; None estimates it from the local principal components.
    explained_variance : float
        Share in (0, 1] that the first d components must explain, mean over the points less standard deviation.
    laplacian : "combinatorial", "normalized" or "random_walk"
        Kind of connection Laplacian. For "random_walk" the fields are scaled to unit norm.
    optimise, optimise_nu : bool
        Maximize the evidence; over `nu` too.
    complete_clusters : bool
        Take more than `n_eigenpairs` where that number would cut a set of equal eigenvalues; False warns.
    max_iter : int
        Of each ascent. Official code.
    random_state : int, Generator, RandomState or None
        For `sample`; fitting draws nothing.

    Attributes
    ----------
    frames_ : ndarray, shape (n, D, d)
    dim_ : int
    graph_ : scipy.sparse.csr_array, shape (n, n)
    eigenvalues_ : ndarray, shape (K,)
    eigenvectors_ : ndarray, shape (n d, K)
        Unit columns; rows i d to i d + d - 1 are the components at point i.
    encoding_ : ndarray, shape (n, D, K)
    spectral_density_ : ndarray, shape (K,)
        S, the prior variances of the weights.
    hyperparameters_ : dict
        ``kappa``, ``sigma_f``, ``noise_variance`` and, for "matern", ``nu``.
    noise_variance_, log_marginal_likelihood_ : float
        The latter of the tangential components of the labelled rows; of all frames after `fit_many`.
    n_iter_ : int
        Steps of the best ascent.
    labelled_ : ndarray of int
    normal_residual_ : float
        Share of ``|y|²`` along the normals, which the model leaves out.
    mean_weights_ : ndarray, shape (K,)
    cov_weights_ : ndarray, shape (K, K)
    frame_weights_ : ndarray, shape (T, K)
        Posterior means of all frames (one row after `fit`): ``encode(X) @ frame_weights_[t]`` is frame t at X.

    References
    ----------
    peach2024implicit.

    Examples
    --------
    A rotation about the z axis of the sphere, known at every second point:

    >>> i = np.arange(300) + 0.5
    >>> z, angle = 1 - i / 150, np.pi * (1 + 5**0.5) * i
    >>> X = np.column_stack([np.sqrt(1 - z**2) * np.cos(angle), np.sqrt(1 - z**2) * np.sin(angle), z])
    >>> field = np.cross([0.0, 0.0, 1.0], X)
    >>> y = np.where((np.arange(300) % 2 == 0)[:, None], field, np.nan)
    >>> model = VectorFieldGP(n_eigenpairs=30).fit(X, y)
    >>> mean, std = model.predict(X, return_std=True)
    >>> bool(np.linalg.norm(mean - field) < 0.05 * np.linalg.norm(field)), mean.shape, std.shape
    (True, (300, 3), (300, 3))
    """

    def __init__(
        self,
        n_eigenpairs: int = 50,
        n_neighbors: int = 10,
        *,
        kernel: Literal["matern", "se"] = "matern",
        nu: float = 1.5,
        kappa: float = 5.0,
        sigma_f: float = 1.0,
        noise_variance: float = 1e-3,
        dim: int | None = None,
        explained_variance: float = 0.8,
        laplacian: Literal["combinatorial", "normalized", "random_walk"] = "combinatorial",
        optimise: bool = True,
        optimise_nu: bool = True,
        complete_clusters: bool = False,
        max_iter: int = 1000,
        random_state: int | np.random.Generator | np.random.RandomState | None = None,
    ) -> None:
        self.n_eigenpairs = n_eigenpairs
        self.n_neighbors = n_neighbors
        self.kernel = kernel
        self.nu = nu
        self.kappa = kappa
        self.sigma_f = sigma_f
        self.noise_variance = noise_variance
        self.dim = dim
        self.explained_variance = explained_variance
        self.laplacian = laplacian
        self.optimise = optimise
        self.optimise_nu = optimise_nu
        self.complete_clusters = complete_clusters
        self.max_iter = max_iter
        self.random_state = random_state

    def fit(self, X: ArrayLike, y: ArrayLike) -> Self:
        """Build the manifold from `X`, choose the hyper-parameters and condition on the known rows of `y`.

        Parameters
        ----------
        X : array_like, shape (n, D)
        y : array_like, shape (n, D)
            Vectors; a row of NaN is unknown.

        Returns
        -------
        VectorFieldGP

        Raises
        ------
        ValueError
            A shape of `y` other than that of `X`, a row that is only partly NaN, infinite values, no known row, an
            argument outside its range.

        Warns
        -----
        GeometryWarning
            A graph in several pieces (with the number of those without a label, where the prior mean 0 is predicted), a
            cut set of equal eigenvalues, more eigenpairs asked for than there are, an uncertain dimension, more than
            a tenth of ``|y|²`` along the normals.
        ConvergenceWarning
            The best ascent of the evidence did not converge; its end point is kept.
        """
        return self._fit(X, y, many=False, apply=ordered_map)

    def fit_many(
        self,
        X: ArrayLike,
        Y: ArrayLike,
        *,
        backend: Literal["serial", "processes", "ray"] = "serial",
        n_workers: int | None = None,
    ) -> list[Floats]:
        """Fit T fields on the same points, with one graph, one spectrum and shared hyper-parameters.

        The hyper-parameters maximize the sum of the frames' evidences. Afterwards the estimator stands for the last
        frame; `frame_weights_` has all.

        Parameters
        ----------
        X : array_like, shape (n, D)
        Y : array_like, shape (T, n, D)
            Each frame may have its own unknown rows.
        backend, n_workers
            Blocks of 64 frames over processes or Ray, see `steepest.core.parallel.ordered_map`; the result does not
            depend on them.

        Returns
        -------
        list of ndarray, shape (n, D)
            Posterior mean of each frame at the points of `X`.

        Raises
        ------
        ValueError
            As `fit`, for any frame.

        Examples
        --------
        >>> rng = np.random.default_rng(0)
        >>> X = rng.random((40, 2))
        >>> Y = rng.normal(size=(3, 1, 2)) + 0.1 * rng.normal(size=(3, 40, 2))
        >>> means = VectorFieldGP(n_eigenpairs=4, n_neighbors=6).fit_many(X, Y)
        >>> len(means), means[0].shape
        (3, (40, 2))
        """
        apply = partial(ordered_map, backend=backend, n_workers=n_workers)
        self._fit(X, Y, many=True, apply=apply)
        blocks = apply(partial(_field, self.encoding_), list(_blocks(self.frame_weights_)))
        return [mean for block in blocks for mean in block]

    def predict(
        self, X: ArrayLike, return_std: bool = False, return_cov: bool = False
    ) -> Floats | tuple[Floats, Floats]:
        """Return the posterior mean of the latent field, and its uncertainty.

        Parameters
        ----------
        X : array_like, shape (m, D)
            Points of the fit, or new ones near them.
        return_std, return_cov : bool
            Not both. Add ``noise_variance_`` to the (tangential) variances for those of observations.

        Returns
        -------
        mean : ndarray, shape (m, D)
        std : ndarray, shape (m, D)
            Of each ambient component.
        cov : ndarray, shape (m, D, D)
            Of rank d: zero along the normal.
        """
        if return_std and return_cov:
            raise value_error("return_std", "False where return_cov is True", return_std)
        means, spreads = [], []
        for E in self._encodings(X):
            means.append(E @ self.mean_weights_)
            if return_std or return_cov:
                root = E @ self._cov_factor.T  # (m, D, K), a root of the covariance
                squared = np.matmul(root, root.transpose(0, 2, 1)) if return_cov else np.square(root).sum(axis=2)
                spreads.append(squared if return_cov else np.sqrt(squared))
        mean = np.concatenate(means)
        return (mean, np.concatenate(spreads)) if spreads else mean

    def sample(self, X: ArrayLike, n_samples: int = 1, random_state: int | np.random.Generator | None = None) -> Floats:
        """Draw fields from the posterior, jointly over the points.

        Parameters
        ----------
        X : array_like, shape (m, D)
        n_samples : int
        random_state : int, Generator or None
            None takes that of the estimator.

        Returns
        -------
        ndarray, shape (n_samples, m, D)
        """
        check("n_samples", n_samples, at_least(1, integer=True))
        encodings = list(self._encodings(X))
        seed = self.random_state if random_state is None else random_state
        rng = numpy_generator(seed, name="random_state")
        W = self.mean_weights_ + rng.standard_normal((n_samples, len(self.mean_weights_))) @ self._cov_factor
        return np.concatenate([_field(E, W) for E in encodings], axis=1)

    def encode(self, X: ArrayLike) -> Floats:
        """Return the positional encoding of points: the K eigenfields there.

        Parameters
        ----------
        X : array_like, shape (m, D)
            A point of the fit has its row of `encoding_`; others are reached by the eigenvalue equation.

        Returns
        -------
        ndarray, shape (m, D, K)
        """
        return np.concatenate(list(self._encodings(X)))

    def score(self, X: ArrayLike, y: ArrayLike) -> float:
        """Return R² pooled over all components, ``1 - Σ|y - f|² / Σ|y - mean y|²``, over the known rows of `y`."""
        mean = np.asarray(self.predict(X))
        vectors, known = vectors_with_gaps(y, mean.shape, "y")
        if not known.any():
            raise value_error("y", "known in at least one row", "NaN everywhere")
        truth = vectors[known]
        spread = np.square(truth - truth.mean(axis=0)).sum()
        return float(1 - np.square(truth - mean[known]).sum() / spread) if spread > 0 else float("nan")

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.required = True
        tags.target_tags.multi_output = True
        tags.target_tags.single_output = False
        return tags

    def _fit(self, X: ArrayLike, y: ArrayLike, *, many: bool, apply: Callable[..., list[Any]]) -> Self:
        check_params(self, LIMITS)
        name = "Y" if many else "y"
        if y is None:
            raise ValueError(f"{type(self).__name__} requires y to be passed, but the target y is None")
        points = validate_data(self, X, dtype=np.float64, ensure_min_samples=2)
        shape = (len(y), *points.shape) if many and np.ndim(y) else points.shape  # type: ignore[arg-type]
        vectors, known = vectors_with_gaps(y, shape, name)
        if not many:
            vectors, known = vectors[None], known[None]
        if not len(known):
            raise value_error(name, "one frame or more", vectors)
        if not known.any(axis=1).all():
            raise value_error(name, "known in at least one row" + " of each frame" * many, "NaN in all rows")
        self._fields = lowest_eigenfields(
            points,
            self.n_eigenpairs,
            self.n_neighbors,
            dim=self.dim,
            explained_variance=self.explained_variance,
            laplacian=self.laplacian,
            complete_clusters=self.complete_clusters,
        )
        self.graph_, self.frames_, self.dim_ = self._fields.graph, self._fields.frames, self._fields.frames.shape[2]
        self.eigenvalues_, self.eigenvectors_ = self._fields.eigenvalues, self._fields.vectors
        self.encoding_ = self._fields.encoding
        _report_pieces(self.graph_, known)
        self._condition(vectors, known, apply)
        return self

    def _condition(self, vectors: Floats, known: NDArray[np.bool_], apply: Callable[..., list[Any]]) -> None:
        """Choose the hyper-parameters and form the posterior of the weights; vectors (T, n, D), known (T, n)."""
        n, d, K = len(self.frames_), self.dim_, len(self.eigenvalues_)
        patterns, which = np.unique(known, axis=0, return_inverse=True)
        U = self.eigenvectors_.reshape(n, d, K)
        moments, members = [], []
        power = tangential = 0.0
        for number, rows in enumerate(patterns):
            frames = np.flatnonzero(which.ravel() == number)
            features, bases = U[rows].reshape(-1, K), self.frames_[rows]
            task = partial(_project, features, bases)
            found = apply(task, list(_blocks(vectors[frames][:, rows])))
            projections = np.concatenate([b for b, _, _ in found], axis=1)
            squared_norm = sum(s for _, s, _ in found)
            moments.append(Moments(features.T @ features, projections, squared_norm, len(features)))
            members.append(frames)
            tangential += squared_norm
            power += sum(p for _, _, p in found)
        self.labelled_ = np.flatnonzero(known[-1])
        self.normal_residual_ = max(0.0, 1 - tangential / power) if power > 0 else 0.0
        if self.normal_residual_ > NORMAL_SHARE:
            _warn(f"{self.normal_residual_:.0%} of |y|² is normal to the estimated tangent spaces and not modelled")
        parameters = self._hyperparameters(moments, tangential)
        log_S, _ = prior_variances(self.eigenvalues_, parameters, n * d)
        self.spectral_density_ = np.exp(log_S)
        self.noise_variance_ = parameters.noise_variance
        self.hyperparameters_ = {key: value for key, value in vars(parameters).items() if value is not None}
        self.log_marginal_likelihood_ = evidence(log_S, parameters.noise_variance, moments)[0]
        self.frame_weights_ = np.empty((len(known), K))
        for data, frames in zip(moments, members, strict=True):
            mean, factor = posterior(log_S, parameters.noise_variance, data)
            self.frame_weights_[frames] = mean.T
            if frames[-1] == len(known) - 1:
                self._cov_factor = factor
        self.mean_weights_ = self.frame_weights_[-1].copy()
        self.cov_weights_ = self._cov_factor.T @ self._cov_factor

    def _hyperparameters(self, moments: list[Moments], squared_norm: float) -> Hyperparameters:
        nu = float(self.nu) if self.kernel == "matern" else None
        given = Hyperparameters(float(self.kappa), float(self.sigma_f), float(self.noise_variance), nu)
        self.n_iter_ = 0
        if not self.optimise:
            return given
        if squared_norm == 0:
            text = "all known vectors are zero (or normal), the evidence has no maximum: hyper-parameters kept as given"
            warnings.warn(text, ConvergenceWarning, stacklevel=5)
            return given
        best = maximize_evidence(
            self.eigenvalues_,
            moments,
            self.eigenvectors_.shape[0],
            nu=nu,
            optimise_nu=self.optimise_nu,
            max_iter=self.max_iter,
        )
        self.n_iter_ = best.n_iter
        if not best.converged:
            text = f"the evidence was not maximized ({best.message}); the best point met is kept, raise max_iter"
            warnings.warn(text, ConvergenceWarning, stacklevel=5)
        return best.parameters

    def _encodings(self, X: ArrayLike) -> Iterator[Floats]:
        """Yield the encodings of the points batch by batch."""
        check_is_fitted(self)
        points = validate_data(self, X, dtype=np.float64, reset=False)
        for first in range(0, len(points), QUERY_BATCH):
            yield self._fields.at(points[first : first + QUERY_BATCH])


def _blocks(array: Floats) -> Iterator[Floats]:
    for first in range(0, len(array), FRAME_BLOCK):
        yield array[first : first + FRAME_BLOCK]


def _project(features: Floats, bases: Floats, vectors: Floats) -> tuple[Floats, float, float]:
    """Return Φᵀz (K, T), Σ zᵀz and Σ|y|² of vectors (T, N, D)."""
    z = np.einsum("nDd,tnD->tnd", bases, vectors).reshape(len(vectors), -1)
    return features.T @ z.T, float(np.vdot(z, z)), float(np.vdot(vectors, vectors))


def _field(encoding: Floats, weights: Floats) -> Floats:
    """Return E W (T, m, D) of an encoding (m, D, K) and weights (T, K)."""
    m, D, K = encoding.shape
    return (weights @ encoding.reshape(m * D, K).T).reshape(len(weights), m, D)


def _report_pieces(graph: Any, known: NDArray[np.bool_]) -> None:
    count, labels = connected_components(graph)
    if count == 1:
        return
    with_label = np.zeros((len(known), count), dtype=bool)
    for frame, rows in zip(with_label, known, strict=True):
        frame[labels[rows]] = True
    unlabelled = int((~with_label).sum(axis=1).max())
    sizes = np.sort(np.bincount(labels))[::-1]
    shown = ", ".join(str(size) for size in sizes[:10]) + ", …" * (count > 10)
    _warn(
        f"the graph has {count} connected components of sizes {shown}; {unlabelled} of them without a label, where the "
        "prior mean 0 is predicted"
    )


def _warn(text: str) -> None:
    warnings.warn(text, GeometryWarning, stacklevel=5)
