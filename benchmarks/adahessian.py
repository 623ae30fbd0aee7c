"""What a step of AdaHessian costs: its rows of ``_optimizers.py``."""

from __future__ import annotations

from collections.abc import Callable

import _optimizers


def bench(progress: Callable[[float], None] | None = None) -> list[_optimizers.Row]:
    """Measure; see ``_optimizers.bench``."""
    return _optimizers.bench(progress, ("AdaHessian",))
