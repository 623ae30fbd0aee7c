"""
Following a canyon without a gradient
=====================================

The landscape has a bent valley that leads to one lowest point, and ripples that hold whoever walks downhill. A swarm
sees past the ripples: its consensus moves as a gradient step would, of a landscape smoothed over the swarm's width.
"""

import matplotlib.pyplot as plt
import numpy as np
import torch

from steepest.particles import consensus_hopping, minimize_cbo
from steepest.particles.test_functions import canyon

start = np.array([8.0, 8.0])
swarm = minimize_cbo(canyon, start, init_std=0.5, alpha=100.0, sigma=1.6, noise="isotropic", maxiter=250,
                     vectorized=True, seed=1, return_all=True)  # fmt: skip
hops = consensus_hopping(canyon, start, sigma=0.7, alpha=100.0, vectorized=True, seed=1, return_all=True)
narrow = consensus_hopping(canyon, start, sigma=0.4, alpha=100.0, vectorized=True, seed=1, return_all=True)

# %%
# Gradient descent from the same point, for comparison.

x = torch.tensor(start, requires_grad=True)
downhill = [start]
for _ in range(2000):
    (slope,) = torch.autograd.grad(canyon(x), x)
    x = (x - 0.01 * slope).detach().requires_grad_()
    downhill.append(x.detach().numpy().copy())

# %%
# The star is the lowest point. Hops that are too narrow are held by the ripples as well.

grid = np.linspace(-4, 10, 281)
values = canyon(np.stack(np.meshgrid(grid, grid), -1))
paths = {
    "CBO": swarm.allvecs,
    "hopping, s = 0.7": hops.allvecs,
    "hopping, s = 0.4": narrow.allvecs,
    "gradient descent": np.array(downhill),
}
figure, axes = plt.subplots(figsize=(6.8, 6), layout="constrained")
shown = axes.contourf(grid, grid, np.minimum(values, 70), levels=30, cmap="Greys_r", extend="max")
for (name, path), color in zip(paths.items(), ("tab:cyan", "tab:orange", "tab:pink", "tab:red"), strict=True):
    axes.plot(*path.T, color=color, linewidth=1.6, label=f"{name}: ends at E = {float(canyon(path[-1])):.2f}")
    axes.plot(*path[-1], "o", color=color, markeredgecolor="white")
axes.plot(0, 0, "*", color="gold", markeredgecolor="black", markersize=18)
axes.set(title="A swarm sees past the ripples", xlabel="x", ylabel="y", aspect="equal", xlim=(-4, 10), ylim=(-4, 10))
axes.legend(loc="upper left", fontsize=8)
plt.colorbar(shown, ax=axes, shrink=0.8, label="E")
plt.show()
