"""Tests of the particle study: its errors by hand, interpolations that are exact where they must be, and a tiny run."""

import math

import numpy as np
import pytest
import torch

from steepest.studies import giorom as study
from steepest.studies import giorom_speed as speed
from steepest.studies import giorom_training as training
from steepest.studies import giorom_upsampling as upsampling
from steepest.studies.context import Context, Job
from steepest.studies.giorom_learning import Learning, Sizes
from steepest.studies.giorom_scenes import Setting, trajectories
from steepest.studies.runner import run_study
from tests.studies import check_study as check

SMALL = Setting(n_points=120)
PLAN = training.Plan(0.05, 8, 4, 0.1, 2, 2, 2, 30, setting=SMALL)

# --------------------------------------------------------------------------------------------------------------- exact


def parabola(S=2, n=7, T=80):
    """Particles thrown up under the study's gravity, each with its own start and velocity."""
    rng = np.random.default_rng(0)
    start, v = rng.uniform(0.4, 0.6, (S, 1, n, 2)), rng.normal([0.0, 0.0098], 1e-3, (S, 1, n, 2))
    t = np.arange(T)[None, :, None, None]
    g = np.array([0.0, -SMALL.gravity * (SMALL.dt * SMALL.substeps) ** 2])
    return torch.from_numpy(start + t * v + t * (t - 1) / 2 * g), g


def test_extrapolations_of_free_fall():
    scenes, g = parabola()
    found = training.scores_of_extrapolation(scenes, PLAN)
    assert found["constant velocity"].step == pytest.approx(g[1] ** 2 / 2)
    k = np.arange(1, 31)
    assert found["constant velocity"].curve == pytest.approx((k * (k + 1) / 2 * g[1]) ** 2 / 2)
    assert found["constant acceleration"].step < 1e-6 * g[1] ** 2
    assert found["constant acceleration"].rollout < 1e-6 * found["constant velocity"].rollout
    assert found["gravity between walls"].step < 1e-6 * g[1] ** 2


def test_gravity_ends_at_the_walls():
    scenes, _ = parabola()
    low = scenes - torch.tensor([0.0, 0.35])
    found = training.scores_of_extrapolation(low, PLAN)
    assert found["gravity between walls"].rollout > 1e3 * found["constant acceleration"].rollout
    assert PLAN.wall == 3 / 32


def test_a_fitted_autoregression_falls_freely():
    scenes, _ = parabola()
    model = training.build(training.Run("GIOROM", "newtonian", 0, PLAN), "least_squares").double()
    model.fit([x.numpy() for x in scenes], steps=0, noise=0.0)
    found = training.scores_of_model(model, scenes)
    law = training.scores_of_extrapolation(scenes, PLAN)["constant velocity"]
    assert found.step < 1e-4 * law.step
    assert found.rollout < 1e-3 * law.rollout
    assert found.rollout == pytest.approx(np.mean(found.curve))


def test_windows_meet_their_own_next_frame():
    scenes = torch.arange(40.0, dtype=torch.float64)[None, :, None, None].square().expand(1, 40, 3, 2) * 1e-4
    seen = []
    training.one_step(lambda x: seen.append(x) or torch.full_like(x[:, :, -1], 2e-4), scenes)
    assert seen[0].shape == (4, 3, 6, 2)
    assert seen[0][1, 0, :, 0].tolist() == pytest.approx([1e-4 * k**2 for k in range(10, 16)])
    assert training.one_step(lambda x: torch.full_like(x[:, :, -1], 2e-4), scenes) < 1e-20


def test_rollouts_of_many_scenes_are_those_of_each():
    frames = trajectories("newtonian", "test", 2, 0, SMALL)
    scenes = training.chosen(frames, 30, 1)
    one = training.train_one(training.Run("GIOROM", "newtonian", 1, PLAN))
    initial = scenes[:, 10:16].transpose(1, 2).contiguous()
    both = training.rolled(one.model, initial, 4)
    for k in range(2):
        torch.testing.assert_close(both[:, k], one.model.rollout(initial[k], 4), rtol=0, atol=1e-5)
    alone = training.of_skip(one.model, one.skip)(initial)
    linear = training.build(one.run, "least_squares")
    linear.load_state_dict({**linear.state_dict(), **one.model.state_dict(), "autoregression.weight": one.skip})
    for parameter in linear.decoder[-1].parameters():
        torch.nn.init.zeros_(parameter)
    torch.testing.assert_close(training.of_model(linear)(initial), alone)
    torch.testing.assert_close(training.of_linear(linear)(initial), alone)
    start = training.scores_of_model(linear, scenes)
    assert start.step == pytest.approx(one.start.step, rel=1e-4)
    assert start.curve == pytest.approx(one.start.curve, rel=1e-3)
    assert len(one.model.history_["loss"]) > 0


def test_the_best_weights_on_validation_scenes_are_kept(monkeypatch):
    run = training.Run("GIOROM", "newtonian", 1, PLAN)
    model = training.build(run)
    errors = iter([3.0, 2.0, math.inf, 2.5, 1.0])  # the first of the linear map alone
    monkeypatch.setattr(training, "rollout_errors", lambda roll, scenes, starts: [next(errors)])
    keeper = training.Keeper(model, run)
    keeper.look(0.0, linear=True)
    last = model.decoder[-1].bias
    for value in (1.0, 2.0, 3.0):
        torch.nn.init.constant_(last, value)
        keeper.look(value)
    assert keeper.share == 1.0
    model.load_state_dict(keeper.best)
    assert last.tolist() == [1.0, 1.0]
    keeper(1, {"seconds": [0.4 * keeper.seconds]})  # too early
    assert keeper.share == 1.0
    keeper(2, {"seconds": [0.5 * keeper.seconds]})
    assert keeper.share == 0.5
    keeper(3, {"seconds": [0.9 * keeper.seconds]})  # the last look is left to the end


