"""From what callers pass, in POT's words, to one problem at a time, and back to their kind of array with a log."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from steepest.core.errors import ConvergenceWarning, value_error
from steepest.transport._arguments import Options, Reduced, as_problems, double, reduce_problem
from steepest.transport._implicit import differentiable_plan

__all__ = ["Solver", "solve_all"]

Array = NDArray[np.float64]
Start = tuple[Array, Array] | None
Solver = Callable[[Reduced, Options, Start], tuple[Array, Array, Array, dict[str, Any]]]
"""Problem of mass one, options, first potentials -> plan, u, v, log."""


def solve_all(a: Any, b: Any, M: Any, options: Options, warmstart: Any, solver: Solver) -> Any:
    """Plan, or (plan, log), of one problem or of a batch."""
    problems, is_batch = as_problems(a, b, M)
    starts: list[Any] = [warmstart] * len(problems)
    if warmstart is not None:
        if not (isinstance(warmstart, tuple | list) and len(warmstart) == 2):
            raise value_error("warmstart", "a pair (log_u, log_v)", warmstart)
        if is_batch:
            starts = list(zip(*warmstart, strict=True))
            if len(starts) != len(problems):
                raise value_error("warmstart", f"for {len(problems)} problems", len(starts))
    plans, logs = [], []
    for problem, start in zip(problems, starts, strict=True):
        plan, record = _solve_one(*problem, options, start, solver)
        plans.append(plan)
        logs.append(record)
    if not is_batch:
        return (plans[0], logs[0]) if options.log else plans[0]
    stacked = torch.stack(plans) if isinstance(plans[0], torch.Tensor) else np.stack(plans)
    return (stacked, {key: [record[key] for record in logs] for key in logs[0]}) if options.log else stacked


def _solve_one(a: Any, b: Any, M: Any, options: Options, start: Any, solver: Solver) -> tuple[Any, dict[str, Any]]:
    """Solve in double precision, hand back in the caller's kind."""
    reduced = reduce_problem(a, b, M, options.reg)
    found: list[Any] = []

    def solve() -> tuple[Array, Array, Array]:
        found.extend(_unreduced(reduced, double(M), options, *solver(reduced, options, _reduced(reduced, start))))
        return found[0], found[1], found[2]

    if isinstance(M, torch.Tensor) and any(x.requires_grad for x in (a, b, M)) and torch.is_grad_enabled():
        result: Any = differentiable_plan(a, b, M, options.reg, solve)
    else:
        plan = solve()[0]
        result = torch.from_numpy(plan).to(M.dtype) if isinstance(M, torch.Tensor) else plan.astype(M.dtype, copy=False)
    _, log_u, log_v, record = found
    record["log_u"], record["log_v"] = log_u, log_v
    with np.errstate(over="ignore"):
        record["u"], record["v"] = np.exp(log_u), np.exp(log_v)
    if isinstance(M, torch.Tensor):
        record.update((key, torch.from_numpy(record[key])) for key in ("log_u", "log_v", "u", "v"))
    if options.warn and not record["converged"]:
        warnings.warn(
            f"err is {record['err_newton'][-1]:.2e} after numItermax={options.numItermax} sweeps and steps, "
            f"stopThr={options.stopThr:g} was not met; raise numItermax, stopThr or reg",
            ConvergenceWarning,
            stacklevel=5,
        )
    return result, record


def _unreduced(
    problem: Reduced, M: Array, options: Options, inner: Array, u: Array, v: Array, log: dict[str, Any]
) -> tuple[Array, Array, Array, dict[str, Any]]:
    """Plan, potentials and log of the caller's mass, with zero weights and least cost back in their places."""
    inner *= problem.mass
    plan = inner if inner.shape == problem.shape else np.zeros(problem.shape)
    if plan is not inner:
        plan[np.ix_(problem.rows, problem.columns)] = inner
    log_u, log_v = np.full(problem.shape[0], -np.inf), np.full(problem.shape[1], -np.inf)
    log_u[problem.rows] = u + (np.log(problem.mass) + problem.offset)
    log_v[problem.columns] = v
    dual = problem.mass * (problem.a @ log_u[problem.rows] + problem.b @ v) - plan.sum()
    return plan, log_u, log_v, log | {"cost": float(np.vdot(plan, M)), "dual": float(options.reg * dual)}


def _reduced(problem: Reduced, warmstart: Any) -> Start:
    """The caller's potentials, for the problem of mass one and least cost zero."""
    if warmstart is None:
        return None
    found = []
    for name, x, size, kept in (
        ("log_u", warmstart[0], problem.shape[0], problem.rows),
        ("log_v", warmstart[1], problem.shape[1], problem.columns),
    ):
        values = double(x)
        if values.shape != (size,):
            raise value_error(f"warmstart's {name}", f"of shape ({size},)", values)
        if not np.isfinite(values[kept]).all():
            raise value_error(f"warmstart's {name}", "finite where weights are positive", values)
        found.append(values[kept])
    return found[0] - (np.log(problem.mass) + problem.offset), found[1]
