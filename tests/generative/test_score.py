"""Tests of score regression: against known scores, the kernel limit, scikit-learn's examination, two ranks, misuse."""

import logging
import math
import pickle
import warnings
from datetime import timedelta

import numpy as np
import pytest
import torch
import torch.distributed as dist
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.utils.estimator_checks import check_estimator

from steepest.core.errors import ConvergenceWarning, SteepestWarning
from steepest.generative._diffusion import GaussianMixtureScore, OUProcess
from steepest.generative._full_batch import FullBatch
from steepest.generative._score_problem import Inputs, ScoreProblem, Standardization, draw_noised
from steepest.generative._stopping import label_noise
from steepest.generative._tangent_kernel import TwoLayerReLU, relu_ntk
from steepest.generative.score import ScoreRegression
from tests import processes

MODES = GaussianMixtureScore([0.5, 0.5], [[1.5, 0.0], [-1.5, 0.0]], np.stack([0.15 * np.eye(2)] * 2))
X = MODES.sample(200, generator=2)


def model(**options):
    return ScoreRegression(**({"model": "kernel", "stopping": "mallows", "random_state": 0} | options))


@pytest.fixture(scope="module")
def fitted():
    return model().fit(X)


@pytest.fixture(scope="module")
def larger():
    return model(n_noisings=3).fit(MODES.sample(400, generator=4))


# --------------------------------------------------------------------------------------------------------------- exact


def test_the_fit_is_the_loop_written_out():
    """Noise, inputs, kernel and steps of gradient descent by hand, from the estimator's own draws."""
    found = model(stopping=25, standardize=False).fit(X)
    problem = found._problem(torch.as_tensor(X), _seeds(0))
    x, t, y = problem.train.x.numpy(), problem.train.t.numpy(), problem.train.y.numpy()
    np.testing.assert_array_equal(y, X)
    size = math.sqrt(np.square(x).mean())
    R = size * (math.sqrt(2) + math.sqrt(2 * math.log(200)))
    length = np.linalg.norm(x, axis=1, keepdims=True)
    u = np.column_stack([x * np.minimum(1, R / length) / size, (t - 0.05) / 2.95, np.ones(200)])
    K = relu_ntk(u)
    eta = 0.9 / np.linalg.eigvalsh(K / 200)[-1]
    assert found.learning_rate_ == pytest.approx(eta, rel=1e-3)
    f, c = np.zeros_like(y), np.zeros_like(y)
    for _ in range(25):
        c += found.learning_rate_ / 200 * (y - f)
        f = K @ c
    np.testing.assert_allclose(found.dual_coef_, c, rtol=1e-8)
    inside = np.linalg.norm(x, axis=1) < R
    np.testing.assert_allclose(found._denoise_standard(problem.train.x, problem.train.t).numpy(), f, atol=1e-10)
    assert found.truncation_radius_ == pytest.approx(R)
    assert found.truncated_fraction_ == pytest.approx(1 - inside.mean())
    np.testing.assert_allclose(found.eigenvalues_, np.linalg.eigvalsh(K / 200)[::-1], atol=1e-12)


def _seeds(random_state):
    from steepest.core.random import child_seeds, numpy_generator

    _, noise, _, landmarks, _ = child_seeds(int(numpy_generator(random_state).integers(2**62)), 5)
    return noise, landmarks


def test_it_learns_the_denoiser(larger):
    """Between modes at +-1.5 the error is a small part of what the mean alone would leave."""
    noised = draw_noised(torch.as_tensor(MODES.sample(2000, generator=1)), 0.05, 3.0, seed=2)
    x, t = noised.x.numpy(), noised.t.numpy()
    # the same process in the estimator's coordinates: noise of size scale_
    a, h = OUProcess().alpha(noised.t).numpy()[:, None], OUProcess().h(noised.t).numpy()[:, None]
    x = a * noised.y.numpy() + larger.scale_ * (x - a * noised.y.numpy())
    exact = GaussianMixtureScore(MODES.weights, MODES.means / larger.scale_, MODES.covs / larger.scale_**2)
    truth = larger.scale_ * exact.denoise(x / larger.scale_, t)
    error = np.square(larger.denoise(x, t) - truth).sum(1).mean()
    assert error < 0.06 * np.square(truth).sum(1).mean()
    score = (a * truth - x) / (h * larger.scale_**2)
    np.testing.assert_allclose(
        larger.score_at(x, t), (a * larger.denoise(x, t) - x) / (h * larger.scale_**2), rtol=1e-9
    )
    assert np.square(larger.score_at(x, t) - score).mean() < 0.2 * np.square(score).mean()


