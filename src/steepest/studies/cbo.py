"""Consensus-based optimization minimizes what can only be evaluated: rough landscapes, simulators, losses with steps.

It is for whoever can ask for many values at once and has no gradient, or one that leads into the nearest hole. A swarm
of points is drawn to a weighted mean of its best and shaken by its distance from it; hopping keeps only that mean.
Here: how close a hop is to a gradient step, paths through a canyon full of ripples, success on rough functions by the
number of particles, many dimensions beside cbx, CMA-ES, differential evolution, dual annealing and Nevergrad with the
same budget, networks trained on digits, and evaluations shared out by Ray. ``paper`` trains on MNIST.
"""

from __future__ import annotations

from threadpoolctl import threadpool_limits

from steepest.studies import cbo_networks as learn
from steepest.studies import cbo_search as search
from steepest.studies.cbo_gradient import measure as measure_gradient
from steepest.studies.cbo_pictures import draw_canyon
from steepest.studies.cbo_search import FUNCTIONS_HIGH
from steepest.studies.claim import Claim, Figure, Paper, Peer, Picture
from steepest.studies.context import Context

AREA = "particles"

PAPER = Paper(
    title="Gradient is All You Need? How Consensus-Based Optimization can be Interpreted as a Stochastic Relaxation of "
    "Gradient Descent",
    authors="Konstantin Riedl, Timo Klock, Carina Geldhauser, Massimo Fornasier",
    venue="arXiv",
    year=2023,
    url="https://arxiv.org/abs/2306.09778",
)

_STEP = "a gradient step plus noise (theorem)"
_NOT = "not in the paper"
_20 = "Rastrigin, d = 20, {} particles: share of runs that end below 0.01"


def _titled(name: str) -> str:
    return name.capitalize()


# fmt: off
CLAIMS = [  # id, what it says, the paper's number, bound, unit, scales
    Claim("cosine-quadratic", "A hop goes down the gradient: cosine of both on a quadratic.", _STEP, ">= 0.95",
          "cosine", "quick full"),
    Claim("cosine-canyon", "The same in the canyon without ripples.", _STEP, ">= 0.95", "cosine", "quick full"),
    Claim("sampling-slope", "A hop's distance from the proximal step falls as one over the root of the particles.",
          "N^(-1/2)", "between(-0.6, -0.4)", "exponent", "quick full"),
    Claim("alpha-slope", "The same distance as alpha grows with the step's length kept, on a quartic.",
          "at least alpha^(-1/2)", "between(-1.2, -0.4)", "exponent", "quick full"),
    Claim("drift", "CBO's own consensus is closest to a proximal step where lam dt = 1: its distance over the least "
          "at 0.25 and 0.5.", "error |lam - 1/dt|", "< 1", "ratio", "quick full"),
    Claim("canyon-cbo", "CBO follows the rippled canyon to within 0.5 of the minimum: share of runs.",
          "trajectories follow the valley, Fig. 1", ">= 0.95", "share", "quick full"),
    Claim("canyon-distance", "Its median distance from the minimum at the end.", "Fig. 1", "reported", "distance",
          "quick full"),
    Claim("canyon-hopping", "The same share for hopping with width 0.7.", "Fig. 1", ">= 0.85", "share", "quick full"),
    Claim("canyon-descent", "Gradient descent from the same starts does not arrive (best of four step sizes).",
          "Fig. 1", "<= 0.05", "share", "quick full"),
    Claim("canyon-narrow", "Hopping with width 0.4 does not either: it is the noise that does it.", "Fig. 1",
          "<= 0.2", "share", "quick full"),
    Claim("rastrigin-1000", _20.format(1000) + " (17 of 20 runs pass).", "global convergence", ">= 0.85", "share",
          "quick full"),
    Claim("rastrigin-rises", "The share rises with the particles: least rise over 200, 400, 1000.",
          "convergence as N grows", "> 0", "share", "full"),
    Claim("ackley-200", "Ackley, d = 20, 200 particles: the share is 1.", "global convergence", "== 1", "share",
          "quick full"),
    Claim("rastrigin-1000-share", _20.format(1000) + ", with Wilson's interval.", "global convergence", "reported",
          "share", "quick full"),
    *(Claim(f"rastrigin-{n}-share", _20.format(n) + ".", "global convergence", "reported", "share", "full")
      for n in (400, 200)),
    Claim("rastrigin-200-median", "The median value of those runs.", _NOT, "reported", "f", "full"),
    *(Claim(f"law-{f}-{d}", f"{_titled(f)}, d = {d}: same law as cbx at identical parameters (Mann-Whitney).",
            _NOT, "> 0.01", "p", "quick full" if (f, d) == ("rastrigin", 100) else "full")
      for d in (100, 1000) for f in FUNCTIONS_HIGH),
    *(Claim(f"median-{f}-{d}", f"{_titled(f)}, d = {d}: median end value over cbx's.", _NOT,
            "between(0.9, 1.1)", "ratio", "quick full" if (f, d) == ("rastrigin", 100) else "full")
      for d in (100, 1000) for f in FUNCTIONS_HIGH),
    *(Claim(f"gap-{f}-{d}", f"{_titled(f)}, d = {d}: what is left of the value, a coordinate.", _NOT,
            "reported", "f/d", "quick full" if (f, d) == ("rastrigin", 100) else "full")
      for d in (100, 1000) for f in FUNCTIONS_HIGH),
    *(Claim(f"beside-{key}", f"End value over that of {name}, d = 100, geometric mean of three functions.", _NOT,
            "reported", "ratio", "full")
      for key, name in (("nevergrad-cma", "Nevergrad's CMA"), ("nevergrad-de", "its differential evolution"),
                        ("nevergrad-pso", "its particle swarm"), ("ngopt", "its NGOpt"))),
    Claim("network-shallow", "Ten neurons trained on digits without gradients: test accuracy.",
          "no loss of generalization", ">= 0.88", "accuracy", "full"),
    Claim("network-shallow-sgd", "How far that is behind SGD.", "comparable with SGD", "<= 0.06", "accuracy", "full"),
    Claim("network-deep", "The deep network (20-10-10-10): test accuracy.", "no loss of generalization", "reported",
          "accuracy", "full"),
    Claim("network-deep-sgd", "How far that is behind SGD.", "comparable with SGD", "reported", "accuracy", "full"),
    Claim("ray-same", "Two Ray workers end at the particles of the serial run: greatest difference.", _NOT, "== 0",
          "distance", "full", invariant=True),
    Claim("ray-speedup", "A 20 ms objective is sooner done on two Ray workers.", _NOT, ">= 1.7", "x", "full"),
    Claim("paper-mnist-shallow", "Ten neurons on MNIST, 100 epochs: test accuracy.", "no loss of generalization",
          ">= 0.88", "accuracy", "paper"),
    Claim("paper-mnist-deep", "The deep network on MNIST.", "no loss of generalization", "reported", "accuracy",
          "paper"),
]
# fmt: on

