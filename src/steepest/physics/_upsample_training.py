"""The learned weights of inferred points, orders 0 and 1: a small network of the distance, and its training."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from steepest.physics._particle_data import Trajectory
from steepest.physics._particle_network import mlp
from steepest.physics._upsampling import default_radius, kernel_weights, neighbor_lists

__all__ = ["DistanceKernel", "train_kernel"]

WIDTH = 32
QUERIES = 512  # points of one step


class DistanceKernel(nn.Module):
    """kappa = -4 |r|^2 + MLP[|r|, r], where r is the relative position in units of the radius; the MLP starts at 0."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.network = mlp(dim + 1, WIDTH, WIDTH, 1, activation=nn.GELU)

    def start(self) -> None:
        """Zero the last layer: untrained, this is the kernel that `Upsampler` has by default."""
        for parameter in self.network[-1].parameters():
            nn.init.zeros_(parameter)

    def forward(self, features: Tensor) -> Tensor:
        """Give logarithms of weights (e,) from float32 features (e, d + 1) on the CPU."""
        weight = next(self.network.parameters())
        learned = self.network(features.to(weight))[:, 0].to(features)
        return learned - 4 * features[:, 0].square()


def train_kernel(
    kernel: DistanceKernel, trajectories: list[Trajectory], sizes: list[int], order: int, radius: float | None, *,
    steps: int, lr: float, generator: torch.Generator,
) -> list[float]:  # fmt: skip
    """Minimize the squared error of displacements from the first frame, by the mean squared deformation."""
    scale = _mean_square_deformation(trajectories)
    optimizer = torch.optim.Adam(kernel.parameters(), lr=lr)
    history = []
    for _ in range(steps):
        number = int(torch.randint(len(trajectories), (), generator=generator))
        x = trajectories[number].positions
        frame = int(torch.randint(1, len(x), (), generator=generator))
        shuffled = torch.randperm(x.shape[1], generator=generator)
        chosen = shuffled[: sizes[number]]
        asked = shuffled[sizes[number] :][:QUERIES]
        if not len(asked):
            asked = chosen[:QUERIES]
        Y, X = (x[0, which].double().numpy() for which in (chosen, asked))
        rows, columns, features = neighbor_lists(Y, X, default_radius(Y) if radius is None else radius)
        weights = kernel_weights(kernel(features.float()).double(), rows, features, len(X), order)
        u = (x[frame] - x[0]).double()
        found = torch.zeros(len(X), x.shape[2], dtype=torch.float64)
        found = found.index_add(0, rows, weights[:, None] * u[chosen].index_select(0, columns))
        loss = (found - u[asked]).square().mean() / scale
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(float(loss.detach()))
    return history


def _mean_square_deformation(trajectories: list[Trajectory]) -> float:
    """Average over frames, points and axes the squared displacement from the first frame, less each frame's mean."""
    total, n = 0.0, 0
    for trajectory in trajectories:
        u = (trajectory.positions[1:] - trajectory.positions[0]).double()
        deformation = u - u.mean(1, keepdim=True)
        total, n = total + float(deformation.square().sum()), n + deformation.numel()
    return total / n or 1.0
