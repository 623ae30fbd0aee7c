r"""Train a two-layer ReLU network to its global optimum, by a convex program over activation patterns.

The network :math:`f(x) = \sum_j (u_j^T x)_+ a_j` with penalty :math:`\frac\beta2 \sum_j (\|u_j\|^2 + a_j^2)` has the
same optimum as

    minimize    sum_k loss(f_k, y_k) + beta sum_i (||v_i|| + ||w_i||),    f = sum_i D_i X (v_i - w_i)
    subject to  (2 D_i - I) X v_i >= 0,  (2 D_i - I) X w_i >= 0

when the D_i are all activation patterns of the data (diagonal matrices of zeros and ones) and the network is wide
enough. Each v_i gives a neuron v_i / sqrt||v_i|| with output weight sqrt||v_i||, each w_i one with -sqrt||w_i||. With a
sample of patterns the value is an upper bound, and the best one for these patterns: every fit has a duality gap.

Solvers: ``admm`` (`_admm.py`, exact primal steps, squared loss), ``admm-rbcd`` (primal steps by random block descent,
any loss), ``scp`` (`_sampled_program.py`: random unit directions and an l1 penalty, no constraints), ``pdhg``
(`_robust.py`: primal-dual steps, any loss, and the exact worst case of perturbations of each feature by up to
``adversarial_radius``).

Paper: bai2023efficient; the network's losses are sums over samples, as there.
Notation: gamma_a / rho is `dual_step`, epsilon `adversarial_radius`, S `perturbations_per_direction`.
Departures: (1) The exact primal step factors n^2 numbers rather than (2dP)^2. (2) Block descent moves along gradients
that are multiplied with (I + X'X)^-1 / rho, and its Armijo rule compares with the predicted decrease. (3) rho follows
the residuals, iterations with `dual_step` 1 are extrapolated (`_anderson.py`), and where they are affordable
interior-point steps take over after twenty (`_interior.py`). (4) The hinge is smoothed in block
descent, by a width that shrinks with its tolerance. (5) Adversarial programs are solved by primal-dual steps and, where
small enough, finished by Newton steps along the central path (`_barrier.py`); patterns that no vector keeps over all
boxes are left out, and a sample has the pattern of affine functions when there is an intercept. (6) Returned vectors
are projected onto their cones, so that objective and gap are those of a feasible point. (7) `required_patterns` is
derived from the scenario approach directly. (8) Certified radii add the change of neurons that cannot switch exactly.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy.special import expit
from sklearn.base import ClassifierMixin, RegressorMixin
from sklearn.utils.metaestimators import available_if
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import validate_data

from steepest.convex import _losses
from steepest.convex._estimator import ConvexReLUNetwork
from steepest.convex._patterns import enumerate_patterns, required_patterns, sample_patterns
from steepest.convex._program import Program
from steepest.core.errors import check, nonnegative, one_of, positive, value_error

__all__ = [
    "ConvexReLUClassifier",
    "ConvexReLURegressor",
    "convex_objective",
    "enumerate_patterns",
    "required_patterns",
    "sample_patterns",
]


class ConvexReLUClassifier(ClassifierMixin, ConvexReLUNetwork):
    """A two-layer ReLU network trained to the global optimum, with a certificate.

    Several classes are one against the rest, with the same patterns.

    Parameters
    ----------
    loss : str
        "logistic" (log(1 + exp(-2 y f)), the paper's cross-entropy), "hinge" or "squared", of y = -1 or 1.
    beta : float
        Weight of the penalty, in units of the loss, which is a sum over samples. Ours; the authors' code has 1e-4.
    n_patterns : int, optional
        Size of the sample; the smaller of 10 n and 500 by default, and max(4 n, 400) directions for ``scp``.
    patterns : "sample", "exact", "perturbed" or (P, n) bool array
        ``exact`` takes all patterns (`enumerate_patterns`), ``perturbed`` also those of perturbed samples, as does
        ``sample`` where `adversarial_radius` > 0.
    solver : "auto", "admm", "admm-rbcd", "scp" or "pdhg"
        ``auto`` is pdhg against perturbations, admm for the squared loss up to 4000 samples, else admm-rbcd.
    adversarial_radius : float
        Each feature of each sample may move by so much, in the units of X (after a scaler in a `Pipeline`, in its
        units). The intercept's column stays.
    perturbations_per_direction : int
        Perturbed copies for each direction of a sample of patterns.
    fit_intercept : bool
        Append a column of ones; the penalty counts it.
    rho : float, optional
        Where ADMM's penalty starts; 1 by default (the authors' value). It follows the residuals.
    dual_step : float, optional
        gamma_a / rho; 1 with exact primal steps, 1/3 with random blocks (the authors' value).
    rbcd_block : int
        Patterns in a random block (authors: 1; 3 for their largest data).
    rbcd_tol : float
        Mean decrease of the primal problem at which random blocks stop; tightened by 5 % after each iteration.
    max_iter : int
        Most (outer) iterations.
    tol : float
        Stop when the certified gap is at most this share of the objective.
    warm_start : bool
        Go on from the last fit, with its patterns, when X is the same.
    device : str
        Of PyTorch, where the solver works, in float64.
    backend : "serial" or "ray"
        ``ray`` fits the outputs of several classes side by side; of one output it shares out the patterns, for exact
        ADMM alone, without interior-point steps after it.
    n_jobs : int, optional
        Workers of that backend.
    random_state : int, generator, RandomState or None
        Of patterns, directions and blocks.
    verbose : int
        Log progress to ``steepest.convex`` every 100 / verbose iterations.

    Attributes
    ----------
    patterns_ : (P, n) bool array
    v_, w_ : (P, d) arrays, or (K, P, d)
        Feasible group-sparse vectors of the convex program; d counts the intercept.
    hidden_coef_ : (m, d) array
    hidden_intercept_ : (m,) array
    output_coef_ : (m,) array, or (K, m)
        The network without its zero neurons.
    objective_ : float, or list of K
        Convex objective at `v_`, `w_`; where those are too far from their cones, the network's own.
    nonconvex_objective_ : float, or list of K
        Of the network, at the unperturbed samples; never above `objective_`.
    duality_gap_ : float, or list of K
        `objective_` minus a lower bound on the optimum for these patterns.
    constraint_violation_ : float, or list of K
        Largest missed constraint of the solver's iterate, before its projection.
    dual_violation_ : float, or list of K
        Share of 10000 fresh directions that violate the dual constraint (scp; NaN for others).
    n_iter_ : int
    rho_ : float, or list of K
        ADMM's last penalty (NaN for others).
    history_ : dict of lists, or list of K
        ``objective, primal_residual, dual_residual, time, accuracy`` of each iteration (accuracy of a regression is its
        coefficient of determination).
    converged_ : bool
    classes_ : (K,) array
    n_features_in_ : int

    Raises
    ------
    ValueError
        An argument out of its range, a solver that does not fit the loss or the radius, X or y not finite, one class.
    FloatingPointError
        No iterate is finite.

    Warns
    -----
    ConvergenceWarning
        The gap is larger than `tol` after `max_iter` steps, or where interior-point steps broke down; the best iterate
        is kept.

    Examples
    --------
    >>> from sklearn.datasets import make_moons
    >>> X, y = make_moons(60, noise=0.1, random_state=0)
    >>> model = ConvexReLUClassifier(loss="squared", beta=0.1, n_patterns=40, tol=0.05, random_state=0).fit(X, y)
    >>> model.converged_, model.score(X, y), model.duality_gap_ < 0.05 * model.objective_
    (True, 1.0, True)
    """

    def fit(self, X: ArrayLike, y: ArrayLike) -> ConvexReLUClassifier:
        """Train on X (n, d) and labels y (n,) of at least two classes."""
        self._solver(0)
        rows, labels = validate_data(self, X, y, dtype=np.float64)
        check_classification_targets(labels)
        self.classes_ = np.unique(labels)
        if len(self.classes_) < 2:
            raise ValueError(f"y must have at least two classes, got 1 class: {self.classes_.tolist()}")
        self._fit(rows, labels)
        return self

    def decision_function(self, X: ArrayLike) -> np.ndarray:
        """Outputs of the network: (n,) for two classes, positive for the second, else (n, K)."""
        scores = self._outputs(X)
        return scores[:, 0] if scores.shape[1] == 1 else scores

    def predict(self, X: ArrayLike) -> np.ndarray:
        """Labels (n,)."""
        scores = self.decision_function(X)
        labels: np.ndarray = self.classes_[(scores > 0).astype(int) if scores.ndim == 1 else scores.argmax(1)]
        return labels

    @available_if(lambda self: _is_logistic(self))
    def predict_proba(self, X: ArrayLike) -> np.ndarray:
        """Probabilities (n, K), 1 / (1 + exp(-2 f)); of several classes normalized. For the logistic loss only."""
        scores = self.decision_function(X)
        if scores.ndim == 1:
            return np.column_stack([expit(-2 * scores), expit(2 * scores)])
        shares = expit(2 * scores)
        total = shares.sum(1, keepdims=True)
        return np.where(total > 0, shares / np.where(total > 0, total, 1.0), 1 / shares.shape[1])

    def _targets(self, y: np.ndarray) -> list[np.ndarray]:
        positives = self.classes_[1:] if len(self.classes_) == 2 else self.classes_
        return [np.where(y == label, 1.0, -1.0) for label in positives]


class ConvexReLURegressor(RegressorMixin, ConvexReLUNetwork):
    """A two-layer ReLU network for regression, trained to the global optimum, with a certificate.

    Parameters
    ----------
    loss : str
        "squared", half the sum of squares.
    beta, n_patterns, patterns, solver, adversarial_radius, perturbations_per_direction, fit_intercept, rho, dual_step,
    rbcd_block, rbcd_tol, max_iter, tol, warm_start, device, backend, n_jobs, random_state, verbose
        As in `ConvexReLUClassifier`, and so are the attributes, errors and warnings; there are no ``classes_``.

    Examples
    --------
    >>> X = np.linspace(-1, 1, 9)[:, None]
    >>> model = ConvexReLURegressor(beta=1e-3, patterns="exact").fit(X, np.abs(X[:, 0]))
    >>> round(model.score(X, np.abs(X[:, 0])), 3)
    1.0
    """

    _known_losses = ("squared",)

    def __init__(
        self,
        loss: str = "squared",
        beta: float = 1e-3,
        n_patterns: int | None = None,
        patterns: str | np.ndarray = "sample",
        solver: str = "auto",
        adversarial_radius: float = 0.0,
        perturbations_per_direction: int = 4,
        fit_intercept: bool = True,
        rho: float | None = None,
        dual_step: float | None = None,
        rbcd_block: int = 1,
        rbcd_tol: float = 1.3e-3,
        max_iter: int = 1000,
        tol: float = 1e-4,
        warm_start: bool = False,
        device: str = "cpu",
        backend: str = "serial",
        n_jobs: int | None = None,
        random_state: int | np.random.Generator | np.random.RandomState | None = None,
        verbose: int = 0,
    ) -> None:
        options = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        super().__init__(**options)

    def fit(self, X: ArrayLike, y: ArrayLike) -> ConvexReLURegressor:
        """Train on X (n, d) and targets y (n,)."""
        self._solver(0)
        rows, targets = validate_data(self, X, y, dtype=np.float64, y_numeric=True)
        self._fit(rows, targets)
        return self

    def predict(self, X: ArrayLike) -> np.ndarray:
        """Outputs of the network (n,)."""
        return self._outputs(X)[:, 0]

    def _targets(self, y: np.ndarray) -> list[np.ndarray]:
        return [np.asarray(y, dtype=np.float64)]


def convex_objective(
    X: ArrayLike,
    y: ArrayLike,
    patterns: ArrayLike,
    v: ArrayLike,
    w: ArrayLike,
    *,
    loss: str,
    beta: float,
    adversarial_radius: float = 0.0,
) -> float:
    """Evaluate the convex program's objective at v, w, feasible or not.

    Parameters
    ----------
    X : (n, d) array
        As given: with an intercept it has its column of ones, which then counts as a feature that is perturbed.
    y : (n,) array
        -1 and 1 for "logistic" and "hinge".
    patterns : (P, n) bool array
    v, w : (P, d) arrays
    loss : "squared", "logistic" or "hinge"
    beta : float
    adversarial_radius : float
        Largest change of each entry of X; the loss is the worst one.

    Examples
    --------
    >>> convex_objective([[1.0], [-1.0]], [1.0, 0.0], [[True, False]], [[0.5]], [[0.0]], loss="squared", beta=0.1)
    0.175
    """
    check("loss", loss, one_of(*_losses.LOSSES))
    check("beta", beta, positive())
    check("adversarial_radius", adversarial_radius, nonnegative())
    rows, target = _finite("X", X, 2), _finite("y", y, 1)
    n, d = rows.shape
    cells = np.asarray(patterns)
    if cells.ndim != 2 or cells.shape[1] != n or cells.dtype != bool:
        raise value_error("patterns", f"a boolean array of shape (P, {n})", cells)
    if target.shape != (n,):
        raise value_error("y", f"of shape ({n},)", target)
    if loss != "squared" and not np.isin(target, (-1.0, 1.0)).all():
        raise ValueError(f"y must be -1 or 1 with loss={loss!r}, got {np.unique(target)[:5].tolist()}")
    halves = []
    for name, given in (("v", v), ("w", w)):
        halves.append(_finite(name, given, 2))
        if halves[-1].shape != (len(cells), d):
            raise value_error(name, f"of shape {(len(cells), d)}", halves[-1])
    radius = torch.full((d,), float(adversarial_radius), dtype=torch.float64)
    data, y_data, gates = (torch.as_tensor(np.array(a, dtype=np.float64)) for a in (rows, target, cells))
    return Program(data, y_data, gates, loss, float(beta), radius).objective(torch.as_tensor(np.stack(halves)))


def _finite(name: str, given: ArrayLike, ndim: int) -> np.ndarray:
    array = np.asarray(given, dtype=np.float64)
    if array.ndim != ndim:
        raise value_error(name, f"an array of {ndim} dimensions", array)
    if not np.isfinite(array).all():
        raise ValueError(f"{name} must be finite, got NaN or infinity")
    return array


def _is_logistic(model: Any) -> bool:
    if model.loss != "logistic":
        raise AttributeError(f"predict_proba needs loss='logistic', got {model.loss!r}")
    return True
