"""Tests of the study of sketched Newton, of its test problems and of the solvers it compares."""

import math
import sys
import types

import numpy as np
import pytest
from matplotlib.figure import Figure
from sklearn.datasets import dump_svmlight_file

from steepest.studies import sketched_newton as study
from steepest.studies import sketched_newton_paper as paper
from steepest.studies import sketched_newton_solvers as solvers
from steepest.studies import sketched_newton_systems as systems
from steepest.studies.context import Context, Job, Unavailable
from steepest.studies.test_problems import PROBLEMS, Jet, control_problem, logistic_problem, quadratic_program
from tests.studies import check_study as check

TABLE = {p.name: p for p in PROBLEMS}

# ------------------------------------------------------------------------------------------------------------ problems


@pytest.mark.parametrize("p", PROBLEMS, ids=lambda p: p.name)
def test_derivatives_of_the_table_by_differences(p):
    rng = np.random.default_rng(0)
    x = np.asarray(p.x0, dtype=float) + 0.05 * rng.standard_normal(p.n)
    v, h = rng.standard_normal(p.m), 1e-5

    def central(fun):
        return np.stack([(fun(x + h * e) - fun(x - h * e)) / (2 * h) for e in np.eye(p.n)], axis=-1)

    for exact, differences in (
        (p.jac(x), central(lambda y: np.array(p.fun(y)))),
        (p.hess(x), central(p.jac)),
        (p.constraint_jac(x), central(p.constraint)),
        (p.constraint_hess(x, v), central(lambda y: p.constraint_jac(y).T @ v)),
    ):
        np.testing.assert_allclose(exact, differences, atol=1e-7 * max(1, np.abs(exact).max()) * 10)


def test_known_optima_of_the_table():
    for name, x in (
        ("HS7", (0, math.sqrt(3))),
        ("HS39", (1, 1, 0, 0)),
        ("HS42", (2, 2, 0.6 * math.sqrt(2), 0.8 * math.sqrt(2))),
        ("HS52", np.array([-33, 11, 180, -158, 11]) / 349),
        ("HS61", (5.326770157, -2.118998639, 3.210464239)),
        ("HS78", (-1.717142, 1.595708, 1.827248, -0.7636429, -0.7636435)),
        ("HS111LNP", (-3.201212, -1.912060, -0.2444413, -6.537489, -0.7231524, -7.267738, -3.596711, -4.017769,
                      -3.287462, -2.335582)),
        ("BYRDSPHR", (0.5, 2.0916501, 2.0916501)),
    ):  # fmt: skip
        p = TABLE[name]
        assert np.abs(p.constraint(x)).max() < 2e-3, name
        assert p.fun(np.asarray(x, float)) == pytest.approx(p.optimum, abs=2e-3 * max(1, abs(p.optimum))), name
    assert len([p for p in PROBLEMS if p.regular]) == 25
    assert not TABLE["HS28"].solved(TABLE["HS28"].x0)
    assert not TABLE["HS28"].solved([np.nan] * 3)


def test_jets_by_hand():
    x = Jet(2.0, np.array([1.0, 0.0]), np.zeros((2, 2)))
    y = Jet(3.0, np.array([0.0, 1.0]), np.zeros((2, 2)))
    z = 1 - x**3 * y
    assert z.v == -23
    np.testing.assert_array_equal(z.g, [-36, -8])
    np.testing.assert_array_equal(z.H, [[-36, -12], [-12, 0]])


def test_the_control_problem_solves_poissons_equation():
    problem = control_problem(5)
    x, lam = problem.solution()
    W, Z = np.pad(x[:25].reshape(5, 5), 1), x[25:].reshape(5, 5)
    h = 1 / 3
    laplacian = (W[2:, 1:-1] + W[:-2, 1:-1] + W[1:-1, 2:] + W[1:-1, :-2] - 4 * W[1:-1, 1:-1]) / h**2
    np.testing.assert_allclose(laplacian + Z, 0, atol=1e-10)
    A = problem.arguments["constraints"].A
    np.testing.assert_allclose(problem.arguments["jac"](x) + A.T @ lam, 0, atol=1e-10)
    t = 0.1 / math.sqrt(15)
    assert problem.target[0] == pytest.approx(math.sin(4 - 2 * t) + math.cos(3 - 2 * t))


def test_logistic_derivatives_and_feasibility():
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((30, 12)), np.where(rng.random(30) > 0.5, 1.0, -1.0)
    arguments = logistic_problem(X, y, rng)
    x, h = 0.1 * rng.standard_normal(12), 1e-6
    assert arguments["fun"](x) == pytest.approx(np.mean([math.log(1 + math.exp(-b * a @ x)) for a, b in zip(X, y)]))
    central = [(arguments["fun"](x + h * e) - arguments["fun"](x - h * e)) / (2 * h) for e in np.eye(12)]
    np.testing.assert_allclose(arguments["jac"](x), central, atol=1e-8)
    central = [(arguments["jac"](x + h * e) - arguments["jac"](x - h * e)) / (2 * h) for e in np.eye(12)]
    np.testing.assert_allclose(arguments["hess"](x), central, atol=1e-8)
    linear = arguments["constraints"][0]
    assert np.linalg.norm(np.linalg.pinv(linear.A) @ linear.lb) < 1


def test_the_sparse_program_is_as_described():
    H, G, _, _ = quadratic_program(50, 20, np.random.default_rng(0))
    assert G.shape == (20, 50)
    assert (np.diff(G.indptr) == 4).all()
    assert set(np.abs(G.data)) == {0.5}
    assert (np.abs(G.toarray()) > 0).sum() == 80
    assert H.diagonal().min() >= 0.5
    assert H.diagonal().max() <= 1.5


