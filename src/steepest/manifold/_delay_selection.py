r"""Delays and embedding dimension of a time series from the series itself, without a grid search.

A delay embedding :math:`z_t = (x_t, x_{t+\tau}, \ldots, x_{t+(p-1)\tau})` unfolds the state behind a scalar series
(Takens) when its coordinates say different things (the lag) and are enough (the order):

- `mutual_information`: of :math:`x_t` and :math:`x_{t+\tau}` in nats, with as many samples in each bin (ranks), bias
  not corrected. The lag is its first local minimum; without one the first lag below I(0)/e.
- `false_nearest_neighbours` (Kennel, Brown, Abarbanel 1992): the share of nearest neighbours in m dimensions that
  part in the next: :math:`\Delta / d > r_{tol}` or :math:`\sqrt{d^2 + \Delta^2} / \sigma_x > a_{tol}`, with d their
  distance and :math:`\Delta = |x_{t+m\tau} - x_{s+m\tau}|`. The order is the first m with a share of at most 1 %.
- `cao_e1` (Cao 1997): E(m) is the mean growth of the distance of nearest neighbours (maximum norm) from m to m + 1
  dimensions, E1(m) = E(m+1)/E(m). The order is the first m with E1 within 5 % of its plateau.
- `mdop` (Nichkawde 2013): non-uniform delays, one by one: the delay for which the geometric mean over t of
  :math:`|x_{t-\delta} - x_{s-\delta}| / \|z_t - z_s\|` is largest, s the nearest neighbour of t so far; stop when a
  ratio above 15 is rarer than 1 %.

Several series (trials, channels) share one choice: information, shares and logarithms are averaged over them.
Notation: order p is the embedding dimension E, lag is :math:`\tau` of `carrara2024classification`, Section II-B.

Departures. Nearest neighbours at distance zero (quantized series) say nothing about growth and are passed over in
`cao_e1` and `mdop`. Ranks are those of the whole series, not of the two overlapping parts.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike
from scipy.signal import find_peaks
from scipy.spatial import cKDTree
from scipy.spatial.distance import cdist

from steepest.core.errors import (
    SteepestWarning,
    at_least,
    check,
    interval,
    nonnegative,
    optional,
    positive,
    value_error,
)

__all__ = ["cao_e1", "false_nearest_neighbours", "mdop", "mutual_information", "select_lag", "select_order"]

DENSE = 3000
"""With a Theiler window, all pairs of up to this many points are compared; else a tree finds the neighbours."""
ROWS = 64
FALSE_RATIO = 15.0  # Kennel, Brown, Abarbanel 1992


def mutual_information(x: ArrayLike, max_lag: int, bins: int = 16) -> np.ndarray:
    """Mutual information of a series and itself later, in nats.

    Parameters
    ----------
    x : array_like (T,)
        Equal samples are ranked in their order.
    max_lag : int
        Below T.
    bins : int
        With the same number of samples in each.

    Returns
    -------
    ndarray (max_lag + 1,)
        Entry 0 is the entropy of the bins, ``log(bins)`` where `bins` divides T.

    Raises
    ------
    ValueError
        `x` is not a finite series that varies, or `max_lag` or `bins` do not fit it.

    Examples
    --------
    >>> import numpy as np
    >>> from scipy.signal import lfilter
    >>> noise = np.random.default_rng(0).standard_normal(4000)
    >>> x = lfilter([1], [1, -1.8, 0.9], noise)  # a resonance with a period of 19.6 samples
    >>> int(mutual_information(x, 10).argmin())  # a quarter of it
    5
    """
    return _information(_series(x), max_lag, bins)


def select_lag(X: ArrayLike, max_lag: int = 50, bins: int = 16) -> int:
    """Lag for trials: the first local minimum of their mutual information, averaged over trials and channels.

    Parameters
    ----------
    X : array_like (n, m, T)
    max_lag : int
        Cut to T - 1.
    bins : int
        See `mutual_information`.

    Returns
    -------
    int
        In samples. Without a minimum the first lag below I(0)/e; without that `max_lag`, with a `SteepestWarning`.

    Examples
    --------
    >>> import numpy as np
    >>> from scipy.signal import lfilter
    >>> select_lag(lfilter([1], [1, -1.8, 0.9], np.random.default_rng(0).standard_normal((10, 3, 400))))
    5
    """
    series = _trials(X)
    information = _information(series, min(max_lag, series.shape[1] - 1), bins)
    minima, _ = find_peaks(-information)
    if len(minima):
        return int(minima[0])
    small = np.flatnonzero(information < information[0] / math.e)
    if len(small):
        return int(small[0])
    text = f"mutual information has no minimum and stays above I(0)/e up to lag {len(information) - 1}: raise max_lag"
    warnings.warn(text, SteepestWarning, stacklevel=2)
    return len(information) - 1


def false_nearest_neighbours(
    x: ArrayLike, lag: int, max_order: int = 10, rtol: float = FALSE_RATIO, atol: float = 2.0, theiler: int = 0
) -> np.ndarray:
    """Share of false nearest neighbours in m = 1, ..., `max_order` dimensions.

    Parameters
    ----------
    x : array_like (T,)
    lag : int
    max_order : int
        ``max_order * lag`` is below T - 1.
    rtol, atol : float
        A neighbour is false when the next coordinate parts it by more than `rtol` times its distance, or to more
        than `atol` standard deviations of `x`.
    theiler : int
        Neighbours are more than this many samples away in time.

    Returns
    -------
    ndarray (max_order,)

    Raises
    ------
    ValueError
        `x` is not a finite series that varies, or is too short.

    Examples
    --------
    >>> import numpy as np
    >>> x = [0.3]
    >>> for _ in range(999):
    ...     x.append(1 - 1.4 * x[-1] ** 2 + 0.3 * (x[-2] if len(x) > 1 else 0.0))  # Hénon's map: two dimensions
    >>> false_nearest_neighbours(np.array(x), lag=1, max_order=3).round(2).tolist()
    [0.67, 0.0, 0.0]
    """
    check("rtol", rtol, positive())
    check("atol", atol, positive())
    return _false_shares(_series(x), lag, max_order, rtol, atol, theiler)


def select_order(X: ArrayLike, lag: int, max_order: int = 10, threshold: float = 0.01) -> int:
    """Order for trials: the first with at most `threshold` false neighbours, averaged over trials and channels.

    Parameters
    ----------
    X : array_like (n, m, T)
    lag : int
        In samples.
    max_order : int
    threshold : float

    Returns
    -------
    int
        When no order meets the threshold (noise): the one with the fewest, with a `SteepestWarning`.

    Examples
    --------
    >>> import numpy as np
    >>> t = np.arange(400)
    >>> select_order(np.sin(0.3 * t + np.arange(6)[:, None]).reshape(2, 3, 400), lag=5)
    2
    """
    check("threshold", threshold, interval(0, 1))
    shares = _false_shares(_trials(X), lag, max_order, FALSE_RATIO, 2.0, 0)
    met = np.flatnonzero(shares <= threshold)
    if len(met):
        return int(met[0]) + 1
    best = int(shares.argmin()) + 1
    text = (
        f"{shares.min():.3f} of the neighbours are false at best, above the threshold {threshold:g}: order {best} has"
    )
    warnings.warn(text + " the fewest up to max_order; noise does that", SteepestWarning, stacklevel=2)
    return best


def cao_e1(x: ArrayLike, lag: int, max_order: int = 10) -> np.ndarray:
    """Cao's E1(m) = E(m+1)/E(m) for m = 1, ..., `max_order`; it stops changing where the dimension suffices.

    Parameters
    ----------
    x : array_like (T,)
    lag : int
    max_order : int
        ``(max_order + 1) * lag`` is below T - 1.

    Returns
    -------
    ndarray (max_order,)

    Examples
    --------
    >>> import numpy as np
    >>> e1 = cao_e1(np.sin(0.3 * np.arange(500)) + 0.5 * np.sin(0.73 * np.arange(500)), lag=4, max_order=6)
    >>> bool(e1[0] < 0.5), bool(e1[-1] > 0.8)
    (True, True)
    """
    return _cao(_series(x), lag, max_order)


def mdop(
    x: ArrayLike, max_delay: int = 50, max_order: int = 10, theiler: int | None = None, fnn_threshold: float = 0.01
) -> list[int]:
    """Non-uniform delays by maximizing derivatives on projection.

    Parameters
    ----------
    x : array_like (T,)
    max_delay : int
        T exceeds it by more than the Theiler window.
    max_order : int
        Delays at most, 0 included.
    theiler : int, optional
        Neighbours are more than this many samples away in time; by default `max_delay`.
    fnn_threshold : float
        Stop when fewer neighbours than this share part by a ratio above 15.

    Returns
    -------
    list of int
        Starts with 0, in the order of choice; for ``AugmentedCovariance(delays=...)``.

    Examples
    --------
    >>> import numpy as np
    >>> mdop(np.sin(0.3 * np.arange(500)), max_delay=10)
    [0, 5]
    """
    return _mdop(_series(x), max_delay, max_order, theiler, fnn_threshold)


def select(
    X: np.ndarray, selector: str, order: int | None, lag: int | None, max_order: int, max_lag: int
) -> tuple[int, ...]:
    """Delays for trials X (n, m, T); what is None is chosen by `selector`."""
    series = _trials(X)
    if selector == "mdop":
        return tuple(_mdop(series, max_lag, max_order, None, 0.01))
    if lag is None:
        lag = select_lag(X, max_lag)
    if order is None:
        longest = (series.shape[1] - 2) // lag - 1  # what the length of a trial allows
        if longest < 1:
            raise value_error("X", f"trials of more than {2 * lag + 1} samples for order='auto' at lag {lag}", X)
        most = min(max_order, longest)
        order = select_order(X, lag, most) if selector == "ami-fnn" else _plateau(_cao(series, lag, most))
    return tuple(lag * i for i in range(order))


# -------------------------------------------------------------------------------------------------- mutual information


def _information(series: np.ndarray, max_lag: int, bins: int) -> np.ndarray:
    """Mutual information (max_lag + 1,), averaged over series (s, T)."""
    n, length = series.shape
    check("max_lag", max_lag, at_least(1, integer=True))
    check("bins", bins, at_least(2, integer=True))
    if max_lag >= length:
        raise value_error("max_lag", f"below the length {length} of the series", max_lag)
    if bins > length:
        raise value_error("bins", f"at most the length {length} of the series", bins)
    order = np.argsort(series, axis=1, kind="stable")
    symbols = np.empty((n, length), dtype=np.intp)
    np.put_along_axis(symbols, order, np.broadcast_to(np.arange(length) * bins // length, (n, length)), axis=1)
    first = symbols * bins + np.arange(n)[:, None] * bins**2
    found = np.empty(max_lag + 1)
    for lag in range(max_lag + 1):
        pairs = first[:, : length - lag] + symbols[:, lag:]
        joint = np.bincount(pairs.ravel(), minlength=n * bins**2).reshape(n, bins, bins) / (length - lag)
        entropies = _entropy(joint.sum(axis=2)) + _entropy(joint.sum(axis=1)) - _entropy(joint.reshape(n, -1))
        found[lag] = entropies.mean()
    return found


def _entropy(p: np.ndarray) -> np.ndarray:
    """Entropy in nats of distributions along the last axis."""
    return np.asarray(-np.sum(p * np.log(np.where(p > 0, p, 1.0)), axis=-1))


# -------------------------------------------------------------------------------------------------- nearest neighbours


def _false_shares(series: np.ndarray, lag: int, max_order: int, rtol: float, atol: float, theiler: int) -> np.ndarray:
    """Shares of false neighbours (max_order,), averaged over series (s, T)."""
    _fits(series, lag, max_order, theiler)
    shares = np.empty((len(series), max_order))
    for x, share in zip(series, shares):
        spread = x.std()
        for m, s, distance in _nested(x, lag, max_order, theiler, norm=2, apart=False):
            step = np.abs(x[m * lag :] - x[s + m * lag])
            share[m - 1] = np.mean((step > rtol * distance) | (np.hypot(distance, step) > atol * spread))
    return np.asarray(shares.mean(axis=0))


def _cao(series: np.ndarray, lag: int, max_order: int) -> np.ndarray:
    """E1 (max_order,) from the growth E averaged over series (s, T)."""
    _fits(series, lag, max_order + 1, 0)
    growth = np.empty((len(series), max_order + 1))
    for x, row in zip(series, growth):
        for m, s, distance in _nested(x, lag, max_order + 1, 0, norm=np.inf, apart=True):
            found = np.isfinite(distance)
            step = np.abs(x[m * lag :] - x[s + m * lag])[found]
            row[m - 1] = np.mean(np.maximum(distance[found], step) / distance[found])
    mean = growth.mean(axis=0)
    return np.asarray(mean[1:] / mean[:-1])


def _plateau(e1: np.ndarray) -> int:
    """First order whose E1 is within 5 % of the plateau, the mean of the last three."""
    level = e1[-3:].mean()
    return int(np.flatnonzero(np.abs(e1 - level) <= 0.05 * level)[0]) + 1 if len(e1) else 1


def _mdop(series: np.ndarray, max_delay: int, max_order: int, theiler: int | None, fnn_threshold: float) -> list[int]:
    """Delays for series (s, T); ratios and false neighbours of all of them decide together."""
    check("max_delay", max_delay, at_least(1, integer=True))
    check("max_order", max_order, at_least(1, integer=True))
    check("theiler", theiler, optional(nonnegative(integer=True)))
    check("fnn_threshold", fnn_threshold, interval(0, 1))
    window = max_delay if theiler is None else theiler
    length = series.shape[1]
    if length - max_delay < 2 * window + 2:
        raise value_error("max_delay", f"below {length} - {2 * window + 1}: samples less Theiler windows", max_delay)
    t = np.arange(max_delay, length)
    delays = [0]
    while len(delays) < max_order:
        candidates = np.setdiff1d(np.arange(1, max_delay + 1), delays)
        if len(candidates) == 0:
            break
        logs, counts, false = np.zeros((3, len(candidates)))
        for x in series:
            s, distance = _nearest(np.stack([x[t - d] for d in delays], axis=1), window, norm=2, apart=True)
            found = np.isfinite(distance)
            here, there, scale = t[found], t[s[found]], distance[found]
            for c, delay in enumerate(candidates):
                ratio = np.abs(x[here - delay] - x[there - delay]) / scale
                moved = ratio > 0
                logs[c] += np.log(ratio[moved]).sum()
                counts[c] += moved.sum()
                false[c] += np.sum(ratio > FALSE_RATIO) / len(t) / len(series)
        best = int(np.argmax(logs / np.maximum(counts, 1)))
        if false[best] < fnn_threshold:
            break
        delays.append(int(candidates[best]))
    return delays


def _nested(
    x: np.ndarray, lag: int, max_order: int, theiler: int, *, norm: float, apart: bool
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """For m = 1, ..., `max_order`: m, and the nearest neighbours of the points that have a coordinate to come."""
    for m in range(1, max_order + 1):
        n = len(x) - m * lag
        points = np.stack([x[i * lag : i * lag + n] for i in range(m)], axis=1)
        yield m, *_nearest(points, theiler, norm=norm, apart=apart)


def _nearest(points: np.ndarray, theiler: int, *, norm: float, apart: bool) -> tuple[np.ndarray, np.ndarray]:
    """Index and distance of the neighbour of each point (n, d) that is more than `theiler` places away.

    With `apart`, points at distance zero are passed over; where no other is left the distance is infinite.
    """
    return (_compare if theiler > 0 and len(points) <= DENSE else _search)(points, theiler, norm, apart)


def _compare(points: np.ndarray, theiler: int, norm: float, apart: bool) -> tuple[np.ndarray, np.ndarray]:
    """All pairs, a block of rows at a time."""
    n = len(points)
    index, distance = np.empty(n, dtype=np.intp), np.empty(n)
    metric = "sqeuclidean" if norm == 2 else "chebyshev"
    for start in range(0, n, ROWS):
        rows = slice(start, min(start + ROWS, n))
        D = cdist(points[rows], points, metric)
        for row, t in zip(D, range(start, n)):
            row[max(t - theiler, 0) : t + theiler + 1] = np.inf
        if apart:
            D[D == 0] = np.inf
        index[rows] = D.argmin(axis=1)
        distance[rows] = np.take_along_axis(D, index[rows, None], axis=1)[:, 0]
    return index, np.sqrt(distance) if norm == 2 else distance


def _search(points: np.ndarray, theiler: int, norm: float, apart: bool) -> tuple[np.ndarray, np.ndarray]:
    """A tree, asked for more and more neighbours where the nearest ones are too close in time (or in space)."""
    n = len(points)
    tree = cKDTree(points, balanced_tree=False)
    index, distance = np.zeros(n, dtype=np.intp), np.full(n, np.inf)
    left, k = np.arange(n), 2
    while len(left):
        distances, found = tree.query(points[left], k=k, p=norm)
        good = np.abs(found - left[:, None]) > theiler
        if apart:
            good &= distances > 0
        first, done = good.argmax(axis=1), good.any(axis=1)
        at = np.flatnonzero(done)
        index[left[at]], distance[left[at]] = found[at, first[at]], distances[at, first[at]]
        if k == n:
            break
        left, k = left[~done], min(4 * k, n)
    return index, distance


# --------------------------------------------------------------------------------------------------------------- input


def _fits(series: np.ndarray, lag: int, max_order: int, theiler: int) -> None:
    check("lag", lag, at_least(1, integer=True))
    check("max_order", max_order, at_least(1, integer=True))
    check("theiler", theiler, nonnegative(integer=True))
    if series.shape[1] - max_order * lag < 2 * theiler + 2:
        length = series.shape[1]
        expected = f"at most {(length - 2 * theiler - 2) // lag} with lag {lag} and {length} samples"
        raise value_error("max_order", expected, max_order)


def _series(x: ArrayLike) -> np.ndarray:
    values = np.asarray(x, dtype=np.float64)
    if values.ndim != 1 or len(values) < 3:
        raise value_error("x", "a series (T,) of at least 3 samples", values)
    if not np.isfinite(values).all():
        raise value_error("x", "finite", "NaN or infinity")
    if np.ptp(values) == 0:
        raise value_error("x", "a series that varies", f"the constant {values[0]:g}")
    return values[None]


def _trials(X: ArrayLike) -> np.ndarray:
    """Trials (n, m, T) as series (n m, T)."""
    values = np.asarray(X, dtype=np.float64)
    if values.ndim != 3 or len(values) == 0 or values.shape[2] < 3:
        raise value_error("X", "trials (n, m, T) of at least 3 samples", values)
    if not np.isfinite(values).all():
        raise value_error("X", "finite", "NaN or infinity")
    constant = np.argwhere(np.ptp(values, axis=2) == 0)
    if len(constant):
        raise value_error("X", "channels that vary", f"constant channel {constant[0, 1]} in trial {constant[0, 0]}")
    return values.reshape(-1, values.shape[2])
