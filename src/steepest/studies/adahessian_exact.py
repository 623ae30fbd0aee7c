"""What of AdaHessian can be checked exactly: estimator, update rule, averages, and the condition number."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from steepest.core.random import torch_generator
from steepest.curvature.autodiff import gradient_graph, second_gradient
from steepest.curvature.diagonal import hessian_diagonal
from steepest.optim import AdaHessian
from steepest.studies.claim import slope_fit
from steepest.studies.context import Context
from steepest.studies.images import ConvNet, classification_task, digits
from steepest.studies.training import cross_entropy

__all__ = [
    "averages_smooth",
    "blocks_average",
    "condition_number_does_not_matter",
    "estimator_is_exact",
    "update_is_the_papers",
]

BLOCKS = ("auto", "row", None, 1, 4, 5)


def tanh_network(g: torch.Generator) -> tuple[list[nn.Parameter], Callable[[], Tensor], Tensor]:
    """Thirty parameters in float64, their loss, and its dense Hessian."""
    params = [nn.Parameter(torch.randn(s, generator=g, dtype=torch.float64)) for s in ((4, 4), (4,), (2, 4), (2,))]
    x, y = (torch.randn(20, n, generator=g, dtype=torch.float64) for n in (4, 2))

    def loss() -> Tensor:
        W, b, V, c = params
        return ((x @ W.T + b).tanh() @ V.T + c - y).square().mean()

    return params, loss, _dense(loss, params)


def _dense(loss: Callable[[], Tensor], params: Sequence[Tensor]) -> Tensor:
    """The Hessian, one column a product."""
    columns = []
    graph = gradient_graph(loss, params)
    for i, p in enumerate(params):
        for j in range(p.numel()):
            v = [torch.zeros_like(q) for q in params]
            v[i].view(-1)[j] = 1.0
            Hv = second_gradient(graph, params, v, retain_graph=True)
            columns.append(torch.cat([h.reshape(-1) for h in Hv]))
    return torch.stack(columns, 1)


def estimator_is_exact(ctx: Context) -> None:
    """Many probes against the dense diagonal; one probe where the Hessian is diagonal."""
    params, loss, H = tanh_network(ctx.generator)
    n = ctx.pick(tiny=200, quick=8_000, full=20_000, paper=20_000)
    d = torch.cat([d.reshape(-1) for d in hessian_diagonal(loss(), params, n_samples=n, generator=ctx.generator)])
    ctx.measured("hutchinson-unbiased", float((d - H.diagonal()).norm() / H.diagonal().norm()))
    a = torch.randn(50, generator=ctx.generator, dtype=torch.float64)
    x = nn.Parameter(torch.ones(50, dtype=torch.float64))
    (d,) = hessian_diagonal((a * x**4).sum() / 12, [x], generator=ctx.generator)
    ctx.measured("hutchinson-exact", float((d - a).norm() / a.norm()))


def update_is_the_papers(ctx: Context) -> None:
    """Thirty steps on sum a x^4 / 12, whose Hessian is diag(a x^2), beside the algorithm box in NumPy."""
    worst = 0.0
    periods = ctx.pick(tiny=(1,), quick=(1, 3), full=(1, 2, 3), paper=(1,))
    blocks = ctx.pick(tiny=("auto", 5), quick=BLOCKS, full=BLOCKS, paper=BLOCKS)
    for block in blocks:
        for average in ("signed", "abs"):
            for power in (1.0, 0.5):
                for k in periods:
                    worst = max(worst, _distance_to_transcription(block, average, power, k, seed=ctx.seed))
    ctx.measured("update-rule", worst)


def _distance_to_transcription(block: Any, average: str, power: float, k: int, seed: int) -> float:
    g = torch_generator(seed)
    shapes = [(2, 3, 2, 2), (4, 6), (5,)]
    a = [torch.randn(s, generator=g, dtype=torch.float64) for s in shapes]
    params = [nn.Parameter(0.5 + torch.rand(s, generator=g, dtype=torch.float64)) for s in shapes]
    x = [p.detach().numpy().copy() for p in params]
    lr, b1, b2, eps, decay = 0.02, 0.9, 0.99, 1e-3, 0.1
    opt = AdaHessian(params, lr, (b1, b2), eps, decay, power, update_each=k, block=block, average=average, seed=seed)
    m, v = [np.zeros_like(t) for t in x], [np.zeros_like(t) for t in x]
    n = 0
    for t in range(1, 31):
        loss = torch.stack([(c * p**4).sum() for c, p in zip(a, params)]).sum() / 12
        if opt.hessian_due():
            opt.update_hessian(loss, retain_graph=True)
        opt.zero_grad()
        loss.backward()
        opt.step()
        n += (t - 1) % k == 0
        for i, c in enumerate(a):
            if (t - 1) % k == 0:
                D = c.numpy() * x[i] ** 2
                v[i] = b2 * v[i] + (1 - b2) * _block_means(np.abs(D) if average == "abs" else D, block) ** 2
            m[i] = b1 * m[i] + (1 - b1) * c.numpy() * x[i] ** 3 / 3
            step = m[i] / (1 - b1**t) / ((v[i] / (1 - b2**n)) ** (power / 2) + eps)
            x[i] = x[i] - lr * (step + decay * x[i])
    return max(float(np.abs(p.detach().numpy() - q).max() / np.abs(q).max()) for p, q in zip(params, x))


def _block_means(D: np.ndarray, block: Any) -> np.ndarray:
    if isinstance(block, int) and D.ndim > 1:
        flat = D.reshape(-1)
        parts = [flat[i : i + block] for i in range(0, len(flat), block)]
        return np.concatenate([np.full(len(p), p.mean()) for p in parts]).reshape(D.shape)
    axes = tuple(range(2, D.ndim)) if D.ndim > 2 else (1,) if D.ndim == 2 and block == "row" else ()
    return np.broadcast_to(D.mean(axes, keepdims=True), D.shape) if axes and isinstance(block, str) else D


def averages_smooth(ctx: Context) -> None:
    """A noisy quadratic at rest: spread of sqrt(v_hat) after 200 steps beside that of one |D|."""
    d, n = 60, ctx.pick(tiny=2, quick=12, full=60, paper=20)
    A = torch.randn(d, d, generator=ctx.generator, dtype=torch.float64) / math.sqrt(d)
    A = (A + A.T) / 2 + 3 * torch.eye(d, dtype=torch.float64)

    def end(beta: float, steps: int, seed: int) -> Tensor:
        x = nn.Parameter(torch.zeros(d, dtype=torch.float64))
        opt = AdaHessian([x], lr=0.0, betas=(0.0, beta), block=None, seed=seed)
        for _ in range(steps):
            opt.update_hessian(0.5 * x @ A @ x)
            x.grad = torch.zeros_like(x)
            opt.step()
        return opt.hessian_diagonal()[0]

    steps = ctx.pick(tiny=20, quick=200, full=200, paper=200)
    raw = torch.stack([end(0.0, 1, seed) for seed in range(10 * n)])
    smooth = torch.stack([end(0.999, steps, 10_000 + seed) for seed in range(n)])
    ratio = (smooth.std(0) / smooth.mean(0)) / (raw.std(0) / raw.mean(0))
    ctx.measured("smoothing", float(ratio.mean()))


def blocks_average(ctx: Context) -> None:
    """Kernels of a convolutional net on digits: many probes, single elements and block means, exact diagonal."""
    data, g = digits(300), ctx.generator
    task = classification_task(data, lambda: ConvNet(width=4))
    model = task.model(ctx.seed).double()
    x, y = data.x_train[:32].double(), data.y_train[:32]
    kernels = [p for p in model.parameters() if p.dim() == 4]
    n = ctx.pick(tiny=20, quick=500, full=500, paper=500)
    graph = gradient_graph(cross_entropy(model, x, y), kernels)
    exact = []
    for i, w in enumerate(kernels):
        rows = range(w.numel() if ctx.scale != "tiny" else 9)
        d = torch.zeros(w.numel(), dtype=torch.float64)
        for j in rows:
            e = [torch.zeros_like(q) for q in kernels]
            e[i].view(-1)[j] = 1.0
            d[j] = second_gradient(graph, kernels, e, retain_graph=True)[i].reshape(-1)[j]
        exact.append(d.view_as(w).mean((2, 3)).reshape(-1))
    means = torch.cat(exact)  # (blocks,)
    single, signed, absolute = [], [], []
    for _ in range(n):
        z = [torch.randint(0, 2, w.shape, generator=g, dtype=w.dtype) * 2 - 1 for w in kernels]
        D = [a * b for a, b in zip(z, second_gradient(graph, kernels, z, retain_graph=True))]
        single.append(torch.cat([d.reshape(-1) for d in D]))
        signed.append(torch.cat([d.mean((2, 3)).reshape(-1) for d in D]))
        absolute.append(torch.cat([d.abs().mean((2, 3)).reshape(-1) for d in D]))
    raw, s, b = (torch.stack(v) for v in (single, signed, absolute))
    ctx.measured("block-average-variance-signed", float(s.var(0).mean() / raw.var(0).mean()))
    ctx.measured("block-average-variance-abs", float(b.var(0).mean() / raw.abs().var(0).mean()))
    off = (s - means).mean(1)  # mean over blocks, one number a probe
    ctx.measured("block-average-bias-signed", float(off.mean().abs() / (off.std() / math.sqrt(n))))
    ctx.measured("block-average-bias-abs", float((b.mean(0) - means.abs()).mean() / means.abs().mean()))


def condition_number_does_not_matter(ctx: Context) -> None:
    """Diagonal quadratics: steps until the loss is 1e-8 of its start, beside gradient descent at its best step."""
    kappas = (1e2, 1e4, 1e6)
    ours, descent = [], []
    for kappa in kappas:
        a = torch.logspace(0, math.log10(kappa), 20, dtype=torch.float64)
        x = nn.Parameter(torch.ones(20, dtype=torch.float64))
        opt = AdaHessian([x], lr=1.0, betas=(0.0, 0.99), seed=ctx.seed)
        goal = 1e-8 * float(a.sum() / 2)
        for t in range(1, 1001):  # noqa: B007
            loss = (a * x**2).sum() / 2
            opt.update_hessian(loss, retain_graph=True)
            opt.zero_grad()
            loss.backward()
            opt.step()
            if float((a * x.detach() ** 2).sum() / 2) <= goal:
                break
        ours.append(t)
        descent.append(_steps_of_gradient_descent(a.numpy(), goal))
    ctx.series("conditioning", list(zip(kappas, ours)), method="AdaHessian")
    ctx.series("conditioning", list(zip(kappas, descent)), method="gradient descent")
    ctx.measured("conditioning", max(ours) / min(ours))
    ctx.measured("conditioning-gradient-descent", slope_fit(kappas, descent)[0])


def _steps_of_gradient_descent(a: np.ndarray, goal: float) -> int:
    """Coordinates decouple, x_i(t) = (1 - lr a_i)^t, so that the number of steps is found by bisection."""
    shrink = np.abs(1 - 2 / (a.min() + a.max()) * a)
    low, high = 0, 1
    while (a * shrink ** (2 * high)).sum() / 2 > goal:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if (a * shrink ** (2 * middle)).sum() / 2 > goal else (low, middle)
    return high
