"""The consensus point of a swarm: its mean under weights exp(-alpha f), and the alpha that keeps enough of it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from steepest.core.errors import kind_error, positive, value_error

__all__ = ["check_alpha", "consensus_point", "effective_alpha", "weighted_mean", "weights"]

BRACKET = (1e-8, 1e15)  # where effective_alpha looks; the upper end is the official code's "infinite" alpha
HALVINGS = 60
BLOCK = 1 << 20  # numbers widened to float64 at a time


def consensus_point(x: Any, f: Any, alpha: float, return_weights: bool = False) -> Any:
    """Average points with weights proportional to ``exp(-alpha f)`` (riedl2023gradient, the consensus point).

    Parameters
    ----------
    x : array or tensor of shape (m, d)
    f : array or tensor of shape (m,)
        Values; ``inf`` marks a point that has no say.
    alpha : float
        Positive. ``inf`` means the arithmetic mean of all points that attain the least value.
    return_weights : bool
        Also return the weights.

    Returns
    -------
    c : array or tensor of shape (d,)
        Of the kind, dtype and device of `x` (float64 when `x` is no tensor and not float32).
    w : array or tensor of shape (m,)
        Only with `return_weights`: float64, sum 1.

    Raises
    ------
    FloatingPointError
        A value is NaN or -inf, or all of them are inf.
    ValueError, TypeError
        Shapes that do not fit, points that are not finite, `alpha` not positive.

    Notes
    -----
    Values are shifted by their minimum before the exponential, so that any `alpha` works and a constant added to `f`
    changes nothing.

    Examples
    --------
    >>> consensus_point([[0.0], [1.0], [5.0]], [0.0, 0.0, 3.0], alpha=1e15).tolist()
    [0.5]
    """
    check_alpha("alpha", alpha)
    as_array = not isinstance(x, Tensor)
    points = torch.from_numpy(float_array("x", x)) if as_array else x.detach()
    if points.ndim != 2 or 0 in points.shape:
        raise value_error("x", "of shape (m, d)", x)
    if not points.is_floating_point():
        raise kind_error("x", "of a floating dtype", x)
    if not bool(torch.isfinite(points).all()):
        raise value_error("x", "finite", x)
    values = f.detach() if isinstance(f, Tensor) else torch.as_tensor(np.array(f, dtype=np.float64))
    if tuple(values.shape) != (len(points),):
        raise value_error("f", f"of shape ({len(points)},)", f)
    if values.device != points.device:
        raise value_error("f", f"on {points.device} like x", str(values.device))
    w = weights(values.to(torch.float64), float(alpha))
    c = weighted_mean(w, points)
    if as_array:
        return (c.numpy(), w.numpy()) if return_weights else c.numpy()
    return (c, w) if return_weights else c


def check_alpha(name: str, alpha: Any) -> None:
    """Accept positive numbers and infinity."""
    limit = positive()
    if not limit.kind(alpha):
        raise kind_error(name, "a number > 0 (inf allowed)", alpha)
    if not (float(alpha) == math.inf or limit.test(alpha)):
        raise value_error(name, "> 0 (inf allowed)", alpha)


def float_array(name: str, value: Any) -> np.ndarray[Any, np.dtype[Any]]:
    """Copy an array-like: float32 stays, other real numbers become float64."""
    found = np.asarray(value)
    if found.dtype.kind not in "fiu":
        raise kind_error(name, "real numbers", value)
    return np.array(found, dtype=np.float32 if found.dtype == np.float32 else np.float64, order="C")


def weights(f: Tensor, alpha: float) -> Tensor:
    """Weights ``w_i = exp(-alpha f_i) / sum_j exp(-alpha f_j)`` of float64 values (m,), by way of the logarithm."""
    least = float(f.min())  # NaN if there is one
    if not math.isfinite(least):
        what = "all values of fun are inf" if least == math.inf else f"a value of fun is {least}"
        raise FloatingPointError(f"no consensus: {what}")
    if alpha == math.inf:
        at_least = (f == least).to(f.dtype)
        return at_least / at_least.sum()
    return torch.softmax(-alpha * (f - least), 0)


def weighted_mean(w: Tensor, x: Tensor) -> Tensor:
    """Return ``w' x`` in the dtype of `x`, summed in float64 over the rows whose weight is not zero."""
    heavy = w.nonzero()[:, 0]
    if len(heavy) <= len(w) // 2:
        w, x = w[heavy], x[heavy]
    if x.dtype == w.dtype:
        return w @ x
    total = w.new_zeros(x.shape[1])
    rows = max(1, BLOCK // x.shape[1])
    for start in range(0, len(x), rows):
        total += w[start : start + rows] @ x[start : start + rows].to(w.dtype)
    return total.to(x.dtype)


def effective_alpha(f: Tensor, fraction: float, most: float = BRACKET[1]) -> float:
    """Find the alpha at which the effective sample size ``1 / sum w_i^2`` is ``fraction * m``.

    The size falls with alpha; an end of the bracket is the answer where it lies beyond (many equal values, or too few
    that are finite).
    """
    target = fraction * len(f)
    low, high = math.log(BRACKET[0]), math.log(min(BRACKET[1], most))

    def size(log_alpha: float) -> float:
        return 1 / float(weights(f, math.exp(log_alpha)).square().sum())

    if size(high) >= target:
        return math.exp(high)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if size(middle) >= target else (low, middle)
    return math.exp(low)
