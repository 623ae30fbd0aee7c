r"""Solve a consistent linear system by projecting onto random combinations of its equations.   A z = b

    draw S (p, s),    z <- z - A' S (S' A A' S)^+ S' (A z - b)

Each step is the projection of z onto the solutions of the s sketched equations ``S' A z = S' b``: with one coordinate
row it is the randomized Kaczmarz method, with one normal vector the paper's Gaussian variant. Sparse systems are cut
once into random blocks of rows, whose Gram matrices are factored once, and each step projects onto one block. One pass
over all blocks and back is an affine map ``z -> Q z + R b`` with symmetric Q; ``acceleration="cg"`` solves its
fixed-point equation ``(I - Q) z = R b`` by conjugate gradients.

Paper: hong2023constrained, Sec. 3 and Alg. 1, line 6; gower2015randomized in general.   Notation: A (p, q) is Gamma.
Departures: (1) Several equations a step (`sketch_size`). (2) The projection is a least-norm solution of the sketched
equations, so that no Gram matrix is formed but for blocks. (3) The residual is recomputed once in ceil(p / s) steps,
not after every step, which would cost more than the step. (4) Blocks and their acceleration are ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.linalg import lapack
from scipy.sparse.linalg import LinearOperator, cg, splu

from steepest.core.errors import at_least, check, kind_error, nonnegative, one_of, optional, value_error
from steepest.core.random import numpy_generator, torch_generator
from steepest.curvature import sketch as draw_sketch

__all__ = ["ACCELERATIONS", "SKETCHES", "make_solver", "sketch_and_project"]

Vector = NDArray[np.float64]
Callback = Callable[[Vector], Any]

SKETCHES = ("gaussian", "kaczmarz", "sparse", "srht")
ACCELERATIONS = ("none", "cg")
OWNERS = {"gaussian": "gaussian", "sparse": "count", "srht": "srht"}  # our word: that of steepest.curvature.sketch
BLOCK, LARGEST_BLOCK = 256, 1024  # rows of a block: at first, and at most when it grows
SPARSE_GRAM, SINGULAR = (
    0.1,
    1e-13,
)  # share of entries below which a Gram matrix is factored as sparse; of pivots, for zero
PATIENCE_CG = 25  # conjugate-gradient iterations that may pass without halving the residual before blocks grow


def sketch_and_project(
    A: Any,
    b: Any,
    x0: Any = None,
    *,
    sketch: str = "gaussian",
    sketch_size: int | None = None,
    rtol: float = 1e-5,
    atol: float = 0.0,
    maxiter: int = 100_000,
    acceleration: str = "none",
    random_state: int | np.random.Generator | np.random.RandomState | None = None,
    callback: Callback | None = None,
) -> tuple[Vector, int]:
    """Solve ``A x = b`` by randomized sketching, with the interface of SciPy's iterative solvers.

    Parameters
    ----------
    A : array, sparse matrix or LinearOperator of shape (p, q)
        Any shape or rank, as long as the system has a solution; the one nearest to `x0` is found. An operator is
        sketched through its adjoint's products.
    b : array of shape (p,)
    x0 : array of shape (q,), optional
        Start; zeros by default.
    sketch : "gaussian", "kaczmarz", "sparse" or "srht"
        Normal combinations of all equations; equations drawn without replacement; each equation added, with a random
        sign, to one of `sketch_size` sums; a subsampled randomized Hadamard transform. Sparse matrices, and
        ``acceleration="cg"``, always take blocks of equations.
    sketch_size : int, optional
        Equations a step; by default a quarter of them, and 256 in a block.
    rtol, atol : float
        Stop when ``||A x - b|| <= max(rtol ||b||, atol)`` (SciPy's 1e-5 and 0).
    maxiter : int
        Most sketches (blocks) that are applied.
    acceleration : "none" or "cg"
    random_state : int, Generator, RandomState or None
    callback : callable, optional
        ``callback(x)`` each time the residual was recomputed: after about every ceil(p / sketch_size) sketches.

    Returns
    -------
    x : array of shape (q,)
    info : int
        0 when the tolerance was met, else the number of sketches applied.

    Raises
    ------
    ValueError, TypeError
        Wrong shapes, numbers that are not finite, unknown names.

    Examples
    --------
    >>> A = np.array([[2.0, 0.0, 1.0], [0.0, 1.0, 0.0], [1.0, 0.0, -1.0]])
    >>> b = A @ [1.0, 2.0, 3.0]
    >>> x, info = sketch_and_project(A, b, sketch="kaczmarz", sketch_size=2, rtol=1e-10, random_state=0)
    >>> info, x.round(6).tolist()
    (0, [1.0, 2.0, 3.0])
    """
    check("sketch", sketch, one_of(*SKETCHES))
    check("sketch_size", sketch_size, optional(at_least(1, integer=True)))
    check("acceleration", acceleration, one_of(*ACCELERATIONS))
    for name, value in (("rtol", rtol), ("atol", atol)):
        check(name, value, nonnegative())
    check("maxiter", maxiter, at_least(0, integer=True))
    matrix, rhs, x = _system(A, b, x0)
    rng = numpy_generator(random_state, name="random_state")
    solver = make_solver(matrix, rhs, x, sketch, sketch_size, acceleration, rng, grow=False)
    solved = solver.run(max(rtol * float(np.linalg.norm(rhs)), atol), maxiter, callback)
    return solver.z, 0 if solved else max(solver.steps, 1)


def _system(A: Any, b: Any, x0: Any) -> tuple[Any, Vector, Vector]:
    """Check the system and bring it into one form."""
    if not (sparse.issparse(A) or isinstance(A, LinearOperator)):
        A = np.asarray(A, dtype=float)
        if A.ndim != 2:
            raise value_error("A", "a matrix", A)
    entries = A.data if sparse.issparse(A) else A
    if not isinstance(A, LinearOperator) and not np.isfinite(entries).all():
        raise value_error("A", "finite", A)
    p, q = A.shape
    rhs = np.asarray(b, dtype=float)
    x = np.zeros(q) if x0 is None else np.array(x0, dtype=float)
    for name, value, size in (("b", rhs, p), ("x0", x, q)):
        if value.shape != (size,):
            raise value_error(name, f"of shape ({size},)", value)
        if not np.isfinite(value).all():
            raise value_error(name, "finite", value)
    return (sparse.csr_array(A, dtype=float) if sparse.issparse(A) else A), rhs, x


def make_solver(
    A: Any,
    b: Vector,
    z: Vector,
    sketch: str,
    size: int | None,
    acceleration: str,
    rng: np.random.Generator,
    *,
    grow: bool,
) -> Sketches | Blocks:
    """Choose: blocks for a sparse matrix or an accelerated run, sketches of all equations otherwise."""
    if sparse.issparse(A) or acceleration == "cg":
        if isinstance(A, LinearOperator):
            raise kind_error("A", "an array or a sparse matrix for acceleration='cg'", A)
        matrix = sparse.csr_array(A)
        return Blocks(matrix, b, z, min(size or BLOCK, matrix.shape[0]), acceleration, rng, grow=grow)
    return Sketches(A, b, z, sketch, min(size or math.ceil(len(b) / 4), len(b)), rng, grow=grow)


class _Solver:
    """What both ways share: z, the residual, the count of sketches, the rule by which sketches grow."""

    def __init__(self, A: Any, b: Vector, z: Vector, size: int, rng: np.random.Generator, grow: bool) -> None:
        self.A, self.b, self.z, self.size, self.rng, self.grow = A, b, z, size, rng, grow
        self.steps, self.exact = 0, False
        self.residual = self._residual()

    def run(self, target: float, budget: int, callback: Callback | None = None) -> bool:
        """Go on until the residual is at most `target`; False when the budget of sketches ran out before.

        An exact solve ends the search whatever is left of the residual: it cannot be improved.
        """
        raise NotImplementedError

    def _residual(self) -> float:
        return float(np.linalg.norm(self.A @ self.z - self.b))

    def _solve_exactly(self) -> None:
        """Factor A, with one step of refinement; least squares where A is singular."""
        self.exact = True
        A = self.A
        if sparse.issparse(A):
            solve = splu(A.tocsc()).solve
        else:
            lu, pivots, _ = lapack.dgetrf(A)
            scale = np.abs(np.diag(lu))
            if scale.min() <= np.finfo(float).eps * scale.max():
                solve = lambda r: np.linalg.lstsq(A, r)[0]  # noqa: E731
            else:
                solve = lambda r: lapack.dgetrs(lu, pivots, r)[0]  # noqa: E731
        z = solve(self.b)
        self.z = z - solve(A @ z - self.b)
        self.residual = self._residual()


class Sketches(_Solver):
    """Every step draws a sketch of all equations."""

    def __init__(
        self, A: Any, b: Vector, z: Vector, sketch: str, size: int, rng: np.random.Generator, *, grow: bool
    ) -> None:
        super().__init__(A, b, z, size, rng, grow)
        self.sketch = sketch
        self.generator = None if sketch == "kaczmarz" else torch_generator(int(rng.integers(2**62)))

    def run(self, target: float, budget: int, callback: Callback | None = None) -> bool:
        checks, before = 0, self.residual
        while self.residual > target and not self.exact:
            if self.steps >= budget:
                return False
            for SA, Sb in self._period(min(math.ceil(len(self.b) / self.size), budget - self.steps)):
                self.z = self.z - least_norm(SA, SA @ self.z - Sb)
                self.steps += 1
            self.residual = self._residual()
            if callback is not None:
                callback(self.z)
            checks += 1
            if checks % 4 == 0:
                if self.grow and self.residual > before / 2:
                    self.size *= 2
                    if self.size >= len(self.b):
                        self._solve_exactly()
                before = self.residual
        return True

    def _period(self, count: int) -> Iterator[tuple[Vector, Vector]]:
        """Draw `count` sketches: ``S' A`` (s, q) and ``S' b`` (s,)."""
        p, s, A, b = len(self.b), self.size, self.A, self.b
        if self.sketch == "kaczmarz":
            for _ in range(count):
                rows = self.rng.choice(p, s, replace=False, shuffle=False)
                yield _rows(A, rows), b[rows]
        elif self.sketch == "gaussian":  # independent rows: those of all sketches at once
            S = draw_sketch("gaussian", count * s, p, seed=self.generator)
            SA, Sb = (S @ A).numpy(), (S @ b).numpy()
            for i in range(0, count * s, s):
                yield SA[i : i + s], Sb[i : i + s]
        else:
            for _ in range(count):
                S = draw_sketch(OWNERS[self.sketch], s, p, seed=self.generator)
                yield (S @ A).numpy(), (S @ b).numpy()


def least_norm(SA: Vector, r: Vector) -> Vector:
    """Solve ``SA d = r`` for the d of least norm; equals ``(SA)' (SA SA')^+ r``."""
    if len(SA) == 1:
        a = SA[0]
        return a * (r[0] / max(float(a @ a), np.finfo(float).tiny))
    return np.asarray(np.linalg.lstsq(SA, r)[0], dtype=float)


def _rows(A: Any, rows: NDArray[np.int64]) -> Vector:
    if isinstance(A, LinearOperator):
        E = np.zeros((A.shape[0], len(rows)))
        E[rows, np.arange(len(rows))] = 1
        return np.asarray(A.rmatmat(E)).T
    return A[rows]


class Blocks(_Solver):
    """A random paving of the rows of a sparse matrix; every step projects onto one block."""

    def __init__(
        self, A: Any, b: Vector, z: Vector, size: int, acceleration: str, rng: np.random.Generator, *, grow: bool
    ) -> None:
        super().__init__(A, b, z, size, rng, grow)
        self.acceleration = acceleration
        self._pave()

    def _pave(self) -> None:
        order = self.rng.permutation(len(self.b))
        count = math.ceil(len(order) / self.size)
        self.blocks = [_Block(self.A, rows) for rows in np.array_split(order, count)]

    def run(self, target: float, budget: int, callback: Callback | None = None) -> bool:
        while self.residual > target and not self.exact:
            if self.steps >= budget:
                return False
            slow = self._conjugate if self.acceleration == "cg" else self._sweep
            if slow(target, budget, callback) and self.grow:
                self.size *= 2
                if self.size >= len(self.b) or self.size > LARGEST_BLOCK:
                    self._solve_exactly()
                else:
                    self._pave()
        return True

    def _sweep(self, target: float, budget: int, callback: Callback | None) -> bool:
        """Four passes in random orders; True when they did not halve the residual."""
        before = self.residual
        for _ in range(4):
            for i in self.rng.permutation(len(self.blocks))[: budget - self.steps]:
                self.blocks[i].project(self.z, self.b)
                self.steps += 1
            self._checked(self.z, callback)
            if self.residual <= target or self.steps >= budget:
                return False
        return self.residual > before / 2

    def _conjugate(self, target: float, budget: int, callback: Callback | None) -> bool:
        """Conjugate gradients on the fixed-point equation of a double pass; True when they became slow."""
        there_and_back = [*self.blocks, *self.blocks[-2::-1]]
        zero = np.zeros_like(self.b)
        best, since = self.residual, 0

        def double_pass(z: Vector, b: Vector) -> Vector:
            z = z.copy()
            for block in there_and_back:
                block.project(z, b)
            self.steps += len(there_and_back)
            return z

        def watch(z: Vector) -> None:
            nonlocal best, since
            self._checked(z.copy(), callback)
            best, since = (self.residual, 0) if self.residual <= best / 2 else (best, since + 1)
            if self.residual <= target or self.steps >= budget or (self.grow and since >= PATIENCE_CG):
                raise _Enough

        operator = LinearOperator((len(self.z),) * 2, matvec=lambda v: v - double_pass(v, zero), dtype=np.float64)
        with suppress(_Enough):
            cg(
                operator,
                double_pass(np.zeros_like(self.z), self.b),
                x0=self.z,
                rtol=0,
                atol=0,
                maxiter=10**9,
                callback=watch,
            )
        return since >= PATIENCE_CG

    def _checked(self, z: Vector, callback: Callback | None) -> None:
        self.z = z
        self.residual = self._residual()
        if callback is not None:
            callback(self.z)


class _Enough(Exception):
    """Leaves SciPy's conjugate gradients, whose own test is on another residual."""


