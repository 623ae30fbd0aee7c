"""The examinations themselves: a sound member passes all, and each fault is found."""

from __future__ import annotations

import pytest
import torch

from steepest.core.driver import Progress, Stop, drive
from steepest.core.errors import at_least, check
from tests.checks.policy import POLICY_CHECKS, Agent
from tests.checks.solver import SOLVER_CHECKS, Problem

SOLUTION = torch.tensor([1.0, -2.0], dtype=torch.float64)


def quadratic(x):
    return 0.5 * ((x - SOLUTION) ** 2 * torch.tensor([1.0, 4.0], dtype=x.dtype)).sum()


def descent(fun, x0, *, maxiter=500, callback=None, fault=""):
    """Gradient descent on the shared driver, with faults to switch on."""
    check("maxiter", maxiter if fault != "unchecked" else 1, at_least(0, integer=True))

    def step(x):
        leaf = x.detach().requires_grad_()
        (g,) = torch.autograd.grad(fun(leaf), leaf)
        x = x.sub_(0.2 * g) if fault == "in place" else x - 0.2 * g
        value = 0.0 if fault == "hides nan" else float(fun(x))
        return x, Progress(x, value, Stop.CONVERGED if float(g.norm()) < 1e-8 else None)

    start = x0.float() if fault == "casts" else x0
    if fault == "draws":
        start = start + 1e-9 * torch.randn(2)
    result = drive(step, start, maxiter=max(maxiter, 0) + 500 * (fault == "greedy"), callback=callback)
    if fault == "optimist":
        result.success = True
    return result


def problem(fault=""):
    x0 = torch.zeros(2, dtype=torch.float64)
    return Problem(descent, quadratic, x0, SOLUTION, options={"fault": fault})


@pytest.mark.parametrize("question", SOLVER_CHECKS, ids=lambda f: f.__name__)
def test_a_sound_solver_passes(question):
    question(problem())


@pytest.mark.parametrize("fault", ["in place", "casts", "draws", "greedy", "optimist", "unchecked", "hides nan"])
def test_every_fault_is_found(fault):
    found = 0
    for question in SOLVER_CHECKS:
        try:
            question(problem(fault))
        except (AssertionError, pytest.fail.Exception, ValueError):
            found += 1
    assert found


@pytest.mark.slow
@pytest.mark.parametrize("question", POLICY_CHECKS, ids=lambda f: f.__name__)
def test_a_sound_policy_algorithm_passes(question):
    gymnasium = pytest.importorskip("gymnasium")
    sb3 = pytest.importorskip("stable_baselines3")

    def make(env, seed, **options):
        return sb3.PPO("MlpPolicy", env, seed=seed, device="cpu", **options)

    question(
        Agent(make, lambda: gymnasium.make("CartPole-v1"), options={"n_steps": 32, "batch_size": 32, "n_epochs": 1})
    )
