"""Equality-constrained test problems: the classical collection of Hock and Schittkowski, and three that scale.

Problems are written as plain formulas; `Jet` differentiates them twice, exactly, in the forward direction. The starts
and optima are those of the CUTEst collection.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.optimize import LinearConstraint, NonlinearConstraint

__all__ = ["PROBLEMS", "Control", "Jet", "TestProblem", "control_problem", "logistic_problem", "quadratic_program"]

Vector = NDArray[np.float64]


# ---------------------------------------------------------------------------------------------------------- derivatives


class Jet:
    """A number with its gradient (n,) and Hessian (n, n), carried through formulas."""

    __slots__ = ("H", "g", "v")

    def __init__(self, v: float, g: Vector, H: Vector) -> None:
        self.v, self.g, self.H = v, g, H

    def map(self, v: float, first: float, second: float) -> Jet:
        """Apply a function with value v and these derivatives at ``self.v``."""
        return Jet(v, first * self.g, first * self.H + (second * self.g)[:, None] * self.g)

    def __add__(self, other: Any) -> Jet:
        if isinstance(other, Jet):
            return Jet(self.v + other.v, self.g + other.g, self.H + other.H)
        return Jet(self.v + other, self.g, self.H)

    def __mul__(self, other: Any) -> Jet:
        if not isinstance(other, Jet):
            return Jet(self.v * other, self.g * other, self.H * other)
        cross = self.g[:, None] * other.g
        H = self.v * other.H + other.v * self.H + cross + cross.T
        return Jet(self.v * other.v, self.v * other.g + other.v * self.g, H)

    def __pow__(self, p: int) -> Jet:
        second = p * (p - 1) * self.v ** (p - 2) if p > 1 else 0.0
        return self.map(self.v**p, p * self.v ** (p - 1), second)

    def __neg__(self) -> Jet:
        return self * -1.0

    def __sub__(self, other: Any) -> Jet:
        return self + (-other)

    def __rsub__(self, other: Any) -> Jet:
        return -self + other

    __radd__, __rmul__ = __add__, __mul__


def _function(name: str, at: Callable[[float], tuple[float, float, float]]) -> Callable[[Any], Any]:
    """Make a function of numbers, jets and symbols (which have it as a method) from value and two derivatives."""

    def apply(x: Any) -> Any:
        if isinstance(x, Jet):
            return x.map(*at(x.v))
        return at(x)[0] if isinstance(x, int | float) else getattr(x, name)()

    return apply


def _exp_at(v: float) -> tuple[float, float, float]:
    e = math.exp(v) if v < 700 else math.inf
    return e, e, e


_exp = _function("exp", _exp_at)
_log = _function("log", lambda v: (math.log(v), 1 / v, -1 / v**2) if v > 0 else (math.nan,) * 3)
_sin = _function("sin", lambda v: (math.sin(v), math.cos(v), -math.sin(v)))
_cos = _function("cos", lambda v: (math.cos(v), -math.sin(v), -math.cos(v)))


# ------------------------------------------------------------------------------------------------------ small problems

Formula = Callable[..., Any]


@dataclass
class TestProblem:
    """A problem of the table: formulas of x1, x2, ..., the standard start, and the optimal value.

    Evaluations at one point are kept, so that f, gradient and Hessian cost one pass.
    """

    __test__ = False  # not a test, whatever pytest thinks of the name

    name: str
    objective: Formula
    residuals: Formula
    x0: Sequence[float]
    optimum: float
    regular: bool = True
    _last: tuple[bytes, Jet, list[Jet]] | None = field(default=None, repr=False)

    @property
    def n(self) -> int:
        """Number of variables."""
        return len(self.x0)

    @property
    def m(self) -> int:
        """Number of constraints."""
        return len(self.residuals(*self.x0))

    def _jets(self, x: Any) -> tuple[Jet, list[Jet]]:
        x = np.asarray(x, dtype=float)
        key = x.tobytes()
        if self._last is None or self._last[0] != key:
            eye, zero = np.eye(len(x)), np.zeros((len(x), len(x)))
            jets = [Jet(float(v), e, zero) for v, e in zip(x, eye, strict=True)]
            with np.errstate(all="ignore"):
                try:
                    self._last = (key, self.objective(*jets), list(self.residuals(*jets)))
                except OverflowError:  # a float too large for a power
                    nan = Jet(math.nan, np.full(len(x), math.nan), np.full((len(x), len(x)), math.nan))
                    self._last = (key, nan, [nan] * self.m)
        return self._last[1], self._last[2]

    def fun(self, x: Any) -> float:
        """Objective."""
        return self._jets(x)[0].v

    def jac(self, x: Any) -> Vector:
        """Its gradient (n,)."""
        return self._jets(x)[0].g.copy()

    def hess(self, x: Any) -> Vector:
        """Its Hessian (n, n)."""
        return self._jets(x)[0].H.copy()

    def constraint(self, x: Any) -> Vector:
        """Constraints (m,), zero where they hold."""
        return np.array([c.v for c in self._jets(x)[1]])

    def constraint_jac(self, x: Any) -> Vector:
        """Their Jacobian (m, n)."""
        return np.array([c.g for c in self._jets(x)[1]])

    def constraint_hess(self, x: Any, v: Any) -> Vector:
        """Hessian (n, n) of ``v' c``."""
        return sum((vi * c.H for vi, c in zip(v, self._jets(x)[1], strict=True)), np.zeros((self.n, self.n)))

    @property
    def constraints(self) -> NonlinearConstraint:
        """The constraints in SciPy's form."""
        return NonlinearConstraint(self.constraint, 0.0, 0.0, jac=self.constraint_jac, hess=self.constraint_hess)

    def solved(self, x: Any, tol: float = 1e-4) -> bool:
        """Whether x is feasible and as good as the optimum, both to `tol`, relative to max(1, |f*|)."""
        x = np.asarray(x, dtype=float)
        if not np.isfinite(x).all():
            return False
        return bool(
            np.abs(self.constraint(x)).max() <= tol
            and abs(self.fun(x) - self.optimum) <= tol * max(1.0, abs(self.optimum))
        )


