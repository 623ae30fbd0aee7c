"""Tests of the score-estimation study: rivals against closed forms, the table's reader, and a tiny run."""

import math

import numpy as np
import pytest
import torch

from steepest.generative import GaussianMixtureScore, relu_ntk
from steepest.studies import score_estimation as study
from steepest.studies import score_estimation_paper as paper
from steepest.studies import score_estimation_paths as paths
from steepest.studies import score_estimation_peers as peers
from steepest.studies import score_estimation_samples as samples
from steepest.studies.context import Context, Job, Unavailable
from tests.studies import check_study as check

# --------------------------------------------------------------------------------------------------------------- exact


def test_the_density_is_the_mixture_of_its_kernels(monkeypatch):
    rng = np.random.default_rng(0)
    points = torch.from_numpy(rng.standard_normal((30, 2)))
    denoise = peers.density_denoiser(points, 5)
    x, t = torch.from_numpy(rng.standard_normal((7, 2))), torch.linspace(0.1, 2.0, 7, dtype=torch.float64)
    candidates = [
        GaussianMixtureScore(torch.ones(30).double(), points, width**2 * torch.eye(2).double().expand(30, 2, 2))
        for width in np.geomspace(0.05, 2.0, 5)
    ]
    assert min(float((m.denoise(x, t) - denoise(x, t)).abs().max()) for m in candidates) < 1e-10


def test_ridge_is_the_linear_system():
    rng = np.random.default_rng(0)
    U, Y = rng.standard_normal((12, 3)), rng.standard_normal((12, 2))
    K = relu_ntk(U)
    (found,) = peers.ridge_predictions(K, Y, K[:4], [0.3])
    np.testing.assert_allclose(found, K[:4] @ np.linalg.solve(K + 0.3 * np.eye(12), Y), rtol=1e-8)


def test_adam_learns_a_point():
    """All data in one point: its denoiser is that point."""
    points = torch.tensor([[0.5, -1.0]], dtype=torch.float64).expand(40, 2)
    denoise = peers.adam_denoiser(points, 0.05, 3.0, steps=150, seed=0, width=16, rates=(2e-2,))
    x = torch.randn(20, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert float((denoise(x, torch.full((20,), 0.5).double()) - points[:1]).abs().mean()) < 0.15


def test_a_trial_repeats_and_agrees_with_itself():
    trial = paths.Trial(2, 40, 3, n_test=50, doubled=True)
    first, second = paths.follow(trial), paths.follow(trial)
    assert first == second
    assert first["best"] == min(first["path"]) <= first["end"] == first["path"][-1]
    assert first["kernel"] >= first["best"] * 0.8


def test_score_matching_is_regression():
    difference, t = samples.matching_is_regression(3, 50, 4000, 1)
    assert difference < 1e-10
    assert t < 4.5


def test_table_is_read_with_and_without_names(tmp_path):
    rows = np.arange(24.0).reshape(12, 2)
    for head in ("", "a,b\n"):
        file = tmp_path / "t.csv"
        file.write_text(head + "\n".join(f"{a},{b}" for a, b in rows) + "\n1,\n")
        np.testing.assert_array_equal(paper.read_table(file), rows)
    file.write_text("1,2\n")
    with pytest.raises(Unavailable, match="at least 10"):
        paper.read_table(file)


def test_the_papers_scale_runs_a_few_steps_on_a_table(tmp_path):
    file = tmp_path / "t.csv"
    np.savetxt(file, np.random.default_rng(0).standard_normal((40, 3)), delimiter=",")
    ctx = Context(study, Job("score-estimation", "paper", data=str(file), max_steps=2))
    study.run(ctx)
    assert math.isfinite(ctx._measured["credit-default"][0])


def test_the_papers_scale_says_what_is_missing():
    with pytest.raises(Unavailable, match="--data"):
        study.run(Context(study, Job("score-estimation", "paper")))


# ------------------------------------------------------------------------------------------------------------ the study


@pytest.fixture(scope="module")
def tiny():
    return check.run_tiny(study)


@pytest.mark.slow
def test_tiny_run_reports_every_claim_and_draws(tiny):
    check.check_measured(study, tiny)
    check.check_logged(study, tiny)
    check.check_pictures(study, tiny)
    assert tiny.best_peer is not None


@pytest.mark.slow
def test_what_does_not_depend_on_size_holds_even_at_tiny(tiny):
    assert tiny._measured["dsm-is-regression"][0] <= 1e-10
    assert tiny._measured["guarantee"][0] <= 1
    assert tiny._measured["overfit-2"][0] > 1


def test_the_snippet_and_the_page_run():
    check.check_texts(study)