PEERS = [Peer("cbx", "cbx"), Peer("CMA-ES", "cma"), Peer("differential evolution", "scipy"),
         Peer("dual annealing", "scipy"), Peer("Nevergrad", "nevergrad"), Peer("SGD"),
         Peer("gradient descent")]  # fmt: skip
OPTIONS: dict[str, str] = {}

_AT = "Minimizer at a random place in the customary box; median and 10 to 90 % over seeds."
FIGURES = [
    Figure("sampling", "A hop is a proximal step up to sampling noise", "sampling", "particles",
           "distance from the proximal step", log_x=True, log_y=True, methods=("hop", "theory"),
           caption="Quadratic with curvatures 1 and 10, alpha = 5, s = 0.3: root mean square over 40 hops, and the "
           "asymptotic law in closed form."),
    Figure("temperature", "With the step's length kept, the hop meets the proximal step as alpha grows", "temperature",
           "alpha", "distance from the proximal step", log_x=True, log_y=True, methods=("hop", "theory"),
           caption="Quartic with two wells a coordinate, step 1, 200,000 particles; theory is the hop of infinitely "
           "many, by quadrature."),
    Figure("rough", "More particles decide whether the last hole is the right one", "rough", "evaluations",
           "best value so far", log_x=True, log_y=True, methods=("N = 200", "N = 400", "N = 1000"),
           caption="Rastrigin, d = 20; a run ends below 0.01. Median and 10 to 90 % over seeds."),
    Figure("share", "Share of runs that find the global minimum", "share", "share of runs below 0.01", "particles",
           "dots", caption="Rastrigin (and Ackley), d = 20, at most 3000 iterations. Bars: Wilson's 95 % intervals."),
    Figure("course", "A hundred dimensions: cbx's law, and the tools that do better", "course, 100", "evaluations",
           "best value so far over d", log_x=True, log_y=True,
           methods=("CBO", "cbx", "CMA-ES", "differential evolution", "dual annealing"),
           caption=f"Rastrigin, d = 100, all at their defaults; values of f below 0.01 are drawn as 0.01. {_AT}"),
    Figure("course-1000", "A thousand dimensions", "course, 1000", "evaluations", "best value so far over d",
           log_x=True, log_y=True, methods=("CBO", "cbx", "CMA-ES", "differential evolution", "dual annealing"),
           caption=f"Rastrigin, d = 1000, CMA-ES with a diagonal covariance. {_AT}"),
    Figure("seconds", "What the budget costs", "seconds, 100", "CPU seconds", "method", "dots", log_x=True,
           caption="d = 100, the same evaluations for all, one thread; median and range over functions and seeds."),
    Figure("accuracy", "Ten neurons learn digits without a gradient", "accuracy, shallow", "epochs", "test accuracy",
           methods=("CBO", "SGD"), caption="A fifth of the digits held out. Median and 10 to 90 % over seeds."),
]  # fmt: skip

