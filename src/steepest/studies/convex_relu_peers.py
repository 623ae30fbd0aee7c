"""What the study of convex networks needs beside the method: data, ADMM by itself, peers and attacks.

Networks are (W, a): `W` (m, d) counts the column of ones of the rows, the last, which no attack moves.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from steepest.convex._admm import ADMM, BlockDescent, Copies, ExactStep
from steepest.convex._interior import InteriorPoint
from steepest.convex._program import Program
from steepest.core.extras import require

__all__ = [
    "adam_networks",
    "admm",
    "attacked_accuracy",
    "clarabel",
    "network_objective",
    "optimum",
    "planted",
    "program",
    "pyscnn",
    "split",
]

Array = np.ndarray


def planted(n: int, d: int, seed: int, noise: float = 0.1) -> tuple[Array, Array]:
    """Normal inputs and a teacher of three neurons, with noise."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, d))
    W, a = rng.standard_normal((3, d)), np.array([1.0, -1.0, 1.0])
    return X, (X @ W.T).clip(min=0) @ a + noise * rng.standard_normal(n)


def split(X: Array, y: Array, seed: int, share: float = 0.3) -> tuple[Array, Array, Array, Array]:
    """Training and test rows, standardized by the former, with a column of ones; y is -1 or 1."""
    order = np.random.default_rng(seed).permutation(len(X))
    test, train = np.split(order, [int(share * len(X))])
    mean, std = X[train].mean(0), X[train].std(0)
    keep = std > 0
    rows = np.column_stack([(X[:, keep] - mean[keep]) / std[keep], np.ones(len(X))])
    return rows[train], y[train], rows[test], y[test]


def program(X: Array, y: Array, patterns: Array, beta: float, loss: str = "squared") -> Program:
    """The convex program without perturbations, from arrays."""
    data, target, cells = (torch.as_tensor(np.array(a, dtype=np.float64)) for a in (X, y, patterns))
    return Program(data, target, cells, loss, beta, torch.zeros(X.shape[1], dtype=torch.float64))


def optimum(p: Program, tol: float = 1e-9, most: int = 200) -> tuple[float, float, Tensor, Tensor]:
    """Optimum by interior-point steps to a relative gap of `tol`, a bound below it, the point, its dual point (n,)."""
    solver, value, bound = InteriorPoint(p, tol), math.inf, -math.inf
    for _ in range(most):
        solver.step()
        found = solver.candidate()
        value = p.objective(found.u)
        bound = max(bound, p.dual_bound(found))
        if value - bound <= tol * abs(value):
            break
    return value, bound, found.u, solver._loss.nu(p.forward(solver.u))


def admm(
    p: Program, iterations: int, watch: Callable[[Tensor], Any], *, plain: bool = False, rho: float = 1.0,
    seed: int = 0, dual_step: float = 1.0, rbcd_tol: float = 1e-5,
) -> list[Any]:  # fmt: skip
    """What `watch` says of the group-sparse variable after each iteration of ADMM alone, no other steps after it.

    The squared loss takes exact primal steps, others random blocks; `plain` has a fixed rho and no extrapolation.
    """
    exact = p.loss == "squared"
    step: Any = ExactStep(p) if exact else BlockDescent(p, 1, rbcd_tol, np.random.default_rng(seed))
    solver = ADMM(p, step, dual_step, Copies.zero(p, rho))
    seen = []
    for _ in range(iterations):
        if plain:
            solver._accelerate, solver._iteration = None, 0
        solver.step()
        seen.append(watch(solver.copies.z))
    return seen


def network_objective(W: Tensor, a: Tensor, X: Tensor, y: Tensor, beta: float) -> Tensor:
    """Squared loss and penalty of networks (..., m, d), (..., m)."""
    f = ((X @ W.mT).clamp(min=0) * a[..., None, :]).sum(-1)
    return 0.5 * (f - y).square().sum(-1) + 0.5 * beta * (W.square().sum((-1, -2)) + a.square().sum(-1))


# --------------------------------------------------------------------------------------------------------------- peers


def clarabel(
    X: Array, y: Array, patterns: Array, beta: float, loss: str = "squared", tol: float = 1e-8, solver: str = "CLARABEL"
) -> tuple[float, Array, float]:
    """Optimum, predictions and CPU seconds of cvxpy with Clarabel, whose own tolerances are 1e-8, or with SCS."""
    cp: Any = require("cvxpy", "optim", what="the reference optimum")
    start = time.process_time()
    V, W = (cp.Variable((len(patterns), X.shape[1])) for _ in range(2))
    f = cp.sum(cp.multiply(X, patterns.T.astype(float) @ (V - W)), axis=1)
    fit = 0.5 * cp.sum_squares(f - y) if loss == "squared" else cp.sum(cp.logistic(-2 * cp.multiply(y, f)))
    penalty = cp.sum(cp.norm(V, 2, axis=1)) + cp.sum(cp.norm(W, 2, axis=1))
    cones = [cp.multiply(2.0 * patterns - 1, A @ X.T) >= 0 for A in (V, W)]
    problem = cp.Problem(cp.Minimize(fit + beta * penalty), cones)
    options: dict[str, Any] = {"tol_gap_abs": tol, "tol_gap_rel": tol, "tol_feas": tol}
    if solver == "SCS":
        options = {"eps_abs": tol, "eps_rel": tol, "max_iters": 100_000, "time_limit_secs": 60.0}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # below its own tolerance it may say that it is not sure
        value = float(problem.solve(solver=solver, **options))
    return value, np.asarray(f.value), time.process_time() - start


