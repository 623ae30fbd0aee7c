r"""Embed points so that their distances are the geodesic distances that heat tells of.

On a graph of the points with Laplacian L, ``H_t = e^{-tL}``, σ = ``harnack_regul``, ρ = ``denoise``:

    d(x,y)² = -4t ln H_t(x,y) + σ 4t ln(½ (H_t(x,x) + H_t(y,y)))          (negatives count as 0)
    D = (1-ρ) d^p + ρ D_T,       D_T(x,y) = ‖d^p(x,·) - d^p(y,·)‖₂        (p = ``distance_power``)
    embedding = argmin_Y Σ_{i<j} w_ij (‖y_i - y_j‖ - D_ij)².

Paper: huguet2023heat, algorithm 1. With a normalized Laplacian, σ = 0, p = 2, ρ = 1 the distance is 4t times that of
the rows of ``-ln H_t``, PHATE's potential distance with H_t in place of the diffusion operator (`phate_like`); with
weights ``w = H_t`` close pairs rule as in SNE (`sne_like`).

==============================  ==========================================
the paper                       here
==============================  ==========================================
``V_t(x,y)``                    ``2 / (H_t(x,x) + H_t(y,y))``
``τ`` (official code)           ``t``
``scale_factor`` (its code)     ``distance_power``
==============================  ==========================================

Departures: (1) `classic` is Torgerson's scaling; the official code takes principal components of the doubly centered
D². (2) t="auto" raises the paper's time until few pairs are at the floor of the logarithm; ``max_floored=1`` is the
paper's. (3) Landmarks and `transform` are ours, see ``_landmarks``. (4) The order of the Chebyshev series follows from
its error; the official code fixes it. (5) ``log_normalize`` takes the magnitude of ln H / ln t, which the official code
lets turn negative for t > 1. (6) The diagonal of d is 0 before denoising, where ``-ln H_t(x,x)`` is not.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import scipy.sparse
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from steepest.core.errors import (
    ConvergenceWarning,
    at_least,
    boolean,
    check,
    check_params,
    interval,
    nonnegative,
    one_of,
    optional,
    positive,
    value_error,
)
from steepest.core.random import numpy_generator
from steepest.geometry._heat_flow import EULER_STEPS, HeatFlow, spectral_upper_bound
from steepest.geometry.graph import (
    GeometryWarning,
    alpha_decay_graph,
    as_graph,
    connected_components,
    density_normalise,
    farthest_points,
    knn_graph,
    laplacian,
)
from steepest.manifold import _mds
from steepest.manifold._diffusion_time import FLOOR, choose_time, default_grid, floored_share, unit_columns
from steepest.manifold._heat_distance import HeatDistance, denoised, stress_weights
from steepest.manifold._landmarks import heat_diagonal, triangulate
from steepest.manifold._new_points import alpha_decay_rows, known_rows, refuse_beyond_memory

__all__ = ["HeatGeodesicEmbedding", "phate_like", "sne_like"]

Array = np.ndarray
TINY = 20  # samples up to which too many neighbors are clamped
DENSE = 3000  # samples up to which n_landmarks="auto" uses none
LANDMARKS = 500
SMACOF = 2000  # points up to which mds="auto" is SMACOF
ANCHORS = 200  # random landmarks that place a point
ROWS = 64
LIMITS = {
    "n_components": at_least(1, integer=True),
    "n_neighbors": at_least(1, integer=True),
    "graph": one_of("alpha_decay", "knn", "gaussian", "self_tuning", "precomputed"),
    "decay": positive(),
    "anisotropy": nonnegative(),
    "n_pca": optional(at_least(1, integer=True)),
    "laplacian": one_of("combinatorial", "normalized"),
    "max_floored": interval(0, 1),
    "t_max": positive(),
    "heat_method": one_of("chebyshev", "euler", "exact", "lowrank"),
    "order": optional(at_least(1, integer=True)),
    "harnack_regul": nonnegative(),
    "distance_power": positive(),
    "denoise": interval(0, 1),
    "log_normalize": boolean(),
    "mds": one_of("auto", "classic", "smacof", "sgd"),
    "mds_weights": optional(one_of("heat", "reached", "inverse", "gaussian")),
    "mds_weight_scale": positive(),
    "max_iter": at_least(1, integer=True),
    "n_jobs": interval(integer=True),
    "floor": interval(0, 1, low_open=True, high_open=True),
}


class HeatGeodesicEmbedding(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    r"""Low-dimensional picture of noisy data on a manifold whose distances are geodesic distances read off heat.

    Parameters
    ----------
    n_components : int
        Dimension m of the embedding.
    n_neighbors : int
        Neighbors k in the graph, fewer than samples; 10 or 15 for shapes, 5 for cells (official sweeps). With at most
        20 samples too many are clamped with a warning.
    graph : "alpha_decay", "knn", "gaussian", "self_tuning" or "precomputed"
        Affinity: ``exp(-(d/ρ_i)^decay)`` with ρ_i the distance to the k-th neighbor, symmetrized; unit weights;
        ``exp(-d²/2σ²)`` with σ the median edge; ``exp(-d²/ρ_i ρ_j)``; or `X` is itself the symmetric affinity (n, n),
        dense or sparse.
    decay : float
        Exponent of `alpha_decay` (40: official code), also for the neighbors of new points.
    anisotropy : float
        α of ``W_ij / (q_i q_j)^α``; 0 leaves the density in, 1 takes it out.
    n_pca : int, optional
        Search neighbors in this many principal components.
    laplacian : "combinatorial" or "normalized"
        `combinatorial` scales with the degree: equal t are about k times longer there.
    t : "auto", float or sequence of float
        Diffusion time(s), in units of 1 / L. Distances of several times are averaged with weights ``1 - t_i / Σ t``
        (official code). "auto" takes the knee of the heat's entropy over `t_grid` and raises it by factors 1.5 until
        at most `max_floored` of the pairs are below 1e-9 (or `floor`, where that is larger), at most to `t_max`.
    t_grid : array of float, optional
        Increasing times in which the knee is sought; 20 up to 50 by default (official code).
    max_floored : float
        In [0, 1]; 1 is the knee alone (the paper). A warning says when a larger share of pairs is at the floor.
    t_max : float
        Where raising stops.
    heat_method : "chebyshev", "euler", "exact" or "lowrank"
        How ``e^{-tL}`` is made, see `steepest.geometry.heat_apply`.
    order : int, optional
        Order of the polynomial (by default what an error of 1e-10 needs), Euler steps (32) or rank (200).
    harnack_regul : float
        σ: 0 is Varadhan's formula, 1 the full volume correction (ours, by study). Above 1 pairs can fall to distance 0,
        which a warning counts.
    distance_power : float
        p.
    denoise : float
        ρ in [0, 1].
    log_normalize : bool
        ``d = |ln(H + floor) / ln t|`` instead (``t / order`` for `euler`), official code; t must not be 1.
    mds : "auto", "classic", "smacof" or "sgd"
        "auto" is `smacof` up to 2000 points (landmarks, where there are any), else `sgd`.
    mds_weights : None, "heat", "reached", "inverse" or "gaussian"
        w: 1; ``H + 1e-5``; 1 and 0.05 for pairs at the floor; ``D^-a``; ``exp(-D̃²/a)`` with D̃ scaled to [0, 1] (at
        least 1e-5).
    mds_weight_scale : float
        a.
    max_iter : int
        Steps of `smacof`, epochs of `sgd`.
    n_landmarks : "auto", None or int
        Points whose heat is followed and that are scaled; the others are placed against them. "auto" is None up to 3000
        samples and 500 above. None is the published dense method, n² memory.
    random_state : int, RandomState, Generator or None
        Draws sampled columns, landmarks, probes and the order of `sgd`.
    n_jobs : int
        Processes that share the columns of heat (tasks on an initialized Ray cluster); the same result for any number.
    floor : float
        In (0, 1): what is added to heat before its logarithm, 1e-16 as in the official code; PHATE has 1e-7. Pairs
        with less heat are all at about one distance.

    Attributes
    ----------
    embedding_ : ndarray (n, m)
        float32 for float32 `X`.
    distances_ : ndarray (n, n), or (l, n) from the landmarks
        D.
    heat_kernel_ : ndarray (n, n), (n_t, n, n) for several times, None with landmarks
        Negative entries set to 0.
    graph_ : csr_array (n, n)
    t_ : float or ndarray
    floored_share_ : float
        Share of pairs (of one component; sampled for t="auto"; mean over times) whose heat is below 1e-9, or `floor`.
    t_grid_, entropy_ : ndarray
        t="auto" only: times tried, one beyond `t_` included, and the entropy there.
    stress_ : float
    stress_history_ : ndarray
    n_iter_ : int
    landmarks_ : ndarray (l,) or None
    n_features_in_ : int

    References
    ----------
    huguet2023heat.

    Examples
    --------
    >>> angle = np.linspace(0, 1.5 * np.pi, 60)
    >>> X = np.column_stack([np.cos(angle), np.sin(angle)])
    >>> Y = HeatGeodesicEmbedding(1, n_neighbors=4).fit_transform(X)
    >>> bool(abs(np.corrcoef(Y[:, 0], angle)[0, 1]) > 0.99)  # the arc is unrolled
    True
    """

    def __init__(
        self,
        n_components: int = 2,
        n_neighbors: int = 10,
        *,
        graph: str = "alpha_decay",
        decay: float = 40.0,
        anisotropy: float = 0.0,
        n_pca: int | None = None,
        laplacian: str = "combinatorial",
        t: Any = "auto",
        t_grid: Any = None,
        max_floored: float = 0.25,
        t_max: float = 1000.0,
        heat_method: str = "chebyshev",
        order: int | None = None,
        harnack_regul: float = 1.0,
        distance_power: float = 1.0,
        denoise: float = 0.0,
        log_normalize: bool = False,
        mds: str = "auto",
        mds_weights: str | None = None,
        mds_weight_scale: float = 1.0,
        max_iter: int = 300,
        n_landmarks: Any = "auto",
        random_state: Any = None,
        n_jobs: int = 1,
        floor: float = 1e-16,
    ) -> None:
        self.n_components = n_components
        self.n_neighbors = n_neighbors
        self.graph = graph
        self.decay = decay
        self.anisotropy = anisotropy
        self.n_pca = n_pca
        self.laplacian = laplacian
        self.t = t
        self.t_grid = t_grid
        self.max_floored = max_floored
        self.t_max = t_max
        self.heat_method = heat_method
        self.order = order
        self.harnack_regul = harnack_regul
        self.distance_power = distance_power
        self.denoise = denoise
        self.log_normalize = log_normalize
        self.mds = mds
        self.mds_weights = mds_weights
        self.mds_weight_scale = mds_weight_scale
        self.max_iter = max_iter
        self.n_landmarks = n_landmarks
        self.random_state = random_state
        self.n_jobs = n_jobs
        self.floor = floor

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.pairwise = self.graph == "precomputed"
        tags.input_tags.sparse = self.graph == "precomputed"
        return tags

    def fit(self, X: Any, y: Any = None) -> HeatGeodesicEmbedding:
        """Embed the rows of `X` (n, n_features), or of an affinity (n, n) with ``graph="precomputed"``.

        Raises
        ------
        ValueError, TypeError
            A parameter or `X` out of its range; the message names it.
        MemoryError
            The dense method would take more than 60 % of the free memory.

        Warns
        -----
        GeometryWarning
            Several components, many pairs at the floor, pairs at distance 0 for ``harnack_regul > 1``, a knee at an
            end of `t_grid`.
        ConvergenceWarning
            `max_iter` was not enough.
        """
        check_params(self, LIMITS)
        times = self._times()
        grid = self._grid()
        if self.mds == "classic" and self.mds_weights is not None:
            raise value_error("mds_weights", "None with mds='classic'", self.mds_weights)
        rng = numpy_generator(self.random_state, name="random_state")

        points = self._read(X)
        self.graph_ = self._affinity(points)
        n = self.graph_.shape[0]
        if self.n_components > n:
            raise value_error("n_components", f"at most the number of samples {n}", self.n_components)
        self.landmarks_ = self._choose_landmarks(points, n, rng)
        if self.landmarks_ is None:
            refuse_beyond_memory(n)
        count, labels = connected_components(self.graph_)

        L = laplacian(self.graph_, self.laplacian)
        lmax = min(2.0, spectral_upper_bound(L)) if self.laplacian == "normalized" else None
        flow = HeatFlow(L, self.heat_method, order=self.order, lmax=lmax or None, rank=self.order, n_jobs=self.n_jobs)
        share, least = None, max(FLOOR, self.floor)
        if times is None:
            chosen = choose_time(flow, labels, grid, rng, max_floored=self.max_floored, t_max=self.t_max, least=least)
            self._check_log(np.array([chosen.t]))
            times, share = np.array([chosen.t]), chosen.floored_share
            self.t_grid_, self.entropy_ = chosen.grid, chosen.entropy
        self.t_ = times if np.ndim(self.t) == 1 else float(times[0])

        heat = self._follow_heat(flow, times)  # (n_t, l, n)
        rows = slice(None) if self.landmarks_ is None else self.landmarks_
        if share is None:
            reachable = None if count == 1 else labels[rows][:, None] == labels
            share = float(np.mean([floored_share(H, reachable, least) for H in heat]))
        self.floored_share_ = share
        self._report(count, share, least)

        self._heat = heat
        log_times = self._log_times(times) if self.log_normalize else None
        self._distance = HeatDistance(times, self.harnack_regul, self.distance_power, log_times, self.floor)
        self._diagonal = self._self_heat(flow, heat, times, rng)
        D = self._distance(heat, self._diagonal[:, rows], self._diagonal)
        own = np.arange(n) if self.landmarks_ is None else self.landmarks_
        D[np.arange(len(own)), own] = 0.0
        if self.landmarks_ is not None:
            D[:, own] = 0.5 * (D[:, own] + D[:, own].T)
        zeroed = int((D == 0.0).sum()) - len(own)
        if self.harnack_regul > 1 and zeroed > 0:
            warnings.warn(
                f"harnack_regul={self.harnack_regul:g} drives {zeroed} of {D.size} pairs to distance 0",
                GeometryWarning,
                stacklevel=2,
            )
        self._profile = D[:, own].copy() if self.denoise else None
        if self._profile is not None:
            D = denoised(D, self._profile, self.denoise)
            D[np.arange(len(own)), own] = 0.0
            D[:, own] = 0.5 * (D[:, own] + D[:, own].T)
        self.distances_ = D
        self._embed(points, own, rng)
        return self

    def fit_transform(self, X: Any, y: Any = None) -> Array:
        """Fit and return `embedding_`."""
        return self.fit(X).embedding_

    def transform(self, X: Any) -> Array:
        """Place new rows: heat rows are weighted means of those of their neighbors, then as in `fit`; (n_new, m).

        Weights are the new point's own alpha-decay kernel. A row of the training data gets its embedding back. With
        ``graph="precomputed"`` rows are affinities (n_new, n) to the training points.
        """
        check_is_fitted(self, "embedding_")
        points = self._read(X, reset=False)
        known = known_rows(self._training, points)
        Y = np.empty((points.shape[0], self.n_components))
        Y[known >= 0] = self._points[known[known >= 0]]
        new = np.flatnonzero(known < 0)
        for i in range(0, len(new), ROWS * 8):
            rows = new[i : i + ROWS * 8]
            Y[rows] = self._place(self._neighbor_weights(points[rows]))
        return Y.astype(self.embedding_.dtype)

    # ---- what fit does, in order ----

    def _times(self) -> Array | None:
        """Check `t`: an array of times, or None for "auto"."""
        if isinstance(self.t, str):
            if self.t != "auto":
                raise value_error("t", "'auto', a number > 0 or a sequence of them", self.t)
            return None
        if np.ndim(self.t) == 0:
            check("t", self.t, positive())
            times = np.array([float(self.t)])
        else:
            times = np.asarray(self.t, dtype=np.float64)
            if times.ndim != 1 or times.size == 0 or not np.isfinite(times).all() or times.min() <= 0:
                raise value_error("t", "'auto', a number > 0 or a sequence of them", self.t)
        self._check_log(times)
        return times

    def _log_times(self, times: Array) -> Array:
        return times / (self.order or EULER_STEPS) if self.heat_method == "euler" else times

    def _check_log(self, times: Array) -> None:
        if self.log_normalize and bool((self._log_times(times) == 1.0).any()):
            raise value_error("t", "other than 1 (euler: order) with log_normalize", times)

    def _grid(self) -> Array:
        if self.t_grid is None:
            return default_grid()
        grid = np.asarray(self.t_grid, dtype=np.float64)
        if grid.ndim != 1 or len(grid) < 3 or not np.isfinite(grid).all() or grid[0] <= 0 or np.diff(grid).min() <= 0:
            raise value_error("t_grid", "at least 3 increasing times > 0", self.t_grid)
        return grid

    def _read(self, X: Any, *, reset: bool = True) -> Any:
        """Validate `X`; keep what `transform` needs. Points (n, D) float64, or a CSR affinity."""
        precomputed = self.graph == "precomputed"
        X = validate_data(
            self,
            X,
            reset=reset,
            dtype=[np.float64, np.float32],
            accept_sparse="csr" if precomputed else False,
            ensure_min_samples=2 if reset else 1,
        )
        if reset:
            self._dtype = X.dtype
        if precomputed:
            rows = scipy.sparse.csr_array(X, dtype=np.float64, copy=True)
            rows.sum_duplicates()
            rows.eliminate_zeros()
            return as_graph(rows, "X") if reset else rows
        points = np.asarray(X, dtype=np.float64) + 0.0  # no negative zeros: rows are compared by their bytes
        if reset and self.n_pca is not None and self.n_pca > min(points.shape):
            raise value_error("n_pca", f"at most min(n_samples, n_features) = {min(points.shape)}", self.n_pca)
        return points

    def _affinity(self, points: Any) -> Any:
        if self.graph == "precomputed":
            W = points.copy()
            W.setdiag(0.0)
            W.eliminate_zeros()
        else:
            search = self._searchable(points, fit=True)
            k = self._clamped(len(points))
            if self.graph == "alpha_decay":
                W = alpha_decay_graph(search, k, decay=self.decay)
            else:
                weight = "connectivity" if self.graph == "knn" else self.graph
                W = knn_graph(search, k, weight=weight, n_jobs=self.n_jobs)
        return density_normalise(W, self.anisotropy) if self.anisotropy else W

    def _searchable(self, points: Array, *, fit: bool = False) -> Array:
        """Reduce to `n_pca` principal components (of the training points)."""
        if self.n_pca is None:
            return points
        if fit:
            self._mean = points.mean(axis=0)
            self._axes = np.linalg.svd(points - self._mean, full_matrices=False)[2][: self.n_pca].T
        return (points - self._mean) @ self._axes

    def _clamped(self, n: int) -> int:
        if self.n_neighbors < n:
            return self.n_neighbors
        if n > TINY:
            raise value_error("n_neighbors", f"less than the number of samples {n}", self.n_neighbors)
        warnings.warn(
            f"n_neighbors={self.n_neighbors} is not less than the number of samples {n}; {n - 1} are used",
            GeometryWarning,
            stacklevel=4,
        )
        return n - 1

    def _choose_landmarks(self, points: Any, n: int, rng: np.random.Generator) -> Array | None:
        count = self.n_landmarks
        if isinstance(count, str):
            if count != "auto":
                raise value_error("n_landmarks", "'auto', None or an integer", count)
            count = LANDMARKS if n > DENSE else None
        if count is None:
            return None
        least = self.n_components + 1
        check("n_landmarks", count, at_least(least, integer=True))
        if count > n:
            raise value_error("n_landmarks", f"at most the number of samples {n}", count)
        if self.graph == "precomputed":
            return np.sort(rng.choice(n, count, replace=False))
        return farthest_points(points, count, random_state=rng)

    def _follow_heat(self, flow: HeatFlow, times: Array) -> Array:
        """Heat of every point (dense) or landmark at every point, negatives set to 0: (n_t, l, n)."""
        if self.landmarks_ is None:
            kernels = [flow.kernel(float(t)) for t in times]
            heat = kernels[0][None] if len(times) == 1 else np.stack(kernels)
            np.maximum(heat, 0.0, out=heat)
            self.heat_kernel_ = heat if np.ndim(self.t) == 1 else heat[0]
            return heat
        self.heat_kernel_ = None
        heat = np.empty((len(times), len(self.landmarks_), flow.n), dtype=np.float32)  # 2 bytes saved of every 3
        group = 4 * ROWS * max(1, self.n_jobs)
        for first in range(0, len(self.landmarks_), group):
            rows = slice(first, first + group)
            columns = flow(unit_columns(self.landmarks_[rows], flow.n), times)
            heat[:, rows] = np.maximum(columns, 0.0, out=columns).transpose(0, 2, 1)
        return heat

    def _self_heat(self, flow: HeatFlow, heat: Array, times: Array, rng: np.random.Generator) -> Array:
        """``H_t(x, x)``: (n_t, n)."""
        if self.landmarks_ is None:
            return np.stack([H.diagonal() for H in heat])
        diagonal = heat_diagonal(flow, times, rng)
        diagonal[:, self.landmarks_] = heat[:, np.arange(len(self.landmarks_)), self.landmarks_]
        return diagonal

    def _embed(self, points: Any, own: Array, rng: np.random.Generator) -> None:
        D, heat = self.distances_, self._heat[0]
        if self.landmarks_ is not None:
            D, heat = D[:, own], 0.5 * (heat[:, own] + heat[:, own].T)
            D = 0.5 * (D + D.T)
        self._range = (float(D.min()), float(D.max()))
        weights = self._weights(D, heat)
        start = _mds.classic(D, self.n_components)
        kind = ("smacof" if len(D) <= SMACOF else "sgd") if self.mds == "auto" else self.mds
        if kind == "classic":
            value = _mds.stress(D, start)
            found = _mds.Configuration(start, value, np.array([value]), 1, True)
        elif kind == "smacof":
            found = _mds.smacof(D, start, weights=weights, max_iter=self.max_iter)
        else:
            found = _mds.sgd(D, start, rng, weights=weights, max_iter=self.max_iter)
        if not found.converged:
            change = abs(np.diff(found.history[-2:])).sum() / found.stress
            warnings.warn(
                f"{kind} still changed the stress by {change:.1e} of itself after max_iter={self.max_iter} steps; "
                "raise max_iter",
                ConvergenceWarning,
                stacklevel=3,
            )
        self.stress_, self.stress_history_, self.n_iter_ = found.stress, found.history, found.n_iter
        Z = _mds.upright(found.points)
        self._anchors = None if kind == "classic" else np.sort(rng.permutation(len(Z))[:ANCHORS])
        self._scaled, self._mean_squares = Z, np.square(D).mean(axis=0)
        if self.landmarks_ is None:
            self._points = Z
        else:
            self._points = np.empty((self.graph_.shape[0], self.n_components))
            others = np.setdiff1d(np.arange(len(self._points)), own)
            for i in range(0, len(others), 64 * ROWS):
                columns = others[i : i + 64 * ROWS]
                self._points[columns] = self._triangulated(self.distances_[:, columns].T, self._heat[0][:, columns].T)
            self._points[own] = Z
        self._training = points
        self.embedding_ = self._points.astype(self._dtype)
        self._n_features_out = self.n_components

    def _report(self, count: int, share: float, least: float) -> None:
        if count == 1 and share <= self.max_floored:
            return
        parts = []
        if count > 1:
            parts.append(f"the graph has {count} connected components, whose pairs are all at the largest distance")
        if share > self.max_floored:
            parts.append(f"{share:.1%} of the pairs that heat can reach are below {least:g} at t={self.t_}")
        warnings.warn("; ".join(parts) + "; raise n_neighbors or t", GeometryWarning, stacklevel=3)

    # ---- new points ----

    def _neighbor_weights(self, points: Any) -> Any:
        """Affinities of new points to training points, rows that add up to 1: CSR (n_new, n)."""
        if self.graph == "precomputed":
            P = points
        else:
            training = self._searchable(self._training)
            k = min(self.n_neighbors, len(training) - 1)
            P = alpha_decay_rows(training, self._searchable(points), k, self.decay, self.n_jobs)
        total = np.asarray(P.sum(axis=1)).ravel()
        if not (total > 0).all():
            raise value_error("X", "rows with a positive affinity", f"{int((total <= 0).sum())} rows without")
        return scipy.sparse.diags_array(1.0 / total) @ P

    def _place(self, P: Any) -> Array:
        """Embed points given as weighted means of training points."""
        used = np.unique(P.indices)
        P = P[:, used]
        own = slice(None) if self.landmarks_ is None else self.landmarks_
        heat = np.stack([P @ H[:, used].T.astype(np.float64) for H in self._heat])  # (n_t, n_new, l)
        diagonal = np.stack([P @ d[used] for d in self._diagonal])
        D = self._distance(heat, diagonal, self._diagonal[:, own])
        if self._profile is not None:
            D = denoised(D.T, self._profile, self.denoise).T
        return self._triangulated(D, heat[0])

    def _triangulated(self, D: Array, heat: Array) -> Array:
        """Place points by distances to the points that carry the heat (n_new, l)."""
        return triangulate(
            self._scaled,
            self._mean_squares,
            D,
            self._anchors,
            self._weights(D, heat),
        )

    def _weights(self, D: Array, heat: Array) -> Array | None:
        least = max(FLOOR, self.floor)
        return stress_weights(self.mds_weights, D, heat, self.mds_weight_scale, self._range, least)


def phate_like(n_components: int = 2, **kw: Any) -> HeatGeodesicEmbedding:
    """Make the embedding whose distances are PHATE's potential distances, with heat for the diffusion operator.

    `kw` are other parameters of `HeatGeodesicEmbedding`; PHATE's own graph is ``n_neighbors=5, decay=40``. The floor is
    PHATE's too: where pairs are far apart it decides how far.

    Examples
    --------
    >>> phate_like(n_neighbors=5).denoise
    1.0
    """
    fixed: dict[str, Any] = {
        "laplacian": "normalized",
        "harnack_regul": 0.0,
        "distance_power": 2.0,
        "denoise": 1.0,
        "floor": 1e-7,
    }
    return HeatGeodesicEmbedding(n_components, **(fixed | kw))


def sne_like(n_components: int = 2, **kw: Any) -> HeatGeodesicEmbedding:
    """Make the embedding in which close pairs weigh most, as in SNE: the weights of the stress are the heat.

    The time is short, t = 2, unless `kw` says otherwise: raised times make the weights broad.

    Examples
    --------
    >>> sne_like().mds_weights
    'heat'
    """
    settings: dict[str, Any] = {"mds_weights": "heat", "t": 2.0}  # t: ours, by study
    return HeatGeodesicEmbedding(n_components, **(settings | kw))
