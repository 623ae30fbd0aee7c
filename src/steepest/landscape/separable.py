r"""Find a hyperplane that separates two classes, by logistic regression with arbitrarily large steps.

Wanted is theta with margins :math:`m_i = y_i a_i^T \theta > 0` for all samples :math:`(a_i, y_i = \pm 1)`. The mean
logistic loss f has the gradient :math:`-\frac1n \sum_i w_i y_i a_i`, :math:`w_i = 1 / (1 + e^{m_i})`. From theta = 0:

    plain       theta <- theta + step_size sum_i w_i y_i a_i / n                  gradient descent, any step_size
    normalized  theta <- theta + step_size sum_i w_i y_i a_i / sum_i w_i          n times better bound

until all margins are positive. In units of the step size both have a limit as it grows: every w_i becomes 1 where
:math:`m_i \le 0` and 0 elsewhere (at the start all are 1/2), which is the batch perceptron and its normalized form.
``step_size=inf`` runs these. With largest norm R and margin :math:`\mu = \max_{\|\theta\|=1} \min_i m_i` the normalized
method needs at most :math:`R^2/\mu^2 + 2 \log(2n-1) / (\gamma \mu^2)` updates, the batch perceptron
:math:`n R^2 / \mu^2`, and in the worst case a multiple of n. The loss says little on the way: larger steps have higher
losses and arrive earlier.

Paper: tyurin2025logistic, Sections 3-6.
Notation: gamma is `step_size`, theta is ``(coef_, intercept_)``, a_i a row of X (with a constant 1 for the intercept).
Departures: (1) The paper's normalization beta_t tends to n/\|S\|, S the misclassified, where its text has \|S\|.
(2) Iterates are kept in units of the step size, so that no finite one overflows on the way. (3) ``tol_margin`` goes on
for a wider margin; once nothing is misclassified, the limit of the normalized method moves by the sample of the
smallest margin, and the batch perceptron stands still. (4) Data that cannot be separated give the iterate with the
fewest errors (the paper's theorems have nothing to say about them).
"""

from __future__ import annotations

import math
import warnings
from functools import reduce
from numbers import Integral, Real
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import expit, log_expit, logsumexp
from sklearn.base import BaseEstimator
from sklearn.linear_model._base import LinearClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight, validate_data

from steepest.core.errors import (
    ConvergenceWarning,
    Limit,
    at_least,
    boolean,
    check,
    check_params,
    nonnegative,
    optional,
    positive,
    value_error,
)
from steepest.landscape._margin_sums import Sums, _block_sums, decision
from steepest.landscape._row_blocks import Matrix, RowBlocks, is_separable

__all__ = ["LargeStepLogisticRegression", "perceptron_bound", "worst_case_data"]

STEP_SIZE = Limit(
    "a number > 0, or infinity", lambda v: isinstance(v, Real) and not isinstance(v, bool), lambda v: float(v) > 0
)
LIMITS = {
    "step_size": STEP_SIZE,
    "normalize": boolean(),
    "max_iter": at_least(1, integer=True),
    "fit_intercept": boolean(),
    "tol_margin": nonnegative(),
    "check_separable": boolean(),
    "record_history": boolean(),
    "n_jobs": optional(
        Limit("a nonzero integer", lambda v: isinstance(v, Integral) and not isinstance(v, bool), lambda v: v != 0)
    ),
}
UNDERFLOW = 1e-200
"""Below this sum of weights they are taken relative to the largest one, in logarithms."""


