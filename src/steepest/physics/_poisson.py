r"""The pressure Poisson problem on a grid of cells, some of them solid, at unit spacing.

    (A p)_c = sum over the faces of the fluid cell c of  p_c - p_neighbor

A face to a solid cell is dropped (no flow through it). A face on the domain's wall is dropped for ``wall="neumann"``;
for ``wall="dirichlet"`` the neighbor beyond it has p = 0. Rows and columns of solid cells are zero. A fluid component
that touches no Dirichlet wall makes A singular: its indicator is a null vector.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage, sparse
from torch import Tensor

from steepest.core.errors import at_least, boolean, check, kind_error, one_of, value_error
from steepest.core.random import numpy_generator

__all__ = [
    "PoissonStencil",
    "grid_of",
    "null_space_projection",
    "poisson_matrix",
    "random_obstacles",
    "read_dcdm_matrix",
]

Shape = tuple[int, ...]
Mask = NDArray[np.bool_]
WALL = one_of("dirichlet", "neumann")
ZERO = 1e-10  # of the largest entry of a product: what counts as rounding when null vectors are looked for
TRIES = 200  # draws for one obstacle before the layout counts as full
RADII = (0.05, 0.15)  # of an obstacle, as a part of the shortest side


def poisson_matrix(
    shape: Sequence[int], solid: Any = None, wall: str = "dirichlet", reduced: bool = False
) -> sparse.csr_matrix:
    """Assemble the 5-point (2-D) or 7-point (3-D) Laplacian of a cell grid with obstacles.

    Parameters
    ----------
    shape : sequence of 2 or 3 int
        Cells along every axis; they are numbered in C order.
    solid : bool array of that shape, optional
        True in obstacles; no solid cell by default.
    wall : "dirichlet" or "neumann"
        p = 0 in the cells beyond the domain, or no flow through its walls.
    reduced : bool
        Leave out the rows and columns of solid cells instead of keeping them as zeros.

    Returns
    -------
    scipy.sparse.csr_matrix of float64
        Symmetric positive semidefinite, without the factor 1/h²; (n, n) with n cells, or fluid cells if `reduced`.

    Raises
    ------
    ValueError
        Not 2 or 3 positive sizes, a mask of another shape, no fluid cell, an unknown wall.

    Examples
    --------
    >>> poisson_matrix((1, 3)).toarray().tolist()  # beside two walls above and below
    [[4.0, -1.0, 0.0], [-1.0, 4.0, -1.0], [0.0, -1.0, 4.0]]
    >>> poisson_matrix((1, 3), [[False, False, True]], wall="neumann").toarray().tolist()
    [[1.0, -1.0, 0.0], [-1.0, 1.0, 0.0], [0.0, 0.0, 0.0]]
    """
    shape, fluid = grid_of(shape, solid)
    check("wall", wall, WALL)
    check("reduced", reduced, boolean())
    number = np.arange(fluid.size).reshape(shape)
    diagonal = np.zeros(shape)
    below: list[NDArray[np.int64]] = []
    above: list[NDArray[np.int64]] = []
    for axis in range(len(shape)):
        low, high = _along(axis, slice(None, -1)), _along(axis, slice(1, None))
        joined = fluid[low] & fluid[high]
        diagonal[low] += joined
        diagonal[high] += joined
        below.append(number[low][joined])
        above.append(number[high][joined])
        if wall == "dirichlet":
            for end in (_along(axis, 0), _along(axis, -1)):
                diagonal[end] += fluid[end]
    i, j = np.concatenate(below), np.concatenate(above)
    own = number[fluid]
    values = np.concatenate([diagonal[fluid], np.full(2 * len(i), -1.0)])
    rows, columns = np.concatenate([own, i, j]), np.concatenate([own, j, i])
    A = sparse.csr_matrix((values, (rows, columns)), shape=(fluid.size, fluid.size))
    return sparse.csr_matrix(A[own][:, own]) if reduced else A


def random_obstacles(shape: Sequence[int], n_obstacles: int, seed: Any = None) -> Mask:
    """Draw discs, boxes and rotated ellipses (balls and ellipsoids in 3-D) that leave the fluid in one piece.

    Parameters
    ----------
    shape : sequence of 2 or 3 int
    n_obstacles : int
        They may overlap and touch the walls; radii are 5 to 15 % of the shortest side, one cell at least.
    seed : int, numpy.random.Generator or None

    Returns
    -------
    bool array of `shape`
        True in obstacles.

    Raises
    ------
    ValueError
        Sizes out of range, or no place left for an obstacle.

    Examples
    --------
    >>> solid = random_obstacles((32, 32), 3, seed=0)
    >>> solid.shape, bool(0 < solid.mean() < 0.3)
    ((32, 32), True)
    """
    shape, fluid = grid_of(shape, None)
    check("n_obstacles", n_obstacles, at_least(0, integer=True))
    rng = numpy_generator(seed)
    cells = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), -1)  # (*shape, dim)
    for k in range(n_obstacles):
        for _ in range(TRIES):
            left = fluid & ~_obstacle(cells, shape, rng)
            if left.any() and left.sum() < fluid.sum() and _components(left)[1] == 1:
                fluid = left
                break
        else:
            raise value_error(
                "n_obstacles", f"so few that fluid stays connected on {shape}", n_obstacles, f"{k} found a place"
            )
    return ~fluid


def read_dcdm_matrix(path: str | os.PathLike[str]) -> sparse.csr_matrix:
    """Read a system matrix of the authors' data set (kaneda2023deep).

    The layout, little-endian: five int32 (rows, columns, entries, rows again, row lengths or 0), the entries as float32
    or float64 (told apart by the file's size), the start of every row and the column of every entry as int32. Their
    right-hand sides are one int64, the count, and so many float64: ``numpy.fromfile(path)[1:]``.

    Parameters
    ----------
    path : path-like

    Returns
    -------
    scipy.sparse.csr_matrix of float64

    Raises
    ------
    ValueError
        The sizes in the header and the file's size do not fit.
    """
    with open(path, "rb") as file:
        raw = file.read()
    header = np.frombuffer(raw, "<i4", 5) if len(raw) >= 20 else np.zeros(5, np.int32)
    rows, columns, entries, starts, _ = (int(value) for value in header)
    index = 4 * (starts + entries)
    kinds = {20 + 4 * entries + index: "<f4", 20 + 8 * entries + index: "<f8"}
    if rows < 1 or columns < 1 or starts != rows or len(raw) not in kinds:
        raise value_error("path", "a file in the layout of the authors' matrices", str(path))
    kind = kinds[len(raw)]
    values = np.frombuffer(raw, kind, entries, 20).astype(np.float64)
    places = np.frombuffer(raw, "<i4", starts + entries, len(raw) - index)
    pointers = np.append(places[:rows], entries)
    if np.any(np.diff(pointers) < 0) or np.any((places[rows:] < 0) | (places[rows:] >= columns)):
        raise value_error("path", "a file whose row starts ascend and whose columns exist", str(path))
    return sparse.csr_matrix((values, places[rows:], pointers), shape=(rows, columns))


class PoissonStencil:
    """`poisson_matrix` as products on tensors (B, 1, *shape), without the matrix; gradients flow through.

    Parameters
    ----------
    shape, solid, wall
        As there.
    dtype, device
        Of the tensors that are multiplied.
    """

    def __init__(
        self,
        shape: Sequence[int],
        solid: Any = None,
        wall: str = "dirichlet",
        *,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str | None = None,
    ) -> None:
        self.shape, fluid = grid_of(shape, solid)
        check("wall", wall, WALL)
        self.faces = []  # 1 where pressure acts through a face, n + 1 faces along an axis
        for axis in range(fluid.ndim):
            edge = [(int(k == axis), int(k == axis)) for k in range(fluid.ndim)]
            beyond = np.pad(fluid, edge, constant_values=wall == "dirichlet")
            face = beyond[_along(axis, slice(None, -1))] & beyond[_along(axis, slice(1, None))]
            self.faces.append(torch.as_tensor(face, device=device).to(dtype))

    def __call__(self, x: Tensor) -> Tensor:
        """Multiply (B, 1, *shape)."""
        y = torch.zeros_like(x)
        for axis, face in enumerate(self.faces):
            edge = [0, 0] * (len(self.shape) - 1 - axis) + [1, 1]
            flow = torch.diff(torch.nn.functional.pad(x, edge), dim=axis + 2) * face
            y = y - torch.diff(flow, dim=axis + 2)
        return y


def null_space_projection(
    product: Callable[[Any], Any], b: Any, fluid: Mask, *, reduced: bool
) -> Callable[[Any], Any] | None:
    """Find the null vectors that solid cells and closed fluid components give a grid operator, by two products.

    Parameters
    ----------
    product : callable
        Multiplies vectors of b's kind with the operator.
    b : ndarray or Tensor (n,)
        Its kind, dtype and device are those of the vectors.
    fluid : bool array of the grid's shape
    reduced : bool
        The vectors hold fluid cells alone.

    Returns
    -------
    callable or None
        The projection: zero in solid cells, mean zero over each fluid component whose indicator is a null vector. None
        where nothing has to be projected.

    Raises
    ------
    ValueError
        The operator acts in solid cells.
    """
    labels, n_components = _components(fluid)
    flat = labels[fluid] if reduced else labels.reshape(-1)  # 0 in solid cells
    probe = np.random.default_rng(0).standard_normal(len(flat))
    moved = np.abs(_to_numpy(product(_like(probe, b))))
    scale = moved.max(initial=0.0)
    if np.any(moved[flat == 0] > ZERO * scale):
        raise value_error("A", "zero in the rows of solid cells", "a matrix that acts there", "see poisson_matrix")
    left = np.abs(_to_numpy(product(_like((flat > 0).astype(float), b))))
    alive = np.bincount(flat, left > ZERO * scale, minlength=n_components + 1) > 0
    counts = np.bincount(flat, minlength=n_components + 1)
    inverse = np.where(alive | (counts == 0), 0.0, 1.0 / np.maximum(counts, 1))
    inverse[0] = 0.0
    has_solid = bool((flat == 0).any())
    if not has_solid and not inverse.any():
        return None
    where: Any = torch.as_tensor(flat, dtype=torch.long, device=b.device) if isinstance(b, Tensor) else flat
    share, keep = _like(inverse, b), _like((flat > 0).astype(float), b)
    bincount: Callable[..., Any] = torch.bincount if isinstance(b, Tensor) else np.bincount

    def project(v: Any) -> Any:
        means = bincount(where, v, minlength=len(share)) * share
        return ((v - means[where]) * keep) if has_solid else v - means[where]

    return project


def grid_of(shape: Any, solid: Any) -> tuple[Shape, Mask]:
    """Check a grid's shape and mask of solid cells; return the shape and the mask of fluid cells.

    Raises
    ------
    TypeError
        The shape is no sequence of integers, or the mask not of booleans.
    ValueError
        Not 2 or 3 sizes, a mask of another shape, no fluid cell.
    """
    if isinstance(shape, str) or not hasattr(shape, "__len__"):
        raise kind_error("shape", "a sequence of 2 or 3 sizes", shape)
    if len(shape) not in (2, 3):
        raise value_error("shape", "2 or 3 sizes", shape)
    for size in shape:
        check("shape", size, at_least(1, integer=True))
    sizes = tuple(int(size) for size in shape)
    if solid is None:
        return sizes, np.ones(sizes, bool)
    mask = _to_numpy(solid)
    if mask.dtype != bool:
        raise kind_error("solid", "an array of booleans", solid)
    if mask.shape != sizes:
        raise value_error("solid", f"of shape {sizes}", mask)
    if mask.all():
        raise value_error("solid", "False in some cell (the fluid)", mask)
    return sizes, ~mask


def _obstacle(cells: NDArray[np.int64], shape: Shape, rng: np.random.Generator) -> Mask:
    dim = len(shape)
    kind = rng.integers(3)
    radii = np.maximum(min(shape) * rng.uniform(*RADII, size=dim), 1.0)
    rotation = np.linalg.qr(rng.standard_normal((dim, dim)))[0]
    offset = cells - rng.uniform(0, 1, dim) * (np.array(shape) - 1)
    if kind == 0:  # disc
        return np.linalg.norm(offset, axis=-1) <= radii[0]
    if kind == 1:  # box
        return np.all(np.abs(offset) <= radii, axis=-1)
    return np.linalg.norm(offset @ rotation / radii, axis=-1) <= 1  # rotated ellipse


def _components(fluid: Mask) -> tuple[NDArray[np.int32], int]:
    """Number the pieces of fluid that are joined through faces, from 1; 0 is solid."""
    labels, n_components = ndimage.label(fluid)
    return labels, int(n_components)


def _along(axis: int, part: slice | int) -> tuple[Any, ...]:
    return (slice(None),) * axis + (part,)


def _like(values: NDArray[Any], b: Any) -> Any:
    return torch.as_tensor(values, dtype=b.dtype, device=b.device) if isinstance(b, Tensor) else values.astype(b.dtype)


def _to_numpy(values: Any) -> NDArray[Any]:
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
