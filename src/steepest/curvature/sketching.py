r"""Random sketching matrices S (s, m) with ``E[S^T S] = I``, applied without being formed.

===========  ====================================================================  ==================
kind         S                                                                     cost of S @ A (m, k)
===========  ====================================================================  ==================
gaussian     independent N(0, 1/s) entries                                         s m k
count        one random sign in a random row of every column                       m k
sparse_sign  `nnz` random signs / sqrt(nnz) in distinct rows of every column       nnz m k
srht         s rows, without replacement, of Hadamard times random signs,          m k log m
             columns padded to a power of two M, scaled by sqrt(M / s)
rows         s rows drawn with probabilities p, scaled by 1 / sqrt(s p_i)          s k
===========  ====================================================================  ==================

Papers: clarkson2013low (count); cohen2016nearly (sparse_sign); ailon2009fast, tropp2011improved (srht);
drineas2006fast (rows).   Notation: s sketched size, m original size, H the orthonormal Hadamard matrix.
Departures: none.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from steepest.core.errors import at_least, check, kind_error, one_of, value_error
from steepest.core.random import torch_generator
from steepest.curvature.operators import CurvatureOperator, _is_scipy, aslinearoperator, column_blocks
from steepest.curvature.vectors import probes

__all__ = ["Sketch", "sketch"]

BLOCK_ELEMENTS = 2**22  # numbers of S, or of a padded block, in memory at a time
RADIX = 32  # Hadamard butterflies are taken five at a time, as products with a 32 x 32 matrix


def sketch(
    kind: str,
    s: int,
    m: int,
    *,
    seed: int | torch.Generator | None = None,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str | None = None,
    p: Tensor | None = None,
    nnz: int = 8,
) -> Sketch:
    """Draw a random sketching matrix S of shape (s, m) with ``E[S^T S] = I``.

    Parameters
    ----------
    kind : "gaussian", "count", "sparse_sign", "srht" or "rows"
        See the module's table.
    s, m : int
        Sketched and original size.
    seed : int, torch.Generator or None
    dtype : torch.dtype
        Of S, and of what it is applied to.
    device : torch.device, optional
    p : Tensor of shape (m,), optional
        Probabilities of "rows"; uniform by default. Rows with p = 0 are never drawn.
    nnz : int
        Nonzeros in a column of "sparse_sign", at most s.

    Returns
    -------
    Sketch
        With ``S @ A``, ``S.T @ y``, ``S.dense()`` and ``S.shape``.

    Raises
    ------
    ValueError
        An unknown kind, sizes below 1, "srht" with more rows than the padded size, probabilities that are negative,
        do not sum to 1, or are given for another kind.

    Examples
    --------
    >>> S = sketch("count", 4, 100, seed=0)
    >>> (S @ torch.ones(100, 3, dtype=torch.float64)).shape, S.dense().abs().sum().item()
    (torch.Size([4, 3]), 100.0)
    """
    check("kind", kind, one_of(*KINDS))
    check("s", s, at_least(1, integer=True))
    check("m", m, at_least(1, integer=True))
    check("nnz", nnz, at_least(1, integer=True))
    if not dtype.is_floating_point:
        raise value_error("dtype", "real floating point", str(dtype))
    if p is not None and kind != "rows":
        raise value_error("p", "None unless kind='rows'", p)
    generator = torch_generator(seed, device)
    if kind == "rows":
        return _Rows(s, m, generator, dtype, p)
    return _SparseSign(s, m, generator, dtype, nnz) if kind == "sparse_sign" else KINDS[kind](s, m, generator, dtype)


class Sketch:
    """A sketching matrix S of shape (s, m); made by `sketch`.

    Attributes
    ----------
    shape : (int, int)
    dtype : torch.dtype
    device : torch.device
    T : the transpose, for ``S.T @ y``
    """

    __array_ufunc__ = None  # NumPy leaves ``array @ S`` to Python, which then says that it cannot

    def __init__(self, s: int, m: int, generator: torch.Generator, dtype: torch.dtype) -> None:
        self.shape, self.dtype, self.device = (s, m), dtype, generator.device

    def __matmul__(self, A: Any) -> Tensor:
        """Apply to `A` (m,) or (m, k): a tensor, an array, a sparse matrix or an operator; the result is a tensor."""
        return _apply(A, self.shape[1], self, self._forward, self._sparse)

    @property
    def T(self) -> _Transpose:
        """The transpose."""
        return _Transpose(self)

    def dense(self) -> Tensor:  # (s, m)
        """Form S."""
        return self @ torch.eye(self.shape[1], dtype=self.dtype, device=self.device)

    def _forward(self, A: Tensor) -> Tensor:  # (m, k) -> (s, k)
        raise NotImplementedError

    def _adjoint(self, y: Tensor) -> Tensor:  # (s, k) -> (m, k)
        raise NotImplementedError

    def _sparse(self, A: Any) -> Tensor:
        """Apply to a sparse matrix: by blocks of columns, made dense one after another."""
        A = A.tocsc()
        blocks = column_blocks(A.shape[0], A.shape[1], block_elements=BLOCK_ELEMENTS)
        return torch.cat([self._forward(_tensor(A[:, i : i + w].toarray(), self)) for i, w in blocks], 1)


class _Transpose:
    """``S.T``."""

    def __init__(self, S: Sketch) -> None:
        self.S, self.shape = S, (S.shape[1], S.shape[0])

    def __matmul__(self, y: Any) -> Tensor:
        return _apply(
            y, self.shape[1], self.S, self.S._adjoint, lambda y: self.S._adjoint(_tensor(y.toarray(), self.S))
        )


class _Gaussian(Sketch):
    """Its columns are drawn anew, block by block, at every application: S is never in memory."""

    def __init__(self, s: int, m: int, generator: torch.Generator, dtype: torch.dtype) -> None:
        super().__init__(s, m, generator, dtype)
        self.seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))

    def _blocks(self) -> Iterator[tuple[slice, Tensor]]:  # columns, their transpose (w, s)
        generator = torch_generator(self.seed, self.device)
        s, m = self.shape
        for start, width in column_blocks(s, m, block_elements=BLOCK_ELEMENTS):
            block = torch.randn(width, s, generator=generator, dtype=self.dtype, device=self.device)
            yield slice(start, start + width), block.mul_(1 / math.sqrt(s))

    def _forward(self, A: Tensor) -> Tensor:
        out = A.new_zeros(self.shape[0], A.shape[1])
        for columns, block in self._blocks():
            out.addmm_(block.T, A[columns])
        return out

    def _adjoint(self, y: Tensor) -> Tensor:
        return torch.cat([block @ y for _, block in self._blocks()])

    def _sparse(self, A: Any) -> Tensor:
        A = A.tocsr()
        out = torch.zeros(self.shape[0], A.shape[1], dtype=self.dtype)
        for columns, block in self._blocks():
            out += torch.from_numpy((A[columns].T @ block.numpy()).T)
        return out


class _SparseSign(Sketch):
    """`nnz` signs in distinct rows of every column; with one it is the count sketch."""

    def __init__(self, s: int, m: int, generator: torch.Generator, dtype: torch.dtype, nnz: int = 1) -> None:
        super().__init__(s, m, generator, dtype)
        self.nnz = min(nnz, s)
        self.index = _distinct_rows(s, m, self.nnz, generator)  # (m, nnz)
        signs = probes(m * self.nnz, 1, generator=generator, dtype=dtype, device=self.device)
        self.value = signs.view(m, self.nnz).div_(math.sqrt(self.nnz))

    def _forward(self, A: Tensor) -> Tensor:
        out = A.new_zeros(self.shape[0], A.shape[1])
        for index, value in zip(self.index.T, self.value.T, strict=True):
            out.index_add_(0, index, A * value.unsqueeze(1))
        return out

    def _adjoint(self, y: Tensor) -> Tensor:
        out = y[self.index[:, 0]] * self.value[:, :1]
        for index, value in zip(self.index.T[1:], self.value.T[1:], strict=True):
            out.addcmul_(y[index], value.unsqueeze(1))
        return out

    def _sparse(self, A: Any) -> Tensor:
        A = A.tocoo()
        row, column = torch.from_numpy(A.row).long(), torch.from_numpy(A.col).long()
        data = _tensor(A.data, self)
        out = torch.zeros(self.shape[0], A.shape[1], dtype=self.dtype)
        for index, value in zip(self.index.T, self.value.T, strict=True):
            out.index_put_((index[row], column), data * value[row], accumulate=True)
        return out


class _SRHT(Sketch):
    """``sqrt(M / s) R H D``: signs D, orthonormal Hadamard H of order M, s of its rows R."""

    def __init__(self, s: int, m: int, generator: torch.Generator, dtype: torch.dtype) -> None:
        super().__init__(s, m, generator, dtype)
        self.padded = 1 << (m - 1).bit_length()
        if s > self.padded:
            raise value_error("s", f"<= {self.padded}, m padded to a power of two, for kind='srht'", s)
        self.sign = probes(m, 1, generator=generator, dtype=dtype, device=self.device)
        self.rows = torch.randperm(self.padded, generator=generator, device=self.device)[:s]

    def _forward(self, A: Tensor) -> Tensor:
        parts = []
        for start, width in column_blocks(self.padded, A.shape[1], block_elements=BLOCK_ELEMENTS):
            x = A.new_zeros(self.padded, width)
            torch.mul(A[:, start : start + width], self.sign, out=x[: len(A)])
            parts.append(_hadamard(x)[self.rows])
        return torch.cat(parts, 1).div_(math.sqrt(self.shape[0]))

    def _adjoint(self, y: Tensor) -> Tensor:
        parts = []
        for start, width in column_blocks(self.padded, y.shape[1], block_elements=BLOCK_ELEMENTS):
            x = y.new_zeros(self.padded, width)
            x[self.rows] = y[:, start : start + width]
            parts.append(_hadamard(x)[: self.shape[1]] * self.sign)
        return torch.cat(parts, 1).div_(math.sqrt(self.shape[0]))


class _Rows(Sketch):
    """Sampled rows, with replacement."""

    def __init__(self, s: int, m: int, generator: torch.Generator, dtype: torch.dtype, p: Tensor | None) -> None:
        super().__init__(s, m, generator, dtype)
        u = torch.rand(s, generator=generator, dtype=torch.float64, device=self.device)
        if p is None:
            self.rows = (u * m).long().clamp_(max=m - 1)
            self.scale = torch.full((s, 1), math.sqrt(m / s), dtype=dtype, device=self.device)
            return
        q = torch.as_tensor(p, dtype=torch.float64, device=self.device)
        if q.shape != (m,) or not bool((q >= 0).all()) or abs(float(q.sum()) - 1) > 1e-6:
            raise value_error("p", f"{m} probabilities >= 0 that sum to 1", p)
        upper = q.cumsum(0)
        last = int(torch.nonzero(q)[-1])  # rounding must not lead past it
        self.rows = torch.searchsorted(upper, u * upper[-1], right=True).clamp_(max=last)
        self.scale = (s * q[self.rows] / upper[-1]).rsqrt().to(dtype).unsqueeze(1)

    def _forward(self, A: Tensor) -> Tensor:
        return A[self.rows] * self.scale

    def _adjoint(self, y: Tensor) -> Tensor:
        return y.new_zeros(self.shape[1], y.shape[1]).index_add_(0, self.rows, y * self.scale)

    def _sparse(self, A: Any) -> Tensor:
        return _tensor(A.tocsr()[self.rows.numpy()].toarray(), self) * self.scale


KINDS: dict[str, Any] = {
    "gaussian": _Gaussian,
    "count": _SparseSign,
    "sparse_sign": _SparseSign,
    "srht": _SRHT,
    "rows": _Rows,
}


def _apply(A: Any, size: int, S: Sketch, dense: Any, sparse: Any) -> Tensor:
    """Check `A` and hand it to the product for its kind."""
    if getattr(A, "shape", (None,))[0] != size:
        if not hasattr(A, "shape"):
            raise kind_error("A", "a tensor, an array, a sparse matrix or a linear operator", A)
        raise value_error("A", f"of shape ({size},) or ({size}, k)", A)
    device = A.device if isinstance(A, Tensor | CurvatureOperator) else torch.device("cpu")
    if device.type != S.device.type:
        raise value_error("A", f"on the sketch's device {S.device}", str(device), "sketch(..., device=...)")
    if isinstance(A, np.ndarray):
        A = _tensor(A, S)
    if isinstance(A, Tensor):
        if A.dtype != S.dtype:
            raise value_error("A", f"of the sketch's dtype {S.dtype}", str(A.dtype), "sketch(..., dtype=A.dtype)")
        if A.ndim not in (1, 2):
            raise value_error("A", f"of shape ({size},) or ({size}, k)", A)
        return dense(A.unsqueeze(1)).squeeze(1) if A.ndim == 1 else dense(A)
    if hasattr(A, "tocsr") and _is_scipy(A):
        return sparse(A)
    # S A = (A^T S^T)^T, a block of rows of S at a time
    operator: CurvatureOperator = aslinearoperator(A)
    if operator.dtype != S.dtype:
        raise value_error("A", f"of the sketch's dtype {S.dtype}", str(operator.dtype), "sketch(..., dtype=A.dtype)")
    out_size = S.shape[0] if size == S.shape[1] else S.shape[1]
    back = S._adjoint if dense == S._forward else S._forward
    parts = []
    for start, width in column_blocks(size, out_size, block_elements=BLOCK_ELEMENTS):
        E = torch.zeros(out_size, width, dtype=S.dtype, device=S.device)
        E[start : start + width].fill_diagonal_(1)
        parts.append(operator.rmatmat(back(E)).T)
    return torch.cat(parts)


def _tensor(A: Any, S: Sketch) -> Tensor:
    """Make a tensor of an array; integers become the sketch's dtype, other dtypes must be it."""
    A = np.asarray(A)
    wanted = torch.empty(0, dtype=S.dtype).numpy().dtype
    if A.dtype != wanted and A.dtype.kind not in "iub":
        raise value_error("A", f"of the sketch's dtype {S.dtype}", str(A.dtype), "sketch(..., dtype=...)")
    return torch.from_numpy(np.require(A, wanted, "W") if min(A.strides, default=0) >= 0 else A.astype(wanted))


