"""Tests of image classification at the papers' size."""

import pytest
import torch
from torch import nn

from steepest.studies import image_training
from steepest.studies.image_training import ResNet, cifar_loaders, imagenet_loaders, train_epochs
from steepest.studies.images import ConvNet, digits
from steepest.studies.task import Curvature


def need_torchvision():
    """Skip where torchvision is missing, or is there and does not fit the installed torch."""
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"torchvision cannot be imported: {error}")


def count(model):
    return sum(p.numel() for p in model.parameters())


def test_parameter_counts():
    assert count(ResNet(20)) == 269_722  # 0.27 M
    assert count(ResNet(32)) == 464_154  # 0.46 M
    assert count(ResNet(20, 100)) == 269_722 + 90 * 65


def test_a_shortcut_subsamples_and_pads_with_zeros():
    block = image_training._Residual(2, 4, 2).eval()
    nn.init.zeros_(block.norm.weight)  # the residual branch vanishes
    x = torch.rand(1, 2, 6, 6)
    expected = torch.cat([x[..., ::2, ::2], torch.zeros(1, 2, 3, 3)], 1)
    assert torch.equal(block(x), expected)
    with pytest.raises(ValueError, match="depth must be 6 n"):
        ResNet(21)


def epochs(optimizer, model, **options):
    data = digits(200)
    train_set = list(zip(data.x_train.split(50), data.y_train.split(50)))
    test_set = list(zip(data.x_test.split(200), data.y_test.split(200)))
    return train_epochs(model, optimizer, train_set, test_set, **options)


def test_train_epochs_follows_the_schedule_and_learns():
    torch.manual_seed(0)
    model, rates = ConvNet(), []

    class Spy(torch.optim.AdamW):
        def step(self, closure=None):
            rates.append(self.param_groups[0]["lr"])
            return super().step(closure)

    result = epochs(Spy(model.parameters(), lr=1e-2), model, epochs=5, lr_factor=lambda e: 1 - e / 5)
    assert rates == pytest.approx([1e-2 * (1 - (e + i / 4) / 5) for e in range(5) for i in range(4)])
    assert result["accuracy"] == result["accuracies"][-1] > 60
    assert result["steps"] == 20
    short = epochs(Spy(model.parameters(), lr=1e-2), model, epochs=5, lr_factor=lambda e: 1.0, max_steps=3)
    assert short["steps"] == 3


def test_train_epochs_feeds_curvature():
    pytest.importorskip("steepest.curvature.diagonal")
    calls, model = [], ConvNet()

    class Asking(torch.optim.SGD):
        def hessian_due(self):
            return True

        def update_hessian(self, loss, *, batch_size=None, weight=1.0):
            calls.append(batch_size)

    epochs(
        Asking(model.parameters(), lr=0.1), model, epochs=1, lr_factor=lambda e: 1.0, curvature=Curvature("gnb", 0.5)
    )
    assert calls == [25] * 4
    assert int(model.features[0][1].num_batches_tracked) == 4


def test_missing_folders_are_named(tmp_path):
    need_torchvision()
    with pytest.raises(FileNotFoundError, match="no CIFAR-10 below"):
        cifar_loaders(tmp_path, workers=0)
    with pytest.raises(FileNotFoundError, match="train is missing"):
        imagenet_loaders(tmp_path, workers=0)


def test_imagenet_folders_are_read(tmp_path):
    need_torchvision()
    from PIL import Image

    for part in ("train", "val"):
        for name in ("cat", "dog"):
            folder = tmp_path / part / name
            folder.mkdir(parents=True)
            for i in range(2):
                Image.new("RGB", (300, 260), (i * 100, 50, 20)).save(folder / f"{i}.png")
    train_set, test_set = imagenet_loaders(tmp_path, batch=2, workers=0)
    x, _ = next(iter(train_set))
    assert x.shape == (2, 3, 224, 224)
    assert sorted(torch.cat([y for _, y in test_set]).tolist()) == [0, 0, 1, 1]
