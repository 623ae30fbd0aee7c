r"""Stochastic ascent with a direction that follows the gradient: implicit transport, or Hessian-aided recursion.

    maximize J(theta),   eta_t = momentum (2/(t+2))^a,   step_t = step (2/(t+2))^b,   eta_0 = 1

    IGT     theta~ = theta_t + (1 - eta_t)/eta_t (theta_t - theta_{t-1})
            d_t = (1 - eta_t) d_{t-1} + eta_t g(theta~)
    HARPG   theta^ = q theta_t + (1 - q) theta_{t-1},   q uniform on [0, 1]
            d_t = (1 - eta_t) (d_{t-1} + B(theta^) (theta_t - theta_{t-1})) + eta_t g(theta_t)

    theta_{t+1} = theta_t + step_t d_t,   or step_t d_t / |d_t|

Paper: fatkhullin2023stochastic.
Notation: gamma_0 = `step`, eta_0 = `momentum`, a = `momentum_exponent`, b = `step_exponent`; g and B are unbiased for
the gradient and the Hessian.
Departures: the same eta_t is in the transport and in the average, so that ``(1 - eta_t) theta_{t-1} + eta_t theta~ =
theta_t`` and the average of a linear gradient has no bias; the published code transports with the previous one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from steepest.core.driver import Progress, Stop, drive
from steepest.core.errors import (
    Limit,
    at_least,
    boolean,
    check,
    check_params,
    interval,
    kind_error,
    nonnegative,
    optional,
    positive,
    value_error,
)
from steepest.core.random import Seed, torch_generator

if TYPE_CHECKING:
    from scipy.optimize import OptimizeResult

__all__ = ["State", "StepRule", "harpg_ascent", "harpg_step", "igt_ascent", "igt_step", "step_exponent_of"]

RULE_LIMITS: dict[str, Limit] = {
    "momentum": interval(0, 1, low_open=True),
    "momentum_exponent": nonnegative(),
    "step_exponent": optional(nonnegative()),
    "normalize": boolean(),
}
Numbers = dict[str, float]


@dataclass(frozen=True)
class StepRule:
    """The schedules of eta and of the step, and how the direction is used."""

    step: float
    momentum: float
    momentum_exponent: float
    step_exponent: float
    normalize: bool
    transport: bool = False

    def eta(self, t: int) -> float:
        """Weight of the new gradient: all of it at first, whatever the momentum."""
        return 1.0 if t == 0 else min(1.0, self.momentum * (2 / (t + 2)) ** self.momentum_exponent)

    def step_size(self, t: int) -> float:
        """Length (normalized) or factor of the step."""
        return self.step * (2 / (t + 2)) ** self.step_exponent


class State(NamedTuple):
    """What an iteration hands to the next; at t = 0 `previous` is `theta` and `direction` zero.

    Of one run, or row by row of several that go side by side; the logged norms are then means.
    """

    theta: Tensor  # (p,) or (runs, p)
    previous: Tensor
    direction: Tensor
    t: int = 0

    @classmethod
    def start(cls, theta: Tensor) -> State:
        """Begin at `theta`."""
        return cls(theta, theta, torch.zeros_like(theta))


def igt_step(state: State, rule: StepRule, gradient: Callable[[Tensor], Tensor]) -> tuple[State, Numbers]:
    """Make one iteration of N-PG-IGT; without transport it is (normalized) momentum."""
    theta, previous, d, t = state
    eta = rule.eta(t)
    point = theta + (1 - eta) / eta * (theta - previous) if rule.transport else theta
    g = _finite(gradient(point), "gradient", t)
    return _moved(state, rule, torch.lerp(d, g, eta), g)  # (1 - eta) d + eta g


def harpg_step(
    state: State,
    rule: StepRule,
    gradient: Callable[[Tensor], Tensor],
    hvp: Callable[[Tensor, Tensor], Tensor],
    q: Callable[[], float | Tensor],
) -> tuple[State, Numbers]:
    """Make one iteration of (N-)HARPG; the first has no difference to correct for and calls `hvp` not at all."""
    theta, previous, d, t = state
    eta = rule.eta(t)
    g = _finite(gradient(theta), "gradient", t)
    if t == 0:
        return _moved(state, rule, g, g)
    between = q()
    v = hvp(torch.lerp(previous, theta, between), theta - previous)
    v = _finite(v, "Hessian-vector product", t)
    moved, numbers = _moved(state, rule, torch.lerp(d + v, g, eta), g)  # (1 - eta) (d + v) + eta g
    return moved, numbers | {"hvp_norm": float(_length(v).mean())}


def _moved(state: State, rule: StepRule, d: Tensor, g: Tensor) -> tuple[State, Numbers]:
    length, step = _length(d), rule.step_size(state.t)
    move = step / torch.where(length > 0, length, 1) * d if rule.normalize else step * d
    numbers = {
        "eta": rule.eta(state.t),
        "step_size": step,
        "direction_norm": float(length.mean()),
        "gradient_norm": float(_length(g).mean()),
    }
    theta = _finite(state.theta + move, "iterate", state.t)
    return State(theta, state.theta, d, state.t + 1), numbers


def _length(rows: Tensor) -> Tensor:  # (1,) or (runs, 1)
    return torch.linalg.vector_norm(rows, dim=-1, keepdim=True)


def _finite(value: Tensor, what: str, t: int) -> Tensor:
    if not math.isfinite(float(value.sum())) and not bool(torch.isfinite(value).all()):  # a sum is cheaper
        raise FloatingPointError(f"the {what} is not finite at iteration {t}; try a smaller step")
    return value


def step_exponent_of(step_exponent: float | None, normalize: bool) -> float:
    """HARPG's exponent: 1/2 for plain steps, 1 for normalized ones, unless one is given."""
    if step_exponent is not None:
        return step_exponent
    return 1.0 if normalize else 0.5


