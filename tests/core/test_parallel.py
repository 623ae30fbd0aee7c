from __future__ import annotations

import os

import pytest
import torch

from steepest.core.parallel import ordered_map
from steepest.core.random import child_seeds, torch_generator


def draw(seed: int) -> float:
    return float(torch.rand(1, generator=torch_generator(seed)))


def fail_on_two(k: int) -> int:
    if k == 2:
        raise ZeroDivisionError("two")
    return k


@pytest.mark.slow
def test_the_numbers_do_not_depend_on_the_workers_and_the_share_done_is_told():
    seeds, shares = child_seeds(0, 5), []
    serial = ordered_map(draw, seeds, progress=shares.append)
    assert shares == [0.2, 0.4, 0.6, 0.8, 1.0]
    assert ordered_map(draw, seeds, backend="processes", n_workers=2, progress=shares.append) == serial
    assert shares[5:] == [0.2, 0.4, 0.6, 0.8, 1.0]


def threads_of_blas(_: int) -> set[int]:
    import scipy.linalg  # noqa: F401, the second BLAS
    from threadpoolctl import threadpool_info

    return {pool["num_threads"] for pool in threadpool_info()}


@pytest.mark.slow
def test_workers_have_one_thread_each_whatever_the_environment_says(monkeypatch):
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "2")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert ordered_map(threads_of_blas, [0], backend="processes", n_workers=1) == [{1}]
    assert os.environ["OPENBLAS_NUM_THREADS"] == "2"
    assert "OMP_NUM_THREADS" not in os.environ


@pytest.mark.slow
@pytest.mark.usefixtures("ray")
def test_ray_gives_the_same_numbers_and_the_first_exception():
    def local_draw(seed):  # a closure travels by value
        if seed == "bad":
            raise ZeroDivisionError("bad seed")
        return float(torch.rand(1, generator=torch_generator(seed)))

    seeds, shares = child_seeds(0, 5), []
    found = ordered_map(local_draw, seeds, backend="ray", n_workers=2, progress=shares.append)
    assert found == [draw(s) for s in seeds]
    assert shares[-1] == 1.0
    with pytest.raises(ZeroDivisionError, match="bad seed"):
        ordered_map(local_draw, [1, "bad"], backend="ray")


@pytest.mark.slow
def test_exceptions_of_workers_reach_the_caller():
    with pytest.raises(ZeroDivisionError, match="two"):
        ordered_map(fail_on_two, range(4), backend="processes", n_workers=2)


def test_serial_and_misuse():
    assert ordered_map(fail_on_two, [0, 1]) == [0, 1]
    assert ordered_map(draw, [], backend="processes") == []
    with pytest.raises(ZeroDivisionError):
        ordered_map(fail_on_two, [2])
    with pytest.raises(ValueError, match="backend must be one of"):
        ordered_map(abs, [1], backend="threads")
    with pytest.raises(ValueError, match="n_workers must be"):
        ordered_map(abs, [1], n_workers=0)
