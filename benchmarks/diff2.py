"""What a private full-batch round costs, beside Opacus' DP-SGD over the same samples, and how it grows with n."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from typing import Any

import torch

from _rows import Row, alone, compared, fitted, rows_of
from steepest.core.extras import installed
from steepest.federated._diff2 import diff2
from steepest.studies import diff2_problems as problems
from steepest.studies.diff2_problems import Problem

ROUNDS = 12


def bench(progress: Callable[[float], None] | None = None) -> list[Row]:
    """Measure; CPU seconds of one round, the first ones apart."""
    return rows_of([_linear, _network, _growth], progress)


def _seconds_of_rounds(problem: Problem, **options: Any) -> float:
    """Seconds of one difference round: the time between callbacks, without the first three."""
    marks: list[float] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        diff2(
            **{"fun": None, **problem.arguments, **options}, x0=problem.start, clients=problem.data, epsilon=1.0,
            delta=1e-6, rounds=ROUNDS, restart=ROUNDS, lr=0.1, clip=problem.clip,
            clip_difference=problem.clip_difference, callback=lambda x: marks.append(time.process_time()),
        )  # fmt: skip
    return (marks[-1] - marks[2]) / (len(marks) - 3)


def _opacus_step(model: torch.nn.Module, X: torch.Tensor, y: torch.Tensor) -> Callable[[], float]:
    """One DP-SGD step of Opacus over all samples at once; returns its CPU seconds."""
    from opacus import GradSampleModule
    from opacus.optimizers import DPOptimizer

    wrapped = GradSampleModule(model)
    inner = torch.optim.SGD(wrapped.parameters(), lr=0.1)
    optimizer = DPOptimizer(inner, noise_multiplier=1.0, max_grad_norm=1.0, expected_batch_size=len(X))
    loss_fn = torch.nn.BCEWithLogitsLoss()

    def step() -> float:
        start = time.process_time()
        optimizer.zero_grad()
        loss_fn(wrapped(X).squeeze(1), y).backward()
        optimizer.step()
        return time.process_time() - start

    step()
    return step


def _beside_opacus(name: str, bound: str, what: str, ours: dict[str, Callable[[], float]], opacus: Any) -> list[Row]:
    if not installed("opacus"):
        return [alone(name, min(task() for _ in range(3)), "s", None, f"{what}; Opacus is not installed")
                for task in ours.values()]  # fmt: skip
    found: dict[str, list[float]] = {label: [] for label in [*ours, "Opacus"]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        step = opacus()
        tasks = {**ours, "Opacus": step}
        for _ in range(5):
            for label, task in tasks.items():
                found[label].append(task())
    return [compared(label, found, "Opacus", bound if k == 0 else None, what, ours=label)
            for k, label in enumerate(ours)]  # fmt: skip


def _linear() -> list[Row]:
    problem = problems.synthetic(16_000)
    (a,) = problem.data
    written_out = {"per_sample_grad": lambda x, a: -torch.sigmoid(-(a @ x))[:, None] * a}
    automatic = {"per_sample_grad": None, "fun": lambda x, a: torch.nn.functional.softplus(-(a @ x))}
    ours = {
        "linear, factored": lambda: _seconds_of_rounds(problem),
        "linear, written out": lambda: _seconds_of_rounds(problem, **written_out),
        "linear, automatic": lambda: _seconds_of_rounds(problem, **automatic),
    }
    what = "one difference round, logistic loss, n = 16 000, d = 40, CPU seconds"
    return _beside_opacus("linear", "<= 0.5", what, ours,
                          lambda: _opacus_step(torch.nn.Linear(40, 1, bias=False), a, torch.ones(len(a))))  # fmt: skip


def _network() -> list[Row]:
    X = torch.randn(1797, 64, generator=torch.Generator().manual_seed(0))
    y = (X[:, 0] > 0).float()
    problem = problems.network(X, y)
    model = torch.nn.Sequential(torch.nn.Linear(64, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1))
    what = "one difference round, MLP 64-16-1, n = 1 797, CPU seconds"
    ours = {"network": lambda: _seconds_of_rounds(problem)}
    return _beside_opacus("network", "<= 0.8", what, ours, lambda: _opacus_step(model, X, y))


def _growth() -> list[Row]:
    ns = (16_000, 32_000, 64_000, 128_000)
    chosen = {n: problems.synthetic(n) for n in ns}
    seconds = [min(_seconds_of_rounds(p) for _ in range(3)) for p in chosen.values()]
    return [fitted("growth with n", ns, seconds, "<= 1.1", "seconds of one round against n, d = 40")]