def igt_ascent(
    gradient: Callable[[Tensor, torch.Generator], Tensor],
    theta0: Tensor,
    *,
    n_iter: int,
    step: float = 0.1,
    momentum: float = 1.0,
    momentum_exponent: float = 0.8,
    step_exponent: float = 1.0,
    normalize: bool = True,
    transport: bool = True,
    seed: Seed = None,
    callback: Callable[..., Any] | None = None,
    return_all: bool = False,
) -> OptimizeResult:
    """Maximize a function from noisy gradients by normalized ascent with implicit gradient transport (N-IGT).

    The gradient is asked for at an extrapolated point, so that the running average of old and new gradients is, to
    first order, the gradient at the current point (fatkhullin2023stochastic).

    Parameters
    ----------
    gradient : callable (theta, generator) -> Tensor of shape (p,)
        Unbiased for the gradient at `theta`; draws, if any, come from the generator.
    theta0 : Tensor of shape (p,)
        Start; it is not changed.
    n_iter : int
        Iterations, one gradient each.
    step : float
        gamma_0: length of the first step (official code: tuned, 0.1).
    momentum : float
        eta_0 in (0, 1].
    momentum_exponent, step_exponent : float
        Of ``2/(t+2)`` in eta_t (paper: 4/5) and in the step (paper: 1).
    normalize : bool
        Divide the direction by its norm.
    transport : bool
        False: plain momentum, the gradient at the iterate itself.
    seed : int, torch.Generator or None
        Of the one generator that is handed to the oracle.
    callback : callable, optional
        SciPy's two forms: ``callback(x)`` or ``callback(intermediate_result=...)``; `StopIteration` ends the run.
    return_all : bool
        Keep all iterates and directions.

    Returns
    -------
    scipy.optimize.OptimizeResult
        ``x`` (last iterate), ``direction`` (last d), ``nit``, ``ntraj`` (oracle calls), ``success, status, message``,
        ``history`` (norm of the direction and of the gradient, eta, step size); with `return_all` ``allvecs`` of shape
        (nit + 1, p) and ``directions`` of shape (nit, p).

    Raises
    ------
    ValueError, TypeError
        An argument outside its limits, an oracle that is not callable or returns something else than such a tensor.
    FloatingPointError
        The oracle's output or the iterate is not finite; the text names the iteration.

    Examples
    --------
    >>> target = torch.tensor([1.0, -1.0], dtype=torch.float64)
    >>> def noisy(theta, generator):
    ...     return target - theta + torch.randn(2, generator=generator, dtype=theta.dtype)
    >>> result = igt_ascent(noisy, torch.zeros(2, dtype=torch.float64), n_iter=2000, step=0.5, seed=0)
    >>> float((result.x - target).norm()) < 0.1
    True
    """
    rule = _checked_rule(step, momentum, momentum_exponent, step_exponent, normalize, transport)
    start, generator = _checked_start(theta0, gradient=gradient), torch_generator(seed)

    def advance(state: State) -> tuple[State, Numbers]:
        return igt_step(state, rule, lambda point: _asked("gradient", gradient(point, generator), point))

    return _ascend(advance, start, n_iter, callback, return_all, calls=lambda t: 1)


