r"""Exact products with the inverse of a damped empirical Fisher matrix, without forming it.

Given m gradients as the rows of G (m, d),

    F = damping I_d + G^T G / m,        F^{-1} = (I - V^T V) / damping,
    V = L^{-1} G,                       L L^T = G G^T + m damping I_m        (Woodbury, Cholesky)

so that a product costs O(d m), an element O(m), the diagonal O(d m), the preparation O(d m^2), the memory O(d m).
The recursion of the paper (Sherman-Morrison, one gradient at a time),

    h_i = F_{i-1}^{-1} g_i,   D_i = m + g_i . h_i,   F^{-1} x = x / damping - sum_i h_i (h_i . x) / D_i,

is the same factor row by row: V_i = sqrt(damping / D_i) h_i. With `block_size` F is its block diagonal.

Paper: frantar2021mfac, static algorithm (for the dynamic one see `SlidingFisherInverse`).

========  ==========================
paper     here
========  ==========================
λ         ``damping``
∇ℓ_i      g_i, row i of ``grads``
v^i, D    h_i, D_i
========  ==========================

Departures: (1) the factor is made by level-3 kernels in float64 (`algorithm="cholesky"`), the recursion is kept as
`algorithm="recursive"`; (2) the diagonal is never below the reciprocal diagonal of F; (3) m counts rows, zero rows
included, and there is no requirement on m.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from steepest.core.errors import (
    at_least,
    boolean,
    check,
    check_params,
    kind_error,
    one_of,
    optional,
    positive,
    value_error,
)
from steepest.curvature._gradient_matrix import block_spans, full_precision, gradient_matrix, spans, triangle_rows

__all__ = ["EmpiricalFisherInverse"]

DENSE_LIMIT = 20_000  # columns above which to_dense wants force=True
LIMITS = {
    "damping": positive(),
    "block_size": optional(at_least(1, integer=True)),
    "page_columns": optional(at_least(1, integer=True)),
    "algorithm": one_of("cholesky", "recursive"),
    "gram_dtype": one_of(torch.float64, torch.float32),
    "overwrite": boolean(),
}


class EmpiricalFisherInverse:
    """Inverse of ``F = damping I + grads^T grads / m`` as an operator (M-FAC, static algorithm).

    Parameters
    ----------
    grads : Tensor (m, d), numpy array or memmap (m, d), or re-iterable of m rows (d,)
        One gradient per row, float32 or float64. A memory-mapped file is read page by page.
    damping : float
        λ > 0 (default of the official code).
    block_size : int, optional
        F is cut into diagonal blocks of this many columns (the last may be smaller), each inverted alone.
    algorithm : "cholesky" or "recursive"
        Level-3 kernels, or the paper's recursion: the same factor.
    gram_dtype : torch.dtype
        In which ``G G^T`` is accumulated (with `block_size` always float64); its factor is float64.
    overwrite : bool
        Put the factor where the gradients are (in their tensor, array or file): no second copy of m d values.
        `fisher_matvec`, `residual` and refinement then have nothing to work on and raise.
    page_columns : int, optional
        How many columns are worked on at a time; with `device`, only one page lies there.
    device : torch.device or str, optional
        Where to compute; where the gradients are by default. Without `page_columns` the gradients move there.

    Attributes
    ----------
    m, d, damping, dtype, device, shape
        `m` is the number of rows, ``shape`` is ``(d, d)``, `device` is where x is expected.

    Raises
    ------
    ValueError, TypeError
        Gradients that are not (m, d), empty, not float32/float64 or not finite; damping <= 0; a size below 1.
    torch.linalg.LinAlgError
        `damping` is below the rounding errors of the Gram matrix. No jitter is ever added.

    Notes
    -----
    For x in the span of the gradients ``F^{-1} x`` is up to ``|F| / damping`` times smaller than ``x / damping``, of
    which it is a difference, so float32 keeps few digits there, and the rounding of x itself is amplified as much.
    `residual` tells; `matvec` refines; a pushed gradient is better served by `SlidingFisherInverse.push_matvec`.

    References
    ----------
    frantar2021mfac, static algorithm.

    Examples
    --------
    >>> grads = torch.tensor([[1.0, 0.0, 2.0], [0.0, 3.0, 0.0]], dtype=torch.float64)
    >>> inverse = EmpiricalFisherInverse(grads, damping=0.5)
    >>> x = torch.tensor([1.0, 1.0, 1.0], dtype=torch.float64)
    >>> dense = 0.5 * torch.eye(3, dtype=torch.float64) + grads.T @ grads / 2
    >>> torch.allclose(inverse @ x, torch.linalg.solve(dense, x))
    True
    >>> round(float(inverse.element(0, 2)), 6)
    -0.666667
    """

    def __init__(
        self,
        grads: Tensor | np.ndarray | Iterable[Any],
        damping: float = 1e-5,
        *,
        block_size: int | None = None,
        algorithm: str = "cholesky",
        gram_dtype: torch.dtype = torch.float64,
        overwrite: bool = False,
        page_columns: int | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        self.damping = damping
        self.block_size = block_size
        self.algorithm = algorithm
        self.gram_dtype = gram_dtype
        self.overwrite = overwrite
        self.page_columns = page_columns
        check_params(self, LIMITS)
        if page_columns is not None and algorithm == "recursive":
            raise value_error(
                "page_columns", "None with algorithm='recursive', which works on whole rows", page_columns
            )
        self.damping = float(damping)

        G = gradient_matrix(grads, writable=overwrite)  # (m, d)
        if device is not None and page_columns is None:
            G = G.to(device)
        self.m, self.d = G.shape
        self.dtype = G.dtype
        self.device = G.device if device is None else torch.device(device)
        self.shape = (self.d, self.d)

        self._G = None if overwrite else G
        self._diag_floor = self._reciprocal_diagonal(G) if overwrite else None
        rows = self.m if algorithm == "recursive" else min(self.m, block_size or self.d)
        self._V = G[:rows] if overwrite else torch.empty_like(G[:rows])  # (rows, d)
        with full_precision(self.device):
            if algorithm == "recursive":
                self._recursion(G)
            elif block_size is None and self.m <= self.d:
                self._factor(G)
            else:
                self._factor_blocks(G)

    def matvec(self, x: Tensor, refine: int = 0) -> Tensor:
        """Multiply the inverse with one vector or several.

        Parameters
        ----------
        x : Tensor (d,) or (d, k)
            Of the gradients' dtype, on `device`.
        refine : int
            Steps of iterative refinement with residuals in float64. They contract only while
            ``lambda_max(F) / damping`` times the rounding unit is below 1; a column whose residual would grow is
            left as it is.

        Returns
        -------
        Tensor
            ``F^{-1} x``, shaped as `x`.
        """
        check("refine", refine, at_least(0, integer=True))
        X = self._columns(x)
        with full_precision(self.device):
            Y = self._apply_inverse(X)
            if refine:
                Y = self._refined(X, Y, refine)
        return Y.reshape(x.shape)

    __call__ = matvec

    def __matmul__(self, x: Tensor) -> Tensor:
        """``F^{-1} x``."""
        return self.matvec(x)

    def fisher_matvec(self, x: Tensor) -> Tensor:
        """Multiply F itself with `x` ((d,) or (d, k)).

        Raises
        ------
        RuntimeError
            The gradients were overwritten.
        """
        X = self._columns(x)
        with full_precision(self.device):
            return self._apply_fisher(X, self.dtype).reshape(x.shape)

    def residual(self, x: Tensor) -> float:
        """Measure ``norm(F F^{-1} x - x) / norm(x)`` in float64, over all columns of `x` together."""
        X = self._columns(x).double()
        Y = self.matvec(x).reshape(X.shape).double()
        with full_precision(self.device):
            error = torch.linalg.vector_norm(self._apply_fisher(Y, torch.float64) - X)
        size = torch.linalg.vector_norm(X)
        return float(error / size) if float(size) > 0 else float(error)

    def diag(self) -> Tensor:
        """Compute the diagonal of the inverse, (d,), in O(d m).

        An inverse's diagonal is never below the reciprocal diagonal; entries that rounding took below it are raised.
        """
        out = torch.empty(self.d, dtype=self.dtype, device=self.device)
        for a, b in spans(self.d, self._page_width()):
            out[a:b] = (1 - self._page(self._V, a, b).square().sum(0)) / self.damping
        return torch.maximum(out, self._floor())

    def element(self, i: int | Tensor, j: int | Tensor) -> Tensor:
        """Compute elements of the inverse in O(m) each.

        Parameters
        ----------
        i, j : int, or integer Tensor (k,)
            Rows and columns, 0 <= i, j < d.

        Returns
        -------
        Tensor
            0-dim for two ints, else (k,). Zero where i and j lie in different blocks.

        Raises
        ------
        IndexError
            An index out of range.
        """
        i, j = self._index(i, "i"), self._index(j, "j")
        if isinstance(i, int) and isinstance(j, int):
            k = self.block_size or self.d
            if i // k != j // k:
                return torch.zeros((), dtype=self.dtype, device=self.device)
            product = torch.dot(self._V[:, i], self._V[:, j])
            value = ((1.0 if i == j else 0.0) - product).to(self.device) / self.damping
            return torch.maximum(value, self._floor(i, i + 1)[0]) if i == j else value
        rows, cols = torch.broadcast_tensors(torch.as_tensor(i), torch.as_tensor(j))
        rows, cols = rows.to(self._V.device), cols.to(self._V.device)
        same = rows == cols
        values = (same.to(self.dtype) - (self._V[:, rows] * self._V[:, cols]).sum(0)) / self.damping
        values = values.to(self.device)
        if bool(same.any()):
            same = same.to(self.device)
            values[same] = torch.maximum(values[same], self._floor()[rows.to(self.device)[same]])
        if self.block_size is not None:
            values[(rows // self.block_size != cols // self.block_size).to(self.device)] = 0
        return values

    def to_dense(self, force: bool = False) -> Tensor:
        """Form the inverse, (d, d); refused for d > 20,000 unless `force`."""
        if self.d > DENSE_LIMIT and not force:
            raise value_error("d", f"<= {DENSE_LIMIT} for a dense inverse", self.d, "pass force=True, or use matvec")
        return self.matvec(torch.eye(self.d, dtype=self.dtype, device=self.device))

    def as_linear_operator(self) -> Any:
        """Wrap as a `scipy.sparse.linalg.LinearOperator` of shape (d, d) on NumPy arrays."""
        from scipy.sparse.linalg import LinearOperator

        dtype = torch.empty(0, dtype=self.dtype).numpy().dtype

        def product(x: np.ndarray) -> np.ndarray:
            tensor = torch.from_numpy(np.array(x, dtype=dtype)).to(self.device)
            return self.matvec(tensor.reshape(self.d, -1)).reshape(x.shape).cpu().numpy()

        return LinearOperator(self.shape, matvec=product, rmatvec=product, matmat=product, rmatmat=product, dtype=dtype)

    def __repr__(self) -> str:
        block = "" if self.block_size is None else f", block_size={self.block_size}"
        return f"{type(self).__name__}(d={self.d}, m={self.m}, damping={self.damping:g}{block}, dtype={self.dtype})"

    # ------------------------------------------------------------------ preparation

    def _factor(self, G: Tensor) -> None:
        """V = L^{-1} G, page by page of columns."""
        L = self._cholesky(self._gram(G, self.gram_dtype))
        if L is None and self.gram_dtype != torch.float64:
            L = self._cholesky(self._gram(G, torch.float64))
        if L is None:
            raise self._not_definite()
        eye = torch.eye(self.m, dtype=torch.float64, device=self.device)
        L_inv = torch.linalg.solve_triangular(L, eye, upper=False).to(self.dtype)
        step = triangle_rows(self.m, self.device)
        for a, b in spans(self.d, self._page_width()):
            X = self._page(G, a, b)
            for i in reversed(range(0, self.m, step)):  # from below: row i of V needs rows <= i of G
                self._V[i : i + step, a:b] = L_inv[i : i + step, : i + step] @ X[: i + step]

    def _gram(self, G: Tensor, dtype: torch.dtype) -> Tensor:
        """Lower triangle of G G^T + m damping I, float64."""
        K = torch.zeros(self.m, self.m, dtype=dtype, device=self.device)
        step = triangle_rows(self.m, self.device)
        for a, b in spans(self.d, self._page_width()):
            X = self._page(G, a, b).to(dtype)
            for i in range(0, self.m, step):
                K[i : i + step, : i + step].addmm_(X[i : i + step], X[: i + step].mT)
        return self._damped(K.double())

    def _factor_blocks(self, G: Tensor) -> None:
        """The same for equal blocks at a time, (n, m, b); where m > b the R factor of G carries the same F."""
        for a, b, width in self._block_pages(self.m):
            X = self._page(G, a, b).reshape(self.m, -1, width).transpose(0, 1).double()
            if self.m > width:
                X = torch.linalg.qr(X, mode="r").R
            L = self._cholesky(self._damped(X @ X.mT))
            if L is None:
                raise self._not_definite()
            V = torch.linalg.solve_triangular(L, X, upper=False).transpose(0, 1).reshape(X.shape[1], b - a)
            self._V[: len(V), a:b] = V
            self._V[len(V) :, a:b] = 0

    def _recursion(self, G: Tensor) -> None:
        """Sherman-Morrison, one gradient at a time; h_i and D_i per block."""
        V, m, damping = self._V, self.m, self.damping
        for i in range(m):
            g = G[i].clone()
            for a, b, width in self._block_pages(1, whole=True):
                n = (b - a) // width
                rows, g_b = V[:i, a:b], g[a:b].reshape(n, width)
                if n == 1:
                    h = (g_b - (rows @ g[a:b]) @ rows) / damping
                else:
                    blocks = rows.reshape(i, n, width)
                    h = (g_b - ((blocks * g_b).sum(-1, keepdim=True) * blocks).sum(0)) / damping
                D = m + (g_b * h).sum(-1, keepdim=True)
                if not bool(torch.isfinite(D).all()):
                    raise value_error("grads", "finite", f"a non-finite value in row {i}")
                if bool((D <= 0).any()):
                    raise self._not_definite()
                V[i, a:b] = (h * (damping / D).sqrt()).reshape(-1)

    def _damped(self, K: Tensor) -> Tensor:
        diagonal = K.diagonal(dim1=-2, dim2=-1)
        if not bool(torch.isfinite(diagonal).all()):
            raise value_error("grads", "finite", "gradients that hold NaN or infinity")
        diagonal += self.m * self.damping
        return K

    @staticmethod
    def _cholesky(K: Tensor) -> Tensor | None:
        L, info = torch.linalg.cholesky_ex(K)
        return None if bool((info != 0).any()) else L

    def _not_definite(self) -> RuntimeError:
        message = f"damping={self.damping:g} is below the rounding errors of the gradients' Gram matrix; raise damping"
        return torch.linalg.LinAlgError(message)  # type: ignore[attr-defined]

    # ------------------------------------------------------------------ products

    def _apply_inverse(self, X: Tensor) -> Tensor:
        return (X - self._normal_product(self._V, X)) / self.damping

    def _apply_fisher(self, X: Tensor, dtype: torch.dtype) -> Tensor:
        if self._G is None:
            raise RuntimeError("the gradients were overwritten by their factor; build with overwrite=False")
        return self.damping * X + self._normal_product(self._G, X.to(dtype)) / self.m

    def _normal_product(self, A: Tensor, X: Tensor) -> Tensor:
        """A^T A X per block, in the dtype of X; A (rows, d), X (d, k)."""
        out = torch.empty_like(X)
        casting = A.dtype != X.dtype
        if self.block_size is None:
            pages = list(spans(self.d, self._page_width() if casting else self.page_columns or self.d))
            T = X.new_zeros(len(A), X.shape[1])
            for a, b in pages:
                T += self._page(A, a, b).to(X.dtype) @ X[a:b]
            for a, b in pages:
                out[a:b] = self._page(A, a, b).to(X.dtype).mT @ T
            return out
        for a, b, width in self._block_pages(1):
            blocks = self._page(A, a, b).to(X.dtype).reshape(len(A), -1, width)  # (rows, n, width)
            X_b = X[a:b].reshape(-1, width, X.shape[1])  # (n, width, k)
            if X.shape[1] == 1:  # small batched products of one column are slower than this
                T = (blocks * X_b.squeeze(2)).sum(2)
                out[a:b, 0] = (blocks * T[:, :, None]).sum(0).reshape(-1)
            else:
                blocks = blocks.transpose(0, 1)
                out[a:b] = (blocks.mT @ (blocks @ X_b)).reshape(b - a, -1)
        return out

    def _refined(self, X: Tensor, Y: Tensor, steps: int) -> Tensor:
        X, Y = X.double(), Y.double()
        R = X - self._apply_fisher(Y, torch.float64)
        error = torch.linalg.vector_norm(R, dim=0)
        for _ in range(steps):
            trial = Y + self._apply_inverse(R.to(self.dtype)).double()
            R_trial = X - self._apply_fisher(trial, torch.float64)
            error_trial = torch.linalg.vector_norm(R_trial, dim=0)
            better = error_trial < error
            if not bool(better.any()):
                break
            Y, R = torch.where(better, trial, Y), torch.where(better, R_trial, R)
            error = torch.where(better, error_trial, error)
        return Y.to(self.dtype)

    # ------------------------------------------------------------------ pages, indices, checks

    def _page(self, A: Tensor, a: int, b: int) -> Tensor:
        return A[:, a:b].to(self.device)

    def _page_width(self) -> int:
        """Columns of a page whose float64 copy stays in cache (4 MiB; 256 MiB on an accelerator)."""
        return self.page_columns or max(256, (2**19 if self.device.type == "cpu" else 2**25) // self.m)

    def _block_pages(self, rows: int, *, whole: bool = False) -> Iterator[tuple[int, int, int]]:
        """(start, stop, width) of pages that hold equal blocks; `rows` by `rows` values are kept per block."""
        width = min(self.block_size or self.d, self.d)
        columns = self.page_columns or self._page_width() * width // max(width, rows)
        return block_spans(self.d, width, self.d if whole else columns)

    def _reciprocal_diagonal(self, G: Tensor) -> Tensor:
        out = torch.empty(self.d, dtype=self.dtype, device=self.device)
        for a, b in spans(self.d, self._page_width()):
            out[a:b] = 1 / (self.damping + self._page(G, a, b).square().sum(0) / self.m)
        return out

    def _floor(self, a: int = 0, b: int | None = None) -> Tensor:
        """1 / F_ii: an inverse's diagonal is never below it."""
        if self._diag_floor is not None:
            return self._diag_floor[a:b]
        if b is None:
            self._diag_floor = self._reciprocal_diagonal(self._matrix())
            return self._diag_floor
        column = self._page(self._matrix(), a, b)
        return 1 / (self.damping + column.square().sum(0) / self.m)

    def _matrix(self) -> Tensor:
        if self._G is None:
            raise RuntimeError("the gradients were overwritten by their factor; build with overwrite=False")
        return self._G

    def _columns(self, x: Tensor) -> Tensor:
        if not isinstance(x, Tensor):
            raise kind_error("x", "a Tensor", x)
        if x.dtype != self.dtype:
            raise kind_error("x", f"of dtype {self.dtype}", x)
        if x.ndim not in (1, 2) or len(x) != self.d:
            raise value_error("x", f"of shape ({self.d},) or ({self.d}, k)", x)
        return x.detach().reshape(self.d, -1)

    def _index(self, i: int | Tensor, name: str) -> int | Tensor:
        if isinstance(i, Tensor) and i.ndim > 0:
            if i.dtype.is_floating_point or i.dtype == torch.bool:
                raise kind_error(name, "an int or a tensor of integers", i)
            low, high = (int(i.min()), int(i.max())) if i.numel() else (0, 0)
        else:
            try:
                i = low = high = int(i.__index__())
            except (AttributeError, TypeError):
                raise kind_error(name, "an int or a tensor of integers", i) from None
        if low < 0 or high >= self.d:
            raise IndexError(f"{name} must be in [0, {self.d}), got {low if low < 0 else high}")
        return i
