"""Linear operators: what every estimator of this room multiplies with.

An operator has a shape, a dtype, a device and products with flat vectors (n,) and blocks of columns (m, k). Sums,
differences, multiples and ``A + damping I`` are lazy. `aslinearoperator` makes one from a tensor, a NumPy array, a
SciPy sparse matrix or operator, a function, or an operator of curvlinops.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from steepest.core.errors import at_least, check, interval, kind_error, value_error

__all__ = ["CurvatureOperator", "aslinearoperator"]

BLOCK_ELEMENTS = 2**24  # columns are made in blocks of at most so many numbers (64 MiB of float32)


class CurvatureOperator:
    """A real matrix known by its products.

    A subclass gives ``_matmat`` (and ``_rmatmat`` unless it is symmetric), on blocks of columns.

    Parameters
    ----------
    shape : (int, int)
    dtype : torch.dtype
    device : torch.device

    Attributes
    ----------
    shape, dtype, device
    n_products : int
        Columns multiplied so far.

    Examples
    --------
    >>> A = aslinearoperator(torch.diag(torch.tensor([1.0, 2.0])))
    >>> (3 * A + A.shift(1.0)).dense().diagonal().tolist(), A.n_products
    ([5.0, 9.0], 4)
    """

    def __init__(
        self, shape: tuple[int, int], dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu"
    ) -> None:
        if not dtype.is_floating_point:
            raise value_error("dtype", "real floating point", str(dtype))
        self.shape = (int(shape[0]), int(shape[1]))
        self.dtype = dtype
        self.device = torch.device(device)
        self.n_products = 0

    def _matmat(self, V: Tensor) -> Tensor:
        raise NotImplementedError

    def _rmatmat(self, V: Tensor) -> Tensor:
        return self._matmat(V)

    def matvec(self, v: Any) -> Any:
        """Multiply with one vector.

        Parameters
        ----------
        v : Tensor of shape (n,)
            Operators of a model also take a sequence of tensors shaped as the parameters, and return a list.

        Raises
        ------
        TypeError
            `v` is no tensor.
        ValueError
            A wrong length, dtype or device.
        """
        return self.matmat(self._checked(v, 1).unsqueeze(1)).squeeze(1)

    def matmat(self, V: Tensor) -> Tensor:  # (n, k) -> (m, k)
        """Multiply with k columns at once."""
        self._checked(V, 2)
        self.n_products += V.shape[1]
        return self._matmat(V)

    def rmatmat(self, V: Tensor) -> Tensor:  # (m, k) -> (n, k)
        """Multiply the transpose with k columns; a symmetric operator's own product."""
        self._checked(V, 2, rows=self.shape[0])
        self.n_products += V.shape[1]
        return self._rmatmat(V)

    def __matmul__(self, v: Any) -> Any:
        return self.matmat(v) if isinstance(v, Tensor) and v.ndim == 2 else self.matvec(v)

    def dense(self, *, max_dense: int = 20_000) -> Tensor:
        """Form the matrix, one product a column.

        Raises
        ------
        ValueError
            More than `max_dense` rows or columns.
        """
        if max(self.shape) > max_dense:
            raise value_error(
                "max_dense", f">= {max(self.shape)} to form a matrix of shape {self.shape}", max_dense, "raise it"
            )
        return torch.cat([self.matmat(E) for E in identity_blocks(self)], 1)

    def to_scipy(self) -> Any:
        """Return a `scipy.sparse.linalg.LinearOperator` that copies NumPy vectors in and out.

        bfloat16, which NumPy lacks, becomes float32.
        """
        from scipy.sparse.linalg import LinearOperator

        outer = torch.empty(0, dtype=torch.float32 if self.dtype == torch.bfloat16 else self.dtype).numpy().dtype

        def through(product: Callable[[Tensor], Tensor]) -> Callable[[Any], Any]:
            def apply(v: Any) -> Any:
                V = torch.as_tensor(np.array(v, dtype=outer, ndmin=1)).to(self.device, self.dtype)
                out = product(V.reshape(len(V), -1))
                return out.cpu().numpy().astype(outer, copy=False).reshape(len(out), *np.shape(v)[1:])

            return apply

        matmat, rmatmat = through(self.matmat), through(self.rmatmat)
        return LinearOperator(self.shape, matvec=matmat, matmat=matmat, rmatvec=rmatmat, rmatmat=rmatmat, dtype=outer)

    def __add__(self, other: Any) -> CurvatureOperator:
        return _Sum(self, aslinearoperator(other), 1.0)

    def __sub__(self, other: Any) -> CurvatureOperator:
        return _Sum(self, aslinearoperator(other), -1.0)

    def __rmul__(self, scalar: float) -> CurvatureOperator:
        check("scalar", scalar, interval())
        return _Multiple(self, float(scalar))

    def shift(self, damping: float) -> CurvatureOperator:
        """Return ``A + damping I``.

        Raises
        ------
        ValueError
            The operator is not square.
        """
        check("damping", damping, interval())
        check_square(self)
        return _Sum(self, _Identity(self.shape, self.dtype, self.device), float(damping))

    def __repr__(self) -> str:
        return f"{type(self).__name__}(shape={self.shape}, dtype={self.dtype}, device={self.device})"

    def _checked(self, v: Any, ndim: int, rows: int | None = None) -> Tensor:
        rows = self.shape[1] if rows is None else rows
        expected = f"of shape ({rows},)" if ndim == 1 else f"of shape ({rows}, k)"
        name = "v" if ndim == 1 else "V"
        if not isinstance(v, Tensor):
            raise kind_error(name, f"a tensor {expected}", v)
        if v.ndim != ndim or v.shape[0] != rows:
            raise value_error(name, expected, v)
        if v.dtype != self.dtype:
            raise value_error(name, f"of dtype {self.dtype}", str(v.dtype))
        if v.device.type != self.device.type:
            raise value_error(name, f"on {self.device}", str(v.device))
        return v


