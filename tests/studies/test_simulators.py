"""The EEG simulator: geometry of the 10-10 system, and what differs between its classes."""

import numpy as np
import pytest

from steepest.studies import simulators
from steepest.studies.simulators import electrode_positions, motor_imagery


def at(*names):
    return electrode_positions(names)


def test_electrodes_follow_the_rule_of_tenths():
    names = ["Fpz", "AFz", "Fz", "FCz", "Cz", "CPz", "Pz", "POz", "Oz"]
    angles = np.arccos(np.sum(at(*names)[:-1] * at(*names)[1:], axis=1))
    np.testing.assert_allclose(angles, np.pi / 10)
    angles = np.arccos(np.sum(at("T7", "C5", "C3", "C1", "Cz", "C2") * at("C5", "C3", "C1", "Cz", "C2", "C4"), axis=1))
    np.testing.assert_allclose(angles, np.pi / 10)
    ring = ["Fpz", "Fp2", "AF8", "F8", "FT8", "T8", "TP8", "P8", "PO8", "O2", "Oz"]
    np.testing.assert_allclose(at(*ring)[:, 2], np.cos(0.4 * np.pi))
    np.testing.assert_allclose(
        np.linalg.norm(np.diff(at(*ring), axis=0), axis=1), 2 * 0.951057 * np.sin(np.pi / 20), 1e-5
    )


def test_electrodes_are_symmetric_and_distinct():
    left, right = at("FC3", "C5", "AF7", "PO3", "Fp1", "T9"), at("FC4", "C6", "AF8", "PO4", "Fp2", "T10")
    np.testing.assert_allclose(left * [-1, 1, 1], right, atol=1e-12)
    many = at("Fpz", "Fp1", "AF3", "F3", "F5", "FC1", "C3", "CP5", "P3", "PO7", "O1", "Iz", "T7", "TP7", "T9")
    np.testing.assert_allclose(np.linalg.norm(many, axis=1), 1)
    assert np.linalg.norm(many[:, None] - many, axis=2)[~np.eye(len(many), dtype=bool)].min() > 0.1
    assert at("AF3")[0, 0] < 0 < at("AF3")[0, 1]


def spectrum(X):
    return np.abs(np.fft.rfft(X - X.mean(axis=-1, keepdims=True))) ** 2


def test_resonator_has_its_frequency_and_unit_variance():
    noise = np.random.default_rng(0).standard_normal(200_000)
    x = simulators._resonator(noise, 11.0, 160.0)
    assert x.std() == pytest.approx(1, rel=0.05)
    power = spectrum(x.reshape(-1, 1600)).mean(axis=0)
    assert power.argmax() / 10 == pytest.approx(11, abs=0.5)  # the resonance is 1.5 Hz wide


def test_background_falls_as_one_over_f():
    x = simulators._power_law(np.random.default_rng(0), 400, 2000, 1.2)
    power = spectrum(x).mean(axis=0)
    slope = np.polyfit(np.log(np.arange(5, 900)), np.log(power[5:900]), 1)[0]
    assert slope == pytest.approx(-1.2, abs=0.03)


def test_the_contralateral_side_loses_power():
    trials = motor_imagery(200, channels=("C3", "C4", "Cz"), jitter=0.1, random_state=1)
    band = spectrum(trials.X)[:, :, 32:52].sum(axis=2)  # 8 to 13 Hz of 4 s
    ratio = np.log(band[:, 0] / band[:, 1])  # C3 against C4
    assert ratio[trials.y == 0].mean() > ratio[trials.y == 1].mean() + 0.25


def test_without_differences_there_are_none():
    how = {"desynchronization": 0.0, "slowing": (0.0, 0.0), "lag_change": (0.0, 0.0)}
    trials = motor_imagery(300, channels=("C3", "C4"), random_state=0, **how)
    power = np.log(trials.X.var(axis=2))
    difference = power[trials.y == 0].mean(axis=0) - power[trials.y == 1].mean(axis=0)
    assert np.abs(difference).max() < 4 * power.std() * np.sqrt(2 / 150)


def test_shape_units_sessions_and_seeds():
    a, b = (motor_imagery(10, 2, seconds=1.0, random_state=3) for _ in range(2))
    assert a.X.shape == (20, 9, 160)
    np.testing.assert_array_equal(a.X, b.X)
    np.testing.assert_array_equal(a.session, np.repeat([0, 1], 10))
    assert a.y.sum() == 10
    assert 1e-6 < a.X.std() < 1e-4
    assert not np.array_equal(a.X, motor_imagery(10, 2, seconds=1.0, random_state=4).X)


def test_misuse():
    with pytest.raises(ValueError, match=r"names of the 10-10 system .* got 'X1'"):
        electrode_positions(["Cz", "X1"])
    with pytest.raises(ValueError, match="10-10"):
        electrode_positions(["I1"])
    with pytest.raises(ValueError, match="n_trials must be"):
        motor_imagery(1)
