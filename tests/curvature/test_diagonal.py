"""Diagonals against dense matrices; label sampling against its distribution."""

import gc
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from steepest.curvature import (
    GGNOperator,
    HessianOperator,
    gauss_newton_bartlett,
    gnb_diagonal,
    hessian_diagonal,
    hutchinson_diagonal,
    sample_labels,
    sampled_label_loss,
)
from tests.curvature.test_products import LOSSES, close, dense_ggn, dense_hessian, flatten, gen, mlp, targets


def problem():
    model, X, y = mlp(sizes=(3, 4, 3)), targets("real", 8, 3, 5), targets("classes", 8, 3)
    return model, X, y, list(model.parameters())


# exact -------------------------------------------------------------------------------------------------------------


def test_exact_for_a_diagonal_matrix_with_one_probe():
    d = torch.randn(50, generator=gen(0), dtype=torch.float64)
    estimate = hutchinson_diagonal(torch.diag(d), 1, seed=0)
    assert torch.equal(estimate.value, d)
    assert torch.isnan(estimate.std_error).all()
    assert float(hutchinson_diagonal(torch.diag(d), 8, seed=0).std_error.max()) == 0.0
    gaussian = hutchinson_diagonal(torch.diag(d), 8, distribution="gaussian", seed=0)
    close(gaussian.value, d, 1e-14)
    assert float(gaussian.std_error.max()) < 1e-14
    w = torch.ones(50, requires_grad=True, dtype=torch.float64)
    close(hessian_diagonal((d * w**3).sum(), [w], generator=0)[0], 6 * d, 1e-14)


def test_formula_with_given_probes():
    """One probe at a time, from the same stream: sum z * Az over sum z * z."""
    from steepest.curvature.vectors import probes

    A = torch.randn(6, 6, generator=gen(1), dtype=torch.float64)
    for distribution in ("rademacher", "gaussian"):
        Z = probes(6, 5, distribution=distribution, generator=gen(3))
        estimate = hutchinson_diagonal(A, 5, distribution=distribution, seed=3)
        b = Z * Z
        d = (Z * (A @ Z)).sum(1) / b.sum(1)
        close(estimate.value, d, 1e-13)
        r = Z * (A @ Z) - d.unsqueeze(1) * b
        close(estimate.std_error, (r**2).sum(1).sqrt() / b.sum(1) * math.sqrt(5 / 4), 1e-12)
        assert estimate.num_matvecs == 5


@pytest.mark.parametrize("distribution", ["rademacher", "gaussian"])
def test_hessian_diagonal_is_unbiased(distribution):
    model, X, y, params = problem()
    exact = dense_hessian(model, nn.CrossEntropyLoss(), X, y).diagonal()

    def loss():
        return functional.cross_entropy(model(X), y)

    n = 3000
    d = flatten(hessian_diagonal(loss, params, n_samples=n, distribution=distribution, generator=0))
    H = dense_hessian(model, nn.CrossEntropyLoss(), X, y)
    variance = (H**2).sum(1) - H.diagonal() ** 2 + (2 * H.diagonal() ** 2 if distribution == "gaussian" else 0)
    assert ((d - exact).abs() <= 4.5 * (variance / n).sqrt()).all()
    assert float((d - exact).norm() / exact.norm()) < 0.08
    assert not any(t.requires_grad for t in hessian_diagonal(loss, params))


def test_gnb_is_unbiased_for_the_gauss_newton_diagonal():
    """Squared after averaging over the batch, never before; averaging draws first would shrink it by their number."""
    model, X, y, params = problem()
    exact = dense_ggn(model, nn.CrossEntropyLoss(), X, y).diagonal()
    g, draws = gen(0), []
    for _ in range(3000):
        loss = sampled_label_loss(model(X), g)
        draws.append(flatten(gnb_diagonal(loss, params, batch_size=8)))
    draws = torch.stack(draws)
    error = draws.std(0) / math.sqrt(len(draws))
    assert ((draws.mean(0) - exact).abs() <= 4 * error + 1e-12).all()
    d = flatten(gauss_newton_bartlett(model, X, num_samples=3000, generator=1))
    assert ((d - exact).abs() <= 4 * error + 1e-12).all()
    assert float((d - exact).norm() / exact.norm()) < 0.05


@pytest.mark.parametrize("name", ["mse", "bce"])
def test_gnb_of_other_losses(name):
    loss_fn, kind = LOSSES[name]
    model, X, _, _ = problem()
    exact = dense_ggn(model, loss_fn, X, targets(kind, 8, 3)).diagonal()
    word = {"mse": "mse", "bce": "bce_with_logits"}[name]
    d = flatten(gauss_newton_bartlett(model, X, loss=word, num_samples=3000, generator=0))
    assert float((d - exact).norm() / exact.norm()) < 0.06


