"""DADAO optimizes over a network without server, rounds or clock: nodes compute and talk whenever their alarms ring.

It is for people whose data lie on many machines that know only their neighbors: sensor networks, clusters over slow
links, peer-to-peer learning. This study measures the two promises, few gradients and few conversations, beside the
methods that work in rounds or without acceleration (`studies.dadao_peers`), and how much less a network has to talk
when the rates of its links are chosen by a convex program (`studies.dadao_rates`).
"""

from __future__ import annotations

from steepest.studies import dadao_rates as rates
from steepest.studies import dadao_runs as runs
from steepest.studies.claim import Claim, Figure, Paper, Peer, Picture
from steepest.studies.context import Context

AREA = "federated"

PAPER = Paper(
    title="DADAO: Decoupled Accelerated Decentralized Asynchronous Optimization",
    authors="Adel Nabli, Edouard Oyallon",
    venue="ICML",
    year=2023,
    url="https://arxiv.org/abs/2208.00779",
)

PRIMAL = {
    "extra": "EXTRA",
    "tracking": "gradient tracking",
    "adom": "ADOM+",
    "adom-consensus": "ADOM+, multi-consensus",
}
DUAL = {"msda": "MSDA", "continuized": "continuized dual"}
TASKS = {"regression": "least squares", "logistic": "logistic regression"}

# fmt: off
CLAIMS = [  # id, what it says, the paper's number, bound, unit, scales, invariant
    Claim("accelerated", "Gradients grow as the root of L / mu: exponent of the time to a squared distance of 1e-8.",
          "sqrt(L / mu), Thm. 4.2", "between(0.4, 0.6)", "exponent", "quick full"),
    Claim("not-accelerated", "Without acceleration, gossip gradient tracking on the same clocks needs L / mu.",
          "L / mu", ">= 0.85", "exponent", "quick full"),
    Claim("guarantee", "The rate is above the guaranteed one: smallest ratio over L / mu.",
          "sqrt(mu / L) / (8 sqrt 2), derived here", ">= 1.3", "x the guarantee", "quick full"),
    Claim("communications", "Communications to 1e-6 are proportional to the rates' total: rings of 10, 20 and 40.",
          "n sqrt(chi1 chi2), Thm. 4.2", "<= 0.25", "largest relative deviation", "quick full"),
    *[Claim(f"edges-{task}-{peer}", f"Edge uses to 1e-8, {words}: {name} against DADAO.",
            "fewer than each, Fig. 2", "> 1" if peer in PRIMAL else "reported", "x DADAO's", "quick full")
      for task, words in TASKS.items() for peer, name in (PRIMAL | DUAL).items()],
    Claim("stiff", "Edge uses to 1e-8 on a ring of 20 at the largest L / mu: EXTRA against DADAO.",
          "not in the paper", "reported", "x DADAO's", "quick full"),
    Claim("rates-barbell", "Best rates talk less: equal rates against them, barbell 2 x 10.",
          "Sec. 4", ">= 5.0", "x fewer", "quick full"),
    Claim("rates-geometric", "The same on random geometric graphs, n = 20, r = 0.4, median over draws.",
          "Sec. 4", ">= 1.5", "x fewer", "quick full"),
    Claim("rates-grid", "The same on a grid of 4 x 5.", "Sec. 4", ">= 1.1", "x fewer", "quick full"),
    *[Claim(f"rates-{name}", f"On a {name} equal rates are already the best.", "derived here",
            "between(0.999, 1.001)", "x fewer", "quick full") for name in ("cycle", "complete", "star", "path")],
    Claim("rates-time", "With the best rates a run is as fast: time to 1e-6 on the barbell over that of equal rates.",
          "same rate, Thm. 4.2", "between(0.75, 1.25)", "x", "quick full"),
    Claim("rates-communications", "It talks less until then.", "Sec. 4", ">= 4", "x fewer", "quick full"),
    Claim("workers-equal", "Nodes spread over processes give the simulated run bit for bit: largest difference.",
          "not in the paper", "== 0", "in any number of the state", "full", True),
    Claim("workers-faster", "Two processes are faster than one: 8 nodes, gradients of 10 ms.",
          "asynchronous, Sec. 1", ">= 1.6", "x", "full"),
    Claim("paper-switching", "100 nodes, 50 random geometric graphs in turns: edge uses of ADOM+ with multi-consensus.",
          "fewer, Fig. 3", "> 1", "x DADAO's", "paper"),
]
# fmt: on

PEERS = [Peer(name, "numpy") for name in (*PRIMAL.values(), *DUAL.values(), "gossip tracking")]

OPTIONS: dict[str, str] = {}

