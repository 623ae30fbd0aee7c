"""Sketched Newton's inner solves beside a factorization and MINRES, whole programs beside peers, and the fitted cost.

System: the KKT matrix of a sparse quadratic program, n variables, n / 2 constraints with four entries ±1/2 a row,
diagonal Hessian in [0.5, 1.5]. MINRES is faster on it than every sketch; no bound is set against it. CPU time.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import numpy as np
from scipy.optimize import LinearConstraint
from scipy.sparse.linalg import splu

from _rows import Row, alone, compared, fastest, fitted, interleaved, rows_of
from steepest.constrained import sketch_and_project, sketched_newton
from steepest.constrained._sketch_and_project import Blocks
from steepest.core.extras import installed
from steepest.studies.sketched_newton_solvers import ipopt_quadratic, trust_constr_quadratic
from steepest.studies.sketched_newton_systems import LIMIT_S, kkt_system, minres_to
from steepest.studies.test_problems import quadratic_program

N = 10_000
CPU = time.process_time


def bench(progress: Callable[[float], None] | None = None) -> list[Row]:
    """Measure all rows."""
    return rows_of([inner_solves, sweep, programs], progress)


def inner_solves() -> list[Row]:
    """To a relative residual of 1e-1; the factorization is exact and runs once."""
    K, b = kkt_system(N, 0)
    ours = partial(sketch_and_project, K, b, rtol=1e-1, acceleration="cg", random_state=0)
    plain = partial(sketch_and_project, K, b, rtol=1e-1, random_state=0)
    z, info = ours()
    if info or np.linalg.norm(K @ z - b) > 1e-1 * np.linalg.norm(b):
        raise RuntimeError("the sketched solve stopped before its tolerance")
    tasks = {"ours": ours, "blocks without acceleration": plain, "MINRES": partial(minres_to, K, b, 1e-1)}
    seconds = interleaved(tasks, 5, CPU)
    start = CPU()
    splu(K.tocsc()).solve(b)
    seconds["splu"] = [CPU() - start] * 5
    start = CPU()
    splu(K.tocsc(), permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.01).solve(b)
    seconds["splu by minimum degree"] = [CPU() - start] * 5
    what = "inner solve to 1e-1, d = 15 000"
    return [
        compared("splu", seconds, "splu", "<= 0.2", what + ", the factorization once"),
        compared("splu by minimum degree", seconds, "splu by minimum degree", None, what + ", the factorization once"),
        compared("without acceleration", seconds, "blocks without acceleration", None, what),
        compared("MINRES", seconds, "MINRES", None, what + "; above 1 MINRES is faster"),
    ]


def sweep() -> list[Row]:
    """One pass over all blocks; the limit is one product with the matrix and one with its transpose."""
    sizes, seconds = (8_000, 16_000, 32_000, 64_000), []
    for n in sizes:
        K, b = kkt_system(n, 0)
        blocks = Blocks(K, b, np.zeros(len(b)), 256, "none", np.random.default_rng(0), grow=False)

        def one_pass(blocks: Blocks = blocks, b: np.ndarray = b) -> None:
            for block in blocks.blocks:
                block.project(blocks.z, b)

        seconds.append(fastest(one_pass, 15, CPU))
    product = fastest(partial(lambda K, b: K.T @ (K @ b), K, b), 15, CPU)
    return [
        fitted("pass against order", sizes, seconds, "<= 1.2", "blocks of 256 rows, d = 12 000 to 96 000, CPU time"),
        alone("pass against products", seconds[-1] / product, "x", None,
              "a pass over all blocks, in products with the matrix and its transpose, d = 96 000"),
    ]  # fmt: skip


def programs() -> list[Row]:
    """The whole program to a KKT residual of 1e-6; a peer that is stopped at its limit needs at least that long."""
    H, G, g, c = quadratic_program(N, N // 2, np.random.default_rng(0))

    def ours() -> None:
        found = sketched_newton(
            lambda x: float(x @ (H @ x) / 2 + g @ x), np.zeros(N), jac=lambda x: H @ x + g, hess=lambda x: H,
            constraints=LinearConstraint(G, c, c), acceleration="cg", random_state=0,
        )  # fmt: skip
        if not found.success:
            raise RuntimeError(found.message)

    seconds = interleaved({"ours": ours}, 3, CPU)
    peers = {"trust-constr": trust_constr_quadratic}
    if installed("casadi"):
        peers["Ipopt"] = ipopt_quadratic
    rows = []
    for name, peer in peers.items():
        taken, kkt = peer(H, G, g, c, 1e-6, LIMIT_S)
        what = f"sparse quadratic program, n = 10 000, to 1e-6; {name} ends at KKT {kkt:.0e}"
        rows.append(compared(name, seconds | {name: [taken] * 3}, name, "<= 0.33", what))
    return rows
