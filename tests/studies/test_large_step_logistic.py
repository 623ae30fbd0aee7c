"""Tests of the study of large steps and of what it measures with."""

import math
import types

import numpy as np
import pytest

from steepest.landscape import LargeStepLogisticRegression, perceptron_bound
from steepest.studies import large_step_logistic as study
from steepest.studies import large_step_logistic_paper as paper
from steepest.studies import large_step_logistic_problems as problems
from steepest.studies import large_step_logistic_speed as speed
from steepest.studies.context import Context, Job, Unavailable
from steepest.studies.runner import run_study
from tests.studies import check_study as check

# ------------------------------------------------------------------------------------------------------------ problems


def test_the_margin_is_that_of_points_whose_margin_is_known():
    A = np.array([[1.0, 1.0], [1.0, -1.0], [3.0, 0.5]])
    assert problems.hard_margin(A) == pytest.approx(1.0)
    X, y = problems.separable(80, 4, 0.4, seed=0)
    A = problems.signed(X, y, True)
    mu = problems.hard_margin(A)
    assert mu >= 0.4 / math.sqrt(1) * 0.99 / max(1, np.linalg.norm(A, axis=1).max())
    wide = LargeStepLogisticRegression(1.0, tol_margin=0.98 * mu / np.linalg.norm(A, axis=1).max(), max_iter=10**6)
    assert 0.98 * mu <= wide.fit(X, y).margin_[0] <= mu


def test_iterates_end_where_the_estimator_does():
    X, y = problems.separable(60, 5, 0.1, seed=1)
    for settings in ({"step_size": math.inf, "normalize": False}, {"step_size": 3.0}):
        thetas = problems.iterates(X, y, **settings)
        model = LargeStepLogisticRegression(**settings).fit(X, y)
        assert len(thetas) == model.n_iter_[0] + 1
        assert (thetas[0] == 0).all()
        scale = 1 if settings["step_size"] == math.inf else settings["step_size"]
        np.testing.assert_array_equal(scale * thetas[-1], np.append(model.coef_, model.intercept_))


def test_the_perceptron_of_the_study_by_hand():
    A = np.array([[1.0, 0.0], [-3.0, 4.0]])
    thetas = problems.batch_perceptron(A)
    np.testing.assert_allclose(thetas[1], [-0.5, 1.0])  # half the mean; the first is wrong
    np.testing.assert_allclose(thetas[2], [0.0, 1.0])  # plus half of it; a margin of 0 is wrong
    np.testing.assert_allclose(thetas[3], [0.5, 1.0])
    assert len(thetas) == 4


def test_thinned_keeps_both_ends():
    values = np.arange(1_001.0)
    kept = study._thinned(values)
    assert kept[0] == (1.0, 1.0)
    assert kept[-1] == (1000.0, 1000.0)
    assert len(kept) <= 150


# --------------------------------------------------------------------------------------------------------------- speed


def test_peers_are_timed_only_where_they_separate():
    X, y = problems.separable(60, 5, 0.5, seed=0)
    for name, model in speed.separating_peers(X, y).items():
        assert model.fit(X, y).score(X, y) == 1.0, name
    labels = np.arange(60) % 2
    assert speed.first_that_separates(speed.PEER_MODELS["LinearSVC"], X, labels) is None


def test_the_smallest_budget_is_the_smallest():
    X, y = problems.separable(60, 5, 0.2, seed=2)
    budget = speed.smallest_budget("Perceptron", X, y)
    make = speed.PEER_MODELS["Perceptron"]
    assert make(**budget).fit(X, y).score(X, y) == 1.0
    fewer = budget["max_iter"] - 1
    if fewer:
        assert make(**(budget | {"max_iter": fewer})).fit(X, y).score(X, y) < 1.0


# ----------------------------------------------------------------------------------------------------------- the study


@pytest.fixture(scope="module")
def tiny():
    return check.run_tiny(study)


def test_tiny_run_reports_every_claim_and_draws(tiny):
    check.check_measured(study, tiny)
    check.check_logged(study, tiny)
    check.check_pictures(study, tiny)
    assert tiny.best_peer.peer in speed.PEER_MODELS


def test_what_does_not_depend_on_size_holds_at_tiny(tiny):
    value = {claim: tiny._measured[claim][0] for claim in tiny.claims if claim in tiny._measured}
    assert value["limit-iterates"] <= 1e-4
    assert value["limit-count"] == 1
    assert value["limit-all-pairs"] <= 1e-4
    assert [value[claim] for claim in study._TABLE] == [2, 2, 16, 157, 308]
    assert value["loss-grows-100"] == value["loss-grows-1000"] == 1
    assert value["faster-each"] >= 5
    assert value["faster-two"] >= 30
    assert value["worst-normalized-count"] <= 5
    assert value["bound"] == 0
    assert 0 < value["bound-share"] <= 1
    assert value["report-true"] == 1


