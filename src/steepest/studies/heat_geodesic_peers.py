"""What the heat-geodesic study compares, in one form: ``embed(X, seed) -> (n, 2)`` on one thread; and ours, fitted.

PHATE and UMAP come from the extra ``manifold``, pydiffmap from its own package; diffusion map, Isomap, t-SNE and
spectral embedding need scikit-learn alone. All get ten neighbors where they ask for neighbors, and their own defaults
elsewhere.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from scipy.sparse import csr_array, diags_array
from scipy.sparse.linalg import eigsh

from steepest.core.errors import SteepestWarning
from steepest.core.extras import installed, require
from steepest.geometry.graph import alpha_decay_graph
from steepest.manifold.heat_geodesic import HeatGeodesicEmbedding

__all__ = ["OURS", "Embed", "diffusion_map", "embeddings", "isomap_distances", "ours", "phate_distances", "plane"]

OURS = "heat geodesic"
Embed = Callable[[np.ndarray, int], np.ndarray]
NEEDS = {"PHATE": "phate", "UMAP": "umap", "pydiffmap": "pydiffmap"}


def ours(
    X: np.ndarray, make: Callable[..., HeatGeodesicEmbedding] = HeatGeodesicEmbedding, **settings: Any
) -> HeatGeodesicEmbedding:
    """Fit `make` with `settings`; warnings (pieces, floored pairs, slow scaling) say nothing that scores do not.

    Parameters
    ----------
    X : ndarray (n, D)
    make : callable
        `HeatGeodesicEmbedding`, `phate_like` or `sne_like`.

    Examples
    --------
    >>> ours(np.random.default_rng(0).standard_normal((40, 3)), t=1.0).embedding_.shape
    (40, 2)
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SteepestWarning)
        return make(**({"random_state": 0} | settings)).fit(X)


def plane(
    X: np.ndarray, make: Callable[..., HeatGeodesicEmbedding] = HeatGeodesicEmbedding, **settings: Any
) -> np.ndarray:
    """Our two coordinates, see `ours`."""
    return np.asarray(ours(X, make, **settings).embedding_, dtype=float)


def embeddings(*names: str, n_neighbors: int = 10) -> dict[str, Embed]:
    """Embeddings by name, without those whose package is missing.

    Parameters
    ----------
    *names : str
        Of ``PHATE``, ``UMAP``, ``pydiffmap``, ``diffusion map``, ``Isomap``, ``t-SNE``, ``spectral``; all by default.
    n_neighbors : int

    Examples
    --------
    >>> X = np.random.default_rng(0).standard_normal((40, 3))
    >>> embeddings("Isomap")["Isomap"](X, 0).shape
    (40, 2)
    """

    def of(fit: Callable[[np.ndarray, int, int], np.ndarray]) -> Embed:
        def embed(X: np.ndarray, seed: int) -> np.ndarray:
            with _quietly():
                return np.asarray(fit(X, seed, min(n_neighbors, len(X) - 1)), dtype=float)

        return embed

    known = {
        "PHATE": _phate,
        "UMAP": _umap,
        "pydiffmap": _pydiffmap,
        "diffusion map": lambda X, seed, k: diffusion_map(X, n_neighbors=k),
        "Isomap": _isomap,
        "t-SNE": _tsne,
        "spectral": _spectral,
    }
    return {name: of(known[name]) for name in names or known if name not in NEEDS or installed(NEEDS[name])}


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Peers warn about what they chose and print how far they are; neither belongs to the study."""
    sink = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink):
        warnings.simplefilter("ignore")
        yield


def diffusion_map(X: np.ndarray, n_components: int = 2, *, n_neighbors: int = 10) -> np.ndarray:
    """Diffusion map on the graph that PHATE uses: λ_k^t ψ_k of the Markov matrix with density removed, t = 1.

    Parameters
    ----------
    X : ndarray (n, D)
    n_components, n_neighbors : int

    Returns
    -------
    ndarray (n, n_components)

    Examples
    --------
    >>> diffusion_map(np.random.default_rng(0).standard_normal((40, 3))).shape
    (40, 2)
    """
    W = alpha_decay_graph(X, n_neighbors, anisotropy=1.0)
    W = csr_array(W + diags_array(np.asarray(W.max(axis=1).todense()).ravel().clip(1e-12)))
    degree = np.asarray(W.sum(axis=1)).ravel()
    scale = diags_array(1 / np.sqrt(degree))
    start = np.random.default_rng(0).standard_normal(len(degree))
    values, vectors = eigsh(scale @ W @ scale, k=n_components + 1, which="LA", v0=start)
    order = np.argsort(-values)[1:]
    return vectors[:, order] / np.sqrt(degree)[:, None] * values[order]


def phate_distances(X: np.ndarray, seed: int = 0, *, n_neighbors: int = 10, t: int | str = "auto") -> np.ndarray:
    """Distances between PHATE's potentials, its counterpart of a distance matrix.

    Raises
    ------
    MissingExtra
        PHATE is not installed.
    """
    from scipy.spatial.distance import pdist, squareform

    phate: Any = require("phate", "manifold", what="the comparison with PHATE")
    with _quietly():
        model = phate.PHATE(knn=n_neighbors, t=t, n_landmark=None, random_state=seed, verbose=-1, n_jobs=1)
        model.fit(X)
        return np.asarray(squareform(pdist(np.asarray(model.diff_potential))))


def isomap_distances(X: np.ndarray, *, n_neighbors: int = 10) -> np.ndarray:
    """Shortest paths on Isomap's graph.

    Examples
    --------
    >>> isomap_distances(np.arange(20.0)[:, None], n_neighbors=2)[0, -1].item()
    19.0
    """
    from sklearn.manifold import Isomap

    with _quietly():
        return np.asarray(Isomap(n_neighbors=min(n_neighbors, len(X) - 1), n_components=1).fit(X).dist_matrix_)


def _phate(X: np.ndarray, seed: int, n_neighbors: int) -> np.ndarray:
    phate: Any = require("phate", "manifold", what="the comparison with PHATE")
    return phate.PHATE(knn=n_neighbors, random_state=seed, verbose=-1, n_jobs=1).fit_transform(X)


def _umap(X: np.ndarray, seed: int, n_neighbors: int) -> np.ndarray:
    umap: Any = require("umap", "manifold", what="the comparison with UMAP")
    return umap.UMAP(n_neighbors=n_neighbors, random_state=seed, n_jobs=1).fit_transform(X)


def _pydiffmap(X: np.ndarray, seed: int, n_neighbors: int) -> np.ndarray:
    maps: Any = require("pydiffmap.diffusion_map", what="the comparison with pydiffmap")
    return maps.DiffusionMap.from_sklearn(n_evecs=2, k=max(n_neighbors, 64), epsilon="bgh", alpha=1.0).fit_transform(X)


def _isomap(X: np.ndarray, seed: int, n_neighbors: int) -> np.ndarray:
    from sklearn.manifold import Isomap

    return Isomap(n_neighbors=n_neighbors, n_components=2).fit_transform(X)


def _tsne(X: np.ndarray, seed: int, n_neighbors: int) -> np.ndarray:
    from sklearn.manifold import TSNE

    return TSNE(random_state=seed, n_jobs=1, perplexity=min(30.0, (len(X) - 1) / 3)).fit_transform(X)


def _spectral(X: np.ndarray, seed: int, n_neighbors: int) -> np.ndarray:
    from sklearn.manifold import SpectralEmbedding

    return SpectralEmbedding(n_components=2, n_neighbors=n_neighbors, random_state=seed).fit_transform(X)
