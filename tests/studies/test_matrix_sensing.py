"""Tests of the matrix-sensing study: tails, compressed measurements, transcribed peers, and a tiny run."""

import math

import numpy as np
import pytest

from steepest.landscape import factored_descent
from steepest.report.pictures import Ink
from steepest.studies import matrix_sensing as study
from steepest.studies import matrix_sensing_peers as peers
from steepest.studies import matrix_sensing_rates as rates
from tests.studies import check_study as check

# --------------------------------------------------------------------------------------------------------------- exact


@pytest.mark.parametrize("symmetric", [False, True])
def test_compressed_measurements_give_the_same_path(symmetric):
    rng = np.random.default_rng(0)
    A, M = rng.standard_normal((300, 6, 6)), np.diag([1.0, 0.5, 0, 0, 0, 0])
    small = rates.compressed(A, symmetric=symmetric)
    assert len(small) == (21 if symmetric else 36)
    options = {"parametrization": "symmetric" if symmetric else "asymmetric", "maxiter": 200, "tol": 0.0}
    a, b = (rates.run(B, M, 3, 0, **options).history["error"] for B in (A, small))
    np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-13)
    few = rates.compressed(A[:30])
    assert len(few) == 30


def test_tail_of_an_exponential():
    e = np.maximum(3 * np.exp(-0.05 * np.arange(2000)), 1e-16)
    rate, fit = rates.decay_rate(e)
    assert rate == pytest.approx(0.05)
    assert fit == pytest.approx(1.0)
    assert rates.first_below(e, 3 * math.exp(-0.05 * 100)) in (100, 101)
    assert rates.first_below(e, 1e-20) == math.inf
    assert rates.decay_rate(1 / np.arange(1.0, 5000))[1] < 0.99


def test_rate_from_the_start_by_hand():
    """Signal in the first column alone: W is the second, and the imbalance is f^2 - g^2 there."""
    M = np.diag([1.0, 0.8, 0.6, 0.0, 0.0])
    F, G = np.zeros((5, 4)), np.zeros((5, 4))
    F[[0, 1, 2], [0, 1, 2]] = 1.0
    F[4, 3], G[3, 3] = 0.7, 0.2
    assert rates.rate_from_start(M, F, G) == pytest.approx(0.7**2 - 0.2**2)


@pytest.fixture(scope="module")
def small():
    rng = np.random.default_rng(0)
    M = rng.standard_normal((12, 2)) @ rng.standard_normal((2, 10))
    A = rng.standard_normal((360, 12, 10))
    start = rng.standard_normal((12, 2)), rng.standard_normal((10, 2))
    return A, A.reshape(360, -1) @ M.ravel(), M, start


def test_peers_recover_a_matrix(small):
    A, y, M, start = small
    found = [
        peers.scaled_gd(A, y, M.shape, start, step_size=0.3),
        peers.svd_projection(A, y, M.shape, 2, step_size=0.6),
        peers.least_squares_on_factors(A, y, M.shape, start),
    ]
    for peer in found:
        assert peer.residual <= 1e-6
        np.testing.assert_allclose(peer.x, M, atol=1e-4)


def test_scaled_gd_is_newtons_step_for_one_factor_alone(small):
    """With G fixed and exact measurements, a full step of F solves its least-squares problem."""
    _, _, M, (F, G) = small
    A = np.sqrt(M.size) * np.eye(M.size).reshape(-1, *M.shape)
    y = A.reshape(len(A), -1) @ M.ravel()
    found = peers.scaled_gd(A, y, M.shape, (F, G), step_size=1.0, maxiter=1)
    np.testing.assert_allclose(found.factors[0], M @ G @ np.linalg.inv(G.T @ G), atol=1e-10)


def test_soft_impute_fills_hidden_entries():
    rng = np.random.default_rng(0)
    M = rng.standard_normal((40, 2)) @ rng.standard_normal((2, 30))
    rows, cols = np.divmod(rng.choice(1200, 700, replace=False), 30)
    found = peers.soft_impute(rows, cols, M[rows, cols], M.shape, penalty=0.003, sweeps=50)
    assert np.linalg.norm(found.x - M) < 0.05 * np.linalg.norm(M)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_convex_program_agrees(small):
    pytest.importorskip("cvxpy")
    A, y, M, _ = small
    found = peers.nuclear_norm(A[:120], y[:120], M.shape)
    np.testing.assert_allclose(found.x, M, atol=1e-4)
    ours = factored_descent(A[:120], y[:120], rank=2, init="spectral", init_scale=None)
    np.testing.assert_allclose(found.x, ours.x, atol=1e-4)


# ------------------------------------------------------------------------------------------------------------ the study


@pytest.fixture(scope="module")
def tiny():
    return check.run_tiny(study)


@pytest.mark.slow
def test_tiny_run_reports_every_claim_and_draws(tiny):
    check.check_measured(study, tiny)
    check.check_logged(study, tiny)
    if "photograph" in tiny.arrays_log:
        check.check_pictures(study, tiny)
    assert tiny.best_peer is not None


@pytest.mark.slow
def test_what_does_not_depend_on_size_holds_even_at_tiny(tiny):
    assert tiny._measured["rebalanced-product"][0] <= 1e-12
    assert tiny._measured["symmetric-exact-log-linear"][0] >= 0.99
    assert tiny._measured["rebalanced-spread"][0] <= 1.25
    assert tiny._measured["spread-rebalanced"][0] == pytest.approx(-2, abs=0.4)
    assert tiny._measured["asymmetric-exponent"][0] == pytest.approx(2, abs=0.4)


@pytest.mark.slow
def test_the_picture_says_every_error(tiny):
    matplotlib = pytest.importorskip("matplotlib.figure")
    if "photograph" not in tiny.arrays_log:
        pytest.skip("no Pillow")
    figure = matplotlib.Figure()
    study.PICTURES[0].draw(figure, tiny.arrays_log["photograph"], Ink("matrix-sensing", True))
    titles = [ax.get_title() for ax in figure.axes]
    assert len(titles) == 6
    assert all("error" in title for title in titles[1:2] + titles[3:])


def test_the_snippet_and_the_page_run():
    check.check_texts(study)
