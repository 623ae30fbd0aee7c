"""Tests of the rectified-flow study: its clouds, measures and digits, the CIFAR-10 code in small, and a tiny run."""

import math

import numpy as np
import pytest
import torch

from steepest.generative import UNetVelocity
from steepest.studies import rectified_flow as study
from steepest.studies import rectified_flow_clouds as clouds
from steepest.studies import rectified_flow_costs as costs
from steepest.studies import rectified_flow_digits as digits
from steepest.studies import rectified_flow_paper as paper
from tests.studies import check_study as check

# --------------------------------------------------------------------------------------------------------------- exact


@pytest.mark.parametrize("name", list(clouds.CLOUDS))
def test_clouds_depend_on_their_generator_alone(name):
    before = torch.get_rng_state()
    a, b, c = (clouds.CLOUDS[name](500, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert a.shape == (500, 2)
    assert float(a.abs().max()) < 8
    assert torch.equal(before, torch.get_rng_state())


def test_shapes_of_the_clouds():
    generator = torch.Generator().manual_seed(0)
    eight = clouds.eight_gaussians(20_000, generator)
    assert float(eight.square().sum(1).mean()) == pytest.approx(25.2, rel=0.01)
    moons = clouds.moons(20_000, generator)
    centers = torch.tensor([[-1.0, -1.0], [2.0, 0.5]])  # of the two half circles, radius 3
    off = (torch.cdist(moons, centers) - 3).abs().min(1).values
    assert float((off < 0.7).double().mean()) > 0.99
    board = clouds.checkerboard(5000, generator)
    cells = torch.floor((board + 4) / 2).long()
    assert bool((cells.sum(1) % 2 == 0).all())
    assert len(torch.unique(cells, dim=0)) == 8


def test_convex_costs_by_hand():
    d = torch.tensor([[3.0, 4.0], [0.6, 0.0]])
    expected = {"length": [5, 0.6], "square": [25, 0.36], "fourth power": [625, 0.1296], "Huber": [4.5, 0.18],
                "largest coordinate": [4, 0.6]}  # fmt: skip
    for name, cost in clouds.COSTS.items():
        assert cost(d).tolist() == pytest.approx(expected[name]), name
    zero = torch.zeros(2, 2)
    assert clouds.cost_ratios((zero, 2 * d), (zero, d))["square"] == pytest.approx(4)


def test_identity_of_gaussians():
    assert clouds.identity_gap(20_000, 0) < 0.02


def test_optimal_cost_of_a_shift():
    pytest.importorskip("ot")
    x = clouds.noise(50, torch.Generator().manual_seed(0))
    assert clouds.optimal_cost(x, (x + 3).flip(0)) == pytest.approx(18, rel=1e-6)


def test_directions_are_an_isometry_up_to_scale():
    X = np.random.default_rng(0).standard_normal((100, 64))
    whole = digits.Directions(X, 64)
    x = whole.of(X)
    assert float(x.square().mean()) == pytest.approx(1, rel=1e-5)
    np.testing.assert_allclose(whole.images(x), X, atol=1e-5)


def test_turned_digits_turn_back():
    image = np.zeros((1, 8, 8))
    image[0, 1, 3:5] = 10
    quarter = digits.turned(image.reshape(1, 64), 90.0, 0.5).reshape(8, 8)
    assert quarter[3:5, 1] == pytest.approx([5, 5]) or quarter[3:5, 6] == pytest.approx([5, 5])


def test_barycentric_map_of_a_permutation():
    pytest.importorskip("ot")
    x = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(digits._barycentric(x, (x + 0.01).flip(0)), x + 0.01, atol=1e-5, rtol=0)


def test_losses_of_the_libraries_are_timed_on_one_network():
    for name, step in costs.loss_steps().items():
        assert math.isfinite(step().item()), name


# ------------------------------------------------------------------------------------------------------- paper in small


def test_the_papers_rounds_run_and_continue(tmp_path):
    """A few steps on random images: three trainings with a checkpoint each; a second call has nothing left to do."""
    images = torch.rand(12, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    plan = paper.Plan(steps=3, again=2, pairs=6, batch=4, warmup=2, checkpoint_every=2, solver_batch=4)

    def network():
        return UNetVelocity(3, 8, width=8, multipliers=(1, 2), blocks=1, attention=(4,), dropout=0.15, seed=0)

    fits = paper.train_rounds(images, network(), plan, tmp_path, 0)
    assert [fit.n_steps for fit in fits] == [3, 2, 2]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["distilled.pt", "flow.pt", "reflow.pt"]
    again = paper.train_rounds(images, network(), plan, tmp_path, 0)
    for fit, same in zip(fits, again, strict=True):
        assert fit.history == same.history
        for name, value in fit.flow.state_dict().items():
            assert torch.equal(value, same.flow.state_dict()[name])


def test_refuses_without_accelerator():
    check.check_refuses_without_accelerator(study)


# ------------------------------------------------------------------------------------------------------------ the study


@pytest.fixture(scope="module")
def tiny():
    return check.run_tiny(study)


@pytest.mark.slow
def test_tiny_run_reports_every_claim_and_draws(tiny):
    check.check_measured(study, tiny, unless=("POT",))
    check.check_logged(study, tiny)
    check.check_pictures(study, tiny)
    assert tiny.best_peer is not None


@pytest.mark.slow
def test_what_does_not_depend_on_size_holds_even_at_tiny(tiny):
    assert tiny._measured["identity"][0] <= 0.05
    assert tiny._measured["law"][0] <= 1
    assert tiny._measured["convex-1"][0] <= 1


def test_the_snippet_and_the_page_run():
    check.check_texts(study)
