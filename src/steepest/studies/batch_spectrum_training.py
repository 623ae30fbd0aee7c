"""Many trainings of one network at once: learning rates, momenta and seeds along a leading axis of the parameters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

__all__ = [
    "Data",
    "Grid",
    "SmallConv",
    "digits_data",
    "digits_mlp",
    "independent_batches",
    "initial",
    "losses_of",
    "seeded",
    "train_grid",
]

Stacked = dict[str, Tensor]
LOSS = nn.CrossEntropyLoss()


@dataclass(frozen=True)
class Data:
    """Samples and labels; the training set is all of them."""

    X: Tensor
    y: Tensor

    def __len__(self) -> int:
        return len(self.X)


@dataclass(frozen=True)
class Grid:
    """Settings of R runs of one optimizer: tensors of shape (R,)."""

    lr: Tensor
    momentum: Tensor | None = None  # heavy ball; None: Adam with torch's defaults


class SmallConv(nn.Module):
    """Two convolutions and a linear layer on 8 x 8 images given as rows of 64."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, width, 3, padding=1)
        self.second = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.last = nn.Linear(2 * width * 16, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Map rows (n, 64) to logits (n, 10)."""
        x = torch.relu(self.first(x.view(-1, 1, 8, 8)))
        return self.last(torch.relu(self.second(x)).flatten(1))


def digits_data() -> Data:
    """Load all 1,797 digits, every pixel standardized."""
    from sklearn.datasets import load_digits
    from sklearn.preprocessing import StandardScaler

    X, y = load_digits(return_X_y=True)
    return Data(torch.tensor(StandardScaler().fit_transform(X), dtype=torch.float32), torch.tensor(y))


def digits_mlp() -> nn.Module:
    """Make the network 64-32-10 of the study."""
    return nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10))


def seeded(make: Callable[[], nn.Module], seed: int) -> nn.Module:
    """Make a network with torch's own initialization from a seed, the global random state left as it was."""
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return make()


def initial(models: Sequence[nn.Module], repeats: int = 1) -> Stacked:
    """Stack the parameters of networks, each `repeats` times in a row."""
    return {
        name: torch.stack([dict(m.named_parameters())[name].detach() for m in models]).repeat_interleave(repeats, 0)
        for name, _ in models[0].named_parameters()
    }


def losses_of(model: nn.Module, theta: Stacked, data: Data) -> Tensor:  # (R,)
    """Full training loss of every run."""

    def loss(one: Stacked) -> Tensor:
        return LOSS(functional_call(model, one, (data.X,)), data.y)

    with torch.no_grad():
        return vmap(loss)(theta)


def train_grid(model: nn.Module, theta: Stacked, data: Data, grid: Grid, batches: Tensor) -> Stacked:
    """Train R runs at once; a run that diverges keeps going with numbers that are not finite.

    Parameters
    ----------
    model : torch.nn.Module
        Gives the function alone.
    theta : dict of str to Tensor of shape (R, ...)
    data : Data
    grid : Grid
    batches : Tensor of shape (steps, B) or (steps, R, B)
        Indices of samples, the same for all runs or of each.

    Returns
    -------
    dict of str to Tensor of shape (R, ...)
        Parameters at the end.
    """

    def loss(one: Stacked, x: Tensor, y: Tensor) -> Tensor:
        return LOSS(functional_call(model, one, (x,)), y)

    own = 0 if batches.ndim == 3 else None
    gradient = vmap(grad(loss), in_dims=(0, own, own))
    theta = {name: p.clone() for name, p in theta.items()}
    shape = {name: (-1,) + (1,) * (p.ndim - 1) for name, p in theta.items()}
    first = {name: torch.zeros_like(p) for name, p in theta.items()}
    second = {name: torch.zeros_like(p) for name, p in theta.items()} if grid.momentum is None else {}
    lr = {name: grid.lr.view(s) for name, s in shape.items()}
    for t, index in enumerate(batches):
        for name, g in gradient(theta, data.X[index], data.y[index]).items():
            p, m = theta[name], first[name]
            if grid.momentum is not None:
                m.mul_(grid.momentum.view(shape[name])).add_(g)
                p.sub_(lr[name] * m)
            else:
                m.lerp_(g, 0.1)
                v = second[name].mul_(0.999).addcmul_(g, g, value=0.001)
                step = m / (1 - 0.9 ** (t + 1)) / ((v / (1 - 0.999 ** (t + 1))).sqrt_().add_(1e-8))
                p.sub_(lr[name] * step)
    return theta


def independent_batches(n: int, batch_size: int, steps: int, seed: int) -> Tensor:  # (steps, B)
    """Draw batches without replacement, each on its own, as the theory has them."""
    rng = np.random.default_rng([seed, batch_size])
    return torch.from_numpy(np.stack([rng.choice(n, batch_size, replace=False) for _ in range(steps)]))
