"""Sinkhorn-Newton-Sparse brings a transport plan to machine precision in about a hundred cheap iterations.

It is for those who call `ot.sinkhorn` and need sharp plans (little entropy) or marginals that are exact to many digits,
for gradients through the plan or for plans inside another solver. Sinkhorn's sweeps come first; then Newton steps on a
Hessian of which only the large entries are kept. Here: the paper's problems (random assignment, pairs of images,
densities on a grid), iterations and CPU seconds beside POT, geomloss and ott-jax, the order of convergence, and how the
cost of a step grows (`studies.sinkhorn_newton_problems`, `studies.sinkhorn_newton_peers`). ``ot.emd`` stands in the
table as what it is: the exact solver of another problem, the one without entropy.
"""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from threadpoolctl import threadpool_limits

from steepest.studies import sinkhorn_newton_paper as paper
from steepest.studies.claim import Claim, Figure, Paper, Peer, bootstrap_interval, slope_fit
from steepest.studies.context import Context
from steepest.studies.sinkhorn_newton_peers import EXACT, Race, count_sweeps, present, race
from steepest.studies.sinkhorn_newton_peers import PEERS as SOLVERS
from steepest.studies.sinkhorn_newton_problems import PROBLEMS, REG, Problem, error, random_assignment
from steepest.transport import sinkhorn_newton_sparse
from steepest.transport._kernel import Kernel, sinkhorn_sweeps

AREA = "transport"

PAPER = Paper(
    title="Accelerating Sinkhorn Algorithm with Sparse Newton Iterations",
    authors="Xun Tang, Michael Shavlovsky, Holakou Rahmanian, Elisa Tardini, Kiran Koshy Thekumparampil, Tesi Xiao, "
    "Lexing Ying",
    venue="ICLR",
    year=2024,
    url="https://arxiv.org/abs/2401.12253",
)

STOP = 1e-12
OURS, SINKHORN = "SNS", "Sinkhorn"
PAPER_SETTING: dict[str, Any] = {"anneal": None, "adaptive": False, "damping": 0.0, "linear_solver": "cg"}
TITLES = {"rla": "random assignment", "digits-l2": "digits, squared distance", "digits-l1": "digits, cityblock",
          "w1": "densities, distance", "w2": "densities, squared distance"}  # fmt: skip
NEWTON = {"rla": 15, "digits-l2": 15, "digits-l1": 100, "w1": 40, "w2": 12}
TOTAL = {"rla": 150, "digits-l2": 250, "digits-l1": 400}
RATIO = {"rla": 100, "digits-l2": 10, "digits-l1": 10, "w1": 10, "w2": 20}
FASTER = {"rla": 5, "digits-l2": 3, "digits-l1": 5, "w1": 5, "w2": 5}
FROM_PAPER = {"rla": "29 (20 + 9) against 56,199", "digits-l2": "MNIST: 53 against 2,041",
              "digits-l1": "MNIST: 777 (700 + 77) against 5,748", "w1": "orders of magnitude",
              "w2": "orders of magnitude"}  # fmt: skip
SLOW = ("digits-l1", "w1")  # no peer gets there in less than a minute
EASY_REG, EASY_STOP = 0.05, 1e-9
LONG, LONG_LIMIT = ("POT log", "POT sinkhorn", "ott-jax momentum"), 15.0  # on random assignment
FULL_LIMIT, FULL_SWEEPS = 2.0, {"rla": 60_000, "digits-l2": 8_000, "digits-l1": 8_000, "w1": 8_000, "w2": 8_000}

