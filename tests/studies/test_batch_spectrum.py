"""Tests of the batch-spectrum study: what it measures, and its helpers against closed forms."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from steepest.studies import batch_spectrum as study
from steepest.studies import batch_spectrum_curvature as curvature
from steepest.studies import batch_spectrum_learner as learner
from steepest.studies import batch_spectrum_rates as rates
from steepest.studies import batch_spectrum_tools as tools
from steepest.studies.batch_spectrum_paper import PreActivation, vgg16
from steepest.studies.batch_spectrum_training import (
    Grid,
    digits_data,
    digits_mlp,
    independent_batches,
    initial,
    losses_of,
    seeded,
    train_grid,
)
from steepest.studies.context import Context, Job
from steepest.studies.runner import run_study
from tests.studies import check_study as check


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_many_runs_at_once_equal_torchs_optimizers(optimizer):
    data, batches = digits_data(), independent_batches(1797, 16, 12, 0)
    cells = [(0.05, 0.9), (0.2, 0.0)] if optimizer == "sgd" else [(0.01, None), (0.003, None)]
    lr = torch.tensor([c[0] for c in cells])
    momentum = torch.tensor([c[1] for c in cells]) if optimizer == "sgd" else None
    theta = train_grid(digits_mlp(), initial([seeded(digits_mlp, 1)], 2), data, Grid(lr, momentum), batches)
    found = losses_of(digits_mlp(), theta, data)
    for k, (rate, beta) in enumerate(cells):
        model = seeded(digits_mlp, 1)
        opt = (
            torch.optim.SGD(model.parameters(), rate, momentum=beta)
            if beta is not None
            else torch.optim.Adam(model.parameters(), rate)
        )
        for index in batches:
            opt.zero_grad()
            nn.CrossEntropyLoss()(model(data.X[index]), data.y[index]).backward()
            opt.step()
        with torch.no_grad():
            expected = nn.CrossEntropyLoss()(model(data.X), data.y)
        assert float(found[k]) == pytest.approx(float(expected), rel=1e-4)


def test_each_run_may_have_batches_of_its_own():
    data, model = digits_data(), digits_mlp()
    batches = torch.stack([independent_batches(1797, 8, 3, s) for s in (1, 2)], 1)
    grid = Grid(torch.tensor([0.1, 0.1]), torch.zeros(2))
    both = losses_of(model, train_grid(model, initial([seeded(digits_mlp, 1)], 2), data, grid, batches), data)
    one = Grid(torch.tensor([0.1]), torch.zeros(1))
    for k in range(2):
        alone = train_grid(model, initial([seeded(digits_mlp, 1)]), data, one, batches[:, k])
        assert float(both[k]) == pytest.approx(float(losses_of(model, alone, data)[0]), rel=1e-5)


def test_the_largest_rate_that_trains_is_found_to_eight_percent(monkeypatch):
    limits = np.array([0.37, 3.3, 1e-9])
    monkeypatch.setattr(rates, "_trains", lambda data, B, seeds, tried, *rest: tried <= limits[:, None])
    found = rates.largest_rates(digits_data(), 4, [1, 2, 3], optimizer="sgd", steps=1)
    assert (found[:2] <= limits[:2]).all()
    assert (found[:2] * 1.09 > limits[:2]).all()
    assert math.isnan(found[2])


def test_a_diverged_run_counts_as_failure():
    tried = np.array([[1e-3, 1e30]])
    trained = rates._trains(digits_data(), 32, [1], tried, "sgd", 60)
    assert not trained[0, 1]


def test_the_worst_prediction_leaves_out_calibration_and_large_batches():
    moment = {"top": [1.0] * 8, "measured": [1.1, 1.0, 9.0, 1.0, 9.0, 1.0, 0.8, 9.0]}
    assert curvature._worst(moment, "measured") == pytest.approx(0.2)


def test_seconds_are_those_of_the_first_budget_that_stays_within():
    curve = tools.Curve((1, 2, 3, 4), np.array([[1.0, 2.0, 3.0, 4.0]] * 3), np.array([[0.1, 0.9, 0.1, 0.1]] * 3))
    assert tools.seconds_to(curve, 0.2) == 3.0
    assert tools.seconds_to(curve, 0.9) == 1.0
    assert tools.seconds_to(curve, 0.05) == math.inf
    late = tools.Curve((1,), np.array([[1.0]] * 3), np.array([[0.0], [0.1], [9.0]]))
    assert tools.seconds_to(late, 0.1) == 1.0  # the median over seeds
    twice = tools.Curve(curve.budgets, 2 * curve.seconds, curve.errors)
    assert tools.against(curve, twice, 0.2) == (0.5, (0.5, 0.5))
    assert tools.against(curve, twice, 0.05)[0] == 1.0  # neither gets there
    assert tools.best_way({"a, x": twice, "a, y": curve, "b": late}, "a", 0.2) == ("a, y", 3.0)


def test_errors_of_a_spectrum_are_zero_for_the_spectrum_itself():
    dense = np.array([-1.0, 2.0, 3.0, 4.0])
    largest, trace, density = tools.QUANTITIES
    assert largest.error(4.2, dense) == pytest.approx(0.05)
    assert trace.error(6.0, dense) == pytest.approx(0.25)
    assert density.error((dense, np.full(4, 0.25)), dense) == pytest.approx(0)
    assert density.error((dense + 0.5, np.full(4, 0.25)), dense) == pytest.approx(0.2)  # 0.5 of a mean of 2.5


@pytest.mark.slow
def test_every_tool_measures_the_same_hessian():
    """An order small enough for Lanczos to finish: all ways but those by random probes agree with the dense matrix."""
    g = torch.Generator().manual_seed(0)
    X, y = torch.randn(60, 3, generator=g), torch.randint(4, (60,), generator=g)
    model = seeded(lambda: nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 4)), 0)  # 20 parameters
    dense = np.linalg.eigvalsh(tools.HessianOperator(model, tools.LOSS, (X, y)).dense().numpy())
    found = tools.tools(model, X, y)
    before = torch.random.get_rng_state()
    for quantity in tools.QUANTITIES:
        curves = tools.measure(quantity, found[quantity.name], dense, [1, 2, 3], budgets=(18,))
        for way, curve in curves.items():
            limit = {"largest eigenvalue": 1e-2, "trace": 0.6, "density": 0.8}[quantity.name]
            assert np.median(curve.errors) < limit, way
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(p.grad is None for p in model.parameters())


def test_the_networks_of_the_paper_have_its_sizes():
    count = lambda model: sum(p.numel() for p in model.parameters()) / 1e6  # noqa: E731
    with torch.device("meta"):
        assert count(vgg16()) == pytest.approx(14.8, abs=0.1)
        assert count(PreActivation(4, 10)) == pytest.approx(36.5, abs=0.1)
        assert count(PreActivation(18, 1)) == pytest.approx(1.74, abs=0.05)


@pytest.mark.slow
def test_tiny_run_reports_every_claim_but_the_papers_own(monkeypatch):
    data = tools.digits_data()
    few = type(data)(data.X[:300], data.y[:300])  # 2,410 products with a Hessian of all digits take long
    monkeypatch.setattr(tools, "digits_data", lambda: few)
    tiny = check.run_tiny(study)
    check.check_measured(study, tiny, unless=("within",))  # twelve products reach few of the tools' errors
    check.check_logged(study, tiny)
    check.check_pictures(study, tiny)
    assert tiny.best_peer.peer == "best of 36 cells of SGD"
    assert len(learner.CELLS) == 36


@pytest.mark.slow
def test_the_papers_code_runs_for_a_step():
    record, _ = run_study(Job("batch-spectrum", "paper", max_steps=1))
    assert record.status == "ok", record.traceback
    assert all("test the code" in c.reason for c in record.claims if c.scales == "paper")


def test_the_papers_tasks_are_named():
    with pytest.raises(ValueError, match="task"):
        study.run(Context(study, Job("batch-spectrum", "paper", options={"task": "svhn"}, max_steps=1)))


def test_the_papers_scale_says_what_is_missing():
    check.check_refuses_without_accelerator(study)


def test_the_snippet_and_the_page_run():
    check.check_texts(study)
