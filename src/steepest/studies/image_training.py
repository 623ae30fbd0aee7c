"""Image classification at the papers' size: CIFAR and ImageNet by path, residual networks, training by epochs.

`train_epochs` takes any optimizer, those that want curvature (``hessian_due``, ``update_hessian``) included.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable, Sized
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from steepest.core.errors import value_error
from steepest.core.extras import require
from steepest.core.random import torch_generator
from steepest.studies.images import conv_bn
from steepest.studies.task import Curvature, cross_entropy, estimate_curvature

__all__ = ["ResNet", "cifar_loaders", "imagenet_loaders", "train_epochs"]


class ResNet(nn.Module):
    """The residual network for CIFAR: 6 n + 2 layers, widths 16, 32, 64, shortcuts without parameters.

    Parameters
    ----------
    depth : int
        20, 32, 44, 56, ...: 6 n + 2.
    n_classes : int

    Notes
    -----
    He et al. 2016, section 4.2, option A (subsampling and zero padding): 0.27 M parameters at depth 20, 0.46 M at 32.
    """

    def __init__(self, depth: int = 20, n_classes: int = 10) -> None:
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise value_error("depth", "6 n + 2 with n >= 1", depth)
        n = (depth - 2) // 6
        plan = [(16, 16, 1)] * n + [(16, 32, 2)] + [(32, 32, 1)] * (n - 1) + [(32, 64, 2)] + [(64, 64, 1)] * (n - 1)
        self.stem = conv_bn(nn.Conv2d, nn.BatchNorm2d, 3, 16, 1)
        self.blocks = nn.Sequential(*(_Residual(*sizes) for sizes in plan))
        self.head = nn.Linear(64, n_classes)
        for m in self.modules():
            if isinstance(m, nn.Conv2d):
                nn.init.kaiming_normal_(m.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Map images (n, 3, 32, 32) to logits (n, n_classes)."""
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


class _Residual(nn.Module):
    def __init__(self, inner: int, outer: int, stride: int) -> None:
        super().__init__()
        self.first = conv_bn(nn.Conv2d, nn.BatchNorm2d, inner, outer, stride)
        self.conv, self.norm = nn.Conv2d(outer, outer, 3, 1, 1, bias=False), nn.BatchNorm2d(outer)
        self.stride, self.padding = stride, outer - inner

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.stride == 1 else F.pad(x[..., ::2, ::2], (0, 0, 0, 0, 0, self.padding))
        return F.relu(self.norm(self.conv(self.first(x))) + shortcut)


def cifar_loaders(
    folder: str | os.PathLike[str],
    *,
    n_classes: Literal[10, 100] = 10,
    batch: int = 128,
    workers: int = 4,
    seed: int = 0,
) -> tuple[Iterable[tuple[Tensor, Tensor]], Iterable[tuple[Tensor, Tensor]]]:
    """Training and test batches of CIFAR-10 or CIFAR-100 below `folder` (torchvision's layout; nothing is downloaded).

    Training images are padded by 4, cropped at random and flipped, as is usual for these sets.
    """
    vision, transforms = require("torchvision", "data", what="CIFAR"), require("torchvision.transforms", "data")
    kind = vision.datasets.CIFAR10 if n_classes == 10 else vision.datasets.CIFAR100
    scaled = [transforms.ToTensor(), transforms.Normalize((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))]
    augmented = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip(), *scaled]
    try:
        train = kind(str(folder), train=True, transform=transforms.Compose(augmented), download=False)
        test = kind(str(folder), train=False, transform=transforms.Compose(scaled), download=False)
    except RuntimeError as error:
        raise FileNotFoundError(
            f"no CIFAR-{n_classes} below {Path(folder)}: torchvision's layout is expected"
        ) from error
    return _loaders(train, test, batch, workers, seed)


def imagenet_loaders(
    folder: str | os.PathLike[str], *, batch: int = 256, workers: int = 8, seed: int = 0
) -> tuple[Iterable[tuple[Tensor, Tensor]], Iterable[tuple[Tensor, Tensor]]]:
    """Training and validation batches of ImageNet: `folder` holds ``train/<class>/*`` and ``val/<class>/*``."""
    vision, transforms = require("torchvision", "data", what="ImageNet"), require("torchvision.transforms", "data")
    scaled = [transforms.ToTensor(), transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))]
    augmented = [transforms.RandomResizedCrop(224), transforms.RandomHorizontalFlip(), *scaled]
    cropped = [transforms.Resize(256), transforms.CenterCrop(224), *scaled]
    for part in ("train", "val"):
        if not (Path(folder) / part).is_dir():
            raise FileNotFoundError(f"{Path(folder) / part} is missing: it holds one folder of images per class")
    train = vision.datasets.ImageFolder(str(Path(folder) / "train"), transforms.Compose(augmented))
    test = vision.datasets.ImageFolder(str(Path(folder) / "val"), transforms.Compose(cropped))
    return _loaders(train, test, batch, workers, seed)


