"""Tests of distances between clouds: SciPy's one-dimensional distances, dense algebra, closed forms, misuse."""

import math

import numpy as np
import pytest
import torch
from scipy import linalg, stats

from steepest.generative import frechet_distance, mmd2, sliced_wasserstein


def cloud(n, d, seed, scale=1.0, shift=0.0):
    return shift + scale * torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("n", "m"), [(30, 30), (37, 20), (12, 36)])
def test_one_dimension_is_scipys_distance(n, m):
    x, y = cloud(n, 1, 0), cloud(m, 1, 1, 2.0, 1.0)
    expected = stats.wasserstein_distance(x[:, 0], y[:, 0])
    assert float(sliced_wasserstein(x, y, p=1, generator=0)) == pytest.approx(expected, rel=1e-12)


def test_unequal_sizes_are_repeated_samples():
    x, y = cloud(4, 3, 0), cloud(6, 3, 1)
    same = sliced_wasserstein(x.repeat_interleave(3, 0), y.repeat_interleave(2, 0), generator=0)
    torch.testing.assert_close(sliced_wasserstein(x, y, generator=0), same)


def test_a_shift_moves_by_its_projection():
    x = cloud(50, 3, 0)
    shift = torch.tensor([3.0, 0.0, 0.0], dtype=torch.float64)
    found = float(sliced_wasserstein(x, x + shift, n_projections=20_000, generator=0))
    assert found == pytest.approx(3 / math.sqrt(3), rel=0.02)  # E <u, e>^2 = 1/d


def test_mmd_is_its_double_sum():
    x, y, h = cloud(7, 2, 0), cloud(5, 2, 1, shift=1.0), 0.8

    def kernel(a, b):
        return np.exp(-((a[:, None] - b[None]) ** 2).sum(-1) / (2 * h**2))

    a, b = x.numpy(), y.numpy()
    kaa, kbb, kab = kernel(a, a), kernel(b, b), kernel(a, b)
    biased = kaa.mean() + kbb.mean() - 2 * kab.mean()
    unbiased = (kaa.sum() - 7) / 42 + (kbb.sum() - 5) / 20 - 2 * kab.mean()
    assert float(mmd2(x, y, bandwidths=[h], unbiased=False)) == pytest.approx(biased, rel=1e-12)
    assert float(mmd2(x, y, bandwidths=[h])) == pytest.approx(unbiased, rel=1e-12)


def test_mmd_of_gaussians_in_closed_form():
    """E k(x, y) = (h^2 / (h^2 + 2))^(d/2) exp(-|shift|^2 / (2 (h^2 + 2))) between unit Gaussians."""
    x, y = cloud(1500, 2, 0), cloud(1500, 2, 1, shift=1.0)
    expected = 2 / 3 * (1 - math.exp(-2 / 6))  # h = 1, d = 2, |shift|^2 = 2
    assert float(mmd2(x, y, bandwidths=[1.0])) == pytest.approx(expected, rel=0.12)
    assert abs(float(mmd2(x, cloud(1500, 2, 2)))) < 2e-3


def test_default_widths_follow_the_scale():
    x, y = cloud(40, 2, 0), cloud(30, 2, 1, 1.5)
    torch.testing.assert_close(mmd2(1000 * x, 1000 * y), mmd2(x, y))


@pytest.mark.parametrize("d", [4, 60])
def test_frechet_is_the_formula_with_a_square_root(d):
    """Also with fewer samples than dimensions, where the covariances are singular."""
    x, y = cloud(50, d, 0), cloud(40, d, 1, 1.5, 0.5)
    a, b = np.cov(x.numpy().T), np.cov(y.numpy().T)
    roots = []
    for covariance in (a, b):
        values, vectors = linalg.eigh(covariance)
        roots.append(vectors * np.sqrt(np.clip(values, 0, None)) @ vectors.T)
    cross = linalg.svdvals(roots[0] @ roots[1]).sum()  # tr (a b)^(1/2)
    expected = float((x.mean(0) - y.mean(0)).square().sum()) + np.trace(a) + np.trace(b) - 2 * cross
    assert float(frechet_distance(x, y)) == pytest.approx(expected, rel=1e-5)


def test_frechet_of_a_scaled_cloud():
    x = cloud(200, 3, 0)
    x = x - x.mean(0)
    variance = float(x.square().sum() / 199)
    assert float(frechet_distance(x, 3 * x)) == pytest.approx(4 * variance, rel=1e-10)
    assert float(frechet_distance(x, x)) == pytest.approx(0, abs=1e-10)


@pytest.mark.parametrize("distance", [sliced_wasserstein, mmd2, frechet_distance])
def test_shapes_are_flattened_and_the_global_stream_rests(distance):
    x, y = cloud(20, 12, 0).float(), cloud(20, 12, 1).float()
    before = torch.get_rng_state()
    options = {"generator": 3} if distance is sliced_wasserstein else {}
    flat, shaped = distance(x, y, **options), distance(x.reshape(20, 3, 4), y.reshape(20, 3, 4), **options)
    torch.testing.assert_close(flat, shaped)
    assert flat.dtype == torch.float32
    assert flat.ndim == 0
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("distance", [sliced_wasserstein, mmd2, frechet_distance])
def test_misuse_names_the_argument(distance):
    x = cloud(5, 2, 0)
    with pytest.raises(TypeError, match="x must be a floating-point"):
        distance(x.long(), x)
    with pytest.raises(TypeError, match="y must be"):
        distance(x, x.float())
    with pytest.raises(ValueError, match="y must be samples of x's shape"):
        distance(x, cloud(5, 3, 0))


def test_misuse_of_options():
    x = cloud(5, 2, 0)
    with pytest.raises(ValueError, match="n_projections"):
        sliced_wasserstein(x, x, n_projections=0)
    with pytest.raises(ValueError, match="p must be"):
        sliced_wasserstein(x, x, p=0.5)
    with pytest.raises(ValueError, match="bandwidths"):
        mmd2(x, x, bandwidths=[0.0])
    with pytest.raises(ValueError, match="bandwidths"):
        mmd2(x, x, bandwidths=[])
    with pytest.raises(ValueError, match="give bandwidths"):
        mmd2(torch.ones(3, 2), torch.ones(3, 2))
    with pytest.raises(ValueError, match="two samples"):
        mmd2(x[:1], x)
    with pytest.raises(ValueError, match="two samples"):
        frechet_distance(x[:1], x)
