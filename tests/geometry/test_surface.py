"""Surfaces against closed forms: torus, sphere, and the intrinsic curvature by Gauss's theorem."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from torch.func import jacfwd, vmap

from steepest.geometry.graph import GeometryWarning
from steepest.geometry.surface import SurfaceGeometry, grid_geometry, surface_features, surface_geometry

R, r = 2.0, 0.7
FIELDS = tuple(SurfaceGeometry.__dataclass_fields__)
NAMES = (
    *("g_11", "g_12", "g_22", "Gamma1_11", "Gamma1_12", "Gamma1_22", "Gamma2_11", "Gamma2_12", "Gamma2_22"),
    *("K", "H", "kappa_1", "kappa_2"),
)


def torus(p):
    """(θ, φ); r_θ × r_φ points inwards."""
    ring = R + r * p[0].cos()
    return torch.stack((ring * p[1].cos(), ring * p[1].sin(), r * p[0].sin()))


def sphere(p):
    """(θ, φ), radius 3; the normal points outwards."""
    return 3 * torch.stack((p[0].sin() * p[1].cos(), p[0].sin() * p[1].sin(), p[0].cos()))


def wavy(p):
    """No symmetry and no orthogonal parameters."""
    u, v = p
    return torch.stack((u + 0.3 * (u * v).sin(), v + 0.2 * u**2, (1.3 * u).sin() * v.cos() + 0.1 * u * v**3))


def torus_exact(theta):
    ring = R + r * torch.cos(theta)
    zero = torch.zeros_like(theta)
    kappa = torch.stack((torch.full_like(theta, 1 / r), torch.cos(theta) / ring), -1)
    gamma = torch.zeros(*theta.shape, 2, 2, 2, dtype=theta.dtype)
    gamma[..., 1, 0, 1] = gamma[..., 1, 1, 0] = -r * torch.sin(theta) / ring
    gamma[..., 0, 1, 1] = ring * torch.sin(theta) / r
    return {
        "metric": torch.diag_embed(torch.stack((zero + r**2, ring**2), -1)),
        "inverse_metric": torch.diag_embed(torch.stack((zero + r**-2, ring**-2), -1)),
        "second_form": torch.diag_embed(torch.stack((zero + r, ring * torch.cos(theta)), -1)),
        "christoffel": gamma,
        "gaussian_curvature": torch.cos(theta) / (r * ring),
        "mean_curvature": kappa.mean(-1),
        "principal_curvatures": kappa,
        "area_element": r * ring,
        "riemann": torch.cos(theta) * r * ring,
    }


def grid(f, u, v):
    uv = torch.stack(torch.meshgrid(u, v, indexing="ij"), -1)
    return vmap(f)(uv.reshape(-1, 2)).reshape(len(u), len(v), 3)


def circle(n):
    return torch.arange(n, dtype=torch.float64) * 2 * torch.pi / n


@pytest.fixture
def uv():
    return torch.rand(7, 5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 2 * torch.pi


# ------------------------------------------------------------------------------------------------------ exact


def test_torus_by_autograd(uv):
    found, exact = surface_geometry(torus, uv), torus_exact(uv[..., 0])
    for name, value in exact.items():
        torch.testing.assert_close(getattr(found, name), value, rtol=0, atol=1e-10)
    u, v = uv.unbind(-1)
    inwards = -torch.stack((u.cos() * v.cos(), u.cos() * v.sin(), u.sin()), -1)
    torch.testing.assert_close(found.normal, inwards, rtol=0, atol=1e-10)


def test_sphere_by_autograd_is_umbilic(uv):
    found = surface_geometry(sphere, uv * torch.tensor([0.4, 1.0]) + torch.tensor([0.2, 0.0]))
    expected = torch.full((7, 5, 2), -1 / 3, dtype=torch.float64)
    torch.testing.assert_close(found.principal_curvatures, expected, rtol=0, atol=1e-10)
    torch.testing.assert_close(found.mean_curvature, expected[..., 0], rtol=0, atol=1e-12)
    torch.testing.assert_close(found.gaussian_curvature, expected[..., 0] ** 2, rtol=0, atol=1e-12)


def test_christoffel_and_riemann_follow_from_the_metric_alone(uv):
    """Theorema egregium: Γ from derivatives of g, and R_1212 from derivatives of Γ."""
    points = uv.reshape(-1, 2) / 4

    def metric(p):
        J = jacfwd(wavy)(p)
        return J.T @ J

    def gamma(p):
        dg = jacfwd(metric)(p)  # dg[i, j, k] = ∂_k g_ij
        first = (dg + dg.permute(0, 2, 1) - dg.permute(2, 0, 1)) / 2  # [l, i, j]: ½(∂_j g_li + ∂_i g_lj - ∂_l g_ij)
        return torch.linalg.inv(metric(p)) @ first.reshape(2, 4)

    def riemann(p):
        G = gamma(p).reshape(2, 2, 2)
        dG = jacfwd(lambda q: gamma(q).reshape(2, 2, 2))(p)  # dG[k, i, j, l] = ∂_l Γ^k_ij
        # R^k_{212} = ∂_1 Γ^k_22 - ∂_2 Γ^k_12 + Γ^k_1m Γ^m_22 - Γ^k_2m Γ^m_12
        up = dG[:, 1, 1, 0] - dG[:, 0, 1, 1] + G[:, 0] @ G[:, 1, 1] - G[:, 1] @ G[:, 0, 1]
        return metric(p)[0] @ up

    found = surface_geometry(wavy, points)
    torch.testing.assert_close(found.christoffel.flatten(1), vmap(gamma)(points).flatten(1), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(found.riemann, vmap(riemann)(points), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found.riemann, found.gaussian_curvature * found.area_element**2)


@pytest.mark.parametrize("order", [2, 4])
@pytest.mark.parametrize("periodic", [True, False])
def test_grid_converges_with_its_order(order, periodic):
    sizes, errors = (24, 48, 96), {name: [] for name in torus_exact(circle(3))}
    for n in sizes:
        theta = circle(n) if periodic else torch.linspace(0.3, 4.0, n, dtype=torch.float64)
        phi = circle(n) if periodic else torch.linspace(-1.0, 2.0, n, dtype=torch.float64)
        steps = (float(theta[1] - theta[0]), float(phi[1] - phi[0]))
        points = grid(torus, theta, phi)
        found = grid_geometry(points, spacing=steps, periodic=(periodic, periodic), order=order)
        for name, value in torus_exact(theta[:, None].expand(n, n)).items():
            errors[name].append(float((getattr(found, name) - value).abs().max()))
    for name, values in errors.items():
        slope = -np.polyfit(np.log(sizes), np.log(values), 1)[0]
        assert slope >= {2: 1.9, 4: 3.8}[order], (name, slope, values)


@pytest.mark.parametrize("order", [2, 4])
@pytest.mark.parametrize("periodic", [True, False])
def test_uneven_parameters_by_the_chain_rule(order, periodic):
    errors = []
    for n in (40, 80):
        s = circle(n + 1) * (n + 1) / n if periodic else torch.linspace(0.2, 2.2, n, dtype=torch.float64)
        theta = s + 0.3 * s.sin()
        phi = torch.linspace(0.0, 1.0, n, dtype=torch.float64)
        phi = phi + 0.4 * phi**2
        points = grid(torus, theta[:n], phi)
        found = grid_geometry(points, periodic=(periodic, False), order=order, u=theta, v=phi)
        exact = torus_exact(theta[:n, None].expand(n, n))
        errors.append([float((getattr(found, k) - exact[k]).abs().max()) for k in ("christoffel", "metric")])
    assert (np.log2(np.divide(*errors)) >= {2: 1.8, 4: 3.7}[order]).all(), errors


def test_gauss_bonnet():
    a = circle(160)
    torus_grid = grid_geometry(grid(torus, a, a), spacing=(float(a[1]),) * 2, periodic=(True, True), order=4)
    total = (torus_grid.gaussian_curvature * torus_grid.area_element).sum() * float(a[1]) ** 2
    assert abs(float(total)) < 1e-6

    n, cut = 201, 0.2
    theta = torch.linspace(cut, torch.pi - cut, n, dtype=torch.float64)
    step = float(theta[1] - theta[0])
    ball = grid_geometry(grid(sphere, theta, a), spacing=(step, float(a[1])), periodic=(False, True), order=4)
    simpson = torch.ones(n, dtype=torch.float64)
    simpson[1:-1:2], simpson[2:-1:2] = 4, 2
    density = (ball.gaussian_curvature * ball.area_element).sum(1) * float(a[1])
    assert abs(float((density * simpson).sum() * step / 3) - 4 * np.pi * np.cos(cut)) < 1e-4


# --------------------------------------------------------------------------------------------------- properties


def test_autograd_and_grid_agree_on_a_surface_without_symmetry():
    u, v = torch.linspace(0, 1, 81, dtype=torch.float64), torch.linspace(-0.5, 1, 91, dtype=torch.float64)
    exact = surface_geometry(wavy, torch.stack(torch.meshgrid(u, v, indexing="ij"), -1))
    found = grid_geometry(grid(wavy, u, v), spacing=(1 / 80, 1.5 / 90), order=4)
    for name in FIELDS:
        torch.testing.assert_close(getattr(found, name), getattr(exact, name), rtol=1e-4, atol=1e-4)


def test_rotating_changes_no_scalar_and_scaling_scales():
    u = torch.linspace(0, 1, 12, dtype=torch.float64)
    points = grid(wavy, u, u)
    Q = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))[0]
    Q = Q * torch.linalg.det(Q)
    before, after = grid_geometry(points), grid_geometry(2 * points @ Q.T + 5)
    torch.testing.assert_close(after.christoffel, before.christoffel)
    torch.testing.assert_close(after.gaussian_curvature, before.gaussian_curvature / 4)
    torch.testing.assert_close(after.principal_curvatures, before.principal_curvatures / 2)
    torch.testing.assert_close(after.metric, before.metric * 4)
    torch.testing.assert_close(after.normal, before.normal @ Q.T)


def test_leading_axes_are_separate_surfaces():
    u = torch.linspace(0, 1, 7, dtype=torch.float64)
    a, b = grid(wavy, u, u), grid(torus, u, u + 1)
    both = surface_features(torch.stack((a, 1e-9 * b)), extrinsic=True)  # poles are found per surface
    torch.testing.assert_close(both[0], surface_features(a, extrinsic=True))
    torch.testing.assert_close(both[1], surface_features(1e-9 * b, extrinsic=True))


def test_numpy_in_gives_numpy_out(uv):
    tensors, arrays = surface_geometry(wavy, uv), surface_geometry(wavy, uv.numpy())
    for name in FIELDS:
        assert isinstance(getattr(arrays, name), np.ndarray)
        np.testing.assert_array_equal(getattr(arrays, name), getattr(tensors, name).numpy())
    points = np.random.default_rng(0).normal(size=(2, 6, 7, 3))
    features = surface_features(points)
    assert isinstance(features, np.ndarray)
    assert features.shape == (2, 6, 7, 10)


@pytest.mark.parametrize("device", ["cpu", *["cuda"] * torch.cuda.is_available()])
def test_single_precision_keeps_its_dtype(device):
    a = circle(32)
    points = grid(torus, a, a).float().to(device)
    found = grid_geometry(points, spacing=(float(a[1]),) * 2, periodic=(True, True), order=4)
    assert all(getattr(found, name).dtype == torch.float32 for name in FIELDS)
    assert found.metric.device == points.device
    exact = torus_exact(a[:, None].expand(32, 32))["gaussian_curvature"].float().to(device)
    torch.testing.assert_close(found.gaussian_curvature, exact, rtol=1e-2, atol=1e-2)


def test_gradients_by_finite_differences():
    points = grid(wavy, *(torch.linspace(0, 1, n, dtype=torch.float64) for n in (4, 5))).requires_grad_()
    assert torch.autograd.gradcheck(lambda p: surface_features(p, extrinsic=True), points, fast_mode=True)
    uv = torch.tensor([[0.3, 0.4], [0.8, 0.1]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda p: surface_geometry(wavy, p).principal_curvatures, uv)


def test_gradients_are_finite_on_umbilics_and_beside_poles():
    u = torch.linspace(0, 1, 5, dtype=torch.float64)
    flat = torch.stack((*torch.meshgrid(u, u, indexing="ij"), torch.zeros(5, 5)), -1).requires_grad_()
    surface_features(flat, extrinsic=True).sum().backward()
    assert torch.isfinite(flat.grad).all()
    uv = torch.tensor([[0.0, 1.0], [0.7, 1.0]], dtype=torch.float64, requires_grad=True)
    with pytest.warns(GeometryWarning, match="1 of 2"):
        found = surface_geometry(sphere, uv).gaussian_curvature
    found[1].backward()
    assert torch.isfinite(uv.grad).all()


def test_features_are_ordered_and_selected_by_name():
    u = torch.linspace(0, 1, 9, dtype=torch.float64)
    points = grid(wavy, u, u[:8])
    geometry = grid_geometry(points, spacing=(1 / 8, 1 / 7))
    features, names = surface_features(points, extrinsic=True, return_names=True)
    g, gamma = geometry.metric, geometry.christoffel
    upper = [(0, 0), (0, 1), (1, 1)]
    expected = [g[..., i, j] for i, j in upper] + [gamma[..., k, i, j] for k in (0, 1) for i, j in upper]
    expected += [geometry.gaussian_curvature, geometry.mean_curvature, *geometry.principal_curvatures.unbind(-1)]
    assert names == NAMES
    torch.testing.assert_close(features, torch.stack(expected, -1))
    torch.testing.assert_close(surface_features(points), features[..., :10])
    chosen, order = surface_features(points, channels=["kappa_2", "K", "Gamma2_12"], return_names=True)
    assert order == ("kappa_2", "K", "Gamma2_12")
    torch.testing.assert_close(chosen, features[..., [12, 9, 7]])


def test_periodic_features_take_the_closing_step():
    a = circle(20)
    found = surface_features(grid(torus, a, a), periodic=(True, True), order=4, channels=["g_11"])
    torch.testing.assert_close(found, torch.full_like(found, (2 * np.pi * r) ** 2), rtol=1e-3, atol=0)


# ------------------------------------------------------------------------------------------------------- misuse


def test_poles_are_nan_and_counted_and_nothing_else_is():
    theta = torch.linspace(0, torch.pi, 9, dtype=torch.float64)
    uv = torch.stack(torch.meshgrid(theta, circle(6), indexing="ij"), -1)
    with pytest.warns(GeometryWarning, match="12 of 54"):
        found = surface_geometry(sphere, uv)
    for name in FIELDS:
        finite = torch.isfinite(getattr(found, name)).reshape(9, -1).all(1)
        inner = torch.ones(9, dtype=torch.bool)
        inner[[0, -1]] = name in ("metric", "area_element")
        assert torch.equal(finite, inner), name


def test_fine_spacing_in_single_precision_warns():
    points = torch.randn(5, 5, 3, generator=torch.Generator().manual_seed(0))
    with pytest.warns(GeometryWarning, match="double precision"):
        grid_geometry(points, spacing=(1e-4, 1.0))
    with pytest.warns(GeometryWarning, match="double precision"):
        grid_geometry(points, v=torch.linspace(0, 1e-3, 5))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        grid_geometry(points.double(), spacing=(1e-4, 1.0))


P = np.random.default_rng(0).normal(size=(7, 8, 3))


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: grid_geometry(P.tolist()), TypeError, "points"),
        (lambda: grid_geometry(P.astype(int)), TypeError, "points.*float"),
        (lambda: grid_geometry(P[..., :2]), ValueError, r"points.*\(\.\.\., n_u, n_v, 3\)"),
        (lambda: grid_geometry(P[0]), ValueError, "points"),
        (lambda: grid_geometry(P * np.nan), ValueError, "points.*finite"),
        (lambda: grid_geometry(P[:3]), ValueError, "at least 4 points along n_u"),
        (lambda: grid_geometry(P[:, :5], order=4), ValueError, "at least 6 points along n_v"),
        (lambda: grid_geometry(P[:2], periodic=(True, False)), ValueError, "at least 3 points along n_u"),
        (lambda: grid_geometry(P, order=3), ValueError, "order"),
        (lambda: grid_geometry(P, spacing=(1.0, 0.0)), ValueError, "spacing"),
        (lambda: grid_geometry(P, spacing=1.0), ValueError, "spacing.*pair"),
        (lambda: grid_geometry(P, periodic=(1, 0)), TypeError, "periodic"),
        (lambda: grid_geometry(P, u=np.arange(6.0)), ValueError, r"u must be of shape \(7,\)"),
        (lambda: grid_geometry(P, v=np.zeros(8)), ValueError, "v.*monotonic"),
        (lambda: grid_geometry(P, v=np.full(8, np.nan)), ValueError, "v.*monotonic"),
        (lambda: surface_features(P, channels=["K", "R"]), ValueError, "channels.*g_11"),
        (lambda: surface_features(P, channels=["K", "K"]), ValueError, "channels"),
        (lambda: surface_features(P, channels="K"), ValueError, "channels"),
        (lambda: surface_features(P, channels=[]), ValueError, "channels"),
        (lambda: surface_features(P[0]), ValueError, "points"),
        (lambda: surface_features(P, extrinsic=1), TypeError, "extrinsic"),
        (lambda: surface_geometry(torus, torch.zeros(4, 3)), ValueError, "uv"),
        (lambda: surface_geometry(torus, torch.zeros(0, 2)), ValueError, "uv"),
        (lambda: surface_geometry(torus, torch.full((2,), torch.inf)), ValueError, "uv.*finite"),
        (lambda: surface_geometry(torus, [[0.0, 1.0]]), TypeError, "uv"),
        (lambda: surface_geometry(lambda p: p, torch.zeros(4, 2)), ValueError, "f must be.*tensor of shape"),
        (lambda: surface_geometry(3, torch.zeros(4, 2)), TypeError, "f must be"),
    ],
)
def test_misuse_names_the_argument(call, error, match):
    with pytest.raises(error, match=match):
        call()
