r"""The Ornstein-Uhlenbeck process that turns data into noise, its reversal, and a mixture with known scores.

    X_t = a(t) X_0 + sqrt(h(t)) xi,   xi ~ N(0, I),   a = exp(-t / 2),   h = 1 - exp(-t)

With f(x, t) an estimate of E[X_0 | X_t = x], the *denoiser*, the score of X_t is (a f - x) / h (Tweedie's formula), and
with the weight h^2 / a^2 denoising score matching is least squares, pointwise:

    weight * |score - grad log p(x_t | x_0)|^2  =  |f(x_t, t) - x_0|^2

Backwards, the process is an exponential integrator of dx = (x/2 + score) ds + dW, or the probability flow
dx/dt = -x/2 - score/2 integrated from T down.

Papers: han2024neural (the setting), vincent2011connection (denoising score matching), anderson1982reverse and
song2021score (reversal and probability flow).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from steepest.core.errors import at_least, check, interval, one_of, positive, value_error
from steepest.core.ode import solve_ode
from steepest.core.random import Seed, torch_generator
from steepest.generative._kinds import as_tensor, like

__all__ = ["GaussianMixtureScore", "OUProcess", "noise_levels", "run_backwards"]

Field = Callable[[Tensor, float], Tensor]


class OUProcess:
    """Ornstein-Uhlenbeck process with unit noise, whose limit is the standard normal.

    All methods take a time as a number or a tensor; a tensor of shape (n,) belongs to the rows of x (n, d).

    Examples
    --------
    >>> process, t = OUProcess(), torch.tensor([0.5, 1.0], dtype=torch.float64)
    >>> bool(torch.allclose(process.alpha(t) ** 2 + process.h(t), torch.ones(2, dtype=torch.float64)))
    True
    """

    def alpha(self, t: Tensor | float) -> Tensor:
        """Share of X_0 that is left, exp(-t / 2), of t's shape."""
        return torch.exp(-_time(t) / 2)

    def h(self, t: Tensor | float) -> Tensor:
        """Variance of the noise, 1 - exp(-t), of t's shape."""
        return -torch.expm1(-_time(t))

    def weight(self, t: Tensor | float) -> Tensor:
        """Weight h^2 / a^2 under which denoising score matching is least squares, of t's shape."""
        return self.h(t) ** 2 * torch.exp(_time(t))

    def perturb(self, x0: Tensor, t: Tensor | float, generator: Seed = None) -> tuple[Tensor, Tensor]:
        """Draw X_t given X_0.

        Parameters
        ----------
        x0 : Tensor (n, d)
        t : float or Tensor (n,)
        generator : int, torch.Generator or None

        Returns
        -------
        x_t, xi : Tensor (n, d)
            The noisy samples and the standard normal noise in them.
        """
        g = torch_generator(generator, x0.device, name="generator")
        xi = torch.randn(x0.shape, generator=g, dtype=x0.dtype, device=x0.device)
        return _rows(self.alpha(t), x0) * x0 + _rows(self.h(t), x0).sqrt() * xi, xi

    def score_from_denoiser(self, f: Tensor, x: Tensor, t: Tensor | float) -> Tensor:
        """(a f - x) / h, shape (n, d). Its error is that of f times a / h: convert last."""
        return (_rows(self.alpha(t), x) * f - x) / _rows(self.h(t), x)

    def denoiser_from_score(self, s: Tensor, x: Tensor, t: Tensor | float) -> Tensor:
        """(h s + x) / a, shape (n, d)."""
        return (_rows(self.h(t), x) * s + x) / _rows(self.alpha(t), x)


def _time(t: Tensor | float) -> Tensor:
    return t if isinstance(t, Tensor) else torch.tensor(t, dtype=torch.float64)


def _rows(values: Tensor, x: Tensor) -> Tensor:
    """Numbers of the rows of x, in its dtype, ready to multiply it."""
    return values.to(x)[..., None]


