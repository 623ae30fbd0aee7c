from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from steepest.bilevel import aid_cg, hypergradient, solve_lower
from steepest.bilevel._oracles import Oracles
from steepest.bilevel.tasks import (
    block_auc,
    hyper_cleaning,
    multi_block_weighting,
    rnn_representation,
    svm_selection,
)
from tests.bilevel.test_problem import F64, gen, randn

MAKERS = {
    "hyper_cleaning": lambda seed: hyper_cleaning(seed=seed),
    "svm_selection": lambda seed: svm_selection(seed=seed),
    "svm_selection_hinge": lambda seed: svm_selection("breast_cancer", form="squared_hinge", seed=seed),
    "rnn_representation": lambda seed: rnn_representation(3, 20, 20, 5, 10, 4, seed=seed),
    "rnn_representation_rnn": lambda seed: rnn_representation(3, 20, 20, 5, 10, 4, cell="rnn", seed=seed),
    "multi_block_weighting": lambda seed: multi_block_weighting(5, seed, data="breast_cancer"),
    "block_auc": lambda seed: block_auc(4, seed, n_samples=30, n_features=6),
}
each_task = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


def flat(x):
    return torch.cat([part.reshape(-1) for part in x.values()]) if isinstance(x, dict) else x.reshape(-1)


def moved(problem, seed=0, size=0.1):
    """A point near the start, where nothing is zero by accident."""
    x, y = problem.pack_x(problem.x0), problem.pack_y(problem.y0)
    return x + size * randn(len(x), seed=seed), y + size * randn(len(y), seed=seed + 1)


# --------------------------------------------------------------------------------------------------- every task alike


@each_task
def test_gradients_agree_with_differences(make):
    problem, _ = make(0)
    oracles = Oracles(problem)
    x, y = moved(problem)
    dx, dy = randn(len(x), seed=3), randn(len(y), seed=4)
    h = 1e-6
    for value, grad in ((oracles.upper_value, oracles.upper_grad), (oracles.lower_value, oracles.lower_grad)):
        g_x, g_y = grad(x, y)
        slope = (value(x + h * dx, y + h * dy) - value(x - h * dx, y - h * dy)) / (2 * h)
        assert slope.item() == pytest.approx((g_x @ dx + g_y @ dy).item(), rel=1e-6, abs=1e-7)
    Hv, Jv = oracles.products(x, y, dy)
    slope = (oracles.lower_grad(x, y + h * dy)[1] - oracles.lower_grad(x, y - h * dy)[1]) / (2 * h)
    assert torch.allclose(Hv, slope, rtol=1e-4, atol=1e-5)
    slope = (oracles.lower_grad(x, y + h * dy)[0] - oracles.lower_grad(x, y - h * dy)[0]) / (2 * h)
    assert torch.allclose(Jv, slope, rtol=1e-4, atol=1e-5)


@each_task
def test_the_lower_problem_is_strongly_convex(make):
    problem, _ = make(0)
    if problem.is_constrained:
        pytest.skip("xi has no curvature of its own without the constraint's other side")
    x, y = moved(problem)
    v = randn(len(y), seed=7)
    assert v @ Oracles(problem).hvp(x, y, v) > 0
    solved, info = solve_lower(problem, problem.unpack_x(x))
    assert info == 0
    assert torch.isfinite(flat(solved)).all()


@each_task
def test_a_seed_makes_the_same_task_and_another_one_another(make):
    a, b, c = make(0)[0], make(0)[0], make(1)[0]
    point = moved(a)
    values = [Oracles(p).upper_value(*point).item() for p in (a, b, c)]
    assert values[0] == values[1] != values[2]


@each_task
def test_batches_estimate_the_full_objectives(make):
    problem, _ = make(0)
    if problem.sample_upper is None:
        pytest.skip("this task is taken on the full data")
    oracles = Oracles(problem, generator=gen(), batch_size=2000)
    x, y = moved(problem, size=0.5)
    if problem.n_blocks is None:
        args, yb = (), y
    else:
        args, yb = (problem.all_blocks,), problem.unpack_y(y)
    for value, batch in (
        (oracles.upper_value, oracles.draw_upper(*args)),
        (oracles.lower_value, oracles.draw_lower(*args)),
    ):
        assert value(x, yb, batch, *args).item() == pytest.approx(value(x, y).item(), rel=0.1)
    assert oracles.counts["samples"] == 2 * 2000 * (problem.n_blocks or 1)


