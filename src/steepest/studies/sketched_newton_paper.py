"""The paper's own settings of the sketched-Newton study: CUTEst through pycutest, and LIBSVM files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import NonlinearConstraint

from steepest.constrained import sketched_newton
from steepest.core.extras import MissingExtra, require
from steepest.studies.context import Context, Unavailable
from steepest.studies.test_problems import logistic_problem

__all__ = ["LIBSVM", "run_paper"]

LIBSVM = ("ionosphere", "mushrooms", "phishing", "sonar", "splice", "a9a", "w8a")
TOL, MAXITER, LARGEST = 1e-4, 10_000, 1000  # official parameter file; number of variables


def run_paper(ctx: Context) -> None:
    """Measure what is here; skip the rest with the reason."""
    reasons = []
    for claim, measure in (("paper-cutest", _cutest), ("paper-logistic", _logistic)):
        try:
            ctx.measured(claim, measure(ctx))
        except (Unavailable, MissingExtra) as missing:
            reasons.append(str(missing))
            ctx.skipped(claim, str(missing))
        ctx.progress(0.5 if claim == "paper-cutest" else 1.0)
    if len(reasons) == 2:
        raise Unavailable("; ".join(reasons))


def _cutest(ctx: Context) -> float:
    """Share of CUTEst's problems with equalities alone, up to 1,000 variables, that reach a KKT residual of 1e-4.

    As in the paper, problems without an objective and those that stop for a Jacobian without full rank are left out.
    """
    cutest: Any = require("pycutest", what="the CUTEst set")
    kinds = {"objective": "linear quadratic sum of squares other", "constraints": "linear quadratic other"}
    names = sorted(cutest.find_problems(**kinds, n=[1, LARGEST], userM=False))
    solved = []
    for name in names:
        p = cutest.import_problem(name)
        if p.m == 0 or p.m > p.n or not p.is_eq_cons.all() or np.isfinite(p.bl[p.bl > -1e20]).any():
            continue
        found = sketched_newton(
            lambda x, p=p: p.obj(x, gradient=True), p.x0, jac=True, hess=lambda x, p=p: p.ihess(x), tol=TOL,
            constraints=NonlinearConstraint(
                p.cons, 0, 0, jac=lambda x, p=p: p.cons(x, gradient=True)[1],
                hess=lambda x, v, p=p: p.hess(x, v) - p.ihess(x),
            ),
            maxiter=ctx.max_steps or MAXITER, random_state=ctx.seed,
        )  # fmt: skip
        if found.status != 2:
            solved.append(found.success)
    ctx.note(f"{sum(solved)} of {len(solved)} problems of CUTEst solved.")
    return float(np.mean(solved))


def _logistic(ctx: Context) -> float:
    """Share of runs on LIBSVM files, of those that lie in the folder given by --data, that reach the tolerance."""
    from sklearn.datasets import load_svmlight_file

    folder = Path(ctx.data("path"))
    files = [file for name in LIBSVM for file in sorted(folder.glob(f"{name}*")) if file.is_file()]
    if not files:
        raise Unavailable(f"no file of {', '.join(LIBSVM)} is in {folder}")
    done = []
    for file in files:
        X, y = load_svmlight_file(str(file))
        X = X.toarray()
        for seed in ctx.seeds:
            arguments = logistic_problem(X, np.where(y == y.max(), 1.0, -1.0), np.random.default_rng(seed))
            n = X.shape[1]
            found = sketched_newton(
                x0=np.ones(n), lam0=np.ones(11), tol=TOL, maxiter=ctx.max_steps or MAXITER, random_state=seed,
                **arguments,
            )  # fmt: skip
            done.append(found.success)
            ctx.series(f"paper {file.name}", found.history["kkt"], method="sketched Newton", seed=seed)
    return float(np.mean(done))
