"""Convex training: networks whose optimum is global and comes with a certificate.

``relu_network`` trains two-layer ReLU networks as a convex program over activation patterns, plainly or against
perturbations of the inputs.
"""

from steepest.core.extras import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "relu_network": [
            "ConvexReLUClassifier",
            "ConvexReLURegressor",
            "convex_objective",
            "enumerate_patterns",
            "required_patterns",
            "sample_patterns",
        ]
    },
)
