"""Sketched Newton minimizes under equality constraints, its Newton systems solved by random sketches, roughly at first.

It is for those who fit or control something under smooth equations (design under a discretized differential equation,
regression on a sphere) and call `scipy.optimize.minimize`: the system of each iteration is solved only as exactly as
descent on an exact augmented Lagrangian needs. Here: the classical test problems from their standard starts beside
SLSQP, trust-constr, Ipopt and the paper's baseline (`studies.sketched_newton_solvers`), failures counted; constrained
logistic regression; control of Poisson's equation sparse; rates on quadratics; and large sparse systems
beside a factorization and MINRES, the rival that is not beaten (`studies.sketched_newton_systems`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import LinearConstraint
from threadpoolctl import threadpool_limits

from steepest.constrained import sketched_newton
from steepest.core.parallel import ordered_map
from steepest.studies import sketched_newton_systems as systems
from steepest.studies.claim import Claim, Figure, Paper, Peer, Picture, bootstrap_interval
from steepest.studies.context import Context
from steepest.studies.sketched_newton_paper import run_paper
from steepest.studies.sketched_newton_solvers import BASELINE, available, solve_named
from steepest.studies.sketched_newton_solvers import PEERS as PEER_PACKAGES
from steepest.studies.test_problems import PROBLEMS, control_problem, logistic_problem, quadratic_program

AREA = "constrained"

PAPER = Paper(
    title="Constrained Optimization via Exact Augmented Lagrangian and Randomized Iterative Sketching",
    authors="Ilgee Hong, Sen Na, Michael W. Mahoney, Mladen Kolar",
    venue="ICML",
    year=2023,
    url="https://arxiv.org/abs/2305.18379",
)

SKETCHES = ("gaussian", "kaczmarz", "sparse", "srht")
_CUTEST = "47 problems of CUTEst, Sec. 5.1"
_THEORY = "Secs. 3 and 4"

# fmt: off
CLAIMS = [  # id, what it says, the paper's number, bound, unit, scales, invariant
    Claim("table-gaussian", "It solves the regular test problems from their standard starts: normal sketches, the seed "
          "with the fewest.", _CUTEST, ">= 25", "problems of 25", "quick full"),
    Claim("table-kaczmarz", "So it does with equations drawn at random.", _CUTEST, ">= 25", "problems of 25",
          "quick full"),
    Claim("table-sparse", "The same with random signs in random columns.", "not in the paper", "reported",
          "problems of 25", "full"),
    Claim("table-srht", "The same with a randomized Hadamard transform.", "not in the paper", "reported",
          "problems of 25", "full"),
    Claim("table-rank", "Where the Jacobian has no full rank (HS61) it says so.", "assumed away", "== 1",
          "share of runs", "quick full", True),
    *(Claim(f"peer-{name.lower()}", f"Problems that {name} solves under the same rule.", "not in the paper", "reported",
            "problems of 25", "quick full") for name in PEER_PACKAGES),
    Claim("exact-fallbacks", "How many systems of these problems were solved directly in the end, because sketches "
          "stalled.", "not in the paper", "reported", "share of iterations", "quick full"),
    Claim("evaluations", "It needs no more evaluations of f and its gradient than the paper's baseline, GMRES with an "
          "l1 penalty.", "fewer, Fig. 2", "<= 1.0", "ratio, median problem", "quick full"),
    Claim("logistic-breast-cancer", "It reaches the tolerance on logistic regression under ten equations and a unit "
          "norm: breast cancer.", "7 LIBSVM sets, Sec. 5.2", "== 1", "share of runs", "quick full"),
    Claim("logistic-digits", "The same on digits, one against the rest.", "7 LIBSVM sets, Sec. 5.2", "== 1",
          "share of runs", "quick full"),
    *(Claim(f"control-kkt-{N}", f"It solves the control problem, {N} x {N} points.", "Sec. 5.3", "<= 1e-4",
            "KKT residual", "quick full") for N in (3, 15)),
    *(Claim(f"control-solution-{N}", f"State and control are those of a direct solve, {N} x {N} points.", "Sec. 5.3",
            "<= 1e-5", "largest difference", "quick full") for N in (3, 15)),
    Claim("control-kkt-63", "The same, 63 x 63 points.", "not in the paper", "reported", "KKT residual", "full"),
    Claim("descent-slope", "At every accepted step of every run the direction descends as much as it must.", _THEORY,
          "== 1", "share of steps", "quick full", True),
    Claim("descent-armijo", "At every accepted step of every run Armijo's condition holds.", _THEORY, "== 1",
          "share of steps", "quick full", True),
    Claim("descent-accuracy", "Every inner solve is as exact as asked, or was solved directly.", _THEORY, "== 1",
          "share of steps", "quick full", True),
    Claim("unit-step", "Near the solution the full step is taken: last three steps.", "Theorem, Sec. 4", "== 1",
          "share of problems", "quick full"),
    Claim("linear-rate", "On quadratics the KKT residual falls at least by the accuracy of the inner solve.", _THEORY,
          "== 1", "share of steps", "quick full", True),
    Claim("superlinear", "With ever more exact solves convergence is superlinear: last ratio of residuals over first.",
          _THEORY, "< 0.2", "ratio, worst run", "quick full"),
    Claim("inner-splu", "Its inner solve to 1e-1 is faster than a sparse factorization: d = 15,000.",
          "cheaper at scale", ">= 5", "x faster", "full"),
    Claim("inner-splu-small", "The same at d = 3,000.", "cheaper at scale", "reported", "x faster", "quick full"),
    Claim("inner-splu-ordered", "The same against a factorization in minimum-degree order, not SciPy's default.",
          "not in the paper", "reported", "x faster", "quick full"),
    Claim("inner-plain", "The same without acceleration.", "cheaper at scale", "reported", "x faster", "quick full"),
    Claim("inner-minres", "The same against MINRES, below 1 where MINRES is faster.", "not in the paper", "reported",
          "x faster", "quick full"),
    Claim("sweep-exponent", "A pass over all blocks costs in proportion to the size.", "O(nnz)", "<= 1.2",
          "exponent of d", "quick full"),
    Claim("scale-peers", "A whole sparse quadratic program with 10,000 variables, beside the fastest peer.",
          "not in the paper; target of ours", ">= 3", "x faster", "full"),
    Claim("paper-cutest", "It reaches the tolerance on CUTEst's problems with equalities.", _CUTEST, "== 1",
          "share of problems", "paper"),
    Claim("paper-logistic", "It reaches the tolerance on the LIBSVM sets.", "7 sets, Sec. 5.2", "== 1",
          "share of runs", "paper"),
]
# fmt: on

PEERS = [
    *(Peer(name, package) for name, package in PEER_PACKAGES.items()),
    Peer("MINRES", "scipy"),
    Peer("sparse LU", "scipy"),
]
OPTIONS: dict[str, str] = {}

_RUNS = "25 regular test problems from standard starts, tolerance 1e-6, one thread."
FIGURES = [
    Figure("profile", "All 25 problems are solved; trust-constr and Ipopt need fewer evaluations", "profile",
           "evaluations, relative to the fewest on each problem", "share of problems solved", log_x=True,
           caption=_RUNS + " Evaluations of f and gradient; failures never come up. Median over seeds of ours."),
    Figure("rates", "Constant accuracy converges linearly, growing accuracy superlinearly", "rates", "iteration",
           "KKT residual", log_y=True,
           caption="Quadratic with 48 variables, 16 constraints; dashed, the product of the residuals of the inner "
           "solves: the bound of theory, on which the measured lines lie."),
    Figure("inner", "To rough accuracy sketches beat a factorization, and MINRES beats both", "inner", "CPU seconds",
           "residual of the KKT system, relative", log_x=True, log_y=True,
           caption="Sparse system, four entries a row of the Jacobian; vertical, when LU (in the better of two "
           "orders) has its answer."),
    Figure("sweep", "A pass over all blocks costs nearly in proportion to the size", "sweep", "order d of the system",
           "milliseconds", log_x=True, log_y=True, caption="Blocks of 256 rows, CPU time, fastest of fifteen."),
    Figure("logistic", "Logistic regression under equations takes a dozen iterations", "logistic", "iteration",
           "KKT residual", log_y=True,
           caption="Ten random equations and a unit norm, from ones; median and 10-90 % over seeds."),
]  # fmt: skip


def draw_control(figure: Any, arrays: Mapping[str, NDArray[Any]], ink: Any) -> None:
    """Target, state and control."""
    axes = figure.subplots(1, 3)
    for ax, name, title in zip(axes, ("target", "state", "control"), ("target", "state W", "control Z"), strict=True):
        image = ax.imshow(arrays[name], cmap=ink.sequential, extent=(-1, 1, -1, 1), origin="lower")
        ax.set_title(title, color=ink.text)
        ax.set_xticks([-1, 1])
        ax.set_yticks([-1, 1])
        bar = figure.colorbar(image, ax=ax, shrink=0.7, orientation="horizontal")
        bar.outline.set_visible(False)
        for spine in ax.spines.values():
            spine.set_visible(False)


PICTURES = [
    Picture("control", "The control drives the state as near to the target as its price allows", "control",
            draw_control, size=(7.6, 3.8),
            caption="Poisson's equation on (-1, 1)^2, zero on the boundary, 15 x 15 points: 450 variables and 225 "
            "constraints.",
            alt="Three square maps: a target that is nearly constant, a state that is low in the middle, zero at the "
            "boundary, and a control that is largest in the middle.")
]  # fmt: skip

SNIPPET = """\
import numpy as np
from scipy.optimize import NonlinearConstraint, minimize
from steepest.constrained import sketched_newton

