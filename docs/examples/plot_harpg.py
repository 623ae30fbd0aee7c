"""
Old gradients, carried along, make a direction that can be trusted
==================================================================

A policy draws actions around theta and is told a noisy reward. One draw says little about the gradient of the expected
reward: the plain policy gradient pays for that with small steps. N-PG-IGT and N-HARPG average the gradients of all
draws so far, and correct the old ones for the way that theta has gone since. Here the gradient is known, so that their
directions can be compared with it.
"""

from itertools import pairwise

import matplotlib.pyplot as plt
import numpy as np
import torch

from steepest.policy import harpg_ascent, igt_ascent

# %%
# The reward is a parabola with its top at (1, -0.6); actions have standard deviation 0.5. Everything is known: the
# expected reward is a parabola too.
curvature = torch.tensor([2.0, 0.5], dtype=torch.float64)
top = torch.tensor([1.0, -0.6], dtype=torch.float64)
sigma = 0.5


def draw(theta, generator):
    e = torch.randn(2, generator=generator, dtype=torch.float64)
    noise = 0.5 * torch.randn((), generator=generator, dtype=torch.float64)
    return e, -0.5 * (curvature * (theta + sigma * e - top) ** 2).sum() + noise


def gradient(theta, generator):
    """Reward times the gradient of the log-probability: its mean is the gradient, its variance is large."""
    e, reward = draw(theta, generator)
    return reward * e / sigma


def hvp(theta, u, generator):
    """The same for the Hessian times u."""
    e, reward = draw(theta, generator)
    return reward * (e * (e @ u) - u) / sigma**2


def gap(theta):
    return 0.5 * (curvature * (theta - top) ** 2).sum(-1)


# %%
# Each gets 2000 draws; N-HARPG needs two for an update, and has not quite arrived. The step of the plain gradient was
# chosen by its result.
draws = 2000
start = torch.zeros(2, dtype=torch.float64)
plain = {"normalize": False, "transport": False, "momentum_exponent": 0.0, "step_exponent": 2 / 3}
methods = {
    "policy gradient": lambda s: igt_ascent(gradient, start, n_iter=draws, step=0.1, seed=s, return_all=True, **plain),
    "N-HARPG": lambda s: harpg_ascent(
        gradient, hvp, start, n_iter=draws // 2, step=0.2, normalize=True, seed=s, return_all=True
    ),
    "N-PG-IGT": lambda s: igt_ascent(gradient, start, n_iter=draws, step=0.2, seed=s, return_all=True),
}
colors = {"policy gradient": "#9a9a9a", "N-PG-IGT": "#1f6fb4", "N-HARPG": "#c8553d"}
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.4), layout="constrained")
x, y = np.meshgrid(np.linspace(-0.8, 1.7, 80), np.linspace(-1.1, 0.6, 80))
left.contour(x, y, -gap(torch.tensor(np.stack([x, y], -1))), 14, cmap="Greys", linewidths=0.7, alpha=0.6)
for name, run in methods.items():
    results = [run(seed) for seed in range(4)]
    left.plot(*results[0].allvecs.numpy().T, color=colors[name], lw=1.3, label=name)
    used = np.linspace(draws / results[0].nit, draws, results[0].nit)
    off = [(r.directions + curvature * (r.allvecs[:-1] - top)).square().sum(1).numpy() for r in results]
    blocks = np.unique(np.geomspace(1, len(used) - 1, 25).astype(int))  # means over blocks of equal length in the log
    error = np.array([np.mean([o[a:b] for o in off]) for a, b in pairwise(blocks)])
    right.loglog(used[blocks[1:]], error, color=colors[name], lw=2, label=name)
    print(f"{name}: squared error {error[-1]:.1e}, gap {np.mean([gap(r.x).item() for r in results]):.1e}")
left.plot(*top, marker="*", ms=14, color="black", ls="")
left.set(xlabel="theta, first coordinate", ylabel="second", title="One run of each; contours: expected reward")
right.set(xlabel="draws", ylabel="squared error of the direction", title="The average follows the gradient")
right.legend(frameon=False)
for ax in (left, right):
    ax.spines[["top", "right"]].set_visible(False)
plt.show()
