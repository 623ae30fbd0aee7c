r"""Infer the motion of many points from that of few: one sparse matrix, built once on where the points were at rest.

Samples lie at Y, queries at X in a reference configuration. Displacements u(Y) = x(Y) - Y of the samples give those of
the queries, u(X) = sum_Y S_XY u(Y), so a frame costs one sparse product, x(X) = X + S u. With r = (Y - X) / R:

    order 0   S = alpha,  alpha the softmax of kappa(|r|, r) over the samples within R (a partition of unity)
    order 1   S = alpha (1 + (Y - Ybar) M^-1 (X - Ybar)),  Ybar = sum alpha Y,
              M = sum alpha (Y - Ybar)(Y - Ybar)^T + 1e-6 R^2: the least-squares gradient moves the mean to X
    order 2   S = e_0^T (P^T W P + T)^-1 P^T W,  P = [1, r, r r^T], W = exp(-4 |r|^2), R the distance of the k-th
              sample, T = 1e-8 on the linear and 1e-4 on the quadratic coefficients: quadratic moving least squares

Rows of S add up to 1 in each of them, so translations come out to rounding; affine motions from order 1 and quadratic
ones from order 2 on, up to what the Tikhonov terms take off.

Papers: viswanath2024reduced (the kernel integral, order 0), lancaster1981surfaces (moving least squares).
Departures: the paper's kernel integral is a mean, not a partition of unity, followed by a learned projection, and does
not even reproduce a translation before it is trained. Orders 1 and 2 are ours.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from scipy.spatial import cKDTree
from torch import Tensor

from steepest.core.errors import check, interval, one_of, optional, positive, value_error
from steepest.geometry.graph import as_points, radius_neighbors

__all__ = ["Upsampler", "default_radius", "kernel_weights", "neighbor_lists"]

Array = NDArray[np.float64]
Kernel = Callable[[Tensor], Tensor]

NEIGHBORS = {2: 14, 3: 27}  # ours, for order 2; the second not measured
TIKHONOV = (1e-8, 1e-4)  # of order 2, on linear and quadratic coefficients
TIKHONOV_FIRST = 1e-6  # of order 1
MAX_CONDITION = 1e10
BLOCK = 2048  # queries at a time: their normal matrices stay in the cache
KERNEL_BLOCK = 8192
FRAMES = 8  # in one product: the matrix is read once for them


class Upsampler:
    r"""Motion of many points from that of few, as a fixed sparse matrix on displacements.

    Parameters
    ----------
    reference_samples : array or Tensor (n, d)
        Y, where the sampled points are in the reference configuration; d is 2 or 3.
    reference_queries : array or Tensor (q, d)
        X, where all points are in it.
    order : 0, 1 or 2
        What is reproduced: translations, affine or quadratic motions. 2 needs no radius and no kernel.
    neighbors : int, optional
        Order 2: samples that a query sees, 14 in the plane and 27 in space by default (at most n).
    radius : float, optional
        Orders 0 and 1: R, in the units of the positions. By default the median distance of a sample from its 14th
        (27th) nearest other. Queries with less than d + 2 samples within it take their d + 2 nearest, and the distance
        of the last one as R.
    kernel : callable, optional
        Orders 0 and 1: kappa, from float32 features (e, d + 1), the columns |Y - X| / R and (Y - X) / R, to e
        logarithms of weights; a small network. By default -4 (|Y - X| / R)^2.

    Attributes
    ----------
    matrix : scipy.sparse.csr_array (q, n), float64
        S.
    n_linear : int
        Queries that got order 1 of the order 2 asked for, because the condition (in the 1-norm) of their normal matrix
        before the Tikhonov terms is above 1e10: too few samples, or samples on one line, plane or conic.

    Raises
    ------
    RuntimeError
        Less than d + 2 samples.
    ValueError
        Shapes, values that are not finite, d other than 2 or 3, an argument outside its range.

    Examples
    --------
    A rotation of nine samples moves a point between them exactly as it should:

    >>> Y = np.stack(np.meshgrid([0.0, 0.5, 1.0], [0.0, 0.5, 1.0]), -1).reshape(-1, 2)
    >>> upsampler = Upsampler(Y, [[0.3, 0.2]])
    >>> turn = np.array([[0.0, -1.0], [1.0, 0.0]])
    >>> upsampler(Y @ turn.T).round(6).tolist()
    [[-0.2, 0.3]]
    """

    def __init__(
        self,
        reference_samples: Any,
        reference_queries: Any,
        *,
        order: int = 2,
        neighbors: int | None = None,
        radius: float | None = None,
        kernel: Kernel | None = None,
    ) -> None:
        check("order", order, one_of(0, 1, 2))
        Y, X = _points("reference_samples", reference_samples), _points("reference_queries", reference_queries)
        n, d = Y.shape
        if d not in NEIGHBORS or X.shape[1] != d:
            raise value_error("reference_queries", "(q, d) with the d of reference_samples, 2 or 3", X)
        if n < d + 2:
            raise RuntimeError(f"upsampling in {d} dimensions needs at least {d + 2} samples, got {n}")
        check("neighbors", neighbors, optional(interval(d + 2, integer=True)))
        check("radius", radius, optional(positive()))
        self.order, self.n_linear = order, 0
        self._on_devices: dict[tuple[torch.device, torch.dtype], tuple[Tensor, Tensor, Tensor]] = {}
        self.reference_samples, self.reference_queries = Y, X
        if order == 2:
            k = min(n, NEIGHBORS[d] if neighbors is None else neighbors)
            columns, values, self.n_linear = _moving_least_squares(Y, X, k)
            pointers = np.arange(0, k * len(X) + 1, k)
        else:
            reach = default_radius(Y) if radius is None else float(radius)
            pieces = [
                _kernel_rows(Y, X[first : first + KERNEL_BLOCK], reach, order, kernel)
                for first in range(0, len(X), KERNEL_BLOCK)
            ]
            columns, values, counts = (np.concatenate(part) for part in zip(*pieces, strict=True))
            pointers = np.concatenate(([0], np.cumsum(counts)))
        indices = (columns.ravel().astype(np.int32), pointers.astype(np.int32))
        self.matrix = sparse.csr_array((values.ravel(), *indices), shape=(len(X), n))

    def __call__(self, samples: Any) -> Any:
        """Place all points, given where the samples are.

        Parameters
        ----------
        samples : array or Tensor, (n, d) or (T, n, d)
            One configuration, or T of them. Tensors may be on any device, and gradients pass through.

        Returns
        -------
        array or Tensor, (q, d) or (T, q, d)
            Of the kind, dtype and device of `samples`; computed in float64 on the CPU, in the dtype given elsewhere and
            where a gradient is wanted.

        Raises
        ------
        ValueError
            Another shape, or values that are not finite.
        """
        n, d = self.reference_samples.shape
        tensor = isinstance(samples, Tensor)
        x: Any = samples if tensor else np.asarray(samples)
        if x.ndim not in (2, 3) or tuple(x.shape[-2:]) != (n, d):
            raise value_error("samples", f"of shape ({n}, {d}) or (T, {n}, {d})", x)
        if not bool((torch.isfinite(x) if tensor else np.isfinite(x)).all()):
            raise value_error("samples", "finite", x)
        frames = x if x.ndim == 3 else x[None]
        if not tensor:
            placed: Any = self._place(frames, x.dtype if x.dtype.kind == "f" else np.dtype(np.float64))
        elif x.device.type == "cpu" and not (x.requires_grad and torch.is_grad_enabled()):
            wanted = np.dtype(np.float32 if x.dtype == torch.float32 else np.float64)
            placed = torch.from_numpy(self._place(frames.detach().double().numpy(), wanted)).to(x.dtype)
        else:
            placed = self._place_in_torch(frames)
        return placed if x.ndim == 3 else placed[0]

    def _place(self, frames: np.ndarray, dtype: np.dtype) -> np.ndarray:
        T, n, d = frames.shape
        u = (frames - self.reference_samples).transpose(1, 0, 2).reshape(n, T * d)
        placed = np.empty((T, len(self.reference_queries), d), dtype)
        for first in range(0, T, FRAMES):
            moved = self.matrix @ u[:, first * d : (first + FRAMES) * d]
            for t in range(moved.shape[1] // d):
                np.add(
                    self.reference_queries, moved[:, t * d : (t + 1) * d], out=placed[first + t], casting="same_kind"
                )
        return placed

    def _place_in_torch(self, frames: Tensor) -> Tensor:
        T, n, d = frames.shape
        S, Y, X = self._tensors(frames.device, frames.dtype)
        u = (frames - Y).transpose(0, 1).reshape(n, T * d)
        return X + torch.sparse.mm(S, u).reshape(-1, T, d).transpose(0, 1)

    def _tensors(self, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        if (device, dtype) not in self._on_devices:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="Sparse CSR tensor support", category=UserWarning)
                S = torch.sparse_csr_tensor(
                    torch.from_numpy(self.matrix.indptr),
                    torch.from_numpy(self.matrix.indices),
                    torch.from_numpy(self.matrix.data),
                    size=self.matrix.shape,
                    dtype=dtype,
                    device=device,
                    check_invariants=False,
                )
            Y, X = (torch.from_numpy(p).to(device, dtype) for p in (self.reference_samples, self.reference_queries))
            self._on_devices[device, dtype] = (S, Y, X)
        return self._on_devices[device, dtype]


def neighbor_lists(samples: Array, queries: Array, radius: float) -> tuple[Tensor, Tensor, Tensor]:
    """List for each query the samples that orders 0 and 1 let it see.

    Returns
    -------
    rows, columns : Tensor (e,), int64
        Query and sample of each pair, sorted by query.
    features : Tensor (e, d + 1), float64
        |Y - X| / R and (Y - X) / R.
    """
    least = samples.shape[1] + 2
    rows, columns, _ = radius_neighbors(queries, radius, samples)
    scale = np.full(len(queries), radius)
    poor = np.bincount(rows, minlength=len(queries)) < least
    if poor.any():
        distances, nearest = cKDTree(samples).query(queries[poor], k=least)
        scale[poor] = np.maximum(distances[:, -1], np.finfo(np.float64).tiny)
        rich = ~poor[rows]
        rows = np.concatenate((rows[rich], np.repeat(np.nonzero(poor)[0], least)))
        columns = np.concatenate((columns[rich], nearest.ravel()))
        order = np.argsort(rows, kind="stable")
        rows, columns = rows[order], columns[order]
    relative = (samples[columns] - queries[rows]) / scale[rows, None]
    features = np.concatenate((np.linalg.norm(relative, axis=1, keepdims=True), relative), axis=1)
    return (
        torch.from_numpy(rows.astype(np.int64)),
        torch.from_numpy(columns.astype(np.int64)),
        torch.from_numpy(features),
    )


def kernel_weights(logits: Tensor, rows: Tensor, features: Tensor, n_queries: int, order: int) -> Tensor:
    """Give the entries of S of orders 0 and 1, differentiable in `logits`.

    Parameters
    ----------
    logits : Tensor (e,)
        kappa of each pair of `neighbor_lists`.
    rows, features : Tensor
        From `neighbor_lists`.
    n_queries : int
    order : 0 or 1

    Returns
    -------
    Tensor (e,)
    """

    def of_query(values: Tensor) -> Tensor:
        return values.index_select(0, rows)  # several times as fast on the CPU as values[rows]

    def total(values: Tensor) -> Tensor:
        return values.new_zeros(n_queries, *values.shape[1:]).index_add(0, rows, values)

    largest = logits.new_full((n_queries,), -torch.inf).scatter_reduce(0, rows, logits.detach(), "amax")
    weight = (logits - of_query(largest)).exp()
    alpha = weight / of_query(total(weight))
    if order == 0:
        return alpha
    relative = features[:, 1:].to(alpha.dtype)
    mean = total(alpha[:, None] * relative)  # (Ybar - X) / R
    c = relative - of_query(mean)
    M = total((alpha[:, None] * c)[:, :, None] * c[:, None, :])
    identity = torch.eye(relative.shape[1], dtype=M.dtype, device=M.device)
    gradient = torch.linalg.solve(M + TIKHONOV_FIRST * identity, -mean)
    return alpha * (1 + torch.einsum("ea,ea->e", c, of_query(gradient)))


def _kernel_rows(
    Y: Array, X: Array, radius: float, order: int, kernel: Kernel | None
) -> tuple[NDArray[np.int64], Array, NDArray[np.int64]]:
    """Give columns and values of rows of S of order 0 or 1, and how many each row has."""
    rows, columns, features = neighbor_lists(Y, X, radius)
    with torch.no_grad():
        logits = kernel(features.float()) if kernel is not None else -4 * features[:, 0].square()
        if logits.numel() != len(rows):
            raise value_error("kernel", f"a function that gives {len(rows)} numbers", logits)
        alpha = kernel_weights(logits.double().reshape(-1), rows, features, len(X), order)
    return columns.numpy(), alpha.numpy(), np.bincount(rows.numpy(), minlength=len(X))


def default_radius(samples: Array) -> float:
    """Give the median distance of a sample from its 14th nearest other (27th in space)."""
    k = min(NEIGHBORS[samples.shape[1]], len(samples) - 1)
    radius = float(np.median(cKDTree(samples).query(samples, k=[k + 1])[0]))  # the first is the sample itself
    if radius == 0:
        raise value_error("radius", "given where most samples coincide", None)
    return radius


def _moving_least_squares(Y: Array, X: Array, k: int) -> tuple[NDArray[np.int64], Array, int]:
    """Give the k columns and values of each row of S of order 2, and how many rows are of order 1."""
    d = Y.shape[1]
    q = len(X)
    near_in_space = cKDTree(X, balanced_tree=False, compact_nodes=False).indices  # such queries share the tree's nodes
    columns, values = np.empty((q, k), dtype=np.int64), np.empty((q, k))
    tree, n_linear = cKDTree(Y), 0
    tikhonov = np.diag([0.0] + [TIKHONOV[0]] * d + [TIKHONOV[1]] * (d * (d + 1) // 2))[:, :, None]
    for first in range(0, q, BLOCK):
        rows = near_in_space[first : first + BLOCK]
        distances, columns[rows] = tree.query(X[rows], k=k)
        R = np.maximum(distances[:, -1], np.finfo(np.float64).tiny)
        r = np.ascontiguousarray(
            ((Y[columns[rows]] - X[rows, None]) / R[:, None, None]).transpose(2, 1, 0)
        )  # (d, k, b)
        W = np.exp(-4 * np.square(distances / R[:, None]).T)
        P = np.stack([np.ones_like(W), *r, *(r[a] * r[b] for a in range(d) for b in range(a, d))])  # (p, k, b)
        WP = W * P
        normal = np.einsum("akb,ckb->acb", WP, P)
        bad = ~(_condition(normal) <= MAX_CONDITION)
        coefficients = _inverse(normal + tikhonov)[0]  # (p, b), the row that gives the constant
        if bad.any():
            coefficients[:, bad] = 0.0
            coefficients[: d + 1, bad] = _inverse((normal + tikhonov)[: d + 1, : d + 1, bad])[0]
            n_linear += int(bad.sum())
        values[rows] = np.einsum("ab,akb->bk", coefficients, WP)
    return columns, values, n_linear


def _condition(A: Array) -> Array:
    """Condition numbers in the 1-norm of matrices (p, p, b), not finite or huge where singular."""
    return np.abs(A).sum(0).max(0) * np.abs(_inverse(A)).sum(0).max(0)


def _inverse(A: Array) -> Array:
    """Invert symmetric positive definite matrices (p, p, b), all b at once, by Gauss-Jordan sweeps."""
    A = A.copy()
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        for j in range(len(A)):
            pivot = 1 / A[j, j]
            row, column = A[j] * pivot, A[:, j].copy()
            A -= column[:, None] * row[None]
            A[j], A[:, j], A[j, j] = row, -column * pivot, pivot
    return A


def _points(name: str, value: Any) -> Array:
    array = value.detach().cpu().numpy() if isinstance(value, Tensor) else value
    return as_points(array, name)