sphere = NonlinearConstraint(lambda x: x @ x - 1, 0, 0, jac=lambda x: 2 * x[None],
                             hess=lambda x, v: 2 * v[0] * np.eye(x.size))
A = np.diag(np.arange(1.0, 21.0))
result = minimize(lambda x: x @ A @ x, np.ones(20), jac=lambda x: 2 * A @ x, hess=lambda x: 2 * A,
                  method=sketched_newton, constraints=sphere, options={"random_state": 0})
print(result.message, "smallest eigenvalue:", result.fun, "multiplier:", result.lam)
"""

REASONS: dict[str, str] = {
    "evaluations": "a tie on the median problem, because both make the same Newton steps: solved exactly on both "
    "sides, 17 of 24 problems take the same number of iterations and the median ratio is 1.00. Other starting "
    "penalties (0.1 to 100 times) leave it between 1.00 and 1.05. Nearly exact solves of ours alone give 0.84: "
    "sketches stop just below the accuracy asked for, which costs single iterations.",
    "sweep-exponent": "the entries of matrix and factors grow with exponents 1.00 and 0.93, but they leave the cache: "
    "the product with the matrix alone has exponent 1.13, and passes over one block again and again have 1.05.",
    "scale-peers": "Ipopt factors this system with MUMPS and is done in 1.7 s of CPU time where ours takes 1.0 s, a "
    "third of it for the test of rank. Blocks of 1,024 rows instead of 256 take 0.63 s, a smaller first delta 0.71 s.",
}

WHEN_NOT = [
    "There are inequalities or bounds: it takes equalities alone. Use trust-constr or Ipopt.",
    "The problem is small: a dense factorization costs microseconds, and SLSQP is as reliable on the test problems.",
    "The KKT system is well conditioned and sparse: MINRES solves it in a fraction of the time that sketches take.",
    "The system is ill conditioned: sketches converge at a rate set by its squared condition number; they grow until "
    "one direct solve ends it, and `history['exact_fallback']` says how often.",
    "Second derivatives are out of reach: Hessians by differences cost n gradients an iteration.",
]


def run(ctx: Context) -> None:
    """Measure with one thread, since small systems gain nothing from more; see the module."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            _measure(ctx)
    finally:
        torch.set_num_threads(before)


