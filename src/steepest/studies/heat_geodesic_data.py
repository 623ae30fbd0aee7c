"""Data of the heat-geodesic study whose geodesics, clusters or times are known: two simulators of shapes, one of cells.

- `swiss_roll`: u, v uniform, t = 1.5π(1 + 2u), h = width v, the point (t cos t, h, t sin t). Unrolled, the coordinates
  (½(t √(1+t²) + asinh t), h) give geodesics as straight lines. With `dim` > 3 the sheet is turned into dim dimensions
  first; the noise is isotropic in all of them.
- `tree`: random walks with steps uniform in [-1, 1]^dim; each branch leaves an earlier point, and distances are lengths
  along the branches.
- `differentiation`: cells that start alike and decide twice, each time by a noisy pitchfork, seen through genes with a
  sigmoid response.

What was measured on real cells, and digits, are read by `blood_cells`, `krumsiek` and scikit-learn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats
from scipy.spatial.distance import cdist

from steepest.core.errors import at_least, check, nonnegative, positive, value_error
from steepest.core.extras import installed, require
from steepest.core.random import numpy_generator
from steepest.studies.context import Context, Unavailable

__all__ = [
    "Sample",
    "annotated",
    "blood_cells",
    "code_test",
    "differentiation",
    "krumsiek",
    "size",
    "swiss_roll",
    "time_bins",
    "tree",
    "two_cluster_roll",
]


@dataclass(frozen=True)
class Sample:
    """Points, and what is known of them.

    Attributes
    ----------
    X : ndarray (n, D)
    flat : ndarray (n, 2) or None
        Coordinates on the unrolled sheet; their distances are geodesics.
    paths : ndarray (n, n) or None
        True distances along a shape that cannot be unrolled.
    labels : ndarray (n,) or None
        Cluster, branch or time bin.
    position : ndarray (n,) or None
        Place along the shape, for colors: the roll's angle, the way from the root, the time.
    """

    X: np.ndarray
    flat: np.ndarray | None = None
    paths: np.ndarray | None = None
    labels: np.ndarray | None = None
    position: np.ndarray | None = None

    @property
    def geodesics(self) -> np.ndarray:
        """True distances along the shape without noise, (n, n).

        Raises
        ------
        ValueError
            They are not known.
        """
        if self.paths is not None:
            return self.paths
        if self.flat is None:
            raise ValueError("the geodesics of this sample are not known")
        return cdist(self.flat, self.flat)


def swiss_roll(
    n: int = 2000, noise: float = 0.1, *, dim: int = 3, width: float = 5.0, seed: int | np.random.Generator = 0
) -> Sample:
    """Swiss roll with its true geodesic distances.

    Parameters
    ----------
    n : int
    noise : float
        Standard deviation in each of the `dim` dimensions.
    dim : int
        Dimension of the space it is turned into, at least 3.
    width : float
        Of the sheet; the paper's code has 5.
    seed : int or Generator

    Examples
    --------
    >>> swiss_roll(50, 0.1, dim=10).X.shape
    (50, 10)
    """
    check("n", n, at_least(2, integer=True))
    check("noise", noise, nonnegative())
    check("dim", dim, at_least(3, integer=True))
    check("width", width, positive())
    rng = numpy_generator(seed)
    angle = 1.5 * np.pi * (1 + 2 * rng.random(n))
    return _rolled(angle, width * rng.random(n), noise, dim, rng)


def two_cluster_roll(n: int = 1000, noise: float = 0.1, *, seed: int | np.random.Generator = 0) -> Sample:
    """Two groups on a roll, angles from N(7, 1) and N(12, 1), width 5.

    Examples
    --------
    >>> np.bincount(two_cluster_roll(100).labels).tolist()
    [50, 50]
    """
    check("n", n, at_least(2, integer=True))
    check("noise", noise, nonnegative())
    rng = numpy_generator(seed)
    labels = (np.arange(n) >= n // 2).astype(int)
    angle = np.where(labels == 0, 7.0, 12.0) + rng.standard_normal(n)
    sample = _rolled(angle, 5 * rng.random(n), noise, 3, rng)
    return replace(sample, labels=labels)


def _rolled(t: np.ndarray, h: np.ndarray, noise: float, dim: int, rng: np.random.Generator) -> Sample:
    X = np.column_stack([t * np.cos(t), h, t * np.sin(t)])
    if dim > 3:
        X = X @ stats.special_ortho_group.rvs(dim, random_state=rng)[:3]
    X = X + noise * rng.standard_normal(X.shape)
    flat = np.column_stack([(t * np.sqrt(1 + t**2) + np.arcsinh(t)) / 2, h])
    return Sample(X, flat=flat, position=t)


def tree(
    n: int = 2000, noise: float = 0.5, *, n_branches: int = 5, dim: int = 10, seed: int | np.random.Generator = 0
) -> Sample:
    """Diffusion-limited branches with true distances along them.

    Parameters
    ----------
    n : int
        Points, the same number on each branch (the first ones get what is left over).
    noise : float
        The standard deviation in each dimension is ten times this, as in the paper's code.
    n_branches, dim : int
    seed : int or Generator

    Examples
    --------
    >>> sample = tree(60, 0.1)
    >>> sample.geodesics.shape, np.bincount(sample.labels).tolist()
    ((60, 60), [12, 12, 12, 12, 12])
    """
    check("n_branches", n_branches, at_least(1, integer=True))
    check("n", n, at_least(2 * n_branches, integer=True))
    check("noise", noise, nonnegative())
    check("dim", dim, at_least(1, integer=True))
    rng = numpy_generator(seed)
    sizes = [n // n_branches + (b < n % n_branches) for b in range(n_branches)]
    X, D, labels = np.zeros((1, dim)), np.zeros((1, 1)), np.zeros(1, dtype=int)
    for b, size in enumerate(sizes):
        steps = rng.uniform(-1, 1, (size, dim))
        root = 0 if b == 0 else int(rng.integers(len(X)))
        along = np.cumsum(np.linalg.norm(steps, axis=1))
        across = along[:, None] + D[root][None]
        inside = np.abs(along[:, None] - along[None])
        X = np.vstack([X, X[root] + np.cumsum(steps, axis=0)])
        D = np.block([[D, across.T], [across, inside]])
        labels = np.append(labels, np.full(size, b))
    X, D, labels = X[1:], D[1:, 1:], labels[1:]  # the seed of the first branch is no sample
    return Sample(X + 10 * noise * rng.standard_normal(X.shape), paths=D, labels=labels, position=D[0])


def differentiation(
    n: int = 800, noise: float = 0.05, *, n_genes: int = 20, seed: int | np.random.Generator = 0
) -> Sample:
    """Cells that decide twice on their way, sampled at times between 0 and 1.

    The first decision x follows dx = (a(s) x - x³) dτ + 0.05 dB with a(s) = 12 (s - 0.3), the second y the same from
    0.6 on; genes respond to (3s - 1.5, x, y, x y) by random sigmoids.

    Parameters
    ----------
    n : int
        Cells.
    noise : float
        Standard deviation of the measurement; a gene lies between 0 and 1.
    n_genes : int
    seed : int or Generator

    Returns
    -------
    Sample
        `position` is the time, `labels` the fate (0 to 3).

    Examples
    --------
    >>> differentiation(40).X.shape
    (40, 20)
    """
    check("n", n, at_least(2, integer=True))
    check("noise", noise, nonnegative())
    check("n_genes", n_genes, at_least(1, integer=True))
    rng = numpy_generator(seed)
    time = np.sort(rng.random(n))
    x, y = np.zeros(n), np.zeros(n)
    steps = 200
    for s in np.arange(steps) / steps:
        alive = s < time  # a cell is sampled at its time and goes no further
        for z, start in ((x, 0.3), (y, 0.6)):
            drift = 12 * np.clip(s - start, -0.3, 0.3) * z - z**3
            z += alive * (10 / steps * drift + 0.05 * np.sqrt(10 / steps) * rng.standard_normal(n))
    state = np.column_stack([3 * time - 1.5, x, y, x * y])
    response = 1.5 * state @ rng.standard_normal((4, n_genes)) + 0.5 * rng.standard_normal(n_genes)
    X = 1 / (1 + np.exp(-response)) + noise * rng.standard_normal((n, n_genes))
    return Sample(X, labels=2 * (x > 0) + (y > 0), position=time)


def time_bins(time: np.ndarray, n_bins: int = 8) -> np.ndarray:
    """Number of the equal-sized time bin of each cell.

    Examples
    --------
    >>> time_bins(np.array([0.0, 0.1, 0.5, 0.9]), 2).tolist()
    [0, 0, 1, 1]
    """
    rank = np.argsort(np.argsort(time, kind="stable"), kind="stable")
    return rank * n_bins // len(time)


def krumsiek(folder: Path, noise: float = 0.05, *, seed: int | np.random.Generator = 0) -> Sample:
    """Simulated blood formation: 4 runs of 160 steps, 11 genes; measurement noise is added.

    Parameters
    ----------
    folder : Path
        Holds ``krumsiek11.txt``.
    noise : float
        Standard deviation of what is added to each gene.

    Raises
    ------
    Unavailable
        The file is not there.
    """
    path = folder / "krumsiek11.txt"
    if not path.is_file():
        raise Unavailable(f"there is no krumsiek11.txt in {folder.name}/")
    table = np.loadtxt(path)
    rng = numpy_generator(seed)
    X = table[:, 1:] + noise * rng.standard_normal(table[:, 1:].shape)
    return Sample(X, labels=np.cumsum(table[:, 0] == 0) - 1, position=table[:, 0])


def blood_cells(folder: Path | None) -> Sample:
    """700 blood cells of ten types, 50 principal components.

    Parameters
    ----------
    folder : Path or None
        Holds ``pbmc68k_reduced.npz``; without it scanpy's copy is read where scanpy is installed.

    Raises
    ------
    Unavailable
        Neither is there.
    """
    path = folder / "pbmc68k_reduced.npz" if folder is not None else None
    if path is not None and path.is_file():
        with np.load(path, allow_pickle=False) as group:
            return Sample(np.asarray(group["X_pca"], dtype=float), labels=_numbered(group["labels"]))
    if not installed("scanpy"):
        raise Unavailable("blood cells: set STEEPEST_DATA to the folder that holds single_cell/, or install scanpy")
    cells: Any = require("scanpy", what="the copy of the blood cells").datasets.pbmc68k_reduced()
    return annotated(cells, "bulk_labels")


def annotated(cells: Any, label: str, *, n_pca: int = 50) -> Sample:
    """Read an AnnData: its ``X_pca`` (or the principal components of its ``X``) and a column of its table of cells.

    Parameters
    ----------
    cells : AnnData
    label : str
        Column of ``obs``; numbers are kept as `position` too.
    """
    if label not in cells.obs:
        raise value_error("label", f"a column of obs ({', '.join(map(str, cells.obs.columns))})", label)
    if "X_pca" in cells.obsm:
        X = np.asarray(cells.obsm["X_pca"], dtype=float)[:, :n_pca]
    else:
        from sklearn.decomposition import PCA

        values = cells.X.toarray() if hasattr(cells.X, "toarray") else np.asarray(cells.X)
        X = PCA(min(n_pca, *values.shape), random_state=0).fit_transform(values.astype(float))
    column = np.asarray(cells.obs[label])
    position = column.astype(float) if np.issubdtype(column.dtype, np.number) else None
    return Sample(X, labels=_numbered(column), position=position)


def _numbered(names: np.ndarray | Sequence[Any]) -> np.ndarray:
    return np.unique(np.asarray(names).astype(str), return_inverse=True)[1]


def code_test(ctx: Context) -> bool:
    """Whether ``--max-steps`` asks for a test of the paper scale's code and not for its numbers."""
    return ctx.scale == "paper" and ctx.max_steps is not None


def size(ctx: Context, *, quick: int, full: int, paper: int, tiny: int) -> int:
    """Choose a number of points by scale; a test of the code is tiny."""
    return tiny if code_test(ctx) else ctx.pick(quick=quick, full=full, paper=paper, tiny=tiny)
