"""Wings: sections, planform, random draws and the data made of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from steepest.physics import WingParameters, make_wing_dataset, panel_method, sample_wings, wing_surface
from steepest.physics._wings import LIMITS, RANGES, WingData

SMALL = {"n_u": 9, "n_v": 5, "conditions_per_wing": 2}


# ------------------------------------------------------------------------------------------------------ exact


def test_section_is_naca_2412():
    """Against the tabulated ordinates of NACA 2412 (Abbott and von Doenhoff), per cent of the chord."""
    shape = WingParameters(taper=1.0, sweep=0.0, dihedral=0.0, twist=0.0, camber=0.02, camber_pos=0.4)
    section = wing_surface(shape, 2001, 4)[:, 0] * 100
    lower, upper = section[1000::-1], section[1000:]
    table = {5.0: (4.13, -3.01), 10.0: (5.63, -3.75), 30.0: (7.88, -4.12), 50.0: (7.24, -3.34), 80.0: (3.75, -1.50)}
    for x, (above, below) in table.items():
        closed = 100 * 5 * 0.12 * 0.0021 * (x / 100) ** 4  # the table's trailing edge is open
        above, below = above - closed, below + closed
        assert np.interp(x, upper[:, 0], upper[:, 2]) == pytest.approx(above, abs=0.02)
        assert np.interp(x, lower[:, 0], lower[:, 2]) == pytest.approx(below, abs=0.02)


def test_planform():
    shape = WingParameters(half_span=4.0, root_chord=2.0, taper=0.25, sweep=30.0, dihedral=5.0, twist=0.0, camber=0.0)
    P = wing_surface(shape, 33, 9)
    leading, trailing = P[16], P[0]
    y = 4 * np.sin(np.pi / 2 * np.linspace(0, 1, 9))
    np.testing.assert_allclose(leading[:, 0], y * np.tan(np.radians(30)), atol=1e-14)
    np.testing.assert_allclose(trailing[:, 0] - leading[:, 0], 2 * (1 - 0.75 * y / 4), atol=1e-14)
    np.testing.assert_allclose(P[..., 1], np.broadcast_to(y, (33, 9)), atol=1e-14)
    np.testing.assert_allclose(leading[:, 2], y * np.tan(np.radians(5)), atol=1e-14)
    np.testing.assert_array_equal(P[0], P[-1])
    np.testing.assert_allclose(P[:, 0, 0], 1 + np.cos(2 * np.pi * np.linspace(0, 1, 33)), atol=1e-14)


def test_thickness_is_linear_along_the_span():
    shape = WingParameters(taper=1.0, thickness_root=0.16, thickness_tip=0.08, camber=0.0, twist=0.0, dihedral=0.0)
    P = wing_surface(shape, 401, 5)
    thickness = P[..., 2].max(0) - P[..., 2].min(0)
    np.testing.assert_allclose(thickness, 0.16 - 0.08 * P[0, :, 1] / 3, rtol=2e-3)


def test_twist_turns_the_section_about_its_quarter_chord_nose_up():
    shape = {"taper": 1.0, "sweep": 0.0, "dihedral": 0.0, "thickness_tip": 0.12}
    flat, turned = (wing_surface(WingParameters(twist=t, **shape), 33, 5)[:, -1, ::2] for t in (0.0, 10.0))
    angle = np.radians(10)
    rotation = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    np.testing.assert_allclose(turned - [0.25, 0], (flat - [0.25, 0]) @ rotation.T, atol=1e-14)
    assert turned[16, 1] > 0.04  # the nose went up
    more, less = (
        panel_method(wing_surface(WingParameters(twist=t), 17, 6), 3.0, return_info=True)[1]["lift_coefficient"]
        for t in (4.0, -4.0)
    )
    assert more > less


# --------------------------------------------------------------------------------------------------- properties


def test_draws_are_within_their_ranges_and_do_not_depend_on_their_number():
    wings = sample_wings(200, seed=1)
    assert wings[:7] == sample_wings(7, seed=1)
    assert wings[0] != sample_wings(1, seed=2)[0]
    for name, (low, high) in RANGES.items():
        values = np.array([getattr(w, name) for w in wings])
        assert low <= values.min() < low + 0.05 * (high - low)
        assert high - 0.05 * (high - low) < values.max() <= high
    assert {w.root_chord for w in wings} == {1.0}


def test_global_generators_are_left_alone():
    torch.manual_seed(0)
    np.random.seed(0)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    make_wing_dataset(1, 5, **SMALL)
    assert torch.equal(torch.get_rng_state(), before[0])
    np.testing.assert_array_equal(np.random.get_state()[1], before[1])


def test_data_are_what_the_solver_says():
    data = make_wing_dataset(3, 7, mach_range=(0.2, 0.4), alpha_range=(1.0, 2.0), **SMALL)
    assert data.params == tuple(sample_wings(3, 7))
    assert data.points.shape == (6, 8, 4, 3)
    assert {t.dtype for t in (data.points, data.conditions, data.cp)} == {torch.float32}
    assert data.wing.tolist() == [0, 0, 1, 1, 2, 2]
    alpha, mach = data.conditions.unbind(1)
    assert 1 <= alpha.min() < alpha.max() <= 2
    assert len(set(alpha.tolist())) == len(set(mach.tolist())) == 6
    assert 0.2 <= mach.min() < mach.max() <= 0.4
    for i in (1, 4):
        P = wing_surface(data.params[data.wing[i]], 9, 5)
        cp, info = panel_method(P, float(alpha[i]), float(mach[i]), return_info=True)
        np.testing.assert_allclose(data.cp[i], cp, atol=1e-4)
        np.testing.assert_allclose(data.points[i], info["centers"], atol=1e-6)


@pytest.mark.slow  # starts two interpreters
@pytest.mark.usefixtures("forked")
def test_data_do_not_depend_on_processes_or_on_the_number_of_wings():
    one, two = make_wing_dataset(3, 11, **SMALL), make_wing_dataset(3, 11, n_jobs=2, **SMALL)
    more = make_wing_dataset(4, 11, **SMALL)
    for name in ("points", "conditions", "cp", "wing"):
        assert torch.equal(getattr(one, name), getattr(two, name))
        assert torch.equal(getattr(one, name), getattr(more, name)[:6])


def test_what_is_kept_cannot_be_changed_from_outside():
    first = make_wing_dataset(1, 3, **SMALL)
    kept = first.cp.clone()
    first.cp.zero_()
    first.points.zero_()
    again = make_wing_dataset(1, 3, **SMALL)
    assert torch.equal(again.cp, kept)
    assert again.points.abs().max() > 0


def test_samples_are_split_by_wing():
    data = make_wing_dataset(3, 0, **SMALL)
    part = data.of_wings([2, 0])
    assert isinstance(part, WingData)
    assert len(part) == 4
    assert part.wing.tolist() == [0, 0, 2, 2]
    assert torch.equal(part.cp, data.cp[[0, 1, 4, 5]])


# ------------------------------------------------------------------------------------------------------- misuse


@pytest.mark.parametrize("name", sorted(LIMITS))
def test_parameters_are_checked(name):
    with pytest.raises(ValueError, match=f"{name} must be"):
        wing_surface(WingParameters(**{name: -100.0}))
    with pytest.raises(TypeError, match=f"{name} must be"):
        wing_surface(WingParameters(**{name: "much"}))


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: wing_surface({"taper": 1.0}), TypeError, "params"),
        (lambda: wing_surface(WingParameters(), 3), ValueError, "n_u must be an integer >= 4"),
        (lambda: wing_surface(WingParameters(), 9, 2.5), TypeError, "n_v"),
        (lambda: sample_wings(0), ValueError, "n must be"),
        (lambda: sample_wings(1, -1), ValueError, "seed"),
        (lambda: make_wing_dataset(0), ValueError, "n_wings"),
        (lambda: make_wing_dataset(1, conditions_per_wing=0), ValueError, "conditions_per_wing"),
        (lambda: make_wing_dataset(1, n_jobs=0), ValueError, "n_jobs"),
        (lambda: make_wing_dataset(1, n_v=3), ValueError, "n_v"),
        (lambda: make_wing_dataset(1, mach_range=(0.1, 1.0)), ValueError, "mach_range"),
        (lambda: make_wing_dataset(1, alpha_range=(5.0, 1.0)), ValueError, "alpha_range.*low <= high"),
        (lambda: make_wing_dataset(1, alpha_range=5.0), ValueError, "alpha_range.*pair"),
    ],
)
def test_misuse_names_the_argument(call, error, match):
    with pytest.raises(error, match=match):
        call()
