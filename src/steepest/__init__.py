"""steepest: published methods of learning and optimisation that use curvature and geometry.

Rooms load when asked for: ``import steepest`` costs little more than ``import torch``.
"""

from importlib.metadata import version as _version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from steepest import (
        bilevel,
        constrained,
        convex,
        curvature,
        federated,
        generative,
        geometry,
        landscape,
        manifold,
        optim,
        particles,
        physics,
        policy,
        transport,
    )

__version__ = _version("steepest")
__all__ = [
    "__version__",
    "bilevel",
    "constrained",
    "convex",
    "curvature",
    "federated",
    "generative",
    "geometry",
    "landscape",
    "manifold",
    "optim",
    "particles",
    "physics",
    "policy",
    "transport",
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from importlib import import_module

        return import_module(f"steepest.{name}")
    raise AttributeError(f"module 'steepest' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
