r"""Bilevel optimization with many lower problems, of which each step touches a few.

    minimize  (1/m) sum_i f_i(x, y_i(x)),   y_i(x) = argmin g_i(x, .)

A step draws I of the m blocks and one batch for each, and evaluates it at the current and at the previous point:

    G(x, y, w) = (1/I) sum_i [ grad_x f_i - (d2g_i/dxdy) w_i ],   w_i = H_i^-1 grad_y f_i (v1)  or  v_i (v2)
    z   <- G(now) + (1 - beta) (z - G(previous))                                                        STORM
    e_i <- (1 - alpha) e_i + alpha q_i(now) + gamma (q_i(now) - q_i(previous))    for the drawn blocks,  MSVR

where e is s with q_i = grad_y g_i, and in v1 H with q_i = d2g_i/dy2, then floored: ``H_i >= hessian_floor I``; in v2 it
is u with q_i = (d2g_i/dy2) v_i - grad_y f_i. Then *all* blocks move:

    y <- y - lr_y s,    v <- into the balls of radius v_bound (v - lr_v u),    x <- x - lr_x z

Where the error of e_i before the step is d_i and q_i moves by D_i, the new error is (1 - alpha) d_i + (gamma - 1 +
alpha) D_i if block i is drawn (probability I/m), else d_i - D_i. The cross term of its mean square vanishes for

    gamma = (m - I) / (I (1 - alpha)) + (1 - alpha)

Paper: hu2023blockwise, versions v1 and v2; the estimator MSVR is of Jiang et al., NeurIPS 2022.
Notation: lr_x, lr_y, lr_v, x, y are eta, tau, tau_v, p, w of the published code; the other letters are the same.
Departures: (1) H is kept positive definite by a floor under its eigenvalues, where the
published code scales small matrices up; the floor rises to what a Cholesky factor in the working precision can bear.
(2) A block's first estimate is its first measurement. (3) Rows that are not drawn are moved when they are next needed
(``lazy``); the numbers are those of moving all of them, where the published code multiplies the *new* estimator by the
delay. (4) ``project_x``, ``decay`` and ``average_x`` are ours.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from steepest.bilevel._bsvrb_blocks import Blocks, Rule, Share, draw_blocks, solve_blocks
from steepest.bilevel._bsvrb_ray import evaluator
from steepest.bilevel._loop import DECAY, decayed, iterate
from steepest.bilevel._oracles import Oracles
from steepest.bilevel.problem import BilevelProblem, BilevelResult
from steepest.core.errors import (
    Limit,
    SteepestWarning,
    at_least,
    boolean,
    check,
    interval,
    kind_error,
    nonnegative,
    one_of,
    optional,
    positive,
    value_error,
)
from steepest.core.random import Seed, torch_generator

__all__ = ["bsvrb", "msvr_gamma"]

Variant = Literal["v1", "v2"]
Backend = Literal["serial", "ray"]

ALPHA = interval(0, 1, low_open=True, high_open=True)
LIMITS: dict[str, Limit] = {
    "variant": one_of("v1", "v2"),
    "lr_x": positive(),
    "lr_y": positive(),
    "lr_v": optional(positive()),
    "alpha": ALPHA,
    "gamma": optional(nonnegative()),
    "beta": interval(0, 1, low_open=True),
    "batch_size": optional(positive(integer=True)),
    "hessian_floor": positive(),
    "v_bound": positive(),
    "lazy": boolean(),
    "decay": DECAY,
    "backend": one_of("serial", "ray"),
    "num_workers": optional(at_least(1, integer=True)),
}
LARGEST_V1 = 2000


def msvr_gamma(m: int, I: int, alpha: float) -> float:  # noqa: E741 (the paper's I)
    """Weight of MSVR's correction that cancels the cross term of its mean squared error.

    Parameters
    ----------
    m : int
        Number of blocks.
    I : int
        Number of them that are drawn in a step.
    alpha : float
        Weight of the new measurement, in (0, 1).

    Returns
    -------
    float
        ``(m - I) / (I (1 - alpha)) + (1 - alpha)``: STORM's ``1 - alpha`` where every block is drawn.

    Raises
    ------
    ValueError, TypeError
        m below 1, I outside 1..m, alpha outside (0, 1).

    Examples
    --------
    >>> msvr_gamma(100, 10, 0.1)
    10.9
    """
    check("m", m, positive(integer=True))
    check("I", I, interval(1, m, integer=True))
    check("alpha", alpha, ALPHA)
    return (m - I) / (I * (1 - alpha)) + (1 - alpha)


@dataclass(frozen=True)
class _State:
    """One iterate. The rows live in `Blocks`, which a step changes only once nothing can fail any more."""

    k: int
    x: Tensor
    x_old: Tensor
    z: Tensor
    blocks: Tensor
    x_sum: Tensor
    n_summed: int


def bsvrb(
    problem: BilevelProblem,
    *,
    variant: Variant = "v1",
    lr_x: float = 1e-3,
    lr_y: float = 0.5,
    lr_v: float | None = None,
    alpha: float = 0.1,
    gamma: float | None = None,
    beta: float = 0.9,
    blocks_per_step: int | None = None,
    batch_size: int | None = None,
    hessian_floor: float = 1e-3,
    v_bound: float = 10.0,
    lazy: bool = True,
    decay: str | None = None,
    maxiter: int = 1000,
    log_every: int | None = None,
    backend: Backend = "serial",
    num_workers: int | None = None,
    random_state: Seed = 0,
    callback: Callable[..., Any] | None = None,
) -> BilevelResult:
    """Minimize the mean of many bilevel objectives, a few lower problems a step (hu2023blockwise).

    Between reports `upper` and `lower` are called on the drawn blocks alone, at two points a step (one in the first).
    For each point v1 takes 1 ``upper_grad``, 1 ``lower_grad``, 1 ``jvp`` and 1 ``hessian``; v2 1 ``hvp`` in its place.

    Parameters
    ----------
    problem : BilevelProblem
        With `n_blocks`; no constraint and no `project_y`. x stays in X where there is a `project_x`.
    variant : "v1" or "v2"
        v1 tracks the Hessian of every block, memory O(m p^2), for p up to 2000; v2 tracks the solution of the linear
        system, memory O(m p).
    lr_x, lr_y : float
        Step sizes of x and y (official code: 1e-3, and 0.5 for v1 or 1 for v2).
    lr_v : float, optional
        Step size of v in v2 (`lr_y` by default).
    alpha : float
        In (0, 1): weight of the new measurement in s, H and u (0.1, ours: 0.05 to 0.2 needed the fewest steps; the
        official code has 0.9 with ``gamma=1``).
    gamma : float, optional
        Weight of their correction, >= 0; `msvr_gamma` by default, which is meant for small `alpha`.
    beta : float
        In (0, 1]: weight of the new measurement in z (official code: 0.9); 1 takes the plain stochastic gradient.
    blocks_per_step : int, optional
        I, in 1..m; m by default.
    batch_size : int, optional
        Handed to the problem's samplers, for each block.
    hessian_floor : float
        Of v1: smallest eigenvalue that an estimate of a Hessian may have (1e-3, ours).
    v_bound : float
        Of v2: radius of the ball that holds each v_i (official code: 10).
    lazy : bool
        Move rows that are not drawn when they are next looked at; the numbers are the same to rounding, and the cost
        of a step does not grow with m.
    decay : "linear" or None
        `lr_x` times ``1 - 0.98 k / maxiter`` in step k. At a constant step x keeps noise of the order sqrt(lr_x).
    maxiter : int
    log_every : int, optional
        History at the start, every so many steps and at the end, each over all blocks; None: at the end alone.
    backend : "serial" or "ray"
        "ray" spreads the drawn blocks over tasks of the running Ray cluster, or of a local one that it starts and
        stops. The problem and its batches must travel there, and a batch must be tensors (or a tuple, list or dict of
        them) whose first axis is the drawn blocks. The numbers do not depend on the number of workers, and are those
        of "serial" to rounding.
    num_workers : int, optional
        Ray tasks at a time (the number of cores by default).
    random_state : int, torch.Generator or None
        Of the draws of blocks, handed to the samplers too.
    callback : callable, optional
        ``callback(intermediate_result=...)`` after every step, with x, y, s, v or H, and ``blocks``, the step's draw.
        Its y (and v) are all m rows, moved up to date: O(m) a call.

    Returns
    -------
    BilevelResult
        Adds ``v`` (m, p) (in v1 ``H_i^-1 grad_y f_i`` at the end, on the full data), ``H`` (m, p, p) in v1, ``s``
        (m, p), ``blocks`` (I,) and ``average_x``, the mean of x over the last half of `maxiter` (x itself where the run
        ended before).

    Raises
    ------
    ValueError, TypeError
        An argument outside its limits, a problem without `n_blocks`, with a constraint or with `project_y`, v1 with
        p > 2000, a batch that "ray" cannot split.
    MissingExtra
        ``backend="ray"`` without Ray.

    Warns
    -----
    SteepestWarning
        The default `gamma` with ``alpha > 0.2`` and I < m: it grows like 1 / (1 - alpha) and swamps the measurements.

    Examples
    --------
    >>> target = torch.arange(8.0).unsqueeze(1)
    >>> problem = BilevelProblem(
    ...     lambda x, yb, batch, blocks: ((yb - target[blocks]) ** 2).sum(1) / 2,
    ...     lambda x, yb, batch, blocks: ((yb - x) ** 2).sum(1) / 2,
    ...     torch.zeros(1), torch.zeros(8, 1), n_blocks=8)
    >>> result = bsvrb(problem, lr_x=0.2, lr_y=0.5, maxiter=60)  # each y_i is x: the mean of the targets
    >>> result.x.round(decimals=3).tolist()
    [3.5]
    """
    options = {
        "variant": variant,
        "lr_x": lr_x,
        "lr_y": lr_y,
        "lr_v": lr_v,
        "alpha": alpha,
        "gamma": gamma,
        "beta": beta,
        "batch_size": batch_size,
        "hessian_floor": hessian_floor,
        "v_bound": v_bound,
        "lazy": lazy,
        "decay": decay,
        "backend": backend,
        "num_workers": num_workers,
    }
    for name, limit in LIMITS.items():
        check(name, options[name], limit)
    m, p = _check_problem(problem, variant)
    n_drawn = m if blocks_per_step is None else blocks_per_step
    check("blocks_per_step", n_drawn, interval(1, m, integer=True))
    if gamma is None:
        gamma = msvr_gamma(m, n_drawn, alpha)
        if alpha > 0.2 and n_drawn < m:
            warnings.warn(
                f"gamma=None makes gamma={gamma:.3g} at alpha={alpha:g}, {n_drawn} of {m} blocks; this is meant for "
                "small alpha: take alpha <= 0.2 or give gamma",
                SteepestWarning,
                stacklevel=2,
            )
    rule = Rule(variant, lr_y, lr_y if lr_v is None else lr_v, alpha, gamma, hessian_floor, v_bound)
    x = problem.pack_x(problem.x0)
    rows = Blocks(problem.pack_y(problem.y0).view(m, p), rule, n_drawn)
    generator = torch_generator(random_state, x.device, name="random_state")
    oracles = Oracles(problem, generator=generator, batch_size=batch_size)

    def step(state: _State) -> tuple[_State, dict[str, float]]:
        t, x = state.k, state.x
        if not lazy:
            rows.settle(max(t - 1, 0))
        S = draw_blocks(m, n_drawn, generator)
        share = _share(rows, t, S, oracles.draw_upper(S), oracles.draw_lower(S), x, state.x_old)
        new = evaluate(share)
        for name, n in new.counts.items():
            oracles.counts[name] += n
        z = new.G if t == 0 else new.G + (1 - beta) * (state.z - new.G_old)
        x_new = oracles.project_x(x - decayed(lr_x, decay, t, maxiter) * z)
        if not math.isfinite(sum(float(part.sum()) for part in (x_new, share.y, share.aid, new.s, new.aid))):
            raise FloatingPointError
        rows.put(t, share, new)
        late = int(t + 1 > maxiter // 2)
        return _State(t + 1, x_new, x, z, S, state.x_sum + late * x_new, state.n_summed + late), {}

    def view(state: _State) -> dict[str, Any]:
        y = rows.y_at(state.k, problem.all_blocks)[0]
        aid = {"H": rows.H} if variant == "v1" else {"v": rows.v_at(state.k, problem.all_blocks)[0]}
        return {"x": state.x, "y": y.reshape(-1), "s": rows.s, **aid, "blocks": state.blocks}

    def extras(state: _State) -> dict[str, Any]:
        mean = state.x_sum / state.n_summed if state.n_summed else state.x.clone()
        found = {"average_x": problem.unpack_x(mean)}
        if variant == "v1":
            y = rows.y_at(state.k, problem.all_blocks)[0]
            found["v"] = solve_blocks(rows.H, Oracles(problem).upper_grad(state.x, y, None, problem.all_blocks)[1])
        return found

    start = _State(0, x, x, torch.zeros_like(x), problem.all_blocks[:0], torch.zeros_like(x), 0)
    with evaluator(problem, rule, backend, num_workers) as evaluate:
        return iterate(
            oracles,
            step,
            start,
            view=view,
            maxiter=maxiter,
            callback=callback,
            log_every=log_every,
            probe=lambda state: 0.0,  # `step` raises by itself
            extras=extras,
        )


def _check_problem(problem: Any, variant: str) -> tuple[int, int]:
    if not isinstance(problem, BilevelProblem):
        raise kind_error("problem", "a BilevelProblem", problem)
    if problem.n_blocks is None:
        raise value_error("n_blocks", "given in the problem", None, "for a single lower problem take bo_rep or stocbio")
    if problem.is_constrained or problem.project_y is not None:
        raise ValueError("problem must have lower problems without constraint and project_y; for such take lv_hba")
    m, p = problem.n_blocks, problem.pack_y(problem.y0).numel() // problem.n_blocks
    if variant == "v1" and p > LARGEST_V1:
        raise value_error("variant", f"'v2' for blocks of more than {LARGEST_V1} unknowns (here {p})", variant)
    return m, p


def _share(rows: Blocks, t: int, S: Tensor, upper_batch: Any, lower_batch: Any, x: Tensor, x_old: Tensor) -> Share:
    """Gather what step t needs of the blocks S."""
    y, y_old = rows.y_at(t, S)
    aid, aid_old = rows.H_at(S) if rows.rule.variant == "v1" else rows.v_at(t, S)
    e = aid if rows.rule.variant == "v1" else rows.u[S]
    return Share(t, S, upper_batch, lower_batch, x, x_old, y, y_old, aid, aid_old, rows.s[S], e, ~rows.seen[S])