class LargeStepLogisticRegression(LinearClassifierMixin, BaseEstimator):
    r"""A linear classifier that stops when it separates the training data, and says so when it does not.

    Several classes are one-vs-rest, an independent run each, advanced together; those that are done are dropped.

    Parameters
    ----------
    step_size : float
        gamma, any number > 0, or ``inf`` for the limit (batch perceptrons), where coefficients are in units of gamma.
        The default of 100 with `normalize` is the robust pair of the paper's Table 1.
    normalize : bool
        Divide by the sum of the weights rather than by n.
    max_iter : int
        Most updates a class; ours, far above what the data of the paper need.
    fit_intercept : bool
        Append a constant 1 to every sample. It counts in R and in the margin.
    tol_margin : float
        Go on until every margin is at least ``tol_margin * norm(theta) * R``; 0 stops at the first separation. It must
        lie below :math:`\mu / R`.
    check_separable : bool
        Decide by a linear program (HiGHS) before fitting, where X has at most 1e7 entries.
    record_history : bool
        Keep loss, accuracy and norm of the gradient of every iterate.
    n_jobs : int, optional
        Threads that share the blocks of rows (8 MB each; None is one thread, -1 all cores). The result is the same for
        any number; data of a single block gain nothing. Leave it at None where the linear algebra library
        has threads of its own.

    Attributes
    ----------
    coef_ : (1 or K, d) array
        In the dtype of X (float32 or float64).
    intercept_ : (1 or K,) array
    classes_ : (K,) array
        With two classes the second is the positive one.
    n_iter_ : (1 or K,) int array
        Updates.
    separated_ : (1 or K,) bool array
        Whether all margins of the returned coefficients are > 0, in float64 and in the arithmetic of `predict`.
    margin_ : (1 or K,) array
        :math:`\min_i y_i a_i^T \theta / \|\theta\|`, float64; negative or 0 where not separated.
    separable_ : list of True, False or None
        The program's answer for each class; None without one.
    history_ : list of dict
        With `record_history`, for each class arrays ``loss``, ``accuracy``, ``grad_norm`` of length n_iter + 1: entry t
        is of the iterate after t updates. ``inf`` has no loss (NaN), and gradients in the limit.
    n_features_in_ : int

    Raises
    ------
    ValueError
        An argument out of its range, a single class, X not finite, negative weights, ``tol_margin`` with
        ``step_size=inf, normalize=False`` (which stands still once the data are separated), or a `step_size` with
        which decisions leave the range of X's dtype.
    FloatingPointError
        Sums over X leave the range of its dtype.

    Warns
    -----
    ConvergenceWarning
        Some class is not separated, or not by `tol_margin`, after `max_iter` updates: then it has the iterate with the
        fewest misclassified (by weight), the first such (with `tol_margin` the widest of those that separate).

    See Also
    --------
    perceptron_bound : Updates that suffice.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> X, y = load_digits(n_class=4, return_X_y=True)
    >>> model = LargeStepLogisticRegression().fit(X / 16, y)
    >>> bool(model.separated_.all()), model.score(X / 16, y)
    (True, 1.0)
    """

    def __init__(
        self,
        step_size: float = 100.0,
        *,
        normalize: bool = True,
        max_iter: int = 10_000,
        fit_intercept: bool = True,
        tol_margin: float = 0.0,
        check_separable: bool = False,
        record_history: bool = False,
        n_jobs: int | None = None,
    ) -> None:
        self.step_size = step_size
        self.normalize = normalize
        self.max_iter = max_iter
        self.fit_intercept = fit_intercept
        self.tol_margin = tol_margin
        self.check_separable = check_separable
        self.record_history = record_history
        self.n_jobs = n_jobs

    def fit(self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None) -> LargeStepLogisticRegression:
        """Run from theta = 0 until the rows are separated.

        Parameters
        ----------
        X : (n, d) array or sparse matrix
            Sparse ones are worked on as CSR, nothing is made dense.
        y : (n,) array
            Labels of at least two classes.
        sample_weight : (n,) array, optional
            Factors of the w_i: integers are the same as so many equal rows, rows of weight 0 do not count at all.
        """
        check_params(self, LIMITS)
        if math.isinf(self.step_size) and not self.normalize and self.tol_margin > 0:
            raise value_error(
                "tol_margin", "0 with step_size=inf and normalize=False", self.tol_margin, "normalize=True goes on"
            )
        A: Matrix
        A, labels = validate_data(self, X, y, accept_sparse="csr", dtype=[np.float64, np.float32])
        if labels.dtype.kind not in "biu":  # whole numbers are labels, and the check takes as long as ten updates
            check_classification_targets(labels)
        weight: Any = None
        if sample_weight is not None:
            weight = _check_sample_weight(sample_weight, A, dtype=np.float64, ensure_non_negative=True)
            counts = weight > 0
            A, labels, weight = A[counts], labels[counts], weight[counts]
        self.classes_, codes = np.unique(labels, return_inverse=True)
        if len(self.classes_) < 2:
            found = f"{len(self.classes_)} class: {self.classes_.tolist()}"
            raise ValueError(f"y must have at least two classes, got {found}")
        n_columns = 1 if len(self.classes_) == 2 else len(self.classes_)
        self.separable_: list[bool | None] = [None] * n_columns
        if self.check_separable:
            ones = [np.where(codes == k, 1.0, -1.0) for k in ([1] if n_columns == 1 else range(n_columns))]
            self.separable_ = [is_separable(A, signs, self.fit_intercept) for signs in ones]
        rows = RowBlocks(A, codes, n_columns, weight, _n_threads(self.n_jobs))
        with rows.threads():
            run = _Descent(rows, self).run()
        d = A.shape[1]
        self.coef_ = np.ascontiguousarray(run.theta[:d].T)
        self.intercept_ = run.theta[d] if self.fit_intercept else np.zeros(n_columns, A.dtype)
        self.n_iter_, self.separated_, self.margin_ = run.n_iter, run.separated, run.margin
        if self.record_history:
            self.history_ = [{key: np.array(values) for key, values in one.items()} for one in run.history]
        return self

    def predict_proba(self, X: ArrayLike) -> np.ndarray:
        """Logistic function of the decision (n, 2), or one-vs-rest normalized (n, K).

        The scale is the step size's, not that of the data: large steps give zeros and ones, ``inf`` units of its own.
        """
        decision = self.decision_function(X)
        if decision.ndim == 1:
            return np.column_stack([expit(-decision), expit(decision)])
        logarithms = log_expit(decision)  # their sum may be too small for a quotient
        return np.exp(logarithms - logsumexp(logarithms, axis=1, keepdims=True))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags


