"""What the tools that watch training share: a quiet look at the model, and the callbacks of two trainers.

The callbacks are tested against stand-ins of the packages, and against the packages where they are installed.
"""

import sys
import types

import pytest
import torch
from torch import nn

from steepest.core.extras import MissingExtra
from steepest.landscape import DiagonalLinear, StabilityMonitor
from steepest.landscape import _training as training
from steepest.landscape._training import (
    lightning_callback,
    measuring,
    trainer_callback,
    unwrap_model,
    unwrap_optimizer,
)


class Tool:
    """Notes what it is told."""

    def __init__(self):
        self.calls = []

    def attach(self, optimizer):
        self.calls.append(optimizer)

    def detach(self):
        self.calls.append(None)


def sgd():
    return torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)


# ------------------------------------------------------------------------------------------------------- models, modes


def test_measuring_puts_every_mode_back_also_after_an_error():
    model = nn.Sequential(nn.Linear(1, 1), nn.BatchNorm1d(1), nn.Sequential(nn.Dropout()))
    model.train()
    model[1].eval()
    before = [m.training for m in model.modules()]
    with measuring(model):
        assert not any(m.training for m in model.modules())
    assert [m.training for m in model.modules()] == before
    with pytest.raises(KeyError), measuring(model):
        raise KeyError
    assert [m.training for m in model.modules()] == before


def test_models_behind_wrappers():
    model = nn.Linear(1, 1)
    assert unwrap_model(model) is model
    assert unwrap_model(nn.DataParallel(model)) is model
    assert unwrap_model(torch.compile(model)) is model
    assert unwrap_model(nn.DataParallel(torch.compile(model))) is model


def test_a_model_with_a_part_called_module_is_not_unwrapped():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.module = nn.Linear(1, 1)

    model = Model()
    assert unwrap_model(model) is model


def test_optimizers_behind_wrappers():
    optimizer = sgd()
    accelerate, lightning = types.SimpleNamespace(optimizer=optimizer), types.SimpleNamespace(_optimizer=optimizer)
    assert unwrap_optimizer(optimizer) is optimizer
    assert unwrap_optimizer(accelerate) is optimizer
    assert unwrap_optimizer(lightning) is optimizer
    wrapped = sgd()
    wrapped.optimizer = optimizer  # a wrapper that is an optimizer itself
    assert unwrap_optimizer(wrapped) is optimizer


# ------------------------------------------------------------------------------------------------ stand-ins, no package


@pytest.fixture
def no_trainers(monkeypatch):
    for name in [m for m in sys.modules if m.split(".")[0] in ("lightning", "pytorch_lightning", "transformers")]:
        monkeypatch.delitem(sys.modules, name)
    for name in ("lightning", "pytorch_lightning", "transformers"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(training, "installed", lambda name: sys.modules.get(name) is not None)
    return monkeypatch


def stand_in(monkeypatch, name, **members):
    module = types.ModuleType(name)
    vars(module).update(members)
    monkeypatch.setitem(sys.modules, name, module)
    return module


@pytest.mark.parametrize("package", ["lightning", "pytorch_lightning"])
def test_lightning_follows_the_one_optimizer_and_lets_go(no_trainers, package):
    callbacks = types.SimpleNamespace(Callback=object)
    if package == "lightning":
        stand_in(no_trainers, "lightning")
        stand_in(no_trainers, "lightning.pytorch", callbacks=callbacks)
    else:
        stand_in(no_trainers, "pytorch_lightning", callbacks=callbacks)
    tool, optimizer = Tool(), sgd()
    callback = lightning_callback(tool)
    wrapper = types.SimpleNamespace(_optimizer=optimizer)
    callback.on_train_start(types.SimpleNamespace(optimizers=[wrapper]), None)
    callback.on_train_end(None, None)
    callback.on_exception(None, None, KeyboardInterrupt())
    assert tool.calls == [optimizer, None, None]
    with pytest.raises(ValueError, match="Tool follows one optimizer, the module configures 2"):
        callback.on_train_start(types.SimpleNamespace(optimizers=[wrapper, wrapper]), None)


def test_the_trainer_follows_its_optimizer_and_lets_go(no_trainers):
    stand_in(no_trainers, "transformers", TrainerCallback=object)
    tool, optimizer = Tool(), sgd()
    callback = trainer_callback(tool)
    callback.on_train_begin(None, None, None, optimizer=types.SimpleNamespace(optimizer=optimizer), model=None)
    callback.on_train_end(None, None, None)
    assert tool.calls == [optimizer, None]


def test_missing_packages_are_named(no_trainers):
    monitor = StabilityMonitor(
        DiagonalLinear(2), nn.MSELoss(), torch.ones(2, 2), torch.ones(2, 1), every=1, batch_size=1
    )
    with pytest.raises(ImportError, match=r"StabilityMonitor\.as_lightning_callback needs lightning: pip install"):
        monitor.as_lightning_callback()
    with pytest.raises(MissingExtra, match=r"StabilityMonitor\.as_trainer_callback needs transformers: pip install"):
        monitor.as_trainer_callback()


# ---------------------------------------------------------------------------------------------- the packages themselves

X = torch.eye(4)
Y = torch.full((4, 1), 0.3)


def monitor_of(model):
    return StabilityMonitor(model, nn.MSELoss(), X, Y, every=2, batch_size=2)


@pytest.mark.filterwarnings("ignore")  # the packages' own
@pytest.mark.parametrize("package", ["lightning.pytorch", "pytorch_lightning"])
def test_with_lightning(package, tmp_path):
    pl = pytest.importorskip(package)

    class Module(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = DiagonalLinear(4, scale=0.5)

        def training_step(self, batch, _):
            x, y = batch
            return nn.functional.mse_loss(self.net(x), y)

        def configure_optimizers(self):
            return torch.optim.SGD(self.net.parameters(), lr=0.05)

    module = Module()
    monitor = monitor_of(module.net)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X, Y), batch_size=2)
    trainer = pl.Trainer(
        max_epochs=3,
        callbacks=[monitor.as_lightning_callback()],
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(module, loader)
    assert [r.step for r in monitor.history] == [2, 4, 6]
    assert monitor.last.lr == 0.05
    assert monitor._handle is None


@pytest.mark.filterwarnings("ignore")  # the packages' own
def test_with_the_trainer(tmp_path):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = DiagonalLinear(4, scale=0.5)

        def forward(self, x, labels):
            f = self.net(x)
            return {"loss": nn.functional.mse_loss(f, labels), "logits": f}

    model = Model()
    monitor = monitor_of(model.net)
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path), max_steps=6, per_device_train_batch_size=2, report_to=[], save_strategy="no",
        disable_tqdm=True, use_cpu=True,
    )  # fmt: skip
    trainer = transformers.Trainer(
        model=model,
        args=arguments,
        train_dataset=[{"x": x, "labels": y} for x, y in zip(X, Y)],
        optimizers=(torch.optim.SGD(model.parameters(), lr=0.05), None),
        callbacks=[monitor.as_trainer_callback()],
    )
    trainer.train()
    assert [r.step for r in monitor.history] == [2, 4, 6]
    assert monitor._handle is None