def _hadamard(x: Tensor) -> Tensor:  # (M, k), M a power of two
    """Multiply with the unnormalized Hadamard matrix of order M, as a Kronecker product of small ones."""
    M, k = x.shape
    done = 1
    while done < M:
        radix = min(RADIX, M // done)
        x = torch.matmul(_hadamard_matrix(radix, x), x.view(M // (done * radix), radix, done * k))
        done *= radix
        x = x.view(M, k)
    return x


def _hadamard_matrix(order: int, like: Tensor) -> Tensor:
    H = like.new_ones(1, 1)
    while len(H) < order:
        H = torch.cat([torch.cat([H, H], 1), torch.cat([H, -H], 1)])
    return H


def _distinct_rows(s: int, m: int, nnz: int, generator: torch.Generator) -> Tensor:  # (m, nnz)
    """Draw nnz distinct rows of s for each of m columns."""
    device = generator.device
    if nnz * nnz > s:  # dense enough for random keys
        blocks = column_blocks(s, m, block_elements=BLOCK_ELEMENTS)
        keys = (torch.rand(w, s, generator=generator, device=device, dtype=torch.float64) for _, w in blocks)
        return torch.cat([key.topk(nnz, 1).indices for key in keys])
    index = torch.randint(s, (m, nnz), generator=generator, device=device)
    while nnz > 1:
        ordered = index.sort(1).values
        clash = (ordered[:, 1:] == ordered[:, :-1]).any(1)
        again = int(clash.sum())
        if not again:
            break
        index[clash] = torch.randint(s, (again, nnz), generator=generator, device=device)
    return index