def test_the_wide_network_is_the_kernel_model():
    kernel = model(stopping="kernel").fit(X)
    network = model(model="network", width=16_384, stopping="kernel").fit(X)
    assert network.n_iter_ == kernel.n_iter_ > 3
    assert network.dual_coef_ is None
    assert kernel.net_ is None
    a, b = (m.denoise(X[:50], 0.5) for m in (kernel, network))
    assert np.linalg.norm(a - b) < 0.05 * np.linalg.norm(a)
    np.testing.assert_allclose(network.history_["fun"], kernel.history_["fun"], rtol=0.02)


def test_rules_are_those_of_the_parts(fitted):
    problem = fitted._problem(torch.as_tensor(X), _seeds(0))
    assert fitted.n_iter_ == fitted.stopping_step_ == fitted.mallows_step_ == problem.mallows_step
    assert fitted.error_bound_ == pytest.approx(12 * fitted.radius_**2 * fitted.critical_radius_**2)
    kernel = model(stopping="kernel").fit(X)
    assert kernel.stopping_step_ == math.floor(1 / (kernel.learning_rate_ * kernel.critical_radius_**2))
    assert kernel.stopping_step_ < kernel.mallows_step_
    given = model(stopping="kernel", radius=2.0, noise=0.4).fit(X)
    assert (given.radius_, given.sigma_) == (2.0, 0.4)
    c = fitted.dual_coef_
    K = relu_ntk(problem.U.numpy())
    assert fitted.radius_ == pytest.approx(math.sqrt(np.einsum("nd,nm,md->d", c, K, c).max()))


def test_coordinates_of_the_caller():
    """Shifted and scaled data give the shifted and scaled denoiser, and scores that shrink."""
    shift = np.array([3.0, -1.0])
    a, b = model().fit(X), model().fit(5 * X + shift)
    t = 0.7
    moved = 5 * X + math.exp(-t / 2) * shift
    np.testing.assert_allclose(b.denoise(moved, t), 5 * a.denoise(X, t) + shift, rtol=1e-6)
    np.testing.assert_allclose(b.score_at(moved, t), a.score_at(X, t) / 5, rtol=1e-6, atol=1e-9)
    assert b.score(5 * X + shift) == pytest.approx(25 * a.score(X), rel=1e-6)
    raw = model(standardize=False).fit(X)
    assert raw.scale_ == 1.0
    assert not raw.mean_.any()


def test_landmarks_and_noisings():
    few = model(n_landmarks=60).fit(X)
    assert few.dual_coef_.shape == (60, 2)
    full = model().fit(X)
    assert np.linalg.norm(few.denoise(X, 0.5) - full.denoise(X, 0.5)) < 0.15 * np.linalg.norm(X)
    many = model(n_noisings=3).fit(X)
    assert many.eigenvalues_.shape == (200,)
    assert many.dual_coef_.shape == (600, 2)
    assert many.error_bound_ > 0
    problem = many._problem(torch.as_tensor(X), _seeds(0))  # noisings of one point would measure no noise at all
    assert many.sigma_ == label_noise(problem.U[::3], problem.train.y[::3])


def test_large_samples_take_the_stop_from_a_subset(monkeypatch):
    from steepest.generative import score

    with monkeypatch.context() as patch:
        patch.setattr(score, "ROWS_IN_FULL", 150)
        patch.setattr(score, "SUBSET", 100)
        some = model(model="network", width=64, stopping="kernel").fit(X)
    full = model(model="network", width=64, stopping="kernel").fit(X)
    assert int((some.eigenvalues_ > 0).sum()) == 100
    assert some.eigenvalues_.shape == (200,)
    assert some.eigenvalues_[:3] == pytest.approx(full.eigenvalues_[:3], rel=0.15)
    assert 0.4 < some.stopping_step_ / full.stopping_step_ < 2.5
    monkeypatch.setattr(score, "KERNEL_ROWS", 100)
    with pytest.raises(ValueError, match="n_landmarks must be given for more than 100 rows"):
        model().fit(X)
    assert model(n_landmarks=50).fit(X).dual_coef_.shape == (50, 2)


def test_holdout_keeps_the_lowest_and_splits_data_points():
    kernel = model(stopping="holdout", n_noisings=2, max_iter=2000).fit(X)
    losses = kernel.history_["holdout"]
    assert kernel.stopping_step_ == kernel.history_["step"][int(np.argmin(losses))]
    assert kernel.dual_coef_.shape == (2 * 160, 2)  # a fifth of the points is held out, with all its noisings
    network = model(model="network", width=32, stopping="holdout", max_iter=600).fit(X)
    assert network.stopping_step_ == network.history_["holdout_step"][int(np.argmin(network.history_["holdout"]))]
    assert network.n_iter_ >= network.stopping_step_


