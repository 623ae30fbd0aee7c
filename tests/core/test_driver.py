from __future__ import annotations

import math

import pytest

from steepest.core.driver import Progress, Stop, drive


def halving(x):
    x = x / 2
    return x, Progress(x, abs(x), Stop.CONVERGED if x < 1e-3 else None, {"step_norm": x}, {"nfev": 2})


def test_it_stops_when_the_method_says_so_and_adds_up_the_counts():
    result = drive(halving, 1.0, maxiter=100, keep=("fun", "step_norm", "seconds"), start=Progress(1.0, 1.0))
    assert (result.success, result.status, result.nit, result.nfev) == (True, 0, 10, 20)
    assert result.x == 2.0**-10
    assert result.history["fun"] == [2.0**-k for k in range(11)]
    assert math.isnan(result.history["step_norm"][0])
    assert result.history["seconds"] == sorted(result.history["seconds"])


def test_the_budget_is_kept_to():
    result = drive(halving, 1.0, maxiter=3)
    assert (result.success, result.status, result.nit) == (False, Stop.MAXITER, 3)
    assert "raise maxiter" in result.message
    assert drive(halving, 1.0, maxiter=0, start=Progress(1.0, 1.0)).x == 1.0


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_is_never_returned_as_an_answer(bad):
    def step(k):
        return k + 1, Progress(k, bad if k == 2 else float(k))

    result = drive(step, 0, maxiter=10)
    assert (result.status, result.nit, result.x, result.fun) == (Stop.NONFINITE, 2, 1, 1.0)
    with pytest.raises(FloatingPointError, match="iteration 3"):
        drive(step, 0, maxiter=10, on_nonfinite="raise")


def test_callbacks_in_both_forms_of_scipy_can_stop_the_run():
    seen = []

    def classic(x):
        seen.append(x)
        if len(seen) == 2:
            raise StopIteration

    def modern(intermediate_result):
        seen.append(intermediate_result.fun)
        assert intermediate_result.nit == len(seen)

    assert drive(halving, 1.0, maxiter=9, callback=classic).status == Stop.CALLBACK
    assert seen == [0.5, 0.25]
    seen.clear()
    drive(halving, 1.0, maxiter=3, callback=modern)
    assert seen == [0.5, 0.25, 0.125]


def test_every_status_has_advice_and_only_zero_is_success():
    assert [s for s in Stop if s == 0] == [Stop.CONVERGED]
    assert all(s.message.endswith(".") for s in Stop)
    with pytest.raises(ValueError, match="maxiter must be"):
        drive(halving, 1.0, maxiter=-1)
