"""Graphs that people hand over, and the two numbers of a Laplacian of rates that gossip depends on."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import linalg, sparse
from scipy.sparse import csgraph

from steepest.core.errors import at_least, check, kind_error, value_error

__all__ = ["Graph", "as_graph", "checked_rates", "constants_of", "uniform_rates"]

Array = NDArray[Any]
DENSE = 2000  # nodes up to which the Laplacian is inverted as a full matrix
BATCH = 256  # right-hand sides at a time beyond that


@dataclass(frozen=True)
class Graph:
    """Nodes 0 to n - 1 and undirected edges (m, 2), in the caller's order."""

    n: int
    edges: Array

    def differences(self, v: Array) -> Array:
        """``(e_i - e_j)^T v`` of every edge ij, for v (n,) or (n, k)."""
        return np.asarray(v[self.edges[:, 0]] - v[self.edges[:, 1]])

    def laplacian(self, rates: Array) -> Any:
        """The matrix (n, n) ``sum of rates_ij (e_i - e_j)(e_i - e_j)^T``, sparse."""
        i, j = self.edges.T
        W = sparse.coo_array((rates, (i, j)), shape=(self.n, self.n)).tocsr()
        W = W + W.T
        return sparse.diags_array(W.sum(axis=1)) - W

    def connected(self, kept: Array | None = None) -> bool:
        """Whether one can go everywhere (along the edges that are kept)."""
        i, j = (self.edges if kept is None else self.edges[kept]).T
        W = sparse.coo_array((np.ones(len(i)), (i, j)), shape=(self.n, self.n))
        return bool(csgraph.connected_components(W, directed=False)[0] == 1)


def as_graph(graph: Any, name: str = "graph") -> Graph:
    """Read a `networkx.Graph`, an adjacency matrix or ``(n, edges)``, and refuse what cannot gossip.

    Raises
    ------
    TypeError
        None of these.
    ValueError
        Fewer than two nodes, a self-loop, an edge that occurs twice, an asymmetric matrix, several parts.
    """
    if isinstance(graph, Graph):
        return graph
    if hasattr(graph, "edges") and hasattr(graph, "nodes"):
        found = _from_networkx(graph, name)
    elif isinstance(graph, tuple) and len(graph) == 2:
        found = _from_edges(*graph, name)
    elif sparse.issparse(graph) or isinstance(graph, np.ndarray):
        found = _from_adjacency(graph, name)
    else:
        raise kind_error(name, "a networkx.Graph, a symmetric adjacency matrix or (n, edges)", graph)
    loops = np.flatnonzero(found.edges[:, 0] == found.edges[:, 1])
    if len(loops):
        raise value_error(name, "without self-loops", f"one at node {found.edges[loops[0], 0]}")
    if found.n < 2:
        raise value_error(name, "of at least 2 nodes", found.n)
    if len(np.unique(np.sort(found.edges, axis=1), axis=0)) < len(found.edges):
        raise value_error(name, "without edges that occur twice", f"{len(found.edges)} edges")
    if not found.connected():
        raise value_error(name, "connected", f"{found.n} nodes and {len(found.edges)} edges in several parts")
    return found


def _from_networkx(graph: Any, name: str) -> Graph:
    if graph.is_directed():
        raise value_error(name, "undirected", type(graph).__name__, "use graph.to_undirected()")
    index = {node: k for k, node in enumerate(graph.nodes)}
    edges = [(index[edge[0]], index[edge[1]]) for edge in graph.edges]
    return Graph(len(index), np.array(edges, dtype=np.int64).reshape(-1, 2))


def _from_edges(n: Any, edges: Any, name: str) -> Graph:
    check(f"{name}[0]", n, at_least(0, integer=True))
    pairs = np.asarray(edges)
    if pairs.size == 0:
        pairs = pairs.astype(np.int64).reshape(0, 2)
    if pairs.ndim != 2 or pairs.shape[1] != 2 or pairs.dtype.kind not in "iu":
        raise value_error(f"{name}[1]", "pairs (m, 2) of node indices", edges)
    if len(pairs) and (pairs.min() < 0 or pairs.max() >= n):
        raise value_error(f"{name}[1]", f"pairs of indices from 0 to {n - 1}", f"index {pairs.max()} or {pairs.min()}")
    return Graph(int(n), pairs.astype(np.int64))