# ----------------------------------------------------------------------------------------------------------- properties


@pytest.mark.parametrize("method", ["sde", "ode"])
def test_samples_look_like_the_data(larger, method):
    drawn = larger.sample(400, method=method, n_steps=40)
    assert drawn.shape == (400, 2)
    assert np.abs(drawn.mean(0) - X.mean(0)).max() < 0.5  # the shares of the modes are the hardest part
    assert np.abs(np.abs(drawn[:, 0]).mean() - 1.5) < 0.2
    np.testing.assert_array_equal(drawn[:0], larger.sample(1, method=method, n_steps=2)[:0])


def test_same_seed_same_numbers(fitted):
    again = model().fit(X)
    np.testing.assert_array_equal(again.denoise(X, 0.2), fitted.denoise(X, 0.2))
    np.testing.assert_array_equal(again.sample(3, n_steps=5), fitted.sample(3, n_steps=5))
    assert not np.array_equal(fitted.sample(3, n_steps=5, random_state=1), fitted.sample(3, n_steps=5))
    assert fitted.score(X) == again.score(X)
    assert fitted.score(X) > model(stopping=1).fit(X).score(X)
    other = model(random_state=1).fit(X)
    assert not np.array_equal(other.denoise(X, 0.2), fitted.denoise(X, 0.2))
    networks = [model(model="network", width=8, stopping=3).fit(X).net_.W.detach() for _ in range(2)]
    assert torch.equal(*networks)


def test_a_number_is_a_constant_vector(fitted):
    np.testing.assert_array_equal(fitted.denoise(X, 0.3), fitted.denoise(X, np.full(200, 0.3)))
    np.testing.assert_array_equal(fitted.score_at(X, 0.3), fitted.score_at(X, np.full(200, 0.3)))


@pytest.mark.parametrize("kind", ["network", "kernel"])
def test_single_precision_is_kept_and_close(kind):
    options = {"model": kind, "width": 64, "stopping": 20}
    single, double = model(**options).fit(X.astype(np.float32)), model(**options).fit(X)
    a, b = single.denoise(X[:9].astype(np.float32), 0.5), double.denoise(X[:9], 0.5)
    assert (a.dtype, b.dtype) == (np.float32, np.float64)
    np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)
    assert single.sample(2, n_steps=3).dtype == np.float32
    assert single.mean_.dtype == np.float32


def test_pickles_and_clones(fitted):
    back = pickle.loads(pickle.dumps(fitted))
    np.testing.assert_array_equal(back.denoise(X, 1.0), fitted.denoise(X, 1.0))
    assert clone(fitted).get_params() == fitted.get_params()


def test_truncation_cuts_far_inputs_only(fitted):
    inputs = Inputs.of(torch.as_tensor(X), 0.05, 3.0)
    x = torch.tensor([[1e6, 0.0], [0.1, 0.2]], dtype=torch.float64)
    u = inputs(x, torch.tensor([0.05, 3.0], dtype=torch.float64))
    torch.testing.assert_close(u[0], torch.tensor([inputs.radius / inputs.size, 0, 0, 1]).double())
    torch.testing.assert_close(u[1], torch.tensor([0.1 / inputs.size, 0.2 / inputs.size, 1, 1]).double())
    assert Inputs.of(torch.as_tensor(X), 0.05, 3.0, reach=2.0).radius == 2 * inputs.radius
    assert inputs.cut(x) == 0.5


def test_standardization_has_one_scale():
    points = torch.as_tensor(X * [10.0, 0.1] + [1.0, 2.0])
    standard = Standardization.of(points, True)
    z = standard.data(points)
    torch.testing.assert_close(z.mean(0), torch.zeros(2).double(), atol=1e-12, rtol=0)
    assert float(z.square().mean()) == pytest.approx(1.0)
    torch.testing.assert_close(standard.back(z), points)


def test_log_says_what_the_rules_found(caplog):
    with caplog.at_level(logging.INFO, logger="steepest.generative"):
        model(model="network", width=8, stopping=3, verbose=1).fit(X)
    assert "unbiased risk lowest" in caplog.text
    assert "step 3 of at most 3" in caplog.text


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["network", "kernel"])
def test_check_estimator(kind):
    check_estimator(ScoreRegression(model=kind, width=64, max_iter=500))


def _rank(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2, timeout=timedelta(seconds=120)
    )
    try:
        U, Y, net = _two_ranks()
        mine = slice(0, 11) if rank == 0 else slice(11, None)
        descent = FullBatch(net, U[mine], Y[mine], process_group="default")
        losses = [descent.step(0.05) for _ in range(5)]
        return losses, net.W.detach().numpy(), descent.n
    finally:
        dist.destroy_process_group()


