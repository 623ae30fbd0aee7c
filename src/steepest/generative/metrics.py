r"""How far apart two clouds of samples are, without their densities.

    sliced Wasserstein   ( mean over directions u of W_p(<u, x>, <u, y>)^p )^(1/p)      (Bonneel et al. 2015)
    squared MMD          E k(x, x') + E k(y, y') - 2 E k(x, y), k a mean of Gaussians    (Gretton et al. 2012)
    Frechet distance     |m_x - m_y|^2 + tr(C_x + C_y - 2 (C_x C_y)^(1/2)), squared     (Heusel et al. 2017)

All are biased upward by the sample: two fresh samples of one distribution do not give 0. Give that floor beside every
number.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from steepest.core.errors import at_least, boolean, check, positive, value_error
from steepest.core.random import Seed, torch_generator
from steepest.generative._samples import as_rows, check_pair, check_samples

__all__ = ["frechet_distance", "mmd2", "sliced_wasserstein"]

CHUNK = 2048  # rows of a kernel matrix that are held at a time
FOR_MEDIAN = 1000  # samples of each cloud from which the kernel's width is taken


def sliced_wasserstein(
    x: Tensor, y: Tensor, *, n_projections: int = 128, p: float = 2, generator: Seed = None
) -> Tensor:
    """Wasserstein distance of order `p` of one-dimensional projections, averaged over random directions.

    Parameters
    ----------
    x : Tensor (n, *shape)
    y : Tensor (m, *shape)
        The clouds; each sample is flattened. In one dimension the distance is exact for any n and m.
    n_projections : int
        Directions, uniform on the sphere.
    p : float
        At least 1.
    generator : int, torch.Generator or None
        Of the directions; use the same one where distances are compared.

    Returns
    -------
    Tensor
        0-dim, in the units of x.

    Raises
    ------
    TypeError, ValueError
        Not two floating-point clouds of one dtype, device and shape of a sample, or an argument outside its limits.

    Examples
    --------
    >>> x = torch.tensor([[0.0], [1.0]])
    >>> float(sliced_wasserstein(x, x + 3, generator=0))
    3.0
    """
    check_samples("x", x)
    check_pair("y", y, "x", x, same_length=False)
    check("n_projections", n_projections, at_least(1, integer=True))
    check("p", p, at_least(1))
    a, b = as_rows(x), as_rows(y)
    source = torch_generator(generator, a.device, name="generator")
    directions = torch.randn(a.shape[1], n_projections, generator=source, dtype=a.dtype, device=a.device)
    directions = directions / directions.norm(dim=0)
    return _wasserstein(a @ directions, b @ directions, p).mean() ** (1 / p)


def _wasserstein(a: Tensor, b: Tensor, p: float) -> Tensor:
    """W_p^p of each column (k,): the integral over q in (0, 1) of the difference of quantiles."""
    a, b = a.sort(dim=0).values, b.sort(dim=0).values
    n, m = len(a), len(b)
    if n == m:
        return (a - b).abs().pow(p).mean(0)
    # Both quantile functions are constant between the multiples of 1/n and 1/m: in units of 1/(n m) these are integers.
    whole = torch.arange(n + 1, device=a.device) * m, torch.arange(m + 1, device=a.device) * n
    cuts = torch.cat(whole).unique()
    begins, lengths = cuts[:-1], cuts.diff().to(a.dtype) / (n * m)
    gaps = (a[begins // m] - b[begins // n]).abs().pow(p)
    return (lengths[:, None] * gaps).sum(0)


def mmd2(x: Tensor, y: Tensor, *, bandwidths: Sequence[float] | None = None, unbiased: bool = True) -> Tensor:
    """Squared maximum mean discrepancy with the mean of the kernels ``exp(-|x - y|^2 / (2 h^2))``.

    Parameters
    ----------
    x : Tensor (n, *shape)
    y : Tensor (m, *shape)
        The clouds.
    bandwidths : sequence of float, optional
        The widths h. By default half, one and two times the median distance between the first 1000 samples of each.
    unbiased : bool
        Leave out the diagonals (needs two samples each; may be negative), or keep them.

    Returns
    -------
    Tensor
        0-dim.

    Raises
    ------
    TypeError, ValueError
        As in `sliced_wasserstein`; a bandwidth that is not positive; the default where all samples coincide.

    Examples
    --------
    >>> x = torch.tensor([[0.0], [2.0]], dtype=torch.float64)
    >>> round(float(mmd2(x, x + 1, bandwidths=[1.0], unbiased=False)), 3)
    0.22
    """
    check_samples("x", x)
    check_pair("y", y, "x", x, same_length=False)
    check("unbiased", unbiased, boolean())
    a, b = as_rows(x), as_rows(y)
    if unbiased and min(len(a), len(b)) < 2:
        raise value_error("x and y", "at least two samples each for the unbiased estimate", min(len(a), len(b)))
    widths = _default_widths(a, b) if bandwidths is None else list(bandwidths)
    for width in widths:
        check("bandwidths", width, positive())
    if not widths:
        raise value_error("bandwidths", "at least one width", widths)
    return _mean_kernel(a, a, widths, unbiased) + _mean_kernel(b, b, widths, unbiased) - 2 * _mean_kernel(a, b, widths)


def _default_widths(a: Tensor, b: Tensor) -> list[float]:
    median = float(torch.pdist(torch.cat([a[:FOR_MEDIAN], b[:FOR_MEDIAN]])).median())
    if not median > 0:
        raise value_error("x and y", "spread out for the default bandwidths", median, "give bandwidths")
    return [0.5 * median, median, 2 * median]


def _mean_kernel(a: Tensor, b: Tensor, widths: list[float], without_diagonal: bool = False) -> Tensor:
    total = a.new_zeros(())
    for rows in a.split(CHUNK):
        squares = torch.cdist(rows, b, compute_mode="donot_use_mm_for_euclid_dist").square()
        for h in widths:
            total = total + torch.exp(-squares / (2 * h**2)).sum() / len(widths)
    n, m = len(a), len(b)
    return (total - n) / (n * (n - 1)) if without_diagonal else total / (n * m)


def frechet_distance(x: Tensor, y: Tensor) -> Tensor:
    """Squared Wasserstein distance between the Gaussians of two clouds' means and covariances (FID on features).

    Parameters
    ----------
    x : Tensor (n, *shape)
    y : Tensor (m, *shape)
        Features of the samples, at least two each.

    Returns
    -------
    Tensor
        0-dim, in squared units of x.

    Raises
    ------
    TypeError, ValueError
        As in `sliced_wasserstein`; fewer than two samples.

    Notes
    -----
    With ``C = R' R`` from a QR decomposition of the centered samples, ``tr (C_x C_y)^(1/2)`` is the sum of the singular
    values of ``R_x R_y'``: no square root of a matrix that is singular or not symmetric.

    Examples
    --------
    >>> x = torch.tensor([[0.0], [2.0]])
    >>> float(frechet_distance(x, x + 3))
    9.0
    """
    check_samples("x", x)
    check_pair("y", y, "x", x, same_length=False)
    if min(len(x), len(y)) < 2:
        raise value_error("x and y", "at least two samples each", min(len(x), len(y)))
    (mean_x, factor_x), (mean_y, factor_y) = (_gaussian(as_rows(cloud)) for cloud in (x, y))
    overlap = torch.linalg.svdvals(factor_x @ factor_y.T).sum()
    squares = factor_x.square().sum() + factor_y.square().sum()
    return (mean_x - mean_y).square().sum() + (squares - 2 * overlap).clamp_min(0)


def _gaussian(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (d,) and a factor R with covariance R' R."""
    mean = x.mean(0)
    return mean, torch.linalg.qr((x - mean) / (len(x) - 1) ** 0.5, mode="r").R