def _from_adjacency(graph: Any, name: str) -> Graph:
    if graph.ndim != 2 or graph.shape[0] != graph.shape[1]:
        raise value_error(name, "a square adjacency matrix", graph)
    A = sparse.csr_array(graph)
    A.eliminate_zeros()
    if not bool(np.isfinite(A.data.astype(float)).all()):
        raise value_error(name, "a finite adjacency matrix", "NaN or an infinity in it")
    if (A != A.T).nnz:
        raise value_error(name, "a symmetric adjacency matrix", "an asymmetric one")
    upper = sparse.triu(A).tocsr()
    upper.sort_indices()
    i, j = upper.nonzero()
    return Graph(A.shape[0], np.stack([i, j], axis=1).astype(np.int64))


def checked_rates(graph: Graph, rates: Any, name: str = "rates") -> Array:
    """Rates (m,) as float64, finite and nonnegative, that leave the graph connected."""
    found = np.array(rates, dtype=float)
    if found.shape != (len(graph.edges),):
        raise value_error(name, f"of shape ({len(graph.edges)},), one for each edge", rates)
    if not np.isfinite(found).all() or (found < 0).any():
        raise value_error(name, "finite and nonnegative", found[~(np.isfinite(found) & (found >= 0))][0])
    if not graph.connected(found > 0):
        raise value_error(name, "positive on edges that connect all nodes", f"{(found > 0).sum()} positive rates")
    return found


def constants_of(graph: Graph, rates: Array) -> tuple[float, float]:
    """``chi1 = 1 / lambda_2`` of the Laplacian and ``chi2``, half the largest resistance of an edge in use."""
    used = Graph(graph.n, graph.edges[rates > 0])
    L = graph.laplacian(rates)
    if graph.n <= DENSE:
        dense = L.toarray()
        smallest = linalg.eigh(dense, eigvals_only=True, subset_by_index=[1, 1])[0]
        return 1 / float(smallest), float(resistances(used, dense).max()) / 2
    return _sparse_constants(used, L)


def resistances(graph: Graph, L: Array) -> Array:
    """``(e_i - e_j)^T L^+ (e_i - e_j)`` of every edge, for a Laplacian (n, n)."""
    K = linalg.inv(L + np.trace(L) / graph.n**2, check_finite=False)
    i, j = graph.edges.T
    return np.asarray(K[i, i] + K[j, j] - K[i, j] - K[j, i])


def _sparse_constants(graph: Graph, L: Any) -> tuple[float, float]:
    """The same by solves with the last node grounded."""
    from scipy.sparse.linalg import LinearOperator, eigsh, splu

    n = graph.n
    factors = splu(sparse.csc_matrix(L[:-1, :-1]))

    def inverse(b: Array) -> Array:
        x = np.zeros((n, *b.shape[1:]))
        x[:-1] = factors.solve(b[:-1])
        return np.asarray(x - x.mean(axis=0))

    start = np.random.default_rng(0).standard_normal(n)
    operator = LinearOperator((n, n), matvec=lambda v: inverse(v - v.mean()), dtype=float)
    chi1 = float(eigsh(operator, k=1, which="LA", v0=start - start.mean(), return_eigenvectors=False)[0])
    largest = 0.0
    for k in range(0, len(graph.edges), BATCH):
        part = graph.edges[k : k + BATCH]
        b = np.zeros((n, len(part)))
        columns = np.arange(len(part))
        b[part[:, 0], columns], b[part[:, 1], columns] = 1.0, -1.0
        largest = max(largest, float((b * inverse(b)).sum(axis=0).max()))
    return chi1, largest / 2


def uniform_rates(graph: Graph) -> tuple[Array, float, float]:
    """Equal rates with ``2 chi1 chi2 = 1``, and their constants."""
    return scaled(graph, np.ones(len(graph.edges)))


def scaled(graph: Graph, rates: Array) -> tuple[Array, float, float]:
    """Rates times the factor that makes ``2 chi1 chi2 = 1``, and their constants."""
    chi1, chi2 = constants_of(graph, rates)
    factor = math.sqrt(2 * chi1 * chi2)
    return rates * factor, chi1 / factor, chi2 / factor
