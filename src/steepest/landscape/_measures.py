r"""Traces, norms and thresholds from samples: exactly, or by products with random vectors.

``bounds`` spends m products with K. A third goes into Lanczos steps, whose basis Q gives lambda_max and at the same
time takes the large part of the traces exactly; fresh sign vectors u see the rest through ``P = I - Q Q^T``:

    |H|_F^2 = |K Q|_F^2 + E |K P u|^2,        tr(H S) = sum_q z_q^T S z_q + E z_u^T S z_u.

The trace and the per-sample terms come from Gram matrices of every sample's rows (exact), or for many outputs of k
random mixtures x_j of them: ``tr H_i = E |x_j|^2``, ``|H_i|_F^2 = E <x_j, x_l>^2``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from steepest.core.random import torch_generator
from steepest.curvature import lanczos
from steepest.curvature.vectors import probes
from steepest.landscape._sample_space import SampleKernel, Samples
from steepest.landscape._second_moment import Coordinates, critical_curvature

__all__ = ["Measures", "bounds", "exact"]

FEWEST_MIXTURES = 3  # the jackknife over pairs needs as many
FRESH = 0.05  # share of a random vector in a start that is an old eigenvector


@dataclass(frozen=True)
class Measures:
    """What was measured; `critical` is ``lambda_max(C^+ D)``."""

    method: str
    C: int
    trace: float
    frobenius: float
    lambda_max: float
    mean_fourth: float
    critical: float | None
    alignment: float | None
    loss: float | None
    std_error: dict[str, float] | None


def exact(samples: Samples, p: float | None) -> Measures:
    """Decompose K, or H where it is smaller; the threshold is left out without a noise fraction p."""
    n, C = samples.n, samples.C
    if n * C > samples.P:
        A, G = samples.rows().cpu(), samples.gradients()
        coordinates = Coordinates.from_rows(A)
        AG = None if G is None else A.reshape(n * C, -1) @ G.cpu().T
    else:
        K, AG = samples.kernel()
        coordinates = Coordinates.from_gram(K.cpu(), n)
    s, rows = coordinates.eigenvalues, coordinates.rows
    frobenius = float(s.square().sum().sqrt())
    noise = None if AG is None else float((AG - AG.mean(1, keepdim=True)).square().sum()) / n**2
    return Measures(
        method="exact",
        C=C,
        trace=float(s.sum()),
        frobenius=frobenius,
        lambda_max=float(s[-1]) if len(s) else 0.0,
        mean_fourth=float((rows @ rows.mT).square().sum()) / n,
        critical=None if p is None else critical_curvature(coordinates, p),
        alignment=_alignment(noise, frobenius**2, samples.loss),
        loss=samples.loss,
        std_error=None,
    )


def bounds(
    samples: Samples, num_matvecs: int, seed: int | torch.Generator | None, start: Tensor | None
) -> tuple[Measures, Tensor]:
    """Estimate with `num_matvecs` products; also give the leading eigenvector of K, a start for the next time."""
    generator = torch_generator(seed, samples.device)
    trace, fourth = _per_sample(samples, max(FEWEST_MIXTURES, num_matvecs // 6), generator)
    kernel = SampleKernel(samples)
    order = kernel.shape[0]
    steps = num_matvecs if order <= num_matvecs else max(2, num_matvecs // 3)
    if start is not None:  # a little of everything, or an eigenvector that no longer leads would never be left
        fresh = torch.randn(order, generator=generator, dtype=start.dtype, device=start.device)
        start = start + FRESH / math.sqrt(order) * fresh
    space = lanczos(kernel, steps, start, check_symmetric=False, seed=generator)
    values, vectors = space.ritz_pairs()
    captured = torch.tensor(kernel.notes, dtype=torch.float64).sum(0)
    rest = torch.zeros(2, 2, dtype=torch.float64)  # nothing is left where Q spans the whole space
    if space.num_steps < order:
        Q = space.Q
        assert Q is not None
        kernel.notes.clear()
        U = probes(order, max(2, num_matvecs - steps), generator=generator, dtype=Q.dtype, device=Q.device)
        kernel.matmat((U - Q @ (Q.T @ U)).to(kernel.dtype))
        rest = torch.tensor(kernel.notes, dtype=torch.float64)
    draws = captured + rest  # (k, 2): the probes' estimates of |H|_F^2 and tr(H S)
    square, noise = float(draws[:, 0].mean()), float(draws[:, 1].mean())
    frobenius = math.sqrt(square)
    alignment = _alignment(None if samples.loss is None else noise, square, samples.loss)
    errors = {
        "trace": trace[1],
        "frobenius": _error(draws[:, 0]) / (2 * frobenius) if frobenius > 0 else 0.0,
        "lambda_max": float(space.residuals()[-1]),
        "mean_fourth": fourth[1],
    }
    if alignment is not None and samples.loss:
        linear = draws[:, 1] - noise / square * draws[:, 0]
        errors["alignment"] = _error(linear) / (2 * samples.loss * square)
    found = Measures(
        method="bounds",
        C=samples.C,
        trace=trace[0],
        frobenius=frobenius,
        lambda_max=max(float(values[-1]), 0.0),
        mean_fourth=fourth[0],
        critical=None,
        alignment=alignment,
        loss=samples.loss,
        std_error=errors,
    )
    return found, vectors[:, -1].contiguous()


def _per_sample(
    samples: Samples, most: int, generator: torch.Generator
) -> tuple[tuple[float, float], tuple[float, float]]:
    """Values and standard errors of ``tr H`` and ``(1/n) sum |H_i|_F^2``."""
    if most >= samples.C:
        G = samples.grams(samples.basis())
        n = samples.n
        return (float(G.diagonal(dim1=1, dim2=2).sum()) / n, 0.0), (float(G.square().sum()) / n, 0.0)
    G = samples.grams(samples.signs(most, generator))
    traces = G.diagonal(dim1=1, dim2=2).mean(0)  # (k,)
    pairs = G.square().mean(0)  # (k, k)
    pairs.fill_diagonal_(0)
    total, of_one, k = float(pairs.sum()), pairs.sum(0), most
    without = (total - 2 * of_one) / ((k - 1) * (k - 2))  # the mean over pairs, one mixture left out: the jackknife
    error = math.sqrt((k - 1) / k * float((without - without.mean()).square().sum()))
    return (float(traces.mean()), _error(traces)), (total / (k * (k - 1)), error)


def _alignment(noise: float | None, square: float, loss: float | None) -> float | None:
    return noise / (2 * loss * square) if noise is not None and loss and square > 0 else None


def _error(draws: Tensor) -> float:
    """Standard error of the mean."""
    return float(draws.std()) / math.sqrt(len(draws))
