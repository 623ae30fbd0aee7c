"""Factored descent recovers a low-rank matrix whose rank was guessed too high, and one modified step makes that cheap.

It is for people who recover a matrix from few linear measurements or entries (tomography of quantum states, ratings,
covariances) and know its rank only roughly. Plain descent on the factors then crawls: as 1/T with one factor, at a rate
that depends on the start with two. This study measures all rates beside the lines that theory draws
(`studies.matrix_sensing_rates`), what one rebalancing step changes and what spread singular values cost it, and lets
other solvers fill in hidden pixels of images (`studies.matrix_sensing_images`).
"""

from __future__ import annotations

from threadpoolctl import threadpool_limits

from steepest.studies import matrix_sensing_images as images
from steepest.studies import matrix_sensing_rates as rates
from steepest.studies.claim import Claim, Figure, Paper, Peer, Picture
from steepest.studies.context import Context

AREA = "landscape"

PAPER = Paper(
    title="How Over-Parameterization Slows Down Gradient Descent in Matrix Sensing: The Curses of Symmetry and "
    "Initialization",
    authors="Nuoya Xiong, Lijun Ding, Simon S. Du",
    venue="ICLR",
    year=2024,
    url="https://arxiv.org/abs/2310.01769",
)

# fmt: off
CLAIMS = [  # id, what it says, the paper's number, bound, unit, scales, invariant
    Claim("symmetric-exact-iterations", "X X^T with the true rank converges fast: iterations to error 1e-10.",
          "exp(-Omega(T))", "<= 600", "iterations", "quick full"),
    Claim("symmetric-exact-log-linear", "Its error falls exponentially: R^2 of the line through the logarithms.",
          "exp(-Omega(T))", ">= 0.99", "R^2", "quick full"),
    Claim("symmetric-slope-one", "One column too many: the squared error falls as 1 / T^2 only.",
          "Omega(1 / T^2)", "between(-2.2, -1.8)", "exponent", "quick full"),
    Claim("symmetric-slope-double", "Twice as many columns: the same power.",
          "Omega(1 / T^2)", "between(-2.2, -1.8)", "exponent", "quick full"),
    Claim("symmetric-constant", "The error of one redundant column, times 2 eta T, is that of x <- x (1 - eta x^2).",
          "1, derived here", "reported", "x theory", "quick full"),
    Claim("asymmetric-exact-iterations", "F G^T with the true rank converges fast: iterations to error 1e-9.",
          "exp(-Omega(T))", "<= 600", "iterations", "quick full"),
    Claim("asymmetric-exponent", "Two columns too many: the rate grows as the square of the scale of the start.",
          "exp(-Omega(alpha^2 T))", "between(1.7, 2.3)", "exponent of the rate in alpha", "quick full"),
    Claim("asymmetric-log-linear", "It is exponential all the same: smallest R^2 over the scales.",
          "exp(-Omega(alpha^2 T))", ">= 0.99", "R^2", "quick full"),
    Claim("asymmetric-constant", "The rate over the one read off the imbalance of the start.",
          "1 for small alpha and exact measurements, derived here", "reported", "x theory", "quick full"),
    Claim("cure", "Two factors recover the same positive semidefinite matrix to 1e-6 in far fewer iterations.",
          "exponentially faster", ">= 10", "x fewer iterations at least (alpha = 0.1)", "quick full"),
    Claim("cure-symmetric-cost", "Iterations that one factor would need to error 1e-6, from its law error = c / T.",
          "Omega(1 / T^2)", "> 1e6", "iterations", "quick full"),
    Claim("rebalanced-spread", "After the modified step the rate does not depend on the start: largest over smallest.",
          "independent of alpha, Sec. 5", "<= 1.25", "x, alpha 0.025 to 0.4", "quick full"),
    Claim("rebalanced-of-exact", "Its rate is near that of the true rank.",
          "recovers the exact rate, Sec. 5", ">= 0.4", "x the rate with k = r", "quick full"),
    Claim("rebalanced-against-gd", "It needs far fewer iterations than plain descent, alpha = 0.05, error 1e-9.",
          "faster, Sec. 5", ">= 10", "x fewer iterations", "quick full"),
    Claim("rebalanced-product", "The modified step leaves F G^T as it is.", "Eq. (5.1)", "<= 1e-12",
          "relative change", "quick full", True),
    Claim("spread-exact", "With the true rank the rate falls with the spread of the singular values.",
          "-1, derived here", "reported", "exponent", "quick full"),
    Claim("spread-rebalanced", "After the modified step it falls faster: the price of one size for all.",
          "-2, derived here", "reported", "exponent", "quick full"),
    Claim("digits-hidden", "Error of hidden pixels of digits against the best peer, each tuned on three values.",
          "not in the paper", "reported", "x the best peer's error", "quick full"),
]
# fmt: on

PEERS = [
    Peer("ScaledGD", "numpy"),
    Peer("singular-value projection", "numpy"),
    Peer("soft-impute", "numpy"),
    Peer("least squares", "scipy"),
    Peer("nuclear norm (SCS)", "cvxpy"),
]

OPTIONS: dict[str, str] = {}

