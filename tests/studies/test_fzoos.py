"""Tests of the FZooS study: its problems by hand, its accounts, and a tiny run."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import approx_fprime
from sklearn.metrics import f1_score, jaccard_score, precision_score, recall_score

from steepest.studies import fzoos as study
from steepest.studies import fzoos_paper as paper
from steepest.studies import fzoos_peers as peers
from steepest.studies import fzoos_problems as problems
from steepest.studies import fzoos_runs as runs
from tests.studies import check_study as check

# --------------------------------------------------------------------------------------------------------------- exact


def test_the_mean_of_the_quadratics_does_not_depend_on_the_heterogeneity():
    """Coefficients are 1 + div (share - 1/N); with N share - 1 instead, clients differ N times as much."""
    d = 6
    for div in (0.5, 5.0):
        problem = problems.synthetic("Quadratic", d, 5, div, 0)
        z = 20 * problem.start - 10
        assert problem.value(problem.start) == pytest.approx((z @ z + z.sum() + 1) / (10 * d))
        assert problem.value(np.full(d, 0.475)) == pytest.approx(problem.least)
        for f, g in zip(problem.fs, problem.gradients, strict=True):
            slope = approx_fprime(problem.start, lambda x, f=f: f(x[None])[0], 1e-7)
            np.testing.assert_allclose(g(problem.start), slope, rtol=1e-4, atol=1e-4)
        curvature = [20 * 20 * 0.2 * a / d for a in (1 - div / 5, 1 + div * 0.8)]
        e = np.eye(d)[0] * 0.01
        bends = [(f((problem.start + e)[None]) + f((problem.start - e)[None]) - 2 * f(problem.start[None]))[0] / 1e-4
                 for f in problem.fs]  # fmt: skip
        assert min(bends) >= curvature[0] - 1e-6
        assert max(bends) <= curvature[1] + 1e-6
        assert np.mean(bends) == pytest.approx(20 * 20 * 0.2 / d)


@pytest.mark.parametrize("kind", ["Ackley", "Levy"])
def test_other_families_are_zero_at_their_centers_when_clients_agree(kind):
    problem = problems.synthetic(kind, 4, 5, 0.0, 0)
    x = np.full(4, 0.5 if kind == "Ackley" else 1.0)
    assert problem.value(x) == pytest.approx(0.0, abs=1e-12)
    assert problem.value(problem.start) > 0.01


def test_metrics_are_scikit_learns():
    rng = np.random.default_rng(0)
    theirs = {"precision": precision_score, "recall": recall_score, "Jaccard": jaccard_score, "F1": f1_score}
    for _ in range(20):
        y, guess = rng.integers(0, 5, 12), rng.integers(0, 5, 12)
        for name, score in theirs.items():
            want = score(y, guess, average="macro", zero_division=0.0)
            assert problems.macro(name, y, guess, 6) == pytest.approx(want)


def test_every_class_is_shared_out_among_its_holders():
    y = np.repeat(np.arange(10), 20)
    parts = problems.by_classes(y, 7, 0.3, np.random.default_rng(0))
    assert len(parts) == 7
    assert len(np.unique(np.concatenate(parts))) == sum(map(len, parts)) == 200
    assert all(len(np.unique(y[rows])) <= 3 for rows in parts)


def test_an_attack_moves_at_most_its_width_and_is_a_margin():
    network = torch.nn.Linear(3, 2)
    with torch.no_grad():
        network.weight.copy_(torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]]))
        network.bias.zero_()
    network.requires_grad_(False)
    problem = problems.attack([network], torch.tensor([0.5, 0.95, 0.1]), 0, 0.2)
    values = problem.fs[0](np.array([[0.5, 0.5, 0.5], [0.0, 0.0, 0.0], [1.0, 1.0, 1.0]]))
    np.testing.assert_allclose(values, [2.7, 0.3 + 1.5 + 0.0, 0.7 + 2.0 + 0.9], rtol=1e-6)


def test_the_account_of_a_course():
    course = runs.Course((5, 10, 20), (3.0, 0.5, 0.1), (0.0, 0.0, 0.0))
    assert (course.hit(0.5), course.hit(0.5, "rounds")) == (10, 1)
    assert course.hit(0.01) == math.inf
    assert (course.spent(0.01), course.spent(0.01, "rounds")) == (20, 2)
    slow = runs.Course((5, 30), (3.0, 0.01), (0.0, 0.0))
    settings = [runs.Setting("FZooS", 0.01), runs.Setting("FZooS", 0.03)]
    assert runs.tuned(settings, [[slow], [course]], 0.1).lr == 0.03
    assert runs.tuned(settings, [[slow], [course]], 0.001).lr == 0.01  # neither arrives: the lower end


def test_every_method_gets_the_same_learning_rates():
    assert {s.lr for s in runs.grid("FZooS")} == {s.lr for s in runs.grid("FedZO, prox")} == set(runs.LRS)
    assert len(runs.grid("FedZO, prox")) == 9


def test_a_peers_look_costs_a_query_of_every_client():
    pytest.importorskip("cma")
    before = np.random.get_state()[1].copy()
    item = ("cma", ("Quadratic", 3, 5, 0.5, 0), 1e-2, 1, 2000)
    spent = peers.queries_to(item)
    assert spent % 5 == 0
    assert 5 < spent < math.inf
    assert peers.queries_to(item) == spent
    np.testing.assert_array_equal(np.random.get_state()[1], before)
    assert peers.queries_to(("cma", ("Quadratic", 3, 5, 0.5, 0), -1.0, 1, 20)) == math.inf


# ----------------------------------------------------------------------------------------------------------- the study


@pytest.fixture(scope="module")
def tiny():
    return check.run_tiny(study)


@pytest.mark.slow
def test_tiny_run_reports_every_claim(tiny):
    arrive = {c.id for c in study.CLAIMS if c.id.startswith(("queries", "peer")) or c.id == "rounds"}
    check.check_measured(study, tiny, unless=("not installed",), infinite=arrive)


@pytest.mark.slow
def test_tiny_run_draws(tiny):
    check.check_logged(study, tiny)


@pytest.mark.parametrize("make", [lambda folder: paper.Images("MNIST", folder), paper.Covertype])
def test_data_of_the_paper_are_not_downloaded(make, tmp_path):
    with pytest.raises((ImportError, RuntimeError, OSError)):
        make(tmp_path)()


def test_the_snippet_and_the_page_run():
    check.check_texts(study)