def harpg_ascent(
    gradient: Callable[[Tensor, torch.Generator], Tensor],
    hvp: Callable[[Tensor, Tensor, torch.Generator], Tensor],
    theta0: Tensor,
    *,
    n_iter: int,
    step: float = 0.1,
    momentum: float = 1.0,
    momentum_exponent: float = 1.0,
    step_exponent: float | None = None,
    normalize: bool = False,
    seed: Seed = None,
    callback: Callable[..., Any] | None = None,
    return_all: bool = False,
) -> OptimizeResult:
    """Maximize a function from noisy gradients and Hessian-vector products by (N-)HARPG's recursion.

    The old direction is carried to the new point by a Hessian-vector product at a uniform point of the last step's
    segment, whose mean is exactly the difference of the two gradients (fatkhullin2023stochastic).

    Parameters
    ----------
    gradient : callable (theta, generator) -> Tensor of shape (p,)
        Unbiased for the gradient at `theta`.
    hvp : callable (theta, vector, generator) -> Tensor of shape (p,)
        Unbiased for the Hessian at `theta` times `vector`, and independent of `gradient`'s draws.
    theta0, n_iter, step, momentum, seed, callback, return_all
        As in `igt_ascent`; `n_iter` iterations ask for ``n_iter`` gradients and ``n_iter - 1`` products.
    momentum_exponent : float
        Of ``2/(t+2)`` in eta_t (paper: 1).
    step_exponent : float, optional
        Of ``2/(t+2)`` in the step; None is the paper's: 1/2, or 1 with `normalize`.
    normalize : bool
        True is N-HARPG.

    Returns
    -------
    scipy.optimize.OptimizeResult
        As of `igt_ascent`; ``ntraj`` is ``2 nit - 1``, and the history has the norm of the product as well.

    Raises
    ------
    ValueError, TypeError, FloatingPointError
        As `igt_ascent`.

    Examples
    --------
    >>> target = torch.tensor([1.0, -1.0], dtype=torch.float64)
    >>> def noisy(theta, generator):
    ...     return target - theta + torch.randn(2, generator=generator, dtype=theta.dtype)
    >>> result = harpg_ascent(noisy, lambda theta, v, generator: -v, torch.zeros(2, dtype=torch.float64),
    ...                       n_iter=1000, seed=0)
    >>> result.ntraj, float((result.x - target).norm()) < 0.1
    (1999, True)
    """
    rule = _checked_rule(step, momentum, momentum_exponent, step_exponent, normalize)
    start, generator = _checked_start(theta0, gradient=gradient, hvp=hvp), torch_generator(seed)

    def advance(state: State) -> tuple[State, Numbers]:
        return harpg_step(
            state,
            rule,
            lambda point: _asked("gradient", gradient(point, generator), point),
            lambda point, u: _asked("hvp", hvp(point, u, generator), point),
            lambda: float(torch.rand((), generator=generator, dtype=torch.float64)),
        )

    return _ascend(advance, start, n_iter, callback, return_all, calls=lambda t: 1 if t == 0 else 2)


def _checked_rule(
    step: float,
    momentum: float,
    momentum_exponent: float,
    step_exponent: float | None,
    normalize: bool,
    transport: bool = False,
) -> StepRule:
    check("step", step, positive())
    check("transport", transport, boolean())
    given = {"momentum": momentum, "momentum_exponent": momentum_exponent}
    check_params(given | {"step_exponent": step_exponent, "normalize": normalize}, RULE_LIMITS)
    return StepRule(step, momentum, momentum_exponent, step_exponent_of(step_exponent, normalize), normalize, transport)


def _checked_start(theta0: Tensor, **oracles: object) -> State:
    for name, oracle in oracles.items():
        if not callable(oracle):
            raise kind_error(name, "callable", oracle)
    if not isinstance(theta0, Tensor):
        raise kind_error("theta0", "a tensor", theta0)
    if theta0.ndim != 1 or len(theta0) == 0 or not theta0.is_floating_point():
        raise value_error("theta0", "a non-empty real floating point tensor of shape (p,)", theta0)
    if not bool(torch.isfinite(theta0).all()):
        raise value_error("theta0", "finite", "a tensor with entries that are not")
    return State.start(theta0.detach().clone())


def _asked(name: str, answer: object, theta: Tensor) -> Tensor:
    if not isinstance(answer, Tensor):
        raise kind_error(f"the output of {name}", "a tensor", answer)
    if answer.shape != theta.shape or answer.dtype != theta.dtype or answer.device != theta.device:
        raise value_error(f"the output of {name}", f"of shape {tuple(theta.shape)}, dtype {theta.dtype}", answer)
    return answer.detach()


def _ascend(
    advance: Callable[[State], tuple[State, Numbers]],
    start: State,
    n_iter: int,
    callback: Callable[..., Any] | None,
    return_all: bool,
    calls: Callable[[int], int],
) -> OptimizeResult:
    check("n_iter", n_iter, at_least(1, integer=True))
    kept, last = [start], start

    def step(state: State) -> tuple[State, Progress]:
        nonlocal last
        last, numbers = advance(state)
        if return_all:
            kept.append(last)
        return last, Progress(last.theta, numbers["direction_norm"], numbers=numbers, counts={"ntraj": calls(state.t)})

    names = ("direction_norm", "gradient_norm", "eta", "step_size", "hvp_norm", "seconds")
    result = drive(step, start, maxiter=n_iter, callback=callback, keep=names, on_nonfinite="raise")
    del result["fun"]
    result.update(x=last.theta, direction=last.direction)
    if result.status == Stop.MAXITER:
        result.update(status=0, success=True, message=f"All {n_iter} iterations were made.")
    if return_all:
        result.allvecs = torch.stack([state.theta for state in kept])
        result.directions = torch.stack([state.direction for state in kept[1:]])
    return result
