"""Tests of the AdamP study."""

from functools import partial

import pytest
import torch

from steepest.optim import SGDP
from steepest.studies import adamp as study
from steepest.studies.context import Context, Job, Unavailable


@pytest.fixture(scope="module")
def tiny():
    ctx = Context(study, Job("adamp", "tiny"))
    study.run(ctx)
    return ctx


def test_every_claim_of_the_quick_scale_is_measured(tiny):
    wanted = {c.id for c in study.CLAIMS if "quick" in c.scales.split()}
    assert wanted == set(tiny._measured)


def test_ids_of_the_claims_are_unique():
    ids = [c.id for c in study.CLAIMS]
    assert len(ids) == len(set(ids)) == 33
    assert sum(c.invariant for c in study.CLAIMS) == 9


def test_growth_and_recursion_are_exact():
    for b in (0.5, 0.9):
        factor, error = study.growth(partial(torch.optim.SGD, lr=0.05, momentum=b), 300, momentum=b)
        assert factor == pytest.approx(1 + 2 * b / (1 - b), rel=0.02)
        assert error < 1e-9
    assert abs(study.growth(partial(SGDP, lr=0.05, momentum=0.9), 100)[0] - 1) < 1e-6


def test_a_wrong_recursion_or_projection_is_noticed():
    sgd = partial(torch.optim.SGD, lr=0.05, momentum=0.9)
    assert study.growth(sgd, 50, momentum=0.8)[1] > 1e-6
    assert abs(study.growth(partial(SGDP, lr=0.05, momentum=0.9, projection="none"), 50)[0] - 1) > 1


def test_tangents_agree():
    assert study.tangent_cosine(torch.Generator().manual_seed(0)) >= 1 - 1e-10


def test_figures_have_their_series(tiny):
    names = {s.name for s in tiny.series_log}
    assert {f.series for f in study.FIGURES} <= names


def test_snippet_runs():
    exec(compile(study.SNIPPET.replace("print(", "str("), "snippet", "exec"), {})


def test_paper_scale_runs_a_few_steps_and_says_that_it_was_a_test():
    ctx = Context(study, Job("adamp", "paper", n_seeds=1, max_steps=2))
    study.run(ctx)
    assert all(value is None and "test of the code" in reason for value, _, reason in ctx._measured.values())
    assert len(ctx._measured) == 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what is missing")
def test_paper_scale_without_an_accelerator():
    with pytest.raises(Unavailable, match="CUDA"):
        study.run(Context(study, Job("adamp", "paper")))
