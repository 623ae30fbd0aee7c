"""Tests of the hard-constraint study: its problems and scores, costs by hand, the code of the paper, a tiny run."""

from dataclasses import replace

import pytest
import torch

from steepest.studies import hard_constraint_moe as study
from steepest.studies import hard_constraint_moe_costs as costs
from steepest.studies import hard_constraint_moe_paper as paper
from steepest.studies import hard_constraint_moe_training as training
from steepest.studies.context import Context, Job
from tests.studies import check_study as check

NETWORK = {"modes": (2, 2), "widths": (4, 4), "head": 8, "output_activation": None}


@pytest.fixture(scope="module")
def column():
    return training.sorption(
        9, 16, 3, 0, network=NETWORK, layer=training.LAYER, compatible=True, n_train=8, n_validation=2
    )


# --------------------------------------------------------------------------------------------------------------- exact


def test_starts_meet_the_walls_and_their_solutions_begin_with_them(column):
    u0, u = column.test
    assert u.shape == (3, 9, 16)
    assert torch.allclose(u[:, 0].float(), u0, atol=1e-6)
    assert float(u0[:, 0].min()) > 0.9  # near one at the inlet
    assert float(u0[:, -1].max()) < 0.02  # near zero at the outlet
    plain = training.sorption(
        5, 16, 1, 0, network=NETWORK, layer=training.LAYER, compatible=False, n_train=64, n_validation=1
    )
    assert bool((plain.train == plain.train[:, :1]).all())
    assert 0 < float(plain.train.min()) < 0.05 < 0.15 < float(plain.train.max()) < 0.2
    sets = [x[:, 8] for x in (column.train, column.validation[0], column.test[0])]
    assert len(torch.cat(sets).unique()) == 13  # no start is in two sets


def test_vorticity_has_the_asked_size_and_no_mean():
    problem = training.flow(
        4, 16, 2, 0, network={"modes": (1, 1, 1)} | NETWORK, layer=training.LAYER, n_train=3, n_validation=1
    )
    w0 = problem.train.double()
    assert torch.allclose(w0.square().mean((1, 2)).sqrt(), torch.full((3,), 1.5, dtype=torch.float64), atol=1e-6)
    assert float(w0.mean((1, 2)).abs().max()) < 1e-6
    power = torch.fft.rfft2(w0).abs().square().mean(0)
    assert float(power[1, 0] + power[0, 1]) > 20 * float(power[4, 0] + power[0, 4])


def test_score_of_the_truth_is_zero_and_of_nothing_is_one(column):
    class Given(torch.nn.Module):
        def __init__(self, u):
            super().__init__()
            self.u, self.unused = u, torch.nn.Parameter(torch.zeros(1))

        def forward(self, x):
            return self.u[: len(x), ..., None]

    found = training.score(column, Given(column.test[1]), None, column.test)
    assert found.error == 0
    assert found.finite
    assert training.score(column, Given(torch.zeros_like(column.test[1])), None, column.test).error == 1


def test_experts_on_the_networks_of_one_solve_keep_the_network(column):
    (trained,) = training.train_all([training.Run(column, training.HC, 1, 4e-3, steps=2)], 1)
    assert trained.steps == 2
    one = replace(column, experts=(1, 1))
    same = training.moe_on_bases(replace(trained, run=replace(trained.run, problem=one)), "none")
    assert same.error == pytest.approx(trained.score.error, rel=1e-6)
    layer = training.moe_layer(trained, "none")
    assert torch.equal(layer.running, trained.layer["running"].expand(4, -1))


def test_a_worker_solves_the_same_as_all_together():
    problem = costs.LayerProblem(8, 16, (1, 4))
    with torch.no_grad():
        together, _ = problem.solve(problem.rows(problem.basis))
        own = slice(2, 4)
        half, _ = problem.solve(problem.rows(problem.basis, own), own)
    assert torch.allclose(together[:, own], half, rtol=1e-9, atol=1e-9)


# ------------------------------------------------------------------------------------------------------------ the study


@pytest.fixture(scope="module")
def tiny():
    return check.run_tiny(study)


@pytest.mark.slow
def test_tiny_run_reports_every_claim_and_draws(tiny):
    check.check_measured(study, tiny, unless=("jax", "optimistix", "tiny"))
    check.check_logged(study, tiny)
    check.check_pictures(study, tiny)
    assert tiny.best_peer is not None


@pytest.mark.slow
def test_what_does_not_depend_on_size_holds_even_at_tiny(tiny):
    assert tiny._measured["gradient"][0] <= 1e-6
    assert tiny._measured["gradient-local"][0] == 0
    assert tiny._measured["never-above"][0] == 1
    assert tiny._measured["batched-minima"][0] <= 1e-8
    assert tiny._measured["memory-expert"][0] <= 1.2
    assert tiny._measured["stable-finite"][0] == 0


def test_the_paper_code_runs_small():
    ctx = Context(study, Job("hard-constraint-moe", "paper", n_seeds=1, max_steps=1))
    sizes = paper.Sizes(sorption=(6, 16), flow=(4, 8), sampled=16, sorption_modes=2, flow_modes=1, heads=(8, 8),
                        sorption_widths=(4, 4), flow_widths=(4, 4), flow_fields=4, n_train=8, n_test=2,
                        skip_corner=1)  # fmt: skip
    paper.measure(ctx, "cpu", sizes)
    assert {claim.id for claim in study.CLAIMS if claim.scales == "paper"} == set(ctx._measured)
    assert all(value is not None and value > 0 for value, _, _ in ctx._measured.values())


def test_paper_refuses_without_accelerator():
    check.check_refuses_without_accelerator(study)


def test_the_snippet_and_the_page_run():
    check.check_texts(study)
