r"""Low-rank recovery by gradient descent on factors whose rank is over-estimated.   find M = F G^T, <A_i, M> = y_i

    D = weight * sum_i (<A_i, F G^T> - y_i) A_i
    symmetric     X <- X - eta (D + D^T)/2 X                        F = G = X
    asymmetric    F <- F - eta D G,   G <- G - eta D^T F            both from the old pair
    rebalanced    asymmetric, and once, near the solution, with F = U S V^T:
                  F <- beta U V^T,    G <- G V S V^T / beta         F G^T stays as it is

With the true rank all of them converge at a rate that the spectrum of M sets. A redundant direction is slow: alone, it
obeys ``x <- x (1 - eta x^2)``, so ``x^2 ~ 1 / (2 eta t)`` and the squared error falls as ``1 / t^2``. Between two
factors descent nearly conserves the imbalance ``F^T F - G^T G``, of the order of the squared scale of the start: it
shrinks the redundant directions of G by ``1 - eta lambda`` a step, lambda the smallest eigenvalue of ``F^T F`` at the
solution. After rebalancing that eigenvalue is ``beta^2``, whatever the start was.

Paper: xiong2024overparameterization, Secs. 1-5; the rebalancing is its Eq. (5.1).
Notation: alpha = `init_scale`, eta = `step_size`, M* = `truth`, A* the adjoint; ``weight`` is 1 / m,
for observed entries n1 n2 / m.
Departures: (1) the paper assumes that a neighborhood of the solution is reached; here the relative residual says so, or
its standing still where noise keeps it up. (2) The right factor V^T only rotates the columns back. (3) After a switch
eta is at most ``0.5 / beta^2`` and ``1 / (beta^2 + ||G||^2)``, half the limit of stability. (4) A spectral start is
offered; it is balanced, so that without rebalancing redundant directions are as slow as in the symmetric case.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.utils.validation import check_is_fitted

from steepest.core.driver import Progress, Stop, drive
from steepest.core.errors import (
    ConvergenceWarning,
    SteepestWarning,
    at_least,
    check,
    interval,
    one_of,
    optional,
    positive,
    value_error,
)
from steepest.landscape._low_rank import (
    gaussian,
    generator_like,
    numerical_rank,
    product_error,
    svd,
    symmetrized,
    top_svd,
)
from steepest.landscape._measurements import Array, LazyProduct
from steepest.landscape._sensing_arguments import as_measurements, checked_array, checked_start, checked_values

if TYPE_CHECKING:
    from scipy.optimize import OptimizeResult

__all__ = ["MatrixSensing", "factored_descent"]

LIMITS = {
    "parametrization": one_of("asymmetric", "symmetric"),
    "method": one_of("rebalanced", "gd"),
    "step_size": optional(positive()),
    "init_scale": optional(positive()),
    "init": one_of("random", "spectral"),
    "tol": interval(0, 1, high_open=True),
    "maxiter": at_least(1, integer=True),
    "switch_tol": positive(),
    "switch_iter": optional(at_least(0, integer=True)),
    "beta": optional(positive()),
    "block_size": optional(positive(integer=True)),
}
DIVERGED = 1e6  # relative residual
LAZY = 20_000_000  # numbers of the product above which it is not formed
STILL, WINDOW, EXPLAINED = 0.99, 50, 0.9  # ours: residual stands still, over so many updates, once it left the origin
STATUS = {Stop.CONVERGED: 0, Stop.MAXITER: 1, Stop.NONFINITE: 2, Stop.CALLBACK: 3}


def factored_descent(
    A: Any,
    y: Array,
    *,
    shape: Sequence[int] | None = None,
    rank: int,
    parametrization: str = "asymmetric",
    method: str = "rebalanced",
    step_size: float | None = None,
    init_scale: float | None = 0.1,
    init: str = "random",
    x0: Any = None,
    tol: float = 1e-10,
    maxiter: int = 5000,
    switch_tol: float = 0.1,
    switch_iter: int | None = None,
    beta: float | None = None,
    seed: Any = None,
    callback: Callable[[OptimizeResult], Any] | None = None,
    truth: Array | None = None,
    block_size: int | None = None,
) -> OptimizeResult:
    r"""Recover a low-rank matrix from linear measurements by descent on its factors (xiong2024overparameterization).

    Parameters
    ----------
    A : array or Tensor (m, n1, n2), (rows, cols), LinearOperator or sparse stack
        Dense matrices A_i, also flattened (m, n1 n2) and also a `numpy.memmap`, which is read by blocks. Index arrays
        (m,) each, or integers (m, 2): observed entries; a pair that occurs twice counts twice. An operator
        (m, n1 n2) on the row-major matrix, of which only ``matvec`` and ``rmatvec`` are called. A sequence of scipy
        sparse matrices (n1, n2), one of shape (m, n1 n2), or a sparse tensor (m, n1, n2).
    y : array or Tensor (m,)
        Measured values. Tensors come with tensors of the same type and device, and the result is of that kind; NumPy
        arrays are computed in their common floating type, float64 for integers.
    shape : (n1, n2), optional
        Needed where A does not tell.
    rank : int
        k, columns of the factors: an upper bound on the rank, up to min(n1, n2).
    parametrization : "asymmetric" or "symmetric"
        ``F G^T``, or ``X X^T`` for a positive semidefinite matrix (n1 = n2).
    method : "rebalanced" or "gd"
        With or without the one modified step; the symmetric form has ``"gd"`` only.
    step_size : float, optional
        eta; by default ``0.25 / s`` with s the largest singular value of ``A*(y)`` (ours: descent is stable to 1 / s).
    init_scale : float or None
        alpha of the random start: F (or X) has entries ``alpha N(0, 1)``, G ``alpha / 3 N(0, 1)`` (the paper's).
        None: ``0.1 sqrt(s)``, less above n of about 80, so that ``||F|| <= sqrt(s)`` and the default step is stable.
    init : "random" or "spectral"
        The theorems' start, or the first k singular triples of ``A*(y)``, values split evenly.
    x0 : array (n, k), or pair of arrays (n1, k), (n2, k), optional
        Start X, or (F, G), instead of `init`; left unchanged.
    tol : float
        On the relative residual ``||A(F G^T) - y|| / ||y||``.
    maxiter : int
        Largest number of updates.
    switch_tol : float
        Rebalance at the first iterate whose relative residual is at most this, or where noise has stopped its fall
        (below 1 % over 50 updates).
    switch_iter : int, optional
        Rebalance at this iterate instead (0 is the start).
    beta : float, optional
        Singular values of F after rebalancing, ``sqrt(s)`` by default.
    seed : int, generator or None
        Of the random start; a NumPy or torch generator, as A is.
    callback : callable, optional
        ``callback(intermediate)`` after every update, with ``x, factors, fun, residual, nit``; a true return value (or
        `StopIteration`) ends the run. ``x`` is formed when it is asked for.
    truth : array (n1, n2), optional
        M*, for the history alone.
    block_size : int, optional
        Rows of a dense A that are read at a time; by default about 1 MB.

    Returns
    -------
    scipy.optimize.OptimizeResult
        ``x`` (n1, n2), a lazy product with ``@``, ``.T``, ``entries`` and ``toarray`` where n1 n2 > 2e7; ``factors``
        (F, G), twice X in the symmetric case; ``fun``, half the weighted squared residual; ``residual``, relative;
        ``nit, success, status`` (0 converged, 1 maxiter, 2 diverged, 3 stopped), ``message``; ``step_size``, the last
        one used; ``switch_iter``, int or None; ``history`` of arrays (nit + 1,): ``"residual"`` and, with `truth`,
        ``"error"``, the Frobenius error; ``seconds``. After a divergence the last good iterate is kept.

    Raises
    ------
    ValueError, TypeError
        An argument outside its limits, arrays of mixed kinds, numbers that are not finite, a symmetric form that is not
        square or is to be rebalanced.

    Warns
    -----
    SteepestWarning
        Equal factors at the start of ``"gd"`` and symmetric measurements: they stay equal for ever.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> M = rng.standard_normal((12, 2)) @ rng.standard_normal((2, 10))
    >>> A = rng.standard_normal((400, 12, 10))
    >>> result = factored_descent(A, np.einsum("mij,ij->m", A, M), rank=5, seed=0)
    >>> result.success, bool(np.allclose(result.x, M))
    (True, True)
    """
    options = locals()
    for name, limit in LIMITS.items():
        check(name, options[name], limit)
    if parametrization == "symmetric" and method == "rebalanced":
        raise ValueError(
            "method must be 'gd' with parametrization='symmetric', got 'rebalanced': one factor has nothing to balance "
            "against; use parametrization='asymmetric', which recovers symmetric matrices too"
        )
    measurements = as_measurements(A, shape, block_size)
    measurements, y = measurements.arranged(checked_values(measurements, y))
    n1, n2 = measurements.shape
    check("rank", rank, interval(1, min(n1, n2), integer=True))
    symmetric = parametrization == "symmetric"
    if symmetric and n1 != n2:
        raise value_error("shape", "square for parametrization='symmetric'", (n1, n2))
    if truth is not None:
        truth = checked_array("truth", truth, (n1, n2), y)
    y_norm = float((y * y).sum() ** 0.5)
    if y_norm == 0:
        return _zeros(y, (n1, n2), rank, step_size, truth)

    generator = generator_like(seed, y)
    noise = [gaussian(generator, y, n, rank) for n in ((n1,) if symmetric else (n1, n2))]
    D = measurements.adjoint(y)
    U, S, V = top_svd(symmetrized(D) if symmetric else D, rank, y, generator)
    sigma = float(S[0])
    if sigma == 0:
        raise value_error("y", "seen by the measurements (its adjoint is zero)", y)
    eta = 0.25 / sigma if step_size is None else float(step_size)
    beta = math.sqrt(sigma) if beta is None else float(beta)
    if x0 is not None:
        F, G = checked_start(x0, symmetric, (n1, n2), rank, y)
    elif init == "spectral":
        signs = (U * V).sum(0) if symmetric else 1  # eigenvalues of the symmetric matrix; negative ones are left out
        F, G = U * (S * signs).clip(0) ** 0.5, V * S**0.5
    else:
        largest = math.sqrt(n1) + math.sqrt(rank)  # singular value of a normal F
        alpha = math.sqrt(sigma) * min(0.1, 1 / largest) if init_scale is None else float(init_scale)
        F, G = alpha * noise[0], alpha / 3 * noise[-1]
    if symmetric:
        G = F

    residuals: list[float] = []
    switched: int | None = None

    def look(F: Array, G: Array, at: int) -> tuple[_Iterate, Progress]:
        r, D = measurements.misfit(F, G, y)
        squared = float((r * r).sum())
        residual = math.sqrt(squared) / y_norm if math.isfinite(squared) else math.inf
        numbers = {"residual": residual}
        if truth is not None:
            numbers["error"] = product_error(F, G, truth)
        fun = measurements.weight * squared / 2 if residual <= DIVERGED else math.inf
        residuals.append(residual)
        return _Iterate(F, G, D, at), Progress((F, G), fun, Stop.CONVERGED if residual <= tol else None, numbers)

    def step(now: _Iterate) -> tuple[_Iterate, Progress]:
        nonlocal eta, switched
        F, G, D = now.F, now.G, now.D
        if method == "rebalanced" and switched is None and _near(residuals, switch_tol, switch_iter):
            F, G = _rebalance(F, G, beta)
            steepest = beta**2 + float(svd(G)[1][0]) ** 2  # curvature of the balanced pair; stable below 2 / steepest
            eta, switched = min(eta, 0.5 / beta**2, 1 / steepest), now.at
        if symmetric:
            F = F - eta / 2 * (D @ F + D.T @ F)
            G = F
        else:
            F, G = F - eta * (D @ G), G - eta * (D.T @ F)
        return look(F, G, now.at + 1)

    first, start = look(F, G, 0)
    if not math.isfinite(start.fun):
        raise value_error("x0" if x0 is not None else "init_scale", f"of a residual <= {DIVERGED:g}", residuals[0])
    if method == "gd" and not symmetric and _stays_symmetric(F, G, first.D):
        warnings.warn(
            "both factors are equal and the measurements symmetric: they stay equal for ever, and redundant directions "
            "fall as slowly as in the symmetric form; give G another scale, or method='rebalanced'",
            SteepestWarning,
            stacklevel=2,
        )
    keep = ("residual",) if truth is None else ("residual", "error")
    told = None if callback is None else _teller(callback, residuals)
    result = drive(step, first, maxiter=maxiter if start.stop is None else 0, callback=told, keep=keep, start=start)
    return _finish(result, start.stop is not None, eta, switched)


@dataclass
class _Iterate:
    F: Array
    G: Array
    D: Any
    at: int


def _rebalance(F: Array, G: Array, beta: float) -> tuple[Array, Array]:
    """Eq. (5.1): all singular values of F become beta, the product stays."""
    U, S, V = svd(F)
    return beta * (U @ V.T), ((G @ V) * S) @ V.T / beta


def _near(residuals: Sequence[float], switch_tol: float, switch_iter: int | None) -> bool:
    """Whether the latest iterate is the one to rebalance."""
    now = residuals[-1]
    if switch_iter is not None:
        return len(residuals) - 1 == switch_iter
    still = len(residuals) > WINDOW and now <= EXPLAINED and now > STILL * residuals[-1 - WINDOW]
    return now <= switch_tol or still


def _stays_symmetric(F: Array, G: Array, D: Any) -> bool:
    if len(F) != len(G) or not bool((F == G).all()):
        return False
    probe = D @ F - D.T @ F  # zero for every F where all A_i are symmetric
    return float((probe * probe).sum()) <= 1e-20 * float(((D @ F) ** 2).sum())


# ---------------------------------------------------------------------------------------------------------- the result


def _product(F: Array, G: Array) -> Any:
    return F @ G.T if len(F) * len(G) <= LAZY else LazyProduct(F, G)


def _teller(callback: Callable[[OptimizeResult], Any], residuals: list[float]) -> Callable[..., None]:
    """Make the driver's callback from ours."""
    from scipy.optimize import OptimizeResult

    class Intermediate(OptimizeResult):
        def __missing__(self, key: str) -> Any:
            if key != "x":
                raise KeyError(key)
            self["x"] = _product(*self["factors"])
            return self["x"]

    def tell(intermediate_result: OptimizeResult) -> None:
        now = intermediate_result
        if callback(Intermediate(factors=now.x, fun=now.fun, residual=residuals[-1], nit=now.nit)):
            raise StopIteration

    return tell


def _finish(result: OptimizeResult, at_once: bool, eta: float, switched: int | None) -> OptimizeResult:
    """Turn the driver's result into ours."""
    stop = Stop.CONVERGED if at_once else Stop(result.status)
    F, G = result.x
    history = {key: np.array(values) for key, values in result.history.items()}
    residual = float(history["residual"][-1])
    result.update(
        x=_product(F, G),
        factors=(F, G),
        residual=residual,
        success=stop is Stop.CONVERGED,
        status=STATUS[stop],
        message={
            Stop.CONVERGED: f"converged: relative residual {residual:.3g} after {result.nit} updates",
            Stop.MAXITER: f"maxiter={result.nit} updates were made and the relative residual is {residual:.3g}; raise "
            "maxiter or tol (measurements with noise never fit exactly)",
            Stop.NONFINITE: f"diverged: after {result.nit} updates the next residual is not finite or above "
            f"{DIVERGED:g}; the last iterate before is kept, take a smaller step_size than {eta:.3g}",
            Stop.CALLBACK: f"the callback asked to stop after {result.nit} updates",
        }[stop],
        step_size=eta,
        switch_iter=switched,
        history=history,
    )
    return result


def _zeros(y: Array, shape: tuple[int, int], rank: int, step_size: float | None, truth: Array | None) -> OptimizeResult:
    """Answer measurements that are all zero."""
    from scipy.optimize import OptimizeResult

    F, G = (y.sum() * gaussian(generator_like(0, y), y, n, rank) for n in shape)
    history = {"residual": np.zeros(1)}
    if truth is not None:
        history["error"] = np.array([product_error(F, G, truth)])
    return OptimizeResult(
        x=_product(F, G),
        factors=(F, G),
        fun=0.0,
        residual=0.0,
        nit=0,
        success=True,
        status=0,
        message="converged: all measurements are zero, and so is the matrix",
        step_size=math.nan if step_size is None else float(step_size),
        switch_iter=None,
        history=history,
        seconds=0.0,
    )


# ------------------------------------------------------------------------------------------------------- the estimator


class MatrixSensing(RegressorMixin, BaseEstimator):
    """Low-rank matrix from linear measurements or observed entries, as a scikit-learn regressor.

    Measurements are samples, `predict` measures the matrix that was found. See `factored_descent` for the algorithm and
    for what A may be. A stack (m, n1, n2) is not scikit-learn's two-dimensional X, so that `check_estimator` cannot
    run; cloning and parameters work as everywhere, and `GridSearchCV` does with a stack, with flattened matrices
    (m, n1 n2) or with index pairs (m, 2) (the last two with ``fit(A, y, shape=(n1, n2))``).

    Parameters
    ----------
    rank : int
        Upper bound on the rank.
    parametrization, method, step_size, init_scale
        As in `factored_descent`.
    init : "spectral" or "random"
        Spectral by default: a start that is near already where measurements are many.
    tol : float
        On the relative residual.
    max_iter : int
        Largest number of updates.
    random_state : int, numpy.random.Generator, numpy.random.RandomState or None
        Of a random start.

    Attributes
    ----------
    matrix_ : array (n1, n2)
        Lazy above 2e7 numbers, as the solver's ``x``.
    factors_ : (F, G)
    n_iter_ : int
    converged_ : bool
    rank_ : int
        Singular values of the matrix above ten times the relative residual of its Frobenius norm.
    result_ : scipy.optimize.OptimizeResult

    Warns
    -----
    ConvergenceWarning
        The budget ended, or descent diverged.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> M = rng.standard_normal((60, 2)) @ rng.standard_normal((2, 50))
    >>> rows, cols = rng.integers(0, M.shape, (2000, 2)).T
    >>> model = MatrixSensing(rank=4, tol=1e-6).fit((rows, cols), M[rows, cols], shape=M.shape)
    >>> model.converged_, model.rank_, bool(np.abs(model.matrix_ - M).max() < 1e-3)
    (True, 2, True)
    """

    def __init__(
        self,
        rank: int = 5,
        *,
        parametrization: str = "asymmetric",
        method: str = "rebalanced",
        step_size: float | None = None,
        init: str = "spectral",
        init_scale: float | None = 0.1,
        tol: float = 1e-8,
        max_iter: int = 5000,
        random_state: Any = None,
    ) -> None:
        self.rank = rank
        self.parametrization = parametrization
        self.method = method
        self.step_size = step_size
        self.init = init
        self.init_scale = init_scale
        self.tol = tol
        self.max_iter = max_iter
        self.random_state = random_state

    def fit(self, A: Any, y: Array, shape: Sequence[int] | None = None) -> MatrixSensing:
        """Find the matrix.

        Parameters
        ----------
        A : array (m, n1, n2), (m, n1 n2), (rows, cols), operator or sparse stack
        y : array (m,)
        shape : (n1, n2), optional
            Needed where A does not tell.

        Raises
        ------
        ValueError, TypeError
            As `factored_descent`.
        """
        check("max_iter", self.max_iter, LIMITS["maxiter"])
        result = factored_descent(
            A,
            y,
            shape=shape,
            rank=self.rank,
            parametrization=self.parametrization,
            method=self.method,
            step_size=self.step_size,
            init=self.init,
            init_scale=self.init_scale,
            tol=self.tol,
            maxiter=self.max_iter,
            seed=self.random_state,
        )
        self.result_ = result
        self.matrix_, self.factors_ = result.x, result.factors
        self.n_iter_, self.converged_ = result.nit, result.success
        F, G = result.factors
        self.rank_ = numerical_rank(F, G, result.residual)
        if not result.success:
            text = result.message.replace("maxiter", "max_iter")
            warnings.warn(f"MatrixSensing did not converge: {text}", ConvergenceWarning, stacklevel=2)
        return self

    def predict(self, A: Any) -> Array:
        """Measure the matrix that was found, (m,)."""
        check_is_fitted(self)
        F, G = self.factors_
        values: Array = as_measurements(A, (len(F), len(G))).forward(F, G)
        return values