def _measure(ctx: Context) -> None:
    if ctx.scale == "paper":
        run_paper(ctx)
        return
    ctx.note(f"{len(_seeds(ctx))} seeds of ours for the table, the logistic regressions and the rates; peers, control "
             "and the large systems, where no seed or only the order of blocks matters, run once."
             + (" The logistic regressions have five seeds at full." if ctx.scale == "quick" else ""))  # fmt: skip
    watched: list[Any] = []  # the results of all runs of ours
    table(ctx, watched)
    ctx.progress(0.4)
    logistic(ctx, watched)
    ctx.progress(0.5)
    control(ctx, watched)
    rates(ctx, watched)
    ctx.progress(0.6)
    promises_of_every_step(ctx, watched)
    systems.cost_of_a_sweep(ctx)
    systems.inner_solves(ctx)
    ctx.progress(0.8)
    if ctx.wants("scale-peers"):
        systems.whole_programs(ctx)


# ------------------------------------------------------------------------------------------------------ the test table


def table(ctx: Context, watched: list[Any]) -> None:
    """All problems, all solvers."""
    names = [p.name for p in PROBLEMS if p.regular]
    if ctx.scale == "tiny":
        names = ["HS6", "HS28", "HS40", "HS78"]
    singular = next(p.name for p in PROBLEMS if not p.regular)
    seeds, sketches = _seeds(ctx), [s for s in SKETCHES if ctx.wants(f"table-{s}")]
    jobs = [(sketch, name, seed) for sketch in sketches for seed in seeds for name in (*names, singular)]
    how: Any = ctx.pick(quick="serial", full="processes", paper="serial")
    found = dict(zip(jobs, ordered_map(solve_named, jobs, backend=how, n_workers=2), strict=True))

    costs: dict[str, list[float]] = {}  # solver -> evaluations on every problem
    for sketch in sketches:
        runs = [[found[sketch, name, seed] for name in names] for seed in seeds]
        ctx.measured(f"table-{sketch}", min(sum(o.solved for o in seed) for seed in runs))
        costs[f"sketched Newton, {sketch}"] = list(np.median([[o.cost for o in seed] for seed in runs], axis=0))
        watched += [o.result for seed in runs for o in seed]
    ctx.measured("table-rank", float(np.mean([o.result.status == 2 for job, o in found.items() if job[1] == singular])))
    for peer, package in PEER_PACKAGES.items():
        if not available(peer):
            ctx.skipped(f"peer-{peer.lower()}", f"{package} is not installed: pip install {package}")
            continue
        outcomes = [solve_named((peer, name, ctx.seed)) for name in names]
        costs[peer] = [o.cost for o in outcomes]
        ctx.measured(f"peer-{peer.lower()}", sum(o.solved for o in outcomes))
        failed = [name for name, o in zip(names, outcomes, strict=True) if not o.solved]
        if failed:
            ctx.note(f"{peer} did not solve {', '.join(failed)}.")
    results = {(name, seed): found["gaussian", name, seed].result for seed in seeds for name in names}
    _fallbacks(ctx, results)
    last = [all(a == 1 for a in r.history["alpha"][-3:]) for r in results.values()]
    ctx.measured("unit-step", float(np.mean(last)))
    _evaluations(ctx, costs)
    _profile(ctx, costs)


