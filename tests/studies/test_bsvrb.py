"""Tests of the study of BSVRB: its many runs at once, its rival, workers and the paper's data."""

import itertools
import math

import numpy as np
import pytest
import torch
from sklearn.datasets import dump_svmlight_file

from steepest.bilevel import bsvrb, hypergradient, solve_lower
from steepest.bilevel.tasks import multi_block_weighting
from steepest.core.extras import MissingExtra
from steepest.studies import bsvrb as study
from steepest.studies import bsvrb_libraries as libraries
from steepest.studies import bsvrb_paper as paper
from steepest.studies import bsvrb_rivals as rivals
from steepest.studies import bsvrb_streaming as streaming
from steepest.studies import bsvrb_workers as workers
from steepest.studies.context import Context, Job, Unavailable
from tests.studies import check_study as check

F64 = torch.float64


# ------------------------------------------------------------------------------------------------- many runs at once


@pytest.mark.parametrize("n_drawn", [2, 6])
def test_many_runs_at_once_are_those_of_bsvrb(n_drawn):
    """Settings of which one meets the ball of v, two seeds: every x of every step."""
    blocks = streaming.Streaming.draw(m=6)
    settings = streaming.Settings(
        lr_x=torch.tensor([0.1, 0.02], dtype=F64),
        lr_y=torch.tensor([0.1, 0.4], dtype=F64),
        alpha=torch.tensor([0.1, 0.17], dtype=F64),
        beta=torch.tensor([0.9, 0.3], dtype=F64),
    )
    seeds, steps = [3, 4], 12
    recorded = list(itertools.islice(streaming.draws(seeds, 6, n_drawn, 5), steps))
    together = torch.stack(list(streaming.iterates(blocks, settings, iter(recorded))))  # (steps, S, K, n)
    met = False
    for s, k in itertools.product(range(2), range(2)):
        mine = [streaming.Draw(*(getattr(d, f)[[s]] for f in ("blocks", "gram", "right", "upper"))) for d in recorded]
        seen = []
        with pytest.MonkeyPatch.context() as patch:
            order = iter([d.blocks[0] for d in mine])
            patch.setattr("steepest.bilevel._bsvrb.draw_blocks", lambda m, n, generator, order=order: next(order))
            result = bsvrb(
                blocks.problem(iter(mine)), variant="v2", blocks_per_step=n_drawn, maxiter=steps,
                **{key: float(getattr(settings, key)[k]) for key in ("lr_x", "lr_y", "alpha", "beta")},
                v_bound=streaming.V_BOUND,
                callback=lambda intermediate_result, seen=seen: seen.append(intermediate_result.x),
            )  # fmt: skip
        met |= bool((result.v.norm(dim=1) > streaming.V_BOUND - 1e-9).any())
        torch.testing.assert_close(together[:, s, k], torch.stack(seen), rtol=1e-10, atol=1e-11)
    assert met or n_drawn == 6  # the ball was met


def test_the_streaming_gradient_is_the_hypergradient():
    blocks = streaming.Streaming.draw(m=5)
    problem = blocks.problem(iter([]))
    x = torch.randn(4, generator=torch.Generator().manual_seed(0), dtype=F64)
    y, _ = solve_lower(problem, x, tol=1e-10)
    torch.testing.assert_close(hypergradient(problem, x, y)[0], blocks.gradient(x), rtol=1e-8, atol=1e-10)


def test_draws_have_the_moments_of_their_samples():
    draw = [next(streaming.draws([seed], 64, 64, 4)) for seed in range(60)]
    gram = torch.cat([d.gram[0] for d in draw])
    torch.testing.assert_close(gram.mean(0), torch.eye(3, dtype=F64), atol=0.05, rtol=0)
    assert float(torch.cat([d.right[0] for d in draw]).var()) == pytest.approx(1 / 4, rel=0.1)
    assert float(torch.cat([d.upper[0] for d in draw]).var()) == pytest.approx(1 / 4, rel=0.1)
    assert all(len(d.blocks[0].unique()) == 64 for d in draw)


