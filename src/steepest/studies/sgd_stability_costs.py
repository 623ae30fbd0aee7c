"""What a reading costs: a monitor beside the training it watches, and three numbers beside other tools."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable
from itertools import islice

import numpy as np
import torch
from torch import Tensor, nn

from steepest.core.errors import ConvergenceWarning
from steepest.core.extras import installed, require
from steepest.core.random import torch_generator
from steepest.landscape import StabilityMonitor, linear_stability, stability_of_factors
from steepest.landscape._second_moment import noise_fraction
from steepest.studies.claim import bootstrap_interval
from steepest.studies.context import Context
from steepest.studies.language import QUICK, language_task
from steepest.studies.training import fresh_model

__all__ = ["ClassesFirst", "dense_threshold", "measure_costs", "mlp_problem", "readings"]

EVERY = 100
NO_NORM = {"PyHessian": "of the Hessian, without |H|_F", "hessian-eigenthings": "without |H|_F"}
"""Tools that do not give all three numbers, and what they give."""
Values = tuple[float, float, float]


class ClassesFirst(nn.Module):
    """A language model whose logits have the classes on the second axis, where `CrossEntropyLoss` wants them."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        """Give logits (n, vocabulary, length)."""
        logits: Tensor = self.model(x)
        return logits.transpose(1, 2)


def mlp_problem(n: int = 512, width: int = 256, seed: int = 0) -> tuple[nn.Module, Tensor, Tensor]:
    """A network 64-256-256-10 of 85,002 parameters, and random inputs whose labels another network gives."""

    def build() -> nn.Module:
        return nn.Sequential(nn.Linear(64, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 10))

    X = torch.randn(n, 64, generator=torch_generator(seed))
    with torch.no_grad():
        y = fresh_model(build, seed + 1)(X).argmax(1)
    return fresh_model(build, seed), X, y


# ------------------------------------------------------------------------------------------------------------- overhead


def overhead(
    step: Callable[[], None], monitor: StabilityMonitor, lr: float, *, rounds: int, steps: int
) -> tuple[float, tuple[float, float]]:
    """Percent of the CPU time of 100 steps that a reading takes: median over turns, 90 % interval."""
    monitor.measure(lr=lr)
    shares = []
    for _ in range(rounds):
        start = time.process_time()
        for _ in range(steps):
            step()
        middle = time.process_time()
        monitor.measure(lr=lr)
        end = time.process_time()
        shares.append(100 * (end - middle) / ((middle - start) * EVERY / steps))
    return float(np.median(shares)), bootstrap_interval(shares, statistic=np.median)


def mlp_overhead(batch: int, rounds: int, steps: int) -> tuple[float, tuple[float, float]]:
    """A monitor in bounds mode on the 512 samples that the network is trained on."""
    model, X, y = mlp_problem()
    loss_fn, optimizer = nn.CrossEntropyLoss(), torch.optim.SGD(model.parameters(), lr=0.05)
    generator = torch_generator(0)

    def step() -> None:
        rows = torch.randint(len(X), (batch,), generator=generator)
        optimizer.zero_grad()
        loss_fn(model(X[rows]), y[rows]).backward()
        optimizer.step()

    monitor = StabilityMonitor(model, loss_fn, X, y, batch_size=batch, replacement=True, method="bounds")
    return overhead(step, monitor, 0.05, rounds=rounds, steps=steps)


def language_overhead(sequences: int, rounds: int, steps: int) -> tuple[float, tuple[float, float]]:
    """A monitor on a few sequences of the text that a small GPT is trained on, 16 sequences a step."""
    task = language_task(QUICK, batch=16)
    model = task.model(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    batches = list(islice(task.batches(0, 8), 8))
    state = [0]

    def step() -> None:
        state[0] += 1
        x, y = batches[state[0] % len(batches)]
        optimizer.zero_grad()
        task.loss(model, x, y).backward()
        optimizer.step()

    (X, y) = next(iter(task.batches(1, 1)))
    monitor = StabilityMonitor(
        ClassesFirst(model), nn.CrossEntropyLoss(), X[:sequences], y[:sequences], batch_size=16, num_data=400_000
    )
    return overhead(step, monitor, 0.1, rounds=rounds, steps=steps)


# --------------------------------------------------------------------------------------- three numbers to five per cent


def readings(model: nn.Module, X: Tensor, y: Tensor, all_tools: bool) -> dict[str, Callable[[int, int], Values]]:
    """Every tool as ``tool(budget, seed) -> (lambda_max, trace, Frobenius norm)``, of all or of those that give all.

    Each spends `budget` products on what it estimates by random vectors; lambda_max by its own criterion (curvlinops: a
    residual of 1 %, PyHessian: its default of 1e-3, which 1 % would leave 6 % too low), hessian-eigenthings with ten
    Lanczos steps (its default of two is half too low).
    """
    loss_fn = nn.CrossEntropyLoss()

    def ours(budget: int, seed: int) -> Values:
        found = linear_stability(model, loss_fn, X, y, lr=1.0, method="bounds", num_matvecs=budget, seed=seed)
        return found.lambda_max, found.trace, found.frobenius

    tools: dict[str, Callable[[int, int], Values]] = {"steepest": ours}
    if installed("curvlinops"):
        curvlinops = require("curvlinops", "peers")
        from scipy.sparse.linalg import eigsh

        def theirs(budget: int, seed: int) -> Values:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                params = list(model.parameters())
                G = curvlinops.GGNLinearOperator(model, loss_fn, params, [(X, y)], check_deterministic=False)
                start = torch.randn(G.shape[0]).numpy()
                top = eigsh(G.to_scipy(), 1, v0=start, tol=0.01, return_eigenvectors=False)
                trace = curvlinops.hutchpp_trace(G, budget - budget % 3)
                square = curvlinops.hutchinson_squared_fro(G, budget)
            return float(top[0]), float(trace), float(square) ** 0.5

        tools["curvlinops"] = theirs
    if all_tools and installed("hessian_eigenthings"):
        eigenthings = require("hessian_eigenthings")
        logits, of_logits = eigenthings.supervised_forward, eigenthings.supervised_loss_of_output(loss_fn)

        def eigen(budget: int, seed: int) -> Values:
            G = eigenthings.GGNOperator(model, [(X, y)], logits, of_logits)
            top = eigenthings.lanczos(G, k=1, max_iter=10, seed=seed).eigenvalues[0]
            return float(top), float(eigenthings.trace(G, num_matvecs=budget, seed=seed).estimate), float("nan")

        tools["hessian-eigenthings"] = eigen
    if all_tools and installed("pyhessian"):
        pyhessian = require("pyhessian")

        def hessian(budget: int, seed: int) -> Values:
            with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # its graph of the gradients is a reference cycle
                torch.manual_seed(seed)
                tool = pyhessian.hessian(model, loss_fn, data=(X, y), cuda=False)
                top = tool.eigenvalues(maxIter=100, tol=1e-3)[0][0]
                trace = float(np.mean(tool.trace(maxIter=budget, tol=-math.inf)))
                model.zero_grad(set_to_none=True)
            return float(top), trace, float("nan")

        tools["PyHessian"] = hessian
    return tools


def time_to_five_per_cent(
    tool: Callable[[int, int], Values], truth: Values, budgets: tuple[int, ...], seeds: int
) -> tuple[float, int]:
    """CPU seconds and budget of the first budget whose root mean square error is below 5 % in all numbers it gives."""
    for budget in budgets:
        values, seconds = [], []
        for seed in range(seeds):
            start = time.process_time()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)
                values.append(tool(budget, seed))
            seconds.append(time.process_time() - start)
        errors = np.sqrt(np.mean((np.array(values) / np.array(truth) - 1) ** 2, axis=0))
        if np.all(errors[np.isfinite(errors)] <= 0.05):
            return float(np.median(seconds)), budget
    return float("inf"), budgets[-1]


# ------------------------------------------------------------------------------------------------------ exact threshold


def dense_threshold(A: Tensor, batch_size: int) -> float:
    """``lambda_max(C^+ D) / 2`` from r^2 x r^2 matrices, the other way to the exact threshold; A is (n, P), P < n."""
    n, P = A.shape
    p = noise_fraction(n, batch_size, False)
    H = A.T @ A / n
    s, V = torch.linalg.eigh(H)
    rows = A @ V
    outer = (rows[:, :, None] * rows[:, None, :]).reshape(
        n, P * P
    )  # vec(a a^T): their Gram matrix is sum_i H_i (x) H_i
    D = (1 - p) * torch.diag(torch.kron(s, s)) + p * (outer.T @ outer) / n
    root = ((s[:, None] + s) / 2).rsqrt().reshape(-1)
    return float(torch.linalg.eigvalsh(root[:, None] * D * root)[-1]) / 2


def threshold_speed(n: int, P: int, repeats: int) -> tuple[float, float]:
    """How often faster the threshold is than from dense matrices, and their relative difference."""
    A = torch.randn(n, P, dtype=torch.float64, generator=torch_generator(0))
    ratios, difference = [], 0.0
    for _ in range(repeats):
        start = time.process_time()
        mine = stability_of_factors(A, lr=1.0, batch_size=4).ratios["exact"]
        middle = time.process_time()
        dense = dense_threshold(A, 4)
        ratios.append((time.process_time() - middle) / (middle - start))
        difference = max(difference, abs(mine / dense - 1))
    return float(np.median(ratios)), difference


# ----------------------------------------------------------------------------------------------------------------- rows


def measure_costs(ctx: Context) -> None:
    """The rows on costs."""
    rounds = ctx.pick(tiny=2, quick=11, full=25, paper=2)
    steps = ctx.pick(tiny=2, quick=20, full=50, paper=2)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        ctx.measured("overhead-mlp", *mlp_overhead(512, rounds, steps))
        ctx.measured("overhead-small-batches", *mlp_overhead(32, rounds, steps))
        ctx.measured("overhead-language", *language_overhead(2, rounds, steps))
        ctx.progress(0.85)
        _peers(ctx)
        P = ctx.pick(tiny=10, quick=60, full=60, paper=10)
        speed, difference = threshold_speed(200, P, 3 if ctx.scale == "full" else 1)
        ctx.measured("threshold-speed", speed)
        ctx.measured("threshold-dense", difference)
    finally:
        torch.set_num_threads(before)


def _peers(ctx: Context) -> None:
    model, X, y = mlp_problem() if ctx.scale != "tiny" else mlp_problem(40, 8)
    exact = linear_stability(model, nn.CrossEntropyLoss(), X, y, lr=1.0, method="bounds", num_matvecs=600)
    truth = exact.lambda_max, exact.trace, exact.frobenius
    budgets = (9, 15, 24, 36, 60, 90, 150, 240)
    tools = readings(model, X, y, all_tools=ctx.scale == "full")
    found = {}
    for name, tool in tools.items():
        tool(budgets[0], 0)
        goal = truth
        if name == "PyHessian":  # it multiplies with the Hessian
            hessian = _hessian_values(model, X, y)
            goal = (*hessian, float("nan"))
        found[name] = time_to_five_per_cent(tool, goal, budgets, ctx.pick(tiny=2, quick=3, full=8, paper=2))
        ctx.note(
            f"lambda_max, tr H and |H|_F to 5 %, network of 85,002 parameters on 512 samples: {name} "
            + (
                f"takes {found[name][0]:.2g} s of one core with a budget of {found[name][1]}."
                if math.isfinite(found[name][0])
                else f"does not get there with a budget of {found[name][1]}."
            )
            + (f" ({NO_NORM[name].capitalize()}.)" if name in NO_NORM else "")
        )
    whole = {name: seconds for name, (seconds, _) in found.items() if name != "steepest" and name not in NO_NORM}
    for name in NO_NORM if ctx.scale == "full" else ():
        if name not in found:
            ctx.note(f"{name} is not installed: its row is missing.")
    if not whole:
        ctx.skipped("peer-speed", 'curvlinops is not installed: pip install "steepest[peers]"')
        return
    best = min(whole, key=whole.__getitem__)
    factor = whole[best] / found["steepest"][0]
    ctx.measured("peer-speed", factor)
    ctx.against(
        best,
        factor,
        ahead="faster",
        behind="slower",
        what="largest eigenvalue, trace and norm of H to 5 %, 85,002 weights",
    )


def _hessian_values(model: nn.Module, X: Tensor, y: Tensor) -> tuple[float, float]:
    from steepest.curvature import HessianOperator, extreme_eigenvalues, trace

    H = HessianOperator(model, nn.CrossEntropyLoss(), (X, y))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        top = float(extreme_eigenvalues(H, 1, which="LM", tol=1e-3, max_matvecs=200, seed=0).values[0])
    return top, trace(H, 600, seed=0).value