# fmt: off
CLAIMS = [  # id, what it says, the paper's number, bound, unit, scales, invariant
    Claim("rla-paper-total", "Random assignment, the paper's setting: sweeps and Newton steps to 1e-12.", "29",
          "<= 150", "iterations", "quick full"),
    Claim("rla-paper-newton", "Newton steps among them.", "9", "<= 15", "steps", "quick full"),
    *(Claim(f"{key}-total", f"{TITLES[key].capitalize()}: sweeps and Newton steps to 1e-12, defaults.",
            FROM_PAPER[key], f"<= {bound}", "iterations", "quick full") for key, bound in TOTAL.items()),
    *(Claim(f"{key}-newton", f"{TITLES[key].capitalize()}: Newton steps.", FROM_PAPER[key], f"<= {bound}", "steps",
            "quick full") for key, bound in NEWTON.items()),
    *(Claim(f"{key}-converged", f"{TITLES[key].capitalize()}: reaches 1e-12.", FROM_PAPER[key], "== 1",
            "share of seeds", "quick full") for key in ("digits-l1", "w1", "w2")),
    *(Claim(f"{key}-ratio", f"{TITLES[key].capitalize()}: sweeps of Sinkhorn over iterations of ours.",
            FROM_PAPER[key], f">= {bound}", "x fewer", "quick full") for key, bound in RATIO.items()),
    *(Claim(f"{key}-faster", f"{TITLES[key].capitalize()}: CPU time to 1e-12 beside the fastest entropic peer "
            "that gets there.", "233 s against 0.34 s on random assignment", f">= {bound}", "x faster",
            "full" if key in SLOW else "quick full")
      for key, bound in FASTER.items()),
    Claim("rla-faster-log", "Random assignment, beside POT's log-domain Sinkhorn.", "233 s against 0.34 s", ">= 100",
          "x faster", "full"),
    *(Claim(f"{key}-easy", f"{TITLES[key].capitalize()}: much entropy (0.05 of the largest cost, 1e-9), where Sinkhorn "
            "is at its best: time of the fastest peer over ours.", "not in the paper; target of ours", ">= 0.5", "x",
            "quick full") for key in PROBLEMS),
    Claim("step-exponent", "The time of a Newton step grows as a sweep's does: random assignment.", "O(n^2)", "<= 2.3",
          "exponent of n", "quick full"),
    Claim("step-sweeps", "A Newton step costs few sweeps in the log domain, n = 2,000.", "O(n^2), as Sinkhorn", "<= 40",
          "sweeps", "quick full"),
    Claim("iterations-exponent", "Iterations hardly grow with the size: random assignment, 500 to 2,000.",
          "not in the paper; target of ours", "<= 0.3", "exponent of n", "quick full"),
    Claim("order-rla", "Convergence is superlinear: random assignment, last three errors above 1e-13.",
          "super-exponential", ">= 1.5", "order", "quick full"),
    Claim("order-w2", "The same, densities under squared distance.", "super-exponential", ">= 1.5", "order",
          "quick full"),
    *(Claim(f"outside-start-{key}", f"{TITLES[key].capitalize()}: mass outside the 2n largest entries after 20 sweeps.",
            "approximately sparse", "reported", "share of the mass", "quick full") for key in PROBLEMS),
    Claim("outside-rla", "The same at the solution, random assignment.", "approximately sparse", "<= 1e-2",
          "share of the mass", "quick full"),
    *(Claim(f"outside-{key}", f"The same, {TITLES[key]}.", "approximately sparse", "reported", "share of the mass",
            "quick full") for key in PROBLEMS if key != "rla"),
    *paper.CLAIMS,
]
# fmt: on

PEERS = [Peer(name, package) for name, (package, _) in SOLVERS.items()]
OPTIONS: dict[str, str] = {}

_DATA = "Regularization 1/1200 of the largest cost, error of both marginals below 1e-12, one thread."
FIGURES = [
    Figure("convergence", "Newton steps take over where sweeps crawl: random assignment", "rla errors",
           "iteration", "error of the marginals", log_x=True, log_y=True,
           methods=(OURS, "paper's setting", SINKHORN, "theory"),
           caption="500 x 500, first seed. During the warm-up errors are those at its own, larger entropies. Theory: "
           "e -> e^1.5 from the first error below 1e-4, the order that is asked for."),
    *(Figure(f"time-{key}", f"CPU seconds to 1e-12: {title}", f"{key} seconds", "CPU seconds", "solver", "dots",
             log_x=True, caption=_DATA + f" '>': stopped without getting there. {EXACT} solves another problem, the "
             "one without entropy.") for key, title in TITLES.items()),
    Figure("step", "A Newton step costs O(n²), as a sweep does", "step seconds", "n", "milliseconds", log_x=True,
           log_y=True, caption="Random assignment, default setting: CPU time of the Newton steps from an error of 1e-2 "
           "over their number, and of one sweep in the log domain. Theory: n² through the first point."),
]  # fmt: skip

SNIPPET = """\
import numpy as np
from steepest.transport import sinkhorn_newton_sparse

rng = np.random.default_rng(0)
M = rng.random((500, 500))
plan, log = sinkhorn_newton_sparse([], [], M, reg=1 / 1200, stopThr=1e-12, log=True)
print(f"{log['n_sinkhorn']} sweeps, {log['n_newton']} Newton steps, error {log['err_newton'][-1]:.1e}")
print("cost", log["cost"])
"""

