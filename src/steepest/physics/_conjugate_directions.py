"""Conjugate directions from any source: the iteration of ``deep_conjugate_direction`` on one linear system, `dcdm`."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy import sparse
from scipy.sparse.linalg import LinearOperator
from torch import Tensor

from steepest.core import errors
from steepest.core.driver import Progress, Stop, drive
from steepest.core.errors import at_least, boolean, check_params, kind_error, nonnegative, value_error
from steepest.physics._poisson import null_space_projection

__all__ = ["MEMORY", "LinearSystem", "dcdm", "product_with"]

Vector = Any  # (n,) array, or Tensor where b is one
Product = Callable[[Vector], Vector]

STALL, STALL_WINDOW = 0.9, 3  # the residual must fall by this factor over so many iterations
FLAT = 1e-12  # of ||q|| ||r||: a smaller q'r is rounding
SYMMETRY = 1e-8
BREAKDOWN, ROUNDING = -1, -2
BROKEN = "No direction of descent was left: A is not positive definite there, or a product is not finite."
MEMORY = at_least(0, integer=True)
LIMITS = {
    "rtol": nonnegative(),
    "atol": nonnegative(),
    "maxiter": at_least(1, integer=True),
    "memory": MEMORY,
    "recompute_every": at_least(1, integer=True),
}


def dcdm(
    A: Any,
    b: Any,
    direction: Callable[[Any], Any],
    x0: Any = None,
    *,
    rtol: float = 1e-5,
    atol: float = 0.0,
    maxiter: int | None = None,
    memory: int = 2,
    recompute_every: int = 10,
    check: bool = True,
    callback: Callable[..., Any] | None = None,
    full_output: bool = False,
) -> Any:
    """Solve ``A x = b`` along conjugate directions from any source (kaneda2023deep, Alg. 1).

    Parameters
    ----------
    A : sparse or dense matrix, LinearOperator or callable; a Tensor or callable where `b` is one
        Symmetric positive semidefinite, (n, n); a callable multiplies a vector of b's kind.
    b : (n,) array or floating Tensor
        In the range of `A`.
    direction : callable
        ``direction(r) -> q`` with r the residual divided by its norm; both (n,) and of b's kind. ``lambda r: r`` is CG.
    x0 : (n,) array or Tensor, optional
        Start; zero by default.
    rtol, atol : float
        Stop when ``||b - A x|| <= max(rtol ||b||, atol)`` (SciPy's rule and defaults).
    maxiter : int, optional
        10 n by default.
    memory : int
        Directions that are kept; 2 in the paper. 0 is steepest descent along what `direction` says.
    recompute_every : int
        Iterations between residuals computed anew; 1 in the official code.
    check : bool
        Whether to look for a lack of symmetry, by two products.
    callback : callable, optional
        ``callback(xk)`` after every iteration; StopIteration raised there ends the run.
    full_output : bool
        Return `stats` as well.

    Returns
    -------
    x : of b's kind
        In the common floating dtype of `A` and `b`. Zero for b = 0.
    info : int
        0 converged; > 0 the iterations done without; -1 no direction of descent was left (`A` is not positive definite
        there, or products are not finite); -2 rounding has eaten the residual, rtol is out of reach in this dtype.
    stats : dict
        With `full_output`: `residuals` (norms of b - A x, from the start; by recurrence between recomputations),
        `iterations`, `n_fallback` (iterations that took the residual as direction), `n_matvec` (all products, checks
        too), `time_network` (seconds in `direction`), `message`.

    Raises
    ------
    TypeError
        `A` cannot multiply vectors of b's kind, or an argument is of the wrong kind.
    ValueError
        Shapes that do not fit, values that are not finite, options out of range, an `A` that is not symmetric, a
        `direction` of another shape.

    Examples
    --------
    >>> x, info = dcdm(np.diag([1.0, 2.0, 3.0]), np.ones(3), lambda r: r, rtol=1e-12)
    >>> info, x.round(6).tolist()
    (0, [1.0, 0.5, 0.333333])
    """
    errors.check("check", check, boolean())
    system = LinearSystem(A, b, x0)
    if check:
        system.check_symmetric()
    return system.solve(
        direction,
        rtol=rtol,
        atol=atol,
        maxiter=10 * system.n if maxiter is None else maxiter,
        memory=memory,
        recompute_every=recompute_every,
        callback=callback,
        full_output=full_output,
    )


class LinearSystem:
    """One linear system in the arithmetic of its right-hand side, NumPy's or torch's, and the iteration on it."""

    def __init__(self, A: Any, b: Any, x0: Any) -> None:
        b = _vector("b", b, None)
        self._multiply = product_with(A, b, "A")
        self.n_matvec = 0
        if not isinstance(b, Tensor):
            b = b.astype(np.result_type(b.dtype, getattr(A, "dtype", None) or np.float32, np.float32), copy=False)
        self.b, self.n = b, len(b)
        self.x0 = None if x0 is None else _vector("x0", x0, b)
        self.project: Product | None = None

    def product(self, v: Vector) -> Vector:
        """Multiply, and count it."""
        self.n_matvec += 1
        return self._multiply(v)

    def remove_null_space(self, fluid: Any, *, reduced: bool) -> None:
        """Project b and all directions off the null vectors that a grid's solid cells and closed boxes give."""
        self.project = null_space_projection(self.product, self.b, fluid, reduced=reduced)
        if self.project is not None:
            self.b = self.project(self.b)

    def solve(
        self,
        direction: Callable[[Vector], Vector],
        *,
        rtol: float,
        atol: float,
        maxiter: int,
        memory: int,
        recompute_every: int,
        callback: Callable[..., Any] | None,
        full_output: bool,
    ) -> Any:
        """Iterate; see `dcdm` for arguments and results."""
        given = {
            "rtol": rtol, "atol": atol, "maxiter": maxiter, "memory": memory, "recompute_every": recompute_every
        }  # fmt: skip
        check_params(given, LIMITS)
        errors.check("full_output", full_output, boolean())
        if not callable(direction):
            raise kind_error("direction", "a callable", direction)
        size_of_b = _norm(self.b)
        if self.x0 is None or size_of_b == 0:
            x, r = _zeros_like(self.b), self.b
        else:
            x, r = self.x0, self.b - self.product(self.x0)
        run = _Iteration(self, direction, x, r, max(rtol * size_of_b, atol), memory, recompute_every)
        if run.norm <= run.limit:
            info, message = 0, Stop.CONVERGED.message
        else:
            result = drive(run.step, None, maxiter=maxiter, callback=callback, start=Progress(x, run.norm))
            run.norms, x, message = result.history["fun"], result.x, result.message
            failed = {Stop.CONVERGED: 0, Stop.NONFINITE: BREAKDOWN, Stop.STALLED: ROUNDING}
            info = failed.get(Stop(result.status), result.nit)
            message = BROKEN if info == BREAKDOWN else message
        stats = {
            "residuals": run.norms,
            "iterations": len(run.norms) - 1,
            "n_fallback": run.n_fallback,
            "n_matvec": self.n_matvec,
            "time_network": run.seconds,
            "message": message,
        }
        return (x, info, stats) if full_output else (x, info)

    def check_symmetric(self) -> None:
        """Raise `ValueError` unless ``u'Av = v'Au`` for two random vectors."""
        u, v = np.random.default_rng(0).standard_normal((2, self.n))
        if isinstance(self.b, Tensor):
            u, v = (torch.as_tensor(w, dtype=self.b.dtype, device=self.b.device) for w in (u, v))
        else:
            u, v = u.astype(self.b.dtype), v.astype(self.b.dtype)
        Au, Av = self.product(u), self.product(v)
        scale = _norm(u) * _norm(Av) + _norm(v) * _norm(Au)
        left, right = float(u @ Av), float(v @ Au)
        eps = (torch if isinstance(self.b, Tensor) else np).finfo(self.b.dtype).eps
        if abs(left - right) > max(SYMMETRY, 100 * float(eps)) * scale:
            raise value_error(
                "A", "symmetric", f"u'Av = {left:.6g}, v'Au = {right:.6g}", "check=False skips this check"
            )


class _Iteration:
    """The state of one run, and its step."""

    def __init__(
        self,
        system: LinearSystem,
        direction: Callable[[Vector], Vector],
        x: Vector,
        r: Vector,
        limit: float,
        memory: int,
        recompute_every: int,
    ) -> None:
        self.system, self.direction, self.x, self.r, self.limit = system, direction, x, r, limit
        self.recompute_every = recompute_every
        self.kept: deque[tuple[Vector, Vector, float]] = deque(maxlen=memory)
        self.norm = _norm(r)
        self.norms = [self.norm]
        self.noise = math.inf  # the residual when rounding last showed
        self.n_fallback, self.seconds = 0, 0.0

    def step(self, _: None) -> tuple[None, Progress]:
        found = None if self._stalls() else self._conjugate(self._propose())
        if found is None:
            self.n_fallback += 1
            found = self._conjugate(self.r / self.norm)
        if found is None:
            return None, Progress(self.x, math.nan)
        q, Aq, alpha, t = found
        self.x = self.x + t * q
        self.r = self.r - t * Aq
        self.kept.append((q, Aq, alpha))
        self.norm = _norm(self.r)
        stop = None
        if len(self.norms) % self.recompute_every == 0 or self.norm <= self.limit:
            stop = self._recompute()
        self.norms.append(self.norm)
        return None, Progress(self.x, self.norm, stop)

    def _conjugate(self, q: Vector | None) -> tuple[Vector, Vector, float, float] | None:
        """Make q conjugate to the kept directions: q, A q, q'A q and the step length; None where there is none."""
        if q is None:
            return None
        if self.system.project is not None:
            q = self.system.project(q)
        for p, Ap, alpha_p in self.kept:
            q = q - p * (float(q @ Ap) / alpha_p)
        size = _norm(q)
        if not 0 < size < math.inf:
            return None
        q = q / size
        gain = float(q @ self.r)
        if not abs(gain) >= FLAT * self.norm:
            return None
        Aq = self.system.product(q)
        alpha = float(q @ Aq)
        if not (alpha > 0 and math.isfinite(gain / alpha)):
            return None
        return q, Aq, alpha, gain / alpha

    def _propose(self) -> Vector | None:
        clock = time.perf_counter()
        q = self.direction(self.r / self.norm)
        b = self.system.b
        if not isinstance(b, Tensor):
            q = np.asarray(q)
        elif not isinstance(q, Tensor):
            raise kind_error("direction", "a function that returns a Tensor for a Tensor", q)
        if tuple(q.shape) != tuple(b.shape):
            raise value_error("direction", f"a function that returns shape {tuple(b.shape)}", q)
        q = q.to(b.dtype) if isinstance(b, Tensor) else q.astype(b.dtype, copy=False)
        size = _norm(q)
        self.seconds += time.perf_counter() - clock  # the norm has waited for the accelerator
        return q / size if 0 < size < math.inf else None

    def _recompute(self) -> Stop | None:
        r = self.system.b - self.system.product(self.x)
        lost = _norm(r - self.r) >= self.norm
        self.r, self.norm = r, _norm(r)
        if self.norm <= self.limit:
            return Stop.CONVERGED
        if lost:
            if self.norm > 0.5 * self.noise:
                return Stop.STALLED
            self.noise = self.norm
        return None

    def _stalls(self) -> bool:
        return len(self.norms) > STALL_WINDOW and self.norm > STALL * self.norms[-1 - STALL_WINDOW]


def _norm(v: Vector) -> float:
    """Euclidean norm, scaled so that squares neither underflow nor overflow."""
    largest = float(abs(v).max())
    return largest * math.sqrt(float((v / largest) @ (v / largest))) if 0 < largest < math.inf else largest


def _zeros_like(v: Vector) -> Vector:
    return torch.zeros_like(v) if isinstance(v, Tensor) else np.zeros_like(v)


def _vector(name: str, value: Any, like: Vector | None) -> Vector:
    on_torch = isinstance(value if like is None else like, Tensor)
    if on_torch != isinstance(value, Tensor):
        raise kind_error(name, "a Tensor, as b is" if on_torch else "an array, as b is", value)
    value = value if on_torch else np.asarray(value)
    real = value.is_floating_point() if on_torch else value.dtype.kind in "fiub"
    if not real:
        raise kind_error(name, "of real floating numbers", value)
    n = None if like is None else len(like)
    if value.ndim != 1 or len(value) == 0 or (n is not None and len(value) != n):
        raise value_error(name, "of shape (n,), n >= 1" if n is None else f"of shape ({n},)", value)
    if not bool((torch if on_torch else np).isfinite(value).all()):
        raise value_error(name, "finite", "values that are not")
    if like is None:
        return value
    if on_torch and (value.dtype != like.dtype or value.device != like.device):
        raise value_error(name, f"of dtype {like.dtype} on {like.device}", f"{value.dtype} on {value.device}")
    return value.clone() if on_torch else value.astype(like.dtype)


def product_with(A: Any, b: Vector, name: str) -> Product:
    """Give the function that multiplies a vector of b's kind with `A`."""
    shape = getattr(A, "shape", None)
    if isinstance(b, Tensor):
        fits = isinstance(A, Tensor) or (callable(A) and shape is None)
        expected = "a Tensor or a callable, as b is a Tensor"
    else:
        fits = isinstance(A, np.ndarray | LinearOperator) or sparse.issparse(A) or (callable(A) and shape is None)
        expected = "a matrix, a LinearOperator or a callable on arrays, as b is an array"
    if not fits:
        raise kind_error(name, expected, A)
    if shape is not None and (len(shape) != 2 or shape[0] != shape[1]):
        raise value_error(name, "square", f"shape {tuple(shape)}")
    if shape is not None and shape[0] != len(b):
        raise value_error("b", f"of shape ({shape[0]},), as {name} has {shape[0]} rows", b)
    if isinstance(A, Tensor) and isinstance(b, Tensor) and (A.dtype != b.dtype or A.device != b.device):
        raise value_error(name, f"of b's dtype {b.dtype} on {b.device}", f"{A.dtype} on {A.device}")

    def product(v: Vector) -> Vector:
        out = A @ v if shape is not None else A(v)
        if tuple(getattr(out, "shape", ())) != tuple(v.shape):
            raise value_error(name, f"a function that returns shape {tuple(v.shape)}", out)
        return out

    return product
