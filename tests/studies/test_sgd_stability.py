"""Tests of the study on the stability of SGD."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from steepest.landscape import DiagonalLinear, TwoLayerReLU, linear_stability
from steepest.report.pictures import Ink
from steepest.studies import sgd_stability as study
from steepest.studies import sgd_stability_costs as costs
from steepest.studies import sgd_stability_toys as toys
from steepest.studies.context import Job
from steepest.studies.runner import run_study
from tests.studies import check_study as check

# ------------------------------------------------------------------------------------------------------------ exact


def half_square(f, y):
    return (f - y).square().mean() / 2


def test_many_runs_at_once_are_single_runs():
    """The diagonal model against autograd, step by step; every row has its own learning rate and draws."""
    X, y, beta = toys.sparse_regression([1, 2], d=6, n=5, nonzeros=2)
    lr, steps = np.array([0.02, 0.05]), 40
    found = toys.train_diagonal(X, y, beta, lr, steps, full_batch=False, scale=0.6, seed=3)
    draws = np.random.default_rng([3, 2]).integers(5, size=(1000, 2))
    for k in range(2):
        model = DiagonalLinear(6, scale=0.6, dtype=torch.float64)
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        inputs, targets = torch.from_numpy(X[k]), torch.from_numpy(y[k])[:, None]
        for t in range(steps):
            i = draws[t, k]
            optimizer.param_groups[0]["lr"] = lr[k] * min(1.0, (t + 1) / 20)
            optimizer.zero_grad()
            half_square(model(inputs[i : i + 1]), targets[i : i + 1]).backward()
            optimizer.step()
        report = linear_stability(model, half_square, inputs, targets, lr=lr[k], replacement=True)
        mine = found.report(k, lr[k], 1)
        assert found.norms[k] == pytest.approx(model.parameter_norm())
        assert found.losses[k] == pytest.approx(report.interpolation_error)
        assert found.errors[k] == pytest.approx(float((model.coef.detach() - torch.from_numpy(beta[k])).square().sum()))
        assert mine.ratios["exact"] == pytest.approx(report.ratios["exact"])
        assert found.loss_ratio(k, mine) == pytest.approx(report.ratios["frobenius"])


def test_two_layer_runs_are_single_runs():
    X, y = toys.two_layer_problem([1, 2], d=3, n=6)
    lr, steps, width, B = np.array([0.01, 0.03]), 30, 4, 2
    found = toys.train_two_layer(X, y, width, lr, B, steps, path_norm=5.0, seed=7)
    rng = np.random.default_rng([7, 4])
    b = rng.standard_normal((2, width, 3)) * np.sqrt(5.0 / (width * 3**0.5))
    a = rng.choice([-1.0, 1.0], (2, width)) * np.linalg.norm(b, axis=2) / 3**0.5
    draws = rng.integers(6, size=(1000, 2, B))
    for k in range(2):
        model = TwoLayerReLU(3, width, dtype=torch.float64, seed=0)
        with torch.no_grad():
            model.b.copy_(torch.from_numpy(b[k]))
            model.a.copy_(torch.from_numpy(a[k]))
        assert model.expected_trace() == pytest.approx(3**0.5 * model.parameter_norm())  # it starts balanced
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        inputs, targets = torch.from_numpy(X[k]), torch.from_numpy(y[k])[:, None]
        for t in range(steps):
            rows = draws[t, k]
            optimizer.param_groups[0]["lr"] = lr[k] * min(1.0, (t + 1) / 15)
            optimizer.zero_grad()
            half_square(model(inputs[rows]), targets[rows]).backward()
            optimizer.step()
        report = linear_stability(model, half_square, inputs, targets, lr=lr[k], batch_size=B, replacement=True)
        mine = found.report(k, lr[k], B)
        assert found.norms[k] == pytest.approx(model.parameter_norm())
        for name in ("gd", "trace", "necessary", "exact"):
            assert mine.ratios[name] == pytest.approx(report.ratios[name]), name
        assert found.loss_ratio(k, mine) == pytest.approx(report.ratios["frobenius"])


def test_the_two_dense_ways_to_the_threshold_agree():
    A = torch.randn(30, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    from steepest.landscape import stability_of_factors

    assert costs.dense_threshold(A, 4) == pytest.approx(
        stability_of_factors(A, lr=1.0, batch_size=4).ratios["exact"], rel=1e-9
    )


def test_the_problem_of_the_timings_is_the_announced_one():
    model, X, y = costs.mlp_problem()
    assert sum(p.numel() for p in model.parameters()) == 85_002
    assert X.shape == (512, 64)
    assert set(y.tolist()) <= set(range(10))


def test_other_tools_measure_the_same_numbers():
    model, X, y = costs.mlp_problem(60, 6)
    dense = linear_stability(model, nn.CrossEntropyLoss(), X, y, lr=1.0, method="exact")
    tools = costs.readings(model, X, y, all_tools=True)
    tools.pop("PyHessian", None)  # reads the Hessian
    for name, tool in tools.items():
        top, trace, norm = tool(300, 0)
        assert top == pytest.approx(dense.lambda_max, rel=0.02), name
        assert trace == pytest.approx(dense.trace, rel=0.05), name
        assert math.isnan(norm) if name in costs.NO_NORM else norm == pytest.approx(dense.frobenius, rel=0.1), name


# ---------------------------------------------------------------------------------------------------------- the study


@pytest.fixture(scope="module")
def tiny():
    return check.run_tiny(study)


@pytest.mark.slow
def test_tiny_run_reports_every_claim_and_draws(tiny):
    check.check_measured(study, tiny, unless=["curvlinops"])
    check.check_logged(study, tiny, fewer=["width"])
    check.check_pictures(study, tiny)


@pytest.mark.slow
def test_what_must_hold_holds_even_at_tiny(tiny):
    for claim in ("threshold-below", "threshold-above", "chain"):
        assert tiny._measured[claim][0] == 1, claim
    assert tiny._measured["threshold-dense"][0] <= 1e-8
    assert tiny._measured["trace-upper"][0] <= 1.0
    assert tiny._measured["gd-trace"][0] >= 3
    assert tiny._measured["generalization-gd"][0] <= 5


@pytest.mark.slow
def test_the_picture_has_logarithms(tiny):
    from matplotlib.figure import Figure

    figure = Figure()
    study.PICTURES[0].draw(figure, tiny.arrays_log["spectra"], Ink("sgd-stability", False))
    assert figure.axes[0].get_yscale() == "log"


def test_the_papers_code_runs_for_two_steps():
    record, _ = run_study(Job("sgd-stability", "paper", max_steps=2))
    assert record.status == "ok", record.traceback
    reasons = [c.reason for c in record.claims if c.scales == "paper"]
    assert all("random data" in reason for reason in reasons)


def test_the_papers_scale_says_what_is_missing():
    check.check_refuses_without_accelerator(study)


@pytest.mark.filterwarnings("ignore:the loss .* is above a tenth of the first")
def test_the_snippet_and_the_page_run():
    check.check_texts(study)
