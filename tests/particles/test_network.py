"""Modules trained by consensus, against plain loops and without gradients."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy, mse_loss

from steepest.particles import consensus_point, minimize_cbo, train_module
from steepest.particles._network import NETWORK


def blobs(n: int = 120, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 3
    centers = torch.tensor([[0.0, 2.0], [2.0, -1.0], [-2.0, -1.0]])
    return centers[y] + 0.5 * torch.randn(n, 2, generator=generator), y


def batches(size: int = 30) -> list[tuple[torch.Tensor, torch.Tensor]]:
    x, y = blobs()
    return list(zip(x.split(size), y.split(size), strict=True))


def network() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.ReLU(), torch.nn.Linear(4, 3))


def loss_by_hand(x: torch.Tensor, data: list[tuple[torch.Tensor, torch.Tensor]]) -> list[float]:
    module, found = network(), []
    for row in x:
        torch.nn.utils.vector_to_parameters(row, module.parameters())
        with torch.no_grad():
            total = sum(len(y) * float(cross_entropy(module(v), y)) for v, y in data)
        found.append(total / sum(len(y) for _, y in data))
    return found


def test_preset_is_the_official_network_code() -> None:
    assert {
        "n_particles": 100, "batch_size": 10, "alpha": 50.0, "alpha_schedule": 2.0, "sigma": math.sqrt(0.4),
        "sigma_schedule": "log", "lam": 1.0, "dt": 0.1, "noise": "anisotropic", "stagnation_tol": 1e-5, "tol": 0.0,
    } == NETWORK  # fmt: skip


def test_learns_to_classify() -> None:
    module = network()
    result = train_module(module, cross_entropy, batches(), epochs=8, seed=0)
    x, y = blobs(300, seed=1)
    with torch.no_grad():
        assert (module(x).argmax(1) == y).float().mean() > 0.95
    assert (result.epochs, result.nit, result.alpha) == (8, 32, 50 * 2**8)
    assert result.sigma == pytest.approx(math.sqrt(0.4) / math.log2(10))
    assert result.population.shape == (100, 27)
    assert result.nfev == 32 * 100 + 101 + 101 * 4  # batches, the swarm at the end, all data


def test_losses_are_those_of_the_module() -> None:
    """Result and module agree with a plain loop over particles and batches of unequal sizes."""
    data = batches(50)
    module = network()
    result = train_module(module, cross_entropy, data, epochs=2, seed=0, n_particles=20, alpha_schedule=None)
    f = loss_by_hand(result.population, data)
    np.testing.assert_allclose(result.population_fun, f, rtol=1e-5)
    c = consensus_point(result.population, torch.tensor(f), 50.0)
    np.testing.assert_allclose(result.consensus, c, atol=1e-5)
    assert result.fun_consensus == pytest.approx(loss_by_hand(c[None], data)[0], rel=1e-4)
    assert result.fun == min(result.fun_consensus, float(result.population_fun.min()))
    held = torch.nn.utils.parameters_to_vector(module.parameters()).detach()
    assert torch.equal(held, result.x)
    assert loss_by_hand(held[None], data)[0] == pytest.approx(result.fun, rel=1e-5)


def test_batches_are_taken_in_turn() -> None:
    """The same run by hand: a stochastic objective that moves to its next batch."""
    data, now = batches(40), [0]

    def fun(x: torch.Tensor) -> torch.Tensor:
        return torch.tensor(loss_by_hand(x, [data[now[0] % 3]]))

    options = {"n_particles": 10, "batch_size": 5, "sigma": 0.5, "dt": 0.1, "seed": 0}
    by_hand = minimize_cbo(
        fun, torch.zeros(27), vectorized=True, maxiter=5 * 3, tol=0.0, resample=lambda k: now.__setitem__(0, k),
        alpha=50.0, **options,
    )  # fmt: skip
    result = train_module(network(), cross_entropy, data, epochs=5, preset=None, tol=0.0, alpha=50.0, **options)
    np.testing.assert_allclose(result.population, by_hand.population, rtol=1e-3, atol=1e-4)


def test_losses_need_no_derivative_and_frozen_parameters_stay() -> None:
    module = network()
    module[0].bias.requires_grad_(False)
    before = module[0].bias.clone()

    def errors(scores: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return (scores.argmax(1) != y).to(scores.dtype).mean()

    result = train_module(module, errors, batches(60), epochs=10, seed=0)
    assert result.fun <= 0.1
    assert torch.equal(before, module[0].bias)
    assert result.x.shape == (27 - 4,)
    assert all(p.grad is None for p in module.parameters())


def test_options_replace_the_preset() -> None:
    line = torch.nn.Linear(1, 1).double()
    x = torch.linspace(-1, 1, 16, dtype=torch.float64)[:, None]
    result = train_module(
        line, mse_loss, [(x, 2 * x)], epochs=3, x0=torch.tensor([2.0, 0.0], dtype=torch.float64), init_std=1e-3,
        n_particles=30, seed=0,
    )  # fmt: skip
    assert result.x.dtype == torch.float64
    assert result.fun < 1e-5
    assert len(result.population) == 30


def test_divergence_is_said() -> None:
    with pytest.warns(UserWarning, match="fly apart"):
        result = train_module(network(), cross_entropy, batches(), epochs=40, seed=0, sigma=300.0, sigma_schedule=None)
    assert result.status == 3
    assert torch.isfinite(result.x).all()


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"epochs": 0}, ValueError, "epochs must be"),
        ({"preset": "images"}, ValueError, "preset must be"),
        ({"module": "net"}, TypeError, "module must be a torch.nn.Module|fun must be callable"),
        ({"module": torch.nn.ReLU()}, ValueError, "module must be a module with parameters"),
        ({"loss_fn": 3}, TypeError, "loss_fn must be callable"),
        ({"loss_fn": lambda a, y: a}, ValueError, "loss_fn must be a function that returns a scalar"),
        ({"loader": []}, ValueError, r"len\(loader\) must be"),
        ({"loader": iter([])}, TypeError, "loader must be an iterable"),
        ({"x0": [0.0]}, TypeError, "x0 must be a tensor"),
        ({"x0": torch.zeros(3)}, ValueError, r"x0 must be of shape \(27,\)"),
        ({"maxiter": 3}, ValueError, "maxiter must be left to train_module"),
        ({"n_particles": 1}, ValueError, "n_particles must be"),
    ],
)
def test_bad_input_is_named(arguments: dict[str, object], error: type[Exception], match: str) -> None:
    given = {"module": network(), "loss_fn": cross_entropy, "loader": batches(), "epochs": 1} | arguments
    with pytest.raises(error, match=match):
        train_module(**given)


def test_mixed_dtypes_are_refused() -> None:
    module = network()
    module[0].double()
    with pytest.raises(ValueError, match="one dtype and device"):
        train_module(module, cross_entropy, batches(), epochs=1)
