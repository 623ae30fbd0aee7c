"""Tests of the image-like tasks."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from steepest.studies.images import (
    ConvNet,
    ToneNet,
    classification_task,
    digits,
    mlp,
    olivetti,
    tones,
)
from steepest.studies.training import Contender, train


def count(model):
    return sum(p.numel() for p in model.parameters())


def test_parameter_counts():
    assert count(mlp()) == 64 * 64 + 64 + 64 * 32 + 32 + 32 * 10 + 10
    assert count(ConvNet()) == 9 * (16 + 16 * 32 + 32 * 32) + 2 * (16 + 32 + 32) + 32 * 10 + 10
    assert count(ToneNet()) == 9 * (16 + 16 * 32 + 32 * 32) + 2 * (16 + 32 + 32) + 32 * 8 + 8


def test_the_parts_of_the_digits_are_disjoint_and_complete():
    from sklearn.datasets import load_digits

    data = digits(300)
    parts = [data.x_train, data.x_tune, data.x_test]
    assert [len(p) for p in parts] == [300, 748, 749]
    whole = load_digits().images
    rows = torch.cat(parts).flatten(1).double().numpy()
    scale = (whole.max() - whole.min()) / (rows.max() - rows.min())
    back = np.round((rows - rows.min()) * scale).astype(int)
    assert sorted(map(tuple, back)) == sorted(map(tuple, whole.reshape(-1, 64).astype(int)))
    assert float(data.x_train.mean()) == pytest.approx(0, abs=1e-5)
    assert float(data.x_train.std(correction=0)) == pytest.approx(1, rel=1e-5)
    for labels in (data.y_train, data.y_tune, data.y_test):
        share = torch.bincount(labels, minlength=10) / len(labels)
        assert bool(((share - 0.1).abs() < 0.01).all())
    assert torch.equal(digits(300).x_test, data.x_test)
    assert not torch.equal(digits(300, seed=1).x_test, data.x_test)
    assert digits(1200).flat().x_tune.shape[1] == 64


def test_too_many_training_images_are_refused():
    with pytest.raises(ValueError, match="n_train must be at most 1777, got 1797"):
        digits(1797)


def test_tones_depend_on_their_seed_and_can_be_told_apart():
    data = tones(seed=3)
    assert torch.equal(data.x_train, tones(seed=3).x_train)
    assert data.x_train.shape[1:] == (1, 256)
    adam = Contender("Adam", lambda params, lr: torch.optim.Adam(params, lr=lr), 3e-3, {})
    accuracy = train(classification_task(data, ToneNet), adam, {"lr": 3e-3}, steps=150, seed=1).value
    assert 70 < accuracy < 99  # neither hopeless (12.5 by chance) nor solved


def test_olivetti_is_never_downloaded(monkeypatch, tmp_path):
    monkeypatch.setenv("SCIKIT_LEARN_DATA", str(tmp_path))
    assert olivetti() is None


def test_every_epoch_shows_every_image_once():
    data = digits(300)
    task = classification_task(data, ConvNet, batch=50)
    seen = torch.cat([x for x, _ in task.batches(5, 12)]).flatten(1)
    for epoch in (seen[:300], seen[300:]):
        assert len(torch.unique(epoch, dim=0)) == len(torch.unique(data.x_train.flatten(1), dim=0))
    assert not torch.equal(seen[:300], seen[300:])
    assert len(list(classification_task(data, ConvNet, batch=64).batches(0, 9))) == 9
    assert len(list(classification_task(data, ConvNet, batch=1000).batches(0, 3))) == 3


def test_accuracy_is_in_percent_on_the_half_asked_for():
    data = digits(300).flat()

    class Oracle(nn.Module):
        def __init__(self, x, y):
            super().__init__()
            self.known = {tuple(r.tolist()): int(c) for r, c in zip(x, y)}

        def forward(self, x):
            return nn.functional.one_hot(torch.tensor([self.known.get(tuple(r.tolist()), 0) for r in x]), 10).float()

    task = classification_task(data, mlp)
    oracle = Oracle(data.x_test, data.y_test)
    assert task.evaluate(oracle, "held-out") == 100.0
    assert task.evaluate(oracle, "tune") == pytest.approx(100 * float((data.y_tune == 0).float().mean()), abs=1.0)
    loss = classification_task(data, mlp, metric="loss").evaluate(task.model(0), "tune")
    assert loss == pytest.approx(math.log(10), rel=0.1)