class GaussianMixtureScore:
    """A Gaussian mixture at every time of the process: density, score and denoiser in closed form.

    At time t component k is N(a m_k, a^2 C_k + h I).

    Parameters
    ----------
    weights : array_like or Tensor (k,)
        Positive; divided by their sum.
    means : array_like or Tensor (k, d)
    covs : array_like or Tensor (k, d, d)
        Symmetric positive definite.

    Raises
    ------
    ValueError
        Shapes that do not fit, a weight that is not positive, a covariance that is not positive definite.

    Examples
    --------
    >>> mixture = GaussianMixtureScore([1.0], [[2.0]], [[[1.0]]])      # N(2, 1) stays of variance 1
    >>> mixture.score([[0.0]], 0.0), mixture.denoise([[2.0]], 0.0)
    (array([[2.]]), array([[2.]]))
    """

    def __init__(self, weights: Any, means: Any, covs: Any) -> None:
        self.weights, self.means, self.covs = as_tensor(weights), as_tensor(means), as_tensor(covs)
        self._kind = means
        if self.means.ndim != 2:
            raise value_error("means", "of shape (k, d)", means)
        k, d = self.means.shape
        if self.weights.shape != (k,) or not bool((self.weights > 0).all()):
            raise value_error("weights", f"of shape ({k},) and positive", weights)
        if self.covs.shape != (k, d, d) or not torch.allclose(self.covs, self.covs.mT):
            raise value_error("covs", f"symmetric, of shape {(k, d, d)}", covs)
        self._variances, self._axes = torch.linalg.eigh(self.covs)  # (k, d), (k, d, d)
        if not bool((self._variances > 0).all()):
            raise value_error("covs", "positive definite", f"eigenvalue {float(self._variances.min()):.3g}")
        self._log_weights = (self.weights / self.weights.sum()).log()
        self._process = OUProcess()

    def log_prob(self, x: Any, t: Any) -> Any:
        """Log density of X_t at x (n, d), shape (n,), of the kind of x; t is a number or of shape (n,)."""
        return like(torch.logsumexp(self._components(x, t)[0], dim=-1), x)

    def score(self, x: Any, t: Any) -> Any:
        """Gradient of the log density of X_t at x, shape (n, d), of the kind of x."""
        log_parts, scores, _ = self._components(x, t)
        return like(self._average(log_parts, scores), x)

    def denoise(self, x: Any, t: Any) -> Any:
        """Mean of X_0 given X_t = x, shape (n, d), of the kind of x."""
        log_parts, _, means = self._components(x, t)
        return like(self._average(log_parts, means), x)

    def sample(self, n: int, *, generator: Seed = None) -> Any:
        """Draw n samples of X_0, shape (n, d), of the kind of the means."""
        check("n", n, at_least(1, integer=True))
        g = torch_generator(generator, self.means.device, name="generator")
        which = torch.multinomial(self._log_weights.exp(), n, replacement=True, generator=g)
        noise = torch.randn((n, self.means.shape[1]), generator=g, dtype=self.means.dtype, device=self.means.device)
        roots = self._axes * self._variances.sqrt()[:, None, :]  # (k, d, d)
        return like(self.means[which] + torch.einsum("nij,nj->ni", roots[which], noise), self._kind)

    def _components(self, x: Any, t: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Of every component: log weight plus log density (n, k), score (n, k, d) and mean of X_0 (n, k, d)."""
        points = as_tensor(x)
        if points.ndim != 2 or points.shape[1] != self.means.shape[1]:
            raise value_error("x", f"of shape (n, {self.means.shape[1]})", x)
        time = as_tensor(t).to(points)
        if time.ndim > 1 or (time.ndim == 1 and len(time) != len(points)) or bool((time < 0).any()):
            raise value_error("t", f"a number or of shape ({len(points)},), >= 0", t)
        a = self._process.alpha(time)[..., None, None]  # (n, 1, 1), or (1, 1)
        h = self._process.h(time)[..., None, None]
        means, variances, axes = self.means.to(points), self._variances.to(points), self._axes.to(points)
        offset = points[:, None, :] - a * means  # (n, k, d)
        rotated = torch.einsum("kij,nki->nkj", axes, offset)
        spread = a**2 * variances + h  # (n, k, d), or (k, d)
        log_parts = -0.5 * (rotated**2 / spread + torch.log(2 * torch.pi * spread)).sum(-1)
        scores = -torch.einsum("kij,nkj->nki", axes, rotated / spread)
        shrunk = torch.einsum("kij,nkj->nki", axes, a * variances * rotated / spread)
        return log_parts + self._log_weights.to(points), scores, means + shrunk

    @staticmethod
    def _average(log_parts: Tensor, values: Tensor) -> Tensor:
        return torch.einsum("nk,nki->ni", torch.softmax(log_parts, dim=-1), values)


def noise_levels(t_min: float, t_max: float, n_steps: int) -> Tensor:
    """Times from t_max down to t_min between which the variance of the noise falls geometrically, shape (n_steps + 1,).

    Examples
    --------
    >>> t = noise_levels(0.05, 3.0, 4)
    >>> ratios = OUProcess().h(t[1:]) / OUProcess().h(t[:-1])
    >>> bool(torch.allclose(ratios, ratios[:1])), round(float(t[-1]), 12)
    (True, 0.05)
    """
    check("t_min", t_min, positive())
    check("t_max", t_max, interval(t_min, low_open=True))
    check("n_steps", n_steps, at_least(1, integer=True))
    h = OUProcess().h(torch.tensor([t_max, t_min], dtype=torch.float64)).log()
    times = -torch.log1p(-torch.exp(h[0] + (h[1] - h[0]) * torch.linspace(0, 1, n_steps + 1, dtype=torch.float64)))
    times[0], times[-1] = t_max, t_min
    return times


def run_backwards(denoise: Field, x: Tensor, times: Tensor, *, method: str = "sde", generator: Seed = None) -> Tensor:
    """Carry samples of X_T back to the data.

    Parameters
    ----------
    denoise : callable
        ``denoise(x, t)`` estimates E[X_0 | X_t = x] for x (n, d) and one time.
    x : Tensor (n, d)
        Samples at ``times[0]``, standard normal.
    times : Tensor (m,)
        Falling.
    method : "sde" or "ode"
        Exponential integrator of the reversed equation, or Heun's steps of the probability flow.
    generator : int, torch.Generator or None
        Of the noise of "sde".

    Returns
    -------
    Tensor (n, d)
        ``denoise`` of the samples at ``times[-1]``.
    """
    check("method", method, one_of("sde", "ode"))
    process = OUProcess()

    def score(y: Tensor, t: float) -> Tensor:
        return process.score_from_denoiser(denoise(y, t), y, t)

    if method == "ode":
        x = solve_ode(lambda t, y: -(y + score(y, float(t))) / 2, x, times, method="heun").y
        return denoise(x, float(times[-1]))
    g = torch_generator(generator, x.device, name="generator")
    for t, step in zip(times[:-1].tolist(), (times[:-1] - times[1:]).tolist(), strict=True):
        grown = torch.tensor(step / 2, dtype=torch.float64)
        xi = torch.randn(x.shape, generator=g, dtype=x.dtype, device=x.device)
        spread = torch.expm1(2 * grown).sqrt()
        x = grown.exp().to(x) * x + 2 * torch.expm1(grown).to(x) * score(x, t) + spread.to(x) * xi
    return denoise(x, float(times[-1]))
