"""What score regression costs beside kernel ridge, an autograd loop and the limits of theory, in CPU seconds."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from _rows import Row, alone, compared, fastest, fitted, in_child, interleaved, rows_of
from steepest.core.extras import installed
from steepest.generative import KernelGradientFlow, TwoLayerReLU, relu_ntk
from steepest.generative._full_batch import FullBatch
from steepest.generative._stopping import step_grid
from steepest.studies.provenance import peak_memory
from steepest.studies.score_estimation_peers import ridge_predictions

N_KERNEL, N_TEST, D = 1500, 500, 2
N_STEP, WIDTH = 1000, 2048
PENALTIES = 20


def bench(progress: Callable[[float], None] | None = None) -> list[Row]:
    """Measure every row; `progress` is told the share that is done."""
    parts = [against_ridge, against_autograd, chunks, step_exponents, kernel_exponents, memory_exponent]
    if installed("neural_tangents"):
        parts.append(neural_tangents)
    return rows_of(parts, progress)


def problem(n: int, d: int = D) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(n)
    U = torch.cat([torch.randn(n, d + 1, generator=g, dtype=torch.float64), torch.ones(n, 1).double()], 1)
    return U, torch.sin(2 * U[:, :d]) + 0.5 * torch.randn(n, d, generator=g, dtype=torch.float64)


def against_ridge() -> list[Row]:
    """All stops from one decomposition against twenty ridge values, the kernel at hand for both."""
    U, Y = problem(N_KERNEL)
    V, truth = problem(N_TEST)[0], torch.sin(2 * problem(N_TEST)[0][:, :D])
    K, K_test = relu_ntk(U), relu_ntk(V, U)
    step_size = 0.9 / float(torch.linalg.eigvalsh(K / N_KERNEL)[-1])
    errors: dict[str, float] = {}

    def ours(n_stops: int) -> None:
        flow = KernelGradientFlow(K, Y, step_size=step_size)
        found = [flow.predict(K_test, k) for k in step_grid(10**6, n_stops)]
        errors[f"{n_stops} stops"] = min(float((f - truth).square().mean()) for f in found)

    def ridge() -> None:
        values = np.geomspace(1e-6, 1e2, PENALTIES) * N_KERNEL
        found = ridge_predictions(K.numpy(), Y.numpy(), K_test.numpy(), values)
        errors["ridge"] = min(float(np.square(f - truth.numpy()).mean()) for f in found)

    tasks = {"ours": partial(ours, PENALTIES), "80 stops": partial(ours, 80), "20 ridge solves": ridge}
    seconds = interleaved(tasks, 5, time.process_time)
    best = f"best error {errors['20 stops']:.4f} (ours), {errors['ridge']:.4f}"
    return [
        compared("path", seconds, "20 ridge solves", "<= 0.5", f"n = {N_KERNEL}, 20 stops, {best}"),
        compared("path of 80", seconds, "20 ridge solves", None, "the same with 80 stops", ours="80 stops"),
        alone("path error", errors["20 stops"] / errors["ridge"], "x the best of ridge", "<= 1.05", "clean error"),
    ]


def against_autograd() -> list[Row]:
    """A full-batch step by hand against the same by autograd."""
    U, Y = problem(N_STEP)

    def by_hand(chunk: int | None) -> Callable[[], None]:
        net = TwoLayerReLU(D + 2, D, WIDTH, generator=0, dtype=torch.float64)
        descent = FullBatch(net, U, Y, chunk=chunk)
        return lambda: [descent.step(1e-3) for _ in range(5)] and None

    net = TwoLayerReLU(D + 2, D, WIDTH, generator=0, dtype=torch.float64)
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)

    def autograd() -> None:
        for _ in range(5):
            optimizer.zero_grad()
            ((net(U) - Y).square().sum() / (2 * N_STEP)).backward()
            optimizer.step()

    tasks = {"ours": by_hand(None), "unchunked": by_hand(N_STEP), "autograd": autograd}
    seconds = interleaved(tasks, 9, time.process_time)
    what = f"five full-batch steps, n = {N_STEP}, width {WIDTH}, float64"
    return [
        compared("step", seconds, "autograd", "<= 0.6666666666666666", what),
        compared("step, unchunked", seconds, "autograd", None, what, ours="unchunked"),
    ]


def chunks() -> list[Row]:
    """Seconds of a step by rows of a chunk."""
    U, Y = problem(N_STEP)
    rows = []
    for chunk in (10, 25, 50, 100, 200, 500):
        descent = FullBatch(TwoLayerReLU(D + 2, D, WIDTH, generator=0, dtype=torch.float64), U, Y, chunk=chunk)
        seconds = fastest(lambda descent=descent: descent.step(1e-3), 9, time.process_time)
        rows.append(alone(f"step, chunk {chunk}", seconds, "s", None, f"n = {N_STEP}, width {WIDTH}"))
    flops = 6 * N_STEP * WIDTH * (D + 2)
    best = min(rows, key=lambda row: row["ours"])
    a, b = torch.rand(1024, 1024).double(), torch.rand(1024, 1024).double()
    peak = 2 * 1024**3 / fastest(lambda: a @ b, 5, time.process_time)
    what = "flops 6 n m (d + 2) over the best time, beside those of a square product in the same run"
    return [*rows, alone("step, share of peak", flops / best["ours"] / peak, "x peak", None, what)]


def step_exponents() -> list[Row]:
    """The step is linear in rows and in width."""

    def seconds(n: int, width: int) -> float:
        U, Y = problem(n)
        descent = FullBatch(TwoLayerReLU(D + 2, D, width, generator=0, dtype=torch.float64), U, Y)
        return fastest(lambda: descent.step(1e-3), 9, time.process_time)

    sizes, widths = (500, 1000, 2000, 4000), (1024, 2048, 4096, 8192)
    return [
        fitted("step in n", sizes, [seconds(n, WIDTH) for n in sizes], "between(0.85, 1.15)", f"width {WIDTH}"),
        fitted("step in width", widths, [seconds(500, m) for m in widths], "between(0.85, 1.15)", "n = 500"),
    ]


def _kernel(n: int) -> None:
    U, Y = problem(n)
    KernelGradientFlow(relu_ntk(U), Y, step_size=1e-3).coef(100)


def kernel_exponents() -> list[Row]:
    """Kernel, decomposition and one stop."""
    sizes = (400, 800, 1600, 3200)
    seconds = [fastest(partial(_kernel, n), 2, time.process_time) for n in sizes]
    return [fitted("kernel in n", sizes, seconds, "<= 3.0", "kernel, eigendecomposition and one stop")]


def kernel_peak(n: int) -> float:
    """GiB beyond what the imports take, in a process of its own."""
    before = peak_memory()
    _kernel(n)
    return (peak_memory() - before) / 2**30


def memory_exponent() -> list[Row]:
    """Peak memory of the kernel's path."""
    sizes = (1500, 3000)
    peaks = [in_child(kernel_peak, n) for n in sizes]
    row = fitted("kernel memory in n", sizes, peaks, "<= 2.1", f"peak {peaks[-1]:.2f} GiB at n = {sizes[-1]}")
    return [row | {"interval": None}]


def neural_tangents() -> list[Row]:
    """The same kernel from neural-tangents, which parametrizes it without the width of the input."""
    from neural_tangents import stax

    U = problem(200)[0].numpy()
    kernel = stax.serial(stax.Dense(64), stax.Relu(), stax.Dense(1))[2]
    both = kernel(U, U, ("ntk", "nngp"))
    theirs = U.shape[1] * np.asarray(both.ntk - both.nngp)
    difference = np.abs(theirs - relu_ntk(U)).max() / np.abs(theirs).max()
    return [alone("kernel, neural-tangents", difference, "relative difference", "<= 1e-6", "n = 200")]
