"""Timings and rates of the curvature primitives beside curvlinops and ``jvp(grad)``, interleaved, one thread.

``bench()`` returns one dict a row: name, ours (seconds, or a number), peer, ratio (ours / peer, median over interleaved
pairs), interval (90 % bootstrap of that median), bound (on the ratio, or on ours where there is no peer), unit, what
(in words) and better ("lower" or "higher").
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp

from steepest.core.extras import installed
from steepest.curvature import GGNOperator, HessianOperator, aslinearoperator, trace, unflatten

SIZES = ((64, 256), (256, 512), (512, 1024))  # width of a 64-w-w-10 tanh network, samples
REPEATS = 20
Row = dict[str, Any]


def bench(progress: Callable[[float], None] | None = None) -> list[Row]:
    """Measure every row; `progress` is told the share that is done."""
    parts = [*(lambda size=size: products(*size) for size in SIZES), exponents, trace_rates]
    rows: list[Row] = []
    with one_thread():
        for i, part in enumerate(parts):
            rows += part()
            if progress is not None:
                progress((i + 1) / len(parts))
    return rows


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
        "gradient": lambda: torch.autograd.grad(loss_fn(model(X), y), params),
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
    seconds = interleaved(runs)
    where = f"P={H.shape[0]} N={n}"
    rows = [
        compared(f"hessian-in-gradients {where}", seconds, "H", "gradient", "<= 2.0", "cached Hessian product"),
        compared(f"ggn-in-gradients {where}", seconds, "G", "gradient", None, "cached Gauss-Newton product"),
        compared(f"hessian-jvp {where}", seconds, "H", "jvp(grad)", "<= 0.5", "cached Hessian product"),
        compared(f"hessian-curvlinops {where}", seconds, "H", "curvlinops H", "<= 0.5", "cached Hessian product"),
        compared(f"ggn-curvlinops {where}", seconds, "G", "curvlinops G", "<= 0.667", "cached Gauss-Newton product"),
    ]
    if installed("curvlinops"):
        for name, ours, theirs in (
            ("hessian", runs["H"], runs["curvlinops H"]),
            ("ggn", runs["G"], runs["curvlinops G"]),
        ):
            a, b = ours(), theirs()
            difference = float((a - b).norm() / b.norm())
            rows.append(
                number(f"{name}-equal {where}", difference, "<= 1e-6", "1", "relative difference to curvlinops")
            )
    return rows


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
        seconds = interleaved(runs, repeats=10)
        times = [min(seconds[str(size)]) for size in sizes]
        slope = float(np.polyfit(np.log(sizes), np.log(times), 1)[0])
        rows.append(number(f"exponent-{name}", slope, "<= 1.1", "1", f"exponent of a Hessian product's time in {name}"))
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

        interval = bootstrap(lambda rows, errors=errors, slope=slope: slope(errors[rows]), seeds)
        what = f"slope of log RMS error of {method} against log products, {seeds} seeds"
        rows.append(number(f"{method}-slope", slope(errors), bound, "1", what) | {"interval": interval})
        last[method] = math.sqrt(float((errors[:, -1] ** 2).mean()))
    gain = last["hutchinson"] / last["hutch++"]
    rows[-1]["better"] = "higher"  # a slope below -0.65 would be no Monte Carlo rate: bounded from below too
    rows.append(rows[-1] | {"name": "hutchinson-slope-from-below", "bound": ">= -0.65"})
    rows.append(
        number("hutch++-gain", gain, ">= 100", "1", "RMS error of Hutchinson over that of Hutch++ at 384 products")
        | {"better": "higher"}
    )
    return rows


def problem(width: int, n: int) -> tuple[nn.Module, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 10))
    return model, torch.randn(n, 64, generator=generator), torch.randint(10, (n,), generator=generator)


def interleaved(runs: dict[str, Callable[[], Any]], repeats: int = REPEATS) -> dict[str, list[float]]:
    """Time every run once a round, after two rounds that do not count."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for i in range(repeats + 2):
            for name, run in runs.items():
                start = time.perf_counter()
                run()
                if i >= 2:
                    seconds[name].append(time.perf_counter() - start)
    return seconds


def compared(name: str, seconds: dict[str, list[float]], ours: str, peer: str, bound: str | None, what: str) -> Row:
    row = number(name, float(np.median(seconds[ours])), bound, "s", f"{what}, seconds; ratio to {peer}") | {
        "peer": peer
    }
    if peer not in seconds:
        return row | {"bound": None, "what": f"{what} ({peer.split()[0]} is not installed)"}
    ratios = np.array(seconds[ours]) / np.array(seconds[peer])
    interval = bootstrap(lambda rows: float(np.median(ratios[rows])), len(ratios))
    return row | {"ratio": float(np.median(ratios)), "interval": interval}


def number(name: str, value: float, bound: str | None, unit: str, what: str) -> Row:
    return {
        "name": name,
        "ours": value,
        "peer": None,
        "ratio": None,
        "interval": None,
        "bound": bound,
        "unit": unit,
        "what": what,
        "better": "lower",
    }


def bootstrap(statistic: Callable[[np.ndarray], float], n: int) -> list[float]:
    rng = np.random.default_rng(0)
    values = [statistic(rng.integers(n, size=n)) for _ in range(500)]
    return [float(x) for x in np.quantile(values, (0.05, 0.95))]


@contextmanager
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
