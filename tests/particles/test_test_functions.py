import itertools
import math

import numpy as np
import pytest
import torch

from steepest.particles.test_functions import (
    FUNCTIONS,
    TestFunction,
    ackley,
    canyon,
    canyon_smooth,
    griewank,
    make_canyon,
    rastrigin,
    rastrigin_cbo,
    rosenbrock,
    salomon,
    schwefel_2_20,
    xin_she_yang,
)


def _canyon_by_hand(x: float, y: float, r: float) -> float:
    u, b = y - (x - 1) * (x - 4) ** 2 / 8 - 2, -x - 1.6 * y
    e = 25 * (1 - math.exp(-1.4 * u**2 * math.exp(-0.002 * x**4))) + 0.4 * x**2 + 0.2 * y**2
    e += r * ((1 - math.cos(0.75 * math.pi * x)) + (1 - math.cos(0.75 * math.pi * y)))
    return e + 4 * math.exp(1 - 2 * u**4) * max((1 - math.exp(-9 * b**2)) * np.sign(b), 0)


BY_HAND = {
    "rastrigin": lambda v: 10 * len(v) + sum(x * x - 10 * math.cos(2 * math.pi * x) for x in v),
    "rastrigin_cbo": lambda v: sum(x * x + 2.5 * (1 - math.cos(2 * math.pi * x)) for x in v),
    "ackley": lambda v: -20 * math.exp(-0.2 * math.sqrt(sum(x * x for x in v) / len(v)))
    - math.exp(sum(math.cos(2 * math.pi * x) for x in v) / len(v)) + math.e + 20,
    "griewank": lambda v: 1 + sum(x * x for x in v) / 4000
    - math.prod(math.cos(x / math.sqrt(i)) for i, x in enumerate(v, 1)),
    "salomon": lambda v: 1 - math.cos(2 * math.pi * math.hypot(*v)) + 0.1 * math.hypot(*v),
    "schwefel_2_20": lambda v: sum(map(abs, v)),
    "xin_she_yang": lambda v: sum(map(abs, v)) * math.exp(-sum(math.sin(x * x) for x in v)),
    "rosenbrock": lambda v: sum(100 * (b - a * a) ** 2 + (1 - a) ** 2 for a, b in itertools.pairwise(v)),
    "canyon": lambda v: _canyon_by_hand(*v, 1.1625),
    "canyon_smooth": lambda v: _canyon_by_hand(*v, 0.25),
}  # fmt: skip


def dimension(f: TestFunction) -> int:
    return f.most or 5


@pytest.mark.parametrize("name", FUNCTIONS)
def test_values_are_those_of_the_formula(name: str) -> None:
    f = FUNCTIONS[name]
    x = np.random.default_rng(0).uniform(-3, 3, (40, dimension(f)))
    expected = [BY_HAND[name](list(map(float, row))) for row in x]
    np.testing.assert_allclose(f(x), expected, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(f(torch.from_numpy(x)).numpy(), expected, rtol=1e-12, atol=1e-12)
    assert float(f(x[0])) == pytest.approx(expected[0], rel=1e-12)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_minimum_is_zero_at_the_minimizer_and_nowhere_less(name: str) -> None:
    f = FUNCTIONS[name]
    d = dimension(f)
    assert float(f(f.minimizer(d))) == 0
    low, high = f.bounds
    assert (f(np.random.default_rng(1).uniform(low, high, (2000, d))) > 0).all()


def test_shapes_and_dtypes_are_kept() -> None:
    assert rastrigin(np.zeros((2, 3, 4))).shape == (2, 3)
    for f in (rastrigin, rastrigin_cbo, ackley, griewank, salomon, schwefel_2_20, xin_she_yang, rosenbrock):
        assert f(torch.ones(3, 4, dtype=torch.float32)).dtype == torch.float32
        assert f(np.ones((3, 4), np.float32)).dtype == np.float32
    assert canyon(np.ones((3, 2), np.float32)).dtype == np.float32
    assert rastrigin([1, 2]).dtype == np.float64


def test_canyon_has_ripples_of_the_stated_height() -> None:
    x = np.array([4 / 3, 0.0])  # half a period of the first coordinate's ripple
    assert canyon(x) - make_canyon(0)(x) == pytest.approx(2 * 1.1625)
    assert canyon_smooth(x) - make_canyon(0)(x) == pytest.approx(0.5)


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match=r"x.shape\[-1\] must be an integer in \[2, 2\], got 3"):
        canyon(np.zeros(3))
    with pytest.raises(ValueError, match="d must be an integer >= 2, got 1"):
        rosenbrock.minimizer(1)
    with pytest.raises(ValueError, match="x must be of shape"):
        ackley(1.0)
    with pytest.raises(ValueError, match="ripple"):
        make_canyon(-1)
