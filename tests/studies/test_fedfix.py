"""Tests of the FedFix study: curves, closed forms, the paper's images made up, and a tiny run."""

import json
import sys
import types

import numpy as np
import pytest
import torch

from steepest.studies import fedfix as study
from steepest.studies import fedfix_engine as engine
from steepest.studies import fedfix_paper as paper
from steepest.studies import fedfix_training as training
from steepest.studies.context import Context, Job, Unavailable
from tests.studies import check_study as check


def test_curves_tell_when_they_arrive_and_how_they_jitter():
    t = np.linspace(0, 100, 1001)
    steady = training.Curve(t, np.exp(-0.01 * t), 0, 0)
    assert steady.reached == pytest.approx(100 * np.log(2), abs=0.1)
    assert steady.residual < 1e-12
    wavy = training.Curve(t, np.exp(-0.01 * t + 0.1 * np.sin(t)), 0, 0)
    assert wavy.residual == pytest.approx(0.1 / np.sqrt(2), rel=0.05)
    assert training.Curve(t, np.ones(1001), 0, 0).reached == np.inf


def test_every_client_counts_the_same_in_the_objective():
    there = training.digits_federation(1)
    sums = [float(there.weights[part].sum()) for part in there.parts]
    assert sums == pytest.approx([0.1] * 10)
    state = dict(there.network.state_dict())
    X, y = there.data
    with torch.no_grad():
        losses = [float(torch.nn.functional.cross_entropy(there.network(X[p]), y[p])) for p in there.parts]
    assert there.loss(state) == pytest.approx(np.mean(losses), rel=1e-5)
    again = training.digits_federation(1)
    assert all(torch.equal(a, b) for a, b in zip(there.network.parameters(), again.network.parameters(), strict=True))


def test_training_depends_on_the_seed_alone():
    a, b = (training.train(training.Run("FedFix, 0.5", 0.05, 1, 4.0)) for _ in range(2))
    assert np.array_equal(a.losses, b.losses)
    assert a.losses[-1] < a.losses[0]


@pytest.fixture(scope="module")
def ctx():
    return check.run_tiny(study)


def test_what_the_study_measures(ctx):
    check.check_measured(study, ctx, unless=("flwr", "not at tiny"), infinite=("async-lr", "fedfix-earlier"))
    value = {name: m[0] for name, m in ctx._measured.items()}
    assert value["limits"] <= 1e-12
    assert value["by-hand"] <= 1e-6
    assert value["deterministic"] == value["resume"] == 1
    assert value["chi2-fedfix"] == pytest.approx(0.1224, rel=0.02)
    assert value["chi2-unbiased"] < 1e-3
    assert value["memory"] < 2
    assert value["tasks-per-second"] > 500


def test_its_figures_and_texts(ctx):
    check.check_logged(study, ctx)


def test_its_texts_run():
    check.check_texts(study)


def test_the_replay_of_ray_and_emulated_times_are_measured_by_name():
    names = {c.id for c in study.CLAIMS if "Ray" in c.says}
    assert {"replay", "flower-ray", "faults-dropped", "emulated-ticks"} <= names
    assert callable(engine.measure_real)


def test_the_papers_images(monkeypatch):
    def images(shape):
        def load(folder, train, download):
            rng = np.random.default_rng(0)
            return types.SimpleNamespace(
                data=rng.integers(0, 255, (400, *shape), dtype=np.uint8), targets=np.arange(400) % 10
            )

        return load

    sets = types.SimpleNamespace(MNIST=images((28, 28)), CIFAR10=images((32, 32, 3)))
    monkeypatch.setitem(sys.modules, "torchvision", types.SimpleNamespace(datasets=sets))
    monkeypatch.setattr(paper, "LRS", (0.01,))
    monkeypatch.setattr(paper, "STEPS", 1)
    whole = paper.convolutional()
    monkeypatch.setattr(paper, "convolutional", lambda: torch.nn.Sequential(torch.nn.Flatten(), training.mlp(3072, 10)))
    found = Context(study, Job("fedfix", "paper", n_seeds=1, max_steps=1))
    study.run(found)
    assert {name for name, m in found._measured.items() if m[0] is not None} == {
        f"paper-{name}{ending}" for name in ("mnist", "cifar10") for ending in ("", "-even")
    }
    assert whole(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_the_papers_roles(tmp_path, monkeypatch):
    folder = tmp_path / "shakespeare"
    folder.mkdir()
    lines = {f"ROLE {k}": {"x": ["to be or not to be that is"] * (3 + k), "y": list("abc" + "d" * k)} for k in range(4)}
    (folder / "all.json").write_text(json.dumps({"users": list(lines), "user_data": lines}))
    X, y, parts, n = paper._roles(tmp_path, 3)
    assert [len(part) for part in parts] == [6, 5, 4]  # those with most lines
    assert X.shape == (15, 26)
    assert n == len(set("to be or not to be that is" + "abcd"))
    assert torch.equal(y[parts[2]], y[parts[0]][:4])
    there = paper.role_federation(0, roles=(X, y, parts, n))
    monkeypatch.setattr(training, "ROWS", 2)
    curve = training.train(training.Run("FedAvg", 0.1, 0, 2.0, 1, spread=0.0), lambda seed: there)
    assert curve.n_aggregations == 2
    with pytest.raises(Unavailable, match="4 roles"):
        paper._roles(tmp_path, 5)
    with pytest.raises(Unavailable, match="LEAF"):
        paper._roles(folder, 3)
