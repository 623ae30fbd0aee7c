"""Tests of the study of LV-HBA, of its problems and of the peers it compares."""

import math

import numpy as np
import pytest
import torch
from sklearn.datasets import dump_svmlight_file

from steepest.bilevel import solve_lower
from steepest.bilevel.tasks import svm_selection
from steepest.core.extras import installed
from steepest.studies import lv_hba as study
from steepest.studies import lv_hba_paper as paper
from steepest.studies import lv_hba_peers as peers
from steepest.studies import lv_hba_selection as selection
from steepest.studies import lv_hba_toy as toy
from steepest.studies.context import Context, Job, Unavailable
from tests.studies import check_study as check

F64 = torch.float64

# ------------------------------------------------------------------------------------------------------------ problems


def test_the_example_has_the_optimum_that_the_study_measures_from():
    """The row's multiplier is -1 (unscaled): y1 = x + 1 is a lower solution with any y2 of the right sum."""
    n = 3
    problem = toy.toy(n, 0)
    x, y = torch.full((n,), -0.3, dtype=F64), torch.tensor([0.7] * n + [-0.4] * n, dtype=F64)
    A, B, c = problem.affine
    assert (A @ x + B @ y + c).abs().max() < 1e-12
    y_lower = y.clone().requires_grad_()
    (g,) = torch.autograd.grad(problem.lower(x, y_lower, None), y_lower)
    assert torch.allclose(g, g[0].expand(2 * n))  # a multiple of the row
    assert problem.upper(x, y, None).item() == pytest.approx(0.05 * n)
    # along the lower solutions, y1 = x + 1 and the sum of y2 = -sum(2 x + 1), F is least there
    for shift in (-0.1, 0.1):
        x_new = x + shift
        y_new = torch.cat([x_new + 1, -2 * x_new - 1])
        assert problem.upper(x_new, y_new, None) > 0.05 * n
    assert toy.error(x) == 0
    assert toy.error(2 * x) == pytest.approx(1)


def test_the_opaque_problem_cannot_be_differentiated_twice():
    problem = toy.opaque()
    y = torch.ones(3, dtype=F64, requires_grad=True)
    (g,) = torch.autograd.grad(problem.lower(problem.x0, y, None), y, create_graph=True)
    with pytest.raises(RuntimeError):
        torch.autograd.grad(g.sum(), y)


def test_the_box_of_the_cleaning_task():
    boxed, free, _ = selection.boxed_cleaning(0)
    A, B, c = boxed.affine
    y = torch.linspace(-12, 12, 650, dtype=F64)
    g = A @ torch.zeros(800, dtype=F64) + B @ y + c
    torch.testing.assert_close(g, torch.cat([y, -y]) - 10)
    assert free.sample_lower is None
    assert not free.is_constrained


def test_units_change_nothing_but_the_steps():
    problem = peers.CoupledProgram.drawn(8, 4, 5, 1).problem(dense=True)
    scaled = selection.in_units(problem, 4.0)
    x, y = torch.linspace(-1, 1, 4, dtype=F64), torch.ones(5, dtype=F64)
    assert scaled.lower(x / 4, y, None) == problem.lower(x, y, None)
    assert scaled.upper(x / 4, y, None) == problem.upper(x, y, None)
    torch.testing.assert_close(scaled.affine[0] @ (x / 4), problem.affine[0] @ x)


# --------------------------------------------------------------------------------------------------------------- peers


def small_program():
    return peers.CoupledProgram.drawn(8, 4, 5, 1)


def test_derivatives_of_the_kkt_form_by_differences():
    problem, _ = svm_selection("breast_cancer", seed=0)
    for stated in (small_program().problem(), problem):
        kkt = peers.KKT(stated)
        rng = np.random.default_rng(0)
        u = kkt.start() + 0.1 * rng.random(len(kkt.start()))
        h, at = 1e-6, rng.choice(len(u), 12, replace=False)
        for value, jacobian in (
            (lambda u, kkt=kkt: kkt.upper(u)[0], kkt.upper(u)[1]),
            (kkt.stationarity, kkt.stationarity_jac(u)),
            (kkt.slack, kkt.slack_jac(u)),
        ):
            for i in at:
                e = h * np.eye(len(u))[i]
                slope = (np.asarray(value(u + e)) - value(u - e)) / (2 * h)
                np.testing.assert_allclose(jacobian[..., i], slope, atol=2e-5)
        assert kkt.bounds().lb[-1] == 0


@pytest.mark.parametrize("method", ["SLSQP", "trust-constr"])
def test_scipy_solves_the_kkt_form_of_a_small_program(method):
    """The points are lower solutions, and both methods and Ipopt agree on the upper value where they are here."""
    program = small_program()
    stated = program.problem()
    x, y, calls = peers.scipy_kkt(stated, method)
    exact, info = solve_lower(stated, x, tol=1e-7, maxiter=5000)
    assert info == 0
    assert torch.allclose(y, exact, atol=2e-3)
    assert calls > 0
    start, _ = solve_lower(stated, stated.x0, tol=1e-6, maxiter=5000)
    assert stated.upper(x, exact, None) < 0.9 * stated.upper(stated.x0, start, None)
    if installed("casadi"):
        _, x_ipopt, y_ipopt = peers.ipopt(program)
        value = stated.upper(torch.tensor(x_ipopt), torch.tensor(y_ipopt), None)
        assert stated.upper(x, y, None).item() == pytest.approx(value.item(), rel=1e-2)


