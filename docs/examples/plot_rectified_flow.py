"""
Straight paths from noise to two moons
======================================

A network learns to carry noise into two moons by plain least squares on random pairs. Its paths bend, because lines of
random pairs cross and paths of a flow cannot. Trained once more on the flow's own pairs, the paths are straight, and a
single step follows them.
"""

import matplotlib.pyplot as plt
import torch
from matplotlib.collections import LineCollection
from sklearn.datasets import make_moons

from steepest.generative import MLPVelocity, rectify, sliced_wasserstein, straightness

# %%
# The two clouds. No sample of one belongs to a sample of the other.
noise = torch.randn(4000, 2, generator=torch.Generator().manual_seed(0))
moons = torch.from_numpy(make_moons(4000, noise=0.05, random_state=0)[0]).float() * 2.2 - torch.tensor([1.1, 0.55])

# %%
# A flow, and one round of reflow: trained on the pairs (start, end) of the first.
options = {"n_steps": 1000, "lr": 2e-3, "ema": 0.99, "generator": 0}  # short runs want a short memory
flows = [fit.flow for fit in rectify(noise, moons, lambda: MLPVelocity(2, seed=0), k=2, **options)]

# %%
# Paths by an accurate solver, and what one step of Euler makes of the same noise.
figure, axes = plt.subplots(2, 2, figsize=(9, 7.4), sharex=True, sharey=True)
for flow, row, name in zip(flows, axes, ("first flow", "after reflow"), strict=True):
    path = flow.sample(noise[:200], keep=True).path
    row[0].add_collection(LineCollection(list(path.transpose(0, 1)), colors="0.55", linewidths=0.6))
    row[0].scatter(*path[0].T, s=6, color="tab:blue", label="noise")
    row[0].scatter(*path[-1].T, s=6, color="tab:orange", label="end")
    bend = float(straightness(flow, noise[:500], steps=30))
    row[0].set_title(f"{name}: straightness S = {bend:.3f}")
    z = flow.sample(noise[:2000], steps=1, method="euler").x
    error = float(sliced_wasserstein(z, moons[2000:], generator=0))
    row[1].scatter(*moons[:2000].T, s=3, color="0.8")
    row[1].scatter(*z.T, s=3, color="tab:orange")
    row[1].set_title(f"{name}, one step: sliced W2 = {error:.2f}")
axes[0, 0].legend(loc="upper left", frameon=False, markerscale=2)
for ax in axes.flat:
    ax.set(xlim=(-4.2, 4.2), ylim=(-3.6, 3.6), xticks=[], yticks=[])
    ax.set_aspect("equal")
figure.tight_layout()
plt.show()