# ------------------------------------------------------------------------------------------------------------- solvers


def test_the_baseline_solves_and_counts():
    for name in ("HS28", "HS78", "HS7"):
        found = solvers.gmres_l1_sqp(TABLE[name])
        assert found.success
        assert TABLE[name].solved(found.x)
        assert found.nfev >= found.njev - 1


def test_a_failure_costs_infinitely_many_evaluations():
    outcome = solvers.solve("gaussian", TABLE["HS61"], 0)
    assert not outcome.solved
    assert outcome.cost == math.inf
    assert outcome.result.status == 2


def test_peers_on_the_sparse_program():
    H, G, g, c = quadratic_program(60, 30, np.random.default_rng(0))
    _, kkt = solvers.trust_constr_quadratic(H, G, g, c, 1e-6, 10.0)
    assert kkt <= 1e-6


def test_minres_of_the_study_meets_its_tolerance():
    K, b = systems.kkt_system(100, 0)
    z = systems.minres_to(K, b, 1e-3)
    assert np.linalg.norm(K @ z - b) <= 1e-3 * np.linalg.norm(b)


# ---------------------------------------------------------------------------------------------------------- the study


@pytest.fixture(scope="module")
def tiny():
    return check.run_tiny(study)


@pytest.mark.slow
def test_tiny_run_reports_every_claim_of_its_scales(tiny):
    results = {r.id: r for r in tiny.results()}
    for claim in study.CLAIMS:
        if claim.scales != "paper" and claim.id != "control-kkt-63":
            assert results[claim.id].value is not None or results[claim.id].reason, claim.id
    for claim in ("table-rank", "descent-slope", "descent-armijo", "descent-accuracy", "unit-step", "linear-rate"):
        assert results[claim].value == 1, claim
    assert results["table-gaussian"].value == 4
    assert results["superlinear"].value < 0.2
    assert results["control-solution-15"].value < 1e-5
    assert results["logistic-digits"].value == 1


@pytest.mark.slow
def test_tiny_run_keeps_what_the_figures_need(tiny):
    names = {s.name for s in tiny.series_log}
    assert {f.series for f in study.FIGURES} <= names
    profile = [s for s in tiny.series_log if s.name == "profile"]
    for s in profile:
        assert (np.diff(s.values) >= 0).all()
    assert max(s.values[0] for s in profile) > 0
    picture = study.PICTURES[0]
    ink = types.SimpleNamespace(text="k", muted="0.5", line="0.8", background="w", sequential="viridis")
    figure = Figure(figsize=picture.size)
    picture.draw(figure, tiny.arrays_log[picture.arrays], ink)
    assert len(figure.axes) == 6


def test_broken_promises_are_noticed():
    found = solvers.solve("gaussian", TABLE["HS78"], 0).result
    found.history["slope"][0] = 1.0
    found.history["merit_new"][1] += 1e3
    found.history["residual"][2] = 0.9
    found.history["exact_fallback"][2] = 0
    ctx = Context(study, Job("sketched-newton", "tiny"))
    study.promises_of_every_step(ctx, [found])
    for claim in ("descent-slope", "descent-armijo", "descent-accuracy"):
        assert ctx._measured[claim][0] < 1


# -------------------------------------------------------------------------------------------------------- paper scale


def test_paper_scale_says_what_is_missing(tmp_path):
    with pytest.raises(Unavailable, match=r"pycutest.*--data PATH|pycutest"):
        study.run(Context(study, Job("sketched-newton", "paper")))
    with pytest.raises(Unavailable, match="no file of ionosphere"):
        study.run(Context(study, Job("sketched-newton", "paper", data=str(tmp_path))))


def test_paper_scale_reads_libsvm_files_and_cutest(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    X = rng.standard_normal((40, 14))
    dump_svmlight_file(X, np.where(X[:, 0] > 0, 1, -1), str(tmp_path / "sonar_scale"))
    p = TABLE["HS77"]
    cutest = types.ModuleType("pycutest")
    problem = types.SimpleNamespace(
        n=5, m=2, x0=np.asarray(p.x0, float), is_eq_cons=np.array([True, True]), bl=np.full(5, -1e20),
        obj=lambda x, gradient: (p.fun(x), p.jac(x)), ihess=p.hess,
        cons=lambda x, gradient=False: (p.constraint(x), p.constraint_jac(x)) if gradient else p.constraint(x),
        hess=lambda x, v: p.hess(x) + p.constraint_hess(x, v),
    )  # fmt: skip
    cutest.find_problems = lambda **kinds: ["HS77"]
    cutest.import_problem = lambda name: problem
    monkeypatch.setitem(sys.modules, "pycutest", cutest)
    ctx = Context(study, Job("sketched-newton", "paper", data=str(tmp_path), n_seeds=2))
    study.run(ctx)
    results = {r.id: r.value for r in ctx.results()}
    assert results["paper-cutest"] == 1
    assert results["paper-logistic"] == 1
    short = Context(study, Job("sketched-newton", "paper", data=str(tmp_path), n_seeds=1, max_steps=2))
    study.run(short)
    assert {r.id: r.value for r in short.results()}["paper-logistic"] == 0
    assert paper.LIBSVM[0] == "ionosphere"


def test_the_snippet_and_the_page_run(capsys):
    names = check.check_texts(study)
    assert "at most tol" in capsys.readouterr().out
    assert names["info"] == 0
    assert names["result"].success