def aslinearoperator(
    A: Any,
    shape: tuple[int, int] | None = None,
    *,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
) -> CurvatureOperator:
    """Make an operator of whatever can multiply.

    Parameters
    ----------
    A : CurvatureOperator, Tensor, ndarray, scipy.sparse matrix, LinearOperator, curvlinops operator, or callable
        A callable multiplies a tensor of shape (n, k); it is taken as symmetric. Matrices of integers count as
        float64; nothing else is converted or copied.
    shape : (int, int)
        Needed for a callable only.
    dtype, device
        Of a callable only.

    Returns
    -------
    CurvatureOperator
        `A` itself if it is one.

    Raises
    ------
    TypeError
        `A` cannot multiply.
    ValueError
        Not two-dimensional, complex, or a callable without `shape`.

    Examples
    --------
    >>> aslinearoperator(lambda V: 2 * V, (3, 3)).matvec(torch.ones(3, dtype=torch.float64)).tolist()
    [2.0, 2.0, 2.0]
    """
    if isinstance(A, CurvatureOperator):
        return A
    own_shape, own_dtype = getattr(A, "shape", None), getattr(A, "dtype", None)
    if own_shape is None:
        if not callable(A):
            raise kind_error("A", "a matrix, a linear operator or a callable", A)
        if shape is None:
            raise value_error("shape", "given when A is a callable", shape)
        return _Function(A, A, shape, dtype, device)
    if len(own_shape) != 2:
        raise value_error("A", "two-dimensional", A)
    if isinstance(A, Tensor):
        if A.is_complex():
            raise value_error("A", "real", A)
        matrix = A if A.is_floating_point() else A.to(torch.float64)
        return _Function(
            lambda V: matrix @ V, lambda V: matrix.mT @ V, (A.shape[0], A.shape[1]), matrix.dtype, matrix.device
        )
    if isinstance(own_dtype, torch.dtype):  # another library's operator on tensors
        adjoint = A.adjoint() if callable(getattr(A, "adjoint", None)) else A
        return _Function(lambda V: A @ V, lambda V: adjoint @ V, (own_shape[0], own_shape[1]), own_dtype, A.device)
    if isinstance(A, np.ndarray) or _is_scipy(A):
        return _NumPy(A)
    raise kind_error("A", "a matrix, a linear operator or a callable", A)


def check_square(A: CurvatureOperator, name: str = "A") -> int:
    """Return n for an n-by-n operator, else raise `ValueError`."""
    if A.shape[0] != A.shape[1] or A.shape[0] == 0:
        raise value_error(name, "square and not empty", f"shape {A.shape}")
    return A.shape[0]


