r"""A map between two clouds of samples as the flow of a velocity that is learned by least squares.

    x_t = t x1 + (1 - t) x0                            straight interpolation of any coupling of pi_0 and pi_1
    min_v  int_0^1 E | v(x_t, t) - (x1 - x0) |^2 dt    minimizer v*(x, t) = E[x1 - x0 | x_t = x]
    dz/dt = v(z, t),  z_0 ~ pi_0                       (z_0, z_1) keeps both marginals and every convex cost falls

Trained again on its own pairs (z_0, z_1), the flow becomes straight (`reflow`), and one Euler step follows it.

Paper: liu2023flow, Alg. 1, Eqs. 1-6, Sec. 2.3 (curved interpolations).
Notation: Z^k the k-th flow, a_t and b_t the coefficients of an interpolation ``a_t x1 + b_t x0``, s = ``source_std``.
Departures: (1) Euler's times are i/N and its step 1/N; the official code evaluates at ``eps + i (1 - eps)/N`` and steps
by 1/N, which overshoots its clock. Two slips of the field are excluded the same way: 1/(N-1) for a step, and swapped
ends (noise is at t = 0 here, at t = 1 in Stable Diffusion 3 and diffusers). (2) Noise while sampling keeps the
marginals; the official formula does not: see `RectifiedFlow.sample`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from steepest.core.errors import (
    at_least,
    check,
    interval,
    kind_error,
    nonnegative,
    one_of,
    optional,
    positive,
    value_error,
)
from steepest.core.ode import OdeResult, solve_ode
from steepest.core.random import Seed, torch_generator
from steepest.generative._flow_field import Field, times_of, with_divergence
from steepest.generative._interpolations import CURVED, SINGULAR
from steepest.generative._samples import as_rows, check_pair, check_samples, clamped, per_sample

__all__ = ["FlowSample", "RectifiedFlow"]

Velocity = Callable[..., Tensor]
Metric = Callable[[Tensor, Tensor], Tensor]
Schedule = str | int | Callable[[int, torch.Generator], Tensor]

FIXED = ("euler", "midpoint", "heun", "rk4")
KEPT = 33  # times at which the path of rk45 is kept


@dataclass
class FlowSample:
    """Samples `x` (n, *shape) and what they cost.

    `nfe` counts evaluations of the velocity, each on the whole batch. With ``keep=True``, `path` (m, n, *shape) holds
    the states at `times` (m,). `n_rejected` counts rejected steps of rk45.
    """

    x: Tensor
    nfe: int
    times: Tensor | None = None
    path: Tensor | None = None
    n_rejected: int = 0


class RectifiedFlow(nn.Module):
    """The flow of a velocity between two distributions (liu2023flow): its loss, its paths, its density.

    Parameters
    ----------
    velocity : nn.Module or callable
        ``velocity(x, t)`` with x (n, *shape) and t (n,) in [0, 1] of x's dtype and device gives (n, *shape). For labels
        it takes a third argument y (n,), of which -1 means none. A plain function has nothing to train.
    interpolation : "linear", "vp", "subvp" or "spherical"
        Linear is the paper's; the curved ones (variance-preserving diffusion and its relatives, Sec. 2.3) are controls
        that do not become straight.
    t_eps : float
        The velocity is asked for times in [t_eps, 1 - t_eps] only, while steps keep to the clock [0, 1]. ``vp`` and
        ``spherical`` need it, 1e-3 say: their target is infinite at t = 1.
    source_std : float
        s, where pi_0 = N(0, s^2 I); used by `log_prob` and by noise in `sample`, nowhere else.

    Raises
    ------
    TypeError, ValueError
        An argument outside its limits; ``vp`` or ``spherical`` with ``t_eps=0``.

    Notes
    -----
    The state dict holds the velocity only. `fit_flow` trains, `reflow` straightens, `distill` prepares for few steps.

    Examples
    --------
    >>> flow = RectifiedFlow(lambda x, t: torch.full_like(x, 2.0))
    >>> flow.sample(torch.zeros(1, 2), steps=1, method="euler").x
    tensor([[2., 2.]])
    """

    velocity: Velocity

    def __init__(
        self, velocity: Velocity, *, interpolation: str = "linear", t_eps: float = 0.0, source_std: float = 1.0
    ) -> None:
        super().__init__()
        if not callable(velocity):
            raise kind_error("velocity", "a module or function of (x, t)", velocity)
        check("interpolation", interpolation, one_of("linear", *CURVED))
        check("t_eps", t_eps, interval(0, 0.5, high_open=True))
        check("source_std", source_std, positive())
        if interpolation in SINGULAR and t_eps == 0:
            raise value_error("t_eps", f"> 0 with interpolation={interpolation!r}", t_eps, "1e-3 is usual")
        self.velocity = velocity
        self.interpolation, self.t_eps, self.source_std = interpolation, float(t_eps), float(source_std)

    def forward(self, x: Tensor, t: float | Tensor, y: Tensor | None = None) -> Tensor:
        """Velocity at `x` (n, *shape) and time `t`, a number or one for each sample (n,).

        Raises
        ------
        TypeError, ValueError
            `x` is no floating-point cloud, or `t` has another shape, dtype or device, or lies outside [0, 1].
        """
        check_samples("x", x)
        return self._velocity(x, times_of(t, x), y)

    def _velocity(self, x: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
        t = clamped(t, self.t_eps)
        return self.velocity(x, t) if y is None else self.velocity(x, t, y)

    # ---------------------------------------------------------------------------------------------------- learning

    def interpolate(self, x0: Tensor, x1: Tensor, t: float | Tensor) -> tuple[Tensor, Tensor]:
        """Point ``x_t = a x1 + b x0`` of the paths between pairs, and their velocity ``a' x1 + b' x0``, the target.

        Parameters
        ----------
        x0, x1 : Tensor (n, *shape)
        t : float, 0-dim or (n,)
            Kept in [t_eps, 1 - t_eps].

        Raises
        ------
        TypeError, ValueError
            The clouds or the times do not fit.
        """
        check_samples("x0", x0)
        check_pair("x1", x1, "x0", x0, same_length=True)
        return self._interpolate(x0, x1, times_of(t, x0))

    def _interpolate(self, x0: Tensor, x1: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        t = per_sample(clamped(t, self.t_eps), x0)
        if self.interpolation == "linear":
            return torch.lerp(x0, x1, t), x1 - x0
        a, b, a_slope, b_slope = CURVED[self.interpolation](t)
        return a * x1 + b * x0, a_slope * x1 + b_slope * x0

    def loss(
        self,
        x0: Tensor,
        x1: Tensor,
        *,
        t: float | Tensor | None = None,
        t_schedule: Schedule = "uniform",
        metric: Metric | None = None,
        reduction: str = "mean",
        generator: Seed = None,
        y: Tensor | None = None,
    ) -> Tensor:
        """Mean squared difference of the velocity at random times and the pairs' own (Eq. 1).

        Parameters
        ----------
        x0, x1 : Tensor (n, *shape)
            Pairs, in any coupling.
        t : float, 0-dim or (n,), optional
            The times; drawn by `t_schedule` if not given.
        t_schedule : "uniform", "t0", "t1", int or callable
            Uniform on [t_eps, 1 - t_eps]; all 0; all 1; an int N draws from i/N, i < N, for distillation to N steps
            of Euler; a callable ``(n, generator)`` gives (n,).
        metric : callable, optional
            ``metric(end, x1)`` (n,) instead of the squared difference, of the end ``x_t + (1 - t) v`` that a straight
            path reaches; with ``"t1"`` it is ``metric(start, x0)`` of ``x1 - v``. Linear interpolation only.
        reduction : "mean", "sum" or "none"
            The mean over samples and coordinates (the official setting), their sum, or the mean over coordinates (n,).
        generator : int, torch.Generator or None
            Of the times.
        y : Tensor (n,), optional
            Labels for the velocity.

        Returns
        -------
        Tensor
            0-dim, or (n,) without reduction.

        Raises
        ------
        TypeError, ValueError
            Clouds, times or arguments that do not fit.
        """
        check_samples("x0", x0)
        check_pair("x1", x1, "x0", x0, same_length=True)
        check("reduction", reduction, one_of("mean", "sum", "none"))
        self._check_learning(t_schedule, metric)
        if t is None:
            times = self._draw_times(t_schedule, x0, torch_generator(generator, x0.device, name="generator"))
        else:
            times = times_of(t, x0)
        from_end = t_schedule == "t1"
        if reduction == "mean":
            return self._mean_loss(x0, x1, times, metric, y, from_end=from_end)[0]
        found = self._losses(x0, x1, times, metric, y, from_end=from_end)
        if reduction == "sum":
            return found.sum()
        return found if metric is not None else as_rows(found).mean(1)

    def _check_learning(self, t_schedule: Schedule, metric: Metric | None) -> None:
        if isinstance(t_schedule, str):
            check("t_schedule", t_schedule, one_of("uniform", "t0", "t1"))
        elif not callable(t_schedule):
            check("t_schedule", t_schedule, at_least(1, integer=True))
        if metric is not None and self.interpolation != "linear":
            raise value_error("interpolation", "'linear' with a metric of the path's end", self.interpolation)

    def _mean_loss(
        self, x0: Tensor, x1: Tensor, t: Tensor, metric: Metric | None, y: Tensor | None, *, from_end: bool
    ) -> tuple[Tensor, Tensor]:
        """The loss of a step of training, and the velocity it saw."""
        x_t, target = self._interpolate(x0, x1, t)
        v = self._velocity(x_t, t, y)
        if metric is None:
            return nn.functional.mse_loss(v, target), v
        return _at_the_ends(metric, x0, x1, x_t, t, v, from_end).mean(), v

    def _losses(
        self, x0: Tensor, x1: Tensor, t: Tensor, metric: Metric | None, y: Tensor | None, *, from_end: bool
    ) -> Tensor:
        """Squared differences (n, *shape), or the metric's values (n,)."""
        x_t, target = self._interpolate(x0, x1, t)
        v = self._velocity(x_t, t, y)
        return (v - target).square() if metric is None else _at_the_ends(metric, x0, x1, x_t, t, v, from_end)

    def _draw_times(self, t_schedule: Schedule, x: Tensor, generator: torch.Generator) -> Tensor:
        n = len(x)
        if t_schedule == "uniform":
            t = torch.rand(n, generator=generator, dtype=x.dtype, device=x.device)
            return self.t_eps + (1 - 2 * self.t_eps) * t if self.t_eps else t
        if callable(t_schedule):
            return times_of(t_schedule(n, generator), x, name="t_schedule(n, generator)")
        if isinstance(t_schedule, int):
            return torch.randint(t_schedule, (n,), generator=generator, device=x.device).to(x.dtype) / t_schedule
        return torch.full((n,), float(t_schedule == "t1"), dtype=x.dtype, device=x.device)

    # ---------------------------------------------------------------------------------------------------- sampling

    @torch.no_grad()
    def sample(
        self,
        x0: Tensor,
        *,
        steps: int | None = None,
        method: str = "rk45",
        rtol: float = 1e-5,
        atol: float = 1e-5,
        reverse: bool = False,
        noise: float = 0.0,
        keep: bool = False,
        max_nfe: int = 100_000,
        generator: Seed = None,
        y: Tensor | None = None,
        guidance: float = 1.0,
    ) -> FlowSample:
        r"""Carry `x0` along the flow from t = 0 to t = 1, or back.

        Parameters
        ----------
        x0 : Tensor (n, *shape)
            Samples of pi_0; of pi_1 if `reverse`.
        steps : int
            N, for all methods but rk45: times i/N.
        method : "rk45", "euler", "midpoint", "heun" or "rk4"
            rk45 chooses its steps for the batch as a whole, so that they depend on who else is in it.
        rtol, atol : float
            Of rk45 (the paper's 1e-5).
        reverse : bool
            From t = 1 to t = 0.
        noise : float
            With sigma(t) = noise sqrt(1 - t) the path is that of ``dx = [v + sigma^2/2 score] dt + sigma dW``, where
            ``score = (t v - x) / (s^2 (1 - t))``: for linear flows from N(0, s^2 I) the marginals stay what they are.
            Needs `steps`.
        keep : bool
            Keep the path: every step's state, or 33 evenly spaced times that rk45 is then made to visit.
        max_nfe : int
            Most evaluations of rk45.
        generator : int, torch.Generator or None
            Of the noise.
        y : Tensor (n,), optional
            Labels for the velocity.
        guidance : float
            With labels: ``v = v(-1) + guidance (v(y) - v(-1))``; other values than 1 double the cost of an evaluation.

        Returns
        -------
        FlowSample

        Raises
        ------
        TypeError, ValueError
            Arguments that do not fit, or not together.
        FloatingPointError
            The velocity is not finite; the text says where.
        RuntimeError
            rk45 passed `max_nfe`.
        """
        check_samples("x0", x0)
        for name, flag in {"reverse": reverse, "keep": keep}.items():
            if not isinstance(flag, bool):
                raise kind_error(name, "True or False", flag)
        self._check_noise(noise, method, reverse)
        field = Field(self._guided(y, guidance, x0), self._budget(method, max_nfe))
        found = self._solve(field, x0, steps, method, rtol, atol, reverse, keep, noise, generator)
        kept = {"times": found.ts, "path": found.ys} if keep else {}
        return FlowSample(found.y, field.nfe, n_rejected=found.n_rejected, **kept)

    def _check_noise(self, noise: float, method: str, reverse: bool) -> None:
        check("noise", noise, nonnegative())
        if noise and (reverse or method == "rk45"):
            raise value_error("noise", "0 with reverse=True or method='rk45'", noise)
        if noise and self.interpolation != "linear":
            raise value_error("noise", "0 for a curved interpolation, whose score is another", noise)

    def _budget(self, method: str, max_nfe: int) -> float:
        check("max_nfe", max_nfe, at_least(1, integer=True))
        return max_nfe if method == "rk45" else math.inf

    def _guided(self, y: Tensor | None, guidance: float, x: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        """The velocity of (x, t) with labels and guidance inside."""
        check("guidance", guidance, interval())
        if y is None:
            if guidance != 1:
                raise value_error("guidance", "1 without labels y", guidance)
            return lambda x, t: self._velocity(x, t, None)
        if y.shape != (len(x),):
            raise value_error("y", f"labels of shape ({len(x)},)", y)
        if guidance == 1:
            return lambda x, t: self._velocity(x, t, y)
        both = torch.cat([torch.full_like(y, -1), y])

        def guided(x: Tensor, t: Tensor) -> Tensor:
            without, with_label = self._velocity(torch.cat([x, x]), torch.cat([t, t]), both).chunk(2)
            return without + guidance * (with_label - without)

        return guided

    def _solve(
        self,
        field: Field,
        start: Tensor,
        steps: int | None,
        method: str,
        rtol: float,
        atol: float,
        reverse: bool = False,
        keep: bool = False,
        noise: float = 0.0,
        generator: Seed = None,
    ) -> OdeResult:
        check("method", method, one_of(*FIXED, "rk45"))
        check("rtol", rtol, positive())
        check("atol", atol, positive())
        check("steps", steps, optional(at_least(1, integer=True)))
        if (steps is None) != (method == "rk45"):
            raise value_error("steps", "None with rk45, which chooses them" if steps else f"given with {method}", steps)
        n_times = 2 if not (keep or noise) else KEPT if steps is None else steps + 1
        ts = torch.linspace(0, 1, n_times, dtype=start.dtype, device=start.device)
        if noise:
            return self._noisy(field, start, ts, method, noise, keep, generator)
        options: dict[str, Any] = {"method": method, "rtol": rtol, "atol": atol, "max_steps": 10**9}
        if steps is not None and not keep:
            options["n_steps"] = steps
        return solve_ode(field, start, ts.flip(0) if reverse else ts, **options)

    def _noisy(
        self, field: Field, x: Tensor, ts: Tensor, method: str, noise: float, keep: bool, generator: Seed
    ) -> OdeResult:
        """Drift by the method's step, then noise with the variance that sigma^2 has over the step."""
        source = torch_generator(generator, x.device, name="generator")

        def drift(t: Tensor, x: Tensor) -> Tensor:
            v = field(t, x)
            return v + noise**2 / 2 * (t * v - x) / self.source_std**2  # sigma^2/2 score: 1 - t cancels

        path = [x]
        for step in range(len(ts) - 1):
            begin, end = ts[step], ts[step + 1]
            x = solve_ode(drift, x, ts[step : step + 2], method=method).y
            variance = noise**2 * (end - begin) * (1 - (begin + end) / 2)
            x = x + variance.sqrt() * torch.randn(x.shape, generator=source, dtype=x.dtype, device=x.device)
            path = [*path, x] if keep else [x]
        return OdeResult(ts, torch.stack(path), field.nfe, len(ts) - 1, 0)

    # ----------------------------------------------------------------------------------------------------- density

    def log_prob(
        self,
        x1: Tensor,
        *,
        n_probes: int | None = None,
        steps: int | None = None,
        method: str = "rk45",
        rtol: float = 1e-5,
        atol: float = 1e-5,
        max_nfe: int = 100_000,
        generator: Seed = None,
        y: Tensor | None = None,
        guidance: float = 1.0,
    ) -> Tensor:
        """Log density at `x1` of the flow from N(0, s^2 I), by the instantaneous change of variables.

        ``log p1(z_1) = log p0(z_0) - int_0^1 div v(z_t, t) dt`` along the path that is followed back from `x1`.

        Parameters
        ----------
        x1 : Tensor (n, *shape)
        n_probes : int, optional
            Estimate the divergence from so many random signs for each sample (Hutchinson), drawn once for the whole
            path; None computes it exactly with one backward pass for each coordinate.
        steps, method, rtol, atol, max_nfe
            As in `sample`.
        generator : int, torch.Generator or None
            Of the probes.
        y, guidance
            As in `sample`.

        Returns
        -------
        Tensor (n,)

        Raises
        ------
        TypeError, ValueError, FloatingPointError, RuntimeError
            As `sample`.
        """
        check_samples("x1", x1)
        check("n_probes", n_probes, optional(at_least(1, integer=True)))
        n, d = as_rows(x1).shape
        source = torch_generator(generator, x1.device, name="generator")
        velocity = with_divergence(self._guided(y, guidance, x1), x1, n_probes, source)
        start = torch.cat([as_rows(x1), x1.new_zeros(n, 1)], 1)
        field = Field(velocity, self._budget(method, max_nfe))
        with torch.no_grad():
            end = self._solve(field, start, steps, method, rtol, atol, reverse=True).y
        z0, integral = end[:, :-1], end[:, -1]  # the integral runs backwards: minus int_0^1 div v
        s = self.source_std
        return -z0.square().sum(1) / (2 * s**2) - d * math.log(s * math.sqrt(2 * math.pi)) + integral


def _at_the_ends(metric: Metric, x0: Tensor, x1: Tensor, x_t: Tensor, t: Tensor, v: Tensor, from_end: bool) -> Tensor:
    """The metric between where a straight path with this velocity ends (or starts) and where it should."""
    if from_end:
        return metric(x_t - per_sample(t, v) * v, x0)
    return metric(x_t + per_sample(1 - t, v) * v, x1)
