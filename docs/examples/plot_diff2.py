"""
Private training: hide the changes of the gradient
==================================================

Two ways to spend the same privacy (epsilon = 1, delta = 1e-5) on 16 000 records. DP-GD hides every gradient; DIFF2
hides the first one, and after that only the gradient's changes, which become small as the steps do. The noise it needs
follows them down.
"""

import warnings

import matplotlib.pyplot as plt
import numpy as np
import torch

from steepest.core.errors import SteepestWarning
from steepest.federated import diff2, dp_gd

# %%
# Logistic regression with rows of norm 2. At x = 0 every gradient has norm 1, whatever the data: a bound for the first
# message that costs nothing. Per unit of step a gradient changes by at most 1, for a sigmoid's slope is at most 1/4.
rng = np.random.default_rng(0)
a = rng.standard_normal((16_000, 40)) / np.arange(1, 41)
a *= 2 / np.linalg.norm(a, axis=1, keepdims=True)
y = np.where(rng.random(len(a)) < 1 / (1 + np.exp(-a @ rng.standard_normal(40) / 2)), 1.0, -1.0)
rows = torch.tensor(a * y[:, None], dtype=torch.float32)


def gradients(x, a):
    return -torch.sigmoid(-(a @ x)), a  # c and a: the gradient of record j is c_j a_j


def true_norm(x):
    c, a = gradients(x, rows)
    return float((c @ a / len(a)).norm())


# %%
# The true gradient norms are computed here to be looked at; they are not private, and `diff2` does not tell them.
budget = {"epsilon": 1.0, "delta": 1e-5, "per_sample_grad": gradients, "seed": 1, "lr": 0.5}
paths, noise = {"DP-GD": [], "DIFF2": []}, {}
start = torch.zeros(40)
with warnings.catch_warnings():
    warnings.simplefilter("ignore", SteepestWarning)  # recording the messages, for the picture, is not private
    dp = dp_gd(None, start, (rows,), rounds=120, clip=2.0, record_messages=True, **budget,
               callback=lambda x: paths["DP-GD"].append(true_norm(x)))  # fmt: skip
    d2 = diff2(None, start, (rows,), rounds=120, restart=120, clip=1.0, clip_difference=1.0, restart_share=0.3,
               record_messages=True, **budget, callback=lambda x: paths["DIFF2"].append(true_norm(x)))  # fmt: skip
noise["DP-GD"] = [m["std"] for m in dp.messages]
noise["DIFF2"] = [m["std"] for m in d2.messages]

# %%
# Left: the noise on each message. Right: where it led. Messages of DIFF2 are up to a hundred times quieter, and the
# path is smooth. But its noises add up in the estimate, while those of DP-GD are fresh in each round and average out,
# so that at this step and number of rounds both end at the same place. Each has a setting of its own that is better.
figure, axes = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained")
for name, color in (("DP-GD", "#6b6b6b"), ("DIFF2", "#0072b2")):
    axes[0].semilogy(range(1, 121), noise[name], color=color, label=name)
    axes[1].semilogy(range(1, 121), paths[name], color=color, label=f"{name}: {paths[name][-1]:.3f} at the end")
axes[0].set(title="Noise per coordinate of each message", xlabel="round", ylabel="standard deviation")
axes[1].set(title="Norm of the true gradient", xlabel="round")
for ax in axes:
    ax.legend(frameon=False)
    ax.spines[["top", "right"]].set_visible(False)
plt.show()
