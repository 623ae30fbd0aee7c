from __future__ import annotations

import numpy as np
import pytest
import torch

from steepest.core.random import child_seeds, fresh_seed, numpy_generator, torch_generator


def test_ints_start_streams_and_generators_are_passed_through():
    a, b = torch_generator(3), torch_generator(3)
    assert torch.equal(torch.rand(4, generator=a), torch.rand(4, generator=b))
    assert torch_generator(a) is a
    rng = np.random.default_rng(0)
    assert numpy_generator(rng) is rng
    assert numpy_generator(5).random() == np.random.default_rng(5).random()
    assert numpy_generator(np.random.RandomState(0)).random() == numpy_generator(np.random.RandomState(0)).random()


def test_none_is_fresh_entropy_that_can_be_read_back():
    a, b = torch_generator(None), torch_generator(None)
    assert a.initial_seed() != b.initial_seed()
    again = torch_generator(a.initial_seed())
    assert torch.equal(torch.rand(3, generator=a), torch.rand(3, generator=again))
    assert 0 <= fresh_seed() < 2**63


def test_global_generators_are_neither_read_nor_advanced():
    torch_state, numpy_state = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    for seed in (None, 1):
        torch.rand(3, generator=torch_generator(seed))
        numpy_generator(seed).random()
    child_seeds(1, 4)
    assert torch.equal(torch_state, torch.random.get_rng_state())
    assert (numpy_state == np.random.get_state()[1]).all()


def test_child_seeds_do_not_depend_on_their_number_and_differ():
    assert child_seeds(7, 3) == child_seeds(7, 9)[:3]
    assert len(set(child_seeds(7, 1000)) | set(child_seeds(8, 1000))) == 2000


@pytest.mark.parametrize("make", [torch_generator, numpy_generator])
def test_bad_seeds(make):
    with pytest.raises(TypeError, match="seed must be an int, a generator or None, got str"):
        make("1")
    with pytest.raises(TypeError, match="seed"):
        make(True)
    with pytest.raises(ValueError, match=r"seed must be in \[0, 2\*\*63\), got -1"):
        make(-1)
    with pytest.raises(TypeError, match="generator must be"):
        make(1.5, name="generator")


def test_a_generator_must_live_where_the_draws_are_made():
    with pytest.raises(ValueError, match="a generator on meta"):
        torch_generator(torch.Generator(), "meta")
