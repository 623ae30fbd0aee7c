r"""How straight a flow is, how much its pairs cross, and what transport costs.

    S(Z) = int_0^1 E |(z_1 - z_0) - v(z_t, t)|^2 dt          0 if and only if every path is straight (Sec. 2.2)
    V(x0, x1) = int_0^1 E |x1 - x0 - v*(x_t, t)|^2 dt        0 if and only if the pairs' paths do not cross

With the exact velocity v*, ``E|x1 - x0|^2 - E|z_1 - z_0|^2 = S(Z) + V(x0, x1)``: what a round saves is how crooked its
flow is plus how much its pairs crossed. Summed over rounds, the smallest S of K flows is at most E|x1 - x0|^2 / K.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from steepest.core.errors import at_least, check, one_of, value_error
from steepest.core.ode import solve_ode
from steepest.core.random import Seed, torch_generator
from steepest.generative._flow_field import Field
from steepest.generative._samples import as_rows, check_pair, check_samples, rows_of_squares
from steepest.generative.rectified_flow import FIXED, RectifiedFlow

__all__ = ["crossing", "straightness", "transport_cost"]

Cost = str | Callable[[Tensor], Tensor]


@torch.no_grad()
def straightness(flow: RectifiedFlow, x0: Tensor, *, steps: int = 100, method: str = "rk4") -> Tensor:
    """S(Z) of the flow's paths from `x0`, summed over coordinates, mean over samples.

    Parameters
    ----------
    flow : RectifiedFlow
    x0 : Tensor (n, *shape)
        Samples of pi_0.
    steps : int
        Of the solver and of the midpoint rule in t.
    method : "euler", "midpoint", "heun" or "rk4"

    Returns
    -------
    Tensor
        0-dim, in squared units of x.

    Raises
    ------
    TypeError, ValueError, FloatingPointError
        As `RectifiedFlow.sample`.

    Notes
    -----
    Mean and variance of the velocity along a path are updated in one pass (Welford); no path is stored, and nothing
    cancels when S is small: ``S = var(v) + |(z_1 - z_0) - mean(v)|^2``.

    Examples
    --------
    >>> flow = RectifiedFlow(lambda x, t: torch.ones_like(x))
    >>> float(straightness(flow, torch.zeros(3, 2)))
    0.0
    """
    check_samples("x0", x0)
    check("steps", steps, at_least(1, integer=True))
    check("method", method, one_of(*FIXED))
    field = Field(lambda x, t: flow._velocity(x, t, None))
    middles = (torch.arange(steps, dtype=x0.dtype, device=x0.device) + 0.5) / steps
    ts = torch.nn.functional.pad(middles, (1, 0))
    ts = torch.nn.functional.pad(ts, (0, 1), value=1.0)
    z, mean, spread = x0, torch.zeros_like(x0), x0.new_zeros(len(x0))
    for i in range(steps):
        z = solve_ode(field, z, ts[i : i + 2], method=method).y
        v = field(ts[i + 1], z)
        ahead = v - mean
        mean = mean + ahead / (i + 1)
        spread += as_rows(ahead * (v - mean)).sum(1)
    z = solve_ode(field, z, ts[-2:], method=method).y
    return (spread / steps + rows_of_squares(z - x0 - mean)).mean()


@torch.no_grad()
def crossing(flow: RectifiedFlow, x0: Tensor, x1: Tensor, *, n_times: int = 64, generator: Seed = None) -> Tensor:
    """V(x0, x1) of pairs as the flow's velocity sees it: its loss on them, summed over coordinates.

    Parameters
    ----------
    flow : RectifiedFlow
        With the exact velocity this is V; with a trained one it is larger by the error of the training.
    x0, x1 : Tensor (n, *shape)
        Pairs.
    n_times : int
        Strata of [0, 1]; each sample has a random time of its own in each.
    generator : int, torch.Generator or None
        Of the times.

    Returns
    -------
    Tensor
        0-dim, in squared units of x.

    Raises
    ------
    TypeError, ValueError
        The clouds do not fit.

    Examples
    --------
    >>> x0 = torch.tensor([[0.0], [5.0]])
    >>> float(crossing(RectifiedFlow(lambda x, t: torch.ones_like(x)), x0, x0 + 1, generator=0))
    0.0
    """
    check_samples("x0", x0)
    check_pair("x1", x1, "x0", x0, same_length=True)
    check("n_times", n_times, at_least(1, integer=True))
    source = torch_generator(generator, x0.device, name="generator")
    total = x0.new_zeros(())
    for i in range(n_times):
        t = (i + torch.rand(len(x0), generator=source, dtype=x0.dtype, device=x0.device)) / n_times
        losses = flow._losses(x0, x1, t.clamp(0, 1), None, None, from_end=False)
        total = total + as_rows(losses).sum(1).mean() / n_times
    return total


def transport_cost(z0: Tensor, z1: Tensor, cost: Cost = "sqeuclidean") -> Tensor:
    """Mean cost of carrying `z0` to `z1`.

    Parameters
    ----------
    z0, z1 : Tensor (n, *shape)
        Pairs.
    cost : "sqeuclidean", "euclidean" or callable
        A callable maps ``z1 - z0`` (n, *shape) to (n,). For every convex one, a flow's pairs cost no more than the
        pairs that it was trained on.

    Returns
    -------
    Tensor
        0-dim.

    Raises
    ------
    TypeError, ValueError
        The clouds do not fit, or the cost is none of these.

    Examples
    --------
    >>> float(transport_cost(torch.zeros(2, 2), torch.tensor([[3.0, 4.0], [0.0, 0.0]])))
    12.5
    """
    check_samples("z0", z0)
    check_pair("z1", z1, "z0", z0, same_length=True)
    moved = z1 - z0
    if callable(cost):
        costs = cost(moved)
        if costs.shape != (len(moved),):
            raise value_error("cost", f"a function to a tensor ({len(moved)},)", costs)
        return costs.mean()
    check("cost", cost, one_of("sqeuclidean", "euclidean"))
    squares = rows_of_squares(moved)
    return squares.mean() if cost == "sqeuclidean" else squares.sqrt().mean()