def _fallbacks(ctx: Context, results: Mapping[tuple[str, int], Any]) -> None:
    """Share of the iterations that a direct solve ended; BYRDSPHR alone has more iterations than all others."""
    ended = [np.array(r.history["exact_fallback"]) for r in results.values()]
    others = [e for (name, _), e in zip(results, ended, strict=True) if name != "BYRDSPHR"]
    ctx.measured("exact-fallbacks", float(np.concatenate(ended).mean()))
    ctx.note(f"direct solves ended {np.concatenate(others).mean():.0%} of the iterations without BYRDSPHR, which alone "
             f"makes {1 - sum(map(len, others)) / sum(map(len, ended)):.0%} of all.")  # fmt: skip


def _seeds(ctx: Context) -> list[int]:
    """Five at full, unless asked otherwise."""
    return ctx.seeds if ctx.scale != "full" or ctx.seeds_asked else [ctx.seed + 1 + i for i in range(5)]


def _evaluations(ctx: Context, costs: Mapping[str, list[float]]) -> None:
    """Ratios to the baseline and to the best peer, problem by problem; a failure counts as infinitely many."""
    own = np.array(costs["sketched Newton, gaussian"])

    def ratios(peer: str) -> NDArray[Any]:
        theirs = np.array(costs[peer])
        with np.errstate(invalid="ignore"):
            found = own / theirs
        return found[~np.isnan(found)]

    to_baseline = ratios(BASELINE)
    finite = to_baseline[np.isfinite(to_baseline)]
    ctx.measured("evaluations", float(np.median(to_baseline)), bootstrap_interval(finite, statistic=np.median))
    medians = {peer: float(np.median(ratios(peer))) for peer in PEER_PACKAGES if peer in costs}
    for peer, value in medians.items():
        ctx.note(f"evaluations of sketched Newton (gaussian) over those of {peer}: {value:.2f}, median problem.")
    best = max(medians, key=lambda p: medians[p])
    if ctx.scale != "full":
        ctx.against(best, 1 / medians[best], ahead="fewer evaluations", behind="more evaluations",
                    what="25 classical test problems, median")  # fmt: skip


