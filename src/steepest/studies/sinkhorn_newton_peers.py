"""The solvers that the Sinkhorn-Newton study runs side by side: one door for all, a limit of seconds for each.

Peers stop by rules of their own, so each is asked for more than enough and the error of both marginals is measured
after its return. The time of one that has not reached the tolerance within the limit is a lower bound.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from steepest.core.extras import installed, require
from steepest.studies.sinkhorn_newton_problems import Problem, error
from steepest.transport._kernel import Kernel, sinkhorn_sweeps

__all__ = ["EXACT", "PEERS", "Race", "count_sweeps", "race"]

Array = NDArray[np.float64]
Run = Callable[[], Array]
Prepare = Callable[[Problem, float, float, int], Run]
TRIAL, ATTEMPTS = 50, 8  # iterations at first, then as many more as fit in the limit
EXACT = "POT emd"
SMALL = Problem(np.full(2, 0.5), np.full(2, 0.5), np.array([[0.0, 1.0], [1.0, 0.0]]))


@dataclass(frozen=True)
class Race:
    """CPU seconds, error reached, and whether that met the tolerance."""

    seconds: float
    err: float
    done: bool


def count_sweeps(problem: Problem, reg: float, stop: float, cap: int) -> tuple[int, list[float]]:
    """How many sweeps Sinkhorn takes until err < stop, at most `cap`, and the errors: in the absorbed kernel.

    The iterates are those of any log-domain Sinkhorn; a test compares with POT's.
    """
    M = problem.M - problem.M.min()
    start = np.zeros_like(problem.b)
    _, _, errors = sinkhorn_sweeps(Kernel(M / reg), problem.a, problem.b, start, cap, stop=stop)
    return len(errors), errors


def race(peer: str, problem: Problem, reg: float, stop: float, limit_s: float) -> Race:
    """Run a peer until it gets there, stops by itself, or has taken `limit_s` CPU seconds from the start."""
    prepare = PEERS[peer][1]
    iterative = peer not in ONCE
    n, found = TRIAL if iterative else 1, Race(0.0, np.inf, False)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # peers warn of their own difficulties; the error says it
        prepare(SMALL, 1.0, 1e-3, 1)()  # what is loaded at the first call is not timed
        for _ in range(ATTEMPTS):
            run = prepare(problem, reg, stop, n)
            begin = time.process_time()
            plan = run()
            seconds = time.process_time() - begin
            reached = error(plan, problem) if np.isfinite(plan).all() else float("inf")
            stuck = found.seconds > 0.1 * limit_s and seconds < 1.2 * found.seconds  # it stopped by itself
            found = Race(seconds, reached, reached <= stop)
            if found.done or not iterative or seconds >= limit_s or stuck:
                break
            n = int(n * min(max(1.2 * limit_s / max(seconds, 1e-6), 2.0), 50.0))
    return found


# ------------------------------------- a peer: (problem, reg, stop, iterations) -> a call without imports or compiling


def _norm(stop: float, p: Problem) -> float:
    """POT's rule is the 2-norm of one marginal: what makes sure of half the error of both."""
    return float(stop / (2 * np.sqrt(max(p.M.shape))))


def _pot(method: str) -> Prepare:
    def prepare(p: Problem, reg: float, stop: float, n: int) -> Run:
        ot: Any = require("ot", "optim", what="the rows of POT")
        return partial(ot.sinkhorn, p.a, p.b, p.M, reg, method=method, numItermax=n, stopThr=_norm(stop, p), warn=False)

    return prepare


def _greenkhorn(p: Problem, reg: float, stop: float, n: int) -> Run:
    """Its rule is the largest entry of the errors, and an iteration is one row or column."""
    ot: Any = require("ot", "optim", what="the rows of POT")
    largest = stop / (2 * sum(p.M.shape))
    return partial(ot.bregman.greenkhorn, p.a, p.b, p.M, reg, numItermax=20 * n, stopThr=largest, warn=False)


