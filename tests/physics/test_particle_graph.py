"""Radius graphs and farthest points against all pairs of distances."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from steepest.physics._particle_graph import farthest_point_sample, radius_graph


def cloud(n=60, d=2, seed=0):
    return torch.rand(n, d, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("loop", [True, False])
@pytest.mark.parametrize("d", [2, 3])
def test_edges_are_all_pairs_within_the_radius(d, loop):
    x = cloud(d=d)
    edges = radius_graph(x, 0.3, loop)
    near = torch.cdist(x.double(), x.double()) <= 0.3
    if not loop:
        near.fill_diagonal_(False)
    receivers, senders = near.nonzero(as_tuple=True)  # sorted by row, then column
    assert edges.dtype == torch.int64
    assert torch.equal(edges, torch.stack((senders, receivers)))


def test_a_pair_at_the_radius_counts_and_a_lone_particle_has_its_loop():
    x = torch.tensor([[0.0, 0.0], [0.5, 0.0], [3.0, 0.0]])
    assert radius_graph(x, 0.5).tolist() == [[0, 1, 0, 1, 2], [0, 0, 1, 1, 2]]
    assert radius_graph(x, 0.1, loop=False).shape == (2, 0)


@pytest.mark.parametrize("loop", [True, False])
def test_a_cap_keeps_the_nearest_others(loop):
    x = cloud()
    x[5] = x[4] = x[3]  # duplicates do not crowd a particle out of its own list
    senders, receivers = radius_graph(x, 0.4, loop, max_neighbors=3)
    distance = torch.cdist(x.double(), x.double())
    for i in range(len(x)):
        mine = senders[receivers == i]
        others = mine[mine != i]
        assert (i in mine.tolist()) == loop
        reference = distance[i].clone()
        reference[i] = torch.inf
        nearest = reference.sort().values[:3]
        torch.testing.assert_close(reference[others].sort().values, nearest[nearest <= 0.4])
    key = receivers * len(x) + senders
    assert (key.diff() > 0).all()


def test_farthest_points_cover():
    x = cloud(200)
    chosen = farthest_point_sample(x, 20, seed=1)
    assert chosen.dtype == torch.int64
    assert len(set(chosen.tolist())) == 20
    distance = torch.cdist(x, x)
    for k in range(1, 20):  # each is the farthest from those before it
        reach = distance[:, chosen[:k]].min(1).values
        assert reach[chosen[k]] == pytest.approx(float(reach.max()))
    assert torch.equal(chosen, farthest_point_sample(x, 20, seed=1))
    assert farthest_point_sample(x, 1, seed=2) != farthest_point_sample(x, 1, seed=1)


def test_bad_arguments_are_named():
    x = cloud(5)
    with pytest.raises(ValueError, match="radius must be > 0"):
        radius_graph(x, 0.0)
    with pytest.raises(ValueError, match="max_neighbors must be"):
        radius_graph(x, 0.1, max_neighbors=0)
    with pytest.raises(TypeError, match="loop must be True or False"):
        radius_graph(x, 0.1, 1)
    with pytest.raises(TypeError, match=r"x must be a tensor \(n, d\)"):
        radius_graph(np.zeros((3, 2)), 0.1)
    with pytest.raises(ValueError, match=r"x must be a tensor \(n, d\)"):
        radius_graph(x[0], 0.1)
    with pytest.raises(ValueError, match="finite"):
        radius_graph(x / 0, 0.1)
    with pytest.raises(ValueError, match="n must be"):
        farthest_point_sample(x, 6)
