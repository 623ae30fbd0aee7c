"""Tests of the diffusion process and of the mixture with known scores."""

import numpy as np
import pytest
import torch
from scipy import stats

from steepest.generative._diffusion import GaussianMixtureScore, OUProcess, noise_levels, run_backwards

T = torch.tensor([0.05, 0.4, 1.0, 3.0], dtype=torch.float64)


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def mixture(kind=np.asarray):
    rng = np.random.default_rng(0)
    roots = rng.standard_normal((3, 2, 2))
    covs = roots @ roots.transpose(0, 2, 1) + 0.3 * np.eye(2)
    return GaussianMixtureScore(kind([0.5, 0.3, 0.2]), kind(rng.standard_normal((3, 2)) * 2), kind(covs))


# --------------------------------------------------------------------------------------------------------------- exact


def test_process_by_hand():
    process = OUProcess()
    torch.testing.assert_close(process.alpha(T), torch.exp(-T / 2))
    torch.testing.assert_close(process.h(T), 1 - torch.exp(-T))
    torch.testing.assert_close(process.weight(T), process.h(T) ** 2 / process.alpha(T) ** 2)
    assert process.alpha(2.0).shape == ()
    assert float(process.h(1e-12)) == pytest.approx(1e-12, rel=1e-9)


def test_perturbation_has_the_moments_of_the_process():
    process, n = OUProcess(), 200_000
    x0 = torch.full((n, 1), 2.0, dtype=torch.float64)
    t = torch.full((n,), 0.7, dtype=torch.float64)
    x, xi = process.perturb(x0, t, gen())
    torch.testing.assert_close(x, process.alpha(0.7) * x0 + process.h(0.7).sqrt() * xi)
    assert float(x.mean()) == pytest.approx(2 * np.exp(-0.35), abs=0.01)
    assert float(x.var()) == pytest.approx(1 - np.exp(-0.7), rel=0.02)
    torch.testing.assert_close(process.perturb(x0, 0.7, 0)[0], x)


def test_weighted_score_matching_is_least_squares_pointwise():
    """lambda |s - grad log p(x_t | x_0)|^2 = |f - x_0|^2, for any denoiser."""
    process, g = OUProcess(), gen()
    x0, f = (torch.randn(4, 3, generator=g, dtype=torch.float64) for _ in range(2))
    x, xi = process.perturb(x0, T, g)
    conditional = -xi / process.h(T)[:, None].sqrt()  # gradient of the log of N(a x_0, h I)
    s = process.score_from_denoiser(f, x, T)
    loss = process.weight(T) * (s - conditional).square().sum(1)
    torch.testing.assert_close(loss, (f - x0).square().sum(1), rtol=1e-11, atol=0)
    torch.testing.assert_close(process.denoiser_from_score(s, x, T), f)


@pytest.mark.parametrize("t", [0.0, 0.3, 2.0])
def test_mixture_density_is_scipys(t):
    m, x = mixture(), np.random.default_rng(1).standard_normal((5, 2))
    a, h = np.exp(-t / 2), 1 - np.exp(-t)
    weights, means, covs = (v.numpy() for v in (m.weights, m.means, m.covs))
    parts = [
        w * stats.multivariate_normal(a * mu, a**2 * C + h * np.eye(2)).pdf(x) for w, mu, C in zip(weights, means, covs)
    ]
    np.testing.assert_allclose(m.log_prob(x, t), np.log(sum(parts)), rtol=1e-12)


