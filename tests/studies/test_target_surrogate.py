"""Tests of the study of SSO: peers, experts and counts by hand, a tiny run, the paper's code for a few steps."""

import math

import numpy as np
import pytest
import torch

from steepest.core.extras import installed
from steepest.studies import target_surrogate as study
from steepest.studies import target_surrogate_digits as digits
from steepest.studies import target_surrogate_imitation as imitation
from steepest.studies import target_surrogate_paper as paper
from steepest.studies import target_surrogate_theory as theory
from steepest.studies.context import Context, Job, Unavailable
from steepest.studies.runner import run_study
from tests.studies import check_study as check

# ------------------------------------------------------------------------------------------------------------ by hand


def test_stochastic_line_search_by_hand():
    w = torch.nn.Parameter(torch.tensor([1.0, 2.0], dtype=torch.float64))
    a = torch.tensor([1.0, 10.0], dtype=torch.float64)
    opt = digits.StochasticLineSearch([w], 1.0, 0.3, expand=1.5)
    x, step = w.detach().clone(), 1.0
    for _ in range(4):
        g, step = a * x, 1.5 * step
        while (a * (x - step * g) ** 2).sum() / 2 > (a * x**2).sum() / 2 - 0.3 * step * (g**2).sum():
            step *= 0.9
        x = x - step * g
        opt.step(lambda: (a * w**2).sum() / 2)
        torch.testing.assert_close(w.detach(), x)
        assert math.isclose(opt.param_groups[0]["lr"], step)


def test_runs_count_gradients_and_delays():
    r = digits.Run([3.0, 2.0, 0.04, 0.06, 0.01], seconds=0.4, every=5)
    assert r.end == 0.01
    assert r.gradients_to(0.05) == 10
    assert r.gradients_to(0.001) == math.inf
    assert math.isclose(r.seconds_to(0.05, 0.1), 10 * (0.4 / 20 + 0.1))


def test_every_method_sees_the_same_batches_and_the_budget():
    g = torch.Generator().manual_seed(0)
    task = digits.Task(torch.randn(300, 64, generator=g), torch.randint(10, (300,), generator=g), 5)
    first, second = list(task.batches(1)), list(task.batches(1))
    assert len(first) == 5
    assert all(torch.equal(a[0], b[0]) and len(a[0]) == digits.BATCH for a, b in zip(first, second, strict=True))
    method = digits.sso("SSO", inner="lbfgs", inner_steps=2, target_lr=2.0)
    one, two = digits.run(task, method, 3), digits.run(task, method, 3, every=5)
    assert len(one.losses) == 6
    assert two.losses == [one.losses[0], one.losses[-1]]
    sgd = digits.run(task, digits.PEERS["SGD"][0], 3)
    assert sgd.losses[0] == one.losses[0]
    assert all(len(grid) >= 4 for grid in digits.PEERS.values())


def test_the_definition_of_the_surrogate_notices_a_missing_nu(monkeypatch):
    """The check of majorization is not empty: with steps four times 1/L it finds violations."""
    ctx = Context(study, Job("target-surrogate", "tiny"))
    true = theory.problems

    def flatter(y):
        return [theory.Problem(p.name, p.columns, p.smoothness / 4, p.loss) for p in true(y)]

    monkeypatch.setattr(theory, "problems", flatter)
    theory.majorization(ctx)
    assert ctx._measured["bound-majorizes"][0] > 0


def test_linear_rates_are_told_from_sublinear_ones():
    t = np.arange(1, 200)
    assert theory._share_of_even_quarters(0.9**t) == 1.0
    assert theory._share_of_even_quarters(1.0 / t) <= 0.5