REASONS: dict[str, str] = {
    "w2-easy": "at the limit, in three runs 0.53, 0.52 and 0.46: 14 sweeps suffice, no Newton step is made, but ours "
    "take an exponential of every entry, while the 20 of POT's multiply by a matrix",
    "outside-rla": "with this entropy two entries for each row hold 93.5 % of the mass of the exact plan, three hold "
    "99.2 % and four 99.9 %: no solver can change that.",
}

WHEN_NOT = [
    "Entropy is large (reg above a few percent of the largest cost) and eight digits do: a few dozen sweeps of "
    "`ot.sinkhorn` are done sooner.",
    "You want the unregularized optimum up to some thousand points: `ot.emd` is exact and often faster.",
    "Marginals to three digits suffice: stop Sinkhorn early.",
    "The cost matrix does not fit in memory, or lies on an accelerator: use geomloss or ott-jax.",
]


def run(ctx: Context) -> None:
    """Measure; see the module."""
    if ctx.scale == "paper":
        paper.run_paper(ctx)
        return
    with threadpool_limits(1):
        _measure(ctx)


def _measure(ctx: Context) -> None:
    factors = {}
    for k, key in enumerate(PROBLEMS):
        factors[key] = one_problem(ctx, key)
        ctx.progress(0.15 * (k + 1))
    paper_setting(ctx)
    growth(ctx)
    if (found := factors["rla"]) is not None:
        ctx.against(found[0], found[1], ahead="faster", behind="slower", what="random assignment, err 1e-12")


def solved(problem: Problem, reg: float = REG, stop: float = STOP, **options: Any) -> tuple[dict[str, Any], float]:
    """Log and CPU seconds of one solve."""
    begin = time.process_time()
    _, log = sinkhorn_newton_sparse(problem.a, problem.b, problem.M, reg, stopThr=stop, log=True, warn=False, **options)
    return log, time.process_time() - begin


def measure(ctx: Context, claim: str, values: ArrayLike) -> None:
    """Median over seeds with its interval."""
    x = np.asarray(values, dtype=float)
    ctx.measured(claim, float(np.median(x)), bootstrap_interval(x, statistic=np.median))


def one_problem(ctx: Context, key: str) -> tuple[str, float] | None:
    """Iterations, order, sparsity on all seeds, and the race on the first; the fastest peer and its factor."""
    problems = [PROBLEMS[key](seed) for seed in ctx.seeds]
    plans, logs = [], []
    for p in problems:
        plan, log = sinkhorn_newton_sparse(p.a, p.b, p.M, REG, stopThr=STOP, log=True, warn=False)
        plans.append(plan)
        logs.append(log)
    totals = np.array([log["niter"] for log in logs])
    if any(log["n_parts"] for log in logs):
        small = ", ".join(str(log["n_parts"]) for log in logs)
        ctx.note(f"{TITLES[key]}: beside its iterations {small} Newton steps on shifts of at most 128 parts.")
    measure(ctx, f"{key}-newton", [log["n_newton"] for log in logs])
    if key in TOTAL:
        measure(ctx, f"{key}-total", totals)
    if f"{key}-converged" in ctx.claims:
        ctx.measured(f"{key}-converged", float(np.mean([log["converged"] for log in logs])))
    if f"order-{key}" in ctx.claims:
        measure(ctx, f"order-{key}", [order(log["err_newton"]) for log in logs])
    enough = int(1.3 * RATIO[key] * totals.max())
    cap = ctx.pick(tiny=400, quick=enough, full=max(FULL_SWEEPS[key], enough), paper=0)
    sweeps = []
    for k, p in enumerate(problems):
        count, errors = count_sweeps(p, REG, STOP, cap)
        sweeps.append(count)
        if k == 0:
            _convergence(ctx, key, logs[0], errors)
    measure(ctx, f"{key}-ratio", np.array(sweeps) / totals)
    if max(sweeps) == cap:
        ctx.note(f"{TITLES[key]}: Sinkhorn was stopped after {cap:,} sweeps and counts as that many.")
    _outside(ctx, key, problems, plans)
    return _races(ctx, key, problems[0])


