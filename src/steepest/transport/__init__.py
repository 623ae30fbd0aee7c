"""Optimal transport, in POT's words.

``sinkhorn_newton`` solves entropic problems to machine precision: Sinkhorn sweeps first, then sparse Newton steps.
"""

from steepest.core.extras import attach

__getattr__, __dir__, __all__ = attach(
    __name__, {"sinkhorn_newton": ["sinkhorn_newton_sparse", "sinkhorn_newton_sparse_many"]}
)
