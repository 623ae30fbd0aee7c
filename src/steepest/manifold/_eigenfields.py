"""The lowest eigenfields of a point cloud's connection Laplacian, at its points and at new ones.

A kNN graph with unit weights, tangent frames T_i (D×d) from the 1.5 k nearest points along the graph, the connection
Laplacian L (nd×nd) and its K lowest eigenpairs (λ_l, U_l), ``E_i = T_i U_i`` (D×K). At a new point x with neighbors j,
frame T_x (from its 1.5 k nearest points and itself) and transports R_xj, the eigenvalue equation L U = U Λ extends the
fields (Nyström)::

    combinatorial  E(x) = T_x Σ_j R_xj U_j / (k - λ_l)
    normalized     E(x) = T_x Σ_j R_xj U_j / (k deg_j)^½ / (1 - λ_l)
    random walk    E(x) = T_x Σ_j R_xj U_j / k / (1 - λ_l)

over the k nearest points; fields with ``λ_l`` above 0.9 of the degree (1 or k) are set to 0 there.

Paper: peach2024implicit, Sec. 3.2; the extension to new points is ours. Departure: where the graph is in several pieces
their eigenpairs are computed one by one, so that no degenerate eigenvalue mixes them.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.spatial import cKDTree

from steepest.geometry._matrices import degrees
from steepest.geometry.connection import connection_laplacian, parallel_transport, tangent_frames
from steepest.geometry.eigenpairs import lowest_eigenpairs
from steepest.geometry.graph import GeometryWarning, connected_components, knn_graph

__all__ = ["Eigenfields", "lowest_eigenfields"]

Floats = NDArray[np.float64]

CLUSTER_GAP = 1e-6  # relative to the largest eigenvalue kept
CRITERION_MARGIN = 0.05
STEEPEST_TERM = 0.1  # coefficients of new points with 1 - λ / degree below it are set to 0


@dataclass(frozen=True)
class Eigenfields:
    """Points (n, D), graph (n, n), frames (n, D, d), eigenvalues (K,), unit vectors (n d, K) and their setting."""

    points: Floats
    graph: sparse.csr_array
    frames: Floats
    eigenvalues: Floats
    vectors: Floats
    n_neighbors: int
    laplacian: str

    @property
    def encoding(self) -> Floats:
        """E at the points, shape (n, D, K)."""
        n, _, d = self.frames.shape
        encoding: Floats = self.frames @ self.vectors.reshape(n, d, -1)
        return encoding

    def at(self, points: Floats) -> Floats:
        """Return E (m, D, K); a point that is one of ours has its own."""
        size = min(_frame_size(self.n_neighbors), len(self.points))
        distances, nearest = cKDTree(self.points).query(points, k=range(1, size + 1))
        own = distances[:, 0] == 0
        out = np.empty((*points.shape, len(self.eigenvalues)))
        nodes = nearest[own, 0]
        out[own] = self.frames[nodes] @ self.vectors.reshape(len(self.points), -1, len(self.eigenvalues))[nodes]
        if not own.all():
            out[~own] = self._extended(points[~own], nearest[~own])
        return out

    def _extended(self, points: Floats, nearest: NDArray[np.intp]) -> Floats:
        n, _, d = self.frames.shape
        m, k = len(points), self.n_neighbors
        cloud = np.concatenate([self.points[nearest], points[:, None]], axis=1)
        cloud -= cloud.mean(axis=1, keepdims=True)
        frames = np.linalg.svd(cloud, full_matrices=False)[2][:, :d].transpose(0, 2, 1)
        neighbors = nearest[:, :k].ravel()
        R = parallel_transport(np.concatenate([frames, self.frames]), np.repeat(np.arange(m), k), m + neighbors)
        degree = float(k)
        if self.laplacian == "normalized":
            R = R * (k * degrees(self.graph)[neighbors])[:, None, None] ** -0.5
            degree = 1.0
        elif self.laplacian == "random_walk":
            R, degree = R / k, 1.0
        carry = sparse.bsr_array((R, neighbors, np.arange(0, m * k + 1, k)), shape=(m * d, n * d))
        gap = degree - self.eigenvalues
        coefficients = np.where(gap < STEEPEST_TERM * degree, 0.0, 1 / np.where(gap > 0, gap, 1.0))
        extended: Floats = frames @ ((carry @ self.vectors) * coefficients).reshape(m, d, -1)
        return extended


def lowest_eigenfields(
    points: Floats,
    n_eigenpairs: int,
    n_neighbors: int,
    *,
    dim: int | None,
    explained_variance: float,
    laplacian: str,
    complete_clusters: bool,
) -> Eigenfields:
    """Make graph, frames and spectrum of points (n, D)."""
    n = len(points)
    graph = knn_graph(points, n_neighbors)
    tangents = tangent_frames(
        points,
        n_neighbors=min(_frame_size(n_neighbors), n - 1),
        dim=dim,
        explained_variance=explained_variance,
        graph=graph,
    )
    frames, d = tangents.frames, int(tangents.dim)
    if dim is None:
        _report_dimension(tangents.singular_values, d, explained_variance)
    if n_eigenpairs > n * d:
        _warn(f"n_eigenpairs={n_eigenpairs} is more than the {n * d} of {n} points in {d} dimensions; all are taken")
        n_eigenpairs = n * d
    L = connection_laplacian(graph, frames, kind="combinatorial" if laplacian == "combinatorial" else "normalized")
    pieces = _Pieces(L, points, frames, connected_components(graph))
    values, U = _whole_clusters(pieces, n_eigenpairs) if complete_clusters else _lowest(pieces, n_eigenpairs)
    if laplacian == "random_walk":  # D^-½ turns eigenvectors of the normalized kind into its own
        U = U * np.repeat(degrees(graph) ** -0.5, d)[:, None]
        U /= np.linalg.norm(U, axis=0)
    return Eigenfields(points, graph, frames, np.maximum(values, 0.0), U, n_neighbors, laplacian)


def _frame_size(n_neighbors: int) -> int:
    return round(1.5 * n_neighbors)


def _lowest(pieces: _Pieces, k: int) -> tuple[Floats, Floats]:
    """Return the k lowest pairs; one more is looked at, to know whether a set of equal eigenvalues is cut."""
    values, vectors = pieces.lowest(min(k + 1, pieces.size))
    if len(values) > k and values[k] - values[k - 1] <= CLUSTER_GAP * values[k - 1]:
        _warn(
            f"n_eigenpairs={k} cuts a set of equal eigenvalues ({values[k - 1]:.3g}): which of its fields are kept is "
            "arbitrary; complete_clusters=True keeps all"
        )
    return values[:k], np.ascontiguousarray(vectors[:, :k])


def _whole_clusters(pieces: _Pieces, k: int) -> tuple[Floats, Floats]:
    """Return the k lowest pairs and those whose eigenvalues equal the last of them."""
    extra = 1
    while True:
        values, vectors = pieces.lowest(min(k + extra, pieces.size))
        ends = np.flatnonzero(np.diff(values[k - 1 :]) > CLUSTER_GAP * values[k - 1])
        if len(ends) or len(values) == pieces.size:
            size = k + int(ends[0]) if len(ends) else len(values)
            return values[:size], np.ascontiguousarray(vectors[:, :size])
        extra *= 2


@dataclass(frozen=True)
class _Pieces:
    """A connection Laplacian by the connected components of its graph."""

    L: Any
    points: Floats
    frames: Floats
    components: tuple[int, NDArray[np.int32]]

    @property
    def size(self) -> int:
        return int(self.L.shape[0])

    def lowest(self, k: int) -> tuple[Floats, Floats]:
        """Return the k lowest eigenpairs, each vector nonzero on one component."""
        count, labels = self.components
        n, D, d = self.frames.shape
        constants = self.frames.transpose(0, 2, 1).reshape(n * d, D)  # the ambient constant fields, in the frames
        if count == 1:
            return lowest_eigenpairs(self.L, k, points=self.points, near_kernel=constants)
        rows, found = sparse.csr_array(self.L), []
        for members in (np.flatnonzero(labels == piece) for piece in range(count)):
            unknowns = (d * members[:, None] + np.arange(d)).ravel()
            block = sparse.bsr_array(rows[unknowns][:, unknowns], blocksize=(d, d))
            at_most, places, near = min(k, len(unknowns)), self.points[members], constants[unknowns]
            found.append((unknowns, *lowest_eigenpairs(block, at_most, points=places, near_kernel=near)))
        values = np.concatenate([w for _, w, _ in found])
        lowest = np.argsort(values, kind="stable")[:k]
        place = np.full(len(values), -1)
        place[lowest] = np.arange(k)
        vectors, first = np.zeros((n * d, k)), 0
        for unknowns, w, V in found:
            columns = place[first : first + len(w)]
            vectors[np.ix_(unknowns, columns[columns >= 0])] = V[:, columns >= 0]
            first += len(w)
        return values[lowest], vectors


def _report_dimension(singular_values: Floats, dim: int, wanted: float) -> None:
    """Warn where the criterion passes or misses so narrowly that another draw of the points may change d."""
    shares = np.cumsum(np.square(singular_values), axis=1)
    shares /= np.where(shares[:, -1:] > 0, shares[:, -1:], 1.0)
    criterion = np.append(0.0, shares.mean(axis=0) - shares.std(axis=0))  # of 0, 1, 2 .. directions
    passed, missed = float(criterion[dim]), float(criterion[dim - 1])
    narrowly = passed - wanted < CRITERION_MARGIN and dim < len(criterion) - 1
    if narrowly or wanted - missed < CRITERION_MARGIN:
        _warn(
            f"the dimension {dim} is uncertain: {dim} principal directions explain {passed:.2f} of the variance, "
            f"{dim - 1} explain {missed:.2f}, and explained_variance asks for {wanted:.2f}; give dim"
        )


def _warn(text: str) -> None:
    warnings.warn(text, GeometryWarning, stacklevel=5)
