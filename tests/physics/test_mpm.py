"""The particle simulator against closed forms: conservation, free fall, vibrating bars, flow curves, piles of sand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from steepest.core.extras import installed
from steepest.physics import _mpm_laws as laws
from steepest.physics.mpm import MPM, scatter_points

DT = 5e-4
compiled = pytest.mark.skipif(not installed("numba"), reason="Numba is not installed")
materials = pytest.mark.parametrize("material", laws.MATERIALS)


def thrown(dim, material, n=200, backend=None, spread=1.0, inward=0.0, **options):
    """A box of points with random velocities, far from the walls."""
    options = {"gravity": (0.0,) * dim, "E": 200.0, "yield_stress": 2.0, "dt": DT} | options
    mpm = MPM(dim, 16, material, backend=backend, **options)
    rng = np.random.default_rng(0)
    x = 0.4 + 0.2 * rng.random((n, dim))
    v = spread * rng.standard_normal((n, dim)) + 0.3 - inward * (x - 0.5)
    mpm.add_points(x, v, volume=0.2**dim / n)
    return mpm


def constants(dt=DT, E=200.0, nu=0.3, viscosity=0.1, yield_stress=2.0, friction=0.35):
    mu, lam = E / (2 * (1 + nu)), E * nu / ((1 + nu) * (1 - 2 * nu))
    return laws.Constants(mu, lam, E / (3 * (1 - 2 * nu)), viscosity, yield_stress, friction, dt)


def deviator(tau):
    return tau - np.trace(tau, axis1=1, axis2=2)[:, None, None] / tau.shape[1] * np.eye(tau.shape[1])


# ------------------------------------------------------------------------------------------------------ exact


@materials
@pytest.mark.parametrize("dim", [2, 3])
def test_mass_momentum_and_angular_momentum_stay(dim, material):
    mpm = thrown(dim, material, backend="numpy")

    def angular():
        """Of the points and of their affine motion, whose second moment is dx^2 / 4."""
        outer = np.einsum("p,pi,pj->ij", mpm.mass, mpm.x, mpm.v)
        outer += np.einsum("p,pji->ij", mpm.mass, mpm.C) / (4 * 16**2)
        return outer - outer.T

    mass, momentum, turn = mpm.mass.sum(), mpm.mass @ mpm.v, angular()
    mpm.step(20)
    assert mpm.mass.sum() == pytest.approx(mass, rel=1e-12)
    np.testing.assert_allclose(mpm.mass @ mpm.v, momentum, rtol=1e-12)
    np.testing.assert_allclose(angular(), turn, atol=1e-6 * np.abs(turn).max())


@materials
def test_free_fall_is_exact(material):
    gravity, v = np.array([1.0, -9.8]), np.array([0.5, 1.0])
    mpm = MPM(2, 16, material, dt=DT, gravity=gravity, E=200.0, backend="numpy")
    mpm.add_sphere((0.5, 0.5), 0.1, 100, velocity=v)
    start, n = mpm.x.copy(), 100
    mpm.step(n)
    fallen = start + n * DT * v + gravity * DT**2 * n * (n + 1) / 2  # of v += dt g, x += dt v
    np.testing.assert_allclose(mpm.x, fallen, atol=1e-12)
    np.testing.assert_allclose(mpm.v, np.broadcast_to(v + n * DT * gravity, mpm.v.shape), atol=1e-12)
    np.testing.assert_allclose(mpm.F, np.broadcast_to(np.eye(2), mpm.F.shape), atol=1e-10)


@compiled
@pytest.mark.parametrize(("n_grid", "nu"), [(32, 0.0), (64, 0.0), (32, 0.3)])
def test_a_bar_vibrates_at_the_frequency_of_theory(n_grid, nu):
    """Free ends, first axial mode: f = c / (2 L), c^2 = E / (rho (1 - nu^2)) in plane strain."""
    length, E = 0.6, 1e3
    c = math.sqrt(E / (1 - nu**2))
    dt = 0.2 / n_grid / math.sqrt(E * (1 - nu) / ((1 + nu) * (1 - 2 * nu)))
    bar = MPM(2, n_grid, "elastic", dt=dt, gravity=(0.0, 0.0), E=E, nu=nu)
    bar.add_box((0.5 - length / 2, 0.45), (0.5 + length / 2, 0.55), round(0.06 * n_grid**2 * 16))
    rest = bar.x[:, 0].copy()
    mode = np.cos(np.pi * (rest - 0.5 + length / 2) / length)
    bar.v[:, 0] = 0.02 * c * mode
    every = int(2 * length / c / dt / 40)
    amplitude = [mode @ (frame[:, 0] - rest) for frame in bar.run(60, every)]
    a = np.array(amplitude)
    k = np.nonzero(a[1:] * a[:-1] < 0)[0]
    crossings = (k + a[k] / (a[k] - a[k + 1])) * every * dt
    assert len(crossings) >= 2
    assert 0.5 / np.diff(crossings).mean() == pytest.approx(c / (2 * length), rel=0.05)


@pytest.mark.parametrize("dim", [2, 3])
def test_elastic_stress_is_the_derivative_of_the_energy(dim):
    """tau = (dpsi/dF) F^T of psi = mu |F - R|^2 + lam (J - 1)^2 / 2, by central differences."""
    k = constants()
    F = np.eye(dim) + 0.3 * np.random.default_rng(0).standard_normal((dim, dim))

    def psi(F):
        sigma = np.linalg.svd(F)[1]
        return k.mu * np.square(sigma - 1).sum() + k.lam / 2 * (np.prod(sigma) - 1) ** 2

    assert np.linalg.det(F) > 0
    P, h = np.empty((dim, dim)), 1e-6
    for i, j in np.ndindex(dim, dim):
        move = np.zeros((dim, dim))
        move[i, j] = h
        P[i, j] = (psi(F + move) - psi(F - move)) / (2 * h)
    tau, _, J = laws.respond(laws.ELASTIC, k, np.zeros((1, dim, dim)), F[None], np.ones(1))
    np.testing.assert_allclose(tau[0], P @ F.T, rtol=1e-6, atol=1e-6)
    assert J[0] == pytest.approx(np.linalg.det(F))


def test_a_fluid_has_its_pressure_and_viscosity():
    k = constants(viscosity=0.7)
    C = np.array([[[0.1, 5.0], [1.0, 0.3]]])
    tau, _, J = laws.respond(laws.NEWTONIAN, k, C, np.eye(2)[None], np.array([0.9]))
    J_new = 0.9 * (1 + DT * 0.4)
    assert J[0] == pytest.approx(J_new)
    expected = J_new * (-k.bulk * (1 - J_new) * np.eye(2) + 0.7 * np.array([[0.2, 6.0], [6.0, 0.6]]))
    np.testing.assert_allclose(tau[0], expected, rtol=1e-12)


@pytest.mark.parametrize("dim", [2, 3])
@pytest.mark.parametrize("rate", [0.0, 1.0, 30.0])
def test_steady_shear_gives_the_flow_curve_of_herschel_and_bulkley(dim, rate):
    """After long shear at rate r the shear stress is yield + viscosity sqrt(r); a slow creep stays below the yield."""
    k = constants(dt=1e-3 / (1 + rate), viscosity=0.8)
    C = np.zeros((1, dim, dim))
    C[0, 0, 1] = rate
    F, J = np.eye(dim)[None], np.ones(1)
    F[0, 0, 1] = 0.01
    for _ in range(400 if rate else 1):
        tau, F, J = laws.respond(laws.NON_NEWTONIAN, k, C, F, J)
    shear = np.linalg.norm(deviator(tau)[0]) / math.sqrt(2)
    if rate:
        assert shear == pytest.approx(2.0 + 0.8 * math.sqrt(rate), rel=2e-3)
        assert J[0] == pytest.approx(1.0, abs=1e-10)
    else:
        assert shear == pytest.approx(0.01 * k.mu, rel=1e-3)


@pytest.mark.parametrize("dim", [2, 3])
def test_von_mises_stress_never_exceeds_the_yield_and_volume_stays(dim):
    k, rng = constants(), np.random.default_rng(0)
    F = np.eye(dim) + 0.4 * rng.standard_normal((500, dim, dim))
    F = F[np.linalg.det(F) > 0.05]
    tau, F_new, J = laws.respond(laws.PLASTICINE, k, np.zeros_like(F), F, np.ones(len(F)))
    von_mises = math.sqrt(1.5) * np.linalg.norm(deviator(tau), axis=(1, 2))
    assert von_mises.max() <= 2.0 * (1 + 1e-12)
    assert np.median(von_mises) == pytest.approx(2.0)  # most of them yield, and none more than it must
    np.testing.assert_allclose(J, np.linalg.det(F), rtol=1e-10)
    again = laws.respond(laws.PLASTICINE, k, np.zeros_like(F), F_new, J)
    np.testing.assert_allclose(again[0], tau, atol=1e-9)


@pytest.mark.parametrize("dim", [2, 3])
def test_sand_stays_in_its_cone_and_forgets_nothing_of_its_volume(dim):
    k, rng = constants(), np.random.default_rng(0)
    F = np.eye(dim) * 0.9 + 0.2 * rng.standard_normal((500, dim, dim))
    F = F[np.linalg.det(F) > 0.05]
    J = np.linalg.det(F)
    tau, F_new, J_new = laws.respond(laws.SAND, k, np.zeros_like(F), F, J)
    pressure = -np.trace(tau, axis1=1, axis2=2) / dim
    s = np.linalg.norm(deviator(tau), axis=(1, 2))
    loose = J > 1
    assert loose.any()
    np.testing.assert_allclose(tau[loose], 0.0, atol=1e-10)
    assert (s <= 0.35 * dim * pressure * (1 + 1e-9) + 1e-9).all()
    assert (s[~loose] > 0.349 * dim * pressure[~loose]).sum() > 50  # on the cone, not inside
    np.testing.assert_allclose(J_new, J)
    np.testing.assert_allclose(np.linalg.det(F_new[~loose]), J[~loose], rtol=1e-9)
    # what was pulled apart by a fifth must be pushed back by as much before it resists
    squeeze = np.eye(dim)[None] * np.array([-0.05, -0.12])[:, None, None] / DT
    tau, F_new, J_new = laws.respond(laws.SAND, k, squeeze, np.stack([np.eye(dim)] * 2), np.full(2, 1.1**dim))
    assert np.abs(tau[0]).max() == 0 < -tau[1, 0, 0]
    np.testing.assert_allclose(J_new, 1.1**dim * np.array([0.95, 0.88]) ** dim)
    resisted = (2 * k.mu + dim * k.lam) * math.log(1.1 * 0.88)
    np.testing.assert_allclose(tau[1], resisted * np.eye(dim), atol=1e-9)


@pytest.mark.parametrize(("dim", "cone"), [(2, math.sin(math.pi / 6) / math.sqrt(2)), (3, 0.4 * math.sqrt(2 / 3))])
def test_friction_angle_is_that_of_mohr_and_coulomb(dim, cone):
    """Principal stresses at the limit: (t_1 - t_3) = (t_1 + t_3) sin(30 degrees), compressed along one axis."""
    mpm = MPM(dim, 16, "sand", dt=DT, gravity=(0.0,) * dim, E=200.0)
    assert mpm.constants.friction == pytest.approx(cone)
    F = np.eye(dim)[None] * 1.1
    F[0, 0, 0] = 0.6
    tau = laws.respond(laws.SAND, mpm.constants, np.zeros_like(F), F, np.linalg.det(F))[0]
    large, small = -tau[0, 0, 0], -tau[0, 1, 1]
    assert (large - small) / (large + small) == pytest.approx(0.5)


def slopes(pile):
    """Angles of both flanks between a fifth and four fifths of the height, degrees."""
    x, y = pile.x[:, 0], pile.x[:, 1] - 3 / pile.n_grid
    edges = np.linspace(0.1, 0.9, 41)
    middle = (edges[1:] + edges[:-1]) / 2
    column = np.digitize(x, edges) - 1
    top = np.array([np.quantile(y[column == c], 0.98) if (column == c).sum() > 3 else np.nan for c in range(40)])
    flank = (top > 0.2 * np.nanmax(top)) & (top < 0.8 * np.nanmax(top))
    sides = (flank & (middle < 0.5), flank & (middle > 0.5))
    return [math.degrees(math.atan(abs(np.polyfit(middle[s], top[s], 1)[0]))) for s in sides]


def wedge(angle, steps):
    """A pile of sand with flanks of the given angle after a while, and how far its points moved."""
    n, half = 48, 0.25
    pile = MPM(2, n, "sand", dt=1.5e-4, gravity=(0.0, -9.8), E=1e3, walls="sticky")
    floor, height = 3 / n + 1e-9, half * math.tan(math.radians(angle))
    count = round(half * height * n**2 * 8)
    x = scatter_points(
        count,
        (0.25, floor),
        (0.75, floor + height),
        lambda p: p[:, 1] - floor <= height - height / half * abs(p[:, 0] - 0.5),
    )
    pile.add_points(x, volume=half * height / count)
    pile.step(steps)
    return pile, float(np.median(np.linalg.norm(pile.x - x, axis=1)))


@compiled
def test_angle_of_repose():
    """A pile of 25 degrees stays, one of 45 slides until it has about the friction angle."""
    pile, moved = wedge(25.0, 2000)
    assert moved < 0.005
    assert min(slopes(pile)) > 24
    pile, moved = wedge(45.0, 7000)
    assert moved > 0.01
    assert np.square(pile.v).sum(1).max() < 1e-2
    for angle in slopes(pile):
        assert 25 <= angle <= 35


# --------------------------------------------------------------------------------------------------- the twins


@compiled
@materials
@pytest.mark.parametrize("dim", [2, 3])
@pytest.mark.parametrize("walls", ["slip", "sticky"])
def test_compiled_kernels_equal_numpy(dim, material, walls):
    """Three steps of points that collide, stretch and hit the floor."""
    pair = []
    for backend in ("numba", "numpy"):
        mpm = thrown(dim, material, 150, backend, inward=30.0, gravity=(1.0, -9.8, 2.0)[:dim], walls=walls)
        mpm.x[:, 1] -= 0.2
        mpm.v[:, 1] -= 5.0
        mpm.step(12)
        pair.append(mpm)
    ours, twin = pair
    assert np.abs(twin.x[:, 1] - 3 / 16).min() < 0.02
    for name in ("x", "v", "C", "F", "J"):
        expected = getattr(twin, name)
        np.testing.assert_allclose(getattr(ours, name), expected, atol=1e-10 * np.abs(expected).max(), err_msg=name)
    np.testing.assert_allclose(ours.stress(), twin.stress(), atol=1e-9 * max(1.0, np.abs(twin.stress()).max()))


@compiled
@pytest.mark.parametrize("dim", [2, 3])
@materials
def test_kernels_equal_numpy_where_deformation_is_extreme(dim, material):
    """Reflected, flat and vanishing deformations: all singular values have a floor, none gives NaN."""
    F = np.stack([np.eye(dim), np.eye(dim), 0 * np.eye(dim), np.ones((dim, dim)), np.eye(dim)])
    F[0, 0, 0], F[1, 1, 1], F[4, 0, 1] = -0.5, 0.0, 3.0
    pair = []
    for backend in ("numba", "numpy"):
        mpm = thrown(dim, material, 5, backend, spread=0.0)
        mpm._F[:], mpm._J[:] = F, 0.5
        mpm.step()
        pair.append(mpm)
    for name in ("v", "C"):
        ours, expected = getattr(pair[0], name), getattr(pair[1], name)
        assert np.isfinite(expected).all()
        np.testing.assert_allclose(ours, expected, atol=1e-9 * max(1.0, np.abs(expected).max()), err_msg=name)
    np.testing.assert_allclose(*(np.linalg.svd(m.F)[1] for m in pair), atol=1e-7)


# ---------------------------------------------------------------------------------------------------- properties


def test_walls_stop_what_runs_into_them():
    for walls, sideways in (("slip", True), ("sticky", False)):
        drop = MPM(2, 16, "newtonian", dt=DT, gravity=(0.0, -9.8), E=200.0, walls=walls, backend="numpy")
        drop.add_box((0.3, 0.2), (0.5, 0.3), 100, velocity=(1.0, -1.0))
        drop.step(300)
        assert drop.x[:, 1].min() > 2 / 16
        assert (np.median(drop.v[:, 0]) > 0.5) == sideways


@pytest.mark.parametrize("walls", ["slip", "sticky"])
@pytest.mark.parametrize("backend", ["numpy", pytest.param("numba", marks=compiled)])
def test_opposite_walls_are_mirror_images(backend, walls):
    ends = []
    for sign in (1, -1):
        mpm = thrown(2, "elastic", 60, backend, gravity=(0.0, 0.0), walls=walls)
        mpm.v[:] += 6.0
        mpm.x[:], mpm.v[:] = 0.5 + sign * (mpm.x - 0.5), sign * mpm.v
        mpm.step(120)
        ends.append(sign * (mpm.x - 0.5))
    assert (ends[0].max(0) > 0.25).all()  # within a cell of both upper walls
    np.testing.assert_allclose(ends[0], ends[1], atol=1e-9)


def test_frames_follow_one_another_and_points_fill_their_shape():
    mpm = thrown(2, "elastic", backend="numpy")
    twin = thrown(2, "elastic", backend="numpy")
    frames = np.concatenate((mpm.run(2, 5), mpm.run(1, 5)))
    twin.step(15)
    np.testing.assert_array_equal(frames[-1], twin.x)
    assert frames.shape == (3, 200, 2)
    ball = MPM(3, 16, "elastic", dt=DT, gravity=(0, 0, 0), E=200.0, rho=2.0, backend="numpy")
    ball.add_sphere((0.5, 0.5, 0.5), 0.2, 3000, seed=3)
    assert ball.mass.sum() == pytest.approx(2 * 4 / 3 * math.pi * 0.008)
    assert np.linalg.norm(ball.x - 0.5, axis=1).max() <= 0.2
    np.testing.assert_allclose(ball.x.mean(0), 0.5, atol=2e-3)
    np.testing.assert_allclose(np.cov(ball.x.T), 0.04 / 5 * np.eye(3), atol=3e-4)
    ball.add_box((0.3, 0.3, 0.3), (0.4, 0.4, 0.5), 10, seed=4)
    assert ball.volume[-1] == pytest.approx(2e-4)
    default = MPM(2, 16, "elastic", dt=DT, gravity=(0, 0), E=200.0)
    default.add_points([[0.5, 0.5]])
    assert default.volume[0] == pytest.approx(1 / 32**2)


def test_a_fluid_shows_its_deformation_as_a_change_of_volume():
    mpm = thrown(2, "newtonian", backend="numpy", inward=30.0)
    mpm.step(3)
    assert np.ptp(mpm.J) > 1e-4
    np.testing.assert_allclose(np.linalg.det(mpm.F), mpm.J)


# -------------------------------------------------------------------------------------------------------- misuse


def test_bad_arguments_are_named():
    good = {"dt": DT, "gravity": (0.0, 0.0), "E": 200.0}
    with pytest.raises(ValueError, match=r"material must be one of 'elastic'.*got 'jam'"):
        MPM(2, 32, "jam", **good)
    bound = 0.3 / 32 / math.sqrt(200 * 0.7 / (1.3 * 0.4))
    with pytest.raises(ValueError, match=rf"dt must be at most {bound:.6g} .*CFL"):
        MPM(2, 32, "elastic", **good | {"dt": 1.01 * bound})
    MPM(2, 32, "elastic", **good | {"dt": 0.99 * bound})
    with pytest.raises(ValueError, match=r"rho dx\^2 / \(4 viscosity\)"):
        MPM(2, 32, "newtonian", viscosity=1.0, **good)
    with pytest.raises(ValueError, match="dim must be one of 2, 3"):
        MPM(4, 32, "elastic", **good)
    with pytest.raises(ValueError, match="gravity must be 2 numbers"):
        MPM(2, 32, "elastic", **good | {"gravity": (0.0, 0.0, -1.0)})
    with pytest.raises(ValueError, match="nu must be"):
        MPM(2, 32, "elastic", nu=0.5, **good)
    with pytest.raises(ValueError, match="walls must be"):
        MPM(2, 32, "elastic", walls="soft", **good)
    mpm = MPM(2, 32, "elastic", backend="numpy", **good)
    with pytest.raises(RuntimeError, match="without points"):
        mpm.step()
    with pytest.raises(ValueError, match=r"between the walls.*got 0.05"):
        mpm.add_points([[0.5, 0.05]])
    with pytest.raises(ValueError, match="hi must be above lo"):
        mpm.add_box((0.3, 0.3), (0.5, 0.3), 10)
    with pytest.raises(ValueError, match="x must be finite"):
        mpm.add_points([[0.5, math.nan]])
    with pytest.raises(ValueError, match=r"x must be an array \(n, 2\)"):
        mpm.add_points([[0.5, 0.5, 0.5]])
    with pytest.raises(ValueError, match="velocity must be of shape"):
        mpm.add_points([[0.5, 0.5]], [1.0])
    with pytest.raises(TypeError, match="center must be an array of numbers"):
        mpm.add_sphere("middle", 0.1, 10)
    with pytest.raises(ValueError, match="hundredth"):
        scatter_points(10, (0, 0), (1, 1), lambda x: np.zeros(len(x), bool))


@pytest.mark.parametrize("backend", ["numpy", pytest.param("numba", marks=compiled)])
def test_points_that_leave_are_reported(backend):
    mpm = thrown(2, "elastic", 20, backend)
    mpm.v[:] = 3000.0
    with pytest.raises(RuntimeError, match=r"left the grid after 1 of 5 steps .*cells a step"):
        mpm.step(5)
    mpm = thrown(2, "elastic", 20, backend)
    mpm.v[3] = math.nan
    with pytest.raises(FloatingPointError, match=r"points of 20 are no longer finite"):
        mpm.step(5)
