r"""Bilevel descent for upper objectives whose smoothness grows with their gradient.   minimize F(x, y(x))

    y(x) = argmin f(x, .)

    once         epochs e = 0, 1, ...:  T 2^e steps of size lr / 2^e on f(x_0, .), kept within r_0 / 2^(e/2) of where
                 the epoch started;  y <- mean of the epoch's iterates
    every I-th k  y <- mean of K steps of size lr_y on f(x_k, .), kept within r of where they started
    every k      h = grad_x F - (d2f/dxdy) z                 with the old z, at (x, y), fresh batches
                 m <- beta m + (1 - beta) h
                 z <- z - lr_z [ (d2f/dy2) z - grad_y F ]
                 x <- x - lr_x m / |m|

Where the upper gradient explodes a plain step explodes with it; this one is lr_x long wherever it is made. In exchange
it never shrinks: near the optimum x circles at a radius of the order of lr_x / (1 - beta), unless lr_x decays.

Paper: hao2024bilevel. The refinement is epoch SGD (Hazan and Kale, Beyond the regret minimization barrier, JMLR 2014).
Notation: T = `refine_steps`, lr and r_0 = `refine_lr` and `refine_radius`, I = `period`, K = `inner_steps`,
r = `radius`.
Departures: (1) h and the step of z share their products and their batches, so h takes the z of the last step; the
published code moves z first and takes the mixed product on the upper batch. (2) The published code has no refinement,
lets the gradients of the lower steps add up, and counts its interval in tasks of a batch; none of that is done here.
(3) Step sizes of y and z default to 1 / L, L the curvature of f in y: the published values suit losses that are sums.
(4) Where the problem has sets X and Y, steps are projected on them, after the ball.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from steepest.bilevel._loop import DECAY, decayed, iterate
from steepest.bilevel._oracles import Oracles
from steepest.bilevel.problem import BilevelProblem, BilevelResult
from steepest.core.distributed import all_reduce_mean, group_rank
from steepest.core.errors import boolean, check, interval, kind_error, nonnegative, optional, positive, value_error
from steepest.core.random import Seed, torch_generator

__all__ = ["bo_rep"]

LIMITS = {
    "lr_x": positive(),
    "lr_y": optional(positive()),
    "lr_z": optional(positive()),
    "decay": DECAY,
    "beta": interval(0, 1, high_open=True),
    "period": positive(integer=True),
    "inner_steps": nonnegative(integer=True),
    "radius": optional(positive()),
    "refine_epochs": nonnegative(integer=True),
    "refine_steps": nonnegative(integer=True),
    "refine_lr": optional(positive()),
    "refine_radius": optional(positive()),
    "batch_size": optional(positive(integer=True)),
    "normalize": boolean(),
}
SMALLEST_NORM = 1e-12  # of m, below which x stays


@dataclass(frozen=True)
class _State:
    k: int
    x: Tensor
    y: Tensor
    z: Tensor
    m: Tensor
    lr_y: float | None  # None until the first step has measured 1 / L
    lr_z: float | None


def bo_rep(
    problem: BilevelProblem,
    *,
    lr_x: float = 1e-2,
    lr_y: float | None = None,
    lr_z: float | None = None,
    decay: str | None = None,
    beta: float = 0.9,
    period: int = 2,
    inner_steps: int = 3,
    radius: float | None = None,
    refine_epochs: int = 5,
    refine_steps: int = 16,
    refine_lr: float | None = None,
    refine_radius: float | None = None,
    batch_size: int | None = None,
    normalize: bool = True,
    maxiter: int = 1000,
    log_every: int | None = None,
    random_state: Seed = 0,
    callback: Callable[..., Any] | None = None,
    process_group: Any = None,
) -> BilevelResult:
    """Descend by normalized momentum, with a refined start and periodic lower updates (hao2024bilevel).

    A step costs one upper gradient, one Hessian and one mixed product, and ``inner_steps / period`` lower gradients;
    the refinement ``refine_steps (2^refine_epochs - 1)`` lower gradients, 496 at the defaults. Memory is O(dim).

    Parameters
    ----------
    problem : BilevelProblem
        Without a constraint that couples x and y; f strongly convex in y. With blocks all are taken together.
    lr_x : float
        Length of the upper steps, in units of x (official representation runs: 1e-2).
    lr_y, lr_z : float, optional
        Step sizes of the lower variable and of z; stable below 2 / L. None is 1 / L, with L from 20 power iterations
        at (x0, y0) on one batch (counted).
    decay : None or "linear"
        Multiplies `lr_x` by ``1 - 0.98 k / maxiter``.
    beta : float
        In [0, 1), share of the old momentum (official: 0.9).
    period : int
        I, upper steps between lower updates (official: 2 or 3).
    inner_steps : int
        K, lower steps of an update, each on a fresh batch (official: 3, cleaning 10).
    radius : float, optional
        Of the ball about the y an update starts from, in which its steps are kept; None is no ball.
    refine_epochs, refine_steps : int
        Epochs of the refinement and steps of the first one (5 and 16, ours); ``refine_steps=0`` switches it off.
    refine_lr, refine_radius : float, optional
        Step size (None: that of `lr_y`) and ball (None: no ball) of the first epoch.
    batch_size : int, optional
        Handed to the problem's samplers; None is their own size. Without samplers the data are full.
    normalize : bool
        False is the ablation: ``x <- x - lr_x m``.
    maxiter : int
        Upper steps.
    log_every : int, optional
        Steps between entries of the history; None: the end alone.
    random_state : int, torch.Generator or None
        Of the batches; an int plus its rank on every process of a group.
    callback : callable, optional
        ``callback(intermediate_result=...)`` after every step, with ``x, y, z, m, nit, counts``; `StopIteration` ends
        the run.
    process_group
        None, ``"default"`` or a group: gradients, products and L are averaged over its ranks. Counts are those of one
        rank.

    Returns
    -------
    BilevelResult
        Adds ``z`` in the form of y0, ``m`` in the form of x0, and the step sizes ``lr_y`` and ``lr_z`` that were used
        (None where no step was made). The history adds ``grad_norm``, the norm of m.

    Raises
    ------
    ValueError, TypeError
        An argument outside its limits, a constrained problem, a sampler that gives an empty batch, a step size left to
        1 / L where f has no curvature in y.

    Notes
    -----
    A value that is not finite ends the run with status 2 and the last finite iterate; the message tells the iteration.

    Examples
    --------
    >>> problem = BilevelProblem(
    ...     lambda x, y, batch: torch.cosh(4 * y).sum(), lambda x, y, batch: ((y - x) ** 2).sum() / 2,
    ...     torch.tensor([3.0]), torch.tensor([3.0]))  # at the start the gradient is 3e5
    >>> result = bo_rep(problem, lr_x=0.05, decay="linear", maxiter=400)
    >>> abs(result.x.item()) < 0.1, result.lr_y
    (True, 1.0)
    """
    if not isinstance(problem, BilevelProblem):
        raise kind_error("problem", "a BilevelProblem", problem)
    options = locals()
    for name, limit in LIMITS.items():
        check(name, options[name], limit)
    if problem.is_constrained:
        raise ValueError("problem must have no constraint on (x, y) together; for such problems use lv_hba")
    x, y = problem.pack_x(problem.x0), problem.pack_y(problem.y0)
    rank = group_rank(process_group)
    seed = int(random_state) + rank if rank and isinstance(random_state, Integral) else random_state
    oracles = Oracles(problem, generator=torch_generator(seed, y.device, name="random_state"), batch_size=batch_size)

    def begin(s: _State) -> _State:
        """Resolve step sizes left open, then refine y."""
        lr_y, lr_z = s.lr_y, s.lr_z
        if lr_y is None or lr_z is None:
            unit = 1 / _curvature(oracles, s.x, s.y, process_group)
            lr_y, lr_z = unit if lr_y is None else lr_y, unit if lr_z is None else lr_z
        y, rate = s.y, lr_y if refine_lr is None else refine_lr
        for e in range(refine_epochs):
            ball = None if refine_radius is None else refine_radius / 2 ** (e / 2)
            y = _mean_of_steps(oracles, s.x, y, refine_steps * 2**e, rate / 2**e, ball, process_group)
        return replace(s, y=y, lr_y=lr_y, lr_z=lr_z)

    def step(s: _State) -> tuple[_State, dict[str, float]]:
        s = begin(s) if s.k == 0 else s
        assert s.lr_y is not None
        assert s.lr_z is not None
        y = s.y
        if s.k > 0 and s.k % period == 0:
            y = _mean_of_steps(oracles, s.x, y, inner_steps, s.lr_y, radius, process_group)
        dF_dx, dF_dy = oracles.upper_grad(s.x, y, _draw(oracles, "upper"))
        Hz, Jz = oracles.products(s.x, y, s.z, _draw(oracles, "lower"))
        all_reduce_mean([dF_dx, dF_dy, Hz, Jz], process_group)
        h = dF_dx - Jz
        m = beta * s.m + (1 - beta) * h
        z = s.z - s.lr_z * (Hz - dF_dy)
        norm = _norm(m)
        rate = decayed(lr_x, decay, s.k, maxiter)
        if normalize:
            rate = rate / norm if norm >= SMALLEST_NORM else 0.0
        x = oracles.project_x(s.x - rate * m)
        return _State(s.k + 1, x, y, z, m, s.lr_y, s.lr_z), {"grad_norm": norm}

    def view(s: _State) -> dict[str, Any]:
        return {"x": s.x, "y": s.y, "z": problem.unpack_y(s.z), "m": problem.unpack_x(s.m)}

    start = _State(0, oracles.project_x(x), oracles.project_y(y), torch.zeros_like(y), torch.zeros_like(x), lr_y, lr_z)
    return iterate(
        oracles,
        step,
        start,
        view=view,
        maxiter=maxiter,
        callback=callback,
        log_every=log_every,
        keep=("grad_norm",),
        probe=lambda s: float(s.x.sum() + s.y.sum() + s.z.sum()),
        extras=lambda s: {"lr_y": s.lr_y, "lr_z": s.lr_z},
    )


def _mean_of_steps(
    oracles: Oracles, x: Tensor, start: Tensor, steps: int, lr: float, radius: float | None, group: Any
) -> Tensor:
    """Descend on f(x, .) within a ball about the start, each step on a fresh batch; give the mean of the iterates."""
    y, total = start, torch.zeros_like(start)
    for _ in range(steps):
        g = oracles.lower_grad_y(x, y, _draw(oracles, "lower"))
        all_reduce_mean([g], group)
        # the ball's center lies in Y, so that projecting on Y does not lead out of the ball
        y = oracles.project_y(_in_ball(y - lr * g, start, radius))
        total += y
    return total / steps if steps else start


def _in_ball(y: Tensor, center: Tensor, radius: float | None) -> Tensor:
    if radius is None:
        return y
    away = y - center
    distance = float(torch.linalg.vector_norm(away))
    return y if distance <= radius else center + (radius / distance) * away


def _norm(m: Tensor) -> float:
    """Take |m| in double precision: many entries lose digits in single precision, large ones overflow."""
    norm = float(torch.linalg.vector_norm(m, dtype=torch.float64))
    if not math.isfinite(norm):
        raise FloatingPointError(f"the norm of the momentum is {norm}")
    return norm


def _curvature(oracles: Oracles, x: Tensor, y: Tensor, group: Any) -> float:
    L = torch.tensor(oracles.curvature_bound(x, y, _draw(oracles, "lower")), dtype=torch.float64, device=y.device)
    all_reduce_mean([L], group)
    if not bool(torch.isfinite(L)):
        raise FloatingPointError(f"the curvature of lower in y is {float(L)}")
    if float(L) == 0:
        raise ValueError("lr_y and lr_z must be given where lower has no curvature in y at (x0, y0)")
    return float(L)


def _draw(oracles: Oracles, level: str) -> Any:
    before = oracles.counts["samples"]
    batch = oracles.draw_upper() if level == "upper" else oracles.draw_lower()
    if batch is not None and oracles.counts["samples"] == before:
        raise value_error(f"sample_{level}", "a sampler of at least one sample", batch)
    return batch
