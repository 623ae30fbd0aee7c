r"""When to stop fitting noisy labels with a kernel: from its eigenvalues, the noise and the size of the truth alone.

l_1 >= l_2 >= ... are the eigenvalues of K/n, sigma the standard deviation of the noise of a label, B the radius of the
ball that holds the truth, eta_k = k eta the time after k steps:

    R(e) = sqrt( (1/n) sum_i min(l_i, e^2) )                              local complexity
    T = min{ k : R(1 / sqrt(eta_k)) > B / (2 e sigma eta_k) } - 1         the stop             (e = 2.718...)
    delta = min{ x : R(x) <= B x^2 / (2 e sigma) }                        critical radius
    |f_T - f*|_n^2 <= 12 B^2 delta^2                                      what the stop buys

R(x)/x falls and x grows, so there is one crossing. With x = 1/sqrt(eta_k) the two lines are the same inequality: T is
the last k with eta_k <= 1/delta^2, that is T = floor(1 / (eta delta^2)), and delta^2 is the root of a quadratic between
two eigenvalues.

Paper: raskutti2014early (the rule and its constants), on which han2024neural builds.
Departures: sigma and B may be measured (`label_noise`, `mallows_step`); both are ours.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steepest.core.errors import at_least, check, optional, positive, value_error
from steepest.generative._kinds import as_tensor
from steepest.generative._tangent_kernel import KernelGradientFlow
from steepest.geometry.graph import knn_graph

__all__ = ["critical_radius", "early_stopping_step", "label_noise", "mallows_step", "step_grid"]

ROUND_OFF = 1e-8
GRID = 80  # ours: steps at which the unbiased risk is looked at


def critical_radius(eigenvalues: Any, sigma: float, *, radius: float = 1.0) -> float:
    """Critical radius of a kernel problem, exactly.

    Parameters
    ----------
    eigenvalues : array_like or Tensor (n,)
        Of K / n, in any order; all n of them, zeros included: their number is the number of labels.
    sigma : float
        Standard deviation of the noise of a label.
    radius : float
        B, RKHS norm that bounds the truth.

    Returns
    -------
    float
        delta, the smallest x > 0 with R(x) <= B x^2 / (2 e sigma).

    Raises
    ------
    ValueError
        ``sigma <= 0``, ``radius <= 0``, no positive eigenvalue, or one negative beyond round-off.

    Examples
    --------
    >>> delta = critical_radius([1.0, 0.0, 0.0, 0.0], sigma=1 / (2 * np.e))     # R = min(1, x) / 2 = x^2
    >>> round(delta, 12)
    0.5
    """
    check("sigma", sigma, positive())
    check("radius", radius, positive())
    values = _checked(eigenvalues)
    # with x = delta^2 and j eigenvalues above it: x^2 = c (j x + rest_j) / n,  c = (2 e sigma / B)^2
    n, c = len(values), (2 * math.e * sigma / radius) ** 2
    j = np.arange(n + 1)
    rest = np.append(np.cumsum(values[::-1])[::-1], 0.0)
    half = c * j / (2 * n)
    roots = half + np.sqrt(half**2 + c * rest / n)
    return math.sqrt(float(roots.min()))  # sum_i min(l_i, x) is the smallest of j x + rest_j, so the first crossing is


def early_stopping_step(
    eigenvalues: Any, sigma: float, *, step_size: float, radius: float = 1.0, max_iter: int | None = None
) -> int:
    """Number of steps of gradient descent after which theory stops.

    Parameters
    ----------
    eigenvalues, sigma, radius
        As in `critical_radius`.
    step_size : float
        eta, of the mean loss (1/2n) sum |f - y|^2: its kernel is K / n.
    max_iter : int, optional
        Returned when the rule has not stopped by then.

    Returns
    -------
    int
        T >= 0; with 0 the labels are too noisy for even one step.

    Raises
    ------
    ValueError
        As `critical_radius`, or ``step_size <= 0``.

    Examples
    --------
    >>> early_stopping_step([1.0, 0.0, 0.0, 0.0], sigma=1 / (2 * np.e), step_size=0.3)       # 1 / (0.3 * 0.25)
    13
    """
    check("step_size", step_size, positive())
    check("max_iter", max_iter, optional(at_least(0, integer=True)))
    steps = math.floor(1 / (step_size * critical_radius(eigenvalues, sigma, radius=radius) ** 2))
    return steps if max_iter is None else min(steps, max_iter)


def _checked(eigenvalues: Any) -> NDArray[np.float64]:
    """Falling, clipped at 0."""
    values = np.sort(as_tensor(eigenvalues).detach().cpu().double().numpy())[::-1]
    if values.ndim != 1 or not len(values) or not np.isfinite(values).all() or values[0] <= 0:
        raise value_error("eigenvalues", "a list of finite numbers, one of them positive", eigenvalues)
    if values[-1] < -ROUND_OFF * values[0]:
        raise value_error("eigenvalues", ">= 0", f"{values[-1]:.3g}")
    return np.maximum(values, 0.0)


def label_noise(U: Any, Y: Any) -> float:
    """Standard deviation per coordinate of the noise in labels, from differences between nearest neighbors.

    sigma^2 = mean over i of |y_i - y_nn(i)|^2 / (2 d). What the truth changes between neighbors is neglected: it errs
    upward where points are few.

    Parameters
    ----------
    U : array_like or Tensor (n, p)
        Inputs; neighbors are found there.
    Y : array_like or Tensor (n, d)
        Labels with independent noise (several noisings of one data point are not).

    Raises
    ------
    ValueError
        Fewer than 2 rows, or lengths that differ.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> U = rng.random((2000, 2))
    >>> round(label_noise(U, np.sin(U) + 0.5 * rng.standard_normal((2000, 2))), 1)
    0.5
    """
    inputs, labels = (as_tensor(x).detach().cpu().double().numpy() for x in (U, Y))
    if labels.ndim != 2 or len(labels) != len(inputs):
        raise value_error("Y", f"of shape ({len(inputs)}, d)", Y)
    if len(inputs) < 2:
        raise value_error("U", "at least 2 rows", U)
    graph = knn_graph(inputs, 1, weight="distance")
    # a row of the symmetric graph lists its own nearest and those that chose it, which are no nearer
    nearest = [
        graph.indices[first + int(np.argmin(graph.data[first:last]))]
        for first, last in zip(graph.indptr[:-1], graph.indptr[1:], strict=True)
    ]
    return math.sqrt(float(np.square(labels - labels[nearest]).mean()) / 2)


def step_grid(max_iter: int, n: int = GRID) -> list[int]:
    """At most n steps from 1 to max_iter, evenly spaced in their logarithm."""
    return sorted({int(k) for k in np.geomspace(1, max_iter, n).round()})


def mallows_step(flow: KernelGradientFlow, sigma: float, *, max_iter: int, block: int = 1) -> int:
    """Number of steps that minimizes the unbiased estimate of the risk, |Y - f_k|^2/(n d) + 2 sigma^2 tr(H_k)/n.

    H_k = I - (I - eta K/n)^k maps labels to predictions. Looked at on a grid of 80 steps.

    Parameters
    ----------
    flow : KernelGradientFlow
    sigma : float
        Standard deviation of the noise of a label.
    max_iter : int
        Largest step of the grid.
    block : int
        Consecutive rows that share their noise (several noisings of one data point).
    """
    check("sigma", sigma, positive())
    check("max_iter", max_iter, at_least(1, integer=True))
    n = len(flow.residual(0))

    def risk(k: int) -> float:
        return flow.loss(k) + 2 * sigma**2 * flow.freedom(k, block=block) / n

    return min(step_grid(max_iter), key=risk)
