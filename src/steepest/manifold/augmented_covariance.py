r"""Covariances of delay-embedded trials, which see time where a spatial covariance sees only space.

A trial X (m channels, T samples) is embedded: row block i is :math:`x(t + i\tau)`, i = 0, ..., p - 1, all cut to the
common length :math:`L = T - (p-1)\tau`. The covariance of these m p rows is the augmented covariance matrix. Its block
(i, j) estimates the lagged autocovariance :math:`\Gamma((i-j)\tau) = E\,x(t + i\tau)\,x(t + j\tau)^T`, and the matrix
is that of the Yule-Walker equations of :math:`x_t = \sum_i A_i x_{t-i\tau} + \epsilon_t`. It is symmetric and positive
definite, so that everything made for covariances (minimum distance to mean, tangent space) applies as it is.

The blocks of one lag :math:`k\tau` are sums of :math:`x(s) x(s + k\tau)^T` over windows of length L that start at
0, tau, 2 tau, ...: they share all but the edge samples. The shared part is multiplied once and the edges are added, so
the work is p products of m x L with L x m, not p^2 / 2, and the embedded trial is never built.

Paper: `carrara2024classification`, Section II. Notation: order p is the paper's embedding dimension, lag is its tau.

Departures. All T - (p-1) tau samples are kept; the authors' transformer in MOABB drops tau more (``compat="moabb"``
does as it does). Covariances are shrunk by default (``"oas"``): MOABB's pipeline file takes `numpy.cov`, which is
singular when m p >= L. `mdop` chooses delays into the past, ``delays=`` looks ahead: the same time differences, with
every block transposed.
"""

from __future__ import annotations

import itertools
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar, cast

import numpy as np
from numpy.typing import ArrayLike
from scipy.linalg import lapack
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.svm import SVC
from sklearn.utils.validation import check_is_fitted

from steepest.core.errors import (
    SteepestWarning,
    at_least,
    boolean,
    check,
    check_params,
    one_of,
    optional,
    positive,
    value_error,
)
from steepest.core.extras import installed, require
from steepest.core.random import numpy_generator
from steepest.manifold._delay_selection import select
from steepest.manifold._riemannian import TangentSpace

T = TypeVar("T")

__all__ = ["AugmentedCovariance", "DelayEmbedding", "augmented_covariance_pipeline"]

DIRECT = ("scm", "cov", "corr", "oas", "lwf")
"""Estimators that need no more than sums of products; the others get the embedded trials of a batch."""
ESTIMATORS = (*DIRECT, "hub", "mcd", "sch", "stu", "tyl")
LIMITS = {
    "estimator": one_of(*ESTIMATORS),
    "block_toeplitz": boolean(),
    "normalise": optional(one_of("trace", "corr")),
    "selector": one_of("ami-fnn", "ami-cao", "mdop"),
    "max_order": at_least(1, integer=True),
    "max_lag": at_least(1, integer=True),
    "sfreq": optional(positive()),
    "compat": optional(one_of("moabb")),
}
BATCH_BYTES = 2**22
"""Size of the matrices that are made at a time: they stay in the cache."""
ILL_CONDITIONED = 1e10
CLIP = 1e-10
"""Smallest eigenvalue kept by ``block_toeplitz``, relative to the mean eigenvalue."""
SELECTION_TRIALS, SELECTION_CHANNELS = 20, 8


