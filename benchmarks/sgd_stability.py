"""Readings of stability beside other tools and dense matrices, what a monitor adds to training, and exponents."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from _rows import Row, alone, compared, fastest, fitted, interleaved, rows_of
from steepest.core.random import torch_generator
from steepest.curvature import per_sample_jacobian
from steepest.landscape import TwoLayerReLU, linear_stability, stability_of_factors
from steepest.studies import sgd_stability_costs as costs

MLP = "64-256-256-10 (85,002 parameters), 512 samples"
# enough for 5 %, found by the study's full scale
BUDGETS = {"steepest": 15, "curvlinops": 9, "hessian-eigenthings": 24, "PyHessian": 90}


def bench(progress: Callable[[float], None] | None = None) -> list[Row]:
    """Measure; CPU seconds of one thread."""
    return rows_of([readings, threshold, overhead, samples, parameters], progress)


def readings() -> list[Row]:
    """lambda_max, tr H and |H|_F to 5 %."""
    model, X, y = costs.mlp_problem()
    tools = costs.readings(model, X, y, all_tools=True)
    tasks = {name: partial(tool, BUDGETS[name], 0) for name, tool in tools.items()}
    for task in tasks.values():
        task()
    seconds = interleaved(tasks, 7, time.process_time)
    what = f"lambda_max, tr H, |H|_F to 5 %, {MLP}"
    less = f"the same beside lambda_max and trace alone, {MLP}"
    rows = [
        compared(f"readings-{peer}", seconds, peer, bound, text, "steepest")
        for peer, bound, text in (
            ("curvlinops", "<= 0.5", what),
            ("hessian-eigenthings", None, less),
            ("PyHessian", None, less + ", its own of the Hessian"),
        )
        if peer in seconds
    ]
    return rows or [alone("readings", min(seconds["steepest"]), "s", None, what)]


def threshold() -> list[Row]:
    """The exact threshold beside dense matrices of order r squared, its limit, and its exponent in n at fixed rank."""
    A = torch.randn(200, 60, dtype=torch.float64, generator=torch_generator(0))
    tasks: dict[str, Callable[[], object]] = {
        "ours": lambda: stability_of_factors(A, lr=1.0, batch_size=4),
        "dense": lambda: costs.dense_threshold(A, 4),
    }
    seconds = interleaved(tasks, 2, time.process_time)
    rows = [compared("threshold-dense", seconds, "dense", "<= 0.01", "exact threshold, n=200, rank 60, B=4")]
    sizes = (400, 800, 1600, 3200)
    times = []
    for n in sizes:
        F = torch.randn(n, 40, dtype=torch.float64, generator=torch_generator(n))
        times.append(fastest(partial(_exact, F), 5, time.process_time))
    rows.append(fitted("threshold-samples", sizes, times, "<= 1.2", "exact threshold, n=400..3200, rank 40"))

    net, X = TwoLayerReLU(20, 200, dtype=torch.float64, seed=0), torch.randn(300, 20, dtype=torch.float64)
    y = torch.zeros(300, 1, dtype=torch.float64)

    def floor() -> None:
        J = per_sample_jacobian(net, X)[:, 0]
        J @ J.T

    both: dict[str, Callable[[], object]] = {
        "ours": lambda: linear_stability(net, nn.MSELoss(), X, y, lr=0.01, method="exact"),
        "Jacobian and Gram matrix": floor,
    }
    floor()
    what = "exact reading, two-layer network of 4,200 parameters, n=300, beside its limit"
    rows.append(
        compared("threshold-limit", interleaved(both, 3, time.process_time), "Jacobian and Gram matrix", None, what)
    )
    return rows


def _exact(F: torch.Tensor) -> None:
    stability_of_factors(F, lr=1.0, batch_size=4, method="exact")


def overhead() -> list[Row]:
    """A monitor every 100 steps, in percent of the training time."""
    rows = []
    for name, (value, interval), bound, what in (
        ("overhead-mlp", costs.mlp_overhead(512, 25, 30), "<= 10", f"steps on 512 samples, {MLP}"),
        ("overhead-mlp-128", costs.mlp_overhead(128, 15, 30), None, f"steps on 128 samples, {MLP}"),
        ("overhead-language", costs.language_overhead(2, 11, 15), "<= 5", "small GPT, 16 sequences a step, 2 are read"),
    ):
        rows.append(alone(name, value, "% of training", bound, what) | {"interval": interval})
    return rows


def samples() -> list[Row]:
    """Bounds mode: exponent in the number of samples."""
    sizes, times = (1024, 2048, 4096, 8192), []
    for n in sizes:
        model, X, y = costs.mlp_problem(n, 128)
        times.append(_bounds_seconds(model, X, y))
    return [fitted("bounds-samples", sizes, times, "<= 1.1", "bounds mode, 15 products, n=1024..8192")]


def parameters() -> list[Row]:
    """Bounds mode: exponent in the number of parameters."""
    sizes, times = [], []
    for width in (256, 512, 1024, 2048):
        model, X, y = costs.mlp_problem(256, width)
        sizes.append(sum(p.numel() for p in model.parameters()))
        times.append(_bounds_seconds(model, X, y))
    what = f"bounds mode, 15 products, P={sizes[0]:,}..{sizes[-1]:,}"
    return [fitted("bounds-parameters", sizes, times, "<= 1.1", what)]


def _bounds_seconds(model: nn.Module, X: torch.Tensor, y: torch.Tensor) -> float:
    loss_fn = nn.CrossEntropyLoss()
    read = partial(linear_stability, model, loss_fn, X, y, lr=1.0, method="bounds", num_matvecs=15)
    read()
    return fastest(read, 4, time.process_time)
