"""Run a solver on the convex program of one output until its certificate is good enough."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from steepest.convex import _losses
from steepest.convex._admm import ADMM, BlockDescent, Copies, ExactStep
from steepest.convex._barrier import Barrier, is_small
from steepest.convex._interior import InteriorPoint, fewest, is_affordable
from steepest.convex._program import Candidate, Program
from steepest.convex._robust import PrimalDual
from steepest.convex._sampled_program import LOOK_EACH, SampledProgram, unit_directions, violation_share
from steepest.convex._sharded import accuracy, run_on_ray
from steepest.core.driver import Progress, Stop, drive

__all__ = ["Fit", "Settings", "fit_output", "fit_sampled", "fit_shared_out"]

KEYS = ("objective", "primal_residual", "dual_residual", "seconds", "accuracy")
FIRST_LOOK, LOOK_AGAIN = 10, 1.1
"""The first iteration whose certificate is computed, and the factor to the next one after a failure."""
FINISH_AFTER = 20
"""Iterations after which interior-point or central-path steps take over, where they are affordable."""
FRESH = 10_000
"""Fresh directions of which the share that violates a sampled program's dual is told."""
TINY = 1e-10
"""Gaps are relative to the objective, or to this share of the loss of a network of zeros where that is larger."""


class Solver(Protocol):
    primal_residual: float
    dual_residual: float

    def step(self) -> None: ...

    def candidate(self) -> Candidate: ...


@dataclass(frozen=True)
class Settings:
    """What the solvers of all outputs share."""

    solver: str
    rho: float | None
    dual_step: float | None
    rbcd_block: int
    rbcd_tol: float
    max_iter: int
    tol: float
    verbose: int


@dataclass
class Fit:
    """The result of one output: `u` (2, P, d), and the state to go on from."""

    u: np.ndarray
    objective: float
    gap: float
    violation: float
    converged: bool
    n_iter: int
    rho: float
    history: dict[str, list[float]]
    state: Any
    dual_violation: float = math.nan


def fit_output(program: Program, own: Settings, seed: int, state: Any = None, exact: ExactStep | None = None) -> Fit:
    """Solve with ADMM or primal-dual steps; `state` is that of an earlier fit of the same shape.

    Against perturbations, patterns that no vector keeps over all boxes are left out: theirs are zero.
    """
    inside = None
    if program.robust:
        inside = program.points_inside()
        alive = inside.any(-1)
        if bool(alive.any()) and not bool(alive.all()):
            found = fit_output(program.of_patterns(alive), own, seed, state, exact)
            u = np.zeros(program.shape)
            u[:, alive.cpu().numpy()] = found.u
            return replace(found, u=u)
    first = solver = _make_solver(program, own, seed, state, exact)
    floor = TINY * program.objective(torch.zeros(program.shape).to(program.X))
    next_look, iteration = FIRST_LOOK if state is None else 1, 0
    certificate, lowest = None, (math.inf, first.candidate())

    def step(_: None) -> tuple[None, Progress]:
        nonlocal solver, next_look, iteration, certificate, lowest
        if iteration == FINISH_AFTER and isinstance(solver, ADMM) and is_affordable(program):
            solver, next_look = InteriorPoint(program, own.tol), 0
        if iteration == FINISH_AFTER and inside is not None and bool(inside.any()) and is_small(program):
            solver, next_look = Barrier(program, inside, own.tol), 0
        iteration += 1
        solver.step()
        candidate = solver.candidate()
        u = candidate.u
        objective = program.objective(u) if program.robust else program.network_objective(u)
        if objective < lowest[0]:
            lowest = objective, candidate
        certificate = None
        if iteration >= next_look and math.isfinite(objective):
            limit = own.tol * max(abs(objective), floor)
            if abs(objective - program.dual_bound(candidate)) <= limit:
                next_look = math.ceil(LOOK_AGAIN * iteration)
                certificate = program.certify(candidate, own.tol)
                if not (certificate.feasible and certificate.gap <= limit):
                    certificate = None
        numbers = {
            "objective": objective,
            "primal_residual": solver.primal_residual,
            "dual_residual": solver.dual_residual,
            "accuracy": accuracy(program, program.network(u)),
        }
        _tell(own.verbose, iteration, numbers)
        return None, Progress(None, objective, Stop.CONVERGED if certificate else None, numbers)

    run = drive(step, None, maxiter=own.max_iter, keep=KEYS)
    broken = run.status == Stop.NONFINITE  # interior points too near the boundary: the best one is kept
    if broken and not math.isfinite(lowest[0]):
        raise FloatingPointError(f"the objective is not finite at iteration {iteration}")
    if certificate is None:
        last = lowest[1] if broken else solver.candidate()
        ends = [program.certify(end, own.tol) for end in (first.candidate(), last)]
        certificate = min(ends, key=lambda end: end.objective)  # steps cut short may not be better yet
    elif isinstance(solver, InteriorPoint):
        sparse = program.certify(replace(solver.candidate(), u=fewest(program, certificate.u)), own.tol)
        if sparse.feasible and sparse.gap <= own.tol * max(abs(sparse.objective), floor):
            certificate = sparse
    return Fit(
        certificate.u.cpu().numpy(),
        certificate.objective,
        certificate.gap,
        certificate.violation,
        run.success,
        run.nit,
        first.copies.rho if isinstance(first, ADMM) else math.nan,
        _history(run.history),
        None if broken else _state(first, solver),
    )


