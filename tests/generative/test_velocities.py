"""Tests of velocities: dense weights, conditional means of Gaussians, limits at the ends, networks."""

import pytest
import torch

from steepest.generative import GaussianSourceVelocity, KernelVelocity, MLPVelocity, RectifiedFlow, UNetVelocity


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def times(n, seed=5):
    return torch.rand(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --------------------------------------------------------------------------------------------------------------- exact


@pytest.mark.parametrize("chunk", [3, 100])
def test_gaussian_source_is_its_formula(chunk):
    data, x, t, s = randn(10, 3), randn(6, 3, seed=1), times(6), 0.7
    found = GaussianSourceVelocity(data, source_std=s, chunk=chunk)(x, t)
    for i in range(6):
        squares = (x[i] - t[i] * data).square().sum(1)
        w = torch.softmax(-squares / (2 * s**2 * (1 - t[i]) ** 2), 0)
        torch.testing.assert_close(found[i], (w @ data - x[i]) / (1 - t[i]))


@pytest.mark.parametrize("chunk", [3, 100])
def test_kernel_is_its_formula(chunk):
    x0, x1, x, t, h = randn(10, 3) + 50, randn(10, 3, seed=2) + 50, randn(6, 3, seed=1) + 50, times(6), 0.6
    found = KernelVelocity(x0, x1, bandwidth=h, chunk=chunk)(x, t)
    for i in range(6):
        middle = t[i] * x1 + (1 - t[i]) * x0
        w = torch.softmax(-(x[i] - middle).square().sum(1) / (2 * h**2), 0)
        torch.testing.assert_close(found[i], (w @ x1 - x[i]) / (1 - t[i]))


def test_gaussian_source_is_the_conditional_mean():
    """By Monte Carlo: among pairs whose x_t lies near x, the mean of x1 - x0."""
    data = torch.tensor([[-1.0], [0.5], [2.0]], dtype=torch.float64)
    x0, chosen = randn(400_000, 1), torch.randint(3, (400_000,), generator=torch.Generator().manual_seed(1))
    x1, t = data[chosen], 0.4
    x_t = t * x1 + (1 - t) * x0
    near = (x_t[:, 0] - 0.3).abs() < 0.05
    found = GaussianSourceVelocity(data)(torch.full((1, 1), 0.3, dtype=torch.float64), torch.full((1,), t).double())
    assert float(found) == pytest.approx(float((x1 - x0)[near].mean()), abs=0.04)


def test_gaussian_source_memorizes():
    data = randn(5, 2)
    flow = RectifiedFlow(GaussianSourceVelocity(data))
    # rk4 and rk45 end at t = 1, where x alone does not tell the velocity of arrival: off by part of the last step.
    for options, error in (
        ({}, 1e-3),
        ({"method": "euler", "steps": 200}, 1e-6),
        ({"method": "rk4", "steps": 200}, 5e-3),
    ):
        z = flow.sample(randn(20, 2, seed=3), **options).x
        assert float(torch.cdist(z, data).min(1).values.max()) < error


def test_many_data_come_in_blocks_without_overflow():
    data = 100 * randn(9, 2, dtype=torch.float32)
    for t in (0.0, 1e-7, 0.999999, 1.0):
        v = GaussianSourceVelocity(data, chunk=4)(randn(5, 2, dtype=torch.float32), torch.full((5,), t))
        assert torch.isfinite(v).all()
        assert t > 0 or torch.allclose(v, data.mean(0) - randn(5, 2, dtype=torch.float32), atol=1e-4)


def test_the_end_points_to_the_nearest_datum():
    data, x, end = randn(8, 2), randn(6, 2, seed=1), torch.ones(6, dtype=torch.float64)
    nearest = data[torch.cdist(x, data).argmin(1)]
    v = GaussianSourceVelocity(data)(x, end)
    torch.testing.assert_close(v / v.norm(dim=1, keepdim=True),
                               (nearest - x) / (nearest - x).norm(dim=1, keepdim=True))  # fmt: skip
    torch.testing.assert_close(GaussianSourceVelocity(data)(data, end[:1].expand(8)), torch.zeros_like(data))
    assert torch.isfinite(KernelVelocity(x, x + 1, bandwidth=0.1)(x, end)).all()


def test_kernel_learns_a_shift():
    x0 = randn(200, 2)
    flow = RectifiedFlow(KernelVelocity(x0, x0 + 3, bandwidth=0.05))
    z = flow.sample(x0[:20], steps=20, method="euler").x
    assert float((z - x0[:20] - 3).abs().max()) < 0.05


# ------------------------------------------------------------------------------------------------------------ networks


@pytest.mark.parametrize("shape", [(), (6,), (2, 3)])
def test_mlp_takes_any_shape(shape):
    x, d = randn(4, *shape, dtype=torch.float32), max(1, int(torch.tensor(shape).prod()))
    network = MLPVelocity(d, width=16, depth=2, seed=0)
    assert network(x, torch.rand(4, generator=torch.Generator().manual_seed(0))).shape == x.shape
    assert network.double()(x.double(), torch.zeros(4).double()).dtype == torch.float64


def test_networks_have_their_own_stream():
    before = torch.get_rng_state()
    for make in (
        lambda seed: MLPVelocity(3, width=8, n_classes=2, seed=seed),
        lambda seed: UNetVelocity(1, 4, width=8, multipliers=(1, 2), blocks=1, seed=seed),
    ):
        a, b, c = make(0), make(0), make(1)
        for p, q in zip(a.parameters(), b.parameters(), strict=True):
            assert torch.equal(p, q)
        assert any(not torch.equal(p, q) for p, q in zip(a.parameters(), c.parameters(), strict=True))
    assert torch.equal(before, torch.get_rng_state())


def test_first_weights_are_torchs_own_in_size():
    layer = MLPVelocity(2, width=128, seed=0).layers[2]
    assert float(layer.weight.detach().abs().max()) == pytest.approx(128**-0.5, rel=1e-2)


def test_labels_matter_and_minus_one_is_none():
    network = MLPVelocity(2, width=16, n_classes=3, seed=0)
    x, t = randn(3, 2, dtype=torch.float32), torch.zeros(3)
    labels = torch.tensor([0, 1, 2])
    assert not torch.equal(network(x, t, labels), network(x, t))
    assert torch.equal(network(x, t, torch.full((3,), -1)), network(x, t))


def test_the_unet_is_the_papers():
    network = UNetVelocity(
        3, 8, width=8, multipliers=(1, 2), blocks=2, attention=(4,), dropout=0.1, n_classes=2, seed=0
    )
    x, t = randn(2, 3, 8, 8, dtype=torch.float32), torch.tensor([0.2, 0.8])
    assert float(network.eval()(x, t, torch.tensor([0, -1])).detach().abs().max()) == 0  # starts at zero
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.02 * randn(*p.shape, dtype=torch.float32))
    alone = torch.cat([network(x[i : i + 1], t[i : i + 1]) for i in range(2)])
    torch.testing.assert_close(network(x, t), alone, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(network(x, t), network(x, 1 - t))


@pytest.mark.slow
def test_the_official_size():
    """DDPM++ of the official CIFAR-10 configuration has 61.8 million parameters."""
    network = UNetVelocity(3, 32, width=128, blocks=4, dropout=0.15, seed=0)
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(61.8e6, rel=1e-3)


# -------------------------------------------------------------------------------------------------------------- misuse


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: GaussianSourceVelocity(torch.ones(2, 2), source_std=0.0), "source_std"),
        (lambda: GaussianSourceVelocity(torch.ones(2, 2), chunk=0), "chunk"),
        (lambda: KernelVelocity(torch.ones(2, 2), torch.ones(2, 2), bandwidth=0.0), "bandwidth"),
        (lambda: KernelVelocity(torch.ones(2, 2), torch.ones(3, 2), bandwidth=1.0), "x1"),
        (lambda: MLPVelocity(0), "dim"),
        (lambda: MLPVelocity(2, n_frequencies=-1), "n_frequencies"),
        (lambda: UNetVelocity(1, 6), "image_size"),
        (lambda: UNetVelocity(1, 8, width=3), "width"),
        (lambda: UNetVelocity(1, 8, dropout=1.0), "dropout"),
        (lambda: GaussianSourceVelocity(torch.ones(2, 2))(torch.ones(1, 3), torch.ones(1)), "x must be"),
    ],
)
def test_misuse_names_the_argument(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_kinds():
    with pytest.raises(TypeError, match="x1"):
        GaussianSourceVelocity(torch.ones(2, 2).long())
    with pytest.raises(TypeError, match="x1"):
        KernelVelocity(torch.ones(2, 2), torch.ones(2, 2).double(), bandwidth=1.0)
