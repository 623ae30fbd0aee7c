"""An equality-constrained problem in SciPy's words, brought into one form: f, its gradient, c, its Jacobian, Hessians.

What is missing is replaced by central differences: of f, of the gradient, of c and of ``J(x)' v``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.optimize import LinearConstraint, NonlinearConstraint
from scipy.sparse.linalg import LinearOperator

from steepest.core.errors import kind_error, value_error

__all__ = ["Point", "Problem", "Values"]

Vector = NDArray[np.float64]
Matrix = Any  # a dense array (p, q) or a sparse matrix in CSR
Residual = Callable[[Vector], Vector]

FIRST = float(np.finfo(float).eps) ** (1 / 3)  # step of a central difference, relative to max(1, |x|)
SECOND = float(np.finfo(float).eps) ** (1 / 4)  # where what is differenced is a difference itself


@dataclass(frozen=True)
class Values:
    """Values at x, before any derivative is asked for."""

    x: Vector  # (n,)
    f: float
    c: Vector  # (m,)
    g: Vector | None  # (n,), where `fun` returns the gradient as well


@dataclass(frozen=True)
class Point:
    """Values and first derivatives at x."""

    x: Vector  # (n,)
    f: float
    g: Vector  # (n,), the gradient of f
    c: Vector  # (m,)
    G: Matrix  # (m, n), the Jacobian of c

    @property
    def finite(self) -> bool:
        """Whether every number is finite."""
        entries = self.G.data if sparse.issparse(self.G) else self.G
        return math.isfinite(self.f) and all(np.isfinite(v).all() for v in (self.g, self.c, entries))


class Problem:
    """min f(x) subject to c(x) = 0, with counters.

    Parameters
    ----------
    fun, x0, args, jac, hess, hessp, constraints
        As in `scipy.optimize.minimize`.

    Attributes
    ----------
    n, m : int
    nfev, njev, nhev : int
        Evaluations of f (those for differences included), of its gradient and of its Hessian.
    """

    def __init__(
        self, fun: Any, x0: Vector, args: tuple[Any, ...], jac: Any, hess: Any, hessp: Any, constraints: Any
    ) -> None:
        for name, function in (("fun", fun), *([("hessp", hessp)] if hessp is not None else [])):
            if not callable(function):
                raise kind_error(name, "callable", function)
        self.n, self._fun, self._jac, self._hess, self._hessp, self._args = len(x0), fun, jac, hess, hessp, args
        self.nfev = self.njev = self.nhev = 0
        self._parts = [_constraint(item, x0) for item in _listed(constraints)]
        self._constant: Matrix | None = None  # the Jacobian, where all constraints are linear
        self.m = sum(p.m for p in self._parts)
        if self.m == 0:
            raise value_error("constraints", "at least one equality", constraints, "without any use another method")
        if self.m > self.n:
            raise value_error("constraints", f"at most n = {self.n} equalities", self.m)

    def values(self, x: Vector) -> Values:
        """Evaluate f and c."""
        f, g = self._value_and_gradient(x) if self._jac is True else (self._value(x), None)
        return Values(x, f, np.concatenate([p.value(x) for p in self._parts]), g)

    def point(self, at: Values) -> Point:
        """Evaluate the gradient of f and the Jacobian of c as well."""
        return Point(at.x, at.f, self._gradient(at.x) if at.g is None else at.g, at.c, self._jacobian(at.x))

    def hessian(self, x: Vector, lam: Vector) -> Matrix:  # (n, n)
        """Hessian of the Lagrangian ``f + lam' c``."""
        pieces = [self._objective_hessian(x)]
        start = 0
        for p in self._parts:
            piece = p.hessian(x, lam[start : start + p.m])
            pieces += [] if piece is None else [piece]
            start += p.m
        if all(sparse.issparse(p) for p in pieces):
            return sparse.csr_array(sum(pieces[1:], pieces[0]))
        return sum((p.toarray() if sparse.issparse(p) else p for p in pieces[1:]), _dense(pieces[0]))

    def _value(self, x: Vector) -> float:
        self.nfev += 1
        return _scalar(self._fun(x.copy(), *self._args), "fun")

    def _value_and_gradient(self, x: Vector) -> tuple[float, Vector]:
        """What a `fun` with ``jac=True`` returns."""
        self.nfev, self.njev = self.nfev + 1, self.njev + 1
        pair = self._fun(x.copy(), *self._args)
        if not (isinstance(pair, tuple | list) and len(pair) == 2):
            raise value_error("fun", "a pair (value, gradient), as jac=True says", pair)
        return _scalar(pair[0], "fun"), _vector(pair[1], self.n, "jac")

    def _gradient(self, x: Vector) -> Vector:
        if self._jac is True:
            return self._value_and_gradient(x)[1]
        if callable(self._jac):
            self.njev += 1
            return _vector(self._jac(x.copy(), *self._args), self.n, "jac")
        return difference(lambda y: np.array([self._value(y)]), x, FIRST)[0]

    def _objective_hessian(self, x: Vector) -> Matrix:
        self.nhev += 1
        shape = (self.n, self.n)
        if callable(self._hess):
            return as_matrix(self._hess(x.copy(), *self._args), shape, "hess")
        if self._hessp is not None:
            columns = [_vector(self._hessp(x.copy(), e, *self._args), self.n, "hessp") for e in np.eye(self.n)]
            return _symmetric(np.column_stack(columns))
        known = self._jac is True or callable(self._jac)
        return _symmetric(difference(self._gradient, x, FIRST if known else SECOND))

    def _jacobian(self, x: Vector) -> Matrix:
        if self._constant is not None:
            return self._constant
        pieces = [p.jacobian(x) for p in self._parts]
        some_sparse = any(sparse.issparse(p) for p in pieces)
        G = sparse.csr_array(sparse.vstack(pieces)) if some_sparse else np.vstack(pieces)
        if all(p.linear for p in self._parts):
            self._constant = G
        return G


