"""Image-like tasks that need nothing: scikit-learn's digits, generated tones, Olivetti faces where cached.

They judge on two halves: ``tune`` (half A) and ``held-out`` (half B). CIFAR, ImageNet and the networks for them are in
`studies.image_training`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from steepest.core.errors import at_least, check, one_of, value_error
from steepest.core.random import torch_generator
from steepest.studies.training import Split, Task, fresh_model

__all__ = [
    "ConvNet",
    "ImageSplit",
    "ToneNet",
    "classification_task",
    "conv_bn",
    "digits",
    "mlp",
    "olivetti",
    "tones",
]

# ------------------------------------------------------------------------------------------------------------ data


@dataclass(frozen=True)
class ImageSplit:
    """Images and labels for training, for tuning (half A) and held out (half B).

    Attributes
    ----------
    x_train, x_tune, x_test : Tensor (n, *shape), float32
        Scaled with the mean and standard deviation of the training part.
    y_train, y_tune, y_test : LongTensor (n,)
    """

    name: str
    x_train: Tensor
    y_train: Tensor
    x_tune: Tensor
    y_tune: Tensor
    x_test: Tensor
    y_test: Tensor

    @property
    def n_classes(self) -> int:
        """Number of classes."""
        return int(self.y_train.max()) + 1

    def flat(self) -> ImageSplit:
        """The same with images as vectors."""
        x = (self.x_train, self.x_tune, self.x_test)
        a, b, c = (t.flatten(1) for t in x)
        return ImageSplit(self.name, a, self.y_train, b, self.y_tune, c, self.y_test)


def _split(name: str, x: np.ndarray, y: np.ndarray, n_train: int, seed: int) -> ImageSplit:
    """Split with the same share of every class in each part."""
    from sklearn.model_selection import train_test_split

    check("n_train", n_train, at_least(len(np.unique(y)), integer=True))
    if n_train > len(x) - 2 * len(np.unique(y)):
        raise value_error("n_train", f"at most {len(x) - 2 * len(np.unique(y))}", n_train)
    x_train, x_rest, y_train, y_rest = train_test_split(x, y, train_size=n_train, stratify=y, random_state=seed)
    x_tune, x_test, y_tune, y_test = train_test_split(
        x_rest, y_rest, train_size=0.5, stratify=y_rest, random_state=seed
    )
    mean, std = x_train.mean(), x_train.std()
    parts: list[Tensor] = []
    for images, labels in ((x_train, y_train), (x_tune, y_tune), (x_test, y_test)):
        parts += [
            torch.from_numpy(((images - mean) / std).astype(np.float32)),
            torch.from_numpy(labels.astype(np.int64)),
        ]
    return ImageSplit(name, *parts)


def digits(n_train: int = 300, *, seed: int = 0) -> ImageSplit:
    """Scikit-learn's 1,797 handwritten digits of 8 x 8 pixels: images (n, 1, 8, 8).

    Examples
    --------
    >>> data = digits(300)
    >>> tuple(data.x_train.shape), len(data.y_tune) + len(data.y_test)
    ((300, 1, 8, 8), 1497)
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return _split("digits", bunch.images[:, None], bunch.target, n_train, seed)


def olivetti(n_train: int = 200, *, seed: int = 0) -> ImageSplit | None:
    """The 400 Olivetti faces at 32 x 32 where scikit-learn has them cached, otherwise None (nothing is downloaded)."""
    from sklearn.datasets import fetch_olivetti_faces

    try:
        bunch = fetch_olivetti_faces(download_if_missing=False)
    except OSError:
        return None
    small = bunch.images.reshape(-1, 32, 2, 32, 2).mean((2, 4))
    return _split("olivetti", small[:, None], bunch.target, n_train, seed)


def tones(
    n_train: int = 600, *, n: int = 2400, n_classes: int = 8, length: int = 256, noise: float = 0.3, seed: int = 0
) -> ImageSplit:
    """Generate sounds: (n, 1, length) waveforms whose class is the mixture of harmonics, whatever pitch and phase.

    A sound is a sum of six harmonics of a random pitch (4 to 9 periods), each with a random phase and an amplitude
    that its class fixes up to 20 %, under a random envelope, plus white noise of standard deviation `noise` times the
    sound's own.
    """
    rng = np.random.default_rng(seed)
    t = np.arange(length) / length
    amplitudes = rng.uniform(0, 1, (n_classes, 6)) ** 2  # (classes, harmonics)
    amplitudes /= np.linalg.norm(amplitudes, axis=1, keepdims=True)
    y = np.arange(n) % n_classes
    pitch = rng.uniform(4, 9, (n, 1, 1))
    phase = rng.uniform(0, 2 * np.pi, (n, 6, 1))
    strength = amplitudes[y] * rng.uniform(0.8, 1.2, (n, 6))
    waves = np.sin(2 * np.pi * pitch * np.arange(1, 7)[:, None] * t + phase)  # (n, harmonics, length)
    sound = np.einsum("nh,nht->nt", strength, waves) * np.exp(-rng.uniform(0, 2, (n, 1)) * t)
    sound += noise * sound.std() * rng.standard_normal(sound.shape)
    return _split("tones", sound[:, None], y, n_train, seed)