def test_mixture_score_is_the_gradient_and_tweedies_formula_holds():
    m = mixture(torch.as_tensor)
    x = torch.randn(4, 2, generator=gen(), dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(m.log_prob(x, T).sum(), x)
    score = m.score(x, T).detach()
    torch.testing.assert_close(score, slope, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(m.denoise(x, T).detach(), OUProcess().denoiser_from_score(score, x.detach(), T))


def test_mixture_denoiser_by_quadrature():
    m = GaussianMixtureScore([0.4, 0.6], [[-1.0], [2.0]], [[[0.2]], [[0.5]]])
    x0, t, x = np.linspace(-8, 8, 20_001), 0.6, 0.3
    prior = np.exp(m.log_prob(x0[:, None], 0.0))
    joint = prior * stats.norm(np.exp(-t / 2) * x0, np.sqrt(1 - np.exp(-t))).pdf(x)
    np.testing.assert_allclose(m.denoise([[x]], t)[0, 0], (joint * x0).sum() / joint.sum(), rtol=1e-9)


def test_mixture_samples_and_kinds():
    m = mixture()
    x = m.sample(100_000, generator=3)
    assert isinstance(x, np.ndarray)
    assert isinstance(mixture(torch.as_tensor).sample(2, generator=0), torch.Tensor)
    weights, means = m.weights.numpy(), m.means.numpy()
    np.testing.assert_allclose(x.mean(0), weights @ means, atol=0.03)
    second = np.einsum("k,kij->ij", weights, m.covs.numpy() + means[:, :, None] * means[:, None, :])
    np.testing.assert_allclose(x.T @ x / len(x), second, rtol=0.03, atol=0.05)
    np.testing.assert_array_equal(m.sample(5, generator=3), m.sample(5, generator=3))
    assert m.score(torch.zeros(1, 2, dtype=torch.float32), 0.5).dtype == torch.float32


@pytest.mark.parametrize("method", ["sde", "ode"])
def test_a_gaussian_comes_back(method):
    """N(1, 0.25) under its exact denoiser, up to what first-order steps leave."""
    m = GaussianMixtureScore(torch.ones(1), torch.tensor([[1.0]]).double(), torch.tensor([[[0.25]]]).double())
    times = noise_levels(1e-3, 4.0, 400)
    a, h = np.exp(-2.0), 1 - np.exp(-4.0)
    x = a + np.sqrt(0.25 * a**2 + h) * torch.randn(10_000, 1, generator=gen(), dtype=torch.float64)
    y = run_backwards(m.denoise, x, times, method=method, generator=1)
    assert float(y.mean()) == pytest.approx(1.0, abs=0.03)
    assert float(y.var()) == pytest.approx(0.25, rel=0.06)


def test_exponential_integrator_is_exact_where_the_denoiser_is_linear_in_one_step():
    """One step from t to t - s with the score frozen, by hand."""
    times = torch.tensor([1.0, 0.4], dtype=torch.float64)
    x = torch.randn(3, 2, generator=gen(), dtype=torch.float64)
    seen = []

    def denoise(y, t):
        seen.append(y.clone())
        return torch.zeros_like(y)

    run_backwards(denoise, x, times, generator=5)
    z = torch.randn(x.shape, generator=gen(5), dtype=torch.float64)
    s = -x / (1 - np.exp(-1.0))
    expected = np.exp(0.3) * x + 2 * (np.exp(0.3) - 1) * s + np.sqrt(np.exp(0.6) - 1) * z
    torch.testing.assert_close(seen[1], expected)


def test_levels_are_geometric_in_the_variance():
    times = noise_levels(0.05, 3.0, 7)
    h = OUProcess().h(times).log().diff()
    torch.testing.assert_close(h, h[:1].expand(7))
    assert (float(times[0]), float(times[-1])) == (3.0, 0.05)


# -------------------------------------------------------------------------------------------------------------- misuse


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: GaussianMixtureScore([1.0], [0.0], [[[1.0]]]), "means must be of shape"),
        (lambda: GaussianMixtureScore([1.0, 1.0], [[0.0]], [[[1.0]]]), "weights must be of shape"),
        (lambda: GaussianMixtureScore([-1.0], [[0.0]], [[[1.0]]]), "weights must be .* positive"),
        (lambda: GaussianMixtureScore([1.0], [[0.0]], [[1.0]]), "covs must be symmetric"),
        (lambda: GaussianMixtureScore([1.0], [[0.0]], [[[-1.0]]]), "covs must be positive definite"),
        (lambda: mixture().score([[0.0]], 0.1), "x must be of shape"),
        (lambda: mixture().score([[0.0, 0.0]], [0.1, 0.2]), "t must be a number or of shape"),
        (lambda: mixture().score([[0.0, 0.0]], -0.1), "t must be a number"),
        (lambda: mixture().sample(0), "n must be"),
        (lambda: noise_levels(0.0, 1.0, 3), "t_min must be > 0"),
        (lambda: noise_levels(1.0, 0.5, 3), "t_max must be > 1"),
        (lambda: run_backwards(lambda x, t: x, torch.zeros(1, 1), T.flip(0), method="pde"), "method must be one of"),
    ],
)
def test_misuse_is_named(call, match):
    with pytest.raises(ValueError, match=match):
        call()
