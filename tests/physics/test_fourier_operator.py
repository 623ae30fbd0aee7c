"""The Fourier neural operator against a dense transform, and its training loop."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from steepest.physics._fourier_operator import FNO, SpectralLayer
from steepest.physics._pde import DiffusionSorption1D, NavierStokes2D
from steepest.physics._pde_training import fit_pde_operator, operator_solution, pde_loss
from steepest.physics.hard_constraint_moe import HardConstraint, HardConstraintMoE

F64 = torch.float64


def layer(width_in: int, width_out: int, modes: tuple[int, ...], padding: tuple[float, ...] = ()) -> SpectralLayer:
    made = SpectralLayer(width_in, width_out, modes, padding or (0.0,) * len(modes)).double()
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in made.parameters():
            p.normal_(generator=g)
    return made


def test_a_spectral_layer_is_a_filter_of_waves():
    made, (n, m) = layer(2, 3, (2, 3)), (6, 8)
    v = torch.randn(1, n, m, 2, generator=torch.Generator().manual_seed(0), dtype=F64)
    v_hat = torch.fft.fft2(v[0], dim=(0, 1))
    R = torch.view_as_complex(made.spectral)
    expected = torch.zeros(n, m, 3, dtype=F64)
    a, b = (2 * math.pi * torch.arange(size, dtype=F64) / size for size in (n, m))
    for i in range(-2, 2):
        for j in range(3):
            matrix = R[0, :, :, i, j] if i >= 0 else R[1, :, :, i + 2, j]
            wave = torch.exp(1j * (i * a[:, None] + j * b))
            part = (wave[..., None] * (v_hat[i, j] @ matrix)).real / (n * m)
            expected += part if j == 0 else 2 * part
    spectral = made(v)[0] - made.pointwise(v)[0]
    assert torch.allclose(spectral, expected, atol=1e-12)


@pytest.mark.parametrize(
    ("grid", "modes", "padding"),
    [
        ((9, 6), (4, 4), (0.0, 0.0)),
        ((8, 9), (2, 5), (0.5, 1 / 3)),
        ((4, 6, 5), (2, 3, 3), (0.5, 0.0, 0.0)),
        ((7,), (3,), (1.0,)),
    ],
)
def test_the_products_are_fast_transforms_of_the_field_with_zeros_behind_it(grid, modes, padding):
    made, g = layer(2, 3, modes, padding), torch.Generator().manual_seed(2)
    v = torch.randn(2, *grid, 2, generator=g, dtype=F64, requires_grad=True)
    axes, sizes = tuple(range(1, v.ndim - 1)), [n + round(share * n) for n, share in zip(grid, padding, strict=True)]
    v_hat, R = torch.fft.rfftn(v, s=sizes, dim=axes), torch.view_as_complex(made.spectral)
    y_hat = torch.zeros(*v_hat.shape[:-1], 3, dtype=v_hat.dtype)
    for corner, signs in zip(R, itertools.product((1, -1), repeat=len(modes) - 1), strict=True):
        waves = torch.cartesian_prod(
            *(torch.arange(m) if sign > 0 else torch.arange(-m, 0) for sign, m in zip(signs, modes, strict=False)),
            torch.arange(modes[-1]),
        ).view(-1, len(modes))  # fmt: skip
        for wave in waves.tolist():
            y_hat[(slice(None), *wave)] = v_hat[(slice(None), *wave)] @ corner[(slice(None), slice(None), *wave)]
    expected = torch.fft.irfftn(y_hat, s=sizes, dim=axes)[(slice(None), *(slice(0, n) for n in grid))]
    found = made(v) - made.pointwise(v)
    assert torch.allclose(found, expected, atol=1e-12)
    weights = torch.randn(found.shape, generator=g, dtype=F64)
    here, there = (torch.autograd.grad((y * weights).sum(), (v, made.spectral)) for y in (found, expected))
    assert all(torch.allclose(a, b, atol=1e-11) for a, b in zip(here, there, strict=True))


def test_it_is_the_same_operator_on_a_finer_grid():
    net = FNO(1, 2, (3, 3), (4, 4, 4), 8).double()

    def field(n: int, m: int) -> torch.Tensor:
        x, y = 2 * math.pi * torch.arange(n, dtype=F64)[:, None] / n, 2 * math.pi * torch.arange(m, dtype=F64) / m
        return (torch.sin(x) * torch.cos(y))[None, ..., None]

    # one layer is exact; GELU makes waves that the coarse grid aliases, so the nets agree closely, not exactly
    with torch.no_grad():
        coarse, fine = net(field(24, 24)), net(field(48, 48))
    assert float((fine[:, ::2, ::2] - coarse).abs().max()) < 1e-3
    assert float(coarse.std()) > 1e-3


def test_three_axes_and_the_output_activation():
    x = torch.randn(2, 8, 6, 10, 4, generator=torch.Generator().manual_seed(0))
    net, bare = (FNO(4, 5, (2, 3, 4), (6, 6), 7, output_activation=a) for a in ("gelu", None))
    assert net(x).shape == (2, 8, 6, 10, 5)
    assert torch.allclose(net(x), torch.nn.functional.gelu(bare(x)))
    assert net.layers[0].spectral.shape == (4, 6, 6, 2, 3, 4, 2)


def test_the_seed_makes_the_weights():
    nets = [FNO(3, 4, (2, 2), (5, 6), 7, seed=seed) for seed in (0, 0, 1)]
    weights = [torch.cat([p.flatten() for p in net.parameters()]) for net in nets]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    wide = FNO(3, 4, (8, 8), (40, 60), 7)
    assert float(wide.layers[0].spectral.detach().std()) == pytest.approx(math.sqrt(2 / 100), rel=0.02)


# ------------------------------------------------------------------------------------------------------------ training


def test_the_loss_is_the_papers():
    pde = DiffusionSorption1D(6, 8, skip_corner=1)
    g = torch.Generator().manual_seed(0)
    u, u0 = torch.rand(2, 6, 8, generator=g, dtype=F64), torch.rand(2, 8, generator=g, dtype=F64)
    terms, parts = pde.terms(u), pde_loss(pde, u, u0)
    residual = pde.residual(terms)
    residual[:, 0, 0] = residual[:, 0, -1] = 0.0  # the corners
    assert float(parts["residual"]) == pytest.approx(float(residual.flatten(1).norm(dim=1).mean()), rel=1e-12)
    relative = (u[:, 0] - u0).norm(dim=1) / u0.norm(dim=1)
    assert float(parts["initial"]) == pytest.approx(float(relative.mean()), rel=1e-12)
    walls = pde.boundary(terms).flatten(1).norm(dim=1) / math.sqrt(5)
    assert float(parts["boundary"]) == pytest.approx(float(walls.mean()), rel=1e-12)
    flow = NavierStokes2D(4, 6, 6)
    assert list(pde_loss(flow, torch.rand(1, 4, 6, 6, generator=g), torch.zeros(1, 6, 6))) == ["residual"]


@pytest.mark.parametrize("kind", ["soft", "hard", "experts"])
def test_training_lowers_the_loss(kind):
    pde = DiffusionSorption1D(8, 16, skip_corner=2)
    options = {
        "row_scaling": "balanced",
        "ridge": 1e-2,
        "pde_weight": 0.1,
        "start": "running",
        "hessian": "gauss-newton",
    }
    constraint = {
        "soft": lambda: None,
        "hard": lambda: HardConstraint(pde, **options),
        "experts": lambda: HardConstraintMoE(pde, (1, 2), num_sampled_points=40, **options),
    }[kind]()
    net = FNO(3, 1 if kind == "soft" else 4, (3, 3), (8, 8, 8), 16, output_activation=None)
    u0 = torch.linspace(0.05, 0.2, 5)[:, None].expand(-1, 16)
    steps = 40 if kind == "soft" else 12
    history = fit_pde_operator(net, constraint, pde, u0, steps=steps, lr=5e-3, schedule="cosine", batch_size=2)
    assert all(len(values) == steps for values in history.values())
    first, last = (sum(history["fun"][part]) / 3 for part in (slice(0, 3), slice(-3, None)))
    assert last < 0.95 * first
    total = [sum(parts) for parts in zip(history["residual"], history["initial"], history["boundary"], strict=True)]
    assert total == pytest.approx(history["fun"], rel=1e-6)
    assert (max(history["nit"]) > 0) == (kind != "soft")
    with torch.no_grad():
        u, _ = operator_solution(net, constraint, pde, u0)
    assert u.shape == (5, 8, 16)


def test_training_is_repeatable_and_stops_on_time():
    pde, u0 = DiffusionSorption1D(6, 8), torch.linspace(0.05, 0.2, 3)[:, None].expand(-1, 8)

    def run(seed: int, **options: float) -> list[float]:
        net = FNO(3, 1, (2, 2), (4, 4), 8, output_activation=None)
        return fit_pde_operator(net, None, pde, u0, steps=4, batch_size=1, seed=seed, **options)["fun"]

    assert run(0) == run(0)
    assert run(0) != run(1)
    assert run(0, max_seconds=1e-9) in ([], run(0)[:1])


def test_the_soft_flow_starts_at_its_initial_vorticity():
    pde = NavierStokes2D(4, 8, 8)
    w0 = torch.rand(2, 8, 8, generator=torch.Generator().manual_seed(0))
    u, output = operator_solution(FNO(4, 1, (2, 2, 2), (4, 4), 8), None, pde, w0)
    assert output is None
    assert torch.allclose(u[:, 0], w0)


# -------------------------------------------------------------------------------------------------------------- misuse


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FNO(0, 1, (2, 2), (4, 4), 8), "dim_in must be"),
        (lambda: FNO(3, 1, (), (4, 4), 8), "modes must be 1 or more"),
        (lambda: FNO(3, 1, (2, 2), (4,), 8), "widths must be 2 or more"),
        (lambda: FNO(3, 1, (2, 2), (4, 4), 8, output_activation="relu"), "output_activation must be"),
        (lambda: FNO(3, 1, (2, 2), (4, 4), 8, padding=(0.5,)), "padding must be 2 numbers"),
        (lambda: FNO(3, 1, (2, 2), (4, 4), 8, padding=(0.5, -1.0)), "padding must be >= 0"),
        (lambda: FNO(3, 1, (2, 2), (4, 4), 8)(torch.zeros(1, 8, 8, 2)), "x must be of 4 axes, the last of size 3"),
        (lambda: FNO(3, 1, (5, 2), (4, 4), 8)(torch.zeros(1, 8, 8, 3)), "modes must be at most half of a grid of 8"),
        (lambda: FNO(3, 1, (2, 6), (4, 4), 8)(torch.zeros(1, 8, 8, 3)), "modes must be at most 5 on a grid of 8"),
    ],
)
def test_bad_networks_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"steps": 0}, ValueError, "steps must be"),
        ({"lr": 0.0}, ValueError, "lr must be > 0"),
        ({"schedule": "linear"}, ValueError, "schedule must be"),
        ({"max_seconds": 0.0}, ValueError, "max_seconds must be"),
        ({"batch_size": 0}, ValueError, "batch_size must be"),
        ({"initial_conditions": torch.zeros(2, 7)}, ValueError, r"initial_conditions must be of shape \(n, 8\)"),
        ({"constraint": 3}, TypeError, "constraint must be None or a HardConstraint"),
        ({"net": FNO(3, 2, (2, 2), (4, 4), 8)}, ValueError, "net must be a network of one output channel"),
        ({"pde": 3}, TypeError, "pde must be a PDE"),
    ],
)
def test_bad_training_is_named(options, error, message):
    arguments = {
        "net": FNO(3, 1, (2, 2), (4, 4), 8),
        "constraint": None,
        "pde": DiffusionSorption1D(6, 8),
        "initial_conditions": torch.full((2, 8), 0.1),
        "steps": 1,
    } | options
    net, constraint, pde, u0 = (arguments.pop(name) for name in ("net", "constraint", "pde", "initial_conditions"))
    with pytest.raises(error, match=message):
        fit_pde_operator(net, constraint, pde, u0, **arguments)