def _loaders(train: Any, test: Any, batch: int, workers: int, seed: int) -> tuple[Any, Any]:
    from torch.utils.data import DataLoader

    cuda = torch.cuda.is_available()
    common: dict[str, Any] = {
        "batch_size": batch,
        "num_workers": workers,
        "pin_memory": cuda,
        "persistent_workers": workers > 0,
    }
    shuffled = DataLoader(train, shuffle=True, drop_last=True, generator=torch_generator(seed), **common)
    return shuffled, DataLoader(test, shuffle=False, **common)


def train_epochs(
    model: nn.Module,
    optimizer: Optimizer,
    train: Iterable[tuple[Tensor, Tensor]],
    test: Iterable[tuple[Tensor, Tensor]],
    *,
    epochs: int,
    lr_factor: Callable[[float], float],
    curvature: Curvature | None = None,
    clip: float | None = None,
    autocast: bool = False,
    max_steps: int | None = None,
    seed: int = 0,
    on_epoch: Callable[[int, float], None] | None = None,
) -> dict[str, Any]:
    """Train a classifier by epochs with any optimizer.

    Parameters
    ----------
    model : Module
        On its device already; batches follow it.
    train, test : iterables of (x, y)
        Gone through once an epoch.
    lr_factor : callable
        ``lr_factor(epoch)`` multiplies every group's learning rate; `epoch` is fractional, from 0 to `epochs`.
    curvature : Curvature, optional
        How the optimizer gets its estimates.
    clip : float, optional
        Largest gradient norm.
    autocast : bool
        Forward passes in bfloat16.
    max_steps : int, optional
        Stop after so many steps, whatever `epochs` says.

    Returns
    -------
    dict
        ``accuracy`` (in percent, after the last epoch), ``accuracies`` per epoch, ``steps``, ``seconds``.
    """
    device = next(model.parameters()).device
    peaks = [group["lr"] for group in optimizer.param_groups]
    params = [p for p in model.parameters() if p.requires_grad]
    labels = torch_generator(seed, device)
    amp: Callable[[], AbstractContextManager[Any]] = (
        (lambda: torch.autocast(device.type, torch.bfloat16)) if autocast else nullcontext
    )
    graph_each = curvature.each if curvature and curvature.kind == "create_graph" else 0
    explicit = curvature if curvature and not graph_each else None
    per_epoch = len(train) if isinstance(train, Sized) else None
    step, accuracies = 0, []
    start = time.perf_counter()
    for epoch in range(epochs):
        model.train()
        for i, (x, y) in enumerate(train):
            x, y = x.to(device, non_blocking=True), y.to(device, non_blocking=True)
            factor = lr_factor(epoch + (i / per_epoch if per_epoch else 0.0))
            for group, peak in zip(optimizer.param_groups, peaks):
                group["lr"] = peak * factor
            if explicit is not None and optimizer.hessian_due():  # type: ignore[attr-defined]
                with amp():
                    estimate_curvature(optimizer, model, x, y, explicit, generator=labels)
            optimizer.zero_grad(set_to_none=True)
            with amp():
                loss = cross_entropy(model, x, y)
            if graph_each and step % graph_each == 0:
                for p, g in zip(params, torch.autograd.grad(loss, params, create_graph=True)):
                    p.grad = g
            else:
                loss.backward()
            if clip is not None:
                nn.utils.clip_grad_norm_(params, clip)
            optimizer.step()
            step += 1
            if max_steps is not None and step >= max_steps:
                break
        accuracies.append(_accuracy(model, test, device, amp))
        if on_epoch is not None:
            on_epoch(epoch + 1, accuracies[-1])
        if max_steps is not None and step >= max_steps:
            break
    seconds = time.perf_counter() - start
    return {"accuracy": accuracies[-1], "accuracies": accuracies, "steps": step, "seconds": seconds}


@torch.no_grad()
def _accuracy(
    model: nn.Module,
    test: Iterable[tuple[Tensor, Tensor]],
    device: torch.device,
    amp: Callable[[], AbstractContextManager[Any]],
) -> float:
    model.eval()
    right, count = torch.zeros((), dtype=torch.long, device=device), 0
    for x, y in test:
        with amp():
            guess = model(x.to(device, non_blocking=True)).argmax(-1)
        right += (guess == y.to(device, non_blocking=True)).sum()
        count += len(y)
    return 100 * int(right) / count if count else math.nan
