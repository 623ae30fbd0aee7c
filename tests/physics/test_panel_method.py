"""The panel method against closed forms: solid angles, quadrature, spheres, ellipsoids, lifting lines."""

from __future__ import annotations

import time
import warnings

import numpy as np
import pytest
from scipy.integrate import dblquad, quad

from steepest.physics import WingParameters, panel_method, wing_surface
from steepest.physics import _panel_method as code
from steepest.physics._panel_method import FlowWarning

PLAIN = {"taper": 1.0, "sweep": 0.0, "dihedral": 0.0, "twist": 0.0, "camber": 0.0}


def ellipsoid(n_u, n_v, axes=(1.0, 1.0, 1.0), roll=1):
    """Poles on the x (roll=1), y (2) or z (0) axis; outward r_u × r_v."""
    t, p = np.meshgrid(np.linspace(0, np.pi, n_u + 1), np.linspace(0, 2 * np.pi, n_v + 1), indexing="ij")
    unit = np.stack((np.sin(t) * np.cos(p), np.sin(t) * np.sin(p), np.cos(t)), -1)
    unit[0, :, :2] = unit[-1, :, :2] = 0
    unit[:, -1] = unit[:, 0]
    return np.roll(unit, roll, axis=-1) * axes


def ellipsoid_cp(axes, points, alpha=0.0):
    """V = (W - (W·n) n), W_i = U_i 2/(2 - α_i), α_i = abc ∫_0^∞ dλ / ((a_i² + λ) sqrt(Π(a_j² + λ)))."""
    a = np.asarray(axes, dtype=float)

    def shape(i):
        return quad(lambda s: a.prod() / ((a[i] ** 2 + s) * np.sqrt((a**2 + s).prod())), 0, np.inf)[0]

    stream = np.array([np.cos(np.radians(alpha)), 0, np.sin(np.radians(alpha))])
    W = stream * [2 / (2 - shape(i)) for i in range(3)]
    normal = points / a**2
    normal /= np.linalg.norm(normal, axis=-1, keepdims=True)
    return 1 - ((W - (normal @ W)[..., None] * normal) ** 2).sum(-1)


def plain_wing(aspect, thickness, n_u=33, n_v=11):
    shape = WingParameters(half_span=aspect / 2, thickness_root=thickness, thickness_tip=thickness, **PLAIN)
    return wing_surface(shape, n_u, n_v)


# ------------------------------------------------------------------------------------------------------ exact


def test_solid_angles_of_a_closed_body_add_up():
    panels = code._Panels(ellipsoid(7, 9, (1.0, 0.8, 0.5)))
    angle, _ = panels.influence(np.array([[0.1, 0.2, -0.1], [0.0, 0.0, 0.0], [1.1, 0.0, 0.0], [0.0, 5.0, 1.0]]))
    np.testing.assert_allclose(angle.sum(1) / (4 * np.pi), [1, 1, 0, 0], atol=1e-12)


def test_on_the_surface_the_solid_angle_is_two_pi():
    grid = ellipsoid(6, 8)  # its panels are flat
    matrix, _ = code._assemble(grid, symmetric=False, kutta=False, wake_length=1.0)
    np.testing.assert_allclose(matrix.sum(1), 1, atol=1e-12)
    np.testing.assert_array_equal(np.diag(matrix), 0.5)


@pytest.mark.parametrize("bend", [0.0, 0.3])
@pytest.mark.parametrize("point", [(0.4, 0.3, 0.5), (0.4, 0.3, -0.02), (2.0, -1.0, 0.1), (-0.1, 0.5, 0.0)])
def test_influence_of_a_panel_by_quadrature(bend, point):
    """The panel is two triangles, so quadrature runs over either of them."""
    grid = np.array([[[0, 0, 0], [0.1, 1.1, 0]], [[1.2, 0, 0], [0.9, 0.8, bend]]], dtype=float)
    a, b, c, d = grid[0, 0], grid[1, 0], grid[1, 1], grid[0, 1]
    p, expected = np.array(point), np.zeros(2)
    for corners in ((a, b, c), (a, c, d)):
        e, f = corners[1] - corners[0], corners[2] - corners[0]
        cross = np.cross(e, f)

        def integrands(s, t, e=e, f=f, cross=cross):
            away = a + s * e + t * f - p
            distance = np.linalg.norm(away)
            return cross @ away / distance**3, np.linalg.norm(cross) / distance

        for k in range(2):
            expected[k] += dblquad(lambda s, t, k=k: integrands(s, t)[k], 0, 1, 0, lambda t: 1 - t, epsabs=1e-7)[0]
    angle, potential = code._Panels(grid).influence(p[None])
    np.testing.assert_allclose([angle[0, 0], potential[0, 0]], expected, atol=2e-6)


