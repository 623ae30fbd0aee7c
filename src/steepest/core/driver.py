"""The one loop that all iterative solvers share.

A method says what a step is; `drive` owns the rest: stopping, callbacks, the check for non-finite values, history and
timing. So all solvers stop, report and show progress alike.
"""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from steepest.core.errors import at_least, check, one_of

if TYPE_CHECKING:
    from scipy.optimize import OptimizeResult

__all__ = ["HISTORY", "Progress", "Stop", "drive", "told"]

S = TypeVar("S")

HISTORY = ("fun", "grad_norm", "step_norm", "damping", "seconds", "nhvp", "bytes")
"""The keys that histories of all methods use for the same things."""


class Stop(IntEnum):
    """Why an iteration ended; 0 is the only success."""

    CONVERGED = 0
    MAXITER = 1
    NONFINITE = 2
    STALLED = 3
    INFEASIBLE = 4
    CALLBACK = 5

    @property
    def message(self) -> str:
        """What happened and what to do about it."""
        return _MESSAGES[self]


_MESSAGES = {
    Stop.CONVERGED: "The stopping test was met.",
    Stop.MAXITER: "The budget of iterations ran out before the stopping test was met; raise maxiter or loosen tol.",
    Stop.NONFINITE: "A value that is not finite was met; the last finite iterate is returned. "
    "Try a smaller step size or more damping.",
    Stop.STALLED: "No further progress is possible at this precision; try another start or more damping.",
    Stop.INFEASIBLE: "The constraints could not be met; check that they allow a solution.",
    Stop.CALLBACK: "The callback asked to stop.",
}


@dataclass
class Progress:
    """What one step tells the driver.

    Parameters
    ----------
    x : object
        The iterate, as the caller of the solver should see it.
    fun : float
        Objective value (or the residual that is driven to zero).
    stop : Stop, optional
        The method's own verdict: `Stop.CONVERGED`, `Stop.STALLED` or `Stop.INFEASIBLE`.
    numbers : dict
        More numbers for the history, keys from `HISTORY` where one fits.
    counts : dict
        Cost counters of this step, added up in the result: ``nfev, njev, nhev, nhvp, rounds, …``.
    """

    x: Any
    fun: float
    stop: Stop | None = None
    numbers: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)


def told(callback: Callable[..., Any]) -> Callable[[OptimizeResult], Any]:
    """Give a callback of either of SciPy's two forms what it asks for: the whole result, or its ``x``.

    Examples
    --------
    >>> from scipy.optimize import OptimizeResult
    >>> told(print)(OptimizeResult(x=1.0))
    1.0
    """
    if "intermediate_result" in inspect.signature(callback).parameters:
        return lambda result: callback(intermediate_result=result)
    return lambda result: callback(result.x)


def drive(
    step: Callable[[S], tuple[S, Progress]],
    state: S,
    *,
    maxiter: int,
    callback: Callable[..., Any] | None = None,
    keep: Sequence[str] = ("fun",),
    start: Progress | None = None,
    on_nonfinite: Literal["stop", "raise"] = "stop",
) -> OptimizeResult:
    """Repeat ``state, progress = step(state)`` until it says stop, the budget ends, or something breaks.

    Parameters
    ----------
    step : callable
        One iteration.
    state : object
        Whatever `step` takes and returns.
    maxiter : int
        Budget of iterations.
    callback : callable, optional
        SciPy's two forms: ``callback(intermediate_result=result)`` when its parameter has that name, else
        ``callback(x)``. `StopIteration` raised there ends the run.
    keep : sequence of str
        What the history keeps, of ``fun``, ``seconds`` and the keys of `Progress.numbers`.
    start : Progress, optional
        The start, put into the history as iteration 0 and returned if the first step fails.
    on_nonfinite : "stop" or "raise"
        A step whose `fun` is NaN or infinite ends with `Stop.NONFINITE` and the last finite iterate, or raises.

    Returns
    -------
    scipy.optimize.OptimizeResult
        ``x, fun, nit, success, status, message, history, seconds`` and the summed counters.

    Raises
    ------
    FloatingPointError
        With ``on_nonfinite="raise"``; the text names the iteration.

    Examples
    --------
    >>> def newton(x):                                      # for the root of x**2 = 2
    ...     x = x - (x * x - 2) / (2 * x)
    ...     return x, Progress(x, abs(x * x - 2), Stop.CONVERGED if abs(x * x - 2) < 1e-12 else None)
    >>> result = drive(newton, 1.0, maxiter=20)
    >>> result.success, result.nit, round(result.x, 6)
    (True, 5, 1.414214)
    """
    from scipy.optimize import OptimizeResult

    check("maxiter", maxiter, at_least(0, integer=True))
    check("on_nonfinite", on_nonfinite, one_of("stop", "raise"))
    clock = time.perf_counter()
    history: dict[str, list[float]] = {key: [] for key in keep}
    counts: dict[str, int] = {}
    status, nit, last = Stop.MAXITER, 0, start
    tell = None if callback is None else told(callback)

    def note(progress: Progress) -> None:
        for key in keep:
            value = {"fun": progress.fun, "seconds": time.perf_counter() - clock}.get(key)
            history[key].append(progress.numbers.get(key, math.nan) if value is None else value)

    if start is not None:
        note(start)
    while nit < maxiter:
        state, progress = step(state)
        for key, n in progress.counts.items():
            counts[key] = counts.get(key, 0) + n
        if not math.isfinite(progress.fun):
            if on_nonfinite == "raise":
                raise FloatingPointError(f"fun is {progress.fun} at iteration {nit + 1}")
            status = Stop.NONFINITE
            break
        nit, last = nit + 1, progress
        note(progress)
        if tell is not None:
            try:
                tell(OptimizeResult(x=progress.x, fun=progress.fun, nit=nit))
            except StopIteration:
                status = Stop.CALLBACK
                break
        if progress.stop is not None:
            status = progress.stop
            break
    return OptimizeResult(
        x=None if last is None else last.x,
        fun=math.nan if last is None else last.fun,
        nit=nit,
        success=status is Stop.CONVERGED,
        status=int(status),
        message=status.message,
        history=history,
        seconds=time.perf_counter() - clock,
        **counts,
    )
