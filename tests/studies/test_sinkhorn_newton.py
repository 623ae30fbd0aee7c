"""Tests of the study of Sinkhorn-Newton-Sparse, of its problems and of the solvers it compares."""

import math
import sys
import types

import numpy as np
import ot
import pytest

from steepest.core.extras import MissingExtra
from steepest.studies import sinkhorn_newton as study
from steepest.studies import sinkhorn_newton_peers as peers
from steepest.studies.context import Context, Job, Unavailable
from steepest.studies.sinkhorn_newton_problems import PROBLEMS, Problem, error, image_pair, random_assignment
from tests.studies import check_study as check


@pytest.mark.parametrize("key", PROBLEMS)
def test_problems_are_as_described(key):
    p = PROBLEMS[key](3)
    n = {"rla": 500, "digits-l1": 576, "digits-l2": 576}.get(key, 784)
    assert p.M.shape == (n, n)
    assert p.M.max() == 1
    assert p.a.sum() == pytest.approx(1)
    assert p.b.sum() == pytest.approx(1)
    if key == "rla":
        assert np.ptp(p.a) == 0
    else:
        assert min(p.a.min(), p.b.min()) >= 0.01 / n * 0.999
        assert np.abs(p.a - p.b).sum() > 0.1
        side = math.isqrt(n)
        unit = {"digits-l1": 0.5, "w1": math.sqrt(0.5)}.get(key, 0.5) / (side - 1)
        expected = unit if key in ("digits-l1", "w1") else 0.5 / (side - 1) ** 2
        assert p.M[0, 1] == pytest.approx(expected)
    np.testing.assert_array_equal(PROBLEMS[key](3).M, p.M)


def test_sweeps_are_counted_as_pots_log_domain_counts_them():
    rng = np.random.default_rng(0)
    p = Problem(rng.dirichlet(np.ones(20)), rng.dirichlet(np.ones(20)), rng.random((20, 20)))
    mirrored = Problem(p.b, p.a, p.M.T)  # POT updates the columns first
    count, errors = peers.count_sweeps(mirrored, 0.02, 1e-8, 5000)
    assert errors[-1] <= 1e-8 < errors[-2]
    for sweeps, bound in ((count, 1.01e-8), (count - 1, np.inf)):
        plan = ot.bregman.sinkhorn_log(p.a, p.b, p.M, 0.02, numItermax=sweeps, stopThr=0, warn=False)
        assert error(plan, p) <= bound
    assert error(plan, p) > 1e-8
    assert peers.count_sweeps(p, 0.02, 0.0, 30)[0] == 30


def test_races_tell_who_got_there():
    p = random_assignment(0, 40)
    done = peers.race("POT sinkhorn", p, 0.05, 1e-9, 2.0)
    assert done.done
    assert done.err < 2e-9
    assert not peers.race("POT log", p, 1e-3, 1e-12, 0.02).done
    exact = peers.race(peers.EXACT, p, 1e-3, 1e-12, 1.0)
    assert exact.done
    assert {"POT sinkhorn", "POT log"} <= set(peers.present())


def test_order_and_mass_outside():
    assert study.order([1e-1, 1e-2, 1e-4, 1e-8, 1e-16]) == pytest.approx(2)
    assert math.isnan(study.order([1e-2, 1e-14]))
    plan = np.diag(np.ones(4)) + 0.01
    assert study.outside(plan) == pytest.approx(8 * 0.01 / plan.sum())


@pytest.fixture(scope="module")
def tiny():
    def small(seed, metric):
        rng = np.random.default_rng(seed)
        return image_pair(rng.random((6, 6)), rng.random((6, 6)), metric)

    metrics = {"digits-l2": "sqeuclidean", "digits-l1": "cityblock", "w1": "euclidean", "w2": "sqeuclidean"}
    sizes = {key: (lambda seed, m=metric: small(seed, m)) for key, metric in metrics.items()}
    patch = pytest.MonkeyPatch()
    patch.setattr(study, "PROBLEMS", {"rla": lambda seed: random_assignment(seed, 50)} | sizes)
    ctx = Context(study, Job("sinkhorn-newton", "tiny"))
    study.run(ctx)
    patch.undo()
    return ctx


