"""What tools that watch or steer a training run share: a quiet look at the model, and the trainers' callbacks.

A tool has ``attach(optimizer)`` and ``detach()``; the callbacks call the first when training starts and the second when
it ends (Lightning's also by an exception, of which the Trainer tells its callbacks nothing).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from torch import nn
from torch.optim import Optimizer

from steepest.core.extras import MissingExtra, installed, require

__all__ = ["Attachable", "lightning_callback", "measuring", "trainer_callback", "unwrap_model", "unwrap_optimizer"]


class Attachable(Protocol):
    """A tool that follows an optimizer."""

    def attach(self, optimizer: Optimizer) -> Any:
        """Follow `optimizer`."""

    def detach(self) -> Any:
        """Follow nothing."""


@contextmanager
def measuring(model: nn.Module) -> Iterator[None]:
    """Put every module into evaluation mode, and each back into its own afterwards.

    Dropout draws nothing and batch normalization keeps its buffers; a module that was frozen in evaluation mode stays
    so.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def unwrap_model(model: nn.Module) -> nn.Module:
    """Return the user's module behind DistributedDataParallel, DataParallel and `torch.compile`.

    Their forward passes synchronize buffers or guard on modes, which a measurement must not.
    """
    while True:
        if isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        else:
            return model


def unwrap_optimizer(optimizer: Any) -> Any:
    """Return the optimizer behind the wrappers of Accelerate and Lightning."""
    for name in ("optimizer", "_optimizer"):
        inner = getattr(optimizer, name, None)
        if isinstance(inner, Optimizer):
            return unwrap_optimizer(inner)
    return optimizer


def lightning_callback(tool: Attachable) -> Any:
    """Make a Lightning callback that attaches `tool` to the run's one optimizer.

    Raises
    ------
    ImportError
        Neither ``lightning`` nor ``pytorch_lightning`` is installed.
    """
    package = next((p for p in ("lightning", "pytorch_lightning") if installed(p)), None)
    if package is None:
        raise MissingExtra(f"{type(tool).__name__}.as_lightning_callback", "lightning", None)
    callbacks = require("lightning.pytorch" if package == "lightning" else package).callbacks

    class Follow(callbacks.Callback):  # type: ignore[name-defined,misc,unused-ignore]
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            if len(trainer.optimizers) != 1:
                raise ValueError(
                    f"{type(tool).__name__} follows one optimizer, the module configures {len(trainer.optimizers)}"
                )
            tool.attach(unwrap_optimizer(trainer.optimizers[0]))

        def on_train_end(self, trainer: Any, pl_module: Any) -> None:
            tool.detach()

        def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
            tool.detach()

    return Follow()


def trainer_callback(tool: Attachable) -> Any:
    """Make a callback for Hugging Face's ``Trainer`` that attaches `tool` to its optimizer.

    Raises
    ------
    ImportError
        ``transformers`` is not installed.
    """
    transformers = require("transformers", what=f"{type(tool).__name__}.as_trainer_callback")

    class Follow(transformers.TrainerCallback):  # type: ignore[name-defined,misc,unused-ignore]
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            tool.attach(unwrap_optimizer(kwargs["optimizer"]))

        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            tool.detach()

    return Follow()