@each_task
def test_scores_are_those_of_y_and_of_y_retrained(make):
    problem, evaluate = make(0)
    alone = evaluate(problem.x0)
    assert math.isnan(alone["own"])
    assert 0.3 < alone["retrained"] <= 1
    both = evaluate(problem.x0, problem.y0)
    assert both["retrained"] == alone["retrained"]
    best, _ = solve_lower(problem, problem.x0)
    assert evaluate(problem.x0, best)["own"] == pytest.approx(alone["retrained"], abs=2e-3)


@each_task
def test_the_start_can_be_improved(make):
    problem, _ = make(0)
    if problem.is_constrained:
        problem, _ = svm_selection("diabetes_binary", form="squared_hinge", seed=0)
    y, _ = solve_lower(problem, problem.x0, tol=1e-10)
    gradient, _ = hypergradient(problem, problem.x0, y, solver="cg", rtol=1e-10)
    oracles, g = Oracles(problem), problem.pack_x(gradient)
    x, h = problem.pack_x(problem.x0), 1e-4 / g.norm()

    def value(x):
        y, info = solve_lower(problem, problem.unpack_x(x), tol=1e-10)
        assert info == 0
        return oracles.upper_value(x, problem.pack_y(y)).item()

    slope = (value(x + h * g) - value(x - h * g)) / (2 * h.item())
    assert slope == pytest.approx((g @ g).item(), rel=2e-3)  # not smooth where a hinge bends


# -------------------------------------------------------------------------------------------------------- one by one


def test_cleaning_weighs_samples_and_gains_from_it():
    problem, evaluate = hyper_cleaning(seed=0)
    assert problem.x0.shape == (800,)
    assert problem.y0.shape == (65, 10)
    assert Oracles(problem).upper_value(*moved(problem, size=0)).item() == pytest.approx(math.log(10))
    # without noise and ridge apart, the lower problem is softmax regression with weights 1/2
    clean, evaluate_clean = hyper_cleaning(seed=0, noise=0.0)
    assert evaluate_clean(clean.x0)["retrained"] > evaluate(problem.x0)["retrained"] + 0.02
    result = aid_cg(problem, lr_x=100.0, lr_y=2.0, decay="linear", maxiter=40, batch_size=64)
    assert evaluate(result.x)["retrained"] > evaluate(problem.x0)["retrained"] + 0.01
    off = torch.full_like(problem.x0, -50.0)
    assert solve_lower(problem, off)[0].abs().max() < 1e-6  # no sample, no model


def test_cleaning_agrees_with_scikit_learn():
    X, y = load_breast_cancer(return_X_y=True)
    X = X / X.std(0)
    problem, evaluate = hyper_cleaning((X, y), noise=0.0, seed=3)
    n = len(problem.x0)
    assert n == round(800 / 1797 * 569)
    order = np.random.default_rng(3).permutation(569)
    # our two columns with ridge r are one with twice the coefficient and ridge r / 2; weights 1/2, mean over n
    Z = np.hstack([X[order], np.ones((569, 1))])
    model = LogisticRegression(C=0.5 / (n * 1e-3), fit_intercept=False, tol=1e-8, max_iter=10_000)
    model.fit(Z[:n], y[order[:n]])
    ours, _ = solve_lower(problem, problem.x0)
    difference = (ours[:, 1] - ours[:, 0]).numpy()
    assert np.abs(difference - model.coef_[0]).max() < 1e-3
    test = slice(n + round(300 / 1797 * 569), None)
    assert evaluate(problem.x0)["retrained"] == pytest.approx(model.score(Z[test], y[order[test]]))