def check_symmetric(A: CurvatureOperator, x: Tensor, name: str = "A") -> None:  # x: (n, 2)
    """Raise `ValueError` unless ``x_1^T A x_2 = x_2^T A x_1`` to rounding, for two random vectors (two products)."""
    Ax = A.matmat(x).to(torch.float64)
    x = x.to(torch.float64)
    left, right = float(x[:, 0] @ Ax[:, 1]), float(x[:, 1] @ Ax[:, 0])
    sizes = torch.linalg.vector_norm(x, dim=0) * torch.linalg.vector_norm(Ax, dim=0).flip(0)
    bound = 100 * torch.finfo(A.dtype).eps * float(sizes.sum())
    if not abs(left - right) <= bound and np.isfinite(left) and np.isfinite(right):
        raise value_error(
            name, "symmetric", f"x.Ay = {left:.6g} and y.Ax = {right:.6g}", "check_symmetric=False skips this check"
        )


def identity_blocks(A: CurvatureOperator) -> Iterator[Tensor]:
    """Yield the identity of A's columns in blocks of bounded size."""
    n = A.shape[1]
    for start, width in column_blocks(n, n):
        E = torch.zeros(n, width, dtype=A.dtype, device=A.device)
        E[start : start + width].fill_diagonal_(1)
        yield E


def column_blocks(n: int, k: int, *, block_elements: int = BLOCK_ELEMENTS) -> list[tuple[int, int]]:
    """Cut k columns of length n into blocks of bounded size; return (start, width) of each."""
    check("k", k, at_least(0, integer=True))
    width = max(1, min(k, block_elements // max(n, 1)))
    return [(start, min(width, k - start)) for start in range(0, k, width)]


class _Function(CurvatureOperator):
    """Products by functions of a block of columns."""

    def __init__(
        self,
        forward: Callable[[Tensor], Tensor],
        adjoint: Callable[[Tensor], Tensor],
        shape: tuple[int, int],
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> None:
        super().__init__(shape, dtype, device)
        self._forward, self._adjoint = forward, adjoint

    def _matmat(self, V: Tensor) -> Tensor:
        return self._forward(V)

    def _rmatmat(self, V: Tensor) -> Tensor:
        return self._adjoint(V)


class _NumPy(CurvatureOperator):
    """An array, a sparse matrix or a `LinearOperator`: multiplied as NumPy does, tensors in and out."""

    def __init__(self, A: Any) -> None:
        kind = np.dtype(A.dtype if A.dtype is not None else np.float64)
        if kind.kind not in "fiub":
            raise value_error("A", "real", f"dtype {kind}")
        super().__init__(A.shape, torch.from_numpy(np.empty(0, kind if kind.kind == "f" else np.float64)).dtype)
        self.A = A

    def _matmat(self, V: Tensor) -> Tensor:
        return torch.from_numpy(np.asarray(self.A @ V.numpy()))

    def _rmatmat(self, V: Tensor) -> Tensor:
        product = self.A.rmatmat(V.numpy()) if hasattr(self.A, "rmatmat") else self.A.T @ V.numpy()
        return torch.from_numpy(np.asarray(product))


class _Identity(CurvatureOperator):
    def _matmat(self, V: Tensor) -> Tensor:
        return V


class _Sum(CurvatureOperator):
    """``A + scale B``."""

    def __init__(self, A: CurvatureOperator, B: CurvatureOperator, scale: float) -> None:
        for name, a, b in (
            ("shape", A.shape, B.shape),
            ("dtype", A.dtype, B.dtype),
            ("device", A.device, B.device),
        ):
            if a != b:
                raise ValueError(f"operators in a sum must have the same {name}, got {a} and {b}")
        super().__init__(A.shape, A.dtype, A.device)
        self.A, self.B, self.scale = A, B, scale

    def _matmat(self, V: Tensor) -> Tensor:
        return torch.add(self.A.matmat(V), self.B.matmat(V), alpha=self.scale)

    def _rmatmat(self, V: Tensor) -> Tensor:
        return torch.add(self.A.rmatmat(V), self.B.rmatmat(V), alpha=self.scale)


class _Multiple(CurvatureOperator):
    """``scale A``."""

    def __init__(self, A: CurvatureOperator, scale: float) -> None:
        super().__init__(A.shape, A.dtype, A.device)
        self.A, self.scale = A, scale

    def _matmat(self, V: Tensor) -> Tensor:
        return self.A.matmat(V) * self.scale

    def _rmatmat(self, V: Tensor) -> Tensor:
        return self.A.rmatmat(V) * self.scale


def _is_scipy(A: Any) -> bool:
    """Tell sparse matrices and LinearOperators, without importing SciPy for those who have not."""
    sparse, linalg = sys.modules.get("scipy.sparse"), sys.modules.get("scipy.sparse.linalg")
    return bool((sparse and sparse.issparse(A)) or (linalg and isinstance(A, linalg.LinearOperator)))