class AugmentedCovariance(TransformerMixin, BaseEstimator):
    """Trials to augmented covariance matrices, one step before MDM or a tangent space.

    Parameters
    ----------
    order : int or "auto"
        Number p of delayed copies; 1 is the plain covariance.
    lag : int or "auto"
        Samples tau between them.
    delays : sequence of int, optional
        Non-uniform delays in place of `order` and `lag`, e.g. from `mdop`.
    estimator : str
        ``"oas"`` and ``"lwf"`` shrink; ``"scm"`` (1/L), ``"cov"`` (1/(L-1)) and ``"corr"`` do not; ``"hub"``,
        ``"mcd"``, ``"sch"``, ``"stu"``, ``"tyl"`` are pyRiemann's.
    block_toeplitz : bool
        Average the blocks of equal lag: the literal Yule-Walker matrix. Eigenvalues that fall below 1e-10 of the mean
        one are raised to that and counted in `n_clipped_`.
    normalise : None, "trace" or "corr"
        Divide by the mean eigenvalue, or to a unit diagonal.
    selector : "ami-fnn", "ami-cao" or "mdop"
        How ``"auto"`` chooses, in `fit`, on at most 20 trials and the 8 channels of highest variance. ``"mdop"``
        chooses all delays, whichever of `order` and `lag` is ``"auto"``.
    max_order, max_lag : int
        Limits of that choice.
    sfreq : float, optional
        Sampling frequency in Hz, for `lag_ms_`.
    compat : None or "moabb"
        Keep T - p tau samples as `moabb.pipelines.features.AugmentedDataset` does (all T at order 1).
    n_jobs : int, optional
        Threads over batches of trials, joblib's rules (a Ray backend of joblib is used where one is set); the result
        is the same for any number.
    random_state : int, numpy.random.Generator or None
        Draws the trials for the choice.

    Attributes
    ----------
    order_, lag_ : int
        Used; `lag_` is None when the delays are not multiples of one lag.
    delays_ : tuple of int
    lag_ms_ : float or None
    n_channels_ : int
    n_clipped_ : int
        Eigenvalues raised in the last `transform`.

    Raises
    ------
    ValueError
        An argument is out of its range, X is not a finite (n, m, T) array, trials are too short for the delays, a
        channel is constant, or `transform` gets another number of channels than `fit`.

    Warns
    -----
    SteepestWarning
        The matrices are singular (m p >= L without shrinkage) or conditioned worse than 1e10.

    Examples
    --------
    >>> import numpy as np
    >>> X = np.random.default_rng(0).standard_normal((5, 3, 100))
    >>> acm = AugmentedCovariance(order=4, lag=2).fit(X)
    >>> acm.transform(X).shape, acm.delays_
    ((5, 12, 12), (0, 2, 4, 6))
    """

    def __init__(
        self,
        order: int | str = 4,
        lag: int | str = 8,
        *,
        delays: Sequence[int] | None = None,
        estimator: str = "oas",
        block_toeplitz: bool = False,
        normalise: str | None = None,
        selector: str = "ami-fnn",
        max_order: int = 10,
        max_lag: int = 50,
        sfreq: float | None = None,
        compat: str | None = None,
        n_jobs: int | None = 1,
        random_state: int | np.random.Generator | None = None,
    ) -> None:
        self.order = order
        self.lag = lag
        self.delays = delays
        self.estimator = estimator
        self.block_toeplitz = block_toeplitz
        self.normalise = normalise
        self.selector = selector
        self.max_order = max_order
        self.max_lag = max_lag
        self.sfreq = sfreq
        self.compat = compat
        self.n_jobs = n_jobs
        self.random_state = random_state

    def fit(self, X: ArrayLike, y: object = None) -> AugmentedCovariance:
        """Fix the delays, from these trials (n, m, T) where they are ``"auto"``; `y` is not looked at."""
        check_params(self, LIMITS)
        if self.compat is not None and self.delays is not None:
            raise value_error("delays", "None with compat='moabb'", self.delays)
        trials = _trials(X)
        self.n_channels_ = trials.shape[1]
        order = None if _is_auto(self.order) else _whole("order", self.order)
        lag = None if _is_auto(self.lag) else _whole("lag", self.lag)
        if self.delays is not None:
            self.delays_ = _checked_delays(self.delays)
        elif order is None or lag is None:
            sample = _sample(trials, numpy_generator(self.random_state, name="random_state"))
            self.delays_ = select(sample, self.selector, order, lag, self.max_order, self.max_lag)
        else:
            self.delays_ = tuple(lag * i for i in range(order))
        self.order_ = len(self.delays_)
        self.lag_ = lag if self.delays is None and self.order_ == 1 and lag is not None else _common_lag(self.delays_)
        self.lag_ms_ = None if self.sfreq is None or self.lag_ is None else 1e3 * self.lag_ / self.sfreq
        self.n_clipped_ = 0
        length = self._length(trials.shape[2])
        size = self.n_channels_ * self.order_
        if size >= length and self.estimator in ("scm", "cov", "corr"):
            text = f"{length} samples give {size} x {size} matrices that are singular with estimator={self.estimator!r}"
            warnings.warn(text + ": use 'oas' or 'lwf', or a lower order", SteepestWarning, stacklevel=2)
        return self

    def transform(self, X: ArrayLike) -> np.ndarray:
        """Covariances (n, m p, m p) of trials (n, m, T), float64; rows are ordered delay by delay."""
        check_is_fitted(self, "delays_")
        trials = _trials(X)
        if trials.shape[1] != self.n_channels_:
            raise value_error("X", f"trials of {self.n_channels_} channels, as in fit", trials)
        length = self._length(trials.shape[2])
        size = self.n_channels_ * self.order_
        out = np.empty((len(trials), size, size))
        step = max(1, BATCH_BYTES // (8 * size**2))
        batches = [slice(start, start + step) for start in range(0, len(trials), step)]
        done = self._map(lambda batch: self._fill(trials[batch], length, out[batch]), batches)
        self.n_clipped_ = sum(clipped for clipped, _ in done)
        if size < length:  # else fit has warned
            shrinkage = np.concatenate([s for _, s in done])
            _warn_if_ill_conditioned(out[shrinkage * ILL_CONDITIONED < size])
        return out

    def _length(self, n_samples: int) -> int:
        """Samples L of the embedded trials."""
        span = max(self.delays_)
        if self.compat == "moabb" and self.order_ > 1:
            span += self.delays_[1]
        if span > n_samples - 2:
            what = f"trials of at least {span + 2} samples for the delays {self.delays_}"
            raise value_error("X", what, f"{n_samples} samples", "lower order or lag")
        return n_samples - span

    def _map(self, fn: Callable[[slice], T], batches: list[slice]) -> list[T]:
        if self.n_jobs in (None, 1):
            return [fn(batch) for batch in batches]
        from sklearn.utils.parallel import Parallel, delayed

        return list(Parallel(n_jobs=self.n_jobs, prefer="threads")(delayed(fn)(batch) for batch in batches))

    def _fill(self, X: np.ndarray, length: int, out: np.ndarray) -> tuple[int, np.ndarray]:
        """Write the covariances of a batch; return the eigenvalues raised and the shrinkage of each matrix."""
        if self.estimator in DIRECT:
            shrinkage = _direct(X, self.delays_, length, self.estimator, out)
        else:
            covariances = require(
                "pyriemann.geometry.covariance", "eeg", what=f"estimator={self.estimator!r}"
            ).covariances
            out[:] = covariances(_embedded(X, self.delays_, length), estimator=self.estimator)
            shrinkage = np.zeros(len(X))
        clipped = 0
        if self.block_toeplitz:
            _average_equal_lags(out, self.delays_)
            clipped = _clip(out)
        if self.normalise == "trace":
            out /= np.trace(out, axis1=1, axis2=2)[:, None, None] / out.shape[1]
        elif self.normalise == "corr":
            scale = np.sqrt(np.diagonal(out, axis1=1, axis2=2))
            out /= scale[:, :, None] * scale[:, None, :]
        return clipped, shrinkage

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array, tags.input_tags.three_d_array = False, True
        return tags


class DelayEmbedding(TransformerMixin, BaseEstimator):
    """Trials (n, m, T) to their delay embeddings (n, m p, L), for estimators that need the samples themselves.

    Parameters
    ----------
    order, lag : int
        p copies, tau samples apart.
    delays : sequence of int, optional
        Non-uniform delays in place of both.

    Attributes
    ----------
    delays_ : tuple of int
    n_channels_ : int

    Raises
    ------
    ValueError
        As `AugmentedCovariance`.

    Examples
    --------
    >>> import numpy as np
    >>> DelayEmbedding(order=2, lag=3).fit_transform(np.arange(1.0, 6.0).reshape(1, 1, 5))
    array([[[1., 2.],
            [4., 5.]]])
    """

    def __init__(self, order: int = 4, lag: int = 8, *, delays: Sequence[int] | None = None) -> None:
        self.order = order
        self.lag = lag
        self.delays = delays

    def fit(self, X: ArrayLike, y: object = None) -> DelayEmbedding:
        """Check the arguments against trials `X` (n, m, T)."""
        self.n_channels_ = _trials(X).shape[1]
        if self.delays is not None:
            self.delays_ = _checked_delays(self.delays)
        else:
            lag = _whole("lag", self.lag)
            self.delays_ = tuple(lag * i for i in range(_whole("order", self.order)))
        return self

    def transform(self, X: ArrayLike) -> np.ndarray:
        """Embed trials (n, m, T): row ``k m + c`` is channel c at delay k."""
        check_is_fitted(self, "delays_")
        trials = _trials(X)
        if trials.shape[1] != self.n_channels_:
            raise value_error("X", f"trials of {self.n_channels_} channels, as in fit", trials)
        length = trials.shape[2] - max(self.delays_)
        if length < 1:
            what = f"trials of more than {max(self.delays_)} samples for the delays {self.delays_}"
            raise value_error("X", what, f"{trials.shape[2]} samples", "lower order or lag")
        return _embedded(trials, self.delays_, length)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array, tags.input_tags.three_d_array = False, True
        return tags


def augmented_covariance_pipeline(classifier: str = "tangent-svm", **kw: Any) -> Pipeline:
    """Make the classifier of the paper: augmented covariance, Riemannian step, classifier.

    Parameters
    ----------
    classifier : "tangent-svm", "tangent-lr" or "mdm"
        Support vector machine or logistic regression in the tangent space at the affine-invariant mean, or minimum
        distance to the mean of each class (which needs pyRiemann). pyRiemann's tangent space where it is installed.
    **kw
        Arguments of `AugmentedCovariance`.

    Returns
    -------
    sklearn.pipeline.Pipeline
        Its `param_grid_` is the grid of MOABB's pipeline file (order and lag 1 to 10, C, kernel) for `GridSearchCV`.

    Raises
    ------
    MissingExtra
        ``classifier="mdm"`` without pyRiemann.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> y = np.repeat([0, 1], 20)
    >>> X = rng.standard_normal((40, 2, 201))
    >>> X = X[:, :, 1:] + np.where(y, 0.9, -0.9)[:, None, None] * X[:, :, :-1]  # spectra differ, powers do not
    >>> model = augmented_covariance_pipeline(order=2, lag=1).fit(X[::2], y[::2])
    >>> float(model.score(X[1::2], y[1::2]))
    1.0
    """
    check("classifier", classifier, one_of("tangent-svm", "tangent-lr", "mdm"))
    covariance = AugmentedCovariance(**kw)
    grid: dict[str, list[Any]] = {f"augmentedcovariance__{name}": list(range(1, 11)) for name in ("order", "lag")}
    if classifier == "mdm":
        classification = require("pyriemann.classification", "eeg", what="classifier='mdm'")
        pipeline = make_pipeline(covariance, classification.MDM(metric="riemann"))
    elif classifier == "tangent-svm":
        pipeline = make_pipeline(covariance, _tangent_space(), SVC())
        grid |= {"svc__C": [0.5, 1, 1.5], "svc__kernel": ["rbf", "linear"]}
    else:
        pipeline = make_pipeline(covariance, _tangent_space(), LogisticRegression(max_iter=1000))
        grid |= {"logisticregression__C": [0.5, 1, 1.5]}
    pipeline.param_grid_ = grid
    return pipeline


def _tangent_space() -> Any:
    if installed("pyriemann"):
        return require("pyriemann.tangentspace", "eeg").TangentSpace(metric="riemann")
    return TangentSpace(metric="riemann")


# --------------------------------------------------------------------------------------------------------- covariances


def _direct(X: np.ndarray, delays: tuple[int, ...], length: int, estimator: str, out: np.ndarray) -> np.ndarray:
    """Covariances of a batch (n, m, T) from products of slices; returns the shrinkage (n,)."""
    n, m, n_samples = X.shape
    p, size = len(delays), m * len(delays)
    X = X - X.mean(axis=2, keepdims=True)  # what is left of the mean in a window is small, and so is its rounding
    inside = np.zeros((n_samples, p))
    for i, delay in enumerate(delays):
        inside[delay : delay + length, i] = 1.0
    sums = (X @ inside).mT  # (n, p, m)
    blocks = out.reshape(n, p, m, p, m)
    for i, j, product in _products(X, delays, length):
        product -= sums[:, i, :, None] * (sums[:, j, None, :] / length)
        if i == j:
            product = (product + product.mT) / 2
        blocks[:, i, :, j, :] = product
        if i != j:
            blocks[:, j, :, i, :] = product.mT
    diagonal = np.einsum("nii->ni", out)  # a view
    shrinkage = np.zeros(n)
    if estimator == "corr":
        scale = np.sqrt(diagonal)
        out /= scale[:, :, None] * scale[:, None, :]
        diagonal[:] = 1.0
        return shrinkage
    if estimator == "cov":
        out /= length - 1
        return shrinkage
    mean = diagonal.mean(axis=1) / length  # mean eigenvalue
    if estimator in ("oas", "lwf"):
        square = np.array([np.vdot(C, C) for C in out]) / length**2  # ||C||_F^2
        if estimator == "oas":
            shrinkage = _oas_shrinkage(square, mean, size, length)
        else:
            shrinkage = _lwf_shrinkage(square, mean, size, length, _fourth_moment(X, sums / length, delays, length))
    out *= ((1 - shrinkage) / length)[:, None, None]
    diagonal += (shrinkage * mean)[:, None]
    return shrinkage


def _products(X: np.ndarray, delays: tuple[int, ...], length: int) -> Iterator[tuple[int, int, np.ndarray]]:
    """Sums over a window of x(t + d_i) x(t + d_j)^T, i <= j in the order of delays, as (i, j, (n, m, m))."""
    by_lag = defaultdict(list)
    for i, j in itertools.combinations_with_replacement(np.argsort(delays, kind="stable").tolist(), 2):
        by_lag[delays[j] - delays[i]].append((i, j))
    for lag, pairs in by_lag.items():
        while pairs:
            first = delays[pairs[0][0]]
            shared = [pair for pair in pairs if delays[pair[0]] < first + length]  # their windows overlap
            pairs = pairs[len(shared) :]
            starts = [delays[i] for i, _ in shared]
            yield from ((i, j, product) for (i, j), product in zip(shared, _windows(X, lag, starts, length)))


def _windows(X: np.ndarray, lag: int, starts: list[int], length: int) -> list[np.ndarray]:
    """Sums of x(s) x(s + lag)^T over windows of `length` that begin at increasing `starts` and overlap: (n, m, m) each.

    What all of them share is multiplied once. To it come the pieces before it that a window has, and those behind;
    everything is added and nothing subtracted, so that no accuracy is lost.
    """

    def part(start: int, stop: int) -> np.ndarray:
        return np.asarray(X[:, :, start:stop] @ X[:, :, start + lag : stop + lag].mT)

    total = part(starts[-1], starts[0] + length)
    found = [total]
    for a, b in reversed(list(itertools.pairwise(starts))):
        total = total + part(a, b)
        found.append(total)
    found.reverse()
    behind = np.zeros_like(total)
    for q, (a, b) in enumerate(itertools.pairwise(starts), start=1):
        behind = behind + part(a + length, b + length)
        found[q] = found[q] + behind
    return found


def _oas_shrinkage(square: np.ndarray, mean: np.ndarray, size: int, length: int) -> np.ndarray:
    """Oracle approximating shrinkage, from ||C||_F^2 and the mean eigenvalue (Chen et al. 2010, as in scikit-learn)."""
    alpha = square / size**2
    bound = (length + 1) * (alpha - mean**2 / size)
    return np.where(bound > alpha + mean**2, (alpha + mean**2) / np.where(bound > 0, bound, 1.0), 1.0)


def _lwf_shrinkage(square: np.ndarray, mean: np.ndarray, size: int, length: int, fourth: np.ndarray) -> np.ndarray:
    """Ledoit and Wolf's shrinkage (2004), `fourth` being the mean of ||z_t||^4."""
    delta = square / size - mean**2
    beta = np.minimum((fourth - square) / (size * length), delta)
    return np.where(beta > 0, beta / np.where(delta > 0, delta, 1.0), 0.0)


def _fourth_moment(X: np.ndarray, means: np.ndarray, delays: tuple[int, ...], length: int) -> np.ndarray:
    """Mean over t of ||z_t||^4 for the centered embedded samples z_t: (n,)."""
    power = np.einsum("nmt,nmt->nt", X, X)
    norms = np.zeros((len(X), length))
    for i, delay in enumerate(delays):
        window = slice(delay, delay + length)
        norms += power[:, window] - 2 * (means[:, i, None, :] @ X[:, :, window])[:, 0]
        norms += np.sum(means[:, i] ** 2, axis=1)[:, None]
    return np.asarray(np.mean(norms**2, axis=1))


def _embedded(X: np.ndarray, delays: tuple[int, ...], length: int) -> np.ndarray:
    return np.concatenate([X[:, :, delay : delay + length] for delay in delays], axis=1)


def _average_equal_lags(out: np.ndarray, delays: tuple[int, ...]) -> None:
    """Replace every block (i, j) by the mean of the blocks with its lag, in place."""
    p = len(delays)
    blocks = out.reshape(len(out), p, -1, p, out.shape[1] // p)
    by_lag = defaultdict(list)
    for i, j in itertools.product(range(p), repeat=2):
        if delays[j] >= delays[i]:
            by_lag[delays[j] - delays[i]].append((i, j))
    for pairs in by_lag.values():
        mean = np.mean([blocks[:, i, :, j, :] for i, j in pairs], axis=0)
        for i, j in pairs:
            blocks[:, i, :, j, :] = mean
            blocks[:, j, :, i, :] = mean.mT


def _clip(out: np.ndarray) -> int:
    """Raise eigenvalues below 1e-10 of the mean one, in place; return how many there were."""
    count = 0
    for C in out:
        floor = CLIP * np.trace(C) / len(C)
        if lapack.dpotrf(C - floor * np.eye(len(C)))[1] == 0:
            continue  # all eigenvalues are above
        w, V = np.linalg.eigh(C)
        count += int(np.sum(w < floor))
        clipped = (V * np.maximum(w, floor)) @ V.T
        C[:] = (clipped + clipped.T) / 2
    return count


def _warn_if_ill_conditioned(C: np.ndarray) -> None:
    """Find the first matrix with a condition number above 1e10; eigenvalues only where LAPACK's estimate is near."""
    for matrix in C:
        factor, info = lapack.dpotrf(matrix, lower=1)
        norm = float(np.abs(matrix).sum(axis=0).max())
        if info == 0 and lapack.dpocon(factor, norm, uplo="L")[0] * ILL_CONDITIONED > 10:
            continue  # the estimate is of the 1-norm, which is larger, and hardly ever low by as much as 3
        w = np.linalg.eigvalsh(matrix)
        if w[-1] > ILL_CONDITIONED * w[0]:
            number = f"{w[-1] / w[0]:.1e}" if w[0] > 0 else "infinite (to rounding)"
            text = f"augmented covariances have condition numbers above {ILL_CONDITIONED:g}, the first one {number}"
            warnings.warn(text + ": use 'oas' or 'lwf', or a larger lag", SteepestWarning, stacklevel=3)
            return


# --------------------------------------------------------------------------------------------------------------- input


def _trials(X: ArrayLike) -> np.ndarray:
    trials = np.asarray(X)
    if trials.ndim != 3 or 0 in trials.shape or trials.dtype.kind not in "fiu":
        raise value_error("X", "trials of shape (n, m, T), real numbers", trials)
    trials = trials.astype(np.float64, copy=False)
    low, high = trials.min(axis=2), trials.max(axis=2)
    if not np.isfinite(low + high).all():
        raise value_error("X", "finite", "NaN or infinity")
    constant = np.argwhere(low == high)
    if len(constant) and trials.shape[2] > 1:
        trial, channel = constant[0]
        raise value_error("X", "channels that vary", f"constant channel {channel} in trial {trial}")
    return trials


def _is_auto(value: object) -> bool:
    return isinstance(value, str) and value == "auto"


def _whole(name: str, value: object) -> int:
    limit = at_least(1, integer=True)
    if not limit.kind(value) or not limit.test(value):
        raise value_error(name, f"{limit.expected}" + (' or "auto"'), value)
    return int(cast(int, value))


def _checked_delays(delays: Sequence[int]) -> tuple[int, ...]:
    limit = at_least(0, integer=True)
    found = tuple(delays)
    if not found or not all(limit.kind(d) and limit.test(d) for d in found) or len(set(found)) < len(found):
        raise value_error("delays", "different integers >= 0", delays)
    return tuple(int(d) for d in found)


def _common_lag(delays: tuple[int, ...]) -> int | None:
    steps = set(np.diff(delays).tolist())
    return int(steps.pop()) if len(steps) == 1 else None


def _sample(X: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """At most 20 trials, drawn, of the 8 channels with the highest variance."""
    if len(X) > SELECTION_TRIALS:
        X = X[np.sort(rng.choice(len(X), SELECTION_TRIALS, replace=False))]
    channels = np.argsort(-X.var(axis=2).mean(axis=0), kind="stable")[:SELECTION_CHANNELS]
    return X[:, np.sort(channels)]