PICTURES = [
    Picture("canyon", "A swarm follows the canyon over ripples that hold gradient descent", "canyon", draw_canyon,
            caption="Eight runs of each from around (8, 8), white dots; ends in red, the minimum is the star. "
            "200 particles, 250 iterations, alpha = 100, as in the paper; five times as many steps of descent.",
            alt="Four maps of a bent valley with ripples. CBO and wide hops reach the star at the origin, narrow hops "
            "and gradient descent stay near their starts.", size=(7.6, 7.6)),
]  # fmt: skip

SNIPPET = """\
from steepest.particles import consensus_hopping, minimize_cbo
from steepest.particles.test_functions import canyon, rastrigin

found = minimize_cbo(rastrigin, bounds=[(-3, 3)] * 10, n_particles=400, vectorized=True, seed=0)
print(found.fun, found.nfev, found.spread)
hops = consensus_hopping(canyon, [8.0, 8.0], sigma=0.7, vectorized=True, seed=0)
print(hops.x, hops.step)  # near 0; the length of the gradient step that a hop stands for
"""

REASONS: dict[str, str] = {
    f"median-{f}-100": "the end values of single runs range over a factor of 1.3 (Ackley) to 3 (Griewank), so that "
    "eight seeds cannot tell 10 %. With the same draws both make the same steps to 1e-9."
    for f in FUNCTIONS_HIGH
}

WHEN_NOT = [
    "The loss is smooth with few minima and has a gradient: descent needs orders of magnitude fewer evaluations.",
    "Hundreds of dimensions of a separable or smooth function: CMA-ES or dual annealing end lower at the same budget.",
    "Few evaluations can be paid for (hundreds): a surrogate model, as in Bayesian optimization, uses each better.",
    "A guarantee is needed: a swarm that agrees may have agreed on the wrong hole.",
]


def run(ctx: Context) -> None:
    """Measure; see the module."""
    with threadpool_limits(1):
        if ctx.scale == "paper":
            device = ctx.need_cuda()
            learn.mnist(ctx, str(device), ctx.max_steps or 100)
        else:
            measure(ctx)


def measure(ctx: Context) -> None:
    """Measure at the other scales."""
    full, tiny = ctx.scale == "full", ctx.scale == "tiny"
    ctx.timed("gradient", lambda: measure_gradient(ctx))
    ctx.progress(0.1)
    ctx.timed("canyon", lambda: search.canyon(ctx))
    ctx.progress(0.2)
    ctx.timed("rough", lambda: search.rough(ctx))
    ctx.progress(0.4)
    functions = FUNCTIONS_HIGH if full or tiny else ("rastrigin",)
    budget, seeds = (600, 2) if tiny else (200_000, 8) if full else (40_000, 5)
    ctx.timed("d = 100", lambda: search.dimensions(ctx, 100, budget, functions, seeds, 2 if full else 1))
    ctx.progress(0.5)
    if ctx.wants("law-ackley-1000"):
        budget, seeds = (400, 2) if tiny else (50_000, 6)
        ctx.timed("d = 1000", lambda: search.dimensions(ctx, 1000, budget, functions, seeds, 1))
        ctx.progress(0.7)
        ctx.timed("Nevergrad", lambda: search.nevergrad(ctx, 100, 60 if tiny else 5_000, 1))
        ctx.timed(
            "networks", lambda: learn.networks(ctx, {"shallow": 1, "deep": 1} if tiny else {"shallow": 100, "deep": 60})
        )
        ctx.progress(0.95)
        if tiny:
            for claim in ("ray-same", "ray-speedup"):
                ctx.skipped(claim, "not at tiny: Ray takes seconds to start")
        else:
            ctx.timed("Ray", lambda: learn.ray(ctx, 40, 4))
    ctx.note(
        "Cut for time: many dimensions end after 40,000 evaluations at quick; after 200,000 (d = 100), 50,000 "
        "(d = 1000) and 5,000 (Nevergrad) at full. cbx has as many seeds as CBO, the other tools two or one."
    )
    ctx.note("All minimizers run at their defaults; none is tuned. CBO and cbx: 200 particles, sigma = 5, alpha = 1e5, "
             "dt = 0.01, no box, first particles uniform in it.")  # fmt: skip