@pytest.mark.slow
def test_tiny_run_reports_every_claim_of_its_scales(tiny):
    results = {r.id: r for r in tiny.results()}
    for claim in study.CLAIMS:
        if claim.scales != "paper":
            assert results[claim.id].value is not None or results[claim.id].reason, claim.id
    for key in ("digits-l1", "w1", "w2"):
        assert results[f"{key}-converged"].value == 1
    assert results["rla-total"].value <= 150
    assert results["rla-paper-newton"].value <= 40
    assert 0 <= results["outside-rla"].value < 0.1
    assert results["step-sweeps"].value > 0


@pytest.mark.slow
def test_tiny_run_keeps_what_the_figures_need(tiny):
    check.check_logged(study, tiny, missing=("time-digits-l1", "time-w1"))
    methods = {s.method for s in tiny.series_log if s.name == "rla errors"}
    assert methods == {"SNS", "Sinkhorn", "paper's setting", "theory"}


@pytest.mark.parametrize("peer", peers.PEERS)
@pytest.mark.filterwarnings("ignore")
def test_every_peer_gets_there_where_it_is_easy_and_costs_its_row_where_it_is_missing(peer):
    rng = np.random.default_rng(0)
    p = Problem(rng.dirichlet(np.ones(12)), rng.dirichlet(np.ones(15)), rng.random((12, 15)))
    if peer not in peers.present():
        with pytest.raises(MissingExtra, match=r"geomloss|ott"):
            peers.race(peer, p, 0.2, 1e-6, 1.0)
        return
    found = peers.race(peer, p, 0.2, 1e-3 if peer == "geomloss" else 1e-8, 2.0)
    if peer == "POT L-BFGS dual":  # stops by a rule of its own, before it is there
        assert found.err < 0.2
        return
    assert found.done
    if peer != peers.EXACT:  # the plan is that of the entropic problem
        plan = peers.PEERS[peer][1](p, 0.2, 1e-10, 2000)()
        ours = study.sinkhorn_newton_sparse(p.a, p.b, p.M, 0.2, stopThr=1e-12)
        np.testing.assert_allclose(plan, ours, atol=1e-4)


def test_paper_scale_measures_what_is_here(tmp_path, monkeypatch):
    ctx = Context(study, Job("sinkhorn-newton", "paper", data=str(tmp_path), max_steps=2, n_seeds=1))
    monkeypatch.setitem(sys.modules, "torchvision", types.ModuleType("torchvision"))
    datasets = types.ModuleType("torchvision.datasets")
    images = types.SimpleNamespace(numpy=lambda: np.random.default_rng(0).random((3, 8, 8)))
    datasets.MNIST = lambda *args, **kwargs: types.SimpleNamespace(data=images)
    monkeypatch.setitem(sys.modules, "torchvision.datasets", datasets)
    study.run(ctx)
    results = {r.id: r.value for r in ctx.results()}
    assert results["paper-rla-total"] <= 150
    assert results["paper-mnist-l2-newton"] is not None

    def missing(*args, **kwargs):
        raise RuntimeError("Dataset not found")

    datasets.MNIST = missing
    ctx = Context(study, Job("sinkhorn-newton", "paper", data=str(tmp_path), max_steps=1, n_seeds=1))
    study.run(ctx)
    reasons = {r.id: r.reason for r in ctx.results()}
    assert "MNIST is not in" in reasons["paper-mnist-l1-total"]
    assert issubclass(Unavailable, RuntimeError)


def test_the_snippet_and_the_page_run(capsys):
    names = check.check_texts(study)
    assert "Newton steps" in capsys.readouterr().out
    assert names["log"]["converged"]
    assert names["M"].grad is not None
