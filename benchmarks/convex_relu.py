"""Convex ReLU networks beside cvxpy and pyscnn: cost of an iteration and limit in matrix products. CPU time."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch

from _rows import Row, alone, compared, fastest, fitted, interleaved, rows_of
from steepest.convex._admm import ADMM, Copies, ExactStep
from steepest.core.extras import MissingExtra, installed
from steepest.studies import convex_relu_peers as peers
from steepest.studies.convex_relu_optima import fit

CPU = time.process_time
N, D, P, BETA, CLOSE = 400, 31, 50, 1.0, 1e-3


def bench(progress: Callable[[float], None] | None = None) -> list[Row]:
    """Measure all rows."""
    return rows_of([iterations, limit, whole_fits], progress)


def _solver(n: int, d: int, patterns: int) -> ADMM:
    X, y = peers.planted(n, d, 0)
    p = peers.program(X, y, np.random.default_rng(0).random((patterns, n)) < 0.5, BETA)
    solver = ADMM(p, ExactStep(p), 1.0, Copies.zero(p, 1.0))
    solver.step()
    return solver


def _step(solver: ADMM) -> Callable[[], None]:
    def step() -> None:
        solver._iteration = 0  # rho stays, and with it the factors
        solver.step()

    return step


def iterations() -> list[Row]:
    """One iteration of ADMM against samples and patterns."""
    sizes, counts = (100, 200, 400, 800, 1600), (50, 100, 200, 400, 800)
    by_samples = [fastest(_step(_solver(n, 20, 50)), 15, CPU) for n in sizes]
    by_patterns = [fastest(_step(_solver(400, 20, k)), 15, CPU) for k in counts]
    return [
        fitted("iteration against samples", sizes, by_samples, "<= 2.1", "d = 20, 50 patterns, n = 100 to 1600"),
        fitted("iteration against patterns", counts, by_patterns, "<= 1.15", "n = 400, d = 20, 50 to 800 patterns"),
    ]


def limit() -> list[Row]:
    """An iteration beside its eight products of 2 P d by n, each 2 n d P multiply-adds, by one matrix product each."""
    solver = _solver(N, D, P)
    u, X = solver.copies.u.reshape(2 * P, D), solver.program.X

    def products() -> None:
        for _ in range(4):
            torch.mm(torch.mm(u, X.T), X)

    seconds = interleaved({"ours": _step(solver), "products alone": products}, 15, CPU)
    return [compared("iteration against products", seconds, "products alone", None, f"n = {N}, d = {D}, {P} patterns")]


def whole_fits() -> list[Row]:
    """To an objective within 1e-3 of the best one known, all by our objective; peers are run once."""
    X, y = peers.planted(N, D, 0)
    gates = np.random.default_rng(0).standard_normal((P, D))
    patterns = (X @ gates.T >= 0).T
    best = peers.optimum(peers.program(X, y, patterns, BETA), 1e-6)[0]
    reached = []
    seconds = interleaved(
        {"ours": lambda: reached.append(fit(X, y, patterns, beta=BETA, tol=CLOSE).objective_)}, 3, CPU
    )
    rows = [alone("objective", max(reached) / best - 1, "relative", "<= 1e-3", "distance to the best one known")]
    what = f"to 1e-3, n = {N}, d = {D}, {P} patterns"
    if installed("cvxpy"):
        taken = peers.clarabel(X, y, patterns, BETA)[2]
        rows.append(compared("Clarabel", seconds | {"Clarabel": [taken] * 3}, "Clarabel", "<= 0.05", what))
        taken = peers.clarabel(X, y, patterns, BETA, tol=1e-2, solver="SCS")[2]
        rows.append(compared("SCS", seconds | {"SCS": [taken] * 3}, "SCS", "<= 0.05", f"{what}, its tolerance 0.01"))
    try:
        for tol in (1e-2, 1e-3, 1e-4, 1e-5, 1e-6):
            taken, objective = peers.pyscnn(X, y, gates, BETA, tol)
            if objective <= best * (1 + CLOSE):
                name = f"{what}, its tolerance {tol:g}"
                rows.append(compared("pyscnn", seconds | {"pyscnn": [taken] * 3}, "pyscnn", "<= 0.5", name))
                break
    except MissingExtra:
        pass
    return rows