def test_a_wrong_estimator_is_noticed(monkeypatch):
    """The report is checked against the data, not against what the estimator says of itself."""

    class Boaster(LargeStepLogisticRegression):
        def fit(self, X, y, sample_weight=None):
            super().fit(X, y, sample_weight)
            self.separated_ = np.ones_like(self.separated_)
            return self

    monkeypatch.setattr(problems, "LargeStepLogisticRegression", Boaster)
    ctx = Context(study, Job("large-step-logistic", "tiny"))
    study._report(ctx, ctx.data("digits"))
    assert ctx._measured["report-true"][0] < 1
    monkeypatch.setattr(study, "perceptron_bound", lambda *a, **k: 0.01 * perceptron_bound(*a, **k))
    study._bound(ctx)
    assert ctx._measured["bound"][0] > 0


# --------------------------------------------------------------------------------------------------- the paper's scale


class FakeImages:
    """What torchvision's sets give: images and labels; three classes."""

    def __init__(self, root, train=True, download=True):
        assert not download
        rng = np.random.default_rng(0)
        self.targets = [i % 3 for i in range(60)]
        self.images = rng.integers(0, 256, (60, 8, 8, 3), dtype=np.uint8)
        self.images[np.equal(self.targets, 1), :4] //= 2

    def __getitem__(self, i):
        return self.images[i], self.targets[i]


def fake_torchvision(monkeypatch, **missing):
    def absent(*args, **kwargs):
        raise RuntimeError("Dataset not found.")

    sets = {name: absent if name in missing else FakeImages for name in ("MNIST", "FashionMNIST", "CIFAR10", "EuroSAT")}
    sets["EuroSAT"] = absent if "EuroSAT" in missing else lambda root, download: FakeImages(root, download=download)
    module = types.SimpleNamespace(datasets=types.SimpleNamespace(**sets))
    monkeypatch.setattr(paper, "require", lambda *args, **kwargs: module)


def test_the_papers_code_runs_on_made_up_images(monkeypatch):
    fake_torchvision(monkeypatch, CIFAR10=True)
    ctx = Context(study, Job("large-step-logistic", "paper", max_steps=50))
    study.run(ctx)
    for name in paper.TITLES:
        faster, unbalanced = (ctx._measured[f"paper-{kind}-{name}"] for kind in ("faster", "unbalanced"))
        if name in ("cifar10", "libsvm"):
            assert faster[0] is None
            assert ("CIFAR-10 is not below" if name == "cifar10" else "not asked for") in faster[2]
        else:
            assert 0 < faster[0] <= 50
            assert 0 < unbalanced[0] <= 50


def test_the_papers_code_reads_libsvm_files(tmp_path):
    from sklearn.datasets import dump_svmlight_file

    X, y = problems.separable(40, 6, 0.5, seed=0)
    dump_svmlight_file(X, y, str(tmp_path / "set.txt"))
    job = Job("large-step-logistic", "paper", data=str(tmp_path / "set.txt"), options={"dataset": "libsvm"})
    record, _ = run_study(job)
    assert record.status == "ok", record.traceback
    values = {c.id: c.value for c in record.claims}
    assert values["paper-faster-libsvm"] >= 1
    assert values["paper-faster-mnist"] is None


def test_the_papers_scale_says_what_is_missing(monkeypatch):
    def broken(*args, **kwargs):
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(paper, "require", broken)
    with pytest.raises(Unavailable, match="does not load here: operator"):
        study.run(Context(study, Job("large-step-logistic", "paper")))
    fake_torchvision(monkeypatch, MNIST=True)
    with pytest.raises(Unavailable, match="MNIST is not below"):
        study.run(Context(study, Job("large-step-logistic", "paper", options={"dataset": "mnist"})))
    with pytest.raises(Unavailable, match="--data PATH"):
        study.run(Context(study, Job("large-step-logistic", "paper", options={"dataset": "libsvm"})))
    with pytest.raises(ValueError, match="option dataset must be one of"):
        study.run(Context(study, Job("large-step-logistic", "paper", options={"dataset": "imagenet"})))


def test_two_classes_of_at_most_five_thousand():
    X, y = np.arange(18_000.0)[:, None], np.repeat([4, 2, 7], 6_000)
    rows, labels = paper.two_classes((X, y), seed=0)
    assert rows.shape == (5_000, 1)
    assert set(labels.tolist()) == {-1, 1}
    assert ((rows[:, 0] < 6_000) == (labels == 1)).all()


# ------------------------------------------------------------------------------------------------------------ the texts


def test_the_snippet_and_the_page_run():
    check.check_texts(study)