def test_source_of_a_panel_on_itself():
    """At the center of a square of side 1: ∫dS/r = 4 ln(1 + √2)."""
    grid = np.array([[[0, 0, 0], [0, 1, 0]], [[1, 0, 0], [1, 1, 0]]], dtype=float)
    angle, potential = code._Panels(grid).influence(np.array([[0.5, 0.5, 0.0]]), np.array([0]))
    np.testing.assert_allclose(potential, 4 * np.log(1 + np.sqrt(2)), rtol=1e-14)
    assert angle[0, 0] == 2 * np.pi


@pytest.mark.parametrize("roll", [0, 1, 2])
def test_sphere(roll):
    P = ellipsoid(24, 32, roll=roll)
    cp, info = panel_method(P, 0.0, symmetric=False, kutta=False, return_info=True)
    cosine = info["centers"][..., 0] / np.linalg.norm(info["centers"], axis=-1)
    error = np.abs(cp - (1 - 2.25 * (1 - cosine**2)))
    assert error.mean() < 0.01
    assert np.quantile(error, 0.99) < 0.05  # slivers about the poles


@pytest.mark.parametrize("alpha", [0.0, 30.0])
def test_ellipsoids_converge_with_order_beyond_one_and_a_half(alpha):
    axes, errors = (1.0, 0.7, 0.5), []
    for n in (10, 14, 20, 28):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FlowWarning)
            cp, info = panel_method(
                ellipsoid(n, 2 * n, axes, roll=2), alpha, symmetric=False, kutta=False, return_info=True
            )
        errors.append(np.abs(cp - ellipsoid_cp(axes, info["centers"], alpha)).mean())
    slope = -np.polyfit(np.log((10, 14, 20, 28)), np.log(errors), 1)[0]
    assert slope >= 1.5, errors
    assert errors[-1] < 0.02, errors


def test_seams_of_rows_and_columns_alike():
    """A body round the y axis whose rows close: the same as with columns that close."""
    P = ellipsoid(12, 16, (1.0, 0.8, 0.6), roll=2)
    columns = panel_method(P, 5.0, symmetric=False, kutta=False)
    rows = panel_method(P.transpose(1, 0, 2)[::-1], 5.0, symmetric=False, kutta=False)
    np.testing.assert_allclose(rows[::-1].T, columns, atol=1e-10)


@pytest.mark.parametrize("aspect", [8.0, 40.0])
def test_lift_follows_the_lifting_line_and_thickness_raises_it(aspect):
    lift = [
        panel_method(plain_wing(aspect, t), 5.0, return_info=True)[1]["lift_coefficient"] for t in (0.03, 0.06, 0.12)
    ]
    slope = np.divide(lift, np.radians(5))
    line = 2 * np.pi * aspect / (aspect + 2)
    assert np.abs(slope / line - 1).max() < 0.12
    assert lift[0] < lift[1] < lift[2]


def test_lift_does_not_vanish():
    """With the wrong sign of the wake it does, and nothing else looks wrong."""
    P = plain_wing(20.0, 0.12, 25, 7)
    with_wake = panel_method(P, 5.0, return_info=True)[1]["lift_coefficient"]
    without = panel_method(P, 5.0, kutta=False, return_info=True)[1]["lift_coefficient"]
    assert with_wake > 0.4
    assert abs(without) < 0.1


def test_pressures_and_circulation_give_one_lift():
    P = plain_wing(12.0, 0.10, 65, 13)
    info = panel_method(P, 4.0, 0.3, return_info=True)[1]
    jukowski = 2 * (info["circulation"] * np.diff(P[0, :, 1])).sum() / 6.0
    assert info["lift_coefficient"] == pytest.approx(jukowski, rel=0.05)


def test_mirror_image_equals_the_whole_wing():
    half = wing_surface(WingParameters(), 17, 6)
    whole = np.concatenate((half[:, :0:-1] * [1, -1, 1], half), axis=1)
    np.testing.assert_allclose(
        panel_method(half, [0.0, 6.0], 0.4), panel_method(whole, [0.0, 6.0], 0.4, symmetric=False)[:, :, 5:], atol=1e-10
    )


def test_goethert_rule():
    P = wing_surface(WingParameters(), 17, 6)
    base = panel_method(P, 4.0)
    np.testing.assert_allclose(panel_method(P, 4.0, 1e-5), base, atol=1e-8)
    beta = np.sqrt(1 - 0.5**2)
    by_hand = panel_method(P * [1, beta, beta], 4.0 * beta) / beta**2
    np.testing.assert_allclose(panel_method(P, 4.0, 0.5), by_hand, atol=1e-12)