_S = math.sqrt(2)
_A, _B = math.asin(math.sqrt(1 / 4.2)), math.asin(math.sqrt(5 / 7.2))
_K = (-6.089, -17.164, -34.054, -5.914, -24.721, -14.986, -24.1, -10.708, -26.662, -22.179)


def _hs111(*x: Any) -> Any:
    E = [_exp(v) for v in x]
    total = _log(sum(E[1:], E[0]))
    terms = [e * (k + v - total) for e, k, v in zip(E, _K, x, strict=True)]
    return sum(terms[1:], terms[0])


def _hs111_residuals(*x: Any) -> list[Any]:
    E1, E2, E3, E4, E5, E6, E7, E8, E9, E10 = (_exp(v) for v in x)
    return [E1 + 2 * E2 + 2 * E3 + E6 + E10 - 2, E4 + 2 * E5 + E6 + E7 - 1, E3 + E7 + E8 + 2 * E9 + E10 - 1]


# fmt: off
PROBLEMS: tuple[TestProblem, ...] = (
    TestProblem("HS6", lambda a, b: (1 - a)**2, lambda a, b: [10 * (b - a**2)], (-1.2, 1), 0),
    TestProblem("HS7", lambda a, b: _log(1 + a**2) - b, lambda a, b: [(1 + a**2)**2 + b**2 - 4], (2, 2), -math.sqrt(3)),
    TestProblem("HS8", lambda a, b: 0 * a - 1, lambda a, b: [a**2 + b**2 - 25, a * b - 9], (2, 1), -1),
    TestProblem("HS9", lambda a, b: _sin(math.pi / 12 * a) * _cos(math.pi / 16 * b), lambda a, b: [4 * a - 3 * b],
                (0, 0), -0.5),
    TestProblem("HS26", lambda a, b, c: (a - b)**2 + (b - c)**4, lambda a, b, c: [(1 + b**2) * a + c**4 - 3],
                (-2.6, 2, 2), 0),
    TestProblem("HS27", lambda a, b, c: .01 * (a - 1)**2 + (b - a**2)**2, lambda a, b, c: [a + c**2 + 1], (2, 2, 2),
                0.04),
    TestProblem("HS28", lambda a, b, c: (a + b)**2 + (b + c)**2, lambda a, b, c: [a + 2 * b + 3 * c - 1], (-4, 1, 1),
                0),
    TestProblem("HS39", lambda a, b, c, d: -a, lambda a, b, c, d: [b - a**3 - c**2, a**2 - b - d**2], (2,) * 4, -1),
    TestProblem("HS40", lambda a, b, c, d: -a * b * c * d,
                lambda a, b, c, d: [a**3 + b**2 - 1, a**2 * d - c, d**2 - b], (.8,) * 4, -0.25),
    TestProblem("HS42", lambda a, b, c, d: (a - 1)**2 + (b - 2)**2 + (c - 3)**2 + (d - 4)**2,
                lambda a, b, c, d: [a - 2, c**2 + d**2 - 2], (1,) * 4, 28 - 10 * _S),
    TestProblem("HS46", lambda a, b, c, d, e: (a - b)**2 + (c - 1)**2 + (d - 1)**4 + (e - 1)**6,
                lambda a, b, c, d, e: [a**2 * d + _sin(d - e) - 1, b + c**4 * d**2 - 2], (_S / 2, 1.75, .5, 2, 2), 0),
    TestProblem("HS47", lambda a, b, c, d, e: (a - b)**2 + (b - c)**3 + (c - d)**4 + (d - e)**4,
                lambda a, b, c, d, e: [a + b**2 + c**3 - 3, b - c**2 + d - 1, a * e - 1], (2, _S, -1, 2 - _S, .5), 0),
    TestProblem("HS48", lambda a, b, c, d, e: (a - 1)**2 + (b - c)**2 + (d - e)**2,
                lambda a, b, c, d, e: [a + b + c + d + e - 5, c - 2 * (d + e) + 3], (3, 5, -3, 2, -2), 0),
    TestProblem("HS49", lambda a, b, c, d, e: (a - b)**2 + (c - 1)**2 + (d - 1)**4 + (e - 1)**6,
                lambda a, b, c, d, e: [a + b + c + 4 * d - 7, c + 5 * e - 6], (10, 7, 2, -3, .8), 0),
    TestProblem("HS50", lambda a, b, c, d, e: (a - b)**2 + (b - c)**2 + (c - d)**4 + (d - e)**2,
                lambda a, b, c, d, e: [a + 2 * b + 3 * c - 6, b + 2 * c + 3 * d - 6, c + 2 * d + 3 * e - 6],
                (35, -31, 11, 5, -5), 0),
    TestProblem("HS51", lambda a, b, c, d, e: (a - b)**2 + (b + c - 2)**2 + (d - 1)**2 + (e - 1)**2,
                lambda a, b, c, d, e: [a + 3 * b - 4, c + d - 2 * e, b - e], (2.5, .5, 2, -1, .5), 0),
    TestProblem("HS52", lambda a, b, c, d, e: (4 * a - b)**2 + (b + c - 2)**2 + (d - 1)**2 + (e - 1)**2,
                lambda a, b, c, d, e: [a + 3 * b, c + d - 2 * e, b - e], (2,) * 5, 1859 / 349),
    TestProblem("HS56", lambda a, b, c, d, e, f, g: -a * b * c,
                lambda a, b, c, d, e, f, g: [a - 4.2 * _sin(d)**2, b - 4.2 * _sin(e)**2, c - 4.2 * _sin(f)**2,
                                             a + 2 * b + 2 * c - 7.2 * _sin(g)**2], (1, 1, 1, _A, _A, _A, _B), -3.456),
    TestProblem("HS61", lambda a, b, c: 4 * a**2 + 2 * b**2 + 2 * c**2 - 33 * a + 16 * b - 24 * c,
                lambda a, b, c: [3 * a - 2 * b**2 - 7, 4 * a - c**2 - 11], (0, 0, 0), -143.6461422, regular=False),
    TestProblem("HS77", lambda a, b, c, d, e: (a - 1)**2 + (a - b)**2 + (c - 1)**2 + (d - 1)**4 + (e - 1)**6,
                lambda a, b, c, d, e: [a**2 * d + _sin(d - e) - 2 * _S, b + c**4 * d**2 - 8 - _S], (2,) * 5,
                0.24150513),
    TestProblem("HS78", lambda a, b, c, d, e: a * b * c * d * e,
                lambda a, b, c, d, e: [a**2 + b**2 + c**2 + d**2 + e**2 - 10, b * c - 5 * d * e, a**3 + b**3 + 1],
                (-2, 1.5, 2, -1, -1), -2.91970041),
    TestProblem("HS79", lambda a, b, c, d, e: (a - 1)**2 + (a - b)**2 + (b - c)**2 + (c - d)**4 + (d - e)**4,
                lambda a, b, c, d, e: [a + b**2 + c**3 - 2 - 3 * _S, b - c**2 + d + 2 - 2 * _S, a * e - 2], (2,) * 5,
                0.0787768209),
    TestProblem("HS100LNP",
                lambda a, b, c, d, e, f, g: (a - 10)**2 + 5 * (b - 12)**2 + c**4 + 3 * (d - 11)**2 + 10 * e**6
                + 7 * f**2 + g**4 - 4 * f * g - 10 * f - 8 * g,
                lambda a, b, c, d, e, f, g: [127 - 2 * a**2 - 3 * b**4 - c - 4 * d**2 - 5 * e,
                                             -4 * a**2 - b**2 + 3 * a * b - 2 * c**2 - 5 * f + 11 * g],
                (1, 2, 0, 4, 0, 1, 1), 680.6300573),
    TestProblem("HS111LNP", _hs111, _hs111_residuals, (-2.3,) * 10, -47.76109),
    TestProblem("MARATOS", lambda a, b: -a + 1e-6 * (a**2 + b**2 - 1), lambda a, b: [a**2 + b**2 - 1], (1.1, .1), -1),
    TestProblem("BYRDSPHR", lambda a, b, c: -a - b - c,
                lambda a, b, c: [a**2 + b**2 + c**2 - 9, (a - 1)**2 + b**2 + c**2 - 9], (5, 1e-4, -1e-4), -4.68330049),
)
# fmt: on


