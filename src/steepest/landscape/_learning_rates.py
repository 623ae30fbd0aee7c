r"""Learning rates from extreme curvature, and how both depend on the batch size: formulas of numbers alone.

    b = B / (1 - B/N),   s^2 = noise / b                    H_B = H + E_B, entries of E_B of variance noise / (P b)
    lambda_B = lambda + s^2 / lambda  where |lambda| > s,   else sign(lambda) 2 s              (the bulk's edge)
    SGD: lr ~ 1 / lambda_B,   adaptive methods: lr ~ 1 / sqrt(lambda_B)
    heavy ball on [lambda_n, lambda_1]: lr = (2 / (sqrt(lambda_1) + sqrt(lambda_n)))^2,
        momentum = ((sqrt(lambda_1) - sqrt(lambda_n)) / (sqrt(lambda_1) + sqrt(lambda_n)))^2

Paper: granziol2022learning; the momentum is Polyak's, polyak1964some. See `batch_spectrum` for notation and departures.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from steepest.core.errors import Limit, boolean, check, interval, kind_error, nonnegative, one_of, positive, value_error
from steepest.curvature import SpectralDensity

__all__ = [
    "LearningRate",
    "LearningRateAdvice",
    "batch_extreme_eigenvalue",
    "effective_batch",
    "learning_rate_from_spectrum",
    "population_extreme",
    "saturation_batch",
    "scale_learning_rate",
]

OPTIMIZERS = one_of("sgd", "adam")
FLOOR = interval(0, 1, low_open=True, high_open=True)


@dataclass(frozen=True)
class LearningRate:
    """Learning rate and momentum for curvature between `lambda_min` and `lambda_max`.

    Attributes
    ----------
    lr, momentum : float
    lambda_max, lambda_min : float
        Largest eigenvalue, and the smallest that counts.
    condition : float
        Their ratio.
    """

    lr: float
    momentum: float
    lambda_max: float
    lambda_min: float
    condition: float


@dataclass(frozen=True)
class LearningRateAdvice:
    """What to do when the batch size changes.

    Attributes
    ----------
    lr : float
        For the new batch size.
    rule : str
        The formula that gave it.
    saturation_batch : float
        Batch size at which the noise term equals the full-data extreme: more batch gains less than a factor of 2.
    text : str
        The advice in a sentence.
    """

    lr: float
    rule: str
    saturation_batch: float
    text: str

    def __str__(self) -> str:
        return self.text


def effective_batch(batch_size: float, num_data: int | None = None) -> float:
    """Batch size as independent samples would count it, ``b = B / (1 - B/N)``, for draws without replacement.

    The variance of a batch mean is that of one sample (with divisor N - 1) divided by b.

    Parameters
    ----------
    batch_size : float
        B >= 1.
    num_data : int, optional
        N; unknown: b = B.

    Returns
    -------
    float
        Infinite at B = N: the batch is the data.

    Raises
    ------
    ValueError
        A batch size below 1 or above N.

    Examples
    --------
    >>> effective_batch(64), effective_batch(64, 128)
    (64.0, 128.0)
    """
    check("num_data", num_data, Limit("None or an integer >= 1", _integer_or_none, lambda n: n is None or n >= 1))
    check("batch_size", batch_size, interval(1) if num_data is None else interval(1, num_data))
    B = float(batch_size)
    if num_data is None:
        return B
    return math.inf if num_data == B else B / (1 - B / num_data)


def batch_extreme_eigenvalue(lam: float, noise: float, batch_size: float, *, num_data: int | None = None) -> float:
    """Extreme eigenvalue of a batch's curvature for a full-data extreme `lam`, in the spiked model.

    Parameters
    ----------
    lam : float
        Largest or smallest eigenvalue over the full data.
    noise : float
        P sigma^2, with sigma^2 / b the variance of an entry.
    batch_size : float
        B >= 1.
    num_data : int, optional
        N, for draws without replacement.

    Returns
    -------
    float
        ``lam + noise / (b lam)`` while ``|lam| > sqrt(noise / b)``, else the edge of the bulk ``2 sqrt(noise / b)`` on
        the side of `lam` (the upper side for 0).

    Raises
    ------
    ValueError
        `lam` is not finite, ``noise < 0``, a batch size out of range.

    Examples
    --------
    >>> [batch_extreme_eigenvalue(1.0, 64.0, B) for B in (16, 64, 256)]       # hidden, at the threshold, visible
    [4.0, 2.0, 1.25]
    """
    check("lam", lam, FINITE)
    check("noise", noise, nonnegative())
    lam, s = float(lam), math.sqrt(float(noise) / effective_batch(batch_size, num_data))
    return lam + s * (s / lam) if abs(lam) > s else math.copysign(2 * s, lam if lam else 1.0)


def population_extreme(lam: float, excess: float) -> float:
    """Solve ``lam = x + excess / x`` for x, the extreme without noise of variance `excess` = s^2.

    Where the noise hides x (``|lam| < 2 s``) the bound ``lam / 2`` is returned, which is s at the threshold.
    """
    return (lam + math.copysign(math.sqrt(max(lam * lam - 4 * excess, 0.0)), lam)) / 2


def saturation_batch(lam: float, noise: float, num_data: int | None = None) -> float:
    """Batch size B at which ``noise / b = lam^2``: the noise term of lambda_B equals `lam`; infinite at 0."""
    if lam == 0:
        return math.inf
    b = noise / (lam * lam)
    return b if num_data is None else b / (1 + b / num_data)


def scale_learning_rate(
    lr: float,
    batch_size: float,
    new_batch_size: float,
    *,
    optimizer: str = "sgd",
    spectrum: tuple[float, float] | None = None,
    num_data: int | None = None,
    max_lr: float | None = None,
) -> float:
    """Carry a learning rate from one batch size to another.

    Parameters
    ----------
    lr : float
        The rate that was tuned at `batch_size`.
    batch_size, new_batch_size : float
        B and B', both >= 1 (and at most `num_data`).
    optimizer : "sgd" or "adam"
        "adam" stands for all adaptive methods.
    spectrum : (lambda, noise), optional
        Full-data extreme and noise, such as ``lambda_max_`` and ``noise_`` of a `BatchSpectrum`. Without it the noise
        is taken to dominate at both batch sizes.
    num_data : int, optional
        N, for the batches' extremes.
    max_lr : float, optional
        Upper limit of the result.

    Returns
    -------
    float
        Without `spectrum` ``lr B'/B`` for SGD and ``lr sqrt(B'/B)`` for adaptive methods; with it
        ``lr lambda_B / lambda_B'`` and ``lr sqrt(lambda_B / lambda_B')``.

    Raises
    ------
    ValueError
        ``lr <= 0`` or not finite, a batch size out of range, ``noise < 0``, an unknown optimizer, or a spectrum without
        curvature.

    Examples
    --------
    >>> scale_learning_rate(0.1, 32, 128), scale_learning_rate(0.1, 32, 128, optimizer="adam")
    (0.4, 0.2)
    >>> round(scale_learning_rate(0.1, 32, 128, spectrum=(1.0, 64.0)), 4)     # the noise no longer dominates at 128
    0.1886
    """
    check("lr", lr, positive())
    check("optimizer", optimizer, OPTIMIZERS)
    for name, size in (("batch_size", batch_size), ("new_batch_size", new_batch_size)):
        check(name, size, interval(1) if num_data is None else interval(1, num_data))
    if spectrum is None:
        ratio = float(new_batch_size) / float(batch_size)
    else:
        lam, noise = _pair(spectrum)
        before, after = (
            batch_extreme_eigenvalue(lam, noise, B, num_data=num_data) for B in (batch_size, new_batch_size)
        )
        if before <= 0 or after <= 0:
            raise value_error("spectrum", "a positive extreme (lambda, noise)", spectrum, NO_CURVATURE)
        ratio = before / after
    scaled = float(lr) * (ratio if optimizer == "sgd" else math.sqrt(ratio))
    if max_lr is None:
        return scaled
    check("max_lr", max_lr, positive())
    return min(scaled, float(max_lr))


def learning_rate_from_spectrum(
    spectrum: Any, *, momentum: bool = True, relative_floor: float = 1e-4, safety: float = 1.0
) -> LearningRate:
    """Learning rate and momentum that are optimal for a quadratic with a given spectrum.

    Parameters
    ----------
    spectrum : SpectralDensity, array of eigenvalues, or fitted BatchSpectrum
        Of which the largest value and the smallest above the floor are taken.
    momentum : bool
        Heavy ball as in `torch.optim.SGD` (dampening 0); without: ``2 / (lambda_1 + lambda_n)`` and momentum 0.
    relative_floor : float
        In (0, 1): eigenvalues at or below this share of the largest, negative ones among them, do not count (ours).
    safety : float
        Factor on the learning rate; 1 is the optimum of the quadratic, `BatchSpectrum.attach` takes 0.1.

    Returns
    -------
    LearningRate

    Raises
    ------
    ValueError
        A spectrum that is empty, not finite, or without a positive value.
    sklearn.exceptions.NotFittedError
        A `BatchSpectrum` before `fit`.

    Notes
    -----
    The loss times c divides the rate by c and leaves the momentum as it is.

    Examples
    --------
    >>> found = learning_rate_from_spectrum([1.0, 4.0, 9.0])
    >>> found.lr, found.momentum, found.condition                              # (2 / 4)^2, (2 / 4)^2
    (0.25, 0.25, 9.0)
    """
    check("momentum", momentum, boolean())
    check("relative_floor", relative_floor, FLOOR)
    check("safety", safety, positive())
    values = _eigenvalues(spectrum)
    if values.size == 0 or not np.isfinite(values).all():
        raise value_error("spectrum", "finite eigenvalues, at least one", spectrum)
    lambda_1 = float(values.max())
    if lambda_1 <= 0:
        raise value_error("spectrum", "with a positive eigenvalue", f"a largest value of {lambda_1:g}", NO_CURVATURE)
    lambda_n = float(values[values > relative_floor * lambda_1].min())
    return optimum(lambda_1, lambda_n, momentum=momentum, safety=safety)


def optimum(lambda_1: float, lambda_n: float, *, momentum: bool, safety: float) -> LearningRate:
    """Best rate and momentum on a quadratic with eigenvalues in [lambda_n, lambda_1], the rate times `safety`."""
    high, low = math.sqrt(lambda_1), math.sqrt(lambda_n)
    if momentum:
        lr, beta = (2 / (high + low)) ** 2, ((high - low) / (high + low)) ** 2
    else:
        lr, beta = 2 / (lambda_1 + lambda_n), 0.0
    return LearningRate(safety * lr, beta, lambda_1, lambda_n, lambda_1 / lambda_n)


NO_CURVATURE = "no positive curvature: nothing to scale by"
FINITE = Limit("a finite number", interval().kind, lambda x: math.isfinite(x))


def _integer_or_none(n: Any) -> bool:
    return n is None or positive(integer=True).kind(n)


def _pair(spectrum: Any) -> tuple[float, float]:
    try:
        lam, noise = spectrum
    except (TypeError, ValueError):
        raise kind_error("spectrum", "a pair (lambda, noise) of numbers", spectrum) from None
    return lam, noise


def _eigenvalues(spectrum: Any) -> NDArray[np.float64]:
    if callable(density := getattr(spectrum, "spectral_density", None)):  # a BatchSpectrum
        spectrum = density()
    if isinstance(spectrum, SpectralDensity):
        return spectrum.nodes[spectrum.weights > 0].numpy()
    if isinstance(spectrum, Tensor):
        spectrum = spectrum.detach().cpu().numpy()
    try:
        return np.asarray(spectrum, dtype=np.float64).ravel()
    except (TypeError, ValueError):
        raise kind_error("spectrum", "a SpectralDensity, eigenvalues or a fitted BatchSpectrum", spectrum) from None
