r"""Simulated EEG of imagined movements, with what is known about it set by hand: amplitude, frequency and lag.

Two mu sources lie under C3 and C4. Imagining a movement desynchronizes the contralateral one (amplitude), slows it
(frequency) and changes the delay of the rhythm that both share (lag). A spatial covariance of band-limited trials sees
only the first of these.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.linalg import expm
from scipy.signal import lfilter

from steepest.core.errors import at_least, check, positive, value_error
from steepest.core.random import numpy_generator

__all__ = ["MOTOR_CHANNELS", "Trials", "electrode_positions", "motor_imagery"]

MOTOR_CHANNELS = ("FC3", "FC4", "C3", "C1", "Cz", "C2", "C4", "CP3", "CP4")
"""Over the hand areas and between them."""

_ROWS = {"Fp": 4, "AF": 3, "F": 2, "FC": 1, "FT": 1, "C": 0, "T": 0, "CP": -1, "TP": -1, "P": -2, "PO": -3, "O": -4}
STEP = np.pi / 10  # a tenth of the arcs nasion to inion and ear to ear


@dataclass(frozen=True)
class Trials:
    """EEG trials.

    Attributes
    ----------
    X : ndarray (n, m, T)
        Volts.
    y : ndarray (n,)
        0: left hand, 1: right hand.
    session : ndarray (n,)
    sfreq : float
        Hz.
    channels : tuple of str
        Names of the 10-10 system.
    """

    X: np.ndarray
    y: np.ndarray
    session: np.ndarray
    sfreq: float
    channels: tuple[str, ...]


def motor_imagery(
    n_trials: int = 100,
    n_sessions: int = 1,
    *,
    channels: Sequence[str] = MOTOR_CHANNELS,
    sfreq: float = 160.0,
    seconds: float = 4.0,
    desynchronization: float = 0.35,
    slowing: tuple[float, float] = (0.5, 1.0),
    lag_change: tuple[float, float] = (0.02, 0.04),
    jitter: float = 0.6,
    drift: float = 0.1,
    random_state: int | np.random.Generator | None = None,
) -> Trials:
    """Simulate one subject who imagines moving the left or the right hand.

    Parameters
    ----------
    n_trials : int
        In each session, half of them of each class.
    n_sessions : int
    channels : sequence of str
        Names of the 10-10 system.
    sfreq : float
        Hz.
    seconds : float
        Length of a trial.
    desynchronization : float
        Relative loss of amplitude of the contralateral source.
    slowing : (low, high)
        Hz by which the contralateral source slows; drawn for the subject.
    lag_change : (low, high)
        Seconds by which the right source follows the left one in the second class only; drawn for the subject.
    jitter : float
        Standard deviation of the logarithm of every source's amplitude, from trial to trial.
    drift : float
        Scale of the random mixing near the identity that a session multiplies the channels by.
    random_state : int, numpy.random.Generator or None

    Returns
    -------
    Trials

    Examples
    --------
    >>> trials = motor_imagery(10, random_state=0)
    >>> trials.X.shape, trials.y.sum()
    ((10, 9, 640), np.int64(5))
    """
    check("n_trials", n_trials, at_least(2, integer=True))
    check("n_sessions", n_sessions, at_least(1, integer=True))
    check("sfreq", sfreq, positive())
    check("seconds", seconds, positive())
    rng = numpy_generator(random_state, name="random_state")
    names, n_samples = tuple(channels), round(seconds * sfreq)
    electrodes = electrode_positions(names)
    hands = 0.75 * electrode_positions(("C3", "C4"))
    mu = _leadfield(electrodes, hands, hands)  # (m, 2), radial dipoles under C3 and C4
    places = rng.standard_normal((30, 3))
    places[:, 2] = np.abs(places[:, 2])
    places *= (rng.uniform(0.5, 0.8, 30) / np.linalg.norm(places, axis=1))[:, None]
    background = _leadfield(electrodes, places, rng.standard_normal((30, 3)))
    frequency, slow, late = rng.uniform(9, 12), rng.uniform(*slowing), rng.uniform(*lag_change)
    X, y = np.empty((n_sessions * n_trials, len(names), n_samples)), np.empty(n_sessions * n_trials, dtype=int)
    for session in range(n_sessions):
        mixing = np.eye(len(names))
        if session:
            mixing = expm(drift * rng.standard_normal(mixing.shape) / np.sqrt(len(names)))
        for trial, label in enumerate(rng.permutation(np.arange(n_trials) % 2)):
            sources = np.empty((2, n_samples))
            shift = round(late * sfreq) if label else 0
            common = rng.standard_normal(n_samples + 400)
            for side in range(2):  # left, right hemisphere
                contralateral = side != label
                drive = 0.8 * np.roll(common, shift * side) + 0.6 * rng.standard_normal(n_samples + 400)
                f = frequency + 0.2 * rng.standard_normal() - slow * contralateral
                amplitude = (1 - desynchronization * contralateral) * np.exp(jitter * rng.standard_normal())
                rhythm = _resonator(drive, f, sfreq) + 0.3 * _resonator(drive, 2 * f, sfreq)
                sources[side] = amplitude * rhythm[-n_samples:]
            row = session * n_trials + trial
            noise = background @ _power_law(rng, len(places), n_samples, 1.2)
            line = np.sin(2 * np.pi * (50 * np.arange(n_samples) / sfreq + rng.uniform()))
            clean = mu @ sources + noise + 0.05 * rng.standard_normal((len(names), n_samples)) + 0.1 * line
            X[row], y[row] = 1e-5 * mixing @ clean, label
    return Trials(X, y, np.repeat(np.arange(n_sessions), n_trials), float(sfreq), names)


def electrode_positions(channels: Sequence[str]) -> np.ndarray:
    """Positions of electrodes of the 10-10 system on the unit sphere, by its rule of tenths.

    Parameters
    ----------
    channels : sequence of str (m,)

    Returns
    -------
    ndarray (m, 3)
        x to the right ear, y to the nose, z up.

    Raises
    ------
    ValueError
        A name is not of the 10-10 system.

    Examples
    --------
    >>> electrode_positions(["Cz", "T8", "Fpz"]).round(2).tolist()
    [[0.0, 0.0, 1.0], [0.95, 0.0, 0.31], [0.0, 0.95, 0.31]]
    """
    return np.array([_position(name) for name in channels])


def _position(name: str) -> np.ndarray:
    match = re.fullmatch(r"(Fp|AF|FT|FC|F|CP|C|TP|T|PO|P|O|I)(z|[1-9]|10)", name)
    if match is None or (match[1] == "I" and match[2] != "z"):
        raise value_error("channels", "names of the 10-10 system such as 'C3' or 'FCz'", name)
    row = -5 if match[1] == "I" else _ROWS[match[1]]
    middle = np.array([0.0, np.sin(row * STEP), np.cos(row * STEP)])
    if match[2] == "z":
        return middle
    number = int(match[2])
    side = -1 if number % 2 else 1
    steps = (number + 1) // 2  # 1, 3, 5, 7 and 2, 4, 6, 8: a quarter of the way to the ring each
    azimuth, height = (5 - abs(row)) * STEP, 4 * STEP
    if steps == 5:
        height = 5 * STEP
    ring = np.array([side * np.sin(azimuth), np.sign(row) * np.cos(azimuth), 1 / np.tan(height)]) * np.sin(height)
    share = 1.0 if match[1] in ("Fp", "O") or steps == 5 else steps / 4
    angle = np.arccos(np.clip(middle @ ring, -1, 1))
    return np.asarray((np.sin((1 - share) * angle) * middle + np.sin(share * angle) * ring) / np.sin(angle))


def _leadfield(electrodes: np.ndarray, places: np.ndarray, moments: np.ndarray) -> np.ndarray:
    """Potentials (m, s) of current dipoles inside the unit sphere, average reference, largest value 1.

    The potential in a homogeneous conductor, with sources deep enough to be smeared as a skull would.
    """
    away = electrodes[:, None] - places
    field = np.einsum("msk,sk->ms", away, moments) / np.linalg.norm(away, axis=2) ** 3
    field = field - field.mean(axis=0)
    return np.asarray(field / np.abs(field).max(axis=0))


def _resonator(noise: np.ndarray, frequency: float, sfreq: float, radius: float = 0.97) -> np.ndarray:
    """Autoregression of order 2 with poles of `radius` at `frequency`, unit variance."""
    a1, a2 = 2 * radius * np.cos(2 * np.pi * frequency / sfreq), -(radius**2)
    variance = (1 - a2) / ((1 + a2) * ((1 - a2) ** 2 - a1**2))
    return np.asarray(lfilter([1.0], [1.0, -a1, -a2], noise)) / np.sqrt(variance)


def _power_law(rng: np.random.Generator, n: int, n_samples: int, exponent: float) -> np.ndarray:
    """Noise (n, T) with power 1 / f^exponent, unit variance."""
    spectrum = np.fft.rfft(rng.standard_normal((n, n_samples)))
    spectrum[:, 1:] *= np.arange(1, spectrum.shape[1]) ** (-exponent / 2)
    spectrum[:, 0] = 0
    noise = np.fft.irfft(spectrum, n_samples)
    return np.asarray(noise / noise.std(axis=1, keepdims=True))
