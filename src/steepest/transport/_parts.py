"""Shifts of whole parts of the plan that only weak links connect: Newton's method on some dozens of unknowns.

A part is a set of rows I_k and columns J_k. Where its potentials move by s_k, u_i + s_k and v_j - s_k, the plan within
does not change, and that between parts k and l is multiplied by exp(s_k - s_l). Along these shifts the dual is

    D(s) = sum_k d_k s_k - sum_kl W_kl exp(s_k - s_l),   d_k = a(I_k) - b(J_k),   W_kl = mass of P between I_k and J_l,

which takes no pass over the plan to evaluate. A Newton step on the whole plan moves each such shift by about one; here
all of them find their place at once. The parts are what is left of the tree of the strongest links of the plan when its
weakest links are cut.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.csgraph import connected_components, minimum_spanning_tree

__all__ = ["Parts", "best_shifts", "strongest_links"]

Array = NDArray[np.float64]
LONGEST, STEPS, HALVINGS = 10.0, 30, 30  # shifts move apart by at most ten in a step, where exp is far from its tangent
ARMIJO, ENOUGH = 1e-4, 1e-2  # a step on the whole plan follows
SINGULAR = 1e-14  # added to a scaled Laplacian: parts that nothing connects


def strongest_links(B: sparse.csr_array) -> Any:
    """The spanning tree (or forest) of the largest entries of `B` (n, m) among n + m nodes, as COO.

    Its lengths are 1 + log(largest / entry).
    """
    n, m = B.shape
    links = B.tocoo()
    lengths = 1.0 + np.log(links.data.max() / np.maximum(links.data, 1e-300))
    graph = sparse.csr_array((lengths, (links.coords[0], n + links.coords[1])), shape=(n + m, n + m))
    return minimum_spanning_tree(graph).tocoo()


class Parts:
    """`count` parts (more where the tree is a forest of more): the tree without its weakest links."""

    def __init__(self, tree: Any, n: int, count: int) -> None:
        nodes = tree.shape[0]
        strong = np.argsort(tree.data, kind="stable")[: max(nodes - count, 0)]
        links = (np.ones(len(strong)), (tree.row[strong], tree.col[strong]))
        self.count, labels = connected_components(sparse.csr_array(links, shape=tree.shape), directed=False)
        self.rows, self.columns = labels[:n], labels[n:]

    def shifts(self, P: Array, a: Array, b: Array) -> tuple[Array, Array, int]:
        """Best shifts (du, dv) for the plan P, and the number of small Newton steps."""
        rows, columns = self._members(self.rows), self._members(self.columns)
        W = rows @ (columns @ P.T).T
        s, steps = best_shifts(W, rows @ a - columns @ b)
        return s[self.rows], -s[self.columns], steps

    def _members(self, labels: NDArray[Any]) -> sparse.csr_array:
        size = len(labels)
        return sparse.csr_array((np.ones(size), (labels, np.arange(size))), shape=(self.count, size))


def best_shifts(W: Array, d: Array) -> tuple[Array, int]:
    """Maximize ``d's - sum_kl W_kl exp(s_k - s_l)`` over s (K,) of mean zero, sum(d) = 0, by Newton's method from 0.

    Returns
    -------
    s, steps
    """
    W = W - np.diag(np.diag(W))
    s, E = np.zeros(len(d)), W
    first = float(np.abs(d - W.sum(1) + W.sum(0)).sum())
    for k in range(STEPS):
        g, degree = d - E.sum(1) + E.sum(0), E.sum(1) + E.sum(0)
        err = float(np.abs(g).sum())
        if err <= ENOUGH * first:
            return s, k
        x = _newton(E, degree, g)
        slope, t = float(g @ x), min(1.0, LONGEST / float(np.ptp(x)))
        for _ in range(HALVINGS):
            moved = s + t * x
            with np.errstate(over="ignore"):
                tried = W * np.exp(moved[:, None] - moved)
            if float(d @ (t * x) - (tried - E).sum()) >= ARMIJO * t * slope:
                break
            t /= 2
        else:
            return s, k  # at the rounding of D
        s, E = moved, tried
    return s, STEPS


def _newton(E: Array, degree: Array, g: Array) -> Array:
    """Solve with the Laplacian of ``E + E'``, scaled to ones on its diagonal; constants are its null space."""
    root = np.sqrt(np.maximum(degree, 1e-300))
    S = -(E + E.T) / root[:, None] / root
    S.flat[:: len(S) + 1] = 1.0 + SINGULAR
    null = root / np.linalg.norm(root)
    x: Array = np.linalg.solve(S + null[:, None] * null, g / root) / root
    return x - x.mean()