def test_experts_solve_their_tasks():
    if not installed("gymnasium"):
        pytest.skip("needs gymnasium")
    import gymnasium

    class Expert(torch.nn.Module):
        def __init__(self, task):
            super().__init__()
            self.task = task

        def forward(self, x):
            states = (x * torch.tensor(self.task.scale)).numpy()
            actions = torch.tensor([self.task.expert(s) for s in states])
            return 2 * actions - 1 if self.task.key == "cartpole" else actions

    returns = {t.key: imitation._average_return(gymnasium, t, Expert(t), 4) for t in imitation.TASKS}
    assert returns["cartpole"] == 500
    assert returns["pendulum"] > -350


def test_libsvm_files_are_read_and_missing_ones_named(tmp_path):
    (tmp_path / "mushrooms").write_text("1 1:1 3:0.5\n2 2:1\n2 1:0.25\n")
    data = paper.read_libsvm(tmp_path, "mushrooms")
    x, y = data.take(np.array([2, 0]))
    assert x.tolist() == [[0.25, 0.0, 0.0], [1.0, 0.0, 0.5]]
    assert y.tolist() == [1.0, 0.0]
    with pytest.raises(Unavailable, match=r"rcv1_train\.binary"):
        paper.read_libsvm(tmp_path, "rcv1")
    (tmp_path / "ijcnn1").write_text("1 1:1\n2 2:1\n3 1:1\n")
    with pytest.raises(ValueError, match="two kinds"):
        paper.read_libsvm(tmp_path, "ijcnn")


def test_experts_of_mujoco_are_read(tmp_path):
    W, b = np.array([[2.0, 0.0], [0.0, 1.0]]), np.array([0.0, 0.5])
    np.savez(tmp_path / "e.npz", W0=W, b0=b, W1=np.ones((1, 2)), b1=np.zeros(1))
    expert = paper.scripted_network(tmp_path / "e.npz")
    assert math.isclose(expert(np.array([0.1, -0.2]))[0], math.tanh(0.2) + math.tanh(0.3))
    with pytest.raises(Unavailable, match="an expert is missing"):
        paper.scripted_network(tmp_path / "none.npz")


# ---------------------------------------------------------------------------------------------------------- the study


@pytest.mark.slow
def test_tiny_run_reports_every_claim_but_the_papers_own():
    ctx = check.run_tiny(study)
    arriving = {c.id for c in study.CLAIMS if c.id.startswith("delay") or c.id == "gradients"}
    check.check_measured(study, ctx, unless=["gymnasium"], infinite=arriving)
    assert ctx._measured["bound-majorizes"][0] == 0
    assert ctx._measured["bound-monotone"][0] == 0
    assert ctx.best_peer.peer in digits.PEERS
    check.check_logged(study, ctx, missing=() if installed("gymnasium") else ("pendulum", "cartpole"))
    at = {s.method: np.array(s.values) for s in ctx.series_log if s.name == "bound"}
    np.testing.assert_allclose(at["surrogate, KL"], at["loss"], rtol=1e-10)
    assert (at["surrogate, Euclidean"] >= at["loss"] - 1e-12).all()


@pytest.mark.parametrize("task", ["libsvm", "factorization"])
def test_the_papers_code_runs_for_two_steps(task):
    record, _ = run_study(Job("target-surrogate", "paper", n_seeds=2, options={"task": task}, max_steps=2))
    assert record.status == "ok", record.traceback
    reasons = {c.id: c.reason for c in record.claims if c.scales == "paper"}
    assert all(reasons.values())
    assert any("a few steps" in reason for key, reason in reasons.items() if key.startswith(task))


def test_the_papers_scale_says_what_is_missing():
    with pytest.raises(Unavailable, match="--data"):
        study.run(Context(study, Job("target-surrogate", "paper")))
    with pytest.raises(ValueError, match="task must be one of"):
        study.run(Context(study, Job("target-surrogate", "paper", options={"task": "mnist"})))
    if not installed("mujoco"):
        with pytest.raises(Unavailable, match="rl-mujoco"):
            study.run(Context(study, Job("target-surrogate", "paper", options={"task": "mujoco"})))


def test_the_snippet_and_the_page_run():
    check.check_texts(study)
