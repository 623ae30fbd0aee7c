"""ADMM whose patterns are shared out: the iterates of one process, and Ray's fit."""

from dataclasses import replace
from datetime import timedelta

import numpy as np
import pytest
import torch

from steepest.convex import ConvexReLURegressor
from steepest.convex._sharded import run_shard
from tests import processes
from tests.convex.test_relu_network import problem, program, quiet_fit

KEEP = ("objective", "primal_residual", "dual_residual", "accuracy")


def case():
    return program(n=12, d=3, P=9, beta=0.05)


def shard(group=None, part=slice(None)):
    share = replace(case().of_patterns(torch.arange(9)[part]), group=group)
    return run_shard(share, 1e-12, 60, keep=KEEP)


def rank_of_two(rank, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2, timeout=timedelta(seconds=120)
    )
    try:
        found = shard("default", slice(0, 4) if rank == 0 else slice(4, 9))
        torch.save((found.copies.z, found.copies.nu, found.outputs, found.history), f"{folder}/{rank}.pt")
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_ranks_are_one_process(tmp_path):
    processes.on_two_ranks(rank_of_two, str(tmp_path))
    alone = shard()
    first, second = (torch.load(f"{tmp_path}/{rank}.pt", weights_only=True) for rank in range(2))
    for k, whole in enumerate((alone.copies.z, alone.copies.nu)):
        assert (torch.cat([first[k], second[k]], 1) - whole).abs().max() <= 1e-10
    for found in (first, second):
        assert (found[2] - alone.outputs).abs().max() <= 1e-10
        for name in KEEP:
            np.testing.assert_allclose(found[3][name], alone.history[name], rtol=1e-8, atol=1e-10)


def test_a_shard_that_holds_all_patterns_ends_at_the_optimum():
    X, _, y = problem(8, 2)
    model = ConvexReLURegressor(n_patterns=8, beta=0.1, tol=1e-6, fit_intercept=False, random_state=0)
    model.fit(X, y)
    whole = program(n=8, d=2, P=len(model.patterns_), beta=0.1)
    data = (torch.as_tensor(a, dtype=torch.float64) for a in (X, y, model.patterns_.astype(float)))
    found = run_shard(type(whole)(*data, "squared", 0.1, torch.zeros(2, dtype=torch.float64)), 1e-6, 3000)
    assert found.iterations < 3000
    norms = torch.linalg.vector_norm(found.copies.z, dim=-1).sum()
    value = 0.5 * (found.outputs - torch.as_tensor(y)).square().sum() + 0.1 * norms
    assert float(value) == pytest.approx(model.objective_, rel=1e-4)


@pytest.mark.slow
@pytest.mark.usefixtures("ray")
def test_ray_workers_give_the_same_fit():
    X, _, y = problem(10, 2)
    model = ConvexReLURegressor(n_patterns=10, beta=0.1, tol=1e-4, max_iter=3000, random_state=0)
    alone = quiet_fit(model, X, y).objective_
    shared = quiet_fit(model.set_params(backend="ray", n_jobs=2), X, y)
    assert shared.converged_
    assert shared.objective_ == pytest.approx(alone, rel=2e-4)
    assert shared.duality_gap_ <= 1e-4 * shared.objective_
    assert len(shared.history_["accuracy"]) == shared.n_iter_
