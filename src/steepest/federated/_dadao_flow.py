"""What a node of DADAO does by itself: the constants of the method and the linear flow between two events.

A node's six vectors, rows ``X, Xt, Y, Yt, Z, Zt`` of a block (6, d), obey

    X' = eta (Xt - X)         Y'  = alpha (Yt - Y)             Z'  = alpha (Zt - Z)
    Xt' = eta~ (X - Xt)       Yt' = -theta (Y + Z + nu Xt)     Zt' = alpha~ (Z - Zt)

The generator has a double eigenvalue zero, so that a general eigensolver returns parallel eigenvectors for many L / mu;
all entries of its exponential have closed forms instead. The mean of (X, Xt) and C, the weighted mean of (Z, Zt), stand
still; the differences D and Q decay; and (Y, Yt) is a damped oscillator that these four drive.
"""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from steepest.core.errors import at_least, check, positive, value_error

__all__ = ["DadaoConstants"]

Array = NDArray[Any]
X, XT, Y, YT, Z, ZT = range(6)


class DadaoConstants:
    """Step sizes, mixing rates and flow of DADAO for L-smooth and mu-strongly convex functions (nabli2023dadao).

    Parameters
    ----------
    L, mu : float
        ``0 < mu <= L``.
    chi1 : float
        Inverse of the smallest positive eigenvalue of the Laplacian of rates, in units of time.

    Attributes
    ----------
    nu : float
        ``mu / 2``; below, ``r = sqrt(nu / L)``.
    alpha, alpha_tilde, eta, eta_tilde, theta : float
        Rates of the flow: ``r / 4, r / 8, r / 8, r / 8, 1 / (2 r)``.
    beta, beta_tilde : float
        Steps of Z and Zt at a gossip: ``1 / 2, 2 chi1 / r``.
    gamma, gamma_tilde : float
        Steps of X and Xt at a gradient: ``1 / (4 L), 1 / (4 sqrt(L nu))``.
    delta, delta_tilde : float
        Their sum is the step of Yt at a gradient: ``r / 4, 1``.
    generator : ndarray (6, 6)
        The flow is ``S' = generator @ S`` for a block S (6, d) of rows X, Xt, Y, Yt, Z, Zt.

    Raises
    ------
    ValueError
        ``mu <= 0``, ``mu > L`` or ``chi1 <= 0``.

    Examples
    --------
    >>> constants = DadaoConstants(L=8.0, mu=1.0, chi1=2.0)
    >>> constants.gamma, constants.eta, constants.beta_tilde
    (0.03125, 0.03125, 16.0)
    >>> constants.flow(0.5) @ [1.0, 1.0, -0.5, -0.5, 0.0, 0.0]        # this block stands still
    array([ 1. ,  1. , -0.5, -0.5,  0. ,  0. ])
    """

    def __init__(self, L: float, mu: float, chi1: float) -> None:
        check("mu", mu, positive())
        check("L", L, positive())
        check("chi1", chi1, positive())
        if mu > L:
            raise value_error("mu", f"at most L = {L:g}", mu)
        self.L, self.mu, self.chi1, self.nu = float(L), float(mu), float(chi1), float(mu) / 2
        r = math.sqrt(self.nu / self.L)
        self.alpha, self.alpha_tilde, self.eta, self.eta_tilde, self.theta = r / 4, r / 8, r / 8, r / 8, 1 / (2 * r)
        self.beta, self.beta_tilde = 0.5, 2 * self.chi1 / r
        self.delta, self.delta_tilde = r / 4, 1.0
        self.gamma, self.gamma_tilde = 1 / (4 * self.L), 1 / (4 * math.sqrt(self.L * self.nu))

    @cached_property
    def generator(self) -> Array:
        """The matrix of the linear flow, rows and columns X, Xt, Y, Yt, Z, Zt."""
        A = np.zeros((6, 6))
        A[X, [X, XT]] = -self.eta, self.eta
        A[XT, [X, XT]] = self.eta_tilde, -self.eta_tilde
        A[Y, [Y, YT]] = -self.alpha, self.alpha
        A[YT, [Y, Z, XT]] = -self.theta, -self.theta, -self.theta * self.nu
        A[Z, [Z, ZT]] = -self.alpha, self.alpha
        A[ZT, [Z, ZT]] = self.alpha_tilde, -self.alpha_tilde
        return A

    @cached_property
    def at_gradient(self) -> Array:
        """Column (6, 1) that takes ``g`` at a gradient: X, Xt and Yt jump."""
        return np.array([-self.gamma, -self.gamma_tilde, 0.0, self.delta + self.delta_tilde, 0.0, 0.0])[:, None]

    @cached_property
    def at_gossip(self) -> Array:
        """Column (2, 1) that takes ``m`` away from Z and Zt at a gossip."""
        return np.array([self.beta, self.beta_tilde])[:, None]

    def flow(self, dt: float) -> Array:
        """Matrix (6, 6) that leads a block over a time `dt`, the exponential of ``dt * generator``."""
        check("dt", dt, at_least(0))
        return np.asarray(self.flows([dt])[0])

    def flows(self, dt: ArrayLike) -> Array:
        """Matrices (k, 6, 6) for times (k,)."""
        t, nu, alpha, theta = np.asarray(dt, dtype=float), self.nu, self.alpha, self.theta
        slow, fast = 2 * self.eta, alpha + self.alpha_tilde  # decay of D = X - Xt and of Q = Z - Zt
        e_slow, e_fast = np.exp(-slow * t), np.exp(-fast * t)
        omega, damped = math.sqrt(alpha * theta - alpha**2 / 4), np.exp(-alpha / 2 * t)
        c, s = damped * np.cos(omega * t), damped * np.sin(omega * t) / omega
        YY, YYt, YtY, YtYt = c - alpha / 2 * s, alpha * s, -theta * s, c + alpha / 2 * s  # (Y, Yt) left to itself

        # (Y, Yt) when Q or D drives it: the solution in step with the decay, y e^(-sigma t), and what is left over
        z = alpha / fast  # Z = C + z Q
        y_Q, yt_Q = self._driven(fast, z)
        y_D, yt_D = self._driven(slow, -nu / 2)
        Y_Q, Yt_Q = y_Q * (e_fast - YY) - yt_Q * YYt, yt_Q * (e_fast - YtYt) - y_Q * YtY
        Y_D, Yt_D = y_D * (e_slow - YY) - yt_D * YYt, yt_D * (e_slow - YtYt) - y_D * YtY
        Y_C, Yt_C = YY + YYt - 1, YtY + YtYt - 1  # what stands still, C + nu (X + Xt) / 2

        F = np.zeros((6, 6, len(t)))
        F[X, X] = F[XT, XT] = (1 + e_slow) / 2
        F[X, XT] = F[XT, X] = -np.expm1(-slow * t) / 2
        F[Z, Z], F[Z, ZT] = 1 - z + z * e_fast, -z * np.expm1(-fast * t)
        F[ZT, Z], F[ZT, ZT] = -(1 - z) * np.expm1(-fast * t), z + (1 - z) * e_fast
        for row, own, own_t, still, of_Q, of_D in ((Y, YY, YYt, Y_C, Y_Q, Y_D), (YT, YtY, YtYt, Yt_C, Yt_Q, Yt_D)):
            F[row, Y], F[row, YT] = own, own_t
            F[row, X], F[row, XT] = nu / 2 * still + of_D, nu / 2 * still - of_D
            F[row, Z], F[row, ZT] = (1 - z) * still + of_Q, z * still - of_Q
        return np.ascontiguousarray(np.moveaxis(F, -1, 0))

    def _driven(self, sigma: float, force: float) -> tuple[float, float]:
        """Amplitudes of Y and Yt under ``Yt' = -theta (Y + force e^(-sigma t))``, in step with the force."""
        y = self.theta * force / (sigma - sigma**2 / self.alpha - self.theta)
        return y, y * (1 - sigma / self.alpha)