@pytest.mark.parametrize("data", ["diabetes_binary", "breast_cancer"])
def test_both_forms_of_the_machine_have_the_same_minimum(data):
    constrained, evaluate = svm_selection(data, seed=0)
    hinge, evaluate_hinge = svm_selection(data, form="squared_hinge", seed=0)
    x = torch.rand(150, generator=gen(), dtype=F64) - 1
    y, info = solve_lower(constrained, x, tol=1e-7, maxiter=5000)
    assert info == 0
    y_hinge, _ = solve_lower(hinge, x)
    assert torch.allclose(y["w"], y_hinge["w"], atol=1e-5)
    assert torch.allclose(y["b"], y_hinge["b"], atol=1e-5)
    assert evaluate(x)["retrained"] == evaluate_hinge(x)["retrained"]
    values = [p.upper(x, z, None).item() for p, z in ((constrained, y), (hinge, y_hinge))]
    assert values[0] == pytest.approx(values[1], abs=1e-4)
    off = torch.full_like(x, -80.0)  # no sample counts: the ridges alone
    flat_y = hinge.pack_y(hinge.y0)
    assert torch.allclose(Oracles(hinge).hessian(off, flat_y).diagonal()[[0, -1]], torch.tensor([1, 1e-4], dtype=F64))
    A, B, _ = constrained.affine
    assert torch.allclose(torch.linalg.vector_norm(torch.cat([A, B], 1), dim=1), torch.ones(150, dtype=F64))
    start = Oracles(constrained).constraint_value(constrained.x0, constrained.pack_y(constrained.y0))
    assert start.max() < 1e-12
    assert hinge.project_x(torch.tensor([-9.0, 0.5, 9.0])).tolist() == [-6.0, 0.5, 2.0]


def test_an_lstm_is_that_of_torch():
    problem, _ = rnn_representation(2, 6, 6, 7, 11, 5, seed=0)
    from steepest.bilevel._tasks_recurrent import _lstm, _tanh_network

    tokens = torch.randint(11, (4, 7), generator=gen())
    for encode, kind, gates in ((_lstm, torch.nn.LSTM, 4), (_tanh_network, torch.nn.RNN, 1)):
        x = problem.x0 if gates == 4 else rnn_representation(2, 6, 6, 7, 11, 5, cell="rnn", seed=0)[0].x0
        weights = {
            "weight_ih_l0": x["input"].T, "weight_hh_l0": x["recurrent"].T, "bias_ih_l0": x["bias"],
            "bias_hh_l0": torch.zeros_like(x["bias"]),
        }  # fmt: skip
        state = torch.random.get_rng_state()
        network = kind(11, 5, batch_first=True, dtype=F64)
        torch.random.set_rng_state(state)
        one_hot = torch.nn.functional.one_hot(tokens, 11).to(F64)
        h, _ = torch.func.functional_call(network, weights, (one_hot,))
        assert torch.allclose(encode(x, tokens), h[:, -1], atol=1e-12)


def test_recurrent_weights_start_at_the_wanted_radius():
    for cell, gates in (("rnn", 1), ("lstm", 4)):
        problem, _ = rnn_representation(2, 6, 6, 7, 11, 5, cell=cell, spectral_radius=1.5, seed=0)
        for part in problem.x0["recurrent"].chunk(gates, 1):
            assert torch.linalg.eigvals(part).abs().max().item() == pytest.approx(1.5)


def test_heads_have_loss_scales_of_their_own():
    problem, _ = multi_block_weighting(3, 0, data="breast_cancer", noise=0.0)
    x, blocks = problem.x0, problem.all_blocks
    same = torch.ones(3, 1, dtype=F64) * randn(31)
    values = problem.upper(x, same, None, blocks)
    assert values[0] != values[1] != values[2]
    # at y = 0 the loss is log(2) / s, and the gradient is the same for every head
    zeros = problem.upper(x, torch.zeros_like(same), None, blocks)
    assert torch.allclose(math.log(2) / zeros, torch.tensor([0.25, 1.0, 4.0], dtype=F64))
    g = Oracles(problem).lower_grad_y(x, torch.zeros(3, 31, dtype=F64), None, blocks)
    assert torch.allclose(g, g[:1].expand(3, -1))
    H = Oracles(problem).hessian(x, torch.zeros(3, 31, dtype=F64), None, blocks)
    bound = torch.tensor([0.25, 1.0, 4.0], dtype=F64) / 8 + 1e-3  # weights 1/2 of the s / 4 that the text promises
    assert (torch.linalg.eigvalsh(H)[:, -1] <= bound).all()


def test_a_drawn_block_is_evaluated_as_among_all():
    for make in (MAKERS["multi_block_weighting"], MAKERS["block_auc"]):
        problem, _ = make(0)
        _, y = moved(problem)
        rows, S = problem.unpack_y(y), torch.tensor([2, 0])
        for function, sample in ((problem.upper, problem.sample_upper), (problem.lower, problem.sample_lower)):
            everything = function(problem.x0, rows, None, problem.all_blocks)
            assert torch.allclose(function(problem.x0, rows[S], None, S), everything[S], atol=1e-14)
            batch = sample(gen(), 7, problem.all_blocks)
            part = tuple(b[S] for b in batch) if isinstance(batch, tuple) else batch[S]
            everything = function(problem.x0, rows, batch, problem.all_blocks)
            assert torch.allclose(function(problem.x0, rows[S], part, S), everything[S], atol=1e-14)


