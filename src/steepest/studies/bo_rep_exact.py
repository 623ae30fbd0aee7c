"""Problems of the BO-REP study whose solution is known: an upper gradient that explodes, and a noisy quadratic."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from steepest.bilevel import BilevelProblem, BilevelResult, aid_cg, bo_rep, itd, stocbio
from steepest.core.random import numpy_generator, torch_generator
from steepest.studies.claim import bootstrap_interval, slope_fit
from steepest.studies.context import Context

__all__ = ["NoisyQuadratic", "calls", "exact", "exploding_problem"]

START, LENGTH, STEPS = 3.0, 0.05, 400  # of the exploding problem: x at the start, lr_x, upper steps
LARGEST = math.log(np.finfo(float).max) / 4  # |x| beyond which cosh(4 x) has no number
DIM = 10
INNER, PERIOD = 3, 2  # official representation runs, defaults of bo_rep
EPSILONS = (0.9, 0.45, 0.225, 0.1125)
LIMIT = 20_000  # upper steps to each of them


def calls(counts: dict[str, int]) -> int:
    """Oracle calls: a gradient, a Hessian product and a mixed product count one each."""
    return sum(counts[name] for name in ("upper_grad", "lower_grad", "hvp", "jvp"))


def exact(ctx: Context) -> None:
    """Measure on all of them."""
    unbounded(ctx)
    optimum_of_a_quadratic(ctx)
    refinement(ctx)
    if ctx.wants("exponent"):
        complexity(ctx)


# ---------------------------------------------------------------------------------------------- an exploding gradient


def exploding_problem() -> BilevelProblem:
    """F = cosh(4 y), f = (y - x)^2 / 2 from x = y = 3, where the upper gradient is 3e5; float64."""
    start = torch.tensor([START], dtype=torch.float64)
    return BilevelProblem(
        lambda x, y, batch: torch.cosh(4 * y).sum(), lambda x, y, batch: (y - x).square().sum() / 2, start, start
    )


def unbounded(ctx: Context) -> None:
    """Every method at one step size: where does x end?"""
    ways: dict[str, Callable[..., BilevelResult]] = {
        "BO-REP": bo_rep,
        "BO-REP, not normalized": lambda problem, **o: bo_rep(problem, normalize=False, **o),
        "aid_cg": lambda problem, **o: aid_cg(problem, lr_y=1.0, **o),
        "itd": lambda problem, **o: itd(problem, lr_y=1.0, **o),
        "stocBiO": lambda problem, **o: stocbio(problem, lr_y=1.0, **o),
    }
    steps = ctx.pick(tiny=100, quick=STEPS, full=STEPS, paper=STEPS)
    ends = {}
    for name, solve in ways.items():
        path = [START]

        def callback(intermediate_result: Any, path: list[float] = path) -> None:
            path.append(abs(intermediate_result.x.item()))
            if path[-1] > LARGEST:
                raise StopIteration

        solve(exploding_problem(), lr_x=LENGTH, maxiter=steps, callback=callback)
        ends[name] = path[-1]
        ctx.series("exploding", np.maximum(path, 0.01), method=name)
        if path[-1] > LARGEST:
            ctx.note(
                f"cosh: {name} is at |x| = {path[-1]:.0f} after {len(path) - 1} steps, F beyond the range of numbers."
            )
    straight = [START - LENGTH * k for k in range(min(steps, round(START / LENGTH)))]
    ctx.series("exploding", straight, method="theory")
    ctx.measured("unbounded-ours", ends["BO-REP"])
    ctx.measured("unbounded-aid", ends["aid_cg"])


# --------------------------------------------------------------------------------------------------- a noisy quadratic


@dataclass(frozen=True)
class NoisyQuadratic:
    """Lower y'Hy/2 - y'(Cx + b), upper |y - t|^2 / 2 + |x|^2 / 20, both with noise in gradients and in H.

    Phi(x) = F(x, y(x)) has the gradient ``A x + c``; it is scaled so that its norm at x0 is 1.

    Parameters
    ----------
    problem : BilevelProblem
    A : Tensor, shape (10, 10)
    c : Tensor, shape (10,)
    R, s : Tensor
        y(x) = R x + s.
    """

    problem: BilevelProblem
    A: Tensor
    c: Tensor
    R: Tensor
    s: Tensor

    @classmethod
    def draw(cls, seed: int, noise: float = 0.05, distance: float = 1.0) -> NoisyQuadratic:
        """Draw one; `noise` is the deviation of a gradient's entries, and that of H relative; x0 at this distance."""
        rng = numpy_generator(seed)
        U = np.linalg.qr(rng.standard_normal((DIM, DIM)))[0]
        H = torch.tensor(U @ np.diag(np.linspace(0.5, 1.0, DIM)) @ U.T)
        C, b, t, x0, y0 = (torch.tensor(rng.standard_normal(shape)) for shape in ((DIM, DIM), DIM, DIM, DIM, DIM))
        C = torch.linalg.qr(C)[0]
        R, s = torch.linalg.solve(H, C), torch.linalg.solve(H, b)
        A, c = R.mT @ R + torch.eye(DIM, dtype=torch.float64) / 10, R.mT @ (s - t)
        optimum = -torch.linalg.solve(A, c)
        x0 = optimum + distance * (x0 - optimum) / torch.linalg.vector_norm(x0 - optimum)
        scale = 1 / torch.linalg.vector_norm(A @ x0 + c)

        def sample(generator: torch.Generator, size: int | None) -> Tensor:
            return noise * torch.randn(DIM + 1, generator=generator, dtype=torch.float64)

        def upper(x: Tensor, y: Tensor, batch: Tensor | None) -> Tensor:
            value = scale * ((y - t).square().sum() / 2 + x.square().sum() / 20)
            return value if batch is None else value + scale * batch[1:] @ y

        def lower(x: Tensor, y: Tensor, batch: Tensor | None) -> Tensor:
            value = y @ H @ y / 2 - y @ (C @ x + b)
            return value if batch is None else value + batch[0] * (y @ H @ y) / 2 + batch[1:] @ y

        problem = BilevelProblem(upper, lower, x0, y0, sample_upper=sample, sample_lower=sample, name="noisy quadratic")
        return cls(problem, scale * A, scale * c, R, s)

    def gradient_norm(self, x: Tensor) -> float:
        """The norm of grad Phi."""
        return float(torch.linalg.vector_norm(self.A @ x + self.c))

    @property
    def optimum(self) -> Tensor:
        """The minimizer of Phi."""
        return -torch.linalg.solve(self.A, self.c)