def worst_case_data(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Give n points in the plane on which the plain method needs a multiple of n updates without an intercept.

    One sample (0.5, -1) of class +1, n - 1 samples (-0.5, -1) of class -1 (Section 5): R^2 = 1.25, mu = 0.5.

    Returns
    -------
    X : (n, 2) array
    y : (n,) int array

    Examples
    --------
    >>> X, y = worst_case_data(1_000)
    >>> model = LargeStepLogisticRegression(normalize=False, fit_intercept=False).fit(X, y)
    >>> int(model.n_iter_[0]), int(model.set_params(normalize=True).fit(X, y).n_iter_[0])
    (308, 2)
    """
    check("n", n, at_least(2, integer=True))
    X = np.tile([-0.5, -1.0], (n, 1))
    X[0, 0] = 0.5
    y = np.full(n, -1)
    y[0] = 1
    return X, y


def perceptron_bound(
    R: float, mu: float, n: int | None = None, step_size: float = math.inf, normalize: bool = True
) -> float:
    r"""Give the updates that suffice for separable data.

    Normalized: :math:`R^2/\mu^2 + 2 \log(2n-1) / (\gamma \mu^2)`. Plain: n times :math:`R^2/\mu^2` at ``inf``; at a
    finite step size twice n times the normalized bound (ours, by the same argument: while a sample is misclassified
    the mean weight is at least 1 / (2n)).

    Parameters
    ----------
    R : float
        Largest norm of a sample, its constant 1 included with an intercept.
    mu : float
        Margin of the data, :math:`\max_{\|\theta\|=1} \min_i y_i a_i^T \theta`.
    n : int, optional
        Samples (or the sum of their weights); may be left out for the normalized limit.
    step_size : float
        gamma, in (0, inf].
    normalize : bool

    Examples
    --------
    >>> perceptron_bound(2.0, 0.5), perceptron_bound(2.0, 0.5, n=10, normalize=False)
    (16.0, 160.0)
    """
    check("R", R, positive())
    check("mu", mu, positive())
    check("n", n, optional(at_least(1)))
    check("step_size", step_size, STEP_SIZE)
    check("normalize", normalize, boolean())
    if n is None and not (normalize and math.isinf(step_size)):
        raise value_error("n", "given, except for the normalized limit", n)
    samples = 1.0 if n is None else float(n)
    bound = (R / mu) ** 2 + (2 * math.log(2 * samples - 1) / (step_size * mu**2) if math.isfinite(step_size) else 0.0)
    if normalize:
        return bound
    return samples * bound if math.isinf(step_size) else 2 * samples * bound


# ----------------------------------------------------------------------------------------------------------- the loop


class _Descent:
    """The run of all classes: `theta`, `n_iter`, `separated`, `margin`, `history` afterwards.

    `trace`, where it is given, gets every iterate (d or d + 1, classes that are left), in units of the step size.
    """

    def __init__(
        self, rows: RowBlocks, settings: LargeStepLogisticRegression, trace: list[np.ndarray] | None = None
    ) -> None:
        self.rows, self.settings, self.trace = rows, settings, trace
        d = rows.X.shape[1] + settings.fit_intercept
        k = rows.n_columns
        self.theta = np.zeros((d, k), rows.X.dtype)
        self.n_iter = np.full(k, settings.max_iter)
        self.separated, self.margin = np.zeros(k, dtype=bool), np.zeros(k)
        keys = ("loss", "accuracy", "grad_norm")
        self.history: list[dict[str, list[float]]] = [{key: [] for key in keys} for _ in range(k)]
        self._wanted = settings.tol_margin * rows.radius(settings.fit_intercept) if settings.tol_margin > 0 else 0.0

    def run(self) -> _Descent:
        own, rows = self.settings, self.rows
        theta = np.zeros(self.theta.shape)  # in units of the step size
        active = np.arange(rows.n_columns)
        pocket = _Pocket(theta, widest=self._wanted > 0)
        for t in range(own.max_iter + 1):
            sums = self._sums(theta, active, start=t == 0)
            if self.trace is not None:
                self.trace.append(theta)
            if own.record_history:
                self._record(active, sums)
            if (passed := self._passed(theta, sums)).any():
                left = ~self._store(t, theta, active, passed)
                if not left.any():
                    return self
                theta, active, sums, pocket = theta[:, left], active[left], sums.only(left), pocket.only(left)
            if t > 0:
                pocket.put(theta, sums)
            if t < own.max_iter:
                if own.normalize and sums.weight.min() < UNDERFLOW:
                    sums = self._sums(theta, active, relative_to=sums.lowest)
                theta = theta + sums.gradient / (sums.weight if own.normalize else rows.total)
        self._give_up(active, pocket)
        return self

    def _sums(self, theta: np.ndarray, active: np.ndarray, **how: Any) -> Sums:
        own = self.settings

        def block(X: Matrix, y: np.ndarray, weight: np.ndarray | None) -> Sums:
            return _block_sums(X, y, theta, weight, step_size=own.step_size, with_loss=own.record_history, **how)

        sums = reduce(Sums.plus, self.rows.over(active, block))
        if not sums.lowest.min() > -math.inf:  # NaN too
            raise FloatingPointError(f"margins are not finite in {self.rows.X.dtype}: scale the columns of X")
        return sums

    def _passed(self, theta: np.ndarray, sums: Sums) -> np.ndarray:
        """Whether the iterate seems to be what was asked for."""
        return sums.lowest > 0 if self._wanted == 0 else sums.lowest >= self._wanted * _norms(theta)

    def _store(self, t: int, theta: np.ndarray, active: np.ndarray, passed: np.ndarray) -> np.ndarray:
        """Keep the results of columns that pass with the coefficients as they are returned too; mark these."""
        coefficients, separated, margin = self._judge(theta[:, passed], active[passed])
        sure = separated & (margin >= self._wanted)
        stored = passed.copy()
        stored[passed] = sure
        classes = active[stored]
        self.theta[:, classes], self.margin[classes] = coefficients[:, sure], margin[sure]
        self.n_iter[classes], self.separated[classes] = t, True
        return stored

    def _judge(self, theta: np.ndarray, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Coefficients as returned (scaled, in X's dtype), whether they separate, and their margins in float64."""
        step_size, dtype = self.settings.step_size, self.rows.X.dtype
        with np.errstate(over="ignore"):
            coefficients = (theta if math.isinf(step_size) else step_size * theta).astype(dtype)
        precise = coefficients.astype(np.float64)

        def lowest(X: Matrix, y: np.ndarray, weight: np.ndarray | None) -> np.ndarray:
            with np.errstate(over="ignore", invalid="ignore"):
                predicted = (y * decision(X, coefficients)).min(axis=0)
            exact = predicted if dtype == np.float64 else (y * decision(X.astype(np.float64), precise)).min(axis=0)
            return np.array([predicted, exact])

        predicted, exact = reduce(np.minimum, self.rows.over(columns, lowest))
        if not np.isfinite(predicted).all() or not np.isfinite(precise).all():
            cure = "step_size=inf gives coefficients in units of it"
            raise value_error("step_size", f"such that decisions are finite in {dtype}", step_size, cure)
        norm = _norms(precise)
        margin = np.divide(exact, norm, out=np.zeros(len(norm)), where=norm > 0)
        return coefficients, (predicted > 0) & (exact > 0), margin

    def _record(self, active: np.ndarray, sums: Sums) -> None:
        n = self.rows.total
        values = sums.loss / n, 1 - sums.wrong / n, np.linalg.norm(sums.gradient, axis=0) / n
        for column, k in enumerate(active):
            for history, value in zip(self.history[k].values(), values):
                history.append(float(value[column]))

    def _give_up(self, active: np.ndarray, pocket: _Pocket) -> None:
        coefficients, separated, margin = self._judge(pocket.theta, active)
        self.theta[:, active], self.separated[active], self.margin[active] = coefficients, separated, margin
        which = "the classes are" if self.rows.n_columns == 1 else f"{len(active)} of {len(self.margin)} classes are"
        if separated.all():
            what = f"separated by less than tol_margin asks for (margin {margin.min():.3g}, not {self._wanted:.3g})"
        else:
            share = float(pocket.wrong.max()) / self.rows.total
            what = f"not separated (at best {share:.3g} of the samples are misclassified)"
        cure = "raise max_iter, or see with check_separable=True whether they can be"
        text = f"after max_iter={self.settings.max_iter} updates {which} {what}: {cure}"
        warnings.warn(text, ConvergenceWarning, stacklevel=4)


class _Pocket:
    """The iterate with the fewest misclassified; `widest` prefers wider margins among those that separate."""

    def __init__(self, theta: np.ndarray, widest: bool) -> None:
        self.theta, self._widest = theta.copy(), widest
        self.wrong, self._margin = np.full(theta.shape[1], math.inf), np.full(theta.shape[1], -math.inf)

    def put(self, theta: np.ndarray, sums: Sums) -> None:
        """Look at one more iterate."""
        better = sums.wrong < self.wrong
        if self._widest:
            margin = sums.lowest / np.maximum(_norms(theta), np.finfo(float).tiny)
            better |= (sums.wrong == 0) & (margin > self._margin)
            self._margin = np.where(better, margin, self._margin)
        if better.any():
            self.theta[:, better], self.wrong[better] = theta[:, better], sums.wrong[better]

    def only(self, columns: np.ndarray) -> _Pocket:
        """Some columns."""
        self.theta, self.wrong, self._margin = self.theta[:, columns], self.wrong[columns], self._margin[columns]
        return self


def _norms(theta: np.ndarray) -> np.ndarray:
    """Norms of the columns, of any size."""
    peak = np.maximum(np.abs(theta).max(axis=0), np.finfo(float).tiny)
    return peak * np.linalg.norm(theta / peak, axis=0)


def _n_threads(n_jobs: int | None) -> int:
    if n_jobs in (None, 1):
        return 1
    from joblib import effective_n_jobs  # type: ignore[import-untyped]

    return int(effective_n_jobs(n_jobs))
