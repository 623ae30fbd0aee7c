"""Tests of the M-FAC study: its protocol at the tiny scale, its measurements, and a few steps of the paper's code."""

import math

import pytest
import torch

from steepest.studies import mfac as study
from steepest.studies import mfac_costs as costs
from steepest.studies import mfac_paper, mfac_pruning
from steepest.studies.context import Context, Job, Unavailable
from steepest.studies.images import digits, mlp
from steepest.studies.runner import run_study
from steepest.studies.task import cross_entropy


@pytest.fixture(scope="module")
def tiny():
    ctx = Context(study, Job("mfac", "tiny"))
    study.run(ctx)
    return ctx


def test_every_claim_of_the_small_scales_is_measured(tiny):
    left = {c.id for c in study.CLAIMS} - set(tiny._measured)
    assert left == {"gradual-imagenet"}
    for claim, (value, _, reason) in tiny._measured.items():
        assert (value is not None and math.isfinite(value)) or reason, claim


def test_invariants_hold(tiny):
    assert tiny._measured["exact-inverse"][0] <= 1e-9
    assert tiny._measured["exact-inverse-small-damping"][0] <= 1e-7


def test_figures_have_their_series(tiny):
    found = {s.name for s in tiny.series_log}
    assert {figure.series for figure in study.FIGURES} <= found
    ids = [claim.id for claim in study.CLAIMS]
    assert len(set(ids)) == len(ids)


def test_a_wrong_inverse_is_noticed(monkeypatch):
    class Wrong(study.EmpiricalFisherInverse):
        def matvec(self, x, refine=0):
            return super().matvec(x, refine) * (1 + 1e-6)

        __matmul__ = matvec

    assert study._error(30, 8, 1e-3) <= 1e-10
    monkeypatch.setattr(study, "EmpiricalFisherInverse", Wrong)
    assert study._error(30, 8, 1e-3) > 1e-7


def test_a_sliding_inverse_that_forgets_to_evict_is_noticed(monkeypatch):
    class Wrong(study.SlidingFisherInverse):
        def __init__(self, d, window, *args, **options):
            super().__init__(d, window + 1, *args, **options)

    monkeypatch.setattr(study, "SlidingFisherInverse", Wrong)
    assert study._error(30, 8, 1e-3) > 1e-3


def test_turns_are_timed_alike():
    calls = []
    seconds = costs.take_turns({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 3, calls=2)
    assert calls == ["a", "a", "b", "b"] * 3
    assert [len(v) for v in seconds.values()] == [3, 3]
    sizes, best = costs.fastest({(1, 2): [3.0, 1.0], (1, 4): [2.0]})
    assert (sizes, best) == ([(1, 2), (1, 4)], [1.0, 2.0])


def test_pruned_copies_leave_the_network_alone():
    network = mfac_pruning._trained(digits(100).flat(), 1, 2)
    before = [p.detach().clone() for p in network.model.parameters()]
    assert network.pruned(0.5, n_grads=8) > 0
    assert all(torch.equal(a, b) for a, b in zip(before, network.model.parameters()))
    again = mfac_pruning._trained(digits(100).flat(), 1, 2)
    assert all(torch.equal(a, b) for a, b in zip(again.model.parameters(), network.model.parameters()))


def test_gradual_pruning_meets_its_targets_and_keeps_the_mask():
    torch.manual_seed(0)
    model = mlp(4, 6, 3)
    batches = [(torch.randn(4, 4), torch.randint(3, (4,))) for _ in range(6)]
    seen = []

    def tune(mask, step):
        seen.append(sum(int((~m).sum()) for m in mask.values()))
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        mfac_pruning.keep_mask(model, mask, optimizer)
        for x, y in batches:
            optimizer.zero_grad()
            cross_entropy(model, x, y).backward()
            optimizer.step()
        assert sum(int((p == 0).sum()) for name, p in model.named_parameters() if name in mask) >= seen[-1]
        return 0.5

    assert mfac_pruning.gradual(model, batches, [0.3, 0.6], tune, n_grads=6, damping=1e-3) == [0.5, 0.5]
    assert seen == [42 - round(0.7 * 42), 42 - round(0.4 * 42)]


@pytest.mark.slow
def test_paper_code_trains_a_resnet_for_one_step():
    record, _ = run_study(Job("mfac", "paper", n_seeds=1, max_steps=1))
    assert record.status == "ok", record
    verdicts = {c.id: (c.value, c.reason) for c in record.claims}
    assert verdicts["optimizer"] == (None, mfac_paper.CODE_TEST)
    assert any("MFAC m=4" in note for note in record.notes)


def test_paper_code_prunes_a_resnet_for_one_step():
    record, _ = run_study(Job("mfac", "paper", n_seeds=1, max_steps=1, options={"task": "pruning"}))
    assert record.status == "ok", record
    verdicts = {c.id: (c.value, c.reason) for c in record.claims}
    assert verdicts["gradual-imagenet"] == (None, mfac_paper.CODE_TEST)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here")
def test_paper_scale_says_what_is_missing():
    with pytest.raises(Unavailable, match="CUDA"):
        study.run(Context(study, Job("mfac", "paper")))
    with pytest.raises(ValueError, match="optimizer or pruning"):
        study.run(Context(study, Job("mfac", "paper", options={"task": "both"})))