def _two_ranks():
    problem = ScoreProblem.build(torch.as_tensor(X[:30]))
    return problem.U, problem.train.y, TwoLayerReLU(4, 2, 16, generator=0, dtype=torch.float64)


@pytest.mark.slow
def test_two_ranks_train_as_one(tmp_path):
    with processes.pool(2) as pool:
        first, second = pool.map(_rank, range(2), [tmp_path] * 2)
    U, Y, net = _two_ranks()
    descent = FullBatch(net, U, Y)
    losses = [descent.step(0.05) for _ in range(5)]
    assert first[2] == second[2] == 30
    np.testing.assert_array_equal(first[1], second[1])
    np.testing.assert_allclose(first[1], net.W.detach().numpy(), rtol=1e-10)
    np.testing.assert_allclose(first[0], losses, rtol=1e-10)


# --------------------------------------------------------------------------------------------------------------- misuse


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"t_min": 1e-4}, "t_min must be >= 0.001"),
        ({"t_min": 2.0, "t_max": 1.0}, "t_max must be > 2"),
        ({"model": "forest"}, "model must be one of"),
        ({"width": 1}, "width must be"),
        ({"width": 33, "model": "network"}, "width must be even"),
        ({"stopping": "soon"}, "stopping must be one of"),
        ({"stopping": -1}, "stopping must be"),
        ({"learning_rate": 0.0}, "learning_rate must be > 0"),
        ({"radius": 0.0}, "radius must be > 0"),
        ({"noise": -1.0}, "noise must be > 0"),
        ({"n_noisings": 0}, "n_noisings must be"),
        ({"validation_fraction": 1.0}, "validation_fraction must be"),
        ({"stopping": "holdout", "validation_fraction": 0.999}, "validation_fraction must be such"),
        ({"max_iter": 0}, "max_iter must be"),
    ],
)
def test_misuse_is_named(options, match):
    with pytest.raises(ValueError, match=match):
        model(**options).fit(X)


def test_kinds_are_named():
    with pytest.raises(TypeError, match="standardize must be True or False"):
        model(standardize=1).fit(X)
    with pytest.raises(TypeError, match="learning_rate must be"):
        model(learning_rate="fast").fit(X)


def test_bad_data_and_times(fitted):
    with pytest.raises(ValueError, match="minimum of 2"):
        model().fit(X[:1])
    with pytest.raises(ValueError, match="NaN"):
        model().fit(np.full((4, 2), np.nan))
    for t in (0.01, 4.0, np.nan):
        with pytest.raises(ValueError, match=r"t must be in \[t_min, t_max\]"):
            fitted.denoise(X, t)
    with pytest.raises(ValueError, match="t must be a number or of shape"):
        fitted.denoise(X, [0.1, 0.2])
    with pytest.raises(ValueError, match="method must be one of"):
        fitted.sample(1, method="exact")
    for call in (lambda m: m.denoise(X, 0.1), lambda m: m.score_at(X, 0.1), lambda m: m.score(X), lambda m: m.sample()):
        with pytest.raises(NotFittedError):
            call(model())


def test_a_step_too_large_is_named_before_and_in_training(monkeypatch):
    with pytest.raises(FloatingPointError, match=r"learning_rate=100 .* lambda_max"):
        model(model="network", learning_rate=100.0).fit(X)
    monkeypatch.setattr(FullBatch, "step", lambda self, step_size: math.inf)
    with pytest.raises(FloatingPointError, match=r"the network diverges .* lambda_max="):
        model(model="network", width=8).fit(X)


def test_stops_that_say_nothing_are_told():
    with pytest.warns(ConvergenceWarning, match="had not stopped at max_iter=3"):
        model(max_iter=3, stopping="kernel", noise=0.05).fit(X)
    with pytest.warns(ConvergenceWarning, match="stops before the first step"):
        zero = model(stopping="kernel", noise=50.0).fit(X)
    np.testing.assert_allclose(zero.denoise(X, 0.5), np.tile(X.mean(0), (200, 1)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(stopping=None, max_iter=3).fit(X)


def test_constant_features_are_told():
    flat = np.column_stack([X[:, 0], np.full(200, 7.0)])
    with pytest.warns(SteepestWarning, match=r"constant features: \[1\]"):
        found = model().fit(flat)
    assert np.isfinite(found.score_at(flat, 0.1)).all()
    np.testing.assert_allclose(found.denoise(flat, 0.1)[:, 1], 7.0, atol=1e-9)
    with pytest.warns(SteepestWarning):
        same = model(stopping="kernel").fit(np.ones((5, 2)))
    np.testing.assert_allclose(same.denoise(np.ones((5, 2)), 0.1), 1.0)
