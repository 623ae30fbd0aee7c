"""Evidence, its gradient and the posterior of a Gaussian linear model, at a cost that does not know the data's size.

Targets ``z = Φ W + ε`` (M values) with ``W ~ N(0, diag S)`` and ``ε ~ N(0, s² I)``. The data enter by their moments
``G = ΦᵀΦ``, ``b = Φᵀz`` and ``zᵀz`` alone, formed once. With ``A = I + S^½ G S^½ / s² = C Cᵀ`` (K×K) and
``c = C⁻¹ S^½ b / s²``::

    log p(z) = -½ (zᵀz / s² - cᵀc) - Σ ln C_ll - ½ M ln(2π s²)
    W | z    ~ N(S^½ m, S^½ A⁻¹ S^½),                              m = C⁻ᵀ c
    ∂ log p / ∂ ln S_l = ½ (m_l² - 1 + [A⁻¹]_ll)
    ∂ log p / ∂ ln s²  = ½ (|z - Φ S^½ m|² / s² - M + K - tr A⁻¹)

exactly those of the dense Gaussian N(0, Φ diag(S) Φᵀ + s² I). S comes from a spectral density of the eigenvalues λ_l::

    Matérn  s_l = (λ_l + 2ν/κ²)^(-ν)        squared exponential  s_l = exp(-½ κ² λ_l)
    S_l = σ_f² n_values s_l / Σ_m s_m       (the mean prior variance of the n_values modelled values is σ_f²)

Paper: peach2024implicit, Sec. 3.3 and App. C; the exponent -ν is that of its official code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.linalg import cho_solve, eigh, qr, solve_triangular
from scipy.optimize import minimize
from scipy.special import logsumexp

__all__ = ["Hyperparameters", "Moments", "Optimum", "evidence", "maximize_evidence", "posterior", "prior_variances"]

NU_RANGE = (0.3, 20.0)
FLAT = 1e-4  # projected gradient, nats a value: a line search that fails there has met rounding
NOISE_RANGE = (1e-8, 2.0)  # of the mean squared target
SIGNAL_RANGE = (1e-6, 1e4)  # of the mean squared target, ours: wide enough never to bind on a field that can be seen
KAPPA_RANGE = (1e-2, 1e4)  # in units of λ_K^-½, ours: from a flat spectral density to one of the zero modes alone
QUANTILES = (0.05, 0.30, 0.80)
START_NOISE = 0.05  # of the mean squared target


@dataclass(frozen=True)
class Hyperparameters:
    """Of kernel and likelihood; the squared exponential has no `nu`."""

    kappa: float
    sigma_f: float
    noise_variance: float
    nu: float | None = None


@dataclass(frozen=True)
class Moments:
    """What T right-hand sides with the same features leave behind: G (K, K), Φᵀz (K, T), Σ zᵀz and M."""

    gram: np.ndarray
    projections: np.ndarray
    squared_norm: float
    n_values: int

    @classmethod
    def of(cls, features: np.ndarray, targets: np.ndarray) -> Moments:
        """Form the moments of features (M, K) and targets (M, T)."""
        return cls(features.T @ features, features.T @ targets, float(np.vdot(targets, targets)), len(features))


@dataclass(frozen=True)
class Optimum:
    """The best hyper-parameters found, and how the winning run ended."""

    parameters: Hyperparameters
    n_iter: int
    converged: bool
    message: str


def prior_variances(
    eigenvalues: np.ndarray, parameters: Hyperparameters, n_values: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return ln S (K,) and its derivatives (K, 3) with respect to ln κ, ln σ_f and ln ν (zero where there is no ν)."""
    kappa, nu = parameters.kappa, parameters.nu
    if nu is None:
        log_s = -0.5 * kappa**2 * eigenvalues
        slopes = np.column_stack([2 * log_s, np.zeros_like(log_s)])
    else:
        shift = 2 * nu / kappa**2
        shifted = eigenvalues + shift
        log_s = -nu * np.log(shifted)
        slopes = np.column_stack([2 * nu * shift / shifted, log_s - nu * shift / shifted])
    log_sum = logsumexp(log_s)
    slopes -= np.exp(log_s - log_sum) @ slopes
    log_S = log_s - log_sum + 2 * np.log(parameters.sigma_f) + np.log(n_values)
    return log_S, np.column_stack([slopes[:, 0], np.full_like(log_s, 2.0), slopes[:, 1]])


