"""The one loop of the bilevel methods: the shared driver, with the room's history, callback and result.

A method keeps its state in any object and says four things about it: what a step is (`step`), what of it the caller
sees (`view`), and where wanted when to stop (`converged`) and which number betrays that it is broken (`probe`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from torch import Tensor

from steepest.bilevel._oracles import Oracles
from steepest.bilevel.problem import BilevelResult
from steepest.core.driver import Progress, Stop, drive
from steepest.core.errors import at_least, check, kind_error, one_of, optional, positive

__all__ = ["DECAY", "decayed", "iterate"]

S = TypeVar("S")

DECAY = one_of(None, "linear")
STATUS = {Stop.CONVERGED: 0, Stop.MAXITER: 1, Stop.NONFINITE: 2, Stop.CALLBACK: 6}


def iterate(
    oracles: Oracles,
    step: Callable[[S], tuple[S, dict[str, float]]],
    state: S,
    *,
    view: Callable[[S], Mapping[str, Any]],
    maxiter: int,
    callback: Callable[..., Any] | None = None,
    log_every: int | None = None,
    keep: tuple[str, ...] = (),
    converged: Callable[[S, dict[str, float]], bool] | None = None,
    probe: Callable[[S], float] | None = None,
    extras: Callable[[S], Mapping[str, Any]] | None = None,
) -> BilevelResult:
    """Run a bilevel method and make its result.

    Parameters
    ----------
    oracles : Oracles
        Their counts go into the result (and so does what was asked before the loop).
    step : callable
        ``state, numbers = step(state)``; a state that is returned must not be changed later, unless the last finite
        iterate is not to be had after a failure. `FloatingPointError` counts as a value that is not finite.
    state : object
    view : callable
        ``view(state)``: a mapping with flat ``x`` and ``y`` and whatever the callback and the result shall see besides,
        in the caller's form. Called where somebody looks, not every step.
    maxiter : int
    callback : callable, optional
        ``callback(intermediate_result=...)`` after every step, an `OptimizeResult` with what `view` gives, ``nit`` and
        ``counts``; `StopIteration` ends the run.
    log_every : int, optional
        The history holds the start, every so many steps, and the end; None: the end alone.
    keep : tuple of str
        Which of the step's numbers the history holds, beside ``nit``, ``fun``, ``seconds`` and ``samples``.
    converged : callable, optional
        ``converged(state, numbers)`` after a step; given only where a tolerance was asked for.
    probe : callable, optional
        A number that is not finite when the state is broken; the sum of the entries of x and y by default.
    extras : callable, optional
        ``extras(state)``: what the result alone holds besides, made once at the end.

    Returns
    -------
    BilevelResult
        ``history["seconds"]`` leaves out the time of reports and callbacks.
    """
    check("maxiter", maxiter, at_least(0, integer=True))
    check("log_every", log_every, optional(positive(integer=True)))
    if callback is not None and not callable(callback):
        raise kind_error("callback", "None or callable", callback)
    problem, clock = oracles.problem, _Clock()
    history: dict[str, list[float]] = {key: [] for key in ("nit", "fun", "seconds", "samples", *keep)}
    probe = _sum_of(view) if probe is None else probe

    def report(state: S, nit: int, numbers: Mapping[str, float]) -> float:
        with clock.paused():
            seen = view(state)
            fun = float(oracles.upper_value(seen["x"], seen["y"]))
            row = {"nit": nit, "fun": fun, "seconds": clock.seconds(), "samples": oracles.counts["samples"]}
            for key in history:
                history[key].append(row[key] if key in row else numbers.get(key, math.nan))
        return fun

    def advance(at: tuple[S, int]) -> tuple[tuple[S, int], Progress]:
        old, nit = at
        try:
            new, numbers = step(old)
        except FloatingPointError:
            return at, Progress((old, nit, {}), math.nan)
        stop = Stop.CONVERGED if converged is not None and converged(new, numbers) else None
        sound = probe(new)
        if math.isfinite(sound) and log_every is not None and (nit + 1) % log_every == 0:
            report(new, nit + 1, numbers)
        return (new, nit + 1), Progress((new, nit + 1, numbers), sound, stop)

    def tell(intermediate_result: Any) -> None:
        assert callback is not None
        with clock.paused():
            now, nit, _ = intermediate_result.x
            seen = _in_form(problem, view(now))
            callback(intermediate_result=BilevelResult(**seen, nit=nit, counts=dict(oracles.counts)))

    if log_every is not None:
        report(state, 0, {})
    first = Progress((state, 0, {}), 0.0)
    told = None if callback is None else tell
    driven = drive(advance, (state, 0), maxiter=maxiter, callback=told, keep=(), start=first)
    last, nit, numbers = driven.x
    stop = Stop(driven.status)
    fun = history["fun"][-1] if history["nit"] and history["nit"][-1] == nit else report(last, nit, numbers)
    seen = view(last)
    lower_fun = float(oracles.lower_value(seen["x"], seen["y"]))
    message = stop.message
    if stop is Stop.NONFINITE:
        message = f"At iteration {nit + 1}: {message[0].lower()}{message[1:]}"
    elif not (math.isfinite(fun) and math.isfinite(lower_fun)):
        stop, message = Stop.NONFINITE, f"The objectives are not finite after iteration {nit}; try a smaller step size."
    elif stop is Stop.MAXITER and converged is None:
        message = f"All {nit} iterations of maxiter were made; no tolerance was asked for."
    return BilevelResult(
        **_in_form(problem, seen),
        **({} if extras is None else extras(last)),
        fun=fun,
        lower_fun=lower_fun,
        nit=nit,
        success=stop is Stop.CONVERGED or (stop is Stop.MAXITER and converged is None),
        status=STATUS[stop],
        message=message,
        counts=dict(oracles.counts),
        history=history,
        seconds=clock.seconds(),
    )


def decayed(lr: float, decay: str | None, k: int, maxiter: int) -> float:
    """Give the step size of step k: `lr`, with ``decay="linear"`` times ``1 - 0.98 k / maxiter``."""
    return lr if decay is None else lr * (1 - 0.98 * k / maxiter)


def _sum_of(view: Callable[[Any], Mapping[str, Any]]) -> Callable[[Any], float]:
    def probe(state: Any) -> float:
        seen = view(state)
        return float(seen["x"].sum() + seen["y"].sum())

    return probe


def _in_form(problem: Any, seen: Mapping[str, Any]) -> dict[str, Any]:
    """Bring flat x and y into the form of x0 and y0, and cut everything loose from the state."""
    found = {key: v.clone() if isinstance(v, Tensor) else v for key, v in seen.items()}
    return {**found, "x": problem.unpack_x(found["x"]), "y": problem.unpack_y(found["y"])}


class _Clock:
    """Seconds since it was made, without those spent in ``with clock.paused()``."""

    def __init__(self) -> None:
        self.start = time.perf_counter()
        self.stopped_at: float | None = None

    def seconds(self) -> float:
        return (time.perf_counter() if self.stopped_at is None else self.stopped_at) - self.start

    def paused(self) -> _Clock:
        return self

    def __enter__(self) -> None:
        self.stopped_at = time.perf_counter()

    def __exit__(self, *raised: object) -> None:
        assert self.stopped_at is not None
        self.start += time.perf_counter() - self.stopped_at
        self.stopped_at = None
