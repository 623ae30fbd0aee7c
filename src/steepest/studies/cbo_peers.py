"""Minimizers beside CBO on one account: the same functions, evaluations counted and ended by the objective itself."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from steepest.core.extras import installed, require
from steepest.particles import minimize_cbo
from steepest.particles.test_functions import FUNCTIONS

__all__ = ["NEVERGRAD", "PACKAGES", "PARTICLES", "SIGMA", "Course", "Task", "course"]

Array = NDArray[np.float64]

PARTICLES, SIGMA, ALPHA, DT = 200, 5.0, 1e5, 0.01
NEVERGRAD = {"Nevergrad CMA": "CMA", "Nevergrad DE": "DE", "Nevergrad PSO": "PSO", "NGOpt": "NGOpt"}
PACKAGES = {
    "CBO": "torch", "cbx": "cbx", "CMA-ES": "cma", "differential evolution": "scipy", "dual annealing": "scipy",
    **dict.fromkeys(NEVERGRAD, "nevergrad"),
}  # fmt: skip


@dataclass(frozen=True)
class Task:
    """A method on a test function in d dimensions whose minimizer was moved to a random place in its box."""

    method: str
    function: str
    d: int
    budget: int
    seed: int


@dataclass(frozen=True)
class Course:
    """The best value after so many evaluations, and what all of them cost in CPU seconds."""

    evaluations: tuple[int, ...]
    best: tuple[float, ...]
    seconds: float


class _Spent(Exception):
    pass


@dataclass
class _Account:
    """The moved function; it remembers the best value and ends a run that has spent its budget."""

    function: Callable[[Array], Array]
    minimizer: Array
    budget: int
    spent: int = 0
    best: float = math.inf
    evaluations: list[int] = field(default_factory=list)
    trail: list[float] = field(default_factory=list)

    def many(self, x: Array) -> Array:
        """Evaluate at (m, d)."""
        left = self.budget - self.spent
        if left <= 0:
            raise _Spent
        f = np.asarray(self.function(x - self.minimizer))
        self.spent += min(len(x), left)
        self.best = min(self.best, float(f[:left].min()))
        if not self.evaluations or self.spent >= 1.1 * self.evaluations[-1] or self.spent == self.budget:
            self.evaluations.append(self.spent)
            self.trail.append(self.best)
        return f

    def one(self, x: Array) -> float:
        """Evaluate at (d,)."""
        return float(self.many(np.asarray(x, float)[None])[0])


def course(task: Task) -> Course | None:
    """Run a method at its defaults until the budget is spent; None without its package."""
    if not installed(PACKAGES[task.method]):
        return None
    torch.set_num_threads(1)
    f, rng = FUNCTIONS[task.function], np.random.default_rng(task.seed)
    low, high = f.bounds
    z = rng.uniform(low / 2, high / 2, task.d)  # the same for all methods; their starts are their own
    rng = np.random.default_rng([task.seed, 1 + list(PACKAGES).index(task.method)])
    account = _Account(f, z, task.budget)
    run = RUNS.get(task.method, _nevergrad)
    start = time.process_time()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            run(account, task, (low, high), rng)
    except _Spent:
        pass
    seconds = time.process_time() - start
    if account.evaluations[-1] < task.budget:  # it stopped by itself and would not have improved
        account.evaluations.append(task.budget)
        account.trail.append(account.best)
    return Course(tuple(account.evaluations), tuple(account.trail), seconds)


Run = Callable[[_Account, Task, tuple[float, float], np.random.Generator], object]


def _cbo(account: _Account, task: Task, box: tuple[float, float], rng: np.random.Generator) -> None:
    minimize_cbo(
        account.many, rng.uniform(*box, (PARTICLES, task.d)), sigma=SIGMA, alpha=ALPHA, dt=DT, tol=0.0,
        maxiter=task.budget, vectorized=True, seed=task.seed,
    )  # fmt: skip


def _cbx(account: _Account, task: Task, box: tuple[float, float], rng: np.random.Generator) -> None:
    dynamics: Any = require("cbx.dynamics", "peers", what="cbx")
    x = rng.uniform(*box, (PARTICLES, task.d))
    run = dynamics.CBO(
        account.many, f_dim="2D", x=x[None], noise="anisotropic", sampler=lambda size: rng.standard_normal(size),
        check_f_dims=False, alpha=ALPHA, lamda=1.0, dt=DT, sigma=SIGMA, verbosity=0,
    )  # fmt: skip
    while True:
        run.step()


def _cma(account: _Account, task: Task, box: tuple[float, float], rng: np.random.Generator) -> None:
    cma: Any = require("cma", "peers", what="CMA-ES")
    options = {"bounds": list(box), "seed": np.nan, "verbose": -9,
               "CMA_diagonal": task.d > 200,  # the full covariance would take an hour there
               "randn": lambda *shape: rng.standard_normal(shape)}  # fmt: skip
    width = box[1] - box[0]
    while True:  # restarts
        run = cma.CMAEvolutionStrategy(rng.uniform(*box, task.d), 0.3 * width, options)
        while not run.stop():
            points = run.ask()
            run.tell(points, account.many(np.asarray(points)).tolist())


def _evolution(account: _Account, task: Task, box: tuple[float, float], rng: np.random.Generator) -> None:
    from scipy.optimize import differential_evolution

    differential_evolution(
        lambda x: account.many(x.T), [box] * task.d, vectorized=True, updating="deferred", polish=False, tol=0.0,
        init=rng.uniform(*box, (PARTICLES, task.d)), maxiter=task.budget, rng=rng,
    )  # fmt: skip


def _annealing(account: _Account, task: Task, box: tuple[float, float], rng: np.random.Generator) -> None:
    from scipy.optimize import dual_annealing

    dual_annealing(account.one, [box] * task.d, maxiter=task.budget, maxfun=task.budget, rng=rng)


def _nevergrad(account: _Account, task: Task, box: tuple[float, float], rng: np.random.Generator) -> None:
    nevergrad: Any = require("nevergrad", "peers", what=task.method)
    parameters = nevergrad.p.Array(init=rng.uniform(*box, task.d)).set_bounds(*box)
    parameters.random_state.seed(task.seed)
    made = nevergrad.optimizers.registry[NEVERGRAD[task.method]](parametrization=parameters, budget=task.budget)
    while True:
        guess = made.ask()
        made.tell(guess, account.one(guess.value))


RUNS: dict[str, Run] = {
    "CBO": _cbo, "cbx": _cbx, "CMA-ES": _cma, "differential evolution": _evolution, "dual annealing": _annealing,
}  # fmt: skip