def _state(first: Solver, last: Solver) -> Any:
    """What a warm start goes on from; ADMM's own variables at the end of interior-point steps."""
    if isinstance(last, PrimalDual | Barrier):
        return last.point
    if isinstance(first, ADMM) and isinstance(last, InteriorPoint):
        rho, z = first.copies.rho, last.candidate().u
        return Copies(last.u, z, last.program.cone(z).clamp(min=0), last.p / rho, -last.t / rho, rho)
    return first.copies if isinstance(first, ADMM) else None


def fit_shared_out(program: Program, own: Settings, workers: int) -> Fit:
    """Solve by ADMM alone, exact steps, the patterns shared out over Ray workers; certified here."""
    rho, dual_step = (1.0 if given is None else given for given in (own.rho, own.dual_step))
    shards = run_on_ray(program, workers, tol=own.tol, max_iter=own.max_iter, rho=rho, dual_step=dual_step, keep=KEYS)
    z, pull, slope = (
        torch.cat(parts, 1) for parts in zip(*((s.copies.z, s.pull, s.slope) for s in shards), strict=True)
    )
    nu = program.y - shards[0].outputs

    def dual_at(c: float) -> float:
        return float(_losses.dual_value(program.loss, c * nu, program.y))

    end = program.certify(Candidate(z, pull, slope, dual_at), own.tol)
    floor = TINY * program.objective(torch.zeros_like(z))
    success = end.feasible and end.gap <= own.tol * max(abs(end.objective), floor)
    history, last = _history(shards[0].history), shards[0]
    return Fit(
        end.u.cpu().numpy(),
        end.objective,
        end.gap,
        end.violation,
        success,
        last.iterations,
        last.copies.rho,
        history,
        None,
    )


def fit_sampled(program: Program, directions: np.ndarray, own: Settings, seed: int, state: Tensor | None = None) -> Fit:
    """Solve the sampled program on fixed unit directions (N, d), whose patterns are those of `program`."""
    X, y = program.X, program.y
    solver = SampledProgram(X, y, torch.as_tensor(directions).to(X), program.loss, program.beta, state)
    floor = TINY * program.objective(torch.zeros(program.shape).to(X))
    iteration, gap = 0, math.inf

    def step(_: None) -> tuple[None, Progress]:
        nonlocal iteration, gap
        iteration += 1
        solver.step()
        if program.loss == "hinge" or iteration % LOOK_EACH == 0 or iteration == own.max_iter:
            gap = solver.look()
        outputs = solver.features @ solver.a
        numbers = {
            "objective": solver.objective,
            "primal_residual": solver.change,
            "dual_residual": gap,
            "accuracy": accuracy(program, outputs),
        }
        _tell(own.verbose, iteration, numbers)
        done = gap <= own.tol * max(solver.objective, floor) if math.isfinite(gap) else False
        return None, Progress(None, float(solver.change), Stop.CONVERGED if done else None, numbers)

    run = drive(step, None, maxiter=own.max_iter, keep=KEYS, on_nonfinite="raise")
    a = solver.a.cpu().numpy()
    u = np.stack([a.clip(0)[:, None] * directions, (-a).clip(0)[:, None] * directions])
    fresh = unit_directions(FRESH, X.shape[1], np.random.default_rng(seed))
    share = violation_share(X, solver.nu, program.beta, torch.as_tensor(fresh).to(X))
    history, nan = _history(run.history), math.nan
    return Fit(u, solver.objective, gap, 0.0, run.success, run.nit, nan, history, solver.a, share)


def _make_solver(program: Program, own: Settings, seed: int, state: Any, exact: ExactStep | None) -> Solver:
    if own.solver == "pdhg":
        return PrimalDual(program, state)
    copies = state or Copies.zero(program, 1.0 if own.rho is None else own.rho)
    if own.solver == "admm":
        primal: Any = exact.with_y(program) if exact else ExactStep(program)
        return ADMM(program, primal, 1.0 if own.dual_step is None else own.dual_step, copies)
    primal = BlockDescent(program, own.rbcd_block, own.rbcd_tol, np.random.default_rng(seed))
    return ADMM(program, primal, 1 / 3 if own.dual_step is None else own.dual_step, copies)


def _history(history: dict[str, list[float]]) -> dict[str, list[float]]:
    return {"time" if key == "seconds" else key: values for key, values in history.items()}


def _tell(verbose: int, iteration: int, numbers: dict[str, float]) -> None:
    if verbose and iteration % max(1, 100 // verbose) == 0:
        text = ", ".join(f"{key} {value:.3e}" for key, value in numbers.items())
        logging.getLogger("steepest.convex").info("iteration %d: %s", iteration, text)