def test_gnb_of_sequences_counts_every_token():
    model = nn.Linear(3, 4).double()
    X = torch.randn(2, 5, 3, generator=gen(0), dtype=torch.float64)
    exact = dense_ggn(model, nn.CrossEntropyLoss(), X.view(10, 3), torch.zeros(10, dtype=torch.long)).diagonal()
    d = flatten(gauss_newton_bartlett(model, X, num_samples=3000, generator=0))
    assert float((d - exact).norm() / exact.norm()) < 0.06


def test_labels_follow_the_softmax():
    logits = torch.tensor([2.0, 0.0, -1.0, 1.0]).log_softmax(0)
    labels = sample_labels(logits.expand(40_000, 4), gen(0))
    share = torch.bincount(labels, minlength=4) / len(labels)
    assert float((share - logits.exp()).abs().max()) < 0.01
    for shape in ((4,), (3, 4), (2, 3, 4), (0, 4)):
        assert sample_labels(torch.zeros(shape), 0).shape == shape[:-1]
    assert sample_labels(torch.zeros(2, 4, dtype=torch.bfloat16), 0).dtype == torch.long


def test_sampled_label_loss_leaves_masked_labels_out():
    logits = torch.randn(3, 5, 4, generator=gen(0), dtype=torch.float64, requires_grad=True)
    mask = torch.rand(3, 5, generator=gen(1)) < 0.4
    labels = sample_labels(logits, 7)
    assert not labels.requires_grad
    nll = -logits.log_softmax(-1).gather(-1, labels.unsqueeze(-1)).squeeze(-1)
    close(sampled_label_loss(logits, 7), nll.mean(), 1e-13)
    close(sampled_label_loss(logits, 7, mask), nll[~mask].mean(), 1e-13)


# properties --------------------------------------------------------------------------------------------------------


def test_error_falls_with_the_budget_and_the_error_bar_tells_it():
    model, X, y, _ = problem()
    H = HessianOperator(model, nn.CrossEntropyLoss(), (X, y))
    exact = H.dense().diagonal()
    errors = [float((hutchinson_diagonal(H, n, seed=0).value - exact).norm()) for n in (8, 128, 2048)]
    assert errors[2] < errors[1] / 2 < errors[0] / 4
    for distribution in ("rademacher", "gaussian"):
        scores = []
        for seed in range(40):
            e = hutchinson_diagonal(H, 60, distribution=distribution, seed=seed)
            scores.append((e.value - exact) / e.std_error)
        assert 0.85 < float(torch.stack(scores).square().mean().sqrt()) < 1.2


def test_blocks_do_not_change_the_stream(monkeypatch):
    A = torch.randn(6, 6, generator=gen(1), dtype=torch.float64)
    whole = hutchinson_diagonal(A, 7, seed=3)
    monkeypatch.setattr("steepest.curvature.operators.BLOCK_ELEMENTS", 12)
    monkeypatch.setattr("steepest.curvature.diagonal.column_blocks", lambda n, k: [(0, 2), (2, 2), (4, 2), (6, 1)])
    parts = hutchinson_diagonal(A, 7, seed=3)
    close(parts.value, whole.value, 1e-14)
    close(parts.std_error, whole.std_error, 1e-12)


def test_same_seed_same_estimate_and_a_generator_is_advanced():
    A = torch.randn(6, 6, generator=gen(1), dtype=torch.float64)
    assert torch.equal(hutchinson_diagonal(A, 3, seed=1).value, hutchinson_diagonal(A, 3, seed=1).value)
    g = gen(1)
    first, second = (hutchinson_diagonal(A, 3, seed=g).value for _ in range(2))
    assert torch.equal(first, hutchinson_diagonal(A, 3, seed=1).value)
    assert not torch.equal(first, second)
    state = torch.get_rng_state()
    w = torch.ones(3, requires_grad=True)
    hessian_diagonal((w**3).sum(), [w])
    sample_labels(torch.zeros(2, 3))
    assert torch.equal(torch.get_rng_state(), state)


def test_numpy_matrices_are_accepted():
    A = np.diag([1.0, 2.0])
    assert hutchinson_diagonal(A, 2, seed=0).value.tolist() == [1.0, 2.0]


def test_gradients_and_memory_stay_as_they_were():
    """No `p.grad`, no reference cycle: what the estimate made is gone with it, without the garbage collector."""
    model, X, y, params = problem()

    def live():
        return sum(issubclass(type(o), torch.Tensor) for o in gc.get_objects())

    gc.collect()
    gc.disable()
    try:
        before = live()
        for _ in range(3):
            hessian_diagonal(functional.cross_entropy(model(X), y), params, generator=0)
            gnb_diagonal(sampled_label_loss(model(X), 0), params, 8)
        assert live() == before
    finally:
        gc.enable()
    assert all(p.grad is None for p in params)