# fmt: off
FIGURES = [
    Figure("time", "Acceleration: the time grows as the root of the condition number, not in proportion to it", "time",
           "condition number L / mu", "units of time to 1e-8", log_x=True, log_y=True,
           methods=("DADAO", "theory", "gossip tracking"),
           caption="Ring of 20 nodes, quadratics of 10 variables; a unit of time is one gradient a node. Squared "
           "distance relative to the start's. Theory: the guaranteed rate. Median and range over seeds."),
    Figure("stiff", "Synchronous EXTRA talks less until problems are very stiff", "stiff", "condition number L / mu",
           "edge uses to 1e-8", log_x=True, log_y=True, methods=("DADAO", "EXTRA", "gradient tracking"),
           caption="The same ring and quadratics; peers with the best of three steps. A round uses every edge once."),
    *[Figure(task, f"Edge uses on a random geometric graph: {words}", task, "edge uses",
             "mean squared distance, relative", log_x=True, log_y=True,
             methods=("DADAO", "DADAO, best rates", "EXTRA", "gradient tracking", "ADOM+"),
             caption="20 nodes, radius 0.4, 10 variables, data drawn anew at each node. Median and band over seeds, "
             "as far as the shortest run. "
             "An exchange counts once, whatever it carries; EXTRA and tracking with the best of three steps.")
      for task, words in TASKS.items()],
    Figure("barbell", "Best rates: the same speed with a fifth of the conversations", "barbell", "communications",
           "mean squared distance, relative", log_y=True, methods=("DADAO", "DADAO, best rates"),
           caption="Two complete graphs of 10 nodes and a bridge; quadratics with L / mu = 10."),
]
PICTURES = [
    Picture("networks", "How often each link should talk", "networks", rates.draw_networks,
            caption="The best rates on a barbell of 2 x 10 nodes and on a random geometric graph. Width "
            "and color are the rate in gossips per unit of time.",
            alt="Two networks; the bridge of the barbell and links between clusters are thick, links inside thin.",
            size=(8.6, 4.0)),
]
# fmt: on

SNIPPET = """\
import numpy as np
from steepest.federated import dadao

rng = np.random.default_rng(0)
data, targets = rng.standard_normal((8, 30, 4)), rng.standard_normal((8, 30))      # eight nodes on a ring
hessians = np.einsum("nsi,nsj->nij", data, data) / 30
eigenvalues = np.linalg.eigvalsh(hessians)
result = dadao(lambda i, x: data[i].T @ (data[i] @ x - targets[i]) / 30, np.zeros(4), tol=1e-6,
               graph=(8, [(i, (i + 1) % 8) for i in range(8)]), L=eigenvalues.max(), mu=eigenvalues.min())
print(result.message, result.n_gradients, result.n_communications)
"""

_EXTRA = (
    "a squared distance of 1e-8 takes DADAO 131 sqrt(L / mu) units of time on any graph (its rate is 0.14 "
    "sqrt(mu / L), 1.6 times the guaranteed one), EXTRA with a tuned step 9 L / mu rounds where L / mu sets its "
    "time. EXTRA is ahead until L / mu is large: with one Hessian at all nodes of a random geometric graph of 20 it "
    "uses 17 500 edges against 32 300 at L / mu = 40, 70 600 against 63 400 at 160 and 283 000 against 126 000 at "
    "640. On a ring of 20, where equal rates talk three times as often, the lines cross near 2 000. Here L / mu is {}."
)
REASONS = {
    "edges-regression-extra": _EXTRA.format("about 11"),
    "edges-logistic-extra": _EXTRA.format("below 2"),
}

WHEN_NOT = [
    "All nodes are equally fast and links are cheap: synchronous methods need far fewer rounds; EXTRA and MSDA also "
    "need fewer edge uses unless problems are very stiff.",
    "Functions are not strongly convex, or mu and L are not known: both enter every constant.",
    "Gradients are noisy: the method has no variance reduction.",
    "A server is reachable: accelerated gradient descent there needs no gossip.",
]


def run(ctx: Context) -> None:
    """Measure; see the module."""
    if ctx.scale == "paper":
        runs.paper(ctx)
        return
    runs.condition(ctx)
    ctx.progress(0.4)
    runs.rings(ctx)
    ctx.progress(0.5)
    for task in TASKS:
        runs.edges(ctx, task, PRIMAL | DUAL)
    ctx.progress(0.7)
    rates.barbell_run(ctx, rates.gains(ctx))
    ctx.progress(0.9)
    if ctx.wants("workers-equal"):
        runs.workers(ctx)
    ctx.progress(1.0)
