"""Tests of the DIFF2 study: its problems, its attacker's arithmetic, and a tiny run."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.datasets import dump_svmlight_file

from steepest.studies import diff2 as study
from steepest.studies import diff2_falls as falls
from steepest.studies import diff2_privacy as privacy
from steepest.studies import diff2_problems as problems
from steepest.studies import diff2_runs as runs
from steepest.studies.context import Context, Job, Unavailable
from tests.studies import check_study as check

pytest.importorskip("dp_accounting")

# --------------------------------------------------------------------------------------------------------------- exact


def test_problems_are_bounded_as_they_say_and_their_gradients_are_right():
    problem = problems.synthetic(200, 6)
    (a,) = problem.data
    np.testing.assert_allclose(a.norm(dim=1), 2.0, rtol=1e-5)
    x = torch.randn(6, generator=torch.Generator().manual_seed(0))
    c, rows = problem.arguments["per_sample_grad"](x, a)
    g = (c[:, None] * rows).mean(0) + torch.func.grad(problems.wells)(x)
    assert problem.judge(x)[0] == pytest.approx(float(g @ g), rel=1e-4)
    norms = (c[:, None] * rows).norm(dim=1)
    assert norms.max() <= problem.clip
    at_start = problem.arguments["per_sample_grad"](problem.start, a)[0].abs() * 2
    assert at_start.max() <= problem.first_clip * (1 + 1e-6)


def test_the_networks_loss_is_a_mean_over_samples():
    X, y = torch.randn(7, 5, generator=torch.Generator().manual_seed(0)), torch.tensor([0.0, 1, 1, 0, 1, 0, 1])
    problem = problems.network(X, y, hidden=3)
    fun, x = problem.arguments["fun"], problem.start
    one_by_one = sum(float(fun(x, a, b)) for a, b in zip(X, y, strict=True)) / 7
    assert float(problem.value(x)) == pytest.approx(one_by_one + float(problems.wells(x)), rel=1e-5)


def test_the_closed_form_of_a_gaussian_mechanism():
    epsilon = privacy.gaussian_epsilon(0.5, 1e-5)
    assert privacy.gaussian_delta(epsilon, 0.5) == pytest.approx(1e-5)
    u = np.linspace(-20, 20, 400_001)
    gap = np.maximum(stats.norm.pdf(u, 0.5) - math.exp(epsilon) * stats.norm.pdf(u), 0)
    assert np.trapezoid(gap, u) == pytest.approx(1e-5, rel=1e-3)


def test_the_attackers_bound_is_sound_and_has_power():
    rng = np.random.default_rng(0)
    exceeded = 0
    for _ in range(60):
        mu = 1.0
        bound = privacy.epsilon_lower_bound(rng.normal(mu, 1, 400), rng.normal(0, 1, 400), 1e-5)
        exceeded += bound > privacy.gaussian_epsilon(mu, 1e-5)
        assert bound > 0.2
    assert exceeded == 0
    same = privacy.epsilon_lower_bound(rng.normal(0, 1, 400), rng.normal(0, 1, 400), 1e-5)
    assert same < 0.3


def test_a_run_above_the_starts_objective_is_rejected():
    problem = problems.synthetic(50, 3)
    far = type("Run", (), {"x": torch.full((3,), 50.0)})
    assert runs.score(problem, [far])[0] == math.inf
    near = type("Run", (), {"x": problem.start})
    assert runs.score(problem, [near])[0] == pytest.approx(problem.judge(problem.start)[0])


def test_ratio_of_means():
    found = {"DP-GD": {"g": np.array([2.0, 4.0])}, "DIFF2": {"g": np.array([1.0, 2.0])}}
    value, (low, high) = runs.ratio(found)
    assert value == 2
    assert low == high == 2


def test_both_methods_get_the_same_number_of_trials():
    assert len(runs.GRIDS["DP-GD"]) == len(runs.GRIDS["DIFF2"])


def test_how_far_the_objective_can_fall():
    a = torch.tensor([[1.0, 0.0], [1.0, 0.0], [-1.0, 0.0]])  # two to one: the best logit is log 2
    problem = problems.logistic(a, problems.nothing)
    assert problem.fall() == pytest.approx(math.log(2) - (math.log(3) - 2 / 3 * math.log(2)), abs=1e-5)


def test_the_prediction_by_hand():
    """Noise over noise: 2^2 t / 2 against d (1 + 0.85^2 t fall)."""
    problem = problems.synthetic(50, 4)
    assert falls.predicted(problem, 0.1, 30, 2.0) == pytest.approx(2 * 60 / (4 * (1 + 0.85**2 * 60 * 0.1)))


# ----------------------------------------------------------------------------------------------------------- the study


@pytest.fixture(scope="module")
def tiny():
    return check.run_tiny(study)


@pytest.mark.slow
def test_tiny_run_reports_every_claim_and_draws(tiny):
    sizes = [f"{kind}-{n}" for kind in ("lower", "objective") for n in (1000, 4000, 16000, 64000)]
    elsewhere = {*sizes, "lower-16000-factor", "equal-settings", "rounds-fewer"}
    for claim in study.CLAIMS:
        if claim.scales != "paper" and claim.id not in elsewhere:
            value, _, reason = tiny._measured[claim.id]
            assert reason if value is None else math.isfinite(value), claim.id
    check.check_logged(study, tiny)


@pytest.mark.slow
def test_the_picture_can_be_drawn(tiny):
    check.check_pictures(study, tiny)


@pytest.mark.slow
def test_what_does_not_depend_on_size_holds_even_at_tiny(tiny):
    judged = {r.id: r for r in tiny.results()}
    for claim in study.CLAIMS:
        if claim.invariant and claim.id != "audit-power" and judged[claim.id].value is not None:
            assert study_holds(claim, judged[claim.id].value), claim.id


def study_holds(claim, value):
    from steepest.studies.claim import Bound

    return Bound.parse(claim.bound).holds(value)


def test_paper_scale_says_what_is_missing_and_reads_files(tmp_path):
    with pytest.raises(Unavailable, match="--data PATH"):
        study.run(Context(study, Job("diff2", "paper")))
    with pytest.raises(Unavailable, match=r"no file \*\.svm"):
        study.run(Context(study, Job("diff2", "paper", data=str(tmp_path))))
    rng = np.random.default_rng(0)
    X = rng.standard_normal((30, 4))
    dump_svmlight_file(X, np.where(X[:, 0] > 0, 1, -1), str(tmp_path / "small.svm"))
    ctx = Context(study, Job("diff2", "paper", data=str(tmp_path), n_seeds=1, max_steps=2))
    study.run(ctx)
    assert 0 <= ctx._measured["paper-tabular"][0] <= 1


def test_the_snippet_and_the_page_run():
    check.check_texts(study)