def _profile(ctx: Context, costs: Mapping[str, list[float]]) -> None:
    """Performance profile: share of the problems solved within a factor of the fewest evaluations."""
    fewest = np.min(list(costs.values()), axis=0)
    largest = max(v / few for values in costs.values() for v, few in zip(values, fewest, strict=True) if v < math.inf)
    factors = np.geomspace(1, max(100, 1.1 * largest), 101)
    for solver, values in costs.items():
        with np.errstate(invalid="ignore"):
            relative = np.where(np.isfinite(values), np.divide(values, fewest), math.inf)
        ctx.series("profile", [(t, float(np.mean(relative <= t * (1 + 1e-12)))) for t in factors], method=solver)


# ------------------------------------------------------------------------------------------------------- applications


def logistic(ctx: Context, watched: list[Any]) -> None:
    """Logistic regression under ten random equations and a unit norm."""
    seeds = _seeds(ctx)
    for claim, name in (("logistic-breast-cancer", "breast_cancer"), ("logistic-digits", "digits")):
        X, target = ctx.data(name)
        if ctx.scale == "tiny":
            X, target = X[:300], target[:300]
        X = (X - X.mean(axis=0)) / np.maximum(X.std(axis=0), 1e-9)
        positive = 1 if name == "breast_cancer" else 3
        reached = []
        for seed in seeds:
            arguments = logistic_problem(X, np.where(target == positive, 1.0, -1.0), np.random.default_rng(seed))
            found = sketched_newton(x0=np.ones(X.shape[1]), lam0=np.ones(11), tol=1e-4, random_state=seed, **arguments)
            watched.append(found)
            reached.append(found.success and found.kkt <= 1e-4)
            ctx.series("logistic", found.history["kkt"], method=name.replace("_", " "), seed=seed)
        ctx.measured(claim, float(np.mean(reached)))


def control(ctx: Context, watched: list[Any]) -> None:
    """Control of Poisson's equation."""
    for N in (3, 15, 63):
        if not ctx.wants(f"control-kkt-{N}") or (ctx.scale == "tiny" and N == 63):
            continue
        problem = control_problem(N)
        size = N * N
        start = {"x0": np.ones(2 * size), "lam0": np.ones(size)} | problem.arguments
        found = ctx.timed(
            f"control {N}",
            partial(sketched_newton, tol=1e-4, acceleration="cg", random_state=ctx.seed, **start),
        )
        watched.append(found)
        ctx.measured(f"control-kkt-{N}", found.kkt)
        exact, _ = problem.solution()
        direct = sum(found.history["exact_fallback"])
        ctx.note(f"control, N = {N}: {found.nit} iterations, {direct} of them ended in a direct solve; largest "
                 f"difference to the direct solution {np.abs(found.x - exact).max():.1e}.")  # fmt: skip
        if N < 63:
            ctx.measured(f"control-solution-{N}", float(np.abs(found.x - exact).max()))
        if N == 15:
            shown = {"target": problem.target, "state": found.x[:size], "control": found.x[size:]}
            ctx.arrays("control", **{name: values.reshape(N, N) for name, values in shown.items()})