def test_the_pairwise_loss_is_the_mean_over_pairs():
    problem, evaluate = block_auc(2, 0, n_samples=10, n_features=3)
    rows = randn(2, 3)
    pairs = (torch.arange(8).repeat(2, 1), torch.arange(32).repeat(2, 1))  # every sample once: the full data
    value = problem.upper(problem.x0, rows, None, problem.all_blocks)
    assert torch.allclose(problem.upper(problem.x0, rows, pairs, problem.all_blocks), value)
    brute = torch.zeros(2, dtype=F64)
    for i in range(8):
        for j in range(32):
            one = (torch.tensor([[i], [i]]), torch.tensor([[j], [j]]))
            brute += problem.upper(problem.x0, rows, one, problem.all_blocks)
    assert torch.allclose(brute / 256, value)
    # of one pair it is (1 - d)^2, with a difference d of scores that is linear in y
    up, down = (problem.upper(problem.x0, sign * rows, one, problem.all_blocks) for sign in (1, -1))
    d = (down - up) / 4
    assert torch.allclose(up, (1 - d).square())
    assert 0 <= evaluate(problem.x0, torch.zeros_like(rows))["own"] == 0.5


def test_the_area_is_that_of_scikit_learn():
    problem, evaluate = block_auc(3, 0, n_samples=40, n_features=5)
    y = randn(3, 5)
    flipped = evaluate(problem.x0, -y)["own"]
    assert evaluate(problem.x0, y)["own"] == pytest.approx(1 - flipped)
    # the test set is the third of three that the generator draws
    rng = np.random.default_rng(0)
    direction = np.zeros((3, 5))
    direction[:, :1] = rng.standard_normal(1) + 0.5 * rng.standard_normal((3, 1))
    direction *= 1.5 / np.linalg.norm(direction, axis=1, keepdims=True)
    for times in (1, 4, 4):
        Z = rng.standard_normal((3, times * 40, 5))
        Z[:, : times * 8] += direction[:, None]
    labels = np.arange(160) < 32
    areas = [roc_auc_score(labels, Z[i] @ y[i].numpy()) for i in range(3)]
    assert evaluate(problem.x0, y)["own"] == pytest.approx(np.mean(areas))


def test_scales_find_the_features_that_carry_a_signal():
    problem, evaluate = block_auc(20, 0, n_samples=50, n_features=12)
    result = aid_cg(problem, lr_x=20.0, lr_y=0.8, inner_steps=20, maxiter=40)
    assert result.x[:3].min() > result.x[3:].max()
    assert evaluate(result.x)["retrained"] > evaluate(problem.x0)["retrained"] + 0.01


# ------------------------------------------------------------------------------------------------------------ misuse


@pytest.mark.parametrize(
    ("call", "kind", "text"),
    [
        (lambda: hyper_cleaning("iris"), ValueError, "data must be one of 'digits'"),
        (lambda: hyper_cleaning(3), TypeError, "data must be one of"),
        (lambda: hyper_cleaning((np.ones(3), np.ones(3))), ValueError, "data must be X of shape"),
        (lambda: hyper_cleaning(noise=1.5), ValueError, "noise must be"),
        (lambda: hyper_cleaning(seed=-1), ValueError, "seed must be"),
        (lambda: svm_selection("digits"), ValueError, "data must be one of"),
        (lambda: svm_selection(form="dual"), ValueError, "form must be one of"),
        (lambda: svm_selection((np.ones((300, 2)), np.arange(300))), ValueError, "data must be of two classes"),
        (lambda: svm_selection((np.ones((200, 2)), np.arange(200) % 2)), ValueError, "more than 250 samples"),
        (lambda: rnn_representation(0), ValueError, "n_tasks must be"),
        (lambda: rnn_representation(cell="gru"), ValueError, "cell must be"),
        (lambda: rnn_representation(spectral_radius=0.0), ValueError, "spectral_radius must be"),
        (lambda: multi_block_weighting(0), ValueError, "m must be"),
        (lambda: multi_block_weighting(noise=-0.1), ValueError, "noise must be"),
        (lambda: block_auc(n_samples=0), ValueError, "n_samples must be"),
    ],
)
def test_bad_arguments_are_named(call, kind, text):
    with pytest.raises(kind, match=text):
        call()