def _convergence(ctx: Context, key: str, log: dict[str, Any], errors: list[float]) -> None:
    ctx.series(f"{key} errors", list(enumerate(log["err"], 1)), method=OURS, seed=ctx.seeds[0])
    shown = np.unique(np.geomspace(1, len(errors), 400).astype(int))
    ctx.series(f"{key} errors", [(int(k), errors[k - 1]) for k in shown], method=SINKHORN, seed=ctx.seeds[0])


def order(errors: list[float]) -> float:
    """Order of convergence from the last three errors above 1e-13."""
    e = [x for x in errors if x > 1e-13][-3:]
    return math.log(e[2] / e[1]) / math.log(e[1] / e[0]) if len(e) == 3 else math.nan


def _outside(ctx: Context, key: str, problems: list[Problem], plans: list[np.ndarray]) -> None:
    """Mass outside the 2n largest entries, after 20 plain sweeps and at the solution."""
    start = []
    for p in problems:
        kernel = Kernel((p.M - p.M.min()) / REG)
        u, v, _ = sinkhorn_sweeps(kernel, p.a, p.b, np.zeros_like(p.b), 20)
        kernel.fill(u, v)
        start.append(outside(kernel.P))
    measure(ctx, f"outside-start-{key}", start)
    measure(ctx, f"outside-{key}", [outside(plan) for plan in plans])


def outside(plan: np.ndarray) -> float:
    """Share of the mass outside the 2n largest entries."""
    n = 2 * len(plan)
    return float(1 - np.partition(plan.ravel(), plan.size - n)[-n:].sum() / plan.sum())


def _races(ctx: Context, key: str, problem: Problem) -> tuple[str, float] | None:
    """CPU seconds of everybody on one problem, little entropy and much."""
    repeats = ctx.pick(tiny=1, quick=2, full=3, paper=1)
    _easy(ctx, key, problem, repeats)
    if not ctx.wants(f"{key}-faster"):
        return None
    own = np.array([solved(problem)[1] for _ in range(repeats)])
    ctx.series(f"{key} seconds", own[:1] * 0 + np.median(own), method=OURS, seed=ctx.seeds[0])
    # what a peer may take: longer than the bound asks for, so that a stop at the limit decides the claim
    bound = 1.3 * FASTER[key] * float(np.median(own))
    limit = ctx.pick(tiny=0.1, quick=bound, full=max(FULL_LIMIT, bound), paper=0.0)
    limits = dict.fromkeys(_peers_of(ctx), limit)
    if key == "rla" and ctx.wants("rla-faster-log"):
        longest = max(limit, ctx.pick(tiny=0.0, quick=0.0, full=LONG_LIMIT, paper=0.0))
        limits |= {peer: longest for peer in LONG if peer in limits}
    found = {peer: race(peer, problem, REG, STOP, limits[peer]) for peer in limits}
    for peer, result in found.items():
        name = peer if result.done or peer == EXACT else f"> {peer}"
        ctx.series(f"{key} seconds", [result.seconds], method=name, seed=ctx.seeds[0])
        ctx.note(f"{TITLES[key]}: {peer} {_told(result)}; ours {np.median(own):.3g} s.")
    entropic = {peer: r for peer, r in found.items() if peer != EXACT and (r.done or r.seconds >= limits[peer])}
    if key == "rla" and ctx.wants("rla-faster-log"):
        if "POT log" in found:
            _measure_times(ctx, "rla-faster-log", found["POT log"].seconds, own)
        else:
            ctx.skipped("rla-faster-log", "POT is not installed: pip install pot")
    if not entropic:
        ctx.skipped(f"{key}-faster", "no entropic peer is installed (pip install pot), or all stopped by themselves")
        return None
    done = {peer: r for peer, r in entropic.items() if r.done} or entropic
    best = min(done, key=lambda peer: done[peer].seconds)
    _measure_times(ctx, f"{key}-faster", done[best].seconds, own)
    if not done[best].done:
        ctx.note(f"{TITLES[key]}: no entropic peer got there within {limit:.3g} s; the ratio is a lower bound.")
    return best, done[best].seconds / float(np.median(own))


def _peers_of(ctx: Context) -> list[str]:
    here = present()
    missing = [peer for peer in SOLVERS if peer not in here]
    if missing and not any("not installed" in text for text in ctx.notes_log):
        ctx.note(f"not installed, so without a row: {', '.join(missing)} (pip install geomloss ott-jax pot).")
    return here


def _told(result: Race) -> str:
    met = "done" if result.done else "not there"
    return f"{met} after {result.seconds:.3g} s, error {result.err:.1e}"