def _dual_lbfgs(p: Problem, reg: float, stop: float, n: int) -> Run:
    ot: Any = require("ot", "optim", what="the rows of POT")
    return partial(ot.smooth.smooth_ot_dual, p.a, p.b, p.M, reg, reg_type="kl", numItermax=n, stopThr=_norm(stop, p))


def _emd(p: Problem, reg: float, stop: float, n: int) -> Run:
    ot: Any = require("ot", "optim", what="the rows of POT")
    return partial(ot.emd, p.a, p.b, p.M, numItermax=10**7)


def _geomloss(p: Problem, reg: float, stop: float, n: int) -> Run:
    """It has no tolerance: `n` steps take the entropy from the largest cost down to reg."""
    geomloss: Any = require("geomloss", what="the row of geomloss")
    a, b, M = (torch.from_numpy(x) for x in (p.a, p.b, p.M))
    first, second = torch.zeros(len(a), 1, dtype=M.dtype), torch.ones(len(b), 1, dtype=M.dtype)

    def cost(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return M.T[None] if x[0, 0, 0] else M[None]  # it is asked for both directions

    loss = geomloss.SamplesLoss(
        "sinkhorn", p=1, blur=reg, scaling=min(max(reg, 1e-6), 0.5) ** (1 / n), diameter=1.0, debias=False,
        potentials=True, backend="tensorized", cost=cost,
    )  # fmt: skip

    def run() -> Array:
        f, g = loss(a, first, b, second)
        plan: Array = (a[:, None] * b * torch.exp((f.reshape(-1, 1) + g.reshape(1, -1) - M) / reg)).numpy()
        return plan

    return run


def _ott(**acceleration: Callable[[Any], Any]) -> Prepare:
    def prepare(p: Problem, reg: float, stop: float, n: int) -> Run:
        jax: Any = require("jax", what="the row of ott-jax")
        jax.config.update("jax_enable_x64", True)
        geometry: Any = require("ott.geometry.geometry", what="the row of ott-jax")
        linear_problem: Any = require("ott.problems.linear.linear_problem", what="the row of ott-jax")
        sinkhorn: Any = require("ott.solvers.linear.sinkhorn", what="the row of ott-jax")
        ways: Any = require("ott.solvers.linear.acceleration", what="the row of ott-jax")
        solver = sinkhorn.Sinkhorn(
            threshold=stop / 2, max_iterations=10 * max(n // 10, 1),
            **{name: make(ways) for name, make in acceleration.items()},
        )  # fmt: skip

        def plan(a: Any, b: Any, M: Any) -> Any:
            return solver(linear_problem.LinearProblem(geometry.Geometry(cost_matrix=M, epsilon=reg), a, b)).matrix

        arrays = [jax.numpy.asarray(x) for x in (p.a, p.b, p.M)]
        compiled = jax.jit(plan).lower(*arrays).compile()
        return lambda: np.asarray(compiled(*arrays))

    return prepare


PEERS: dict[str, tuple[str, Prepare]] = {
    "POT sinkhorn": ("ot", _pot("sinkhorn")),
    "POT stabilized": ("ot", _pot("sinkhorn_stabilized")),
    "POT log": ("ot", _pot("sinkhorn_log")),
    "POT greenkhorn": ("ot", _greenkhorn),
    "POT L-BFGS dual": ("ot", _dual_lbfgs),
    "geomloss": ("geomloss", _geomloss),
    "ott-jax": ("ott", _ott()),
    "ott-jax momentum": ("ott", _ott(momentum=lambda ways: ways.Momentum(start=200))),
    "ott-jax Anderson": ("ott", _ott(anderson=lambda ways: ways.AndersonAcceleration(memory=5))),
    EXACT: ("ot", _emd),
}
ONCE = (EXACT,)  # not stopped by a number of iterations


def present() -> list[str]:
    """The peers whose packages are installed."""
    return [name for name, (package, _) in PEERS.items() if installed(package)]