# --------------------------------------------------------------------------------------------------------------- rates


def rates(ctx: Context, watched: list[Any]) -> None:
    """Quadratics, dense and sparse: the KKT residual against the residuals of the inner solves."""
    kept, ratios, single = [], [], 0
    kinds = [*((sketch, True) for sketch in SKETCHES), ("blocks", False)]
    for sketch, dense in kinds:
        for seed in _seeds(ctx):
            for label, theta in SCHEDULES.items():
                found = _quadratic_run(seed, theta, sketch if dense else None)
                watched.append(found)
                kkt, residual = np.array(found.history["kkt"]), np.array(found.history["residual"])
                kept += list(kkt[1:] <= residual * kkt[:-1] * (1 + 1e-9) + 1e-12)
                if callable(theta):
                    steps = kkt[1:] / kkt[:-1]
                    single += len(steps) == 1
                    if len(steps) > 1:
                        ratios.append(steps[-1] / steps[0] if found.success else math.inf)
                if sketch == "gaussian" and seed == ctx.seeds[0]:
                    ctx.series("rates", kkt, method=label, seed=seed)
                    bound = kkt[0] * np.cumprod(np.r_[1.0, residual])
                    ctx.series("rates", np.maximum(bound, 1e-15), method=f"theory, {label}", seed=seed)
    ctx.measured("linear-rate", float(np.mean(kept)))
    ctx.measured("superlinear", max(ratios, default=math.inf))
    ctx.note(f"superlinear: {len(ratios)} runs; {single} ended in one step, solved directly, and have no ratio.")


def _falling(k: int) -> float:
    return 10.0 ** -(k + 1)


SCHEDULES: dict[str, Any] = {"theta = 1": 1.0, "theta = 10^-(k+1)": _falling}


def _quadratic_run(seed: int, theta: Any, sketch: str | None) -> Any:
    """A quadratic program with orthonormal constraints and this sketch, or sparse in accelerated blocks (None)."""
    rng = np.random.default_rng(seed)
    H, G, g, c = quadratic_program(48, 16, rng)
    if sketch is not None:
        H, G = H.toarray(), np.linalg.qr(rng.standard_normal((48, 16)))[0].T
    how = {"sketch_size": 8, "acceleration": "cg"} if sketch is None else {"sketch": sketch}
    return sketched_newton(
        lambda x: float(x @ (H @ x) / 2 + g @ x), np.ones(48), jac=lambda x: H @ x + g, hess=lambda x: H,
        constraints=LinearConstraint(G, c, c), theta=theta, tol=1e-10, random_state=seed, **how,
    )  # fmt: skip


def promises_of_every_step(ctx: Context, watched: list[Any]) -> None:
    """Slope, Armijo and accuracy at every accepted step of all runs so far."""
    slope, armijo, accuracy = [], [], []
    for found in watched:
        h = {name: np.asarray(values, dtype=float) for name, values in found.history.items()}
        slope += list(h["slope"] <= -h["eta2"] / 2 * h["kkt"][:-1] ** 2)
        rounding = 1e-13 * np.maximum(1, np.abs(h["merit"]))
        armijo += list(h["merit_new"] <= h["merit"] + 0.1 * h["alpha"] * h["slope"] + rounding)
        accuracy += list((h["residual"] <= np.maximum(h["delta"], 1e-14) * (1 + 1e-9)) | (h["exact_fallback"] == 1))
    ctx.measured("descent-slope", float(np.mean(slope)))
    ctx.measured("descent-armijo", float(np.mean(armijo)))
    ctx.measured("descent-accuracy", float(np.mean(accuracy)))
    ctx.note(f"promises checked at {len(slope)} accepted steps of {len(watched)} runs.")
