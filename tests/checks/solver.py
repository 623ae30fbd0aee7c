"""What every solver owes its caller, whatever it solves."""

from __future__ import annotations

import copy
import inspect
import math
import pickle
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import OptimizeResult

from steepest.core.driver import Stop


@dataclass
class Problem:
    """A problem with a known answer.

    `solve` is the solver under examination as ``solve(fun, x0, **options)``; `fun` its objective and `x0` its start,
    `solution` the minimiser, `tol` how near the solver comes with its defaults. `bad` maps options to a value that
    must be refused.
    """

    solve: Callable[..., OptimizeResult]
    fun: Callable[[Any], Any]
    x0: Any
    solution: Any
    tol: float = 1e-4
    options: dict[str, Any] = field(default_factory=dict)
    bad: dict[str, Any] = field(default_factory=lambda: {"maxiter": -1})

    def run(self, **changes: Any) -> OptimizeResult:
        return self.solve(self.fun, self.x0, **(self.options | changes))


def _array(x: Any) -> np.ndarray:
    return np.asarray(x.detach() if isinstance(x, torch.Tensor) else x, dtype=float)


def check_finds_the_answer(problem: Problem) -> None:
    result = problem.run()
    assert isinstance(result, OptimizeResult)
    assert result.success, result.message
    assert result.status == 0
    assert np.abs(_array(result.x) - _array(problem.solution)).max() <= problem.tol
    assert isinstance(result.message, str)
    assert result.nit >= 1


def check_answer_has_the_kind_of_the_start(problem: Problem) -> None:
    x = problem.run().x
    assert type(x) is type(problem.x0)
    if isinstance(problem.x0, torch.Tensor | np.ndarray):
        assert x.dtype == problem.x0.dtype
        assert x.shape == problem.x0.shape


def check_start_is_left_alone(problem: Problem) -> None:
    before = copy.deepcopy(problem.x0)
    problem.run()
    assert (_array(before) == _array(problem.x0)).all()


def check_budget_is_kept(problem: Problem) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        result = problem.run(maxiter=1)
    assert result.nit <= 1
    assert not result.success
    assert result.status == Stop.MAXITER
    assert "maxiter" in result.message


def check_callback_sees_and_stops(problem: Problem) -> None:
    seen: list[float] = []

    def callback(intermediate_result: OptimizeResult) -> None:
        seen.append(float(intermediate_result.fun))
        if len(seen) == 2:
            raise StopIteration

    result = problem.run(callback=callback)
    assert len(seen) == 2
    assert result.status == Stop.CALLBACK
    assert not result.success


def check_history_has_the_shared_keys(problem: Problem) -> None:
    result = problem.run()
    assert "fun" in result.history
    assert all(len(v) == len(result.history["fun"]) for v in result.history.values())


def check_nonfinite_is_never_an_answer(problem: Problem) -> None:
    calls = 0

    def poisoned(x: Any) -> Any:
        nonlocal calls
        calls += 1
        return problem.fun(x) * (math.nan if calls > 2 else 1.0)

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            result = problem.solve(poisoned, problem.x0, **problem.options)
    except FloatingPointError:
        return
    assert not result.success
    assert np.isfinite(_array(result.x)).all()


def check_same_seed_same_result(problem: Problem) -> None:
    name = next((n for n in ("seed", "rng", "generator") if n in inspect.signature(problem.solve).parameters), None)
    changes = {} if name is None else {name: 0}
    state = torch.random.get_rng_state()
    a, b = problem.run(**changes), problem.run(**changes)
    assert (_array(a.x) == _array(b.x)).all()
    assert torch.equal(state, torch.random.get_rng_state())


def check_result_travels(problem: Problem) -> None:
    result = problem.run()
    assert pickle.loads(pickle.dumps(result)).message == result.message


def check_bad_options_are_named(problem: Problem) -> None:
    for name, value in problem.bad.items():
        with pytest.raises((ValueError, TypeError), match=name):
            problem.run(**{name: value})


SOLVER_CHECKS = [v for k, v in list(globals().items()) if k.startswith("check_")]
