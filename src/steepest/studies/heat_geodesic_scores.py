"""How well an embedding keeps distances, clusters, times and neighbors: the scores of the heat-geodesic study."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy.spatial.distance import cdist
from scipy.stats import rankdata

from steepest.core.extras import require

__all__ = [
    "cluster_scores",
    "common_neighbors",
    "distance_correlation",
    "interpolation_errors",
    "pearson_of_rows",
    "row_correlations",
    "wasserstein",
]


def row_correlations(found: Mapping[str, np.ndarray], truth: np.ndarray) -> dict[str, tuple[float, float]]:
    """Pearson and Spearman correlation of each row with the true row, averaged over rows.

    A row without variation counts 0.

    Parameters
    ----------
    found : mapping
        Name of a method to its distances (n, m).
    truth : ndarray (n, m)

    Examples
    --------
    >>> D = np.array([[0.0, 1.0, 2.0], [1.0, 0.0, 4.0], [2.0, 4.0, 0.0]])
    >>> [round(r, 6) for r in row_correlations({"scaled": 3 * D + 1}, D)["scaled"]]
    [1.0, 1.0]
    """
    ranks = rankdata(truth, axis=1)
    return {name: (pearson_of_rows(D, truth), pearson_of_rows(rankdata(D, axis=1), ranks)) for name, D in found.items()}


def pearson_of_rows(A: np.ndarray, B: np.ndarray) -> float:
    """Pearson correlation of each row of `A` with that of `B`, averaged; a row without variation counts 0."""
    A, B = A - A.mean(axis=1, keepdims=True), B - B.mean(axis=1, keepdims=True)
    product = np.einsum("ij,ij->i", A, B)
    scale = np.sqrt(np.einsum("ij,ij->i", A, A) * np.einsum("ij,ij->i", B, B))
    return float(np.mean(np.divide(product, scale, out=np.zeros_like(product), where=scale > 0)))


def distance_correlation(A: np.ndarray, B: np.ndarray) -> float:
    """Pearson correlation of two distance matrices over the pairs i < j.

    Examples
    --------
    >>> D = np.array([[0.0, 1.0, 2.0], [1.0, 0.0, 4.0], [2.0, 4.0, 0.0]])
    >>> round(distance_correlation(D, 2 * D), 6)
    1.0
    """
    pairs = np.triu_indices(len(A), 1)
    return float(np.corrcoef(A[pairs], B[pairs])[0, 1])


def cluster_scores(Y: np.ndarray, labels: np.ndarray, *, seed: int = 0) -> dict[str, float]:
    """Homogeneity, adjusted Rand index and adjusted mutual information of k-means on the embedding as it is.

    Parameters
    ----------
    Y : ndarray (n, m)
    labels : ndarray (n,)
        As many clusters are sought as there are labels.
    seed : int
        Of k-means, best of ten starts.

    Examples
    --------
    >>> Y = np.array([[0.0], [0.1], [5.0], [5.1]])
    >>> cluster_scores(Y, np.array([1, 1, 0, 0]))["AMI"]
    1.0
    """
    from sklearn import metrics
    from sklearn.cluster import KMeans

    found = KMeans(len(np.unique(labels)), n_init=10, random_state=seed).fit_predict(Y)
    return {
        "homogeneity": float(metrics.homogeneity_score(labels, found)),
        "ARI": float(metrics.adjusted_rand_score(labels, found)),
        "AMI": float(metrics.adjusted_mutual_info_score(labels, found)),
    }


def interpolation_errors(Y: np.ndarray, bins: np.ndarray) -> np.ndarray:
    """Wasserstein distance between each inner time bin and the middle of its two neighbors, embedding standardized.

    The optimal plan (`ot.emd`) between the bins before and after is cut in its middle, each pair of points at its
    weight: McCann's displacement interpolation at 1/2.

    Parameters
    ----------
    Y : ndarray (n, m)
    bins : ndarray (n,) of int

    Returns
    -------
    ndarray (n_bins - 2,)

    Raises
    ------
    MissingExtra
        POT is not installed.
    """
    ot: Any = require("ot", "optim", what="displacement interpolation")
    Z, levels = (Y - Y.mean(axis=0)) / np.maximum(Y.std(axis=0), 1e-12), np.unique(bins)
    errors = []
    for before, held_out, after in zip(levels, levels[1:], levels[2:]):
        a, b = Z[bins == before], Z[bins == after]
        plan = ot.emd(ot.unif(len(a)), ot.unif(len(b)), cdist(a, b, "sqeuclidean"))
        i, j = np.nonzero(plan)
        errors.append(wasserstein((a[i] + b[j]) / 2, Z[bins == held_out], plan[i, j]))
    return np.array(errors)


def wasserstein(a: np.ndarray, b: np.ndarray, weights: np.ndarray | None = None) -> float:
    """Wasserstein-1 distance between two clouds of points; `weights` are those of `a`, uniform by default.

    Raises
    ------
    MissingExtra
        POT is not installed.
    """
    ot: Any = require("ot", "optim", what="Wasserstein distances")
    p = ot.unif(len(a)) if weights is None else weights / weights.sum()
    return float(ot.emd2(p, ot.unif(len(b)), cdist(a, b)))


def common_neighbors(A: np.ndarray, B: np.ndarray, n_neighbors: int = 10) -> float:
    """Share of the nearest neighbors that two embeddings have in common.

    Examples
    --------
    >>> Y = np.arange(20.0)[:, None]
    >>> common_neighbors(Y, -Y, 3)
    1.0
    """
    from sklearn.neighbors import NearestNeighbors

    rows = [NearestNeighbors(n_neighbors=n_neighbors).fit(Y).kneighbors(return_distance=False) for Y in (A, B)]
    shared = [len(set(p) & set(q)) for p, q in zip(*(r.tolist() for r in rows))]
    return float(np.mean(shared)) / n_neighbors