def optimum_of_a_quadratic(ctx: Context) -> None:
    """1500 steps at lr_x 0.004: the distance that is left; and the lower gradients that they took."""
    steps = ctx.pick(tiny=100, quick=1500, full=1500, paper=1500)
    left, rates = [], []
    for seed in ctx.seeds:
        case = NoisyQuadratic.draw(seed, noise=0.0, distance=4.0)  # the path is 6 long
        found = bo_rep(case.problem, lr_x=0.004, maxiter=steps)
        left.append(float(torch.linalg.vector_norm(found.x - case.optimum)) / 4)
        refined = 16 * (2**5 - 1)
        rates.append((found.counts["lower_grad"] - refined) / found.nit)
    ctx.measured("quadratic", float(np.mean(left)), bootstrap_interval(left))
    ctx.measured("period-count", max(rates))


def refinement(ctx: Context) -> None:
    """The error of y(x0) after 0 to 6 epochs of 32 steps and more, over that of y0; steps of 1 / L, L = 1 known.

    The L of a single batch, which `bo_rep` measures where `lr_y` is left open, can be nearly zero at this noise.
    """
    epochs = ctx.pick(tiny=2, quick=6, full=6, paper=6)
    errors = []
    for seed in range(ctx.seed + 1, ctx.seed + 1 + ctx.pick(tiny=2, quick=2, full=10, paper=10)):
        case = NoisyQuadratic.draw(seed, noise=0.5)
        target = case.R @ case.problem.x0 + case.s
        start = torch.linalg.vector_norm(case.problem.y0 - target)
        path = [1.0]
        for e in range(1, epochs + 1):
            found = bo_rep(
                case.problem, lr_x=1e-9, lr_y=1.0, lr_z=1.0, refine_epochs=e, refine_steps=32, maxiter=1,
                random_state=seed,
            )  # fmt: skip
            path.append(float(torch.linalg.vector_norm(found.y - target) / start))
        errors.append(path)
        ctx.series("refinement", path, method="measured", seed=seed)
    last = [path[-1] for path in errors]
    ctx.measured("refinement", float(np.mean(last)), bootstrap_interval(last))
    first = float(np.median([path[1] for path in errors]))
    ctx.series("refinement", [(e, first * 2 ** (-(e - 1) / 2)) for e in range(1, epochs + 1)], method="theory")


def complexity(ctx: Context) -> None:
    """Oracle calls until the mean over the steps of |grad Phi(x_k)| is at most epsilon, rates as in the theorem."""
    epsilons = ctx.pick(tiny=EPSILONS[:2], quick=EPSILONS, full=EPSILONS, paper=EPSILONS)
    slopes, needed = [], []
    for seed in ctx.seeds:
        case = NoisyQuadratic.draw(seed)
        needed.append([_calls_to(case, epsilon, seed) for epsilon in epsilons])
        if not np.isfinite(needed[-1]).all():
            smallest = min(e for e, n in zip(epsilons, needed[-1], strict=True) if not math.isfinite(n))
            ctx.skipped("exponent", f"seed {seed} does not come to a mean gradient norm of {smallest:g} within "
                        f"{LIMIT} upper steps.")  # fmt: skip
            return
        slopes.append(-slope_fit(epsilons, needed[-1])[0])
        ctx.series(
            "complexity", list(zip([1 / e for e in epsilons], needed[-1], strict=True)), method="measured", seed=seed
        )
    ctx.measured("exponent", float(np.mean(slopes)), bootstrap_interval(slopes))
    last = float(np.median([n[-1] for n in needed]))
    ctx.series("complexity", [(1 / e, last * (epsilons[-1] / e) ** 4) for e in epsilons], method="theory")


def _calls_to(case: NoisyQuadratic, epsilon: float, seed: int) -> float:
    """1 - beta, lr_y and lr_z as epsilon^2, lr_x as epsilon^3, the refinement as long as epsilon^-2."""
    state, rate = {"total": 0.0, "spent": math.inf}, min(1.0, 12 * epsilon**2)

    def callback(intermediate_result: Any) -> None:
        state["total"] += case.gradient_norm(intermediate_result.x)
        if state["total"] <= epsilon * intermediate_result.nit:
            state["spent"] = calls(intermediate_result.counts)
            raise StopIteration

    epochs = 2 + round(2 * math.log2(EPSILONS[0] / epsilon))
    bo_rep(
        case.problem, lr_x=epsilon**3 / 2, lr_y=rate, lr_z=rate, beta=1 - min(1.0, 6 * epsilon**2),
        refine_steps=4, refine_epochs=epochs,
        maxiter=LIMIT, random_state=torch_generator(seed, torch.device("cpu"), name="seed"), callback=callback,
    )  # fmt: skip
    return state["spent"]