# fmt: off
FIGURES = [
    Figure("one-factor", "One column too many turns exponential decay into 1/T; a second factor cures it",
           "one factor", "iteration", "Frobenius error", log_x=True, log_y=True,
           methods=("symmetric, k = r", "symmetric, k = r + 1", "theory, k = r + 1", "symmetric, k = 2r",
                    "theory, k = 2r", "asymmetric, k = r + 1"),
           caption="Rank 3, Gaussian measurements; median and 10-90 % band over seeds. Theory: "
           "sqrt(k - r) / (2 eta T)."),
    Figure("two-factors", "With two factors the start sets the rate, unless F is rebalanced once", "two factors",
           "iteration", "Frobenius error", log_y=True,
           methods=("start 0.05", "theory, start 0.05", "rebalanced, start 0.05"),
           caption="k = r + 2, first seed. Theory: the slope is eta times the conserved imbalance of the start, drawn "
           "through one point of the tail; the measured slope differs as few measurements do from exact ones."),
    Figure("rates", "The rate grows as the square of the start's scale; rebalanced, it does not depend on it", "rates",
           "scale of the start, alpha", "rate an iteration", log_x=True, log_y=True,
           methods=("two factors", "theory", "rebalanced", "two factors, k = r"),
           caption="Slope of the log error over the last 70 % of the iterations above 1e-12; k = r + 2 unless said."),
    Figure("spread", "Spread singular values cost the rebalanced step more than the exact rank", "spread",
           "largest over smallest singular value", "rate an iteration", log_x=True, log_y=True,
           methods=("two factors, k = r", "rebalanced"),
           caption="n = 20, rank 3, geometric spectrum; the slopes are near -1 and -2, as derived on the page."),
    Figure("digits", "Hidden pixels of handwritten digits, half of them seen", "hidden pixels",
           "relative error of the hidden pixels", "method", "dots",
           caption="One point a seed; rank bound or penalty of every method chosen from three on seen pixels."),
]
PICTURES = [
    Picture("photograph", "A photograph's rank-6 part from 30 % of its pixels, rank only known to be at most 12",
            "photograph", images.draw_photograph,
            caption="Greyscale photograph bundled with scikit-learn, 106 x 160, its first six singular triples; error "
            "relative to the hidden pixels, mean removed; 2 000 iterations for the first three. Rebalanced at a "
            "residual of 0.02, chosen with the truth in sight; at the default of 0.1 its error is 4.6 %.",
            alt="Six greyscale images of a temple: the seen pixels, the recoveries, the truth. The rebalanced recovery "
            "can hardly be told from the truth, others are smeared in rows and columns.", size=(8.6, 4.3)),
]
# fmt: on

SNIPPET = """\
import numpy as np
from steepest.landscape import MatrixSensing

rng = np.random.default_rng(0)
M = rng.standard_normal((60, 2)) @ rng.standard_normal((2, 50))   # rank 2, and nobody knows
rows, cols = rng.integers(0, M.shape, (2000, 2)).T                # entries that were seen
model = MatrixSensing(rank=4, tol=1e-6).fit((rows, cols), M[rows, cols], shape=M.shape)
print(f"rank {model.rank_}, largest error {np.abs(model.matrix_ - M).max():.1e}")
"""

REASONS = {
    "rebalanced-against-gd": "plain descent's time is one over the smallest eigenvalue of the imbalance of its random "
    "start: with every entry seen, its rate agrees with eta times that eigenvalue within 6 % for n = 10 to 80, while "
    "the rebalanced rate stays at 0.086 to 0.089. The eigenvalue grows with n and differs from draw to draw, so the "
    "ratio falls: 15.7 at n = 20 (8.8 to 18.8, three seeds), 4.7 at 35, 3.5 at 50, 2.8 at 80. With alpha shrunk as "
    "1/sqrt(n) it stays: 7.9, 8.2, 10.5. Of the rest the spread of the singular values is the cause: 9.2 at n = 50 "
    "with three equal ones.",
}

WHEN_NOT = [
    "The singular values are spread over more than a factor of about five: after the modified step the rate falls as "
    "the square of that factor; take method='gd', or a preconditioned method such as ScaledGD.",
    "The rank is known exactly: there is nothing redundant, and plain descent or ScaledGD are at least as fast.",
    "Noise is large: every over-estimated rank fits noise; choose the rank by cross-validation, or a penalty.",
    "The matrix is small and its measurements fit in memory: Gauss-Newton on the factors takes a handful of steps.",
]


def run(ctx: Context) -> None:
    """Measure; see the module."""
    setting = ctx.pick(
        tiny=rates.Setting(8, 400, 400, 400, 120, patience=10.0, most=1500, scales=(0.05, 0.1, 0.2),
                           rebalanced_scales=(0.05, 0.2)),
        quick=rates.Setting(20, 3000),
        full=rates.Setting(50, None),
        paper=rates.Setting(50, None),
    )  # fmt: skip
    with threadpool_limits(1):  # thousands of products of small matrices: a second thread only waits
        rates.measure(ctx, setting, ctx.seeds, 0.75)
        ctx.timed("spread", lambda: images.conditioning(ctx, ctx.seeds))
        ctx.progress(0.85)
        ctx.timed("digits", lambda: images.measure(ctx, ctx.seeds))
        ctx.progress(0.95)
        ctx.timed("photograph", lambda: images.photograph(ctx))
    ctx.progress(1.0)
