"""The KKT system of one iteration: formed, scaled on both sides, and sketched until it is as exact as asked.

    Gamma = [[B, G'], [G, 0]],    A = D Gamma D with rows and columns of length near 1,    A y = D b,    z = D y

Sketches converge at a rate set by the squared condition number of A. On the small test problems D takes its median from
18 to 4, and a third of the direct solves that end stalled sketches away.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from steepest.constrained._problem import Matrix

if TYPE_CHECKING:
    from steepest.constrained._sketch_and_project import Blocks, Sketches

__all__ = ["alike", "equilibrated", "kkt_matrix", "solve"]

Vector = NDArray[np.float64]

SWEEPS = 5  # of the scaling; more change the condition number by a few percent


def alike(H: Matrix, G: Matrix) -> tuple[Matrix, Matrix]:
    """Make both sparse where one is."""
    if sparse.issparse(H) or sparse.issparse(G):
        return sparse.csr_array(H), sparse.csr_array(G)
    return H, G


def kkt_matrix(B: Matrix, G: Matrix) -> Matrix:  # (n + m, n + m)
    """Gamma, dense or sparse as its parts."""
    if sparse.issparse(B):
        return sparse.csr_array(sparse.block_array([[B, G.T], [G, None]]))
    return np.block([[B, G.T], [G, np.zeros((len(G), len(G)))]])


def equilibrated(Gamma: Matrix) -> tuple[Matrix, Vector]:
    """Scale a symmetric matrix by the diagonal D of Ruiz's iteration; returns D Gamma D and D's entries."""
    A, D = Gamma, np.ones(Gamma.shape[0])
    for _ in range(SWEEPS):
        norms = np.sqrt(A.power(2).sum(axis=1) if sparse.issparse(A) else np.einsum("ij,ij->i", A, A))
        D = D / np.sqrt(np.where(norms > 0, norms, 1.0))
        if sparse.issparse(Gamma):
            A = sparse.csr_array(sparse.diags_array(D) @ Gamma @ sparse.diags_array(D))
        else:
            A = D[:, None] * Gamma * D
    return A, D


def solve(solver: Sketches | Blocks, Gamma: Matrix, b: Vector, D: Vector, target: float, budget: int) -> float:
    """Sketch until the residual of the unscaled system is at most `target`; return it.

    The scaled residual that the solver watches is another norm: its own target is tightened where it was too lax.
    """
    residual = float(np.linalg.norm(Gamma @ (D * solver.z) - b))
    while residual > target and not solver.exact and solver.steps < budget:
        solver.run(min(0.9 * solver.residual * target / residual, solver.residual), budget)
        residual = float(np.linalg.norm(Gamma @ (D * solver.z) - b))
    return residual
