"""How the surrogate of an outer step is minimized, and how far a step in target space goes.

`armijo_descent`, `lbfgs` and `with_optimizer` minimize s over the parameters; `armijo_target` searches eta along the
gradient in target space. None of them ends with parameters or a step that gave a value which is not finite.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from steepest.core.errors import kind_error
from steepest.optim._surrogate import Surrogate

__all__ = ["ETA_RANGE", "Search", "Taken", "armijo_descent", "armijo_target", "lbfgs", "norm", "with_optimizer"]

ETA_RANGE = (1e-4, 1e4)
"""The official code's limits of a searched eta."""
HISTORY = 10  # pairs that L-BFGS keeps: memory stays O(10 P) for any number of steps


@dataclass(frozen=True)
class Search:
    """Numbers of a backtracking search: `start` step, sufficient decrease `c`, `backtrack`, `expand`, and budget."""

    start: float
    c: float
    backtrack: float
    expand: float
    max_backtracks: int


@dataclass
class Taken:
    """What a minimizer did: ``s - s(theta_t)`` at its start and after each step, its steps and backtracks."""

    differences: list[float] = field(default_factory=lambda: [0.0])
    steps: int = 0
    backtracks: int = 0
    failed: bool = False


def norm(tensors: Sequence[Tensor]) -> float:
    """Euclidean norm over all tensors."""
    return float(torch.stack([t.square().sum().to(tensors[0].device) for t in tensors]).sum().sqrt())


# ------------------------------------------------------------------------------------------------- over the parameters


def armijo_descent(s: Surrogate, n_steps: int, search: Search, tol: float) -> Taken:
    """Gradient descent on s: theta - a grad with ``s(theta - a grad) <= s(theta) - c a ||grad||^2``."""
    taken, a, grads = Taken(), search.start, s.start_grads
    theta = s.start
    for k in range(n_steps):
        if k:
            theta = [w.clone() for w in s.theta]
            _, grads = s.difference_and_grads()
        slope = norm(grads) ** 2
        if not slope > tol**2:  # NaN stops too
            break
        for trial in range(search.max_backtracks + 1):
            if trial:
                a *= search.backtrack
                taken.backtracks += 1
            s.move(theta, grads, a)
            value = s.difference()
            if -math.inf < value <= taken.differences[-1] - search.c * a * slope:
                break
        else:
            s.place(theta)
            taken.failed = k == 0
            break
        taken.differences.append(value)
        taken.steps += 1
        a *= search.expand
    return taken


def lbfgs(s: Surrogate, n_steps: int) -> Taken:
    """One call of torch's L-BFGS with strong Wolfe conditions; undone where it did not lower s."""
    taken = Taken()
    with _Leaves(s) as leaves:
        optimizer = torch.optim.LBFGS(
            leaves.params, lr=1, max_iter=n_steps, history_size=HISTORY, line_search_fn="strong_wolfe"
        )
        optimizer.step(leaves.closure)
        steps = int(optimizer.state[leaves.params[0]]["n_iter"])
    value = s.difference()
    if -math.inf < value <= 0.0:
        taken.differences.append(value)
        taken.steps = steps
    else:
        s.place(s.start)
        taken.failed = True
    return taken


def with_optimizer(s: Surrogate, n_steps: int, make: Callable[[Any], torch.optim.Optimizer]) -> Taken:
    """`n_steps` steps of a fresh optimizer of the caller; undone where s is not finite at the end."""
    taken = Taken(differences=[])
    with _Leaves(s) as leaves:
        optimizer = make(leaves.params)
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise kind_error("inner(params)", "a torch.optim.Optimizer", optimizer)
        for _ in range(n_steps):
            leaves.values.clear()
            optimizer.step(leaves.closure)
            taken.differences.append(leaves.values[0] if leaves.values else math.nan)
    taken.differences.append(s.difference())
    if math.isfinite(taken.differences[-1]) and all(bool(w.isfinite().all()) for w in s.theta):
        taken.steps = n_steps
        return taken
    s.place(s.start)
    return Taken(failed=True)


class _Leaves:
    """The parameters as leaves for a torch optimizer, with a closure; their own ``.grad`` comes back at the end."""

    def __init__(self, s: Surrogate) -> None:
        self._s = s
        self.params = [p if p.dtype == w.dtype else nn.Parameter(w) for p, w in zip(s.params, s.theta, strict=True)]
        self.values: list[float] = []
        self._at_start = True

    def __enter__(self) -> _Leaves:
        self._grads = [p.grad for p in self.params]
        return self

    def __exit__(self, *_: object) -> None:
        for p, h in zip(self.params, self._grads, strict=True):
            p.grad = h

    def closure(self) -> Any:
        """Put the gradient of s into ``.grad`` and give its value, as torch optimizers expect."""
        value, grads = (0.0, self._s.start_grads) if self._at_start else self._s.difference_and_grads()
        self._at_start = False
        for p, h in zip(self.params, grads, strict=True):
            p.grad = h.clone() if grads is self._s.start_grads else h
        self.values.append(value)
        return torch.tensor(self._s.base + value, dtype=torch.float64)


# ------------------------------------------------------------------------------------------------------ in target space


def armijo_target(
    loss_at: Callable[[Tensor], float], z: Tensor, g_tilde: Tensor, loss: float, slope: float, search: Search
) -> tuple[float, int]:
    """Find eta with ``l(z - eta g~) <= l(z) - c eta <g, g~>``.

    Parameters
    ----------
    loss_at : callable
        Value of the loss at targets, no gradient.
    z, g_tilde : Tensor (n, ...)
        Targets and nu g.
    loss, slope : float
        l(z) and <g, g~>.

    Returns
    -------
    (eta, backtracks)
        eta within `ETA_RANGE`.
    """
    low, high = ETA_RANGE
    eta = min(search.start, high)
    backtracks = 0
    while eta > low and not -math.inf < loss_at(z - eta * g_tilde) <= loss - search.c * eta * slope:
        if backtracks == search.max_backtracks:
            break
        eta *= search.backtrack
        backtracks += 1
    return max(eta, low), backtracks
