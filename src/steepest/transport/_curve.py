"""A curved path for Newton steps that are too long for the exponential, along the strongest links of the plan.

Parts of a plan that only weak entries connect, of strength eps, must move by about log(1 + delta / eps); Newton's step
is delta / eps, which no step length makes useful for all parts at once. The largest entries that connect everything are
a spanning tree of the plan's graph; on it, every difference s between neighbors is replaced by asinh(s), and the
potentials are added up again. To first order the path is the straight one, so that the rate is kept.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.csgraph import breadth_first_order, connected_components

from steepest.transport._parts import strongest_links

__all__ = ["Curve"]

Array = NDArray[np.float64]


class Curve:
    """``t -> (du(t), dv(t))`` with the tangent (du, dv) at 0; `B` (n, m) holds the kept entries, sparse."""

    def __init__(self, B: sparse.csr_array, du: Array, dv: Array) -> None:
        n, m = B.shape
        self.n = n
        self.potential = np.concatenate([du, -dv, [0.0]])  # the last node is joined to one node of every part
        branches = strongest_links(B)
        n_parts, part = connected_components(branches, directed=False)
        first = np.unique(part, return_index=True)[1]
        rows = np.concatenate([branches.row, np.full(n_parts, n + m)])
        columns = np.concatenate([branches.col, first])
        joined = sparse.csr_array((np.ones(len(rows)), (rows, columns)), shape=(n + m + 1, n + m + 1))
        self.parent = breadth_first_order(joined, n + m, directed=False)[1]
        self.parent[n + m] = n + m

    def __call__(self, t: float) -> tuple[Array, Array]:
        """The point of the path at `t`."""
        w = t * self.potential
        bent = np.arcsinh(w - w[self.parent])
        up = self.parent
        while True:  # sums along the way to the root, doubling the way each time
            bent = bent + bent[up]
            further = up[up]
            if (further == up).all():
                return bent[: self.n], -bent[self.n : -1]
            up = further
