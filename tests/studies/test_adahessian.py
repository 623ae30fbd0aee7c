"""Tests of the AdaHessian study and of the click logs it uses."""

import numpy as np
import pytest
import torch

from steepest.studies import adahessian as study
from steepest.studies import adahessian_costs as costs
from steepest.studies import adahessian_exact as exact
from steepest.studies.click_logs import ClickModel, click_task, generated_clicks, read_criteo
from steepest.studies.context import Context, Job, Unavailable
from steepest.studies.runner import run_study
from tests.studies import check_study as check

# ------------------------------------------------------------------------------------------------------------ exact


def test_the_transcription_agrees_and_notices_a_wrong_update(monkeypatch):
    assert exact._distance_to_transcription(4, "signed", 1.0, 1, seed=0) <= 1e-10

    class Late(exact.AdaHessian):  # corrects lazy estimates by t, as a published port does
        def _fold(self, group, p, state, estimate):
            super()._fold(group, p, state, estimate)
            state["hessian_step"].copy_(state["step"] + 1)

    monkeypatch.setattr(exact, "AdaHessian", Late)
    assert exact._distance_to_transcription("auto", "signed", 1.0, 3, seed=0) > 1e-3


def test_block_means_of_the_transcription_by_hand():
    D = np.arange(10.0).reshape(2, 5)
    np.testing.assert_array_equal(exact._block_means(D, 4).ravel(), [1.5] * 4 + [5.5] * 4 + [8.5] * 2)
    np.testing.assert_array_equal(exact._block_means(D, "row")[:, 0], [2.0, 7.0])
    np.testing.assert_array_equal(exact._block_means(D, "auto"), D)
    K = np.arange(8.0).reshape(1, 2, 2, 2)
    np.testing.assert_array_equal(exact._block_means(K, "auto")[0, :, 0, 0], [1.5, 5.5])


def test_steps_of_gradient_descent_equal_running_it():
    a = np.array([1.0, 3.0, 10.0])
    x, lr, t = np.ones(3), 2 / 11.0, 0
    while (a * x**2).sum() / 2 > 1e-3:
        x, t = x - lr * a * x, t + 1
    assert exact._steps_of_gradient_descent(a, 1e-3) == t


def test_criteo_rows_are_hashed_and_bad_lines_named(tmp_path):
    row = ["1", *("3" for _ in range(12)), "", *(f"{i:08x}" for i in range(26))]
    (tmp_path / "train.txt").write_text("\t".join(row) + "\n" + "\t".join(["0", *row[1:]]) + "\n")
    log = read_criteo(tmp_path, n_buckets=50)
    assert log.rows.shape == (2, 39)
    assert torch.equal(log.rows[0], log.rows[1])
    assert int(log.rows.max()) < 50
    assert log.clicks.tolist() == [1.0, 0.0]
    (tmp_path / "train.txt").write_text("1\t2\n")
    with pytest.raises(ValueError, match="line 1: 40 columns expected, got 2"):
        read_criteo(tmp_path)


def test_generated_clicks_can_be_learned():
    log = generated_clicks(10_000, seed=0)
    again = generated_clicks(10_000, seed=0)
    assert torch.equal(log.rows, again.rows)
    assert 0.15 < float(log.clicks.mean()) < 0.4
    task = click_task(log)
    model = task.model(0)
    assert isinstance(model, ClickModel)
    before = task.evaluate(model, "tune")
    opt = torch.optim.Adam(model.parameters(), 0.01)
    for x, y in task.batches(0, 40):
        opt.zero_grad()
        task.loss(model, x, y).backward()
        opt.step()
    assert task.evaluate(model, "tune") > before + 5


# ---------------------------------------------------------------------------------------------------------- the study


@pytest.fixture(scope="module")
def tiny():
    return check.run_tiny(study)


@pytest.mark.slow
def test_tiny_run_reports_every_claim_but_the_papers_own(tiny):
    check.check_measured(study, tiny)
    assert {figure.series for figure in study.FIGURES} <= {s.name for s in tiny.series_log}
    assert tiny.best_peer.peer == "AdamW"


@pytest.mark.slow
def test_invariants_that_do_not_depend_on_draws_hold_even_at_tiny(tiny):
    assert tiny._measured["hutchinson-exact"][0] <= 1e-12
    assert tiny._measured["update-rule"][0] <= 1e-10
    assert tiny._measured["peer-memory"][0] == 0
    assert tiny._measured["conditioning"][0] <= 1.1


@pytest.mark.parametrize("task", ["cifar", "wikitext", "criteo", "glue"])
def test_the_papers_code_runs_for_two_steps(task):
    job = Job("adahessian", "paper", n_seeds=2, options={"task": task}, max_steps=2)
    record, _ = run_study(job)
    assert record.status == "ok", record.traceback
    reasons = {c.id: c.reason for c in record.claims if c.scales == "paper"}
    assert all(reasons.values())
    word = "checkpoint" if task == "glue" else "random data"
    assert any(word in reason for key, reason in reasons.items() if key.startswith(task))


def test_the_papers_scale_says_what_is_missing():
    check.check_refuses_without_accelerator(study)
    with pytest.raises(Unavailable, match="--data"):
        study.run(Context(study, Job("adahessian", "paper", options={"task": "criteo"})))
    with pytest.raises(ValueError, match="task must be one of"):
        study.run(Context(study, Job("adahessian", "paper", options={"task": "mnist"})))


def test_costs_compare_the_same_work():
    """All ways of an iteration see one batch, and the estimate is made exactly every k steps."""
    task = study._digits_task()
    batch = next(iter(task.batches(0, 1)))
    go = costs._iterations(task, 5, batch)
    opt = next(c.cell_contents for c in go.__closure__ if isinstance(c.cell_contents, study.AdaHessian))
    for t in range(11):
        go(t)
    assert {float(s["hessian_step"]) for s in opt.state.values()} == {3.0}
    assert opt.missed_updates == 0


@pytest.mark.filterwarnings("ignore:Using backward.* with create_graph=True")
def test_the_snippet_and_the_page_run():
    check.check_texts(study)
