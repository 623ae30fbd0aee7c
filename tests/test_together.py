"""Methods that serve one another: the page's programs run, and the served method is the better for it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import steepest

pytest.importorskip("pyriemann")
PAGE = Path(steepest.__file__).parents[2] / "docs" / "together.md"


@pytest.fixture(scope="module")
def scope():
    names: dict[str, object] = {}
    for code in re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.S):
        exec(compile(code, "<together.md>", "exec"), names)
    return names


def test_clients_learn_at_rates_of_their_own_batches(scope):
    rates = [scope["spectrum"].max_learning_rate(b) for b in (4, 8, 16, 32, 64)]
    assert rates == sorted(rates)
    assert rates[-1] > 1.1 * rates[0]
    assert scope["federated_accuracy"] > 0.93


def test_a_policy_learns_from_one_gradient_a_round(scope):
    assert scope["returns"][0] < 0.5
    assert scope["returns"][-1] > 0.8
    assert scope["surrogate"].info["loss_calls"] == 30


def test_transport_plans_make_a_straighter_flow(scope):
    assert scope["straight"]["transport"] < 0.3 * scope["straight"]["independent"]


def test_adahessian_solves_the_lower_problem_of_a_ridge_for_each_feature(scope):
    assert scope["losses"][-1] < 0.7 * scope["losses"][0]
    x, w, torch = scope["x"], scope["w"], scope["torch"]
    A, b = scope["A"], scope["b"]
    gradient = torch.autograd.grad(scope["lower"](x - 0, w, None), w)[0]
    scale = (A.T @ A / len(b)).diagonal().sqrt() * b.norm() / len(b) ** 0.5
    assert float((gradient / scale).abs().max()) < 0.1


def test_a_map_of_covariances_keeps_the_classes_apart(scope):
    assert scope["embedding"].shape == (120, 2)
    assert scope["embedding_accuracy"] > 0.6
