from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from steepest.core.errors import (
    at_least,
    boolean,
    check,
    check_params,
    interval,
    kind_error,
    nonnegative,
    one_of,
    optional,
    positive,
    value_error,
)


@pytest.mark.parametrize(
    ("limit", "good", "bad"),
    [
        (positive(), [1e-300, 2, np.float32(1), torch.tensor(0.5)], [0, -1.0, math.nan, math.inf]),
        (nonnegative(), [0, 0.0, 3], [-1e-9, math.nan, math.inf]),
        (at_least(3, integer=True), [3, np.int64(7)], [2]),
        (interval(0, 1, high_open=True), [0, 0.999], [1, -0.1, 1.5, math.nan]),
        (interval(0, 1, low_open=True), [1, 1e-9], [0, 1.0001]),
        (one_of("a", "b"), ["a"], ["c"]),
        (optional(positive()), [None, 1], [0]),
    ],
)
def test_limits_accept_and_refuse_values(limit, good, bad):
    for value in good:
        check("x", value, limit)
    for value in bad:
        with pytest.raises(ValueError, match="x must be"):
            check("x", value, limit)


@pytest.mark.parametrize(
    ("limit", "value"),
    [
        (positive(), "1"),
        (positive(), True),
        (positive(), None),
        (positive(), 1j),
        (positive(), torch.ones(2)),
        (at_least(1, integer=True), 1.0),
        (one_of("a"), 1),
        (boolean(), 1),
        (boolean(), None),
    ],
)
def test_wrong_kinds_are_type_errors(limit, value):
    with pytest.raises(TypeError, match="x must be"):
        check("x", value, limit)


def test_messages_name_argument_expectation_and_what_came():
    assert str(value_error("reg", "> 0", 0.0, "use ot.emd")) == "reg must be > 0, got 0.0; use ot.emd"
    assert "got Tensor of shape (2, 3) and dtype torch.float32" in str(value_error("A", "square", torch.zeros(2, 3)))
    assert str(kind_error("n", "an integer", "3")) == "n must be an integer, got str '3'"
    assert len(str(value_error("s", "short", "x" * 1000))) < 150


def test_a_table_of_limits_checks_objects_and_mappings():
    class Model:
        damping = -0.1

    with pytest.raises(ValueError, match=r"damping must be > 0, got -0\.1"):
        check_params(Model(), {"damping": positive()})
    check_params({"damping": 0.1}, {"damping": positive()})
