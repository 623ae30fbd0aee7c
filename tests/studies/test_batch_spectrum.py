"""Tests of the batch-spectrum study: what it measures, and its helpers against closed forms."""

import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from steepest.studies import batch_spectrum as study
from steepest.studies import batch_spectrum_curvature as curvature
from steepest.studies import batch_spectrum_learner as learner
from steepest.studies import batch_spectrum_rates as rates
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
from steepest.studies.context import Context, Job, Unavailable
from steepest.studies.runner import run_study


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


def test_the_networks_of_the_paper_have_its_sizes():
    count = lambda model: sum(p.numel() for p in model.parameters()) / 1e6  # noqa: E731
    with torch.device("meta"):
        assert count(vgg16()) == pytest.approx(14.8, abs=0.1)
        assert count(PreActivation(4, 10)) == pytest.approx(36.5, abs=0.1)
        assert count(PreActivation(18, 1)) == pytest.approx(1.74, abs=0.05)


@pytest.fixture(scope="module")
def tiny():
    ctx = Context(study, Job("batch-spectrum", "tiny"))
    study.run(ctx)
    return ctx


@pytest.mark.slow
def test_tiny_run_reports_every_claim_but_the_papers_own(tiny):
    for claim in study.CLAIMS:
        if claim.scales != "paper":
            value, _, reason = tiny._measured[claim.id]
            assert value is not None, (claim.id, reason)
    assert {figure.series for figure in study.FIGURES} <= {s.name for s in tiny.series_log}
    assert tiny.best_peer.peer == "best of 36 cells of SGD"
    assert len(learner.CELLS) == 36


@pytest.mark.slow
def test_the_papers_code_runs_for_a_step():
    record, _ = run_study(Job("batch-spectrum", "paper", max_steps=1))
    assert record.status == "ok", record.traceback
    assert all("test the code" in c.reason for c in record.claims if c.scales == "paper")


def test_the_papers_scale_says_what_is_missing():
    if torch.cuda.is_available():
        pytest.skip("here it would train for hours")
    with pytest.raises(Unavailable, match="CUDA"):
        study.run(Context(study, Job("batch-spectrum", "paper")))


def test_the_snippet_and_the_page_run():
    exec(compile(study.SNIPPET, "SNIPPET", "exec"), {})
    page = Path(__file__).parents[2] / "docs" / "methods" / "batch-spectrum.md"
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    assert blocks
    namespace: dict = {}
    for block in blocks:
        exec(compile(block, str(page), "exec"), namespace)


def test_reasons_belong_to_claims():
    assert set(study.REASONS) <= {c.id for c in study.CLAIMS}
    assert study.WHEN_NOT