# ------------------------------------------------------------------------------------------------------ larger problems


def logistic_problem(X: Vector, y: Vector, rng: np.random.Generator) -> dict[str, Any]:
    """Logistic regression (samples X (N, n), labels y in {-1, 1}) under ten random linear equations and a unit norm.

    Equations that miss the sphere are drawn again. Returns the keyword arguments of `scipy.optimize.minimize` but `x0`,
    whose standard value is ones.
    """
    Z = -y[:, None] * X
    A, b = rng.standard_normal((10, X.shape[1])), rng.standard_normal(10)
    while np.linalg.norm(np.linalg.pinv(A) @ b) >= 1:  # the equations' plane must cut the sphere
        b = rng.standard_normal(10)

    def fun(x: Vector) -> float:
        return float(np.logaddexp(0, Z @ x).mean())

    def weights(x: Vector) -> Vector:
        return np.exp(-np.logaddexp(0, -(Z @ x)))

    def hess(x: Vector) -> Vector:
        p = weights(x)
        return (Z * (p * (1 - p))[:, None]).T @ Z / len(Z)

    n = X.shape[1]
    sphere = NonlinearConstraint(
        lambda x: x @ x - 1, 0, 0, jac=lambda x: 2 * x[None], hess=lambda x, v: 2 * v[0] * np.eye(n)
    )
    return {
        "fun": fun,
        "jac": lambda x: Z.T @ weights(x) / len(Z),
        "hess": hess,
        "constraints": [LinearConstraint(A, b, b), sphere],
    }