def pyscnn(X: Array, y: Array, directions: Array, beta: float, tol: float) -> tuple[float, float]:
    """CPU seconds of pyscnn's augmented Lagrangian at these gates (P, d), and our objective of its network."""
    models, solvers = (require(f"scnn.{name}", what="the peer pyscnn") for name in ("models", "solvers"))
    optimize, metrics = require("scnn.optimize"), require("scnn.metrics")
    regularizers = require("scnn.regularizers")
    start = time.process_time()
    model = models.ConvexReLU(directions.T.copy(), c=1)
    net, _ = optimize.optimize_model(
        model, solvers.AL(model, tol=tol, constraint_tol=tol), metrics.Metrics(), X, y[:, None],
        regularizer=regularizers.NeuronGL1(beta / len(X)), unitize_data=False, dtype="float64",
    )  # fmt: skip
    seconds = time.process_time() - start
    W, a = (torch.as_tensor(np.asarray(x, dtype=np.float64)) for x in net.get_parameters()[:2])
    rows, target = torch.as_tensor(X), torch.as_tensor(y)
    return seconds, float(network_objective(W, a.reshape(-1), rows, target, beta))


def adam_networks(
    X: Array, y: Array, width: int, seeds: list[int], *, beta: float, loss: str = "squared", rate: float = 1e-2,
    steps: int = 2000, optimizer: str = "adam", radius: float = 0.0, attack_steps: int = 0,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Train a network of each seed at once by full gradients, the rate falling to zero along a cosine.

    With `attack_steps`, each step is on rows moved by that many signed gradient steps within `radius`: 1 is FGSM.
    """
    rows, target = torch.as_tensor(X), torch.as_tensor(y)
    n, d = rows.shape
    first, second = [], []
    for seed in seeds:
        gen = torch.Generator().manual_seed(seed)
        first.append(torch.randn(width, d, generator=gen, dtype=torch.float64) / math.sqrt(d))
        second.append(torch.randn(width, generator=gen, dtype=torch.float64) / math.sqrt(width))
    W, a = torch.stack(first).requires_grad_(), torch.stack(second).requires_grad_()
    moves = torch.ones(d, dtype=torch.float64)
    moves[-1] = 0.0
    gen = torch.Generator().manual_seed(seeds[0])
    kinds: dict[str, Any] = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}
    step = kinds[optimizer]([W, a], lr=rate)
    for k in range(steps):
        step.param_groups[0]["lr"] = 0.5 * rate * (1 + math.cos(math.pi * k / steps))
        inputs = rows.expand(len(seeds), n, d)
        if attack_steps:
            inputs = _moved(inputs, target, W.detach(), a.detach(), radius * moves, attack_steps, gen)
        f = ((inputs @ W.mT).clamp(min=0) * a[:, None]).sum(-1)
        fit = 0.5 * (f - target).square() if loss == "squared" else torch.nn.functional.softplus(-2 * target * f)
        value = fit.sum() + 0.5 * beta * (W.square().sum() + a.square().sum())
        step.zero_grad()
        value.backward()
        step.step()
    return W.detach(), a.detach()


def attacked_accuracy(
    W: Array, a: Array, X: Array, y: Array, radius: float, seed: int, *, steps: int = 40, restarts: int = 20
) -> float:
    """Accuracy under signed gradient steps on the margin from random starts, the worst of all restarts and steps."""
    weights, out, rows, target = (torch.as_tensor(v) for v in (W, a, X, y))
    moves = torch.full((rows.shape[1],), radius, dtype=torch.float64)
    moves[-1] = 0.0
    gen = torch.Generator().manual_seed(seed)
    inputs = rows.expand(restarts, *rows.shape)
    right = _right(rows, target, weights, out)
    for moved in _path(inputs, target, weights, out, moves, steps, gen):
        right &= _right(moved, target, weights, out).all(0)
    return float(right.double().mean())


def _right(x: Tensor, y: Tensor, W: Tensor, a: Tensor) -> Tensor:
    return y * ((x @ W.mT).clamp(min=0) @ a) > 0


def _moved(x: Tensor, y: Tensor, W: Tensor, a: Tensor, radius: Tensor, steps: int, gen: torch.Generator) -> Tensor:
    *_, last = _path(x, y, W, a, radius, steps, gen)
    return last


def _path(x: Tensor, y: Tensor, W: Tensor, a: Tensor, radius: Tensor, steps: int, gen: torch.Generator) -> Any:
    """Yield the rows after each step against the margin; one step is a whole radius from the rows themselves."""
    size = radius if steps == 1 else 2.5 * radius / steps
    start = torch.zeros_like(x) if steps == 1 else 2 * torch.rand(x.shape, generator=gen, dtype=x.dtype) - 1
    moved = x + radius * start
    for _ in range(steps):
        active = ((moved @ W.mT) > 0) * a[..., None, :]
        moved = moved - size * (y[:, None] * (active @ W)).sign()
        moved = torch.minimum(torch.maximum(moved, x - radius), x + radius)
        yield moved
