"""Constrained optimization for `scipy.optimize.minimize`, with random inner solves that are as exact as needed.

``_sketched_newton`` is the method, ``_sketch_and_project`` its inner solver, which stands on its own as well.
"""

from steepest.core.extras import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {"_sketched_newton": ["sketched_newton"], "_sketch_and_project": ["sketch_and_project"]},
)