# --------------------------------------------------------------------------------------------------- properties


def test_angles_share_one_factorization():
    P = wing_surface(WingParameters(), 17, 6)
    many, info = panel_method(P, [0.0, 3.0, 9.0], 0.2, return_info=True)
    assert many.shape == (3, 16, 5)
    assert info["circulation"].shape == (3, 5)
    for k, alpha in enumerate((0.0, 3.0, 9.0)):
        one, single = panel_method(P, alpha, 0.2, return_info=True)
        np.testing.assert_allclose(one, many[k], atol=1e-13)
        assert single["lift_coefficient"] == pytest.approx(info["lift_coefficient"][k])


def test_shape_alone_counts():
    P = wing_surface(WingParameters(), 17, 6)
    np.testing.assert_allclose(panel_method(3 * P + [5, 0, 2], 4.0), panel_method(P, 4.0), atol=1e-9)


def test_a_symmetric_section_turned_over_mirrors_its_pressures():
    P = plain_wing(8.0, 0.12, 17, 6)
    np.testing.assert_allclose(panel_method(P, -5.0), panel_method(P, 5.0)[::-1], atol=1e-10)


def test_blocks_do_not_change_the_answer(monkeypatch):
    P = wing_surface(WingParameters(), 17, 6)
    whole = panel_method(P, 4.0)
    monkeypatch.setattr(code, "BLOCK", 700)
    np.testing.assert_allclose(panel_method(P, 4.0), whole, atol=1e-12)


def test_one_wing_takes_half_a_second_at_most():
    P = wing_surface(WingParameters(), 33, 9)
    seconds = []
    for _ in range(3):
        start = time.process_time()
        panel_method(P, [0.0, 3.0, 6.0, 9.0], 0.3)
        seconds.append(time.process_time() - start)
    assert min(seconds) <= 0.5


# ------------------------------------------------------------------------------------------------------- misuse

WING = wing_surface(WingParameters(), 9, 5)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "match"),
    [
        ((WING, 0.0, 1.0), {}, ValueError, r"mach must be a number in \[0, 1\)"),
        ((WING, 0.0, -0.1), {}, ValueError, "mach"),
        ((WING, 0.0, np.nan), {}, ValueError, "mach"),
        ((WING[..., :2], 0.0, 1.5), {}, ValueError, "mach"),  # before anything else is looked at
        ((WING[..., :2], 0.0), {}, ValueError, r"P must be of shape \(n_u, n_v, 3\)"),
        ((WING[:3], 0.0), {}, ValueError, "P must be of shape"),
        ((WING * np.nan, 0.0), {}, ValueError, "P must be finite"),
        (("wing", 0.0), {}, TypeError, "P must be an array"),
        ((WING * 0, 0.0), {}, ValueError, "panels with an area.*32 panels"),
        ((WING * [1, 1, 0], 0.0), {}, ValueError, "volume"),
        ((WING[::-1], 0.0), {}, ValueError, "out of it.*swap"),
        ((ellipsoid(8, 8), 0.0), {"symmetric": False}, ValueError, "trailing edge.*kutta=False"),
        ((WING, []), {}, ValueError, "alpha"),
        ((WING, [[1.0]]), {}, ValueError, "alpha"),
        ((WING, np.inf), {}, ValueError, "alpha"),
        ((WING, "3 degrees"), {}, TypeError, "alpha"),
        ((WING, 0.0), {"kutta": 1}, TypeError, "kutta"),
        ((WING, 0.0), {"wake_length": 0.0}, ValueError, "wake_length"),
    ],
)
def test_misuse_names_the_argument(arguments, options, error, match):
    with pytest.raises(error, match=match):
        panel_method(*arguments, **options)


def test_coinciding_panels_are_singular():
    t, p = np.meshgrid(np.linspace(0, np.pi, 7), np.linspace(0, 4 * np.pi, 13), indexing="ij")
    twice = np.stack((np.sin(t) * np.cos(p), np.sin(t) * np.sin(p), np.cos(t)), -1)
    with pytest.raises(RuntimeError, match=r"singular.*condition"):
        panel_method(twice, 0.0, symmetric=False, kutta=False)


def test_beyond_its_validity_it_warns():
    with pytest.warns(FlowWarning, match="shocks"):
        panel_method(WING, 0.0, 0.7)
    with pytest.warns(FlowWarning, match="alpha=-25"):
        panel_method(WING, [0.0, -25.0])
