"""Many lower problems that share one upper variable."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import softplus

from steepest.bilevel._tasks_common import DTYPE, Evaluate, load, make_evaluate, sampler
from steepest.bilevel.problem import BilevelProblem
from steepest.core.errors import check, interval, positive
from steepest.core.random import numpy_generator

__all__ = ["block_auc", "multi_block_weighting"]

RIDGE = 1e-3
SCALES = (0.25, 4.0)  # of the losses, from the first block to the last, in geometric steps
LARGER = 4  # times the training samples: validation and test of `block_auc`
SHARES = (0.5, 0.2)  # training and validation


def multi_block_weighting(
    m: int = 100,
    seed: int | np.random.Generator | None = 0,
    *,
    data: str | tuple[Any, Any] = "digits",
    noise: float = 0.3,
) -> tuple[BilevelProblem, Evaluate]:
    r"""Weight training samples by ``sigmoid(x_j)`` for m logistic heads at once, each with its own loss scale.

        lower_i  mean_j sigmoid(x_j) l_i(t_j z_j y_i) + 1/2 1e-3 |y_i|^2,      l_i(a) = log(1 + exp(-s_i a)) / s_i
        upper_i  mean l_i on clean validation data

    with s_i from 1/4 to 4 in geometric steps.

    Parameters
    ----------
    m : int
        Number of blocks.
    seed : int, numpy.random.Generator or None
        Of split and noise.
    data : "digits", "breast_cancer" or (X, y)
        Half for training, a fifth for validation. The two classes are the upper and the lower half of the labels.
        Features are standardized on the training data, a constant is added, and all is divided by one number that makes
        the mean squared norm of a sample 1, so that the curvature of lower_i is at most ``s_i / 4 + 1e-3``.
    noise : float
        Share of the training labels that is flipped.

    Returns
    -------
    problem : BilevelProblem
        With `m` blocks: x (n_training,), y (m, d + 1), zeros at the start. float64. Batches are indices (I, size) of
        samples, size 32 where none is given.
    evaluate : callable
        ``evaluate(x, y=None)``: test accuracies ``own`` and ``retrained``, means over the heads.

    Raises
    ------
    ValueError, TypeError
        An argument outside its limits.

    Examples
    --------
    >>> multi_block_weighting(m=10)[0]
    BilevelProblem('multi_block_weighting', x: 898, y: 650, n_blocks=10)
    """
    check("m", m, positive(integer=True))
    check("noise", noise, interval(0, 1))
    X, labels = load(data, ("digits", "breast_cancer"))
    rng = numpy_generator(seed)
    n = len(X)
    n_train, n_val = (int(share * n) for share in SHARES)
    order = rng.permutation(n)
    classes = np.unique(labels)
    signs = np.where(labels[order] >= classes[len(classes) // 2], 1.0, -1.0)
    signs[rng.permutation(n_train)[: round(noise * n_train)]] *= -1
    X = X[order]
    spread = X[:n_train].std(0)
    X = np.hstack([(X - X[:n_train].mean(0)) / np.where(spread > 0, spread, 1), np.ones((n, 1))])
    X /= np.sqrt((X[:n_train] ** 2).sum(1).mean())
    tZ = torch.tensor(signs[:, None] * X, dtype=DTYPE)  # a sample times its label: all that the losses see
    tZ_train, tZ_val, tZ_test = tZ.split([n_train, n_val, n - n_train - n_val])
    scales = torch.tensor(np.geomspace(*SCALES, m) if m > 1 else np.ones(1), dtype=DTYPE)

    def losses(tZ: Tensor, yb: Tensor, batch: Tensor | None, blocks: Tensor) -> Tensor:  # (I, B)
        margins = yb @ tZ.mT if batch is None else torch.einsum("ibp,ip->ib", tZ[batch], yb)
        s = scales[blocks].unsqueeze(1)
        return softplus(-s * margins) / s

    def lower(x: Tensor, yb: Tensor, batch: Tensor | None, blocks: Tensor) -> Tensor:
        weights = torch.sigmoid(x if batch is None else x[batch])
        return (weights * losses(tZ_train, yb, batch, blocks)).mean(1) + RIDGE / 2 * yb.square().sum(1)

    def upper(x: Tensor, yb: Tensor, batch: Tensor | None, blocks: Tensor) -> Tensor:
        return losses(tZ_val, yb, batch, blocks).mean(1)

    problem = BilevelProblem(
        upper,
        lower,
        torch.zeros(n_train, dtype=DTYPE),
        torch.zeros(m, X.shape[1], dtype=DTYPE),
        sample_upper=sampler(n_val, 32),
        sample_lower=sampler(n_train, 32),
        n_blocks=m,
        name="multi_block_weighting",
    )
    return problem, make_evaluate(problem, lambda x, y: float((y @ tZ_test.mT > 0).double().mean()))


def block_auc(
    m: int = 50, seed: int | np.random.Generator | None = 0, *, n_samples: int = 100, n_features: int = 20
) -> tuple[BilevelProblem, Evaluate]:
    r"""Choose feature scales sigmoid(x) that m rare-event scorers share, by the area under their ROC curves.

        lower_i  mean 1/2 (s_i(z) - t / 2)^2 + 1/2 1e-2 |y_i|^2 on training data, with s_i(z) = (z * sigmoid(x)) y_i
        upper_i  mean over pairs of (1 - s_i(z+) + s_i(z-))^2, positives z+ and negatives z- of its validation data

    Generated: a quarter of the features carries a signal, whose direction is partly the blocks' own; one sample in five
    is positive.

    Parameters
    ----------
    m : int
        Number of blocks.
    seed : int, numpy.random.Generator or None
        Of the data.
    n_samples, n_features : int
        Training samples of a block, four times as many for validation and for testing; features of a sample.

    Returns
    -------
    problem : BilevelProblem
        With `m` blocks: x (n_features,), y (m, n_features), zeros at the start. float64. Batches of the lower level are
        indices (I, size) of samples, of the upper level pairs of positives and negatives, each (I, size); size 32 where
        none is given.
    evaluate : callable
        ``evaluate(x, y=None)``: ``own`` and ``retrained`` areas under the ROC curve of test data, means over blocks.

    Raises
    ------
    ValueError, TypeError
        A number that is not a positive integer.

    Examples
    --------
    >>> block_auc(m=5)[0]
    BilevelProblem('block_auc', x: 20, y: 100, n_blocks=5)
    """
    for name, value in {"m": m, "n_samples": n_samples, "n_features": n_features}.items():
        check(name, value, positive(integer=True))
    rng = numpy_generator(seed)
    n_pos = max(1, n_samples // 5)
    n_neg = max(1, n_samples - n_pos)
    signal = max(1, n_features // 4)
    direction = np.zeros((m, n_features))
    direction[:, :signal] = rng.standard_normal(signal) + 0.5 * rng.standard_normal((m, signal))
    direction *= 1.5 / np.linalg.norm(direction, axis=1, keepdims=True)

    def draw_set(times: int) -> tuple[Tensor, Tensor]:  # (m, times n_pos, d), (m, times n_neg, d)
        Z = rng.standard_normal((m, times * (n_pos + n_neg), n_features))
        Z[:, : times * n_pos] += direction[:, None]
        positives, negatives = torch.tensor(Z, dtype=DTYPE).split([times * n_pos, times * n_neg], 1)
        return positives, negatives

    training, validation, test = (draw_set(times) for times in (1, LARGER, LARGER))
    tZ = torch.cat([training[0], -training[1]], 1)

    def lower(x: Tensor, yb: Tensor, batch: Tensor | None, blocks: Tensor) -> Tensor:
        rows = tZ[blocks] if batch is None else tZ[blocks.unsqueeze(1), batch]
        margins = torch.einsum("ibp,ip->ib", rows, torch.sigmoid(x) * yb)
        return (margins - 0.5).square().mean(1) / 2 + 1e-2 / 2 * yb.square().sum(1)

    def upper(x: Tensor, yb: Tensor, batch: tuple[Tensor, Tensor] | None, blocks: Tensor) -> Tensor:
        w = torch.sigmoid(x) * yb
        if batch is None:
            s_pos, s_neg = (torch.einsum("ibp,ip->ib", Z[blocks], w) for Z in validation)
        else:
            pairs = zip(validation, batch, strict=True)
            s_pos, s_neg = (torch.einsum("ibp,ip->ib", Z[blocks.unsqueeze(1), i], w) for Z, i in pairs)
        a, b = 1 - s_pos, s_neg  # mean of (a + b)^2 over all pairs, without forming them
        return a.square().mean(1) + 2 * a.mean(1) * b.mean(1) + b.square().mean(1)

    draw_pos, draw_neg = sampler(LARGER * n_pos, 32), sampler(LARGER * n_neg, 32)

    def score(x: Tensor, y: Tensor) -> float:
        s_pos, s_neg = (torch.einsum("ibp,ip->ib", Z, torch.sigmoid(x) * y) for Z in test)
        gaps = s_pos.unsqueeze(2) - s_neg.unsqueeze(1)
        return float(((gaps > 0).double() + (gaps == 0).double() / 2).mean())

    problem = BilevelProblem(
        upper,
        lower,
        torch.zeros(n_features, dtype=DTYPE),
        torch.zeros(m, n_features, dtype=DTYPE),
        sample_upper=lambda generator, size, blocks: (
            draw_pos(generator, size, blocks),
            draw_neg(generator, size, blocks),
        ),
        sample_lower=sampler(n_pos + n_neg, 32),
        n_blocks=m,
        name="block_auc",
    )
    return problem, make_evaluate(problem, score)