def _measure_times(ctx: Context, claim: str, seconds: float, own: np.ndarray) -> None:
    ratios = seconds / own
    ctx.measured(claim, float(np.median(ratios)), bootstrap_interval(ratios, statistic=np.median))


def _easy(ctx: Context, key: str, problem: Problem, repeats: int) -> None:
    """Where Sinkhorn needs a few dozen sweeps: everybody in turn, the least of the medians."""
    peers = [p for p in ("POT sinkhorn", "POT stabilized") if p in present()]
    if not peers:
        ctx.skipped(f"{key}-easy", "POT is not installed: pip install pot")
        return
    own, theirs = [], []
    for _ in range(repeats + 5):
        own.append(solved(problem, EASY_REG, EASY_STOP)[1])
        results = [race(peer, problem, EASY_REG, EASY_STOP, 2.0) for peer in peers]
        theirs.append(min((r.seconds for r in results if r.done), default=math.inf))
    measure(ctx, f"{key}-easy", np.array(theirs) / np.array(own))


def paper_setting(ctx: Context) -> None:
    """Random assignment as in the paper: 20 sweeps, 15 entries for each row, nothing of ours."""
    logs = []
    for seed in ctx.seeds:
        p = random_assignment(seed)
        log, _ = solved(p, sparsity=15 / len(p.a), **PAPER_SETTING)
        logs.append(log)
    measure(ctx, "rla-paper-total", [log["niter"] for log in logs])
    measure(ctx, "rla-paper-newton", [log["n_newton"] for log in logs])
    if not all(log["converged"] for log in logs):
        ctx.note("the paper's setting did not reach 1e-12 on every seed of random assignment.")
    errors = logs[0]["err"]
    ctx.series("rla errors", list(enumerate(errors, 1)), method="paper's setting", seed=ctx.seeds[0])
    first = next((k for k, e in enumerate(errors) if e < 1e-4), len(errors) - 1)
    bound, step = [(first + 1, errors[first])], errors[first]
    while step > 1e-15:
        step = step**1.5
        bound.append((first + 1 + len(bound), max(step, 1e-15)))
    ctx.series("rla errors", bound, method="theory", seed=ctx.seeds[0])


def newton_seconds(problem: Problem) -> float:
    """CPU seconds of a Newton step: of those that follow a solve to 1e-2, over their number."""
    rough, _ = solved(problem, stop=1e-2)
    fine, seconds = solved(problem, warmstart=(rough["log_u"], rough["log_v"]))
    return seconds / max(fine["n_newton"], 1)


def growth(ctx: Context) -> None:
    """Time of a Newton step and number of iterations as the size grows, random assignment."""
    sizes = ctx.pick(tiny=(50, 100), quick=(500, 1000, 2000), full=(500, 700, 1000, 1400, 2000, 3000, 5000), paper=())
    seeds = ctx.seeds[:2] if ctx.scale == "full" else ctx.seeds[:1]
    steps, iterations, sweeps, sweep = [], [], [], math.nan
    for n in sizes:
        times, counts = [], []
        for seed in seeds:
            p = random_assignment(seed, n)
            counts.append(solved(p)[0]["niter"])
            times.append(newton_seconds(p))
        steps.append(float(np.median(times)))
        iterations.append(float(np.median(counts)))
        kernel, zeros = Kernel(p.M / REG), np.zeros(n)
        begin = time.process_time()
        u = kernel.log_row_sums(zeros)
        kernel.log_column_sums(-u)
        one = time.process_time() - begin
        sweep = one if n <= 2000 else sweep
        sweeps.append(one)
    squared = [steps[0] * (n / sizes[0]) ** 2 for n in sizes]
    for method, seconds in ((OURS, steps), (SINKHORN, sweeps), ("theory", squared)):
        ctx.series("step seconds", [(n, 1e3 * t) for n, t in zip(sizes, seconds, strict=True)], method=method)
    slope, interval = slope_fit(sizes, steps)
    ctx.measured("step-exponent", slope, interval if len(sizes) > 3 else None)
    small = [k for k, n in enumerate(sizes) if n <= 2000]
    ctx.measured("step-sweeps", steps[small[-1]] / sweep)
    ctx.measured("iterations-exponent", slope_fit(sizes[: len(small)], iterations[: len(small)])[0])


__all__ = ["CLAIMS", "PAPER", "error", "run"]
