"""What the tasks share: data, splits, samplers and the two accuracies."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from steepest.bilevel.problem import BilevelProblem, solve_lower
from steepest.core.errors import kind_error, value_error

__all__ = ["DTYPE", "Evaluate", "load", "make_evaluate", "rows_of", "sampler"]

DTYPE = torch.float64
Evaluate = Callable[..., dict[str, float]]

LOADERS = {"digits": "load_digits", "breast_cancer": "load_breast_cancer", "diabetes": "load_diabetes"}


def load(data: Any, names: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Give ``(X, y)``: a data set bundled with scikit-learn, or the caller's own pair."""
    if isinstance(data, str):
        if data not in names:
            raise value_error("data", f"one of {', '.join(map(repr, names))}, or a pair (X, y)", data)
        from sklearn import datasets

        X, y = getattr(datasets, LOADERS[data.removesuffix("_binary")])(return_X_y=True)
        return X, (y > np.median(y)).astype(int) if data.endswith("_binary") else y
    if not isinstance(data, tuple) or len(data) != 2:
        raise kind_error("data", f"one of {', '.join(map(repr, names))}, or a pair (X, y)", data)
    X, y = (np.asarray(part) for part in data)
    if X.ndim != 2 or y.shape != (len(X),):
        raise value_error("data", "X of shape (n, d) and y of shape (n,)", (X.shape, y.shape))
    return X, y


def sampler(n: int, default: int, per_block: bool = False) -> Callable[..., Tensor]:
    """Make a sampler that draws indices below n, with replacement: (size,), or (I, size) where there are blocks."""

    def draw(generator: torch.Generator, size: int | None, blocks: Tensor | None = None) -> Tensor:
        rows = () if blocks is None else (len(blocks),)
        return torch.randint(n, (*rows, default if size is None else size), generator=generator)

    def draw_blocks(generator: torch.Generator, size: int | None, blocks: Tensor) -> Tensor:
        return draw(generator, size, blocks)

    return draw_blocks if per_block else draw


def rows_of(data: Tensor, batch: Tensor | None) -> Tensor:
    """Take the rows that a batch names; all of them where it is None."""
    return data if batch is None else data[batch]


def make_evaluate(
    problem: BilevelProblem, score: Callable[[Any, Any], float], *, retrain: BilevelProblem | None = None
) -> Evaluate:
    """Make ``evaluate(x, y=None) -> {"own": ..., "retrained": ...}`` from ``score(x, y)``.

    `retrain` is the problem whose lower level is solved, from its y0, where that is not `problem` itself.
    """
    trained = problem if retrain is None else retrain

    def evaluate(x: Any, y: Any = None, *, tol: float = 1e-7, maxiter: int = 500) -> dict[str, float]:
        """Score y as it stands (``own``, NaN without y) and y retrained to convergence at x (``retrained``).

        The second is NaN where the lower objective overflows at this x.
        """
        own = float("nan") if y is None else score(x, y)
        try:
            best, _ = solve_lower(trained, x, tol=tol, maxiter=maxiter)
        except FloatingPointError:
            return {"own": own, "retrained": float("nan")}
        return {"own": own, "retrained": score(x, best)}

    return evaluate
