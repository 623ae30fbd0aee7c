"""Hyper-parameters of linear classifiers whose training labels are partly wrong."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, leaky_relu

from steepest.bilevel._tasks_common import DTYPE, Evaluate, load, make_evaluate, rows_of, sampler
from steepest.bilevel.problem import BilevelProblem
from steepest.core.errors import check, interval, one_of, value_error
from steepest.core.random import numpy_generator

__all__ = ["hyper_cleaning", "svm_selection"]

SHARES = (800 / 1797, 300 / 1797)  # of other data than the digits: training and validation
CLEANING_RIDGE = 1e-3
OFFSET_RIDGE = 1e-4
BOX = (-6.0, 2.0)
TRAINING, VALIDATION, FLIPPED = 150, 100, 0.4


def hyper_cleaning(
    data: str | tuple[Any, Any] = "digits", noise: float = 0.4, seed: int | np.random.Generator | None = 0
) -> tuple[BilevelProblem, Evaluate]:
    r"""Find out which training labels to trust: one weight ``sigmoid(x_i)`` for each training sample.

        lower  mean_i sigmoid(x_i) CE(z_i y, c_i) + 1e-3 |y|^2        upper  mean CE on clean validation data

    Parameters
    ----------
    data : "digits" or (X, y)
        Digits: 800 for training, 300 for validation, 697 for testing, pixels divided by 16. Other data are split in
        these shares and taken as they are, classes being the distinct values of y.
    noise : float
        Share of the training labels that is redrawn at random from all classes.
    seed : int, numpy.random.Generator or None
        Of split and noise.

    Returns
    -------
    problem : BilevelProblem
        x (n_training,), zeros at the start; y (d + 1, classes), zeros, its last row the intercept. float64. Batches are
        indices of samples, 64 where no size is given.
    evaluate : callable
        ``evaluate(x, y=None)``: test accuracies ``own`` and ``retrained``.

    Raises
    ------
    ValueError, TypeError
        Unknown data, or a share outside [0, 1].

    Examples
    --------
    >>> problem, evaluate = hyper_cleaning(seed=0)
    >>> problem
    BilevelProblem('hyper_cleaning', x: 800, y: 650)
    >>> evaluate(problem.x0)["retrained"] < 0.95  # equal weights: the wrong labels are learned as well
    True
    """
    check("noise", noise, interval(0, 1))
    X, labels = load(data, ("digits",))
    X = X / 16 if isinstance(data, str) else X
    rng = numpy_generator(seed)
    classes, labels = np.unique(labels, return_inverse=True)
    n = len(X)
    n_train, n_val = (800, 300) if isinstance(data, str) else (round(share * n) for share in SHARES)
    order = rng.permutation(n)
    noisy = labels[order]
    wrong = rng.permutation(n_train)[: round(noise * n_train)]
    noisy[wrong] = rng.integers(len(classes), size=len(wrong))
    Z = torch.tensor(np.hstack([X[order], np.ones((n, 1))]), dtype=DTYPE)
    c = torch.tensor(noisy)
    (Z_train, Z_val, Z_test), (c_train, c_val, c_test) = (
        part.split([n_train, n_val, n - n_train - n_val]) for part in (Z, c)
    )

    def lower(x: Tensor, y: Tensor, batch: Tensor | None) -> Tensor:
        losses = cross_entropy(rows_of(Z_train, batch) @ y, rows_of(c_train, batch), reduction="none")
        return (torch.sigmoid(rows_of(x, batch)) * losses).mean() + CLEANING_RIDGE * y.square().sum()

    def upper(x: Tensor, y: Tensor, batch: Tensor | None) -> Tensor:
        return cross_entropy(rows_of(Z_val, batch) @ y, rows_of(c_val, batch))

    problem = BilevelProblem(
        upper,
        lower,
        torch.zeros(n_train, dtype=DTYPE),
        torch.zeros(Z.shape[1], len(classes), dtype=DTYPE),
        sample_upper=sampler(n_val, 64),
        sample_lower=sampler(n_train, 64),
        name="hyper_cleaning",
    )
    return problem, make_evaluate(problem, lambda x, y: float(((Z_test @ y).argmax(1) == c_test).double().mean()))


def svm_selection(
    data: str | tuple[Any, Any] = "diabetes_binary",
    form: str = "constrained",
    seed: int | np.random.Generator | None = 0,
) -> tuple[BilevelProblem, Evaluate]:
    r"""Choose a penalty ``exp(x_i)`` for each training sample of a support vector machine.

        lower       1/2 |w|^2 + 1/2 1e-4 b^2 + 1/2 sum_i exp(x_i) xi_i^2
        constraint  1 - xi_i - t_i (z_i w + b) <= 0          (each row divided by its norm)
        upper       sum leaky_relu(2 sigmoid(-5 t (z w + b) / |w|) - 1) on validation data

    The lower problem is that of LV-HBA's experiment, its offset slightly penalized: without that the Hessian of the
    unconstrained form is singular.

    Parameters
    ----------
    data : "diabetes_binary", "breast_cancer" or (X, y)
        Two classes; diabetes is split at its median. 150 samples for training, of which 40 % have their labels flipped,
        100 for validation, the others for testing. Features are standardized on the training data.
    form : "constrained" or "squared_hinge"
        With y = {w, b, xi} and the constraint as affine rows; or with ``xi_i = max(0, 1 - t_i (z_i w + b))`` put into
        the lower objective, y = {w, b}, which methods without constraints can take.
    seed : int, numpy.random.Generator or None
        Of split and flips.

    Returns
    -------
    problem : BilevelProblem
        x (150,) in the box [-6, 2], zeros at the start; w starts between the means of the classes, b at 0, xi where the
        constraint holds. float64, full data.
    evaluate : callable
        ``evaluate(x, y=None)``: test accuracies ``own`` and ``retrained`` (by the squared hinge in both forms).

    Raises
    ------
    ValueError, TypeError
        Unknown data or form, more or fewer than two classes, no samples left for testing.

    Examples
    --------
    >>> problem, _ = svm_selection("breast_cancer", seed=0)
    >>> problem
    BilevelProblem('svm_selection', x: 150, y: 181)
    """
    check("form", form, one_of("constrained", "squared_hinge"))
    X, labels = load(data, ("diabetes_binary", "breast_cancer"))
    classes = np.unique(labels)
    if len(classes) != 2:
        raise value_error("data", "of two classes", classes.tolist())
    if len(X) <= TRAINING + VALIDATION:
        raise value_error("data", f"of more than {TRAINING + VALIDATION} samples", len(X))
    rng = numpy_generator(seed)
    order = rng.permutation(len(X))
    X, signs = X[order], np.where(labels[order] == classes[1], 1.0, -1.0)
    signs[rng.permutation(TRAINING)[: round(FLIPPED * TRAINING)]] *= -1
    spread = X[:TRAINING].std(0)
    X = (X - X[:TRAINING].mean(0)) / np.where(spread > 0, spread, 1)
    sizes = [TRAINING, VALIDATION, len(X) - TRAINING - VALIDATION]
    Z, Z_val, Z_test = torch.tensor(X, dtype=DTYPE).split(sizes)
    t, t_val, t_test = torch.tensor(signs, dtype=DTYPE).split(sizes)

    def slack(y: dict[str, Tensor]) -> Tensor:
        return (1 - t * (Z @ y["w"] + y["b"])).clamp(min=0)

    def machine(x: Tensor, y: dict[str, Tensor], xi: Tensor) -> Tensor:
        size = y["w"].square().sum() + OFFSET_RIDGE * y["b"].square().sum()
        return (size + (x.exp() * xi.square()).sum()) / 2

    def upper(x: Tensor, y: dict[str, Tensor], batch: None) -> Tensor:
        norm = (y["w"].square().sum() + 1e-12).sqrt()  # w = 0 has a gradient as well
        margins = t_val * (Z_val @ y["w"] + y["b"]) / norm
        return leaky_relu(2 * torch.sigmoid(-5 * margins) - 1).sum()

    def project_x(x: Tensor) -> Tensor:
        return x.clamp(*BOX)

    def score(x: Tensor, y: dict[str, Tensor]) -> float:
        return float((t_test * (Z_test @ y["w"] + y["b"]) > 0).double().mean())

    start = {"w": Z.mT @ t / TRAINING, "b": torch.zeros(1, dtype=DTYPE)}
    x0 = torch.zeros(TRAINING, dtype=DTYPE)
    hinge = BilevelProblem(
        upper, lambda x, y, batch: machine(x, y, slack(y)), x0, start, project_x=project_x, name="svm_selection"
    )
    if form == "squared_hinge":
        return hinge, make_evaluate(hinge, score)
    rows = -torch.cat([t.unsqueeze(1) * Z, t.unsqueeze(1), torch.eye(TRAINING, dtype=DTYPE)], 1)
    norms = torch.linalg.vector_norm(rows, dim=1)
    problem = BilevelProblem(
        upper,
        lambda x, y, batch: machine(x, y, y["xi"]),
        x0,
        start | {"xi": slack(start)},
        affine=(torch.zeros(TRAINING, TRAINING, dtype=DTYPE), rows / norms.unsqueeze(1), 1 / norms),
        project_x=project_x,
        name="svm_selection",
    )
    return problem, make_evaluate(problem, score, retrain=hinge)