def evidence(log_S: np.ndarray, noise_variance: float, moments: Sequence[Moments]) -> tuple[float, np.ndarray, float]:
    """Return log p of all right-hand sides and its derivatives with respect to ln S (K,) and ln s²."""
    value, slope_S, slope_noise = 0.0, np.zeros_like(log_S), 0.0
    root = np.exp(0.5 * log_S)
    for data in moments:
        n_sides = data.projections.shape[1]
        C = _factor(root, data.gram, noise_variance)
        c = solve_triangular(C, root[:, None] * data.projections / noise_variance, lower=True)  # (K, T)
        m = solve_triangular(C, c, lower=True, trans="T")
        inverse_diagonal = np.square(solve_triangular(C, np.eye(len(root)), lower=True)).sum(axis=0)
        W = root[:, None] * m
        residual = data.squared_norm + np.vdot(W, data.gram @ W - 2 * data.projections)
        value += -0.5 * (data.squared_norm / noise_variance - np.vdot(c, c)) - n_sides * (
            np.log(C.diagonal()).sum() + 0.5 * data.n_values * np.log(2 * np.pi * noise_variance)
        )
        slope_S += 0.5 * (np.square(m).sum(axis=1) + n_sides * (inverse_diagonal - 1))
        freedom = data.n_values - len(root) + inverse_diagonal.sum()
        slope_noise += 0.5 * (residual / noise_variance - n_sides * freedom)
    return float(value), slope_S, float(slope_noise)


def posterior(log_S: np.ndarray, noise_variance: float, data: Moments) -> tuple[np.ndarray, np.ndarray]:
    """Return the weights' posterior mean (K, T) and a factor F (K, K) of their covariance FᵀF."""
    root = np.exp(0.5 * log_S)
    C = _factor(root, data.gram, noise_variance)
    mean = root[:, None] * cho_solve((C, True), root[:, None] * data.projections) / noise_variance
    return mean, solve_triangular(C, np.diag(root), lower=True)


def maximize_evidence(
    eigenvalues: np.ndarray,
    moments: Sequence[Moments],
    n_values: int,
    *,
    nu: float | None,
    optimise_nu: bool,
    max_iter: int,
) -> Optimum:
    """Climb the evidence by L-BFGS-B on logarithms from three length scales; the best end point wins.

    `nu` None is the squared exponential. The mean squared target must be positive.
    """
    n_targets = sum(data.n_values * data.projections.shape[1] for data in moments)
    power = sum(data.squared_norm for data in moments) / n_targets
    positive = eigenvalues[eigenvalues > 0]
    if not len(positive):
        positive = np.ones(1)
    with_nu = nu is not None and optimise_nu
    start_nu = nu if nu is None or not optimise_nu else float(np.clip(nu, *NU_RANGE))

    def unpack(theta: np.ndarray) -> Hyperparameters:
        kappa, sigma_f, noise = (float(x) for x in np.exp(theta[:3]))
        return Hyperparameters(kappa, sigma_f, noise, float(np.exp(theta[3])) if with_nu else start_nu)

    def loss(theta: np.ndarray) -> tuple[float, np.ndarray]:
        parameters = unpack(theta)
        log_S, slopes = prior_variances(eigenvalues, parameters, n_values)
        value, slope_S, slope_noise = evidence(log_S, parameters.noise_variance, moments)
        kappa, sigma_f, log_nu = slope_S @ slopes
        gradient = np.array([kappa, sigma_f, slope_noise, log_nu][: len(theta)])
        return -value / n_targets, -gradient / n_targets

    bounds = np.log(
        [
            np.divide(KAPPA_RANGE, np.sqrt(positive.max())),
            np.sqrt(np.multiply(SIGNAL_RANGE, power)),
            np.multiply(NOISE_RANGE, power),
            NU_RANGE,
        ]
    )[: 4 if with_nu else 3]
    runs = []
    for level in np.quantile(positive, QUANTILES):
        kappa = np.sqrt(2 * (1.0 if start_nu is None else start_nu) / level)
        start = np.log([kappa, np.sqrt(power), START_NOISE * power, start_nu or 1.0])[: len(bounds)]
        runs.append(
            minimize(
                loss,
                np.clip(start, bounds[:, 0], bounds[:, 1]),
                jac=True,
                method="L-BFGS-B",
                bounds=bounds,
                options={"maxiter": max_iter, "maxfun": 20 * max_iter, "ftol": 1e-12, "gtol": 1e-7},
            )
        )
    best = min(runs, key=lambda run: float(run.fun))
    left = float(np.abs(np.clip(best.x - best.jac, bounds[:, 0], bounds[:, 1]) - best.x).max())
    return Optimum(unpack(best.x), int(best.nit), bool(best.success) or left <= FLAT, str(best.message))


def _factor(root: np.ndarray, gram: np.ndarray, noise_variance: float) -> np.ndarray:
    """Return the Cholesky factor C of A = I + S^½ G S^½ / s²."""
    A = root[:, None] * gram * (root / noise_variance)
    A.flat[:: len(A) + 1] += 1
    try:
        return np.linalg.cholesky(A)
    except np.linalg.LinAlgError:  # rounding of a huge signal-to-noise ratio hides that no eigenvalue is below 1
        values, vectors = eigh(A)
        R = qr((vectors * np.sqrt(np.maximum(values, 1))).T, mode="r")[0]
        return R.T * np.sign(R.diagonal())