def test_unused_parameters_and_retained_graphs():
    a = torch.ones(2, dtype=torch.float64, requires_grad=True)
    b = torch.ones(3, requires_grad=True)
    loss = (a**3).sum()
    for _ in range(2):
        d = hessian_diagonal(loss, [a, b], n_samples=2, generator=0, retain_graph=True)
        assert [t.tolist() for t in d] == [[6.0, 6.0], [0.0, 0.0, 0.0]]
        g2 = gnb_diagonal(loss, [a, b], 2, retain_graph=True)
        close(g2[0], torch.full_like(g2[0], 18.0), 1e-14)
        assert g2[1].tolist() == [0.0] * 3
    assert hessian_diagonal(a.sum(), [a], generator=0)[0].tolist() == [0.0, 0.0]
    model = nn.Linear(2, 2).requires_grad_(False)
    model.bias.requires_grad_(True)
    assert [t.shape for t in gauss_newton_bartlett(model, torch.ones(1, 2), generator=0)] == [(2,)]


def test_half_precision_is_summed_in_float32():
    w = torch.ones(4, dtype=torch.bfloat16, requires_grad=True)
    d = hessian_diagonal((w**3).sum(), [w], n_samples=3, generator=0)[0]
    assert d.dtype == torch.float32
    assert d.tolist() == [6.0] * 4
    tiny = torch.full((1,), 1e-12, requires_grad=True)
    value = gnb_diagonal((1e-20 * tiny).sum(), [tiny], batch_size=10**6)[0]  # g^2 alone is below float32's range
    assert float(value) == pytest.approx(1e-34, rel=1e-4)


def test_values_that_are_not_finite_come_back_as_they_are():
    w = torch.zeros(1, requires_grad=True)
    assert not torch.isfinite(hessian_diagonal(w.abs().sqrt().sum(), [w], generator=0)[0]).any()


# misuse ------------------------------------------------------------------------------------------------------------


def test_misuse():
    w = torch.ones(2, requires_grad=True)
    with pytest.raises(ValueError, match="num_matvecs must be an integer >= 1, got 0"):
        hutchinson_diagonal(torch.eye(2), 0)
    with pytest.raises(ValueError, match="A must be square"):
        hutchinson_diagonal(torch.ones(2, 3))
    with pytest.raises(ValueError, match="distribution must be one of"):
        hutchinson_diagonal(torch.eye(2), distribution="uniform")
    with pytest.raises(FloatingPointError, match="not finite"):
        hutchinson_diagonal(torch.full((2, 2), math.nan), 2)
    with pytest.raises(ValueError, match="n_samples must be an integer >= 1"):
        hessian_diagonal((w**2).sum(), [w], n_samples=0)
    with pytest.raises(ValueError, match="batch_size must be an integer >= 1"):
        gnb_diagonal((w**2).sum(), [w], batch_size=0)
    with pytest.raises(ValueError, match="a scalar with a graph"):
        gnb_diagonal(torch.ones(()), [w], batch_size=1)
    with pytest.raises(ValueError, match="logits must be floating point"):
        sample_labels(torch.zeros(3, dtype=torch.long))
    with pytest.raises(TypeError, match="logits must be a tensor"):
        sample_labels([0.0, 1.0])
    with pytest.raises(TypeError, match="generator must be an int"):
        sample_labels(torch.zeros(3), "seed")
    with pytest.raises(ValueError, match="ignore_mask must be boolean"):
        sampled_label_loss(torch.zeros(2, 3), 0, torch.zeros(2))
    with pytest.raises(ValueError, match="ignore_mask must be False somewhere"):
        sampled_label_loss(torch.zeros(2, 3), 0, torch.ones(2, dtype=torch.bool))
    with pytest.raises(ValueError, match="loss must be one of"):
        gauss_newton_bartlett(nn.Linear(2, 2), torch.ones(1, 2), loss="hinge")


def test_fused_attention_names_the_cure():
    q = torch.randn(1, 1, 4, 8, requires_grad=True)
    loss = functional.scaled_dot_product_attention(q, q, q).square().sum()
    with pytest.raises(RuntimeError, match=r"math attention backend.*gnb"):
        hessian_diagonal(loss, [q], generator=0)


def test_ggn_diagonal_by_products_agrees_with_gnb():
    model, X, y, _ = problem()
    G = GGNOperator(model, nn.CrossEntropyLoss(), (X, y))
    d = hutchinson_diagonal(G, 3000, seed=0)
    labels = flatten(gauss_newton_bartlett(model, X, num_samples=3000, generator=0))
    assert float((d.value - labels).norm() / labels.norm()) < 0.1
