"""One way to say what was wrong: name the argument, say what was expected, show what came.

A *limit* describes the values an argument may take. Rooms keep theirs in tables, so that what a class accepts can
be read in one place::

    LIMITS = {"damping": positive(), "kernel": one_of("heat", "rbf"), "n_neighbors": at_least(1, integer=True)}
    check_params(self, LIMITS)          # ValueError: damping must be > 0, got -0.1
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

__all__ = [
    "ConvergenceWarning",
    "Limit",
    "SteepestWarning",
    "at_least",
    "boolean",
    "check",
    "check_params",
    "interval",
    "kind_error",
    "nonnegative",
    "one_of",
    "optional",
    "positive",
    "value_error",
]


class SteepestWarning(UserWarning):
    """Base of every warning this library gives, so that one filter reaches all of them."""


class ConvergenceWarning(SteepestWarning):
    """An iteration stopped before it met its tolerance; the text gives the residual and what to change."""


def show(value: object, limit: int = 80) -> str:
    """Describe a value in at most `limit` characters; arrays and tensors by shape and dtype."""
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    if shape is not None and dtype is not None:
        if math.prod(shape) == 1:
            return f"{value.item() if hasattr(value, 'item') else value!r}"
        return f"{type(value).__name__} of shape {tuple(shape)} and dtype {dtype}"
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def value_error(name: str, expected: str, got: object, cure: str = "") -> ValueError:
    """Make the `ValueError` for an argument whose kind is right and whose value is not."""
    return ValueError(f"{name} must be {expected}, got {show(got)}" + (f"; {cure}" if cure else ""))


def kind_error(name: str, expected: str, got: object, cure: str = "") -> TypeError:
    """Make the `TypeError` for an argument of the wrong kind."""
    text = f"{name} must be {expected}, got {type(got).__name__} {show(got)}"
    return TypeError(text + (f"; {cure}" if cure else ""))


@dataclass(frozen=True)
class Limit:
    """What one argument may be: `kind` accepts its type, `test` its value, `expected` says both in words."""

    expected: str
    kind: Callable[[Any], bool]
    test: Callable[[Any], bool]


def _is_real(value: object) -> bool:
    if isinstance(value, bool):
        return False
    if isinstance(value, numbers.Real):
        return True
    shape = getattr(value, "shape", None)  # 0-dim tensors and arrays are numbers too
    return shape is not None and tuple(shape) == () and not getattr(value, "is_complex", bool)()


def _is_integer(value: object) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def interval(
    low: float = -math.inf,
    high: float = math.inf,
    *,
    low_open: bool = False,
    high_open: bool = False,
    integer: bool = False,
) -> Limit:
    """Numbers between `low` and `high`; an open end excludes the end itself. NaN is never inside."""
    kind = "an integer" if integer else "a number"
    if high == math.inf and low == -math.inf:
        expected = f"{kind} (not NaN)"
    elif high == math.inf:
        expected = f"{kind + ' ' if integer else ''}{'>' if low_open else '>='} {low:g}"
    elif low == -math.inf:
        expected = f"{kind + ' ' if integer else ''}{'<' if high_open else '<='} {high:g}"
    else:
        expected = f"{kind} in {'(' if low_open else '['}{low:g}, {high:g}{')' if high_open else ']'}"

    def test(value: Any) -> bool:
        x = float(value)
        above = x > low if low_open else x >= low
        below = x < high if high_open else x <= high
        return above and below and not (math.isinf(x) and math.isinf(high) and x > 0)

    return Limit(expected, _is_integer if integer else _is_real, test)


def positive(*, integer: bool = False) -> Limit:
    """Finite numbers > 0."""
    return interval(0, low_open=True, integer=integer)


def nonnegative(*, integer: bool = False) -> Limit:
    """Finite numbers >= 0."""
    return interval(0, integer=integer)


def at_least(low: float, *, integer: bool = False) -> Limit:
    """Finite numbers >= `low`."""
    return interval(low, integer=integer)


def one_of(*choices: object) -> Limit:
    """One of the given values."""
    expected = "one of " + ", ".join(repr(c) for c in choices)
    kinds = tuple({type(c) for c in choices})
    return Limit(expected, lambda v: isinstance(v, kinds), lambda v: v in choices)


def boolean() -> Limit:
    """True or False, nothing that merely converts to them."""
    return Limit("True or False", lambda v: isinstance(v, bool), lambda v: True)


def optional(limit: Limit) -> Limit:
    """None, or what `limit` accepts."""
    return Limit(
        f"None or {limit.expected}",
        lambda v: v is None or limit.kind(v),
        lambda v: v is None or limit.test(v),
    )


def check(name: str, value: object, limit: Limit) -> None:
    """Raise unless `value` is within `limit`.

    Raises
    ------
    TypeError
        `value` is of the wrong kind.
    ValueError
        `value` is of the right kind and outside the limit.
    """
    if not limit.kind(value):
        raise kind_error(name, limit.expected, value)
    if not limit.test(value):
        raise value_error(name, limit.expected, value)


def check_params(obj: object, limits: Mapping[str, Limit]) -> None:
    """Check the attributes (or, for a mapping, the items) of `obj` that `limits` names."""
    for name, limit in limits.items():
        check(name, obj[name] if isinstance(obj, Mapping) else getattr(obj, name), limit)
