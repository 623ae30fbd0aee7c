"""The solvers that the Sinkhorn-Newton study runs side by side: one door for all, a limit of seconds for each.

Peers stop by rules of their own, so each is asked for more than enough and the error of both marginals is measured
after its return. The time of one that has not reached the tolerance within the limit is a lower bound.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from steepest.core.extras import installed, require
from steepest.studies.sinkhorn_newton_problems import Problem, error
from steepest.transport._kernel import Kernel, sinkhorn_sweeps

__all__ = ["EXACT", "PEERS", "Race", "count_sweeps", "race"]

Array = NDArray[np.float64]
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
    solve = PEERS[peer][1]
    iterative = peer in ITERATIVE
    n, found = TRIAL if iterative else 1, Race(0.0, np.inf, False)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # peers warn of their own difficulties; the error says it
        solve(SMALL, 1.0, 1e-3, 1)  # imports are not timed
        for _ in range(ATTEMPTS):
            begin = time.process_time()
            plan = solve(problem, reg, stop, n)
            seconds = time.process_time() - begin
            reached = error(plan, problem) if np.isfinite(plan).all() else float("inf")
            stuck = found.seconds > 0.1 * limit_s and seconds < 1.2 * found.seconds  # it stopped by itself
            found = Race(seconds, reached, reached <= stop)
            if found.done or not iterative or seconds >= limit_s or stuck:
                break
            n = int(n * min(max(1.2 * limit_s / max(seconds, 1e-6), 2.0), 50.0))
    return found


def _norm(stop: float, p: Problem) -> float:
    """POT's rule is the 2-norm of one marginal: what makes sure of half the error of both."""
    return float(stop / (2 * np.sqrt(max(p.M.shape))))


def _pot(method: str) -> Callable[[Problem, float, float, int], Array]:
    def solve(p: Problem, reg: float, stop: float, n: int) -> Array:
        ot: Any = require("ot", "optim", what="the rows of POT")
        return np.asarray(
            ot.sinkhorn(p.a, p.b, p.M, reg, method=method, numItermax=n, stopThr=_norm(stop, p), warn=False)
        )

    return solve


def _greenkhorn(p: Problem, reg: float, stop: float, n: int) -> Array:
    ot: Any = require("ot", "optim", what="the rows of POT")
    return np.asarray(ot.bregman.greenkhorn(p.a, p.b, p.M, reg, numItermax=n, stopThr=_norm(stop, p), warn=False))


def _dual_lbfgs(p: Problem, reg: float, stop: float, n: int) -> Array:
    ot: Any = require("ot", "optim", what="the rows of POT")
    plan = ot.smooth.smooth_ot_dual(p.a, p.b, p.M, reg, reg_type="kl", numItermax=n, stopThr=_norm(stop, p))
    return np.asarray(plan)


def _emd(p: Problem, reg: float, stop: float, n: int) -> Array:
    ot: Any = require("ot", "optim", what="the rows of POT")
    return np.asarray(ot.emd(p.a, p.b, p.M, numItermax=10**7))


def _geomloss(p: Problem, reg: float, stop: float, n: int) -> Array:
    geomloss: Any = require("geomloss", what="the row of geomloss")
    a, b, M = (torch.from_numpy(x) for x in (p.a, p.b, p.M))
    loss = geomloss.SamplesLoss(
        "sinkhorn", p=1, blur=reg, scaling=0.9, diameter=1.0, debias=False, potentials=True, backend="tensorized",
        cost=lambda x, y: M[None],
    )  # fmt: skip
    dummy = torch.zeros(len(a), 1, dtype=M.dtype), torch.zeros(len(b), 1, dtype=M.dtype)
    f, g = loss(a, dummy[0], b, dummy[1])
    plan: Array = (a[:, None] * b * torch.exp((f.reshape(-1, 1) + g.reshape(1, -1) - M) / reg)).numpy()
    return plan


def _ott(p: Problem, reg: float, stop: float, n: int) -> Array:
    jax: Any = require("jax", what="the row of ott-jax")
    jax.config.update("jax_enable_x64", True)
    require("ott", what="the row of ott-jax")
    from ott.geometry import geometry  # type: ignore[import-not-found,unused-ignore]
    from ott.problems.linear import linear_problem  # type: ignore[import-not-found,unused-ignore]
    from ott.solvers.linear import sinkhorn  # type: ignore[import-not-found,unused-ignore]

    problem = linear_problem.LinearProblem(geometry.Geometry(cost_matrix=p.M, epsilon=reg), p.a, p.b)
    solver = sinkhorn.Sinkhorn(threshold=stop / 2, max_iterations=max(n // 10, 1) * 10)
    return np.asarray(solver(problem).matrix)


Solver = Callable[[Problem, float, float, int], Array]
PEERS: dict[str, tuple[str, Solver]] = {
    "POT sinkhorn": ("ot", _pot("sinkhorn")),
    "POT stabilized": ("ot", _pot("sinkhorn_stabilized")),
    "POT log": ("ot", _pot("sinkhorn_log")),
    "POT greenkhorn": ("ot", _greenkhorn),
    "POT L-BFGS dual": ("ot", _dual_lbfgs),
    "geomloss": ("geomloss", _geomloss),
    "ott-jax": ("ott", _ott),
    EXACT: ("ot", _emd),
}
ITERATIVE = ("POT sinkhorn", "POT stabilized", "POT log", "POT greenkhorn", "POT L-BFGS dual", "ott-jax")


def present() -> list[str]:
    """The peers whose packages are installed."""
    return [name for name, (package, _) in PEERS.items() if installed(package)]