@dataclass(frozen=True)
class Control:
    """Distributed control of Poisson's equation on a grid: variables (W, Z), both of N^2 numbers."""

    N: int
    target: Vector
    arguments: dict[str, Any]
    solution: Callable[[], tuple[Vector, Vector]]


def control_problem(N: int, alpha: float = 0.1) -> Control:
    """Min 1/2 ||W - target||^2 + alpha/2 ||Z||^2 with ``Laplacian W + Z = 0`` on (-1, 1)^2, zero on the boundary.

    `arguments` are those of `scipy.optimize.minimize` but `x0`; `solution` solves the linear KKT system directly and
    returns (W, Z) and the multipliers.
    """
    h = 2 / (N + 1)
    line = sparse.diags_array([1.0, -2.0, 1.0], offsets=[-1, 0, 1], shape=(N, N)) / h**2
    L = sparse.kron(sparse.eye_array(N), line) + sparse.kron(line, sparse.eye_array(N))
    size = N * N
    A = sparse.csr_array(sparse.hstack([L, sparse.eye_array(size)]))
    i = np.arange(1, N + 1) - (N + 1) / 2
    wave = 0.1 / math.sqrt(15)
    target = (np.sin(4 + wave * i)[:, None] + np.cos(3 + wave * i)[None, :]).ravel()
    weight = np.r_[np.ones(size), np.full(size, alpha)]
    aim = np.r_[target, np.zeros(size)]
    H = sparse.csr_array(sparse.diags_array(weight))

    def solution() -> tuple[Vector, Vector]:
        K = sparse.csc_array(sparse.block_array([[H, A.T], [A, None]]))
        found = sparse.linalg.spsolve(K, np.r_[weight * aim, np.zeros(size)])
        return found[: 2 * size], found[2 * size :]

    arguments = {
        "fun": lambda x: float(weight @ (x - aim) ** 2 / 2),
        "jac": lambda x: weight * (x - aim),
        "hess": lambda x: H,
        "constraints": LinearConstraint(A, 0.0, 0.0),
    }
    return Control(N, target, arguments, solution)


def quadratic_program(n: int, m: int, rng: np.random.Generator) -> tuple[Any, Any, Vector, Vector]:
    """A sparse quadratic program: diagonal H (n, n) in [0.5, 1.5], G (m, n) with four entries ±1/2 a row, g, c.

    min x' H x / 2 + g' x subject to G x = c.
    """
    # four distinct columns in every row
    columns = np.array([rng.choice(n, 4, replace=False, shuffle=False) for _ in range(m)]).ravel()
    data = rng.choice([-0.5, 0.5], 4 * m)
    G = sparse.csr_array((data, columns, np.arange(0, 4 * m + 1, 4)), shape=(m, n))
    H = sparse.csr_array(sparse.diags_array(rng.uniform(0.5, 1.5, n)))
    return H, G, rng.standard_normal(n), rng.standard_normal(m)