def test_budgets_of_the_kkt_form_are_kept():
    stated = small_program().problem()
    x, y, calls = peers.scipy_kkt(stated, "SLSQP", calls=30)
    assert calls <= 30 + 2 * 5
    assert torch.isfinite(x).all()
    assert torch.isfinite(y).all()


# ----------------------------------------------------------------------------------------------------------- selection


@pytest.mark.parametrize("method", ["LV-HBA", "LV-HBA, Gauss-Seidel", "value_penalty", "aid_cg"])
def test_a_run_spends_its_calls_and_no_more(method):
    settings = tuple(selection.GRIDS["breast-cancer", method.split(",")[0]][0].items())
    found = selection.solve(selection.Job("breast-cancer", method, settings, 1, 200))
    assert 200 - 35 < found["calls"] <= 200
    assert 0 <= found["retrained"] <= 1
    assert math.isfinite(found["gap"]) == method.startswith("LV")


def test_grids_are_equal_for_all_methods():
    for task in selection.TASKS:
        sizes = {len(grid) for (name, _), grid in selection.GRIDS.items() if name == task}
        assert len(sizes) == 1, task
    assert selection.CHOSEN.keys() == selection.GRIDS.keys()


# ---------------------------------------------------------------------------------------------------------- the study


@pytest.fixture(scope="module")
def tiny():
    return check.run_tiny(study)


@pytest.mark.slow
def test_tiny_run_reports_every_claim_of_its_scales(tiny):
    results = {r.id: r for r in tiny.results()}
    for claim in study.CLAIMS:
        if claim.scales != "paper" and "diabetes" not in claim.id:
            assert results[claim.id].value is not None, claim.id
    assert results["hessian-free"].value == 0
    assert results["hessian-free-runs"].value == 1
    assert results["single-loop-gradients"].value == 4
    assert results["single-loop-projections"].value == 1
    assert results["toy-error"].value < 0.3
    assert results["residual-slope"].value < 0
    assert results["gap-slope"].value < 0
    assert tiny.best_peer.peer == "aid_cg"


@pytest.mark.slow
def test_tiny_run_keeps_what_the_figures_need(tiny):
    names = {s.name for s in tiny.series_log}
    assert {f.series for f in study.FIGURES if "diabetes" not in f.id} <= names
    methods = {s.method for s in tiny.series_log if s.name == "breast-cancer retrained 60,000 calls"}
    assert methods >= {"LV-HBA", "value_penalty", "aid_cg", "SLSQP", "trust-constr", "equal weights"}


# -------------------------------------------------------------------------------------------------------- paper scale


def test_paper_scale_says_what_is_missing(tmp_path):
    with pytest.raises(Unavailable, match="--data PATH"):
        study.run(Context(study, Job("lv-hba", "paper")))
    with pytest.raises(Unavailable, match="diabetes, fourclass, gisette, mnist"):
        study.run(Context(study, Job("lv-hba", "paper", data=str(tmp_path))))


def test_paper_scale_reads_libsvm_files(tmp_path):
    rng = np.random.default_rng(0)
    X = rng.standard_normal((300, 4))
    dump_svmlight_file(X, np.where(X[:, 0] > 0, 1, -1), str(tmp_path / "fourclass_scale"))
    c = rng.integers(3, size=300)
    dump_svmlight_file(np.eye(3)[c] + 0.3 * rng.standard_normal((300, 3)), c, str(tmp_path / "mnist.scale"))
    ctx = Context(study, Job("lv-hba", "paper", data=str(tmp_path), n_seeds=1, max_steps=20))
    study.run(ctx)
    results = {r.id: r for r in ctx.results()}
    assert abs(results["paper-svm-fourclass"].value) <= 100
    assert abs(results["paper-federated-mnist"].value) <= 100
    assert "no file gisette" in results["paper-svm-gisette"].reason


def test_the_federated_task_is_the_shared_one_where_clients_agree():
    rng = np.random.default_rng(0)
    c = rng.integers(3, size=400)
    data = np.eye(3)[c] + 0.3 * rng.standard_normal((400, 3)), c
    problem, plain, score = paper.federated(data, 0, clients=4)
    x = torch.linspace(-0.5, 0.5, 6, dtype=F64)
    y = torch.linspace(-1, 1, 12, dtype=F64).view(4, 3)
    copies = y.expand(4, 4, 3).contiguous()
    assert problem.lower(x, copies, None).item() == pytest.approx(plain.lower(x, y, None).item())
    assert problem.upper(x, copies, None).item() == pytest.approx(plain.upper(x, y, None).item())
    assert problem.constraint(x, copies).abs().max() == 0
    other = copies + torch.arange(4, dtype=F64).view(4, 1, 1)
    _, agreed = problem.project_joint(x, other)
    assert problem.constraint(x, agreed).abs().max() < 1e-12
    assert torch.allclose(agreed[0], other.mean(0))
    tuned, _ = solve_lower(plain, plain.x0)
    assert score(tuned) > 0.5


def test_the_snippet_and_the_page_run(capsys):
    assert check.check_texts(study)["result"].success
    assert "second derivatives: 0" in capsys.readouterr().out
