"""Explicit Runge-Kutta methods on tensors: tableaux are data, one stepper serves them all.

Solves ``dy/dt = f(t, y)`` for a tensor `y` of any shape; batches share the step. Differentiable through autograd.
References: Hairer, Nørsett, Wanner, Solving Ordinary Differential Equations I, II.1, II.4 and II.5 (Dormand-Prince).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from steepest.core.errors import at_least, check, nonnegative, one_of, optional, positive, value_error

__all__ = ["TABLEAUX", "OdeResult", "solve_ode"]

Field = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Tableau:
    """Butcher tableau: stage times `c`, matrix `a`, weights `b`, weights of the error estimate `e`."""

    order: int
    c: tuple[float, ...]
    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]
    e: tuple[float, ...] = ()


TABLEAUX = {
    "euler": Tableau(1, (0.0,), ((),), (1.0,)),
    "midpoint": Tableau(2, (0.0, 0.5), ((), (0.5,)), (0.0, 1.0)),
    "heun": Tableau(2, (0.0, 1.0), ((), (1.0,)), (0.5, 0.5)),
    "rk4": Tableau(4, (0.0, 0.5, 0.5, 1.0), ((), (0.5,), (0.0, 0.5), (0.0, 0.0, 1.0)), (1 / 6, 1 / 3, 1 / 3, 1 / 6)),
    "rk45": Tableau(  # Dormand-Prince 5(4); the last stage is the first of the next step
        5,
        (0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0),
        (
            (),
            (1 / 5,),
            (3 / 40, 9 / 40),
            (44 / 45, -56 / 15, 32 / 9),
            (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
            (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
            (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
        ),
        (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84, 0.0),
        (-71 / 57600, 0.0, 71 / 16695, -71 / 1920, 17253 / 339200, -22 / 525, 1 / 40),
    ),
}


@dataclass(frozen=True)
class OdeResult:
    """Solution `ys` (len(ts), *y0.shape) at the times `ts`, and what it cost.

    `nfe` counts evaluations of the field, `n_steps` accepted and `n_rejected` rejected steps.
    """

    ts: Tensor
    ys: Tensor
    nfe: int
    n_steps: int
    n_rejected: int

    @property
    def y(self) -> Tensor:
        """The solution at the last time."""
        return self.ys[-1]


def _stages(f: Field, tableau: Tableau, t: Tensor, y: Tensor, h: Tensor, first: Tensor | None) -> list[Tensor]:
    k = [f(t, y) if first is None else first]
    for c, row in zip(tableau.c[1:], tableau.a[1:], strict=True):
        k.append(f(t + c * h, y + h * _combine(row, k)))
    return k


def _combine(weights: tuple[float, ...], k: list[Tensor]) -> Tensor:
    total = torch.zeros_like(k[0])
    for w, stage in zip(weights, k, strict=False):
        if w:
            total = total + w * stage
    return total


def solve_ode(
    f: Field,
    y0: Tensor,
    ts: Tensor,
    *,
    method: str = "rk45",
    n_steps: int = 1,
    rtol: float = 1e-3,
    atol: float = 1e-6,
    first_step: float | None = None,
    max_steps: int = 10_000,
) -> OdeResult:
    """Integrate ``dy/dt = f(t, y)`` from ``ts[0]`` through all of `ts`, forwards or backwards.

    Parameters
    ----------
    f : callable
        ``f(t, y)`` with a 0-dim `t`, returns a tensor shaped as `y`.
    y0 : Tensor
        State at ``ts[0]``, any shape, floating point.
    ts : Tensor (n,)
        Strictly monotone times, n >= 2.
    method : str
        ``euler``, ``midpoint``, ``heun``, ``rk4`` (fixed steps) or ``rk45`` (adaptive).
    n_steps : int
        Fixed steps in each interval of `ts`.
    rtol, atol : float
        Of ``rk45``: a step is accepted when the root mean square of ``error / (atol + rtol * max(|y|, |y_new|))``
        is below 1 (SciPy's norm and defaults).
    first_step : float, optional
        First trial step of ``rk45``; chosen from the field by default.
    max_steps : int
        Budget of accepted and rejected steps of ``rk45``.

    Returns
    -------
    OdeResult

    Raises
    ------
    FloatingPointError
        The field or the state stopped being finite; the text gives the time.
    RuntimeError
        ``rk45`` ran out of `max_steps`, or its step fell below the spacing of numbers.

    Examples
    --------
    >>> y0, ts = torch.ones(1, dtype=torch.float64), torch.tensor([0.0, 1.0])
    >>> r = solve_ode(lambda t, y: -y, y0, ts, rtol=1e-8, atol=1e-10)
    >>> round(float(r.y), 6)
    0.367879
    """
    check("method", method, one_of(*TABLEAUX))
    check("n_steps", n_steps, at_least(1, integer=True))
    check("rtol", rtol, nonnegative())
    check("atol", atol, nonnegative())
    check("first_step", first_step, optional(positive()))
    check("max_steps", max_steps, at_least(1, integer=True))
    if not (y0.is_floating_point() or y0.is_complex()):
        raise value_error("y0", "of a floating-point dtype", y0)
    gaps = ts.diff() if ts.ndim == 1 else ts
    if ts.ndim != 1 or len(ts) < 2 or not bool((gaps > 0).all() or (gaps < 0).all()):
        raise value_error("ts", "at least two strictly increasing or decreasing times", ts)
    times = ts.to(device=y0.device, dtype=y0.real.dtype)
    if method == "rk45":
        return _adaptive(f, y0, times, rtol, atol, first_step, max_steps)
    tableau, y, ys = TABLEAUX[method], y0, [y0]
    for begin, end in itertools.pairwise(times):
        h = (end - begin) / n_steps
        for i in range(n_steps):
            y = y + h * _combine(tableau.b, _stages(f, tableau, begin + i * h, y, h, None))
        _require_finite(y, end)
        ys.append(y)
    total = n_steps * (len(times) - 1)
    return OdeResult(ts, torch.stack(ys), total * len(tableau.b), total, 0)


def _require_finite(y: Tensor, t: Tensor) -> None:
    if not bool(torch.isfinite(y).all()):
        raise FloatingPointError(f"the solution is not finite at t = {float(t):.6g}")


def _rms(x: Tensor) -> float:
    return float(x.detach().abs().square().mean().sqrt()) if x.numel() else 0.0


def _first_step(f: Field, t: Tensor, y: Tensor, k: Tensor, sign: float, rtol: float, atol: float) -> float:
    """Hairer, Nørsett, Wanner, II.4: from the sizes of y, y' and an estimate of y''."""
    scale = atol + rtol * y.detach().abs()
    d0, d1 = _rms(y / scale), _rms(k / scale)
    h0 = 1e-6 if min(d0, d1) < 1e-5 else 0.01 * d0 / d1
    d2 = _rms((f(t + sign * h0, y + sign * h0 * k) - k) / scale) / h0
    h1 = max(1e-6, h0 * 1e-3) if max(d1, d2) <= 1e-15 else (0.01 / max(d1, d2)) ** 0.2
    return min(100 * h0, h1)


def _adaptive(
    f: Field, y0: Tensor, times: Tensor, rtol: float, atol: float, first_step: float | None, max_steps: int
) -> OdeResult:
    tableau, t, y = TABLEAUX["rk45"], times[0], y0
    sign = 1.0 if times[1] > times[0] else -1.0
    k1, nfe = f(t, y), 1
    _require_finite(k1, t)
    if first_step is None:
        size, nfe = _first_step(f, t, y, k1, sign, rtol, atol), nfe + 1
    else:
        size = first_step
    ys, accepted, rejected = [y0], 0, 0
    for end in times[1:]:
        while (left := sign * float(end - t)) > 0:
            if accepted + rejected >= max_steps:
                raise RuntimeError(f"max_steps={max_steps} were used up at t = {float(t):.6g}; raise max_steps or rtol")
            if size < 10 * torch.finfo(times.dtype).eps * abs(float(t)) or size < 1e-300:
                raise RuntimeError(
                    f"the step fell to {size:.1e} at t = {float(t):.6g}: the problem is stiff or singular"
                )
            last = size >= left
            h = end - t if last else torch.as_tensor(sign * size, dtype=times.dtype, device=times.device)
            k = _stages(f, tableau, t, y, h, k1)
            nfe += len(k) - 1
            y_new = y + h * _combine(tableau.b, k)
            scale = atol + rtol * torch.maximum(y.detach().abs(), y_new.detach().abs())
            error = _rms(h * _combine(tableau.e, k) / scale)
            if not math.isfinite(error):
                if size < 1e-12 * max(1.0, abs(float(t))):
                    raise FloatingPointError(f"the solution is not finite at t = {float(t):.6g}")
                size, rejected = 0.1 * min(size, left), rejected + 1
                continue
            factor = 10.0 if error == 0 else min(10.0, max(0.2, 0.9 * error**-0.2))
            if error <= 1:
                t, y, k1, accepted = (end if last else t + h), y_new, k[-1], accepted + 1
                size = max(size, left * factor) if last and size > left else min(size, left) * factor
            else:
                size, rejected = min(size, left) * min(1.0, factor), rejected + 1
        ys.append(y)
    return OdeResult(times, torch.stack(ys), nfe, accepted, rejected)