# ---------------------------------------------------------------------------------------------------------- models


class ConvNet(nn.Module):
    """Three 3 x 3 convolutions with batch normalization and ReLU, average pooling, a linear layer.

    Examples
    --------
    >>> ConvNet()(torch.zeros(2, 1, 8, 8)).shape
    torch.Size([2, 10])
    """

    def __init__(self, n_classes: int = 10, width: int = 16, channels: int = 1) -> None:
        super().__init__()
        plan = [(channels, width, 1), (width, 2 * width, 2), (2 * width, 2 * width, 1)]
        self.features = nn.Sequential(*(conv_bn(nn.Conv2d, nn.BatchNorm2d, *sizes) for sizes in plan))
        self.head = nn.Linear(2 * width, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (n, channels, h, w) to logits (n, n_classes)."""
        return self.head(self.features(x).mean((2, 3)))


class ToneNet(nn.Module):
    """The one-dimensional sibling of `ConvNet`, for waveforms (n, 1, length)."""

    def __init__(self, n_classes: int = 8, width: int = 16) -> None:
        super().__init__()
        plan = [(1, width, 4), (width, 2 * width, 2), (2 * width, 2 * width, 2)]
        self.features = nn.Sequential(*(conv_bn(nn.Conv1d, nn.BatchNorm1d, *sizes, kernel=9) for sizes in plan))
        self.head = nn.Linear(2 * width, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map waveforms to logits (n, n_classes)."""
        return self.head(self.features(x).mean(2))


def conv_bn(conv: Any, norm: Any, inner: int, outer: int, stride: int, kernel: int = 3) -> nn.Sequential:
    """Convolution without bias, batch normalization, ReLU."""
    return nn.Sequential(conv(inner, outer, kernel, stride, kernel // 2, bias=False), norm(outer), nn.ReLU())


def mlp(*widths: int) -> nn.Sequential:
    """A ReLU network, by default 64-64-32-10.

    Examples
    --------
    >>> sum(p.numel() for p in mlp().parameters())
    6570
    """
    widths = widths or (64, 64, 32, 10)
    layers: list[nn.Module] = []
    for inner, outer in pairwise(widths):
        layers += [nn.Linear(inner, outer), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


# ----------------------------------------------------------------------------------------------------- small tasks


def classification_task(
    data: ImageSplit,
    build: Callable[[], nn.Module],
    *,
    batch: int = 64,
    metric: Literal["accuracy", "loss"] = "accuracy",
    name: str | None = None,
) -> Task:
    """Make a task of a data set and a model.

    Parameters
    ----------
    data : ImageSplit
    build : callable
        ``build() -> Module``.
    batch : int
        Images a step; every epoch is a fresh permutation, its last incomplete batch is left out.
    metric : "accuracy" or "loss"
        Accuracy in percent, or mean cross-entropy in nats.
    """
    check("batch", batch, at_least(1, integer=True))
    check("metric", metric, one_of("accuracy", "loss"))
    batch = min(batch, len(data.x_train))

    def batches(seed: int, steps: int) -> Iterator[tuple[Tensor, Tensor]]:
        generator, left = torch_generator(seed), steps
        while left:
            for rows in torch.randperm(len(data.x_train), generator=generator).split(batch):
                if left and len(rows) == batch:
                    yield data.x_train[rows], data.y_train[rows]
                    left -= 1

    @torch.no_grad()
    def evaluate(model: nn.Module, split: Split) -> float:
        x, y = (data.x_tune, data.y_tune) if split == "tune" else (data.x_test, data.y_test)
        logits = model(x)
        if metric == "loss":
            return float(F.cross_entropy(logits, y))
        return 100 * float((logits.argmax(-1) == y).float().mean())

    accuracy = metric == "accuracy"
    return Task(
        name=name or data.name,
        model=lambda seed: fresh_model(build, seed),
        batches=batches,
        evaluate=evaluate,
        metric="accuracy (%)" if accuracy else "held-out loss (nats)",
        better="higher" if accuracy else "lower",
        facts={"data": data.name, "n_train": len(data.x_train), "n_test": len(data.x_test)},
    )