def test_chosen_particles():
    frames = trajectories("elastic", "test", 2, 0, SMALL)
    a, b = (training.chosen(frames, 20, seed) for seed in (0, 1))
    assert a.shape == (2, 80, 20, 2)
    assert not torch.equal(a, b)
    spread = training.chosen(frames, 20, 0, "fps")
    nearest = [torch.pdist(x[0, training.WINDOW]).min() for x in (spread, a)]
    assert nearest[0] > 2 * nearest[1]


def affine(n=200, T=66):
    rng = np.random.default_rng(0)
    x = rng.uniform(0.3, 0.7, (n, 2))
    t = np.linspace(0, 1, T)[:, None, None]
    A = np.array([[0.1, 0.3], [-0.2, 0.05]])
    return (x + t * (x @ A.T + 0.1)).astype(np.float64)


def test_affine_motion_is_inferred_exactly_by_the_right_ones():
    found = {name: upsampling.pooled(squares) for name, squares in upsampling.errors([affine()], 8.0, 0).items()}
    for name in ("moving least squares", "radial basis functions", "PCA of early frames"):
        assert found[name] < 1e-5, name
    assert found["moving least squares, order 1"] < 1e-3
    assert found["linear on triangles"] < 0.3  # outside the hull by the nearest
    assert 0.05 < found["kernel integral"] < 0.6
    assert 0.05 < found["nearest neighbor"] < 0.6


def test_error_over_deformation_by_hand():
    """Nobody moves by more than the mean but one: forecasting the mean for all is an error of 1."""
    zero = {"zero": lambda Y, X, u, early: np.zeros((len(u), len(X), 2))}
    scene = affine()
    moved = upsampling.errors([scene], 4.0, 0, zero, "random")["zero"]
    order = np.setdiff1d(np.arange(200), np.random.default_rng(0).choice(200, 50, replace=False))
    u = scene[20:60, order] - scene[training.WINDOW, order]
    assert moved[0] == pytest.approx(((u**2).sum(), ((u - u.mean(1, keepdims=True)) ** 2).sum()))
    assert upsampling.pooled([(1.0, 4.0), (8.0, 32.0)]) == pytest.approx(0.5)


def test_clouds_have_their_spacing():
    cloud = speed.Cloud.of(400)
    assert cloud.window.shape == (400, 6, 2)
    assert cloud.spacing == pytest.approx(math.sqrt(0.24 / 400))
    frame = speed.Frame(640, 40, 8, 4)
    assert frame.reduced().shape == frame.dense()().shape == (640, 2)
    torch.testing.assert_close(frame.infer(), frame.cloud.window[:, -1], rtol=0, atol=1e-5)
    task, words = speed.simulator(400)
    task()
    assert "substeps" in words


def test_shares_without_an_advantage_are_undecided():
    ctx = Context(study, Job("giorom", "quick", n_seeds=1))
    learning = Learning(ctx, Sizes(PLAN, ("newtonian",), (), False), [1])
    one = training.train_one(training.Run("GIOROM", "newtonian", 1, PLAN))
    torch.nn.init.constant_(one.model.decoder[-1].bias, 1.0)  # worse than the autoregression
    learning.trained["GIOROM", "newtonian"] = [one]
    learning._sampling()
    _, span, reason = ctx._measured["agnostic-denser-share"]
    assert span is not None
    assert span[0] <= 0 <= 1 <= span[1]
    assert "says nothing" in reason


# ----------------------------------------------------------------------------------------------------------- the study


@pytest.fixture(scope="module")
def tiny():
    return check.run_tiny(study)


def test_tiny_run_reports_every_claim_and_draws(tiny):
    check.check_measured(study, tiny, unless=("neuraloperator",), infinite=("published-rollout",))
    check.check_logged(study, tiny)
    check.check_pictures(study, tiny)
    assert tiny.best_peer is not None


def test_what_does_not_depend_on_training_holds_even_at_tiny(tiny):
    assert tiny._measured["against-nearest"][0] < 1
    assert tiny._measured["speed"][0] > 1
    assert sum(a.nbytes for a in tiny.arrays_log["strips"].values()) < 300_000


def test_quick_measures_the_headlines():
    at_quick = {c.id for c in study.CLAIMS if c.measured_at("quick")}
    assert {
        "speed",
        "inference-time",
        "newtonian-rollout-start",
        "newtonian-step-gns",
        "elastic-rollout-cv",
    } <= at_quick
    assert len({c.id for c in study.CLAIMS}) == len(study.CLAIMS)


def test_paper_code_trains_for_two_steps():
    record, _ = run_study(Job("giorom", "paper", n_seeds=1, max_steps=2))
    assert record.status == "ok", record
    claims = {c.id: (c.value, c.reason) for c in record.claims}
    assert claims["paper-step"] == (None, "2 steps: a test of the code")


def test_paper_scale_asks_for_an_accelerator():
    check.check_refuses_without_accelerator(study)


def test_the_snippet_and_the_page_run():
    check.check_texts(study)
