"""Swarms of particles that minimize what gives no gradients.

``consensus`` holds consensus-based optimization and consensus hopping; ``test_functions`` holds rough functions to try
them on.
"""

from steepest.core.extras import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "consensus": ["minimize_cbo", "consensus_hopping"],
        "_weights": ["consensus_point"],
        "_network": ["train_module"],
    },
)
