"""What the paper proves about SSO, measured: majorization, stationarity, and the rates for convex losses."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from steepest.core.random import torch_generator
from steepest.optim.target_surrogate import TargetSurrogate
from steepest.studies.claim import bootstrap_interval, slope_fit
from steepest.studies.context import Context
from steepest.studies.target_surrogate_digits import network
from steepest.studies.task import fresh_model

__all__ = ["along_a_step", "convex_rates", "majorization", "stationarity"]

ROUNDING = 1e-10
Loss = Callable[[Tensor], Tensor]


# --------------------------------------------------------------------------------------------------------- majorization


@dataclass(frozen=True)
class Problem:
    """A loss of targets, its columns, and the smoothness L of the loss of one row."""

    name: str
    columns: int
    smoothness: float
    loss: Loss


def problems(y: Tensor) -> list[Problem]:
    """Squared error to one-hot vectors, logistic loss of odd digits, and softmax cross-entropy."""
    hot, odd = F.one_hot(y, 10).double(), (y % 2).double()
    return [
        Problem("squared", 10, 2.0, lambda z: (z - hot).square().sum(1).mean()),
        Problem("logistic", 1, 0.25, lambda z: F.binary_cross_entropy_with_logits(z[:, 0], odd)),
        Problem("softmax", 10, 0.5, lambda z: F.cross_entropy(z, y)),
    ]


def majorization(ctx: Context) -> None:
    """Count violations of ``s >= l`` and of a loss that never rises, full batch, eta = 1/L, float64.

    s is computed here from its definition, at the ends of the steps and at random parameters around them.
    """
    X, y = ctx.data("digits")
    rows = slice(None, None, ctx.pick(tiny=30, quick=6, full=1, paper=1))
    X, y = torch.tensor(X / 16)[rows], torch.tensor(y)[rows]
    plan = ctx.pick(
        tiny=((1, 2), (5, 2)),
        quick=((1, 6), (5, 6), (20, 3), (100, 1)),
        full=((1, 20), (5, 20), (20, 10), (100, 3)),
        paper=((1, 20),),
    )
    g = torch_generator(ctx.seed)
    outside = risen = points = steps = 0
    for problem in problems(y):
        for inner in ("armijo", "lbfgs"):
            for inner_steps, outer_steps in plan:
                model = _double(problem.columns, ctx.seed)
                optimizer = TargetSurrogate(
                    model.parameters(), target_lr=1 / problem.smoothness, inner=inner, inner_steps=inner_steps
                )
                for _ in range(outer_steps):
                    z_t = model(X).detach()
                    s = _surrogate(problem, z_t)
                    before = float(problem.loss(z_t))
                    optimizer.step(partial(model, X), problem.loss)
                    z = model(X).detach()
                    after = float(problem.loss(z))
                    risen += after > before + ROUNDING
                    outside += after > optimizer.info["surrogate"][-1] + ROUNDING
                    outside += abs(float(s(z)) - optimizer.info["surrogate"][-1]) > 1e-8
                    far = [_moved(model, X, scale, g) for scale in (0.01, 0.1, 1.0)]
                    outside += sum(float(problem.loss(v)) > float(s(v)) + ROUNDING for v in far)
                    points, steps = points + 5, steps + 1
    ctx.measured("bound-majorizes", outside)
    ctx.measured("bound-monotone", risen)
    ctx.note(f"majorization: {points} comparisons of s and l and {steps} outer steps on {len(X)} digits, float64.")


def _double(columns: int, seed: int) -> nn.Module:
    def build() -> nn.Module:
        return nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, columns)).double()

    return fresh_model(build, seed)


def _surrogate(problem: Problem, z_t: Tensor) -> Loss:
    """S by its definition as a function of targets."""
    leaf = z_t.clone().requires_grad_()
    value = problem.loss(leaf)
    (g,) = torch.autograd.grad(value, leaf)
    weight = problem.smoothness / len(z_t)
    return lambda z: value.detach() + (g * (z - z_t)).sum() + weight / 2 * (z - z_t).square().sum()


def _moved(model: nn.Module, X: Tensor, scale: float, g: torch.Generator) -> Tensor:
    noisy = {
        name: p.detach() + scale * torch.randn(p.shape, generator=g, dtype=p.dtype)
        for name, p in model.named_parameters()
    }
    return torch.func.functional_call(model, noisy, (X,)).detach()


def along_a_step(ctx: Context) -> None:
    """Keep loss and surrogates along the line through the first outer step, for the figure."""
    X, y = ctx.data("digits")
    X, y = torch.tensor(X / 16), torch.tensor(y)
    model = _double(10, ctx.seed)
    names = [name for name, _ in model.named_parameters()]
    start = [p.detach().clone() for p in model.parameters()]
    z_t = model(X).detach()
    softmax = problems(y)[2]
    euclidean = _surrogate(softmax, z_t)
    p_t = z_t.softmax(1)
    g = (p_t - F.one_hot(y, 10)) / len(X)

    def kl(z: Tensor) -> Tensor:
        divergence = (p_t * (p_t.log() - z.log_softmax(1))).sum()
        return softmax.loss(z_t) + (g * (z - z_t)).sum() + divergence / len(X)

    TargetSurrogate(model.parameters(), target_lr=2.0, inner="lbfgs").step(partial(model, X), softmax.loss)
    step = [p.detach() - w for p, w in zip(model.parameters(), start, strict=True)]
    functions = {"loss": softmax.loss, "surrogate, Euclidean": euclidean, "surrogate, KL": kl}
    curves: dict[str, list[tuple[float, float]]] = {name: [] for name in functions}
    for t in np.linspace(-1, 2, 31).tolist():
        at = {name: w + t * d for name, w, d in zip(names, start, step, strict=True)}
        z = torch.func.functional_call(model, at, (X,)).detach()
        for name, function in functions.items():
            curves[name].append((t, float(function(z))))
    for name, curve in curves.items():
        ctx.series("bound", curve, method=name)


# --------------------------------------------------------------------------------------------------------- stationarity


def stationarity(ctx: Context) -> None:
    """Full batch on a non-convex network: how the smallest squared gradient falls with the outer steps."""
    X, y = ctx.data("digits")
    X, y = torch.tensor(X / 16, dtype=torch.float32), torch.tensor(y)
    steps = ctx.pick(tiny=12, quick=300, full=300, paper=300)
    drops, slopes = [], []
    for seed in ctx.seeds[:3]:
        model = fresh_model(network, seed)
        optimizer = TargetSurrogate(model.parameters(), target_lr=2.0, inner="lbfgs")
        norms = []
        for _ in range(steps):
            loss = F.cross_entropy(model(X), y)
            grads = torch.autograd.grad(loss, list(model.parameters()))
            norms.append(sum(float(h.square().sum()) for h in grads))
            optimizer.step(partial(model, X), lambda z: F.cross_entropy(z, y))
        least = np.minimum.accumulate(norms)
        t = np.arange(1, steps + 1)
        drops.append(least[0] / least[-1])
        slopes.append(slope_fit(t[steps // 30 :], least[steps // 30 :])[0])
        ctx.series("stationarity", zip(t.tolist(), least.tolist(), strict=True), method="SSO", seed=seed)
        ctx.series("stationarity", [(k, least[0] / k) for k in (1, steps)], method="theory: 1/t", seed=seed)
    ctx.measured("stationary-drop", float(np.median(drops)), bootstrap_interval(drops, statistic=np.median))
    ctx.measured("stationary-slope", float(np.median(slopes)), bootstrap_interval(slopes, statistic=np.median))


# --------------------------------------------------------------------------------------------------------- convex rates


def convex_rates(ctx: Context) -> None:
    """Least squares with mini-batches: interpolated, then with noise in the data."""
    linear, slopes = [], []
    n, d, batch = 400, 20, 5
    for seed in ctx.seeds[:3]:
        g = torch_generator(seed)
        X = torch.randn(n, d, generator=g, dtype=torch.float64)
        truth = torch.randn(d, 1, generator=g, dtype=torch.float64)
        noise = torch.randn(n, 1, generator=g, dtype=torch.float64)
        steps = ctx.pick(tiny=16, quick=60, full=60, paper=60)
        gaps = _suboptimality(X, X @ truth, steps, batch, g, target_lr=0.5)
        ctx.series("convex", _positive(gaps), method="interpolated, constant eta", seed=seed)
        linear.append(_share_of_even_quarters(gaps))
        steps = ctx.pick(tiny=16, quick=300, full=3000, paper=3000)
        gaps = _suboptimality(X, X @ truth + noise, steps, batch, g, target_lr=0.5, schedule="sqrt")
        t = np.arange(1, len(gaps) + 1)
        ctx.series("convex", _positive(gaps), method="noisy, eta / sqrt(t)", seed=seed)
        late = t >= max(2, steps // 100)
        slopes.append(slope_fit(t[late], np.maximum(gaps[late], 1e-300))[0])
        ctx.series("convex", [(k, gaps[0] / math.sqrt(k)) for k in (1, steps)], method="theory: 1/sqrt(t)", seed=seed)
    ctx.measured("convex-linear", float(np.mean(linear)))
    ctx.measured("convex-noisy", float(np.median(slopes)), bootstrap_interval(slopes, statistic=np.median))


def _suboptimality(X: Tensor, y: Tensor, steps: int, batch: int, g: torch.Generator, **options: Any) -> np.ndarray:
    """Mean squared error above its minimum before every outer step, inner minimization to machine precision."""
    w = nn.Parameter(torch.zeros(X.shape[1], 1, dtype=X.dtype))
    best = float((X @ torch.linalg.lstsq(X, y).solution - y).square().mean())

    def exact(params: Any) -> torch.optim.Optimizer:
        return torch.optim.LBFGS(
            params, max_iter=60, tolerance_grad=1e-15, tolerance_change=0.0, line_search_fn="strong_wolfe"
        )

    optimizer = TargetSurrogate([w], inner=exact, inner_steps=1, inner_tol=0.0, **options)
    gaps = []
    for _ in range(steps):
        gaps.append(float((X @ w.detach() - y).square().mean()) - best)
        rows = torch.randint(len(X), (batch,), generator=g)
        optimizer.step(partial(_fit, X[rows], w), partial(_squared_error, y[rows]))
    return np.array(gaps)


def _fit(X: Tensor, w: Tensor) -> Tensor:
    return X @ w


def _squared_error(y: Tensor, z: Tensor) -> Tensor:
    return (z - y).square().mean()


def _share_of_even_quarters(gaps: np.ndarray) -> float:
    """Share of quarters in which the logarithm falls by at least half its mean fall; a linear rate has all four."""
    logs = np.log(np.maximum(gaps, 1e-300))
    at = np.linspace(0, len(logs) - 1, 5).astype(int)
    falls = -np.diff(logs[at])
    return float(np.mean(falls >= 0.5 * falls.mean())) if falls.mean() > 0 else 0.0


def _positive(gaps: np.ndarray) -> list[tuple[float, float]]:
    return [(t, float(gap)) for t, gap in enumerate(gaps, 1) if gap > 0]