def test_first_below_and_intervals():
    means = np.array([[1.0, 1.0], [0.4, 1.0], [0.6, 1.0]])
    assert streaming.first_below(means, 0.5).tolist() == [2, math.inf]
    many, few = (streaming.Tuned(s, (s / 2, s * 2), "", means) for s in (10.0, 40.0))
    low, high = study._ratio(many, few)
    assert low == pytest.approx(0.25 * 2 ** -math.sqrt(2))
    assert high == pytest.approx(0.25 * 2 ** math.sqrt(2))


# --------------------------------------------------------------------------------------------------------------- rivals


@pytest.mark.parametrize("variant", ["v1", "v2"])
def test_rsvrb_reaches_the_optimum_with_all_blocks_and_no_noise(variant):
    problem, x, _, _ = study.quadratic(6, 0)
    result = rivals.rsvrb(problem, variant=variant, lr_x=0.05, lr_y=0.4, v_bound=1e3, blocks_per_step=6, maxiter=250)
    assert float((result.x - x).norm() / x.norm()) < 1e-3


def test_rsvrb_spreads_m_over_i_and_lets_rows_decay(monkeypatch):
    """Blocks 0, 1 are drawn, then 2, 3: rows that are not drawn keep 1 - alpha of their estimate."""
    problem, _, _, _ = study.quadratic(6, 0)
    y0 = problem.y0.clone().requires_grad_()
    problem.lower(problem.x0, y0, None, problem.all_blocks).sum().backward()
    dF_dy = -problem_targets(problem)
    results = []
    for n in (1, 2):
        order = iter([torch.tensor([0, 1]), torch.tensor([2, 3])])
        monkeypatch.setattr(rivals, "draw_blocks", lambda m, n, generator, order=order: next(order))
        results.append(rivals.rsvrb(problem, lr_x=1e-12, lr_y=0.1, alpha=0.3, blocks_per_step=2, maxiter=n))
    for key, q in (("y", y0.grad), ("v", -dF_dy)):  # v starts at 0, where its measurement is -dF/dy
        first, second = results[0][key], results[1][key] - results[0][key]
        torch.testing.assert_close(first[:2], -0.1 * 3 * q[:2], rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(second[:2], 0.7 * first[:2], rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(second[2:4], -0.1 * 3 * 0.3 * q[2:4], rtol=1e-9, atol=1e-9)  # the same at both
        assert not first[2:].any()
        assert not second[4:].any()


def problem_targets(problem):
    """Targets t of `study.quadratic`: minus the gradient of the upper objectives at y = 0."""
    y = problem.y0.clone().requires_grad_()
    (g,) = torch.autograd.grad(problem.upper(problem.x0, y, None, problem.all_blocks).sum(), y)
    return -g


def test_objective_is_the_retrained_validation_loss():
    problem, _ = multi_block_weighting(3, 0, data="breast_cancer")
    y, _ = solve_lower(problem, problem.x0)
    value = float(problem.upper(problem.x0, y, None, problem.all_blocks).mean())
    assert rivals.objective(problem, problem.x0) == pytest.approx(value, rel=1e-5)
    assert set(rivals.milliseconds(problem, ["BSVRB v2", "stocBiO"], 2, rounds=1)) == {"BSVRB v2", "stocBiO"}


# ------------------------------------------------------------------------------------------------------------ libraries


def test_samples_of_the_weighting_task_come_back_from_its_gradients():
    problem, _ = multi_block_weighting(4, 0, data="breast_cancer")
    train, validation = (torch.from_numpy(Z) for Z in libraries.samples(problem))
    y = torch.randn(4, problem.y0.shape[1], generator=torch.Generator().manual_seed(0), dtype=F64)
    s = torch.logspace(-2, 2, 4, base=2, dtype=F64).unsqueeze(1)  # 1/4 to 4
    losses = [torch.nn.functional.softplus(-s * (y @ Z.T)) / s for Z in (train, validation)]
    upper = problem.upper(problem.x0, y, None, problem.all_blocks)
    torch.testing.assert_close(losses[1].mean(1), upper, rtol=1e-10, atol=1e-12)
    lower = problem.lower(problem.x0, y, None, problem.all_blocks)
    torch.testing.assert_close(losses[0].mean(1) / 2 + 5e-4 * y.square().sum(1), lower, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", libraries.LIBRARIES)
@pytest.mark.filterwarnings("ignore")
def test_a_library_goes_down_the_hypergradient_of_long_lower_training(name):
    """Where the lower problem is solved at every step, all of them find the direction of the implicit gradient."""
    problem, _ = multi_block_weighting(3, 0, data="breast_cancer")
    full = type(problem)(
        problem.upper, problem.lower, problem.x0, solve_lower(problem, problem.x0, tol=1e-8)[0], n_blocks=3,
        sample_upper=lambda generator, size, blocks: torch.arange(len(libraries.samples(problem)[1])).repeat(3, 1),
        sample_lower=lambda generator, size, blocks: torch.arange(len(problem.x0)).repeat(3, 1),
    )  # fmt: skip
    if name not in libraries.present():
        with pytest.raises(MissingExtra, match=name):
            libraries.at_rates(name, full, lr_x=1.0, lr_y=0.5, decay="linear", maxiter=1, random_state=0)
        return
    found = libraries.at_rates(name, full, lr_x=1.0, lr_y=0.5, decay="linear", maxiter=1, random_state=0)
    assert found.nit == 1
    exact = hypergradient(full, full.x0, full.y0)[0]
    cosine = -(found.x - full.x0) @ exact / (found.x - full.x0).norm() / exact.norm()
    assert float(cosine) > (0.9 if name == "jaxopt" else 0.5)  # five terms of a series point less well
    torch.testing.assert_close(found.y, full.y0, atol=1e-4, rtol=1e-4)


# ---------------------------------------------------------------------------------------------------------- the study


def test_predicted_variance_by_hand():
    K, rows = torch.diag(torch.tensor([2.0, 4.0], dtype=F64)), torch.tensor([[1.0, 0], [-1, 0], [0, 2], [0, -2]])
    value = study.predicted_variance(K, rows.double(), 0.1, 2)
    assert float(value) == pytest.approx(0.1 * 0.5 * 4 / 3 / 4 * (0.5 / 2 + 2 / 4))


@pytest.fixture(scope="module")
def tiny():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study, "two_workers", lambda ctx: None)  # a test of its own
        return check.run_tiny(study)


@pytest.mark.slow
def test_tiny_run_reports_every_claim_of_its_scales(tiny):
    results = {r.id: r for r in tiny.results()}
    for claim in study.CLAIMS:
        if claim.scales != "paper" and not claim.id.startswith("workers-") and claim.id != "blocks-1":
            assert results[claim.id].value is not None, claim.id
    assert results["exact"].value < 1e-6
    assert results["large-hessians"].value == 0
    assert results["large-memory"].value < 1
    assert 0.2 < results["noise-spread"].value < 4
    check.check_logged(study, tiny, missing=("workers",))
    assert {s.method for s in tiny.series_log if s.name == "noise"} == {"measured", "theory"}
    missing = [name for name in libraries.LIBRARIES if name not in libraries.present()]
    assert all(any(name in note for note in tiny.notes_log) for name in missing)


@pytest.mark.slow
def test_workers_give_a_time(monkeypatch):
    pytest.importorskip("ray")
    monkeypatch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    case = workers.Case("v1", 4, 2, 3, 4)
    assert workers.step_milliseconds(case, 0, 2) > 0
    with workers.cluster(2):
        assert workers.step_milliseconds(case, 2, 2) > 0
    assert str(case) == "v1, m = 4, I = 2, p = 3, B = 4"


# -------------------------------------------------------------------------------------------------------- paper scale


def ratings(path):
    rng = np.random.default_rng(0)
    with path.open("w") as file:
        file.write("userId,movieId,rating,timestamp\n")
        for user in range(12):
            for k, movie in enumerate(rng.permutation(30)[:20]):
                stars = 5.0 if movie % 3 == user % 3 else rng.integers(1, 9) / 2
                file.write(f"{10 * user + 1},{7 * movie},{stars},{1000 + k}\n")


def test_paper_scale_says_what_is_missing(tmp_path):
    with pytest.raises(Unavailable, match=r"--data PATH|STEEPEST_DATA"):
        study.run(Context(study, Job("bsvrb", "paper")))
    with pytest.raises(Unavailable, match=r"no file a8a.*ratings.csv"):
        study.run(Context(study, Job("bsvrb", "paper", data=str(tmp_path))))


@pytest.mark.slow
def test_paper_scale_reads_its_files(tmp_path):
    rng = np.random.default_rng(0)
    X = (rng.random((60, 5)) > 0.5).astype(float)
    dump_svmlight_file(X, np.where(X[:, 0] > 0, 1, -1), str(tmp_path / "a8a"))
    ratings(tmp_path / "ratings.csv")
    ctx = Context(study, Job("bsvrb", "paper", data=str(tmp_path), n_seeds=1, max_steps=3))
    study.run(ctx)
    results = {r.id: r for r in ctx.results()}
    assert results["paper-a8a"].value > 0
    assert results["paper-movielens"].value > 0
    assert "no file w8a" in results["paper-w8a"].reason


def test_movielens_problem(tmp_path):
    ratings(tmp_path / "ratings.csv")
    table = paper.read_ratings(tmp_path / "ratings.csv")
    assert table.shape == (240, 4)
    assert table[:, 0].max() == 11
    problem, users, held_out = paper.movielens_ranking(table, K=3, rank=4)
    assert len(users) == problem.n_blocks
    assert held_out.shape == (problem.n_blocks, 5)
    blocks = torch.tensor([1])
    batch = problem.sample_upper(torch.Generator().manual_seed(0), 64, blocks)
    own = table[(table[:, 0] == users[1]) & (table[:, 2] >= 4)]
    last = own[np.argsort(own[:, 3])][-5:, 1]
    assert set(held_out[1]) == set(last.astype(int))  # by time
    assert not set(batch[0][0].tolist()) & set(held_out[1].tolist())
    assert set(batch[0][0].tolist()) == set(own[:, 1].astype(int)) - set(held_out[1].tolist())
    y, info = solve_lower(problem, problem.x0, tol=1e-4)
    assert info == 0
    result = bsvrb(problem, variant="v2", lr_x=2.0, lr_y=0.1, blocks_per_step=4, maxiter=150, alpha=0.2)
    assert result.fun < float(problem.upper(problem.x0, y, None, problem.all_blocks).mean())
    best = {"users": torch.eye(12), "movies": torch.zeros(40, 12)}
    for u in range(12):
        best["movies"][:5, u] = 1.0
    assert paper.ndcg(best, np.tile(np.arange(5), (12, 1))) == pytest.approx(1)
    best["movies"] *= -1
    assert paper.ndcg(best, np.tile(np.arange(5), (12, 1))) == 0


# ------------------------------------------------------------------------------------------------------------ the texts


def test_the_snippet_and_the_page_run(capsys):
    assert check.check_texts(study)["result"].success
    assert "validation loss" in capsys.readouterr().out


def test_a_ray_that_does_not_start_costs_its_rows_alone(monkeypatch):
    ray = pytest.importorskip("ray")

    def init(**options):
        raise Exception("timed out")

    monkeypatch.setattr(ray, "init", init)
    ctx = Context(study, Job("bsvrb", "tiny"))
    study.two_workers(ctx)
    results = {r.id: r for r in ctx.results()}
    assert results["workers-step"].reason == "Ray did not start: timed out"
    assert results["workers-pay"].value is None
