"""
Old gradients, carried along, bring a policy to its optimum
===========================================================

A policy draws actions around theta and is told a noisy reward. One draw says little about the gradient of the expected
reward: the plain policy gradient pays for that with small steps. N-PG-IGT and N-HARPG average the gradients of all
draws so far, and correct the old ones for the way that theta has gone since, so that the average stays honest.
"""

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
# Each gets 2000 draws. The step of the plain gradient was chosen by its result, the others have the paper's schedules.
draws = 2000
start = torch.tensor([-0.8, 0.9], dtype=torch.float64)
plain = {"normalize": False, "transport": False, "momentum_exponent": 0.0, "step_exponent": 2 / 3}
methods = {
    "policy gradient": lambda s: igt_ascent(gradient, start, n_iter=draws, step=0.05, seed=s, return_all=True, **plain),
    "N-PG-IGT": lambda s: igt_ascent(gradient, start, n_iter=draws, step=0.3, seed=s, return_all=True),
    "N-HARPG": lambda s: harpg_ascent(
        gradient, hvp, start, n_iter=draws // 2, step=0.3, normalize=True, seed=s, return_all=True
    ),
}
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.4), layout="constrained")
x, y = np.meshgrid(np.linspace(-1.4, 1.9, 80), np.linspace(-1.5, 1.5, 80))
level = gap(torch.tensor(np.stack([x, y], -1)))
left.contour(x, y, -level, 12, cmap="Greys", linewidths=0.7, alpha=0.7)
colors = {"policy gradient": "#888888", "N-PG-IGT": "#1f6fb4", "N-HARPG": "#c8553d"}
for name, run in methods.items():
    results = [run(seed) for seed in range(4)]
    path = results[0].allvecs.numpy()
    left.plot(*path.T, color=colors[name], lw=1.2, alpha=0.9, label=name)
    used = np.arange(1, len(path)) * draws / (len(path) - 1)
    gaps = np.stack([gap(r.allvecs[1:]).numpy() for r in results])
    right.loglog(used, gaps.mean(0), color=colors[name], lw=1.6, label=name)
    print(f"{name}: mean gap {gaps[:, -1].mean():.1e} after {results[0].ntraj} draws")
left.plot(*top, marker="*", ms=14, color="black")
left.set(xlabel="theta, first coordinate", ylabel="second", title="One run of each; contours: expected reward")
right.set(xlabel="draws", ylabel="mean gap to the best reward", title="Four runs of each")
right.legend(frameon=False, loc="lower left")
for ax in (left, right):
    ax.spines[["top", "right"]].set_visible(False)
plt.show()
