from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

from steepest.core.distributed import all_reduce_mean, all_reduce_sum, group_rank, group_size, resolve_group
from tests import processes


def worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    a, b, c = torch.full((2, 3), rank + 1.0), torch.arange(3.0) * rank, torch.ones(1, dtype=torch.float64) * rank
    all_reduce_sum([a, b, c], "default")
    assert a.equal(torch.full((2, 3), 3.0))
    assert b.equal(torch.arange(3.0))
    assert c.item() == 1
    strided = torch.zeros(3, 2).t()
    strided += rank
    all_reduce_mean([strided], dist.group.WORLD)
    assert strided.equal(torch.full((2, 3), 0.5))
    assert (group_size("default"), group_rank("default")) == (2, rank)
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_reduce(tmp_path):
    processes.on_two_ranks(worker, str(tmp_path))


def test_one_process_is_the_identity():
    t = torch.arange(3.0)
    all_reduce_sum([t], None)
    all_reduce_mean([t], None)
    assert t.equal(torch.arange(3.0))
    assert (group_size(None), group_rank(None), resolve_group(None)) == (1, 0, None)


def test_a_group_needs_initialization():
    with pytest.raises(RuntimeError, match=r"init_process_group"):
        all_reduce_sum([torch.ones(1)], "default")