@dataclass(frozen=True)
class _Part:
    """One constraint ``fun(x) = target``, of m equalities."""

    fun: Residual
    target: Vector
    jac: Callable[[Vector], Any] | None
    hess: Callable[[Vector, Vector], Any] | None
    linear: bool = False

    @property
    def m(self) -> int:
        return len(self.target)

    def value(self, x: Vector) -> Vector:
        return _vector(self.fun(x.copy()), self.m, "constraints") - self.target

    def jacobian(self, x: Vector) -> Matrix:
        if self.jac is None:
            return difference(self.value, x, FIRST)
        return as_matrix(self.jac(x.copy()), (self.m, len(x)), "constraints")

    def hessian(self, x: Vector, v: Vector) -> Matrix | None:
        """Hessian of ``v' c``; None is zero."""
        if self.linear:
            return None
        if self.hess is not None:
            return as_matrix(self.hess(x.copy(), v), (len(x), len(x)), "constraints")
        step = SECOND if self.jac is None else FIRST
        return _symmetric(difference(lambda y: np.asarray(self.jacobian(y).T @ v), x, step))


def _listed(constraints: Any) -> list[Any]:
    if isinstance(constraints, Mapping | LinearConstraint | NonlinearConstraint):
        return [constraints]
    if not isinstance(constraints, Sequence):
        raise kind_error("constraints", "a constraint or a sequence of them", constraints)
    return list(constraints)


def _constraint(item: Any, x0: Vector) -> _Part:
    """Read a `LinearConstraint`, a `NonlinearConstraint` or a dict."""
    n = len(x0)
    if isinstance(item, LinearConstraint):
        A = item.A if sparse.issparse(item.A) else np.atleast_2d(item.A)
        A = as_matrix(A, (A.shape[0], n), "constraints")
        return _Part(lambda x: A @ x, _target(item.lb, item.ub, A.shape[0]), lambda x: A, None, linear=True)
    if isinstance(item, NonlinearConstraint):
        m = np.atleast_1d(np.asarray(item.fun(x0.copy()))).size
        jac, hess = (f if callable(f) else None for f in (item.jac, item.hess))
        return _Part(item.fun, _target(item.lb, item.ub, m), jac, hess)
    if isinstance(item, Mapping):
        if item.get("type") != "eq":
            raise value_error("constraints", "equalities ({'type': 'eq', ...})", dict(item))
        args = tuple(item.get("args", ()))
        fun, jac = item.get("fun"), item.get("jac")
        if not callable(fun):
            raise kind_error("constraints", "a dict with a callable 'fun'", fun)
        m = np.atleast_1d(np.asarray(fun(x0.copy(), *args))).size
        return _Part(lambda x: fun(x, *args), np.zeros(m), (lambda x: jac(x, *args)) if callable(jac) else None, None)
    raise kind_error("constraints", "LinearConstraint, NonlinearConstraint or {'type': 'eq'} dicts", item)


def _target(lb: Any, ub: Any, m: int) -> Vector:
    try:
        low, high = (np.broadcast_to(np.asarray(v, dtype=float), (m,)) for v in (lb, ub))
    except ValueError:
        raise value_error("constraints", f"given with lb and ub of {m} numbers", (lb, ub)) from None
    if not (np.isfinite(low) & (low == high)).all():
        raise value_error("constraints", "equalities (finite lb == ub)", (lb, ub), "inequalities are not handled")
    return low.copy()


def difference(fun: Residual, x: Vector, step: float) -> Vector:  # (p, n)
    """Jacobian by central differences."""
    columns = []
    for i, h in enumerate(step * np.maximum(1.0, np.abs(x))):
        up, down = x.copy(), x.copy()
        up[i] += h
        down[i] -= h
        columns.append((fun(up) - fun(down)) / (up[i] - down[i]))
    return np.column_stack(columns)


def as_matrix(A: Any, shape: tuple[int, int], name: str) -> Matrix:
    """Bring a matrix into one of two forms, dense or CSR; an operator is multiplied with the identity."""
    if sparse.issparse(A):
        found: Matrix = sparse.csr_array(A, dtype=float)
    elif isinstance(A, LinearOperator):
        p, q = A.shape
        found = np.asarray(A.rmatmat(np.eye(p)).conj().T if p < q else A.matmat(np.eye(q)), dtype=float)
    else:
        found = np.atleast_2d(np.asarray(A, dtype=float))
    if found.shape != shape:
        raise value_error(name, f"a matrix of shape {shape}", A)
    return found


def _scalar(v: Any, name: str) -> float:
    found = np.asarray(v, dtype=float)
    if found.size != 1:
        raise value_error(name, "a scalar", found)
    return float(found.reshape(()))


def _vector(v: Any, size: int, name: str) -> Vector:
    found = np.atleast_1d(np.asarray(v, dtype=float))
    if found.size != size or found.ndim > 2:
        raise value_error(name, f"a vector of {size} numbers", found)
    return found.reshape(size)


def _dense(A: Matrix) -> Vector:
    return A.toarray() if sparse.issparse(A) else A


def _symmetric(A: Vector) -> Vector:
    return (A + A.T) / 2
