r"""How near SGD's present weights are to the limits of stability: ratios in which 1 is the limit.

Near a minimum that fits every sample, SGD with batches of B is linear: with per-sample Gauss-Newton matrices H_i and
their mean H, the second moment ``M = E d d^T`` of the distance d follows

    M <- M - 2 lr C(M) + lr^2 D(M),      C(M) = (H M + M H) / 2,   D(M) = (1 - p) H M H + p (1/n) sum_i H_i M H_i.

    gd          lambda_max(H)                                     <= 2 (1 + momentum) / lr
    trace       p tr(H) / C                                       <= 2 / lr          the paper's, for p = C = 1
    necessary   ((1 - p) |H|_F^2 + p (1/n) sum |H_i|_F^2) / tr H  <= 2 / lr          M = I
    exact       lambda_max(C^+ D)                                 <= 2 / lr          necessary and sufficient
    frobenius   |H|_F sqrt(p mu)                                  <= 1 / lr          for the loss itself

C and D are self-adjoint and positive on symmetric matrices over range(H), hence ``lambda_max(C^+ D)`` is the largest
``<M, D M> / <M, C M>``: any M gives a lower bound. M = I gives ``necessary``, that gives ``trace`` because
``|H_i|_F^2 >= (tr H_i)^2 / C`` and by Jensen's inequality, and ``M = v v^T`` with H's leading v gives ``gd``:

    trace <= necessary <= exact,    gd <= exact.

``frobenius``: the noise of one step alone makes ``E loss >= lr^2 p tr(H S) / 2 = lr^2 p mu |H|_F^2 loss``, S the
covariance of the samples' gradients and ``mu = tr(H S) / (2 loss |H|_F^2)`` their alignment with the curvature.

Paper: wu2023implicit; ``frobenius`` is that of Wu, Wang and Su (NeurIPS 2022), ``exact`` that of Mulayoff and Michaeli
(2023).
Notation: lr = eta, n samples, B = batch_size, C outputs, p = noise_fraction, mu = alignment.
Departures: (1) batches without replacement by default, through p. (2) Everything is computed from the samples' side
(`_sample_space`), which gives the trace with the per-sample terms, and |H|_F and mu with the same products that find
lambda_max. (3) Sums of a loss over the batch are scaled by B: the loss as the optimizer sees it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from steepest.core.errors import at_least, check, kind_error, value_error
from steepest.curvature.losses import LossFn
from steepest.landscape._sample_space import FactorSamples, ModelSamples
from steepest.landscape._stability_monitor import StabilityMonitor
from steepest.landscape._stability_report import (
    StabilityReport,
    make_report,
    make_setting,
    measured,
    quiet,
    training_size,
)
from steepest.landscape._toy_models import DiagonalLinear, TwoLayerReLU

__all__ = [
    "DiagonalLinear",
    "StabilityMonitor",
    "StabilityReport",
    "TwoLayerReLU",
    "linear_stability",
    "stability_of_factors",
]

FACTOR_MATVECS = 90  # products for the bounds of given factors, as `num_matvecs` of a model


def linear_stability(
    model: nn.Module,
    loss_fn: LossFn,
    X: Tensor,
    y: Tensor,
    *,
    lr: float,
    batch_size: int = 1,
    replacement: bool = False,
    momentum: float = 0.0,
    method: str = "auto",
    max_exact: int = 1024,
    num_data: int | None = None,
    num_matvecs: int = 90,
    chunk_size: int | None = None,
    seed: int | torch.Generator | None = 0,
) -> StabilityReport:
    """Measure how near the model's weights are to the stability limits of gradient descent and of SGD.

    Parameters
    ----------
    model : torch.nn.Module
        Measured in evaluation mode; nothing of it changes.
    loss_fn : callable (output, y) -> scalar
        As given to the optimizer, convex in the output: `MSELoss`, `CrossEntropyLoss` and `BCEWithLogitsLoss` for any
        number of outputs, others for a moderate one. A loss that sums over the batch is scaled by `batch_size`.
    X, y : Tensor of shape (n, ...)
        The training set, or a random subset with `num_data`.
    lr : float
    batch_size : int
        B.
    replacement : bool
        Whether the samples of a batch are drawn with replacement (``p = 1 / B``).
    momentum : float
        Heavy ball's, in [0, 1); only ``gd`` and ``frobenius`` are known with it.
    method : "auto", "exact" or "bounds"
        "exact" takes O((n C)^2) memory, C outputs a sample; "auto" takes it where ``n C <= max_exact``.
    max_exact : int
    num_data : int, optional
        Size of the training set that X is a subset of; it enters p alone.
    num_matvecs : int
        Budget of products for "bounds": a third for lambda_max, the rest for |H|_F and the alignment.
    chunk_size : int, optional
        Samples in one graph at a time; all, in a graph that is kept, by default.
    seed : int, torch.Generator or None
        Of the random vectors of "bounds".

    Returns
    -------
    StabilityReport

    Raises
    ------
    ValueError, TypeError
        An argument outside its limits, empty data, a loss that is not convex in the output.
    FloatingPointError
        The loss is not finite.

    References
    ----------
    Wu and Su, The implicit regularization of dynamical stability in stochastic gradient descent, ICML 2023.

    Examples
    --------
    >>> model = DiagonalLinear(2, scale=0.5)
    >>> X = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    >>> report = linear_stability(model, nn.MSELoss(), X, torch.zeros(2, 1), lr=0.45)     # MSELoss has no 1/2
    >>> round(report.trace, 6), round(report.ratios["trace"], 6), report.verdict
    (4.0, 0.9, 'edge')
    """
    n = training_size(method, max_exact, X, num_data)
    setting = make_setting(lr, batch_size, replacement, momentum, n)
    check("num_matvecs", num_matvecs, at_least(4, integer=True))
    with quiet(model):
        samples = ModelSamples(model, loss_fn, X, y, batch_size=batch_size, chunk_size=chunk_size)
        return make_report(measured(samples, setting, method, max_exact, num_matvecs, seed)[0], setting)


def stability_of_factors(
    A: Tensor,
    *,
    lr: float,
    batch_size: int = 1,
    replacement: bool = False,
    momentum: float = 0.0,
    method: str = "auto",
    max_exact: int = 1024,
    seed: int | torch.Generator | None = 0,
) -> StabilityReport:
    """Measure stability from per-sample factors, ``H_i = A_i^T A_i``.

    Parameters
    ----------
    A : Tensor of shape (n, P) or (n, C, P)
        For the loss ``(f - y)^2 / 2`` the gradients of the output.
    lr, batch_size, replacement, momentum, method, max_exact, seed
        As in `linear_stability`.

    Returns
    -------
    StabilityReport
        Without ``frobenius``, which needs a loss.

    Raises
    ------
    ValueError, TypeError
        Factors that are empty, not finite or of another shape; an argument outside its limits.

    Examples
    --------
    >>> report = stability_of_factors(torch.tensor([[2.0, 0.0], [0.0, 1.0]]), lr=0.5)
    >>> {name: round(ratio, 3) for name, ratio in report.ratios.items()}
    {'gd': 0.5, 'trace': 0.625, 'necessary': 0.85, 'exact': 1.0}
    """
    if not isinstance(A, Tensor):
        raise kind_error("A", "a tensor of shape (n, P) or (n, C, P)", A)
    if A.ndim not in (2, 3) or A.numel() == 0 or not A.is_floating_point():
        raise value_error("A", "a non-empty real tensor of shape (n, P) or (n, C, P)", A)
    if not bool(torch.isfinite(A).all()):
        raise value_error("A", "finite", "factors with NaN or infinities")
    n = training_size(method, max_exact, A, None)
    setting = make_setting(lr, batch_size, replacement, momentum, n)
    samples = FactorSamples((A.unsqueeze(1) if A.ndim == 2 else A).detach().double())
    return make_report(measured(samples, setting, method, max_exact, FACTOR_MATVECS, seed)[0], setting)
