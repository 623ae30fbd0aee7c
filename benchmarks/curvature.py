"""Timings and rates of the curvature primitives beside curvlinops and ``jvp(grad)``, in turns."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp

from _rows import Row, Seconds, alone, compared, fitted, interleaved, rows_of
from steepest.core.extras import installed
from steepest.curvature import GGNOperator, HessianOperator, aslinearoperator, trace, unflatten

SIZES = ((64, 256), (256, 512), (512, 1024))  # width of a 64-w-w-10 tanh network, samples
REPEATS = 20


def bench(progress: Callable[[float], None] | None = None) -> list[Row]:
    """Measure every row; `progress` is told the share that is done."""
    parts = [*(lambda size=size: products(*size) for size in SIZES), exponents, trace_rates]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the peers'
        return rows_of(parts, progress)


def products(width: int, n: int) -> list[Row]:
    """One product of the Hessian and of the Gauss-Newton matrix, in gradients and beside the peers."""
    model, X, y = problem(width, n)
    loss_fn, params = nn.CrossEntropyLoss(), list(model.parameters())
    H, G = HessianOperator(model, loss_fn, (X, y)), GGNOperator(model, loss_fn, (X, y))
    v = torch.randn(H.shape[0], generator=torch.Generator().manual_seed(1))
    theta = {name: p.detach() for name, p in model.named_parameters()}
    tangent = dict(zip(theta, unflatten(v, params), strict=True))

    def loss(theta: dict[str, Tensor]) -> Tensor:
        return loss_fn(functional_call(model, theta, (X,)), y)

    runs: dict[str, Callable[[], Any]] = {
        "gradient alone": lambda: torch.autograd.grad(loss_fn(model(X), y), params),
        "H": lambda: H @ v,
        "jvp(grad)": lambda: jvp(grad(loss), (theta,), (tangent,))[1],
        "G": lambda: G @ v,
    }
    if installed("curvlinops"):
        import curvlinops

        data = [(X, y)]
        peer_H = curvlinops.HessianLinearOperator(model, loss_fn, params, data, check_deterministic=False)
        peer_G = curvlinops.GGNLinearOperator(model, loss_fn, params, data, check_deterministic=False)
        runs |= {"curvlinops H": lambda: peer_H @ v, "curvlinops G": lambda: peer_G @ v}
    seconds = warmed(runs, REPEATS)
    where = f"P={H.shape[0]} N={n}"
    rows = [
        beside("hessian-in-gradients", where, seconds, "H", "gradient alone", "<= 2.0"),
        beside("ggn-in-gradients", where, seconds, "G", "gradient alone", None),
        beside("hessian-jvp", where, seconds, "H", "jvp(grad)", "<= 0.5"),
        beside("hessian-curvlinops", where, seconds, "H", "curvlinops H", "<= 0.5"),
        beside("ggn-curvlinops", where, seconds, "G", "curvlinops G", "<= 0.667"),
    ]
    if installed("curvlinops"):
        for name, label in (("hessian", "H"), ("ggn", "G")):
            mine, theirs = runs[label](), runs[f"curvlinops {label}"]()
            difference = float((mine - theirs).norm() / theirs.norm())
            what = "relative difference to curvlinops"
            rows.append(alone(f"{name}-equal {where}", difference, "1", "<= 1e-6", what))
    return rows


def beside(name: str, where: str, seconds: Seconds, ours: str, peer: str, bound: str | None) -> Row:
    what = f"cached {'Hessian' if ours == 'H' else 'Gauss-Newton'} product"
    if peer in seconds:
        return compared(f"{name} {where}", seconds, peer, bound, what, ours)
    what += f" ({peer.split()[0]} is not installed)"
    return alone(f"{name} {where}", np.median(seconds[ours]), "s", None, what) | {"peer": peer}


def exponents() -> list[Row]:
    """How the time of a cached Hessian product grows with parameters and with samples."""
    widths, samples = (128, 256, 512, 1024), (256, 512, 1024, 2048)
    rows = []
    for name, cases in (("P", [(w, 256) for w in widths]), ("N", [(256, n) for n in samples])):
        sizes, runs = [], {}
        for width, n in cases:
            model, X, y = problem(width, n)
            H = HessianOperator(model, nn.CrossEntropyLoss(), (X, y))
            v = torch.ones(H.shape[0])
            sizes.append(H.shape[0] if name == "P" else n)
            runs[str(sizes[-1])] = lambda H=H, v=v: H @ v
        seconds = warmed(runs, 10)
        times = [min(seconds[str(size)]) for size in sizes]
        what = f"exponent of a Hessian product's time in {name}"
        rows.append(fitted(f"exponent-{name}", sizes, times, "<= 1.1", what) | {"unit": "1"})
    return rows


def trace_rates(seeds: int = 50) -> list[Row]:
    """How the errors of Hutch++ and Hutchinson fall with the products, on eigenvalues 1 / i^2."""
    n, budgets = 2000, (12, 24, 48, 96, 192, 384)
    d = torch.arange(1, n + 1, dtype=torch.float64) ** -2
    Q = torch.linalg.qr(torch.randn(n, 60, generator=torch.Generator().manual_seed(0), dtype=torch.float64)).Q

    def reflect(V: Tensor) -> Tensor:
        return V - 2 * Q @ (Q.T @ V)

    A = aslinearoperator(lambda V: reflect(d.unsqueeze(1) * reflect(V)), (n, n))
    exact, rows, last = float(d.sum()), [], {}
    for method, bound in (("hutch++", "<= -1.5"), ("hutchinson", "<= -0.35")):
        errors = np.array([[trace(A, m, method=method, seed=s).value - exact for m in budgets] for s in range(seeds)])

        def slope(errors: np.ndarray) -> float:
            return float(np.polyfit(np.log(budgets), np.log(np.sqrt((errors**2).mean(0))), 1)[0])

        rng = np.random.default_rng(0)
        slopes = [slope(errors[rng.integers(seeds, size=seeds)]) for _ in range(500)]
        interval = tuple(float(x) for x in np.quantile(slopes, (0.05, 0.95)))
        what = f"slope of log RMS error of {method} against log products, {seeds} seeds"
        rows.append(alone(f"{method}-slope", slope(errors), "1", bound, what) | {"interval": interval})
        last[method] = math.sqrt(float((errors[:, -1] ** 2).mean()))
    gain = last["hutchinson"] / last["hutch++"]
    rows[-1]["better"] = "higher"  # a slope below -0.65 would be no Monte Carlo rate: bounded from below too
    rows.append(rows[-1] | {"name": "hutchinson-slope-from-below", "bound": ">= -0.65"})
    what = "RMS error of Hutchinson over that of Hutch++ at 384 products"
    rows.append(alone("hutch++-gain", gain, "1", ">= 100", what) | {"better": "higher"})
    return rows


def problem(width: int, n: int) -> tuple[nn.Module, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 10))
    return model, torch.randn(n, 64, generator=generator), torch.randint(10, (n,), generator=generator)


def warmed(runs: dict[str, Callable[[], Any]], repeats: int) -> Seconds:
    """Seconds of every run in turns, after two rounds that do not count."""
    interleaved(runs, 2)
    return interleaved(runs, repeats)
