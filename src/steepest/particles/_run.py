"""What consensus-based optimization and consensus hopping share: statuses, callbacks, and the result."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from enum import IntEnum
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from steepest.core.driver import Progress, Stop, drive, told
from steepest.particles._objective import Objective

if TYPE_CHECKING:
    from scipy.optimize import OptimizeResult

__all__ = ["SPREAD_MAX", "Run", "Status"]

SPREAD_MAX = 1e30


class Status(IntEnum):
    """Why a run ended."""

    CONVERGED = 0
    MAXITER = 1
    MAXFEV = 2
    DIVERGED = 3
    FAILED = 4
    CALLBACK = 99


MESSAGES = {
    Status.CONVERGED: "The swarm agrees: the stopping test was met.",
    Status.MAXITER: "The budget of iterations ran out; raise maxiter, or judge the result by fun.",
    Status.MAXFEV: "The budget of evaluations ran out; raise maxfev, or judge the result by fun.",
    Status.DIVERGED: "The particles flew apart; x is the best point seen. Lower sigma: mean squares are stable where "
    "2 lam > sigma^2 + lam^2 dt (isotropic noise: d sigma^2).",
    Status.FAILED: "The objective failed; x is the best point seen before.",
    Status.CALLBACK: "The callback asked to stop.",
}
BY_DRIVER = {Stop.CONVERGED: Status.CONVERGED, Stop.MAXITER: Status.MAXITER, Stop.CALLBACK: Status.CALLBACK}


class Run(ABC):
    """The state of one run: particles `x` (N, d), their last values `f`, the consensus `c`."""

    x: Tensor
    f: Tensor
    c: Tensor

    def __init__(self, objective: Objective, return_all: bool) -> None:
        self.objective = objective
        self.return_all = return_all
        self.spread = math.inf
        self.fun_consensus = math.inf
        self.stopped: Status | None = None
        self.path: list[Tensor] = []

    @abstractmethod
    def step(self) -> Progress:
        """One iteration; one that cannot be made calls `stop`."""

    @abstractmethod
    def conclude(self) -> None:
        """Evaluate what the result reports."""

    @abstractmethod
    def report(self, result: OptimizeResult) -> None:
        """Add the method's own fields."""

    def progress(self, stop: Stop | None = None) -> Progress:
        """Tell the driver of a finished iteration."""
        return Progress(self.answer(), self.objective.best_fun, stop, {"spread": self.spread})

    def stop(self, status: Status) -> Progress:
        """Tell the driver of an iteration that was not made."""
        self.stopped = status
        return Progress(None, math.nan)

    def answer(self) -> Tensor | None:
        """Return the best point evaluated."""
        return self.objective.best_x

    def out(self, x: Tensor | None) -> Any:
        """Copy a tensor for the caller, as the kind that he uses."""
        return None if x is None else self.objective.given(x.clone())

    def result(self, maxiter: int, callback: Callable[..., Any] | None) -> OptimizeResult:
        """Iterate and report; an error of the objective carries what was found before it as ``error.result``."""
        from scipy.optimize import OptimizeResult

        found = OptimizeResult(nit=0, history={})
        tell = None if callback is None else self._telling(callback)
        try:
            found = drive(
                lambda run: (run, run.step()), self, maxiter=maxiter, callback=tell,
                keep=("fun", "spread", "seconds"),
            )  # fmt: skip
            status = self.stopped if self.stopped is not None else BY_DRIVER[Stop(found.status)]
            if status is not Status.DIVERGED:
                self.conclude()
            trail = self._trail(status)
        except Exception as error:
            error.result = self._filled(found, Status.FAILED)  # type: ignore[attr-defined]
            raise
        return self._filled(found, status, trail)

    def _trail(self, status: Status) -> dict[str, Any]:
        """Return the trajectory with its values, which are asked for at the end so that it changes nothing before."""
        if not self.return_all:
            return {}
        points = torch.stack(self.path) if self.path else self.x.new_empty((0, self.x.shape[1]))
        values = points.new_full((len(points),), math.inf, dtype=torch.float64)
        if len(points) and status is not Status.DIVERGED:
            values = self.objective(points)
        return {"allvecs": self.out(points), "allfuns": self.out(values)}

    def _filled(self, found: OptimizeResult, status: Status, trail: dict[str, Any] | None = None) -> OptimizeResult:
        found.update(
            x=self.out(self.objective.best_x), fun=self.objective.best_fun, consensus=self.out(self.c),
            fun_consensus=self.fun_consensus, spread=self.spread, population=self.objective.given(self.x),
            population_fun=self.objective.given(self.f), status=int(status), success=status is Status.CONVERGED,
            message=MESSAGES[status], nfev=self.objective.nfev, njev=self.objective.njev, **(trail or {}),
        )  # fmt: skip
        self.report(found)
        return found

    def _telling(self, callback: Callable[..., Any]) -> Callable[..., Any]:
        """Add what the swarm knows to what the callback is told; a true answer stops as `StopIteration` does."""
        tell = told(callback)

        def tell_step(intermediate_result: OptimizeResult) -> None:
            intermediate_result.update(
                x=self.out(intermediate_result.x), nfev=self.objective.nfev, consensus=self.out(self.c),
                spread=self.spread,
            )  # fmt: skip
            if tell(intermediate_result):
                raise StopIteration

        return tell_step
