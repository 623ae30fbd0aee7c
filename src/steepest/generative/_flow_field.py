"""A velocity as solvers and densities want it: one time for the batch, counted, checked, with its divergence."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from steepest.core.errors import check, interval, kind_error, value_error
from steepest.generative._samples import as_rows

__all__ = ["Field", "times_of", "with_divergence"]

Velocity = Callable[[Tensor, Tensor], Tensor]


class Field:
    """The velocity as a solver wants it: one time for the batch; counts, and stops at what is not finite."""

    def __init__(self, velocity: Velocity, budget: float = math.inf) -> None:
        self.velocity, self.budget, self.nfe = velocity, budget, 0

    def __call__(self, t: Tensor, x: Tensor) -> Tensor:
        if self.nfe >= self.budget:
            raise RuntimeError(f"max_nfe={self.budget} evaluations were used up at t = {float(t):.6g}: raise max_nfe, "
                               "rtol or atol")  # fmt: skip
        self.nfe += 1
        v = self.velocity(x, t.clamp(0, 1).expand(len(x)))
        if not math.isfinite(float(v.sum())) and not torch.isfinite(v).all():
            raise FloatingPointError(f"the velocity is not finite at t = {float(t):.6g} (evaluation {self.nfe})")
        return v


def times_of(t: Any, x: Tensor, name: str = "t") -> Tensor:
    """Times in [0, 1] as a tensor (n,) of x's kind."""
    if not isinstance(t, Tensor):
        check(name, t, interval(0, 1))
        return torch.full((len(x),), float(t), dtype=x.dtype, device=x.device)
    if t.dtype != x.dtype or t.device != x.device:
        raise kind_error(name, f"{x.dtype} on {x.device} as x is", f"{t.dtype} on {t.device}")
    if t.shape not in ((), (len(x),)):
        raise value_error(name, f"a number or of shape ({len(x)},)", t)
    if not bool(((t >= 0) & (t <= 1)).all()):
        raise value_error(name, "in [0, 1]", t)
    return t.expand(len(x))


def with_divergence(velocity: Velocity, like: Tensor, n_probes: int | None, generator: torch.Generator) -> Velocity:
    """Velocity of the state (n, d + 1) whose last column's rate is the divergence at the others.

    Exact with one backward pass a coordinate, or estimated from random signs (Hutchinson) that stay the same for all
    calls, so that the solver sees a smooth function.
    """
    n, d = as_rows(like).shape
    probes = torch.eye(d, dtype=like.dtype, device=like.device)[:, None].expand(d, n, d)
    if n_probes is not None:
        bits = torch.randint(2, (n_probes, n, d), generator=generator, device=like.device)
        probes = (2 * bits - 1).to(like.dtype)

    def extended(state: Tensor, t: Tensor) -> Tensor:
        with torch.enable_grad():
            z = state[:, :-1].detach().requires_grad_()
            v = as_rows(velocity(z.reshape(like.shape), t))
            divergence = like.new_zeros(n)
            for e in probes if v.requires_grad else ():
                (slope,) = torch.autograd.grad(v, z, e, retain_graph=True, allow_unused=True)
                if slope is not None:
                    divergence += (e * slope).sum(1)
        return torch.cat([v.detach(), divergence[:, None] / (n_probes or 1)], 1)

    return extended
