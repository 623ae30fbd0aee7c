r"""Rough functions with a known minimum of 0, for one point or many, in NumPy or torch.

    rastrigin      10 d + sum(v^2 - 10 cos 2 pi v)             rastrigin_cbo    sum v^2 + 2.5 sum(1 - cos 2 pi v)
    ackley         20 (1 - exp(-|v| / 5 sqrt d)) + e - exp(mean cos 2 pi v)
    griewank       sum v^2 / 4000 + 1 - prod cos(v_i / sqrt i)  salomon         1 - cos(2 pi |v|) + |v| / 10
    schwefel_2_20  sum |v|                                      xin_she_yang    sum |v| exp(-sum sin v^2)
    rosenbrock     sum 100 (v_{i+1} - v_i^2)^2 + (1 - v_i)^2
    canyon         in the plane: a bent valley with ripples that leads from (8, 8) to the minimum at 0

The last is the landscape of the figures of riedl2023gradient; `make_canyon` sets the height of its ripples.

Examples
--------
>>> from steepest.particles.test_functions import rastrigin
>>> float(rastrigin(np.zeros(5))), rastrigin(torch.ones(3, 5)).tolist()
(0.0, [5.0, 5.0, 5.0])
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from steepest.core.errors import at_least, check, interval, nonnegative, value_error

__all__ = [
    "FUNCTIONS",
    "TestFunction",
    "ackley",
    "canyon",
    "canyon_smooth",
    "griewank",
    "make_canyon",
    "rastrigin",
    "rastrigin_cbo",
    "rosenbrock",
    "salomon",
    "schwefel_2_20",
    "xin_she_yang",
]


@dataclass(frozen=True)
class TestFunction:
    """A function on R^d whose least value is 0.

    Call it with an array or tensor of shape (d,) or (..., d): the answer has the leading shape, kind and dtype.

    Parameters
    ----------
    name : str
    formula : callable
        ``formula(xp, v)`` with `xp` numpy or torch and `v` of shape (..., d).
    bounds : (float, float)
        The customary box, the same for every coordinate: ``[f.bounds] * d`` is what SciPy calls bounds.
    at : float
        Every coordinate of the minimizer.
    least, most : int
        Dimensions it is made for; `most` None means any.
    """

    __test__ = False  # not a test, whatever pytest thinks of the name

    name: str
    formula: Callable[[ModuleType, Any], Any]
    bounds: tuple[float, float]
    at: float = 0.0
    least: int = 1
    most: int | None = None

    def __call__(self, x: Any) -> Any:
        """Evaluate at every row of `x`."""
        xp: ModuleType = torch
        if not isinstance(x, torch.Tensor):
            xp, x = np, np.asarray(x)
            x = x if x.dtype.kind == "f" else x.astype(float)
        if x.ndim < 1:
            raise value_error("x", "of shape (..., d)", x)
        self._check_dimension("x.shape[-1]", x.shape[-1])
        return self.formula(xp, x)

    def minimizer(self, d: int) -> NDArray[np.float64]:
        """Return the minimizer, of shape (d,)."""
        check("d", d, at_least(1, integer=True))
        self._check_dimension("d", d)
        return np.full(d, self.at)

    def _check_dimension(self, name: str, d: int) -> None:
        if self.most is not None:
            check(name, d, interval(self.least, self.most, integer=True))
        check(name, d, at_least(self.least, integer=True))


def _rastrigin(xp: ModuleType, v: Any) -> Any:
    return (v * v + 10 * (1 - xp.cos(2 * math.pi * v))).sum(axis=-1)


def _rastrigin_cbo(xp: ModuleType, v: Any) -> Any:
    return (v * v + 2.5 * (1 - xp.cos(2 * math.pi * v))).sum(axis=-1)


def _ackley(xp: ModuleType, v: Any) -> Any:
    bowl = xp.expm1(-0.2 * xp.sqrt((v * v).mean(axis=-1)))
    ripples = xp.expm1(xp.cos(2 * math.pi * v).mean(axis=-1) - 1)
    return -20 * bowl - math.e * ripples  # expm1: exact near the minimum, where the usual form cancels


def _griewank(xp: ModuleType, v: Any) -> Any:
    roots = xp.sqrt(_like(xp, v, np.arange(1, v.shape[-1] + 1)))
    return (v * v).sum(axis=-1) / 4000 + 1 - xp.prod(xp.cos(v / roots), -1)


def _salomon(xp: ModuleType, v: Any) -> Any:
    r = xp.sqrt((v * v).sum(axis=-1))
    return 1 - xp.cos(2 * math.pi * r) + 0.1 * r


def _schwefel_2_20(xp: ModuleType, v: Any) -> Any:
    return abs(v).sum(axis=-1)


def _xin_she_yang(xp: ModuleType, v: Any) -> Any:
    return abs(v).sum(axis=-1) * xp.exp(-xp.sin(v * v).sum(axis=-1))


def _rosenbrock(xp: ModuleType, v: Any) -> Any:
    left, right = v[..., :-1], v[..., 1:]
    return (100 * (right - left * left) ** 2 + (1 - left) ** 2).sum(axis=-1)


def _like(xp: ModuleType, v: Any, values: NDArray[Any]) -> Any:
    return torch.as_tensor(values, dtype=v.dtype, device=v.device) if xp is torch else values.astype(v.dtype)


def make_canyon(ripple: float = 1.1625) -> TestFunction:
    """Make the canyon of riedl2023gradient with ripples of height 2 `ripple` in each coordinate.

    Parameters
    ----------
    ripple : float
        1.1625 in the paper's noisy figures, 0.25 in the others.

    Examples
    --------
    >>> valley = make_canyon(0.0)
    >>> float(valley([0.0, 0.0])), bool(valley([8.0, 8.0]) > 30)
    (0.0, True)
    """
    check("ripple", ripple, nonnegative())

    def formula(xp: ModuleType, v: Any) -> Any:
        x, y = v[..., 0], v[..., 1]
        u = y - (x - 1) * (x - 4) ** 2 / 8 - 2  # 0 along the valley
        b = -x - 1.6 * y
        valley = 25 * -xp.expm1(-1.4 * u**2 * xp.exp(-0.002 * x**4)) + 0.4 * x**2 + 0.2 * y**2
        ripples = ripple * ((1 - xp.cos(0.75 * math.pi * x)) + (1 - xp.cos(0.75 * math.pi * y)))
        wall = -xp.expm1(-9 * b**2) * xp.sign(b)
        return valley + ripples + 4 * xp.exp(1 - 2 * u**4) * (wall + abs(wall)) / 2

    return TestFunction("canyon" if ripple > 1 else "canyon_smooth", formula, (-4.0, 10.0), least=2, most=2)


rastrigin = TestFunction("rastrigin", _rastrigin, (-5.12, 5.12))
rastrigin_cbo = TestFunction("rastrigin_cbo", _rastrigin_cbo, (-5.12, 5.12))
ackley = TestFunction("ackley", _ackley, (-32.768, 32.768))
griewank = TestFunction("griewank", _griewank, (-600.0, 600.0))
salomon = TestFunction("salomon", _salomon, (-100.0, 100.0))
schwefel_2_20 = TestFunction("schwefel_2_20", _schwefel_2_20, (-100.0, 100.0))
xin_she_yang = TestFunction("xin_she_yang", _xin_she_yang, (-2 * math.pi, 2 * math.pi))
rosenbrock = TestFunction("rosenbrock", _rosenbrock, (-5.0, 10.0), at=1.0, least=2)
canyon = make_canyon(1.1625)
canyon_smooth = make_canyon(0.25)

FUNCTIONS = {
    f.name: f
    for f in (
        rastrigin, rastrigin_cbo, ackley, griewank, salomon, schwefel_2_20, xin_she_yang, rosenbrock, canyon,
        canyon_smooth,
    )
}  # fmt: skip
"""All of them, by name."""