class _Block:
    """Some rows of A, without their empty columns, and a factor of their Gram matrix."""

    def __init__(self, A: Any, rows: NDArray[np.int64]) -> None:
        part = A[rows]
        self.rows = rows
        self.columns, inverse = np.unique(part.indices, return_inverse=True)
        self.A = sparse.csr_array((part.data, inverse, part.indptr), shape=(len(rows), len(self.columns)))
        self.AT = self.A.T.tocsr()
        self.solve = _gram_solver(sparse.csc_array(self.A @ self.AT))

    def project(self, z: Vector, b: Vector) -> None:
        """Project z onto this block's equations, in place."""
        z[self.columns] -= self.AT @ self.solve(self.A @ z[self.columns] - b[self.rows])


def _gram_solver(gram: Any) -> Callable[[Vector], Vector]:
    """Factor a Gram matrix: sparse where few of its rows touch, else by Cholesky; its pseudo-inverse where singular."""
    if gram.nnz < SPARSE_GRAM * gram.shape[0] ** 2:
        try:
            factors = splu(gram, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options={"SymmetricMode": True})
            pivots = factors.U.diagonal()
            if pivots.min() > SINGULAR * pivots.max():
                return factors.solve
        except RuntimeError:  # a pivot of zero
            pass
    gram = gram.toarray()
    factor, info = lapack.dpotrf(gram, lower=1)
    pivots = np.diag(factor) ** 2
    if info == 0 and pivots.min() > SINGULAR * pivots.max():
        return lambda r: lapack.dpotrs(factor, r, lower=1)[0]
    inverse = np.linalg.pinv(gram, rcond=1e-13, hermitian=True)
    return lambda r: inverse @ r
